use super::axis::{Axis, Ruler, number};
use super::svg::{COLORS, Svg};

const SIZE: (f64, f64) = (820.0, 480.0);
/// Room around the plot: left, top, right (the legend, of names of up to 19 letters), bottom.
const ROOM: [f64; 4] = [74.0, 64.0, 196.0, 56.0];

/// From the plot to the names of the legend.
const TO_NAMES: f64 = 44.0;

/// A letter of such a name, as wide as DejaVu Sans has them.
pub(super) const LETTER: f64 = 8.0;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line with a dot at every point and its spread.
    Line,
    /// A broken line without dots, such as a limit.
    Dashed,
    /// Dots alone.
    Dots,
}

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// In ascending order of `x`.
    pub points: Vec<(f64, f64)>,
    /// Low and high end of each point's spread, or nothing.
    pub spread: Vec<(f64, f64)>,
    /// How.
    pub style: Style,
    /// The number of its colour; that of its place among the series if left out.
    pub color: Option<usize>,
}

/// A place on the horizontal axis worth a word.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// The word.
    pub label: String,
}

/// Curves over two axes.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Above.
    pub title: String,
    /// Below the title: hardware, sizes.
    pub subtitle: String,
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// First one first in the legend.
    pub series: Vec<Series>,
    /// Vertical lines.
    pub marks: Vec<Mark>,
}

impl Chart {
    /// As SVG.
    pub fn svg(&self) -> String {
        let [left, top, right, bottom] = ROOM;
        let (width, height) = (SIZE.0 - left - right, SIZE.1 - top - bottom);
        let shown = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
        let series = || {
            let all = self.series.iter().enumerate();
            all.filter(|(_, series)| series.points.iter().any(|point| shown(&point)))
        };
        let names = series().map(|(_, series)| series.name.chars().count());
        let legend = TO_NAMES + LETTER * names.max().unwrap_or(0) as f64;
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Ruler::new(self.x.scale, points().map(|point| point.0));
        let spreads = self.series.iter().flat_map(|series| &series.spread);
        let ends = spreads.flat_map(|&(low, high)| [low, high]);
        let y = Ruler::new(self.y.scale, points().map(|point| point.1).chain(ends));
        let across = |value: f64| left + width * x.place(value);
        let down = |value: f64| top + height * (1.0 - y.place(value));

        let mut svg = Svg::new(left + width + right.max(legend), SIZE.1);
        svg.text("title", (left, 26.0), "start", &self.title);
        svg.text("soft", (left, 47.0), "start", &self.subtitle);
        for tick in x.ticks() {
            svg.line("grid", (across(tick), top), (across(tick), top + height));
            svg.text(
                "soft",
                (across(tick), top + height + 18.0),
                "middle",
                &number(tick),
            );
        }
        for tick in y.ticks() {
            svg.line("grid", (left, down(tick)), (left + width, down(tick)));
            svg.text("soft", (left - 8.0, down(tick) + 4.0), "end", &number(tick));
        }
        svg.line("frame", (left, top + height), (left + width, top + height));
        svg.line("frame", (left, top), (left, top + height));
        svg.text(
            "ink",
            (left + width / 2.0, SIZE.1 - 14.0),
            "middle",
            &self.x.name,
        );
        svg.upright("ink", (18.0, top + height / 2.0), &self.y.name);
        let within = |mark: &&Mark| (0.0..=1.0).contains(&x.place(mark.x));
        for (index, Mark { x, label }) in self.marks.iter().filter(within).enumerate() {
            let x = across(*x);
            svg.line("mark", (x, top), (x, top + height));
            svg.text(
                "soft",
                (x + 5.0, top + 14.0 + 16.0 * index as f64),
                "start",
                label,
            );
        }

        for (place, (index, series)) in series().enumerate() {
            let color = series.color.unwrap_or(index) % COLORS.len();
            let places: Vec<_> = series
                .points
                .iter()
                .filter(shown)
                .map(|&(x, y)| (across(x), down(y)))
                .collect();
            let legend = (left + width + 16.0, top + 12.0 + 20.0 * place as f64);
            let dash = [legend, (legend.0 + 22.0, legend.1)];
            match series.style {
                Style::Dashed => {
                    svg.polyline(&format!("d{color}"), &places);
                    svg.polyline(&format!("d{color}"), &dash);
                }
                Style::Line => {
                    svg.polyline(&format!("l{color}"), &places);
                    svg.polyline(&format!("l{color}"), &dash);
                }
                Style::Dots => svg.dot(&format!("f{color}"), (legend.0 + 11.0, legend.1), 5.0),
            }
            // Of one point there is no line.
            if series.style != Style::Dashed || places.len() == 1 {
                let radius = if series.style == Style::Dots {
                    5.0
                } else {
                    3.5
                };
                places
                    .iter()
                    .for_each(|&place| svg.dot(&format!("f{color}"), place, radius));
            }
            let spread = series.points.iter().zip(&series.spread);
            for (point, (low, high)) in spread.filter(|(point, _)| shown(point)) {
                svg.line(
                    &format!("l{color}"),
                    (across(point.0), down(*low)),
                    (across(point.0), down(*high)),
                );
            }
            svg.text(
                "ink",
                (left + width + TO_NAMES, legend.1 + 4.0),
                "start",
                &series.name,
            );
        }
        svg.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::axis::Scale;
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let spread = points.iter().map(|(_, y)| (0.9 * y, 1.1 * y)).collect();
        Chart {
            title: "Forward <time>".into(),
            subtitle: "a CPU".into(),
            x: Axis::new("length", Scale::Log2),
            y: Axis::new("ms", Scale::Log10),
            series: vec![Series {
                name: "mamba1".into(),
                points,
                spread,
                style: Style::Line,
                color: None,
            }],
            marks: vec![Mark {
                x: 128.0,
                label: "crossing".into(),
            }],
        }
    }

