//! Who computes what: the shape of a cube, its tiles and the chunks of time.

use cubecl::client::Client;
use cubecl::ir::HardwareProperties;

use super::{CHECKPOINT_INTERVAL, Dims, Strategy};
use crate::KernelError;
use crate::pointwise::takes_ptx;
use crate::tensors::processors;

/// States that one unit keeps: the widest vector that every backend loads and computes on.
const MAX_WIDTH: usize = 4;

/// Neighbouring channels of a cube: enough that a row of f32 fills a 128-byte line.
const MAX_CHANNELS: usize = 32;

/// Units of a cube: what WebGPU grants everywhere, and four planes of 64.
const MAX_UNITS: usize = 256;

/// Shared memory of a forward cube in bytes: what every backend has, and seven cubes on an H100.
const MAX_SHARED_FORWARD: usize = 32 * 1024;

/// Shared memory of a backward cube in bytes, where the device has as much: four cubes on an H100.
const MAX_SHARED_BACKWARD: usize = 48 * 1024;

/// Rows of a tensor that one unit holds at most while it stages a block of positions.
const MAX_ROWS: usize = 8;

/// Positions of a forward tile whose steps are written out one after the other, loads before stores, so
/// that their exponentials overlap. All forward tiles are multiples of it.
pub(super) const UNROLLED: usize = 8;

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
    /// Positions whose inputs are in shared memory at once: the tile, or in backward several.
    pub stage: usize,
    pub softplus: bool,
    /// Whether the kernel takes inline PTX.
    pub ptx: bool,
    /// Whether a graphics card's driver compiles it from SPIR-V.
    pub spirv: bool,
}

fn is_spirv(client: &Client) -> bool {
    client.name() == "wgpu<spirv>" && !client.properties().identity.name.contains("llvmpipe")
}

impl Geometry {
    /// For the kernels that go forward in time.
    pub fn forward(
        d_state: usize,
        softplus: bool,
        hardware: &HardwareProperties,
    ) -> Result<Self, KernelError> {
        let tiles = [32, 16, 8].map(|tile| [tile, tile]);
        let budget = MAX_SHARED_FORWARD.min(hardware.max_shared_memory_size);
        Self::widest(d_state, softplus, hardware, &tiles, budget, |it| {
            it.forward_shared()
        })
    }

    /// For the gradient kernel.
    pub fn backward(
        d_state: usize,
        softplus: bool,
        hardware: &HardwareProperties,
    ) -> Result<Self, KernelError> {
        // Two vectors a position of the tile stay in registers. With four positions NVRTC takes 128 of
        // them and an H100 holds four cubes; with eight about 240, and two cubes.
        let tiles = [4, 2].map(|tile| [32, 16, 8, 4, 2].map(|stage| [tile, stage]));
        let budget = MAX_SHARED_BACKWARD.min(hardware.max_shared_memory_size);
        Self::widest(
            d_state,
            softplus,
            hardware,
            tiles.as_flattened(),
            budget,
            |it| it.backward_shared(),
        )
    }

    /// The geometry with the most channels, and among those with the first tile and stage, that fits.
    fn widest(
        d_state: usize,
        softplus: bool,
        hardware: &HardwareProperties,
        tiles: &[[usize; 2]],
        budget: usize,
        shared: impl Fn(&Self) -> usize,
    ) -> Result<Self, KernelError> {
        let units = MAX_UNITS.min(hardware.max_units_per_cube as usize);
        let width = d_state.next_power_of_two().min(MAX_WIDTH);
        let groups = d_state.div_ceil(width);
        let mut smallest = usize::MAX;
        let mut channels = MAX_CHANNELS;
        while channels > 0 {
            for &[tile, stage] in tiles {
                let geometry = Self {
                    d_state,
                    width,
                    groups,
                    channels,
                    tile,
                    stage,
                    softplus,
                    ptx: false,
                    spirv: false,
                };
                let rows = stage.div_ceil(groups);
                if geometry.units() > units || stage < tile || (stage > tile && rows > MAX_ROWS) {
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
            ptx: takes_ptx(client),
            spirv: is_spirv(client),
            ..self
        }
    }

    /// Whether tiles are written out: software Vulkan compiles that for minutes.
    pub fn written_out(&self) -> bool {
        self.ptx || self.spirv
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

    /// As if a tile were as long as what is staged at once.
    pub fn staging(&self) -> Self {
        Self {
            tile: self.stage,
            ..*self
        }
    }

    /// Vectors of a tile whose sums over the cube's channels are wanted, for both projections.
    pub fn sums(&self) -> usize {
        2 * self.tile * self.groups
    }

    /// Units that share one of these sums.
    pub fn sharers(&self) -> usize {
        (self.channels / (2 * self.tile)).max(1)
    }

    /// What the sharers of all sums come to.
    pub fn partials(&self) -> usize {
        self.sums() * self.sharers()
    }

    /// Vectors from the summands of one sum to those of the next: with as many more as there are
    /// sharers, the units of two sums read from different banks.
    pub fn padded(&self) -> usize {
        self.channels + self.sharers()
    }

    /// Vectors that the summands of all sums take.
    pub fn products(&self) -> usize {
        self.sums() * self.padded()
    }

    /// dt, dt * u; b, c; the reads of every group; the resets.
    fn forward_shared(&self) -> usize {
        let scalars = (2 + self.groups) * self.scalars();
        4 * (scalars + 2 * self.vectors() * self.width + self.tile)
    }

    /// dt, dt * u, the gradient, b, c and the resets of what is staged; three sums of every group;
    /// products and partial sums.
    fn backward_shared(&self) -> usize {
        let staging = self.staging();
        let staged = 3 * staging.scalars() + 2 * staging.vectors() * self.width + self.stage;
        let vectors = self.products() + self.partials();
        4 * (staged + 3 * self.groups * self.scalars() + vectors * self.width)
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
            let processors = processors(hardware);
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
                assert!(geometry.groups * geometry.width >= d_state, "{geometry:?}");
                assert!(geometry.units() <= MAX_UNITS, "{geometry:?}");
                assert!(geometry.tile <= geometry.units(), "{geometry:?}");
                assert_eq!(CHECKPOINT_INTERVAL % geometry.tile, 0, "{geometry:?}");
                assert_eq!(geometry.stage % geometry.tile, 0, "{geometry:?}");
                assert_eq!(CHECKPOINT_INTERVAL % geometry.stage, 0, "{geometry:?}");
                assert_eq!(geometry.channels % geometry.sharers(), 0, "{geometry:?}");
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
