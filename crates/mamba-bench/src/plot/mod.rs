//! Plots as SVG that follow the reader's choice of light or dark.
//!
//! Drawn by hand: `plotters` writes colours into every element, where no style sheet reaches them. SVG only: pictures of
//! pixels would need a rasteriser and a font in every build.

mod axis;
mod bars;
mod chart;
mod svg;

pub(crate) use axis::number;
pub use axis::{Axis, Scale};
pub use bars::Bars;
pub use chart::{Chart, Mark, Series, Style};
