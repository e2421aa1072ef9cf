//! Who computes what: the shape of a cube, its tiles and the segments of time.

use cubecl::client::Client;
use cubecl::ir::HardwareProperties;

use super::tile::{EDGE, PLANE, Sums, Tile};
use super::{CHUNK_STEP, Dims, Strategy};
use crate::KernelError;
use crate::pointwise::takes_ptx;
use crate::tensors::processors;

/// Values of a 16-byte vector, in f32 and in halves.
const LANES: usize = 4;
const HALF_LANES: usize = 8;

/// Units of a cube without tensor cores: what WebGPU grants everywhere.
const MAX_UNITS: usize = 256;

/// Shared memory of such a cube in bytes, where the device has as much: three cubes on an H100.
const MAX_SHARED: usize = 72 * 1024;

/// Positions and channels of such a cube's tiles, the first that fit. More positions are more operations, more channels
/// fewer: the projections' product is computed once a slice of channels.
const TILES: [[usize; 2]; 6] = [[32, 64], [32, 32], [16, 32], [16, 16], [16, 8], [16, 4]];

/// States that are in shared memory at once of the projections.
const STATE_SLICES: [usize; 4] = [256, 128, 64, 32];

/// States and channels of which a plane keeps the sums in registers: 64 a unit. A chunk of one plane keeps up to twice as
/// many: fewer channels than a fragment has there are not.
const PLANE_STATES: usize = 64 * PLANE;

/// Most positions of a chunk on tensor cores: a plane for every 16.
const MAX_TENSOR_CHUNK: usize = 64;

/// Most channels of a cube on tensor cores: a plane keeps 16 outputs of each in registers, too.
const MAX_TENSOR_CHANNELS: usize = 64;

/// Cubes a multiprocessor that segments of time are cut for: as many as run there at once.
const CUBES_WHEN_CUT: usize = 2;

/// Shortest segment, in positions: below it the carry over segments would show.
const MIN_SEGMENT: usize = 256;

/// What a kernel is compiled for.
///
/// A cube owns `channels` channels of a head over a segment of time, which it walks in chunks of `chunk` positions.
/// Channels beyond `headdim` and states beyond `d_state` compute zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Geometry {
    pub headdim: usize,
    pub d_state: usize,
    pub chunk: usize,
    pub channels: usize,
    /// `d_state`, rounded up to whole tiles.
    pub states: usize,
    /// States of the projections in shared memory at once: a divisor of `states`.
    pub slice: usize,
    pub units: usize,
    /// Whether products run on tensor cores.
    pub tensor: bool,
    /// Values that a load takes at once: those of a vector, or 1.
    pub width: usize,
    /// The same of a store of `y`: 2 or 1.
    pub out_width: usize,
    /// Whether every channel has a skip of its own.
    pub skips_channels: bool,
    /// Positions between two checkpoints.
    pub interval: usize,
    /// Whether the kernel takes inline PTX.
    pub ptx: bool,
}

impl Geometry {
    /// For tensor cores, if the cube fits the device.
    pub fn tensor(dims: &Dims, hardware: &HardwareProperties) -> Option<Self> {
        let chunk = largest_divisor(dims.chunk_size, MAX_TENSOR_CHUNK);
        let planes = chunk / EDGE;
        let states = dims.d_state.next_multiple_of(EDGE * planes);
        let most = (planes * PLANE_STATES / states).min(MAX_TENSOR_CHANNELS);
        let channels = most.min(dims.headdim.next_power_of_two()).max(EDGE);
        let geometry = Self {
            chunk,
            // Padded states may leave any number.
            channels: 1 << channels.ilog2(),
            states,
            slice: states,
            units: planes * PLANE,
            tensor: true,
            ..Self::base(dims)
        };
        let units = geometry.units <= hardware.max_units_per_cube as usize;
        let shared = geometry.tensor_shared() <= hardware.max_shared_memory_size;
        (units && shared).then_some(geometry)
    }

