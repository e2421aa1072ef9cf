//! Matrix products in f32, by the routines of `cubek-matmul`.
//!
//! Which routine runs, and into how many parts the inner axis is cut, follows from the sizes alone. So
//! nothing is tuned at first use, and the same product gives the same bits in every run; a tuned one
//! may change its routine, and with it the order of its sums, from one start to the next. The folder's
//! `README.md` has the measurements behind the choice.

use cubecl::prelude::*;
use cubecl::zspace::{Shape, Strides};
use cubek_matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::multi_level::Strategy as Routine;
use cubek_matmul::multi_level::routines::TileSizeSelection;
use cubek_matmul::multi_level::routines::batch::simple_unit::SimpleUnitSelectionArgs;
use cubek_matmul::routine::BlueprintStrategy;
use cubek_std::InputBinding;

use crate::KernelError;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{check_whole, processors, scratch};

/// Rows and columns of the result that a cube of the routine computes, about.
const TILE: usize = 64;

/// Tiles a multiprocessor below which the inner axis is cut.
const TILES_TO_FILL: usize = 4;

/// Shortest part of a cut inner axis: below it, adding the parts would show.
const MIN_PART: usize = 64;

/// Tiles of the result from which on a unit computes more of it, reading less. Below, and where `lhs` is a
/// transpose, less of it was measured to be faster on an H100 through CUDA; but it takes twice as long to
/// compile, and minutes on software Vulkan.
const MANY_TILES: usize = 1024;

/// `out = lhs rhs`, with f32 factors, which are not rounded to TF32 where the device could.
///
/// # Shapes
///
/// - lhs: `[rows, inner]`, contiguous or the transpose of a contiguous matrix
/// - rhs: `[inner, columns]`, the same
/// - out: `[rows, columns]`, contiguous
///
/// # Errors
///
/// If the shapes or strides are others, or the device runs no product at all.
pub fn matmul(
    client: &Client,
    lhs: TensorBinding,
    rhs: TensorBinding,
    out: TensorBinding,
) -> Result<(), KernelError> {
    let [rows, columns] = sizes("axes of out", &out)?;
    let [_, inner] = sizes("axes of lhs", &lhs)?;
    check_factor("lhs", &lhs, [rows, inner])?;
    check_factor("rhs", &rhs, [inner, columns])?;
    check_whole("out", &out, &[rows, columns])?;
    if rows * columns == 0 {
        return Ok(());
    }
    let plan = Plan::new(
        [rows, inner, columns],
        processors(&client.properties().hardware),
        lhs.strides[1] == 1,
        client.name() == "cuda",
    );
    let parts = plan.parts;
    if parts == 1 {
        return launch(client, &plan, lhs, rhs, out);
    }
    let scratch = scratch(client, &[parts, rows, columns]);
    if let Some(part) = inner.checked_div(parts) {
        let (down, across) = (lhs.strides[1], rhs.strides[0]);
        let lhs = cut(lhs, [parts, rows, part], part * down);
        let rhs = cut(rhs, [parts, part, columns], part * across);
        launch(client, &plan, lhs, rhs, scratch.clone())?;
    }
    sum_parts(
        client,
        Parts {
            parts: scratch,
            half: 0,
            rows: parts,
            inner: rows * columns,
            out,
            tail: None,
        },
        f32::elem_type_native(),
    );
    Ok(())
}

/// How a product is computed.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Equal parts of the inner axis, whose products are added in order; none of an empty one.
    parts: usize,
    tile_size: TileSizeSelection,
}

impl Plan {
    /// `by_rows`: how `lhs` lies in memory.
    fn new(
        [rows, inner, columns]: [usize; 3],
        processors: usize,
        by_rows: bool,
        cuda: bool,
    ) -> Self {
        let tiles = rows.div_ceil(TILE) * columns.div_ceil(TILE);
        let wanted = (TILES_TO_FILL * processors / tiles).min(inner / MIN_PART);
        let parts = match inner {
            0 => 0,
            _ => (1..=wanted).rev().find(|it| inner % it == 0).unwrap_or(1),
        };
        let tile_size = match cuda && !(by_rows && tiles >= MANY_TILES) {
            true => TileSizeSelection::MinTileSize,
            false => TileSizeSelection::MaxTileSize,
        };
        Self { parts, tile_size }
    }
}

fn sizes(axes: &'static str, tensor: &TensorBinding) -> Result<[usize; 2], KernelError> {
    tensor.shape[..].try_into().map_err(|_| KernelError::Size {
        name: axes,
        expected: "2",
        got: tensor.shape.len(),
    })
}

/// Checks a matrix that may be the transpose of a contiguous one.
fn check_factor(
    name: &'static str,
    tensor: &TensorBinding,
    [rows, columns]: [usize; 2],
) -> Result<(), KernelError> {
    let mut transpose = tensor.clone();
    transpose.shape = tensor.shape.iter().rev().copied().collect();
    transpose.strides = tensor.strides.iter().rev().copied().collect();
    check_whole(name, &transpose, &[columns, rows])
        .or_else(|_| check_whole(name, tensor, &[rows, columns]))
}

/// A matrix as parts of its inner axis, `stride` values apart.
fn cut(tensor: TensorBinding, shape: [usize; 3], stride: usize) -> TensorBinding {
    TensorBinding {
        shape: Shape::new(shape),
        strides: Strides::new(&[stride, tensor.strides[0], tensor.strides[1]]),
        ..tensor
    }
}

fn launch(
    client: &Client,
    plan: &Plan,
    lhs: TensorBinding,
    rhs: TensorBinding,
    out: TensorBinding,
) -> Result<(), KernelError> {
    let dtype = f32::elem_type_native();
    let units = Routine::SimpleUnit(BlueprintStrategy::Inferred(SimpleUnitSelectionArgs {
        tile_size: plan.tile_size,
    }));
    let run = |routine: Routine| {
        launch_ref(
            &routine.into(),
            client,
            InputBinding::new(lhs.clone(), dtype),
            InputBinding::new(rhs.clone(), dtype),
            out.clone(),
            &mut MatmulElems::from_globals(&MatmulGlobalElems {
                lhs: dtype,
                rhs: dtype,
                out: dtype,
            }),
        )
    };
    // The naive routine asks nothing of the device.
    run(units)
        .or_else(|_| run(Routine::Naive))
        .map_err(|error| KernelError::Product {
            reason: format!("{error:?}"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tiles_cut_the_inner_axis_into_equal_parts() {
        let parts = |sizes| Plan::new(sizes, 132, true, true).parts;
        assert_eq!(parts([4096, 128, 512]), 1);
        assert_eq!(parts([128, 4096, 512]), 32);
        // 50,264 = 8 x 61 x 103
        assert_eq!(parts([1024, 50264, 128]), 8);
        assert_eq!(parts([16, 0, 16]), 0);
        for inner in 1..300 {
            assert_eq!(inner % parts([8, inner, 8]), 0, "{inner}");
        }
    }
}
