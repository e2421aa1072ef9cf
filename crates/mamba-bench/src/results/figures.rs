//! The numbers beside a duration.

/// A kind of number.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// In files.
    pub name: &'static str,
    /// In tables.
    pub title: &'static str,
    /// Digits behind the point in tables.
    pub decimals: usize,
}

const fn kind(name: &'static str, title: &'static str, decimals: usize) -> Figure {
    Figure {
        name,
        title,
        decimals,
    }
}

/// In the order of a table's columns.
pub const FIGURES: [Figure; 20] = [
    // Time of a call over its sequences.
    kind("ms_per_sequence", "ms/seq", 3),
    // Tokens read or written over time.
    kind("tokens_per_second", "tok/s", 0),
    // Tokens generated in a call.
    kind("tokens", "tokens", 0),
    // From the call of a prepared model's `generate_all` to the first token of each sequence: the prompts are read.
    kind("first_token_ms", "first ms", 2),
    // Multiplications and additions that the definition of the problem needs; an exponential counts as one.
    kind("gflop", "GFLOP", 2),
    // Those over time.
    kind("gflop_per_second", "GFLOP/s", 1),
    // Inputs read and outputs written once.
    kind("mib", "MiB", 1),
    // Those over time.
    kind("gb_per_second", "GB/s", 2),
    // Operations over bytes.
    kind("flop_per_byte", "FLOP/B", 2),
    // Kernels that a call, or a step, hands to the device one by one: none where recorded ones are replayed.
    kind("launches", "launches", 0),
    // Time at the roof over time.
    kind("share_of_roof", "of roof", 3),
    // Operations a second over those of the measured peak.
    kind("flop_share", "MFU", 3),
    // Memory of the parameters as measured: what loading took.
    kind("weights_mib", "weights MiB", 0),
    // The largest memory of the process, or of the GPU.
    kind("peak_mib", "peak MiB", 0),
    // The peak less what was there before.
    kind("over_weights_mib", "over MiB", 0),
    // What the model remembers of the sequence.
    kind("state_mib", "state MiB", 2),
    // That over the sequence's positions.
    kind("state_bytes_per_token", "state B/tok", 0),
    // A peer's time over ours: above 1, we are faster.
    kind("over_ours", "x ours", 2),
    // Quartiles of that over the rounds.
    kind("over_ours_q1", "q1", 2),
    kind("over_ours_q3", "q3", 2),
];

/// The kind of that name.
pub fn figure(name: &str) -> Option<Figure> {
    FIGURES.into_iter().find(|figure| figure.name == name)
}
