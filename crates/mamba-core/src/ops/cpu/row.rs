//! One row times a matrix, as in every product of a step: each weight is read once, in the order that memory lies in,
//! so that the machine sees streams.
//!
//! A weight `[inner, columns]` goes in parts of whole rows, [`TOGETHER`] at a time, onto sums in the first-level cache; the parts'
//! sums are added in order. A transposed one, as an embedding, goes row by row as scalar products. The cut
//! follows from the shape alone, so that no number of threads shows.

use super::{
    linear::Added,
    matrix::Matrix,
    rows::{Columns, Output, Rows},
    simd::{Kernel, LANES, Vector, dispatch},
    team::share,
};
use std::ops::Range;

/// Rows of a weight that are read together: as many streams.
const TOGETHER: usize = 4;

/// Weights of a task, about: 128 KiB. Less, and taking tasks would show; more, and threads would wait for the last one.
const TASK: usize = 1 << 15;

/// Least rows of a part, so that adding up the parts costs little beside reading them.
const LEAST_ROWS: usize = 32;

/// Most columns of a part, so that its sums leave room in a first-level cache.
const MOST_COLUMNS: usize = 2048;

/// `x weight + bias + residual` of one row, if the weight's rows or its columns lie in one piece.
///
/// The result is the same, bit by bit, on every run and for any number of threads.
pub(super) fn linear_row(x: &[f32], weight: Matrix, added: Added) -> Option<Vec<f32>> {
    let shape = [weight.rows(), weight.columns()];
    let mut y = match (weight.as_rows(), weight.transposed().as_rows()) {
        (Some(rows), _) => sums_of_rows(x, rows, shape),
        (None, Some(columns)) => scalar_products(x, columns, shape),
        (None, None) => return None,
    };
    if let Some(bias) = added.bias {
        add(&mut y, bias);
    }
    if let Some(residual) = added.residual {
        let columns = 0..y.len();
        add(&mut y, residual.get(0, columns));
    }
    Some(y)
}

/// Adds values to as many others.
pub(super) fn add(to: &mut [f32], values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += value;
    }
}

/// `len` in pieces of equal length, a multiple of `unit`, that is `most` or somewhat less; the last one may be shorter.
fn even(len: usize, most: usize, unit: usize) -> usize {
    let pieces = len.div_ceil(most.max(1)).max(1);
    len.div_ceil(pieces).next_multiple_of(unit).max(unit)
}

fn sums_of_rows(x: &[f32], weight: Rows, [inner, columns]: [usize; 2]) -> Vec<f32> {
    let wide = even(columns, MOST_COLUMNS, LANES);
    let tall = even(inner, (TASK / wide).max(LEAST_ROWS), TOGETHER);
    let (across, parts) = (columns.div_ceil(wide), inner.div_ceil(tall).max(1));
    let mut sums = Output::new(parts, columns);
    let sink = sums.columns();
    share(parts * across, |task| {
        let (part, span) = (task / across, task % across);
        dispatch(Part {
            x,
            weight,
            rows: part * tall..inner.min((part + 1) * tall),
            columns: span * wide..columns.min((span + 1) * wide),
            part,
            sums: &sink,
        });
    });
    // SAFETY: the tasks cover all parts and columns, and each writes all of its columns.
    let sums = unsafe { sums.finish() };
    if parts == 1 {
        return sums;
    }
    let mut y = sums[..columns].to_vec();
    sums[columns..]
        .chunks_exact(columns.max(1))
        .for_each(|part| add(&mut y, part));
    y
}

/// Some rows of the product's sum, for some columns.
struct Part<'a> {
    x: &'a [f32],
    weight: Rows<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    part: usize,
    /// `[parts, columns]`
    sums: &'a Columns<'a>,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let start = self.rows.start;
        let grouped = start + self.rows.len() / TOGETHER * TOGETHER;
        if self.rows.len() >= TOGETHER {
            self.add::<V, TOGETHER, false>(start);
        } else {
            self.add::<V, 0, false>(start);
        }
        for row in (start + TOGETHER..grouped).step_by(TOGETHER) {
            self.add::<V, TOGETHER, true>(row);
        }
        for row in grouped..self.rows.end {
            self.add::<V, 1, true>(row);
        }
    }
}

impl Part<'_> {
    /// `N` rows from `first`, onto the sums if they are `BEGUN`.
    #[inline(always)]
    fn add<V: Vector, const N: usize, const BEGUN: bool>(&self, first: usize) {
        let width = self.columns.len();
        let to = self.sums.block(&(self.part..self.part + 1), &self.columns);
        let mut x = [V::zero(); N];
        let mut rows: [&[f32]; N] = [&[]; N];
        for i in 0..N {
            x[i] = V::splat(self.x[first + i]);
            rows[i] = &self.weight.get(first + i, self.columns.clone())[..width];
        }
        let whole = width / LANES * LANES;
        for column in (0..whole).step_by(LANES) {
            // SAFETY: all rows have `width` columns, and so has the part's row, which is this task's alone and written
            // when it is begun.
            unsafe {
                let mut sum = V::zero();
                if BEGUN {
                    sum = V::read(to.add(column));
                }
                for i in 0..N {
                    sum = V::read(rows[i].as_ptr().add(column)).mul_add(x[i], sum);
                }
                sum.write(to.add(column));
            }
        }
        if whole < width {
            // SAFETY: as above.
            unsafe {
                let mut sum = V::zero();
                if BEGUN {
                    sum = V::read_first(to.add(whole), width - whole);
                }
                for i in 0..N {
                    sum = V::load_padded(&rows[i][whole..]).mul_add(x[i], sum);
                }
                sum.write_first(to.add(whole), width - whole);
            }
        }
    }
}

