/// How values are spread along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By powers of ten.
    Log10,
    /// By powers of two.
    Log2,
}

/// One direction of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub name: String,
    /// How.
    pub scale: Scale,
}

impl Axis {
    /// An axis.
    pub fn new(name: &str, scale: Scale) -> Self {
        Self {
            name: name.into(),
            scale,
        }
    }
}

/// An axis with its range: values to places between 0 and 1.
pub(super) struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Ruler {
    /// Wide enough for all `values` that the scale can show.
    pub fn new(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let shown =
            values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0));
        let (low, high) = shown
            .map(|value| place(scale, value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            return Self {
                scale,
                low: 0.0,
                high: 1.0,
            };
        }
        let (low, high) = match scale {
            Scale::Linear => (low.min(0.0), if high > 0.0 { 1.05 * high } else { 1.0 }),
            Scale::Log10 => (
                low - 0.06 * (high - low).max(1.0),
                high + 0.06 * (high - low).max(1.0),
            ),
            Scale::Log2 => (low - 0.3, high + 0.3),
        };
        Self { scale, low, high }
    }

    /// Where `value` lies; outside of 0 to 1 where it is beyond the range.
    pub fn place(&self, value: f64) -> f64 {
        (place(self.scale, value) - self.low) / (self.high - self.low)
    }

    /// Values worth a line, in ascending order.
    pub fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = round_step((self.high - self.low) / 5.0);
                let first = (self.low / step).ceil() as i64;
                let last = (self.high / step).floor() as i64;
                (first..=last).map(|number| number as f64 * step).collect()
            }
            Scale::Log2 => {
                let (first, last) = (self.low.ceil() as i32, self.high.floor() as i32);
                let step = ((last - first) / 8 + 1) as usize;
                (first..=last)
                    .step_by(step)
                    .map(|power| 2f64.powi(power))
                    .collect()
            }
            Scale::Log10 => {
                let (first, last) = (self.low.floor() as i32, self.high.ceil() as i32);
                let parts: &[f64] = match self.high - self.low {
                    span if span < 1.5 => &[1.0, 2.0, 5.0],
                    span if span < 3.0 => &[1.0, 3.0],
                    _ => &[1.0],
                };
                let all = (first..=last)
                    .flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power)));
                all.filter(|value| (0.0..=1.0).contains(&self.place(*value)))
                    .collect()
            }
        }
    }
}

fn place(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log10 => value.log10(),
        Scale::Log2 => value.log2(),
    }
}

/// The next of 1, 2, 5, 10, 20 .. .
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let part = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|part| part * power >= step);
    part.unwrap_or(10.0) * power
}

/// `16384` as `16,384`, `0.05` as it is.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 1.0 && value != 0.0 {
        let decimals = (-value.abs().log10().floor()) as usize;
        return format!("{value:.decimals$}");
    }
    let text = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (index, digit) in text.chars().enumerate() {
        if index > 0 && (text.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    match value < 0.0 {
        true => format!("-{out}"),
        // Steps of a linear axis below 10 may be halves.
        false if value.fract() != 0.0 => format!("{value}"),
        false => out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_lie_within_and_read_well() {
        for (scale, values, expected) in [
            (
                Scale::Log2,
                vec![64.0, 1024.0],
                vec!["64", "128", "256", "512", "1,024"],
            ),
            (
                Scale::Log10,
                vec![0.02, 30.0],
                vec!["0.01", "0.1", "1", "10", "100"],
            ),
            (
                Scale::Linear,
                vec![7.0, 41.0],
                vec!["0", "10", "20", "30", "40"],
            ),
        ] {
            let ruler = Ruler::new(scale, values.into_iter());
            let ticks = ruler.ticks();
            assert!(
                ticks
                    .iter()
                    .all(|&tick| (0.0..=1.0).contains(&ruler.place(tick))),
                "{ticks:?}"
            );
            let names: Vec<_> = ticks.into_iter().map(number).collect();
            assert!(
                names.iter().all(|name| expected.contains(&name.as_str())),
                "{names:?}"
            );
            assert!(names.len() >= 3, "{names:?}");
        }
    }

    #[test]
    fn what_cannot_be_shown_does_not_widen_the_range() {
        let ruler = Ruler::new(Scale::Log10, [0.0, f64::NAN, 5.0].into_iter());
        assert!(ruler.place(5.0).is_finite() && !ruler.ticks().is_empty());
        let empty = Ruler::new(Scale::Linear, std::iter::empty());
        assert!(empty.place(0.5).is_finite());
    }
}
