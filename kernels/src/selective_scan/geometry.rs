//! Who computes what: the shape of a cube, its tiles and the chunks of time.

use cubecl::client::Client;
use cubecl::ir::HardwareProperties;

use super::{CHECKPOINT_INTERVAL, Dims, Strategy};
use crate::KernelError;

/// States that one unit keeps: the widest vector that every backend loads and computes on.
const MAX_WIDTH: usize = 4;

/// Neighbouring channels of a cube: enough that a row of f32 fills a 128-byte line.
const MAX_CHANNELS: usize = 32;

/// Units of a cube: what WebGPU grants everywhere, and four planes of 64.
const MAX_UNITS: usize = 256;

/// Shared memory of a cube in bytes: what every backend has, and seven cubes on an H100.
const MAX_SHARED: usize = 32 * 1024;

/// Positions of a forward tile whose steps are written out one after the other, so that their
/// exponentials overlap. All forward tiles are multiples of it.
pub(super) const UNROLLED: usize = 4;

/// Assumed where a device does not tell how many multiprocessors it has.
const DEFAULT_PROCESSORS: usize = 64;

/// Cubes a multiprocessor needs at least before time is left in one piece: chunks of time cost a
/// second pass over `u`, `delta` and the exponentials.
const CUBES_TO_FILL: usize = 2;

/// Cubes a multiprocessor that chunks of time are cut for.
const CUBES_WHEN_CHUNKED: usize = 8;

/// Shortest chunk of time, in positions: below it the carry over chunks would show.
const MIN_CHUNK: usize = 256;

/// What a kernel is compiled for.
///
/// A cube has `channels x groups` units. Unit `(x, y)` owns the states
/// `y * width .. (y + 1) * width` of the cube's channel `x`, over a whole chunk of time, which the
/// cube walks in tiles of `tile` positions. States beyond `d_state` and channels beyond `d_inner`
/// compute zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Geometry {
    pub d_state: usize,
    pub width: usize,
    pub groups: usize,
    pub channels: usize,
    pub tile: usize,
    pub softplus: bool,
    /// Whether the kernel is compiled by NVRTC, which takes inline PTX: the exponential of CUDA C++
    /// is eight instructions around the one that computes it.
    pub ptx: bool,
}

impl Geometry {
    /// For the kernels that go forward in time.
    pub fn forward(
        d_state: usize,
        softplus: bool,
        hardware: &HardwareProperties,
    ) -> Result<Self, KernelError> {
        Self::widest(d_state, softplus, hardware, &[32, 16, 8], |it| {
            it.forward_shared()
        })
    }

    /// For the gradient kernel.
    pub fn backward(
        d_state: usize,
        softplus: bool,
        hardware: &HardwareProperties,
    ) -> Result<Self, KernelError> {
        // Two vectors a position stay in registers. With four positions NVRTC takes about 120 of
        // them and an H100 holds four cubes; with eight about 240, and two cubes.
        Self::widest(d_state, softplus, hardware, &[4, 2], |it| {
            it.backward_shared()
        })
    }

    /// The geometry with the most channels, and among those with the longest tile, that fits.
    fn widest(
        d_state: usize,
        softplus: bool,
        hardware: &HardwareProperties,
        tiles: &[usize],
        shared: impl Fn(&Self) -> usize,
    ) -> Result<Self, KernelError> {
        let budget = MAX_SHARED.min(hardware.max_shared_memory_size);
        let units = MAX_UNITS.min(hardware.max_units_per_cube as usize);
        let width = d_state.next_power_of_two().min(MAX_WIDTH);
        let groups = d_state.div_ceil(width);
        let mut smallest = usize::MAX;
        let mut channels = MAX_CHANNELS;
        while channels > 0 {
            for &tile in tiles {
                let geometry = Self {
                    d_state,
                    width,
                    groups,
                    channels,
                    tile,
                    softplus,
                    ptx: false,
                };
                if geometry.units() > units {
                    continue;
                }
                let needed = shared(&geometry);
                if needed <= budget {
                    return Ok(geometry);
                }
                smallest = smallest.min(needed);
            }
            channels /= 2;
        }
        Err(KernelError::Device {
            resource: "bytes of shared memory",
            needed: smallest,
            available: budget,
        })
    }

