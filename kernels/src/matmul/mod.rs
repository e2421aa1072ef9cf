//! Matrix products in f32, bf16 and f16, by the routines of `cubek-matmul`.
//!
//! Which routine runs, and into how many parts the inner axis is cut, follows from the sizes alone. So
//! nothing is tuned at first use, and the same product gives the same bits in every run; a tuned one
//! may change its routine, and with it the order of its sums, from one start to the next. The folder's
//! `README.md` has the measurements behind the choice.

#[cfg(feature = "cuda-cpp")]
mod warpgroup;

use cubecl::prelude::*;
use cubecl::zspace::{Shape, Strides};
use cubek_matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::multi_level::Strategy as Routine;
use cubek_matmul::multi_level::routines::TileSizeSelection;
use cubek_matmul::multi_level::routines::batch::simple::SimpleArgs;
use cubek_matmul::multi_level::routines::batch::simple_unit::SimpleUnitSelectionArgs;
use cubek_matmul::routine::BlueprintStrategy;
use cubek_std::InputBinding;

use crate::KernelError;
use crate::bits::may_cut;
use crate::sums::{Parts, sum_parts};
use crate::tensors::{check_whole, processors, scratch};

/// Rows and columns of the result that a cube of the routine computes, about.
const TILE: usize = 64;

/// The same of a routine on tensor cores.
const MATRIX_TILE: usize = 128;

/// Tiles a multiprocessor below which the inner axis is cut.
const TILES_TO_FILL: usize = 4;

/// Parts of an inner axis, and values of it, from which on they are worth a copy of the factors and a sum: three
/// launches more.
const WORTH_A_COPY: usize = 8;
const LONG: usize = 4096;

/// Values in 16 bytes of a half precision: what addresses of the copy engine are multiples of.
const HALVES_ALIGNED: usize = 8;

/// Shortest part of a cut inner axis: below it, adding the parts would show.
const MIN_PART: usize = 64;

/// Tiles of the result from which on a unit computes more of it, reading less. Below, and where `lhs` is a
/// transpose, less of it was measured to be faster on an H100 through CUDA; but it takes twice as long to
/// compile, and minutes on software Vulkan.
const MANY_TILES: usize = 1024;

/// Element types of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    /// Of both factors: f32, which is not rounded to TF32 where the device could, bf16 or f16.
    pub factors: ElemType,
    /// Of the result; sums are f32 in any case.
    pub out: ElemType,
}

impl Elements {
    /// `elem` throughout.
    pub fn all(elem: ElemType) -> Self {
        Self {
            factors: elem,
            out: elem,
        }
    }

    /// Half precisions go through tensor cores.
    fn are_halves(self) -> bool {
        self.factors.size() == 2
    }
}

/// `out = lhs rhs`.
///
/// # Shapes
///
/// - lhs: `[rows, inner]`, contiguous or the transpose of a contiguous matrix
/// - rhs: `[inner, columns]`, the same
/// - out: `[rows, columns]`, contiguous
///
/// # Errors
///
/// If the shapes or strides are others, or the device runs no product of these types at all.
pub fn matmul(
    client: &Client,
    lhs: TensorBinding,
    rhs: TensorBinding,
    out: TensorBinding,
    elements: Elements,
) -> Result<(), KernelError> {
    let sizes = check(&lhs, &rhs, &out)?;
    let [rows, inner, columns] = sizes;
    if rows * columns == 0 {
        return Ok(());
    }
    let processors = processors(&client.properties().hardware);
    #[cfg(feature = "cuda-cpp")]
    if elements.are_halves() && warpgroup::covers(client, &lhs, &rhs) {
        let parts = warpgroup::parts(sizes, processors);
        if parts == 1 {
            let kinds = [elements.factors, elements.out];
            warpgroup::launch(client, [lhs, rhs], None, out, 1, kinds);
            return Ok(());
        }
        let scratch = scratch(client, &[parts, rows, columns]);
        let kinds = [elements.factors, f32::elem_type_native()];
        warpgroup::launch(client, [lhs, rhs], None, scratch.clone(), parts, kinds);
        add(client, scratch, out, elements.out);
        return Ok(());
    }
    let cuda = client.name() == "cuda";
    let plan = match elements.are_halves() {
        true => {
            let in_blocks = lhs.strides[0] == 1 && rhs.strides[1] == 1;
            Plan::matrix_units(sizes, processors, in_blocks, cuda)
        }
        false => Plan::units(sizes, processors, lhs.strides[1] == 1, cuda),
    };
    let parts = plan.parts;
    // What adds parts rounds their sum, be it of one.
    if parts == 1 && !may_cut(client.properties(), elements.out) {
        return launch(client, &plan, lhs, rhs, out, elements);
    }
    let scratch = scratch(client, &[parts, rows, columns]);
    if let Some(part) = inner.checked_div(parts) {
        let (down, across) = (lhs.strides[1], rhs.strides[0]);
        let lhs = cut(lhs, [parts, rows, part], part * down);
        let rhs = cut(rhs, [parts, part, columns], part * across);
        let elements = Elements {
            out: f32::elem_type_native(),
            ..elements
        };
        launch(client, &plan, lhs, rhs, scratch.clone(), elements)?;
    }
    add(client, scratch, out, elements.out);
    Ok(())
}

