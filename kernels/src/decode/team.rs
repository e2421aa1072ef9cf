//! Who computes a row of a product, and the sums that a team shares.

use cubecl::ir::HardwareProperties;
use cubecl::prelude::*;

use crate::tensors::processors;

/// Units a multiprocessor that the rows of a product are shared among.
const UNITS_TO_FILL: usize = 512;

/// Units of the smallest team, and of a cube of teams: what WebGPU grants everywhere is 256.
const LEAST_UNITS: usize = 32;
const CUBE_UNITS: usize = 128;
const MOST_UNITS: usize = 256;

/// Bytes that a unit loads at once.
const LOAD: usize = 16;

/// What a product's kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Team {
    /// Sequences.
    pub batch: usize,
    /// Rows of the matrix.
    pub rows: usize,
    /// Values of a row, padding left out.
    pub columns: usize,
    /// Values that a unit loads at once.
    pub lanes: usize,
    /// Units that share a row.
    pub units: usize,
    /// Rows of a cube.
    pub teams: usize,
    /// Units that add up without shared memory, 0 where they cannot or may be any.
    pub plane: usize,
    /// Whether the kernel takes inline PTX.
    pub ptx: bool,
}

/// Values of `size` bytes that a unit loads at once.
pub(super) fn lanes(size: usize, hardware: &HardwareProperties) -> usize {
    (LOAD / size).min(hardware.max_vector_size.max(1))
}

impl Team {
    /// As many units a row as fill the device, and no more than have something to load.
    pub fn new(
        [batch, rows, columns]: [usize; 3],
        lanes: usize,
        ptx: bool,
        hardware: &HardwareProperties,
    ) -> Self {
        let wanted = processors(hardware) * UNITS_TO_FILL;
        let vectors = columns.div_ceil(lanes);
        let mut units = LEAST_UNITS;
        while units < vectors && units < MOST_UNITS && units * rows < wanted {
            units *= 2;
        }
        // Which units form a plane is known of CUDA alone.
        let plane = match ptx && hardware.plane_size_min == hardware.plane_size_max {
            true => hardware.plane_size_min as usize,
            false => 0,
        };
        Self {
            batch,
            rows,
            columns,
            lanes,
            units,
            teams: (CUBE_UNITS / units).max(1),
            plane: if units.is_multiple_of(plane.max(1)) {
                plane
            } else {
                0
            },
            ptx,
        }
    }

    /// Vectors of a row.
    pub fn vectors(&self) -> usize {
        self.columns.div_ceil(self.lanes)
    }

    /// Loads of a unit.
    pub fn steps(&self) -> usize {
        self.vectors().div_ceil(self.units)
    }

    /// Whether every unit of a team has something to load in `step`.
    fn full(&self, step: usize) -> bool {
        (step + 1) * self.units <= self.vectors()
    }

    /// A cube for every `teams` rows.
    pub fn cubes(&self, client: &Client) -> (CubeCount, CubeDim) {
        let cube = CubeDim::new_2d(self.units as u32, self.teams as u32);
        let units = self.rows.next_multiple_of(self.teams) * self.units;
        let count = cubecl::calculate_cube_count_elemwise(client, units, cube);
        (count, cube)
    }
}

/// The row of the unit's team. Past the last there may be teams, which work on the first and write nothing.
#[cube]
pub(super) fn row(#[comptime] team: Team) -> usize {
    CUBE_POS * comptime!(team.teams) + UNIT_POS_Y as usize
}