    /// With what the compiler behind `client` takes.
    pub fn compiled_for(self, client: &Client) -> Self {
        Self {
            ptx: cfg!(feature = "cuda-cpp") && client.name() == "cuda",
            ..self
        }
    }

    pub fn units(&self) -> usize {
        self.channels * self.groups
    }

    /// Rows of a tile that one unit stages.
    pub fn rows(&self) -> usize {
        self.tile.div_ceil(self.groups)
    }

    /// Vectors of one projection in a tile.
    pub fn vectors(&self) -> usize {
        self.tile * self.groups
    }

    /// Vectors of one projection that one unit stages.
    pub fn vectors_per_unit(&self) -> usize {
        self.vectors().div_ceil(self.units())
    }

    /// Scalars of a tile, one a position and channel.
    pub fn scalars(&self) -> usize {
        self.tile * self.channels
    }

    /// States of a channel, those beyond `d_state` included.
    pub fn states(&self) -> usize {
        self.groups * self.width
    }

    /// Values of a tile whose sum over channels is wanted, each with its channels and one more:
    /// units that sum neighbouring values then read from different banks.
    pub fn products(&self) -> usize {
        self.tile * self.states() * (self.channels + 1)
    }

    /// dt, dt * u; b, c; the reads of every group; the resets.
    fn forward_shared(&self) -> usize {
        let scalars = (2 + self.groups) * self.scalars();
        4 * (scalars + 2 * self.vectors() * self.width + self.tile)
    }

    /// dt, dt * u, the gradient; b, c; three sums of every group; two products; the resets.
    fn backward_shared(&self) -> usize {
        let scalars = (3 + 3 * self.groups) * self.scalars();
        4 * (scalars + 2 * self.vectors() * self.width + 2 * self.products() + self.tile)
    }
}

/// How many positions a chunk of time has.
pub(super) fn chunk_len(
    strategy: Strategy,
    dims: &Dims,
    geometry: &Geometry,
    hardware: &HardwareProperties,
) -> usize {
    let whole = dims.seq_len.next_multiple_of(CHECKPOINT_INTERVAL);
    let split = |chunks: usize| {
        dims.seq_len
            .div_ceil(chunks.max(1))
            .next_multiple_of(CHECKPOINT_INTERVAL)
    };
    match strategy {
        Strategy::Sequential => whole,
        Strategy::Chunked { chunks } => split(chunks),
        Strategy::Auto => {
            let processors = hardware
                .num_streaming_multiprocessors
                .map_or(DEFAULT_PROCESSORS, |count| count as usize);
            let cubes = dims.batch * dims.d_inner.div_ceil(geometry.channels);
            if cubes >= CUBES_TO_FILL * processors {
                return whole;
            }
            let chunks = (CUBES_WHEN_CHUNKED * processors).div_ceil(cubes);
            split(chunks).max(MIN_CHUNK.min(whole))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_state_is_left_without_a_unit() {
        let hardware = hardware(32 * 1024);
        for d_state in 1..=256 {
            for geometry in [
                Geometry::forward(d_state, true, &hardware).expect("fits"),
                Geometry::backward(d_state, true, &hardware).expect("fits"),
            ] {
                assert!(geometry.states() >= d_state, "{geometry:?}");
                assert!(geometry.units() <= MAX_UNITS, "{geometry:?}");
                assert!(geometry.tile <= geometry.units(), "{geometry:?}");
                assert_eq!(CHECKPOINT_INTERVAL % geometry.tile, 0, "{geometry:?}");
            }
        }
    }

    #[test]
    fn a_device_with_too_little_shared_memory_is_refused() {
        let error = Geometry::backward(256, true, &hardware(1024)).expect_err("too little");
        assert!(matches!(error, KernelError::Device { .. }), "{error}");
    }

    fn hardware(shared: usize) -> HardwareProperties {
        HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 8,
            plane_size_max: 8,
            max_bindings: 32,
            max_shared_memory_size: shared,
            max_cube_count: (65535, 65535, 65535),
            max_units_per_cube: 256,
            max_cube_dim: (256, 256, 64),
            num_streaming_multiprocessors: None,
            num_cpu_cores: None,
            last_level_cache_size: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            max_vector_size: 4,
            cube_mma_reserved_shared_memory: 0,
        }
    }
}