/// `out = addend + lhs rhs` in one launch, where that is one; `addend` may be `out` itself.
///
/// # Shapes
///
/// Those of [`matmul`]; `addend` and `out` are f32.
///
/// # Errors
///
/// Those of [`matmul`], and [`KernelError::NotCovered`] where a product and a sum are two launches. Nothing was launched
/// then.
pub fn matmul_onto(
    client: &Client,
    lhs: TensorBinding,
    rhs: TensorBinding,
    addend: TensorBinding,
    out: TensorBinding,
    factors: ElemType,
) -> Result<(), KernelError> {
    let sizes = check(&lhs, &rhs, &out)?;
    check_whole("addend", &addend, &out.shape)?;
    #[cfg(feature = "cuda-cpp")]
    if factors.size() == 2 && out.size() > 0 && warpgroup::covers(client, &lhs, &rhs) {
        let processors = processors(&client.properties().hardware);
        if warpgroup::parts(sizes, processors) == 1 {
            let kinds = [factors, f32::elem_type_native()];
            warpgroup::launch(client, [lhs, rhs], Some(addend), out, 1, kinds);
            return Ok(());
        }
    }
    let _ = (client, sizes, factors);
    Err(KernelError::NotCovered("a product and a sum in one launch"))
}

/// Whether columns alone fill a device that has warpgroup instructions for these factors.
#[allow(unused_variables)] // without CUDA C++ there are none
pub(crate) fn fills_warpgroups(client: &Client, lhs: &TensorBinding, rhs: &TensorBinding) -> bool {
    #[cfg(feature = "cuda-cpp")]
    {
        let tiles = rhs.shape[1] / warpgroup::TILE;
        let processors = processors(&client.properties().hardware);
        tiles >= 2 * processors && warpgroup::covers(client, lhs, rhs)
    }
    #[cfg(not(feature = "cuda-cpp"))]
    false
}

/// Rows, inner and columns.
fn check(
    lhs: &TensorBinding,
    rhs: &TensorBinding,
    out: &TensorBinding,
) -> Result<[usize; 3], KernelError> {
    let [rows, columns] = sizes("axes of out", out)?;
    let [_, inner] = sizes("axes of lhs", lhs)?;
    check_factor("lhs", lhs, [rows, inner])?;
    check_factor("rhs", rhs, [inner, columns])?;
    check_whole("out", out, &[rows, columns])?;
    Ok([rows, inner, columns])
}

/// Adds products, `[parts, rows, columns]`, in order.
fn add(client: &Client, parts: TensorBinding, out: TensorBinding, kind: ElemType) {
    sum_parts(
        client,
        Parts {
            half: 0,
            rows: parts.shape[0],
            inner: parts.shape[1] * parts.shape[2],
            parts,
            out,
            tail: None,
        },
        kind,
    );
}

/// How a product is computed.
struct Plan {
    /// Equal parts of the inner axis, whose products are added in order; none of an empty one.
    parts: usize,
    /// What is launched: the first that the device takes.
    routines: Vec<Routine>,
}