    #[test]
    fn one_point_is_seen_and_none_have_no_name() {
        let mut chart = chart(vec![(64.0, 1.0)]);
        chart.series[0].style = Style::Dashed;
        chart.series.push(Series {
            name: "gpt2".into(),
            points: vec![(128.0, f64::INFINITY)],
            ..chart.series[0].clone()
        });
        let svg = chart.svg();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("mamba1") && !svg.contains("gpt2"));
    }

    #[test]
    fn a_chart_holds_its_points_and_both_themes() {
        let svg = chart(vec![(64.0, 1.0), (128.0, 2.0), (1024.0, 16.0)]).svg();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<circle").count(), 3);
        for part in [
            "prefers-color-scheme: dark",
            "Forward &lt;time&gt;",
            "mamba1",
            "crossing",
            "1,024",
            "length",
        ] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        // Twice the time is always the same step up.
        let places: Vec<f64> = svg
            .split("cy=\"")
            .skip(1)
            .map(|part| part.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!(places[0] > places[1] && places[1] > places[2]);
        assert!(
            ((places[0] - places[1]) * 3.0 - (places[1] - places[2])).abs() < 0.5,
            "{places:?}"
        );
    }

    #[test]
    fn a_wide_spread_stays_inside_the_frame() {
        let mut chart = chart(vec![(64.0, 1.0), (128.0, 2.0)]);
        chart.series[0].spread[1] = (0.01, 400.0);
        let svg = chart.svg();
        let heights = svg.split("y2=\"").skip(1);
        let heights = heights.map(|part| part.split('"').next().unwrap().parse::<f64>().unwrap());
        let [_, top, _, bottom] = ROOM;
        for height in heights {
            assert!((top..=SIZE.1 - bottom).contains(&height), "{height}");
        }
    }

    #[test]
    fn a_long_name_widens_the_picture_and_not_the_plot() {
        let mut chart = chart(vec![(64.0, 1.0), (128.0, 2.0)]);
        let short = chart.svg();
        chart.series[0].name = "3020 GB/s, 790000 GFLOP/s".into();
        let long = chart.svg();
        let width = |svg: &str| -> f64 {
            let (_, rest) = svg.split_once("viewBox=\"0 0 ").unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        assert_eq!(
            (width(&short), width(&long)),
            (820.0, 820.0 - 196.0 + 44.0 + 200.0)
        );
        let dot = |svg: &str| svg.split("cx=\"").nth(2).unwrap()[..6].to_owned();
        assert_eq!(dot(&short), dot(&long));
    }

    #[test]
    fn nothing_to_show_is_drawn() {
        for points in [vec![], vec![(64.0, 3.0)], vec![(64.0, f64::NAN)]] {
            let svg = chart(points).svg();
            assert!(svg.contains("</svg>") && !svg.contains("\"NaN"), "{svg}");
        }
    }
}
