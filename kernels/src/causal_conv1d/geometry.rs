//! Who computes what: the channels of a unit and the runs of time.

use cubecl::ir::HardwareProperties;
use cubecl::prelude::*;

use super::Dims;

/// Units of a cube: few, so that the last cubes of a launch leave little of the device idle.
const UNITS: u32 = 128;

/// What one direction of the convolution asks of the device.
pub(super) struct Plan {
    /// Neighbouring channels of a unit at most: no more than any backend loads and computes on at once.
    max_lanes: usize,
    /// Positions whose loads are in flight at once in a unit.
    block: usize,
    /// Units a multiprocessor that runs of time are cut for.
    units: usize,
    /// Shortest run, in positions: each reads `width - 1` positions of its neighbour, too.
    min_run: usize,
    /// Longest run: what runs that are computed together read fits the L2 cache, and the last cubes of
    /// a launch are soon done.
    max_run: usize,
}

/// Eight positions in flight took 43 us on an H100 where four took 46, bf16, (8, 1536, 2048).
pub(super) const FORWARD: Plan = Plan {
    max_lanes: 4,
    block: 8,
    units: 2048,
    min_run: 16,
    max_run: 64,
};

/// Two channels a unit are 72 registers, and 69 us there; four are about 128, and 80 us. A run also
/// computes positions of its neighbour again and writes a part of the weight's gradient, so runs are
/// longer.
pub(super) const BACKWARD: Plan = Plan {
    max_lanes: 2,
    block: 4,
    units: 768,
    min_run: 32,
    max_run: 128,
};

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Geometry {
    /// Taps of a filter.
    pub width: usize,
    /// Neighbouring channels of a unit, one vector.
    pub lanes: usize,
    /// Positions whose loads are in flight at once.
    pub block: usize,
    pub silu: bool,
    /// Whether the kernel takes inline PTX.
    pub ptx: bool,
}

impl Geometry {
    /// Inputs before a position that its taps reach.
    pub fn reach(&self) -> usize {
        self.width - 1
    }

    /// Inputs that the taps of a block reach.
    pub fn window(&self) -> usize {
        self.reach() + self.block
    }

    /// The same, for one position at a time.
    pub fn one_by_one(&self) -> Self {
        Self { block: 1, ..*self }
    }
}

/// The runs of time: units lie over vectors of channels, runs and sequences, in this order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    /// Positions of a run, a multiple of the block.
    pub len: usize,
    /// Runs of a sequence: at least one, which in an empty sequence passes the window on.
    pub count: usize,
}

impl Plan {
    pub fn geometry(&self, width: usize, lanes: usize, silu: bool, ptx: bool) -> Geometry {
        Geometry {
            width,
            lanes,
            block: self.block,
            silu,
            ptx,
        }
    }

    /// How many neighbouring channels a unit loads at once: as many as divide the channels, the strides of
    /// `rows` and where every tensor begins.
    pub fn lanes<'a>(
        &self,
        channels: usize,
        rows: &[Sized<'a>],
        whole: impl Iterator<Item = Sized<'a>> + Clone,
        hardware: &HardwareProperties,
    ) -> usize {
        let begins = |(tensor, size): Sized, lanes: usize| {
            let offset = tensor.handle.offset_start.unwrap_or(0) as usize;
            offset.is_multiple_of(lanes * size)
        };
        let steps = |(tensor, _): Sized, lanes: usize| {
            let strides = tensor.shape.iter().zip(tensor.strides.iter()).take(2);
            strides
                .filter(|&(&size, _)| size > 1)
                .all(|(_, stride)| stride.is_multiple_of(lanes))
        };
        let mut lanes = self.max_lanes.min(hardware.max_vector_size.max(1));
        while lanes > 1 {
            let fits = channels.is_multiple_of(lanes)
                && rows.iter().all(|&it| begins(it, lanes) && steps(it, lanes))
                && whole.clone().all(|it| begins(it, lanes));
            if fits {
                break;
            }
            lanes /= 2;
        }
        lanes
    }

    /// Cuts time so that the device is filled, in runs that are neither too short nor too long.
    pub fn runs(&self, dims: &Dims, lanes: usize, processors: usize) -> Runs {
        let chains = dims.batch * (dims.channels / lanes);
        let wanted = (processors * self.units / chains.max(1)).max(1);
        let len = dims
            .seq_len
            .div_ceil(wanted)
            .clamp(self.min_run, self.max_run)
            .next_multiple_of(self.block);
        Runs {
            len,
            count: dims.seq_len.div_ceil(len).max(1),
        }
    }
}

/// A launch of one unit a vector, run and sequence.
pub(super) fn cubes(
    client: &Client,
    dims: &Dims,
    lanes: usize,
    runs: Runs,
) -> (CubeCount, CubeDim) {
    let units = dims.batch * runs.count * (dims.channels / lanes);
    let cube = CubeDim::new_1d(UNITS);
    let count = cubecl::calculate_cube_count_elemwise(client, units, cube);
    (count, cube)
}

/// A tensor of the launch and the bytes of its elements.
pub(super) type Sized<'a> = (&'a TensorBinding, usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_a_sequence_and_none_is_empty() {
        for plan in [FORWARD, BACKWARD] {
            for seq_len in [1, 15, 16, 17, 2048, 2049, 1_000_003] {
                for batch in [1, 8, 100_000] {
                    let dims = Dims {
                        batch,
                        seq_len,
                        channels: 1536,
                        width: 4,
                    };
                    let runs = plan.runs(&dims, 4, 132);
                    assert!(runs.len * runs.count >= seq_len, "{runs:?} of {dims:?}");
                    assert!(
                        runs.len * (runs.count - 1) < seq_len,
                        "{runs:?} of {dims:?}"
                    );
                    assert_eq!(runs.len % plan.block, 0, "{runs:?} of {dims:?}");
                }
            }
        }
    }
}
