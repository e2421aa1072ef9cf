use std::fmt::Write;

/// Colours of the series in light and in dark, apart for most eyes.
pub(super) const COLORS: [[&str; 2]; 8] = [
    ["#0969da", "#58a6ff"],
    ["#cf222e", "#ff7b72"],
    ["#1a7f37", "#3fb950"],
    ["#8250df", "#bc8cff"],
    ["#bc4c00", "#f0883e"],
    ["#0e7490", "#39c5cf"],
    ["#9a6700", "#d29922"],
    ["#a83279", "#f778ba"],
];

/// An SVG in the making.
pub(super) struct Svg {
    text: String,
}

impl Svg {
    pub fn new(width: f64, height: f64) -> Self {
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             font-family=\"system-ui, 'DejaVu Sans', Helvetica, sans-serif\" font-size=\"13\">\n<style>\n"
        );
        text += &rules(0);
        text += "@media (prefers-color-scheme: dark) {\n";
        text += &rules(1);
        text += "}\n</style>\n";
        let _ = writeln!(
            text,
            "<rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>"
        );
        Self { text }
    }

    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = writeln!(
            self.text,
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    pub fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<_> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            self.text,
            "<polyline class=\"{class}\" points=\"{}\"/>",
            points.join(" ")
        );
    }

    pub fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        let _ = writeln!(
            self.text,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"
        );
    }

    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let _ = writeln!(
            self.text,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    /// `anchor` is `start`, `middle` or `end`.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
        let _ = writeln!(
            self.text,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escaped(text)
        );
    }

    /// Reads upwards.
    pub fn upright(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let _ = writeln!(
            self.text,
            "<text class=\"{class}\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(text)
        );
    }

    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// The style sheet in light (0) and in dark (1).
fn rules(theme: usize) -> String {
    let pick = |light: &'static str, dark: &'static str| [light, dark][theme];
    let (paper, ink) = (pick("#ffffff", "#0d1117"), pick("#1f2328", "#e6edf3"));
    let (soft, grid) = (pick("#59636e", "#9198a1"), pick("#d8dee4", "#30363d"));
    let mut text = format!(
        ".paper {{ fill: {paper} }}\n.ink {{ fill: {ink} }}\n.soft {{ fill: {soft} }}\n\
         .title {{ fill: {ink}; font-size: 17px; font-weight: 600 }}\n\
         .grid {{ stroke: {grid}; stroke-width: 1 }}\n.frame {{ stroke: {soft}; stroke-width: 1 }}\n\
         .mark {{ stroke: {soft}; stroke-width: 1; stroke-dasharray: 4 4 }}\n"
    );
    for (index, colors) in COLORS.iter().enumerate() {
        let color = colors[theme];
        let _ = write!(
            text,
            ".l{index} {{ stroke: {color}; stroke-width: 2; fill: none }}\n\
             .d{index} {{ stroke: {color}; stroke-width: 2; fill: none; stroke-dasharray: 7 4 }}\n\
             .f{index} {{ fill: {color} }}\n"
        );
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