    /// For plain units.
    pub fn units(dims: &Dims, hardware: &HardwareProperties) -> Result<Self, KernelError> {
        let budget = MAX_SHARED.min(hardware.max_shared_memory_size);
        let mut needed = usize::MAX;
        for [chunk, channels] in TILES {
            if !dims.chunk_size.is_multiple_of(chunk) || channels >= 2 * dims.headdim.max(LANES) {
                continue;
            }
            for slice in STATE_SLICES {
                let slice = slice.min(dims.d_state.next_multiple_of(2 * LANES));
                let mut geometry = Self {
                    chunk,
                    channels,
                    states: dims.d_state.next_multiple_of(slice),
                    slice,
                    ..Self::base(dims)
                };
                geometry.units = MAX_UNITS
                    .min(hardware.max_units_per_cube as usize)
                    .min(geometry.largest_sums() / LANES / LANES)
                    .max(PLANE);
                let shared = geometry.units_shared();
                if shared <= budget {
                    return Ok(geometry);
                }
                needed = needed.min(shared);
            }
        }
        Err(KernelError::Device {
            resource: "bytes of shared memory",
            needed,
            available: budget,
        })
    }

    fn base(dims: &Dims) -> Self {
        Self {
            headdim: dims.headdim,
            d_state: dims.d_state,
            chunk: CHUNK_STEP,
            channels: LANES,
            states: dims.d_state,
            slice: dims.d_state,
            units: PLANE,
            tensor: false,
            width: 1,
            out_width: 1,
            skips_channels: false,
            interval: dims.chunk_size,
            ptx: false,
        }
    }

    /// With what the compiler behind `client` takes.
    pub fn compiled_for(self, client: &Client) -> Self {
        Self {
            ptx: takes_ptx(client),
            ..self
        }
    }

    /// Values of a vector in shared memory.
    pub fn lanes(&self) -> usize {
        match self.tensor {
            true => HALF_LANES,
            false => LANES,
        }
    }

    /// Slices of a head's channels.
    pub fn slices(&self) -> usize {
        self.headdim.div_ceil(self.channels)
    }

    /// Whether tiles have columns that tensors lack.
    pub fn is_padded(&self) -> bool {
        self.states != self.d_state || !self.headdim.is_multiple_of(self.channels)
    }

    fn tile(&self, rows: usize, columns: usize) -> Tile {
        Tile {
            rows,
            columns,
            lanes: self.lanes(),
        }
    }

    /// `x` of a chunk: `[chunk, channels]`.
    pub fn inputs(&self) -> Tile {
        self.tile(self.chunk, self.channels)
    }

    /// A projection of a chunk: `[chunk, slice]`.
    pub fn projection(&self) -> Tile {
        self.tile(self.chunk, self.slice)
    }

    /// The states: `[states, channels]`.
    pub fn state(&self) -> Tile {
        self.tile(self.states, self.channels)
    }

    /// The weights of a chunk's inputs: `[chunk, chunk]`.
    pub fn weights(&self) -> Tile {
        self.tile(self.chunk, self.chunk)
    }

    fn sums(&self, rows: usize, columns: usize) -> Sums {
        Sums {
            rows,
            columns,
            units: self.units,
            tensor: self.tensor,
        }
    }

    pub fn output_sums(&self) -> Sums {
        self.sums(self.chunk, self.channels)
    }

    pub fn weight_sums(&self) -> Sums {
        self.sums(self.chunk, self.chunk)
    }

    /// Of the states that are updated at once.
    pub fn state_sums(&self) -> Sums {
        self.sums(self.slice, self.channels)
    }

    fn largest_sums(&self) -> usize {
        let sums = [self.output_sums(), self.weight_sums(), self.state_sums()];
        let sizes = sums.map(|it| it.rows * it.columns);
        sizes.into_iter().max().unwrap_or(1)
    }

    /// Steps, their sums and the runs of a chunk.
    fn step_bytes(&self) -> usize {
        3 * 4 * self.chunk
    }

    /// Twice what comes from memory, and the states.
    fn tensor_shared(&self) -> usize {
        let chunk = self.inputs().bytes() + 2 * self.projection().bytes() + self.step_bytes();
        2 * chunk + self.state().bytes() + 64
    }

    /// One of everything.
    fn units_shared(&self) -> usize {
        let chunk = self.inputs().bytes() + 2 * self.projection().bytes() + self.step_bytes();
        chunk + self.state().bytes() + self.weights().bytes()
    }
}

/// The largest of 64, 32 and 16 up to `most` that divides a chunk.
fn largest_divisor(chunk_size: usize, most: usize) -> usize {
    let mut sizes = [64, 32, CHUNK_STEP].into_iter();
    sizes
        .find(|&size| size <= most && chunk_size.is_multiple_of(size))
        .unwrap_or(CHUNK_STEP)
}

