//! Matrix products into memory that was never zeroed, shared out in blocks.
//!
//! A block of the result belongs to one task and one call of the `gemm` crate over the whole inner
//! axis. The crate sums in an order that follows from the height of a block, which depends on the
//! number of threads where there are many rows. A single row goes another way, see `row.rs`.

use super::matrix::{Matrix, multiply_into};
use super::row::{add, linear_row};
use super::rows::{Output, Rows, check_len};
use rayon::prelude::*;

/// Rows from which on a task takes whole rows: there are then enough of them for any machine.
const TALL: usize = 2048;

/// Shape of a task's block, on so many threads.
fn block(rows: usize, columns: usize, threads: usize) -> [usize; 2] {
    if rows >= TALL {
        // The more rows, the fewer times the weight is packed and its buffer allocated; four blocks a
        // thread keep all busy to the end.
        [(rows / (4 * threads)).clamp(128, 512), columns]
    } else {
        [64, 128]
    }
}

/// What comes on top of a product, while it is still in the cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added<'a> {
    /// A value a column.
    pub bias: Option<&'a [f32]>,
    /// As shaped as the product.
    pub residual: Option<Rows<'a>>,
}

/// `x weight + bias + residual`, `[x.rows, weight.columns]`, contiguous.
///
/// The result is the same, bit by bit, on every run with as many threads; below 2,048 rows for any number of them.
///
/// # Panics
/// If `weight` does not have a row for each column of `x`, `bias` a value for each column of
/// `weight`, or `residual` ends before the result does.
pub fn linear(x: Matrix, weight: Matrix, added: Added) -> Vec<f32> {
    let (rows, columns) = (x.rows(), weight.columns());
    assert!(
        x.columns() == weight.rows(),
        "linear: x has {} columns, weight {} rows",
        x.columns(),
        weight.rows()
    );
    if let Some(bias) = added.bias {
        check_len("linear", "bias", bias, columns);
    }
    if rows == 1
        && let Some(x) = x.as_rows()
        && let Some(y) = linear_row(x.get(0, 0..weight.rows()), weight, added)
    {
        return y;
    }
    let [tall, wide] = block(rows, columns, rayon::current_num_threads());
    let across = columns.div_ceil(wide.max(1));
    let mut y = Output::new(rows, columns);
    let sink = y.columns();
    (0..rows.div_ceil(tall) * across)
        .into_par_iter()
        .for_each(|task| {
            let (i, j) = (task / across, task % across);
            let rows = i * tall..rows.min((i + 1) * tall);
            let columns = j * wide..columns.min((j + 1) * wide);
            let to = sink.block(&rows, &columns);
            let stride = sink.width();
            let x = x.row_range(rows.clone());
            let weight = weight.column_range(columns.clone());
            // SAFETY: the block lies inside the output, and no other task has a part of it.
            unsafe { multiply_into(to, stride, false, x, weight) };
            for (index, row) in rows.enumerate() {
                // SAFETY: a row of the block, written above.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(to.add(index * stride), columns.len())
                };
                if let Some(bias) = added.bias {
                    add(to, &bias[columns.clone()]);
                }
                if let Some(residual) = added.residual {
                    add(to, residual.get(row, columns.clone()));
                }
            }
        });
    // SAFETY: the blocks cover the output, and `multiply_into` writes all of its block.
    unsafe { y.finish() }
}

#[cfg(test)]
mod tests {
    use super::super::{matrix::multiply, testing::*};
    use super::*;

    fn exact(x: &[f32], weight: &[f32], inner: usize, columns: usize) -> Vec<f64> {
        let (x, weight) = (widen(x), widen(weight));
        x.chunks(inner)
            .flat_map(|row| {
                let weight = &weight;
                (0..columns)
                    .map(move |j| (0..inner).map(|k| row[k] * weight[k * columns + j]).sum())
            })
            .collect()
    }

