//! An oracle over blocks of channels, one a thread.

use std::ops::Range;
use std::thread;

use super::Named;

/// The channels `range` of a tensor in f64. Along its innermost axes every channel has `inner` values.
pub fn slice(values: &[f32], channels: usize, inner: usize, range: &Range<usize>) -> Vec<f64> {
    let rows = values.chunks((channels * inner).max(1));
    let row = range.start * inner..range.end * inner;
    rows.flat_map(|values| values[row.clone()].iter().map(|&it| it.into()))
        .collect()
}

/// What `oracle` says of all channels. `inner` tells how many values a channel has along the innermost
/// axes of a result; none: the blocks add up to it.
pub fn by_channels(
    channels: usize,
    oracle: impl Fn(Range<usize>) -> Vec<Named> + Sync,
    inner: impl Fn(&str) -> Option<usize>,
) -> Vec<Named> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let block = channels.div_ceil(threads).max(1);
    let ranges: Vec<_> = (0..channels.max(1))
        .step_by(block)
        .map(|first| first..(first + block).min(channels))
        .collect();
    let oracle = &oracle;
    let blocks: Vec<Vec<Named>> = thread::scope(|scope| {
        let started: Vec<_> = ranges
            .iter()
            .map(|range| scope.spawn(|| oracle(range.clone())))
            .collect();
        let ended = started.into_iter().map(|it| it.join());
        ended.map(|it| it.expect("the oracle ends")).collect()
    });
    if let [only] = &blocks[..] {
        return only.clone();
    }

    let names = blocks[0].iter().map(|(name, _)| *name).enumerate();
    let whole = |(index, name): (usize, &'static str)| {
        let parts = || blocks.iter().map(|block| &block[index].1);
        let Some(inner) = inner(name) else {
            let mut sum = vec![0.0; parts().next().map_or(0, Vec::len)];
            for part in parts() {
                sum.iter_mut().zip(part).for_each(|(sum, it)| *sum += it);
            }
            return (name, sum);
        };
        let mut whole = vec![0.0; parts().map(Vec::len).sum()];
        for (range, part) in ranges.iter().zip(parts()) {
            let rows = whole.chunks_mut(channels * inner);
            for (row, values) in rows.zip(part.chunks(range.len() * inner)) {
                row[range.start * inner..range.end * inner].copy_from_slice(values);
            }
        }
        (name, whole)
    };
    names.map(whole).collect()
}