/// How many positions a segment of time has: a multiple of the chunk.
pub(super) fn segment_len(
    strategy: Strategy,
    dims: &Dims,
    geometry: &Geometry,
    hardware: &HardwareProperties,
) -> usize {
    let split = |segments: usize| {
        dims.seq_len
            .div_ceil(segments.max(1))
            .next_multiple_of(geometry.chunk)
    };
    if let Some(segments) = strategy.segments {
        return split(segments);
    }
    let processors = processors(hardware);
    let cubes = dims.batch * dims.nheads * geometry.slices();
    match cubes >= processors {
        true => split(1),
        false => split(CUBES_WHEN_CUT * processors / cubes).max(MIN_SEGMENT.min(split(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_cube_that_fits() {
        for shared in [16, 32, 48, 227] {
            let hardware = hardware(shared * 1024);
            for d_state in 1..=256 {
                for headdim in [1, 3, 16, 48, 64, 100, 256] {
                    for chunk_size in [16, 48, 64, 256] {
                        let dims = dims(headdim, d_state, chunk_size);
                        let units = Geometry::units(&dims, &hardware).expect("fits");
                        check(&units, &dims, units.units_shared(), shared);
                        if let Some(tensor) = Geometry::tensor(&dims, &hardware) {
                            check(&tensor, &dims, tensor.tensor_shared(), shared);
                            let forms = [
                                tensor.output_sums(),
                                tensor.weight_sums(),
                                tensor.state_sums(),
                            ];
                            for form in forms {
                                let edge = 2 * 8 * form.planes_across();
                                assert!(form.columns.is_multiple_of(edge), "{tensor:?}");
                                assert!(form.rows.is_multiple_of(EDGE), "{tensor:?}");
                                assert!(form.values() <= 128, "{tensor:?}");
                            }
                            // A plane has whole rows: its weights are a factor of its outputs.
                            assert_eq!(forms[0].planes_across(), 1, "{tensor:?}");
                            assert_eq!(forms[0].down(), 1, "{tensor:?}");
                            assert_eq!(forms[2].planes_across(), 1, "{tensor:?}");
                        }
                    }
                }
            }
        }
    }

    fn check(geometry: &Geometry, dims: &Dims, bytes: usize, shared: usize) {
        assert!(bytes <= shared * 1024, "{geometry:?}");
        assert!(geometry.units <= MAX_UNITS, "{geometry:?}");
        assert!(geometry.states >= dims.d_state, "{geometry:?}");
        assert_eq!(geometry.states % geometry.slice, 0, "{geometry:?}");
        assert_eq!(dims.chunk_size % geometry.chunk, 0, "{geometry:?}");
        assert_eq!(geometry.channels % LANES, 0, "{geometry:?}");
    }

    #[test]
    fn time_is_cut_where_heads_do_not_fill_the_device() {
        let hardware = hardware(227 * 1024);
        let length = |batch, seq_len, nheads, segments| {
            let dims = Dims {
                batch,
                seq_len,
                nheads,
                ..dims(64, 128, 256)
            };
            let geometry = Geometry::tensor(&dims, &hardware).expect("fits");
            let strategy = Strategy {
                segments,
                ..Strategy::default()
            };
            segment_len(strategy, &dims, &geometry, &hardware)
        };
        assert_eq!(length(8, 2048, 24, None), 2048);
        assert_eq!(length(1, 65536, 24, None).div_ceil(64), 94);
        assert_eq!(length(1, 100, 1, None), 128);
        assert_eq!(length(1, 100, 1, Some(5)), 64);
    }

    fn dims(headdim: usize, d_state: usize, chunk_size: usize) -> Dims {
        Dims {
            batch: 1,
            seq_len: 1000,
            nheads: 2,
            headdim,
            ngroups: 1,
            d_state,
            chunk_size,
        }
    }

    fn hardware(shared: usize) -> HardwareProperties {
        HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 32,
            max_shared_memory_size: shared,
            max_cube_count: (65535, 65535, 65535),
            max_units_per_cube: 256,
            max_cube_dim: (256, 256, 64),
            num_streaming_multiprocessors: Some(132),
            num_cpu_cores: None,
            last_level_cache_size: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            max_vector_size: 4,
            cube_mma_reserved_shared_memory: 0,
        }
    }
}