fn scalar_products(x: &[f32], weight: Rows, [inner, columns]: [usize; 2]) -> Vec<f32> {
    let many = even(columns, TASK / inner.max(1), TOGETHER);
    let mut y = Output::new(1, columns);
    let sink = y.columns();
    share(columns.div_ceil(many), |task| {
        dispatch(Products {
            x: &x[..inner],
            weight,
            columns: task * many..columns.min((task + 1) * many),
            y: &sink,
        });
    });
    // SAFETY: the tasks cover all columns, and each writes all of its own.
    unsafe { y.finish() }
}

/// Scalar products with some columns of the product, which are rows of the weight.
struct Products<'a> {
    x: &'a [f32],
    weight: Rows<'a>,
    columns: Range<usize>,
    y: &'a Columns<'a>,
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let start = self.columns.start;
        let grouped = start + self.columns.len() / TOGETHER * TOGETHER;
        for column in (start..grouped).step_by(TOGETHER) {
            self.multiply::<V, TOGETHER>(column);
        }
        for column in grouped..self.columns.end {
            self.multiply::<V, 1>(column);
        }
    }
}

impl Products<'_> {
    /// The `N` columns from `first`.
    #[inline(always)]
    fn multiply<V: Vector, const N: usize>(&self, first: usize) {
        let inner = self.x.len();
        let mut rows: [&[f32]; N] = [&[]; N];
        for i in 0..N {
            rows[i] = &self.weight.get(first + i, 0..inner)[..inner];
        }
        let mut sums = [V::zero(); TOGETHER];
        let whole = inner / LANES * LANES;
        for k in (0..whole).step_by(LANES) {
            // SAFETY: all rows are as long as `x`, and so is `whole` at most.
            unsafe {
                let x = V::read(self.x.as_ptr().add(k));
                for i in 0..N {
                    sums[i] = V::read(rows[i].as_ptr().add(k)).mul_add(x, sums[i]);
                }
            }
        }
        if whole < inner {
            let x = V::load_padded(&self.x[whole..]);
            for i in 0..N {
                sums[i] = V::load_padded(&rows[i][whole..]).mul_add(x, sums[i]);
            }
        }
        let sums = V::sums(sums);
        let to = self.y.block(&(0..1), &(first..first + N));
        for i in 0..N {
            // SAFETY: columns of this task, which are its alone.
            unsafe { to.add(i).write(sums[i]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{simd::tests::with_each_set, testing::*};
    use super::*;

    /// `[inner, columns]`: below and across tasks, spans of columns, groups of rows, and vectors.
    const SHAPES: [[usize; 2]; 9] = [
        [1, 1],
        [3, 5],
        [4, 16],
        [7, 33],
        [100, 130],
        [601, 80],
        [48, 1536],
        [67, MOST_COLUMNS + 4],
        [40, 2 * MOST_COLUMNS + 1],
    ];

    fn transposed(weight: &[f32], [inner, columns]: [usize; 2]) -> Vec<f32> {
        (0..inner * columns)
            .map(|i| weight[i % inner * columns + i / inner])
            .collect()
    }

    fn on(threads: usize, work: impl Fn() -> Vec<f32> + Send) -> Vec<f32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(work)
    }

    #[test]
    fn rows_and_columns_in_one_piece_give_the_definition_on_every_instruction_set() {
        for shape in SHAPES {
            let [inner, columns] = shape;
            let (x, weight) = (noise(inner, 1), noise(inner * columns, 2));
            let (bias, residual) = (noise(columns, 3), noise(columns, 4));
            let added = Added {
                bias: Some(&bias),
                residual: Some(Rows::contiguous(&residual, columns)),
            };
            let want: Vec<f64> = (0..columns)
                .map(|j| {
                    let products =
                        (0..inner).map(|k| f64::from(x[k]) * f64::from(weight[k * columns + j]));
                    products.sum::<f64>() + f64::from(bias[j]) + f64::from(residual[j])
                })
                .collect();
            // Each row with something behind it that is not read.
            let stride = columns + 3;
            let padded: Vec<f32> = weight
                .chunks(columns)
                .flat_map(|row| row.iter().copied().chain([f32::NAN; 3]))
                .collect();
            let turned = transposed(&weight, shape);
            for (name, weight) in [
                ("rows", Matrix::new(&padded, inner, columns, stride)),
                (
                    "columns",
                    Matrix::new(&turned, columns, inner, inner).transposed(),
                ),
            ] {
                for (set, got) in with_each_set(|| linear_row(&x, weight, added).unwrap()) {
                    assert_close(&format!("{name} {shape:?} {set:?}"), &got, &want, 2e-6);
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        for shape in SHAPES {
            let [inner, columns] = shape;
            let (x, weight) = (noise(inner, 1), noise(inner * columns, 2));
            let turned = transposed(&weight, shape);
            for weight in [
                Matrix::new(&weight, inner, columns, columns),
                Matrix::new(&turned, columns, inner, inner).transposed(),
            ] {
                let multiply = || linear_row(&x, weight, Added::default()).unwrap();
                let alone = on(1, multiply);
                (0..20).for_each(|_| assert_eq!(on(3, multiply), alone, "{shape:?}"));
            }
        }
    }

    #[test]
    fn an_empty_inner_axis_gives_what_is_added() {
        let empty = Matrix::new(&[], 0, 4, 4);
        let added = Added {
            bias: Some(&[1.0, 2.0, 3.0, 4.0]),
            residual: None,
        };
        assert_eq!(linear_row(&[], empty, added).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn weights_with_gaps_both_ways_are_left_to_others() {
        let weight = Matrix::strided(&[0.0; 16], [2, 2], [8, 2]);
        assert!(linear_row(&[0.0; 2], weight, Added::default()).is_none());
    }
}
