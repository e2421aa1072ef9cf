use std::fmt::Write;

use super::{Results, Row, figures::FIGURES};

/// All rows with all figures that occur, for a spreadsheet.
pub fn csv(results: &Results) -> String {
    let figures: Vec<_> = FIGURES
        .iter()
        .filter(|figure| {
            results
                .rows
                .iter()
                .any(|row| row.figures.contains_key(figure.name))
        })
        .collect();
    let mut text = String::from(
        "problem,engine,device,precision,batch,length,median_ms,q1_ms,q3_ms,rounds,other_cores",
    );
    for figure in &figures {
        text.push(',');
        text.push_str(figure.name);
    }
    text.push('\n');
    for Row {
        key,
        time,
        figures: values,
    } in &results.rows
    {
        let names =
            [&key.problem, &key.engine, &key.device, &key.precision].map(|name| quoted(name));
        let _ = write!(text, "{},{},{}", names.join(","), key.batch, key.length);
        match time {
            Some(time) => {
                let others = time
                    .other_cores
                    .map_or(String::new(), |cores| format!("{cores:.3}"));
                let rounds = time.rounds_ms.values().len();
                let _ = write!(
                    text,
                    ",{},{},{},{rounds},{others}",
                    time.median_ms, time.q1_ms, time.q3_ms
                );
            }
            None => text.push_str(",,,,,"),
        }
        for figure in &figures {
            let value = values
                .get(figure.name)
                .map_or(String::new(), f64::to_string);
            let _ = write!(text, ",{value}");
        }
        text.push('\n');
    }
    text
}

fn quoted(name: &str) -> String {
    match name.contains([',', '"', '\n']) {
        true => format!("\"{}\"", name.replace('"', "\"\"")),
        false => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::row;
    use super::*;

    #[test]
    fn every_line_has_every_column() {
        let mut results = Results::default();
        results
            .rows
            .push(row("scan, \"both ways\"", 64, &[1.0, 2.0, 3.0]).with("gflop", 0.25));
        results.rows.push(Row {
            time: None,
            ..row("memory", 64, &[1.0]).with("peak_mib", 12.0)
        });
        let text = csv(&results);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].ends_with("other_cores,gflop,peak_mib"),
            "{}",
            lines[0]
        );
        assert_eq!(
            lines[1],
            "\"scan, \"\"both ways\"\"\",mamba-lab,flex,f32,2,64,2,1.5,2.5,3,0.500,0.25,"
        );
        assert_eq!(lines[2], "memory,mamba-lab,flex,f32,2,64,,,,,,,12");
        assert_eq!(lines[0].split(',').count(), lines[2].split(',').count());
    }
}
