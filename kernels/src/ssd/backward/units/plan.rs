//! The shape of a cube.

use cubecl::client::Client;
use cubecl::ir::HardwareProperties;

use super::super::super::Dims;
use crate::KernelError;
use crate::pointwise::takes_ptx;

/// Edge of a unit's block of sums, and values of a vector.
pub(super) const BLOCK: usize = 4;

/// Positions of a tile, and channels and states of a block: the first that fits the device and is not wasted. Either fits WebGPU's
/// 256 units and 16 KiB.
const EDGES: [usize; 2] = [64, 32];

/// What the kernels are compiled for: no size of a problem is in it.
///
/// Every product is a square of `edge` x `edge` sums, a block of 4 x 4 a unit. What a problem lacks of it are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub edge: usize,
    /// Whether there is `seq_idx`.
    pub resettable: bool,
    /// Whether the kernel takes inline PTX.
    pub ptx: bool,
}

impl Plan {
    /// # Errors
    ///
    /// If no cube fits the device.
    pub fn new(client: &Client, dims: &Dims, resettable: bool) -> Result<Self, KernelError> {
        Ok(Self {
            edge: edge(dims, &client.properties().hardware)?,
            resettable,
            ptx: takes_ptx(client),
        })
    }

    /// Blocks of sums beside each other.
    pub fn across(&self) -> usize {
        self.edge / BLOCK
    }

    pub fn units(&self) -> usize {
        self.across() * self.across()
    }

    /// Vectors from a row of a factor to the next: one more than it has, so that neighbouring rows lie in different banks.
    pub fn pitch(&self) -> usize {
        self.across() + 1
    }

    /// Values of a product's inner axis in shared memory at once: a factor of as many rows is a vector a unit.
    pub fn inner(&self) -> usize {
        self.across()
    }

    /// Vectors of a factor, `[inner, edge]`.
    pub fn factor_vectors(&self) -> usize {
        self.inner() * self.pitch()
    }

    /// Values that the units' shares of sums over rows or columns take.
    pub fn slots(&self) -> usize {
        self.edge * self.pitch()
    }

    /// Tiles between two checkpoints.
    pub fn tiles(&self, dims: &Dims) -> usize {
        dims.chunk_size.div_ceil(self.edge)
    }

    /// Blocks of a head's channels.
    pub fn blocks(&self, dims: &Dims) -> usize {
        dims.headdim.div_ceil(self.edge)
    }

    /// Blocks of a channel's states.
    pub fn slices(&self, dims: &Dims) -> usize {
        dims.d_state.div_ceil(self.edge)
    }

    /// Two factors, the slots, and up to four values a position and one a unit.
    fn shared_bytes(&self) -> usize {
        let factors = 2 * 16 * self.factor_vectors();
        factors + 4 * (self.slots() + 4 * self.edge + self.units())
    }
}

fn edge(dims: &Dims, hardware: &HardwareProperties) -> Result<usize, KernelError> {
    let small = dims.chunk_size.min(dims.headdim.max(dims.d_state)) <= EDGES[1];
    let plan = |edge| Plan {
        edge,
        resettable: false,
        ptx: false,
    };
    let fits = |edge: &usize| {
        let plan = plan(*edge);
        plan.units() <= hardware.max_units_per_cube as usize
            && plan.shared_bytes() <= hardware.max_shared_memory_size
    };
    let mut edges = EDGES.into_iter().skip(small as usize);
    edges.find(fits).ok_or(KernelError::Device {
        resource: "bytes of shared memory",
        needed: plan(EDGES[1]).shared_bytes(),
        available: hardware.max_shared_memory_size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cubes_fit_webgpu() {
        for edge in EDGES {
            let plan = Plan {
                edge,
                resettable: true,
                ptx: false,
            };
            assert!(plan.units() <= 256, "{plan:?}");
            assert!(plan.shared_bytes() <= 16 * 1024, "{plan:?}");
            // A unit a position, and one a vector of a factor.
            assert!(plan.units() >= edge, "{plan:?}");
            assert_eq!(plan.inner() * plan.across(), plan.units(), "{plan:?}");
        }
    }
}