    #[test]
    fn products_of_all_shapes_equal_the_definition() {
        for [rows, inner, columns] in [
            [1, 1, 1],
            [1, 300, 700],
            [65, 7, 129],
            [130, 40, 1],
            [TALL + 77, 5, 33],
        ] {
            let (x, weight) = (noise(rows * inner, 1), noise(inner * columns, 2));
            let bias = noise(columns, 3);
            let (x, w) = (&x[..], &weight[..]);
            let lhs = Matrix::new(x, rows, inner, inner);
            let rhs = Matrix::new(w, inner, columns, columns);
            let mut want = exact(x, w, inner, columns);
            let name = format!("{rows} x {inner} x {columns}");
            assert_close(&name, &linear(lhs, rhs, Added::default()), &want, 1e-5);
            for (want, i) in want.iter_mut().zip(0..) {
                *want += f64::from(bias[i % columns]);
            }
            let mut added = Added {
                bias: Some(&bias),
                residual: None,
            };
            assert_close(&name, &linear(lhs, rhs, added), &want, 1e-5);
            // The first columns of wider rows.
            let stride = columns + 3;
            let wide = noise(rows * stride, 4);
            for (want, i) in want.iter_mut().zip(0..) {
                *want += f64::from(wide[i / columns * stride + i % columns]);
            }
            added.residual = Some(Rows {
                data: &wide,
                row_stride: stride,
            });
            assert_close(&name, &linear(lhs, rhs, added), &want, 1e-5);
        }
    }

    #[test]
    fn strided_and_transposed_operands_are_read_in_place() {
        let (x, weight) = (noise(200 * 24, 1), noise(10 * 8, 2));
        let part: Vec<f32> = x.chunks(24).flat_map(|row| row[5..15].to_vec()).collect();
        let turned: Vec<f32> = (0..80).map(|i| weight[i % 8 * 10 + i / 8]).collect();
        let want = linear(
            Matrix::new(&part, 200, 10, 10),
            Matrix::new(&turned, 10, 8, 8),
            Added::default(),
        );
        let got = linear(
            Matrix::new(&x[5..], 200, 10, 24),
            Matrix::new(&weight, 8, 10, 10).transposed(),
            Added::default(),
        );
        let want = widen(&want);
        assert_close("strided", &got, &want, 1e-6);
    }

    /// Inner axes that the crate cuts in several, and whole ones.
    #[test]
    fn below_tall_the_number_of_threads_does_not_show_and_nowhere_the_run() {
        for (inner, columns) in [(40, 33), (768, 33), (768, 56)] {
            for rows in [TALL - 1, TALL + 77] {
                let (x, weight) = (noise(rows * inner, 1), noise(inner * columns, 2));
                let x = Matrix::new(&x, rows, inner, inner);
                for weight in [
                    Matrix::new(&weight, inner, columns, columns),
                    Matrix::new(&weight, columns, inner, inner).transposed(),
                ] {
                    let on = |threads| {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                        let pool = pool.build().unwrap();
                        pool.install(|| linear(x, weight, Added::default()))
                    };
                    let once = on(1);
                    for threads in [2, 3, 8] {
                        let got = on(threads);
                        let name = format!("{rows} by {inner} by {columns}, {threads} threads");
                        assert!(got == on(threads), "{name}: another run");
                        assert!(rows >= TALL || got == once, "{name}");
                        assert_close(&name, &got, &widen(&once), 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn an_empty_inner_axis_gives_zeros() {
        let (empty, none) = (Matrix::new(&[], 3, 0, 0), Matrix::new(&[], 0, 4, 4));
        assert_eq!(linear(empty, none, Added::default()), [0.0; 12]);
        // Fresh memory may be zero by chance.
        let mut poisoned = [f32::NAN; 12];
        multiply(&mut poisoned, 4, false, empty, none);
        assert_eq!(poisoned, [0.0; 12]);
    }

    #[test]
    #[should_panic(expected = "x has 3 columns, weight 4 rows")]
    fn operands_that_do_not_fit_are_refused() {
        let values = [0.0; 12];
        linear(
            Matrix::new(&values, 4, 3, 3),
            Matrix::new(&values, 4, 3, 3),
            Added::default(),
        );
    }
}