/// A row of the matrix times each sequence, or times each normalised sequence if there is a `gamma`.
#[cube]
pub(super) fn product<W: Float, V: Size>(
    weight: &Tensor<Vector<W, V>>,                  // [rows, columns]
    x: &Tensor<Vector<f32, V>>,                     // [batch, columns]
    gamma: ComptimeOption<&Tensor<Vector<f32, V>>>, // [columns]
    row: usize,
    epsilon: f32,
    #[comptime] team: Team,
) -> Array<f32> {
    let batch = comptime!(team.batch);
    let vectors = comptime!(team.vectors());
    let normed = comptime!(gamma.is_some());
    let mut products = Array::<Vector<f32, V>>::new(batch);
    let mut squares = Array::<Vector<f32, V>>::new(batch);
    #[unroll]
    for b in 0..batch {
        products[b] = Vector::new(0.0f32);
        squares[b] = Vector::new(0.0f32);
    }
    #[unroll]
    for step in 0..comptime!(team.steps()) {
        let at = comptime!(step * team.units) + UNIT_POS_X as usize;
        // Past the end a unit reads the beginning, and takes it zero times.
        let place = if comptime!(team.full(step)) {
            at
        } else {
            select(at < vectors, at, 0)
        };
        let mut factors = Vector::<f32, V>::cast_from(weight[row * vectors + place]);
        if comptime!(!team.full(step)) {
            factors *= Vector::new(select(at < vectors, 1.0f32, 0.0f32));
        }
        #[comptime]
        if let ComptimeOption::Some(gamma) = gamma {
            factors *= gamma[place];
        }
        #[unroll]
        for b in 0..batch {
            let values = x[comptime!(b * vectors) + place];
            products[b] += factors * values;
            if normed {
                let mut square = values * values;
                if comptime!(!team.full(step)) {
                    square *= Vector::new(select(at < vectors, 1.0f32, 0.0f32));
                }
                squares[b] += square;
            }
        }
    }

    let count = comptime!(if normed { 2 * batch } else { batch });
    let mut sums = Array::<f32>::new(count);
    #[unroll]
    for b in 0..batch {
        sums[b] = across::<V>(products[b], team);
        if normed {
            sums[comptime!(batch + b)] = across::<V>(squares[b], team);
        }
    }
    add_up(&mut sums, count, team);

    let mut totals = Array::<f32>::new(batch);
    #[unroll]
    for b in 0..batch {
        let mut total = sums[b];
        if normed {
            let mean = sums[comptime!(batch + b)] / comptime!(team.columns as f32);
            total /= (mean + epsilon).sqrt();
        }
        totals[b] = total;
    }
    totals
}

/// The sum of a vector's values.
#[cube]
fn across<V: Size>(vector: Vector<f32, V>, #[comptime] team: Team) -> f32 {
    let mut sum = vector.extract(0usize);
    #[unroll]
    for j in 1..comptime!(team.lanes) {
        sum += vector.extract(j);
    }
    sum
}

/// Adds each value up over the units of a team, in one order. All units of a cube take part.
#[cube]
fn add_up(values: &mut Array<f32>, #[comptime] count: usize, #[comptime] team: Team) {
    if comptime!(team.plane > 0) {
        #[unroll]
        for i in 0..count {
            values[i] = plane_sum(values[i]);
        }
        if comptime!(team.units > team.plane) {
            let planes = comptime!(team.units / team.plane);
            let mut shared = Shared::<[f32]>::new_slice(comptime!(team.teams * planes * count));
            let plane = UNIT_POS_X as usize / comptime!(team.plane);
            let first = UNIT_POS_Y as usize * comptime!(planes * count);
            if UNIT_POS_X as usize == plane * comptime!(team.plane) {
                #[unroll]
                for i in 0..count {
                    shared[first + plane * count + i] = values[i];
                }
            }
            sync_cube();
            #[unroll]
            for i in 0..count {
                let mut sum = shared[first + i];
                #[unroll]
                for other in 1..planes {
                    sum += shared[first + comptime!(other * count + i)];
                }
                values[i] = sum;
            }
        }
    } else {
        let units = comptime!(team.units);
        let mut shared = Shared::<[f32]>::new_slice(comptime!(team.teams * units * count));
        let unit = UNIT_POS_X as usize;
        let first = UNIT_POS_Y as usize * comptime!(units * count);
        #[unroll]
        for i in 0..count {
            shared[first + comptime!(i * units) + unit] = values[i];
        }
        sync_cube();
        #[unroll]
        for step in 1..comptime!(units.ilog2() as usize + 1) {
            let half = comptime!(units >> step);
            if unit < half {
                #[unroll]
                for i in 0..count {
                    let place = first + comptime!(i * units) + unit;
                    let other = shared[place + half];
                    shared[place] += other;
                }
            }
            sync_cube();
        }
        #[unroll]
        for i in 0..count {
            values[i] = shared[first + comptime!(i * units)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(rows: usize, columns: usize, lanes: usize) -> Team {
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 32,
            max_shared_memory_size: 48 << 10,
            max_cube_count: (u32::MAX, 65535, 65535),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_cpu_cores: None,
            last_level_cache_size: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            max_vector_size: 16,
            cube_mma_reserved_shared_memory: 0,
        };
        Team::new([1, rows, columns], lanes, true, &hardware)
    }

    #[test]
    fn a_team_covers_its_row_and_few_rows_get_large_teams() {
        for rows in [1, 80, 768, 3072, 50_280] {
            for columns in [1, 48, 768, 1000, 1536, 10_240] {
                let team = team(rows, columns, 8);
                assert!(
                    team.steps() * team.units * team.lanes >= columns,
                    "{team:?}"
                );
                assert!(team.units.is_power_of_two() && team.units * team.teams <= 256);
            }
        }
        assert_eq!(team(50_280, 768, 8).units, 32);
        assert_eq!(team(80, 1536, 8).units, 256);
    }
}
