//! Who computes what in the gradients on tensor cores: the shape of a cube and its tiles.

use cubecl::client::Client;
use cubecl::ir::HardwareProperties;

use super::super::Dims;
use super::super::tile::{PLANE, Sums, Tile};
use crate::pointwise::takes_ptx;

/// Values of a vector in shared memory: 16 bytes of halves.
pub(super) const LANES: usize = 8;

/// Positions of a tile, and planes of a cube.
const POSITIONS: usize = 64;
const PLANES: usize = 8;

/// Channels of a block. Fewer do not split among the planes.
const CHANNELS: usize = 64;

/// The most states whose columns are in shared memory at once.
const SLICE: usize = 128;

/// Memory that nothing uses cannot be empty: values of it.
const UNUSED: usize = 4;

/// What a kernel is compiled for.
///
/// A cube owns a tile of positions and some of the heads of a group, one after the other. Rows of a head's state are cut
/// in blocks of `channels`, its columns in slices. Channels beyond `headdim` and states beyond `d_state` compute zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub headdim: usize,
    pub d_state: usize,
    /// Positions between two checkpoints.
    pub interval: usize,
    /// Positions of a tile.
    pub positions: usize,
    pub channels: usize,
    /// States of the projections in shared memory at once.
    pub slice: usize,
    pub units: usize,
    /// Values that a load takes at once: those of a vector, or 1.
    pub width: usize,
    /// Values that a state's load and any store take at once: 2 or 1.
    pub pair: usize,
    /// Whether there is `seq_idx`.
    pub resettable: bool,
    /// Whether `d` has an entry a channel.
    pub skips_channels: bool,
    /// Whether the projections of the interval's other tiles stay in shared memory.
    pub resident: bool,
    /// Whether a head's rows come to shared memory while the head before is computed.
    pub ahead: bool,
    /// Whether the kernel takes inline PTX.
    pub ptx: bool,
}

impl Plan {
    /// If the cube fits the device. Its inputs may lie anyhow, and it has no options.
    pub fn new(client: &Client, dims: &Dims) -> Option<Self> {
        let hardware = &client.properties().hardware;
        let plan = Self {
            headdim: dims.headdim,
            d_state: dims.d_state,
            interval: dims.chunk_size,
            positions: POSITIONS,
            channels: CHANNELS,
            slice: dims.d_state.next_multiple_of(64).min(SLICE),
            units: PLANES * PLANE,
            width: 1,
            pair: 1,
            resettable: false,
            skips_channels: false,
            resident: false,
            ahead: false,
            ptx: takes_ptx(client),
        };
        let resident = Self {
            resident: plan.slices() == 1,
            ..plan
        };
        [resident, plan].into_iter().find(|plan| {
            let units = plan.units <= hardware.max_units_per_cube as usize;
            units && plan.shared_bytes() <= hardware.max_shared_memory_size
        })
    }

    /// Tiles between two checkpoints.
    pub fn tiles(&self) -> usize {
        self.interval.div_ceil(self.positions)
    }

    /// Blocks of a head's channels.
    pub fn blocks(&self) -> usize {
        self.headdim.div_ceil(self.channels)
    }

    /// Slices of the states.
    pub fn slices(&self) -> usize {
        self.d_state.div_ceil(self.slice)
    }

    fn tile(&self, rows: usize, columns: usize) -> Tile {
        Tile {
            rows,
            columns,
            lanes: LANES,
        }
    }

    /// Of `x` and `grad_y`: `[positions, channels]`.
    pub fn inputs(&self) -> Tile {
        self.tile(self.positions, self.channels)
    }

    /// Of a projection: `[positions, slice]`.
    pub fn projection(&self) -> Tile {
        self.tile(self.positions, self.slice)
    }

    /// Of a state or its gradient: `[channels, slice]`.
    pub fn state(&self) -> Tile {
        self.tile(self.channels, self.slice)
    }

    /// Of what is for pairs of positions: `[positions, positions]`.
    pub fn weights(&self) -> Tile {
        self.tile(self.positions, self.positions)
    }

    fn sums(&self, rows: usize, columns: usize) -> Sums {
        Sums {
            rows,
            columns,
            units: self.units,
            tensor: true,
        }
    }

    pub fn input_sums(&self) -> Sums {
        self.sums(self.positions, self.channels)
    }

    pub fn projection_sums(&self) -> Sums {
        self.sums(self.positions, self.slice)
    }

    pub fn state_sums(&self) -> Sums {
        self.sums(self.channels, self.slice)
    }

    pub fn weight_sums(&self) -> Sums {
        self.sums(self.positions, self.positions)
    }

    pub fn planes(&self) -> usize {
        self.units / PLANE
    }

    /// What units share of the sums over rows and columns, in f32.
    pub fn part_values(&self) -> usize {
        let rows = self.projection_sums().row_slots()
            + 2 * self.input_sums().row_slots()
            + self.weight_sums().row_slots()
            + self.weight_sums().column_slots();
        rows * self.positions + self.input_sums().column_slots() * self.channels + 2 * self.planes()
    }

    /// The same, with rows that come ahead, if they may: whole vectors in whole tiles, as they are, and twice in shared
    /// memory.
    pub fn coming_ahead(self, hardware: &HardwareProperties) -> Self {
        let ahead = Self {
            ahead: true,
            ..self
        };
        let whole = self.width == LANES && self.headdim == self.channels;
        let plain = self.resident && self.ptx && !self.resettable;
        match whole && plain && ahead.shared_bytes() <= hardware.max_shared_memory_size {
            true => ahead,
            false => self,
        }
    }

    /// Heads whose rows of the tile are in shared memory.
    pub fn turns(&self) -> usize {
        match self.ahead {
            true => 2,
            false => 1,
        }
    }

    /// Steps of an interval that are copied, for all turns.
    pub fn copied(&self) -> usize {
        match self.ahead {
            true => self.turns() * self.interval,
            false => UNUSED,
        }
    }

    /// Tiles of other positions in shared memory at once: one where they are not resident.
    pub fn others(&self) -> usize {
        match self.resident {
            true => (self.tiles() - 1).max(1),
            false => 1,
        }
    }

    /// Positions that have a weight in other tiles.
    pub fn weighted(&self) -> usize {
        match self.resident {
            // Rows that come ahead are weighed otherwise.
            _ if self.ahead => UNUSED,
            true => self.tiles() * self.positions,
            false => self.positions,
        }
    }

    /// Every tile, the steps and the parts.
    fn shared_bytes(&self) -> usize {
        let tiles = (2 * self.turns() + self.others()) * self.inputs().bytes()
            + (2 + self.others()) * self.projection().bytes()
            + self.state().bytes()
            + self.weights().bytes();
        let values = self.part_values() + 7 * self.positions + 2 * self.weighted();
        tiles + 4 * (values + 2 * self.copied()) + 16 * self.kept_vectors()
    }
}