impl Plan {
    /// `by_rows`: how `lhs` lies in memory.
    fn units(
        [rows, inner, columns]: [usize; 3],
        processors: usize,
        by_rows: bool,
        cuda: bool,
    ) -> Self {
        let tiles = rows.div_ceil(TILE) * columns.div_ceil(TILE);
        let tile_size = match cuda && !(by_rows && tiles >= MANY_TILES) {
            true => TileSizeSelection::MinTileSize,
            false => TileSizeSelection::MaxTileSize,
        };
        Self {
            parts: parts(inner, TILES_TO_FILL * processors / tiles, 1),
            routines: vec![units(tile_size), Routine::Naive],
        }
    }

    /// `in_blocks`: whether the parts of a cut inner axis lie one after the other in memory; where they
    /// interleave, the routines copy the factors first.
    fn matrix_units(
        [rows, inner, columns]: [usize; 3],
        processors: usize,
        in_blocks: bool,
        cuda: bool,
    ) -> Self {
        let tiles = rows.div_ceil(MATRIX_TILE) * columns.div_ceil(MATRIX_TILE);
        let wanted = match processors / tiles {
            few if !in_blocks && (few < WORTH_A_COPY || inner < LONG) => 1,
            wanted => wanted,
        };
        let mut routines = vec![
            Routine::SimpleCyclicMma(BlueprintStrategy::Inferred(SimpleArgs::default())),
            Routine::SimpleCyclicCmma(BlueprintStrategy::Inferred(SimpleArgs::default())),
            units(TileSizeSelection::MaxTileSize),
            Routine::Naive,
        ];
        let aligned = [rows, inner, columns].map(|size| size % HALVES_ALIGNED == 0);
        if cuda && aligned == [true; 3] {
            routines.insert(
                0,
                Routine::SpecializedTmaMma(BlueprintStrategy::Inferred(().into())),
            );
        }
        Self {
            parts: parts(inner, wanted, HALVES_ALIGNED),
            routines,
        }
    }
}

/// At most `wanted` equal parts of an inner axis, each a multiple of `granule` unless it is whole.
fn parts(inner: usize, wanted: usize, granule: usize) -> usize {
    if inner == 0 {
        return 0;
    }
    (1..=wanted.min(inner / MIN_PART))
        .rev()
        .find(|parts| inner.is_multiple_of(parts * granule))
        .unwrap_or(1)
}

fn units(tile_size: TileSizeSelection) -> Routine {
    Routine::SimpleUnit(BlueprintStrategy::Inferred(SimpleUnitSelectionArgs {
        tile_size,
    }))
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
    elements: Elements,
) -> Result<(), KernelError> {
    let mut reason = String::new();
    for routine in &plan.routines {
        let launched = launch_ref(
            &routine.clone().into(),
            client,
            InputBinding::new(lhs.clone(), elements.factors),
            InputBinding::new(rhs.clone(), elements.factors),
            out.clone(),
            &mut MatmulElems::from_globals(&MatmulGlobalElems {
                lhs: elements.factors,
                rhs: elements.factors,
                out: elements.out,
            }),
        );
        match launched {
            Ok(()) => return Ok(()),
            Err(error) => reason = format!("{error:?}"),
        }
    }
    Err(KernelError::Product { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tiles_cut_the_inner_axis_into_equal_parts() {
        let parts = |sizes| Plan::units(sizes, 132, true, true).parts;
        assert_eq!(parts([4096, 128, 512]), 1);
        assert_eq!(parts([128, 4096, 512]), 32);
        // 50,264 = 8 x 61 x 103
        assert_eq!(parts([1024, 50264, 128]), 8);
        assert_eq!(parts([16, 0, 16]), 0);
        for inner in 1..300 {
            assert_eq!(inner % parts([8, inner, 8]), 0, "{inner}");
        }
        let parts = |sizes| Plan::matrix_units(sizes, 132, true, true).parts;
        assert_eq!(parts([8192, 768, 3072]), 1);
        assert_eq!(parts([80, 8192, 1536]), 8);
        assert_eq!(parts([16, 4100, 16]), 1);
        let interleaved = |sizes| Plan::matrix_units(sizes, 132, false, true).parts;
        assert_eq!(interleaved([8192, 1536, 80]), 1);
        assert_eq!(interleaved([128, 1536, 80]), 1);
        assert_eq!(interleaved([128, 8192, 128]), 128);
    }
}
