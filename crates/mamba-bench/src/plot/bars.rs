use super::axis::{Ruler, Scale, number};
use super::chart::LETTER;
use super::svg::{COLORS, Svg};

const WIDTH: f64 = 820.0;
/// Room for the names, above, for the numbers, below.
const ROOM: [f64; 4] = [230.0, 64.0, 110.0, 50.0];
const BAR: f64 = 26.0;

/// Named numbers as horizontal bars from zero.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Above.
    pub title: String,
    /// Below the title.
    pub subtitle: String,
    /// What the numbers are, with their unit.
    pub unit: String,
    /// From top to bottom: name, value and its colour's number.
    pub bars: Vec<(String, f64, usize)>,
}

impl Bars {
    /// As SVG.
    pub fn svg(&self) -> String {
        let [least, top, right, bottom] = ROOM;
        let names = self.bars.iter().map(|bar| bar.0.chars().count());
        let left = least.max(LETTER * names.max().unwrap_or(0) as f64 + 20.0);
        let height = BAR * self.bars.len().max(1) as f64;
        let width = WIDTH - least - right;
        let ruler = Ruler::new(Scale::Linear, self.bars.iter().map(|bar| bar.1));
        let mut svg = Svg::new(left + width + right, top + height + bottom);
        svg.text("title", (20.0, 26.0), "start", &self.title);
        svg.text("soft", (20.0, 47.0), "start", &self.subtitle);
        for tick in ruler.ticks() {
            let x = left + width * ruler.place(tick);
            svg.line("grid", (x, top), (x, top + height));
            svg.text("soft", (x, top + height + 18.0), "middle", &number(tick));
        }
        svg.text(
            "ink",
            (left + width / 2.0, top + height + 38.0),
            "middle",
            &self.unit,
        );
        for (index, (name, value, color)) in self.bars.iter().enumerate() {
            let y = top + BAR * index as f64;
            let length = width * ruler.place(*value).clamp(0.0, 1.0);
            svg.text("ink", (left - 10.0, y + 0.65 * BAR), "end", name);
            svg.rect(
                &format!("f{}", color % COLORS.len()),
                (left, y + 4.0),
                (length, BAR - 8.0),
            );
            let digits = crate::results::digits(*value);
            svg.text(
                "ink",
                (left + length + 8.0, y + 0.65 * BAR),
                "start",
                &digits,
            );
        }
        svg.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_numbers() {
        let bars = Bars {
            title: "Backends".into(),
            subtitle: String::new(),
            unit: "ms".into(),
            bars: vec![("flex".into(), 10.0, 0), ("ndarray".into(), 40.0, 1)],
        };
        let svg = bars.svg();
        let widths: Vec<f64> = svg
            .split("<rect class=\"f")
            .skip(1)
            .map(|part| {
                part.split("width=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        assert!((widths[1] / widths[0] - 4.0).abs() < 0.01, "{widths:?}");
        assert!(svg.contains("ndarray") && svg.contains("40.0"));
    }
}
