//! Products of half precisions on Hopper's warpgroup instructions, fed by its copy engine.
//!
//! CubeCL has no such instruction, so that the inner loop is inline PTX, and the module is built with `cuda-cpp`
//! alone. The folder's `README.md` has the layouts and what was measured.

use cubecl::features::Tma;
use cubecl::ir::FloatKind;
use cubecl::prelude::*;
use cubecl::zspace::shape;
use cubecl_cpp::cuda::ptx::{generic_to_shared, tensor_map_address};

use crate::pointwise::takes_ptx;
use crate::tensors::address_type;

/// Rows and columns of the result that a cube computes.
pub(super) const TILE: usize = 128;

/// Values of the inner axis in a stage: 128 bytes, the widest pattern that shared memory is swizzled in.
pub(super) const INNER: usize = 64;

/// Values of the inner axis that an instruction takes.
const INSTRUCTION: usize = 16;

/// Stages of both factors in shared memory: 96 KiB, so that two cubes share a multiprocessor and one computes while the
/// other begins or ends.
const STAGES: usize = 3;

/// Bytes of one factor's stage.
const STAGE: usize = TILE * INNER * 2;

/// Bytes of 64 rows or columns of it, which lie together.
const BLOCK: usize = STAGE / 2;

/// Units that compute, two warpgroups; one plane more feeds them.
const CONSUMERS: usize = 256;
const PLANE: usize = 32;

/// Row tiles that run next to each other: they share the columns' tiles in the second-level cache.
const BAND: u32 = 16;

/// What the copy engine wants addresses to be multiples of, in bytes.
const ALIGNED: usize = 16;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    /// Whether the factor's inner axis is not the contiguous one.
    lhs_across: bool,
    rhs_across: bool,
    bf16: bool,
}

impl Form {
    fn kind(&self) -> &'static str {
        match self.bf16 {
            true => "bf16",
            false => "f16",
        }
    }
}

/// What a matrix descriptor says beside the address: strides in units of 16 bytes and the swizzle of 128 bytes.
///
/// Along the inner axis the rows of eight form a block of 1 KiB. Across it a block is eight steps of the inner axis, and
/// the next 64 rows or columns are a whole box of the copy engine away.
fn descriptor(across: bool) -> u64 {
    let leading = match across {
        true => BLOCK / ALIGNED,
        false => 1,
    };
    (leading as u64) << 16 | (1024 / ALIGNED as u64) << 32 | 1 << 62
}

/// How far the next instruction's values are, in units of 16 bytes.
fn advance(across: bool) -> usize {
    let bytes = match across {
        true => INSTRUCTION * 128,
        false => INSTRUCTION * 2,
    };
    bytes / ALIGNED
}

/// Whether this device and these factors, `[rows, inner]` and `[inner, columns]`, are ones that the kernel takes.
pub(super) fn covers(client: &Client, lhs: &TensorBinding, rhs: &TensorBinding) -> bool {
    let tma = client.properties().features.tma;
    // The instruction is of one generation: the next one's copy engine has another mode.
    let hopper = tma.contains(Tma::Base) && !tma.contains(Tma::Im2colWide);
    let aligned = |factor: &TensorBinding| {
        let contiguous = match factor.strides[1] == 1 {
            true => factor.shape[1],
            false => factor.shape[0],
        };
        let offset = factor.handle.offset_start.unwrap_or(0) as usize;
        (contiguous * 2).is_multiple_of(ALIGNED) && offset.is_multiple_of(ALIGNED)
    };
    takes_ptx(client)
        && hopper
        && lhs.shape[1] > 0
        && rhs.shape[1].is_multiple_of(2)
        && aligned(lhs)
        && aligned(rhs)
}

/// Into how many parts to cut the inner axis: the least time of the busiest multiprocessor and of adding the parts.
pub(super) fn parts([rows, inner, columns]: [usize; 3], processors: usize) -> usize {
    /// Measured on an H100: a tile takes this many nanoseconds a stage, two tiles of one multiprocessor twice as many.
    const STAGE_NS: usize = 400;
    /// A launch more, and bytes a nanosecond.
    const SUM_NS: usize = 4000;
    const BYTES_A_NS: usize = 2000;
    const MOST: usize = 16;

    let tiles = rows.div_ceil(TILE) * columns.div_ceil(TILE);
    let stages = inner.div_ceil(INNER);
    let time = |parts: usize| {
        let turns = (tiles * parts).div_ceil(processors);
        let sum = match parts {
            1 => 0,
            _ => SUM_NS + rows * columns * (8 * parts + 4) / BYTES_A_NS,
        };
        turns * stages.div_ceil(parts) * STAGE_NS + sum
    };
    (1..=MOST.min(stages))
        // No part is empty.
        .filter(|parts| stages.div_ceil(stages.div_ceil(*parts)) == *parts)
        .min_by_key(|&parts| time(parts))
        .unwrap_or(1)
}

/// `out = addend + lhs rhs`, or parts of the product: `out` is `[rows, columns]`, or `[parts, rows, columns]`.
pub(super) fn launch(
    client: &Client,
    [lhs, rhs]: [TensorBinding; 2],
    addend: Option<TensorBinding>,
    out: TensorBinding,
    parts: usize,
    [factors, kind]: [ElemType; 2],
) {
    let (rows, inner, columns) = (lhs.shape[0], lhs.shape[1], rhs.shape[1]);
    let form = Form {
        lhs_across: lhs.strides[1] != 1,
        rhs_across: rhs.strides[1] == 1,
        bf16: factors == ElemType::Float(FloatKind::BF16),
    };
    let row_tiles = rows.div_ceil(TILE) as u32;
    let column_tiles = columns.div_ceil(TILE) as u32;
    let steps = inner.div_ceil(INNER);
    // SAFETY: the copy engine fills what lies outside of the factors with zeros; what is stored was checked.
    unsafe {
        warpgroup_kernel::launch_unchecked(
            client,
            CubeCount::Static(row_tiles * column_tiles, 1, parts as u32),
            CubeDim::new_1d((CONSUMERS + PLANE) as u32),
            address_type([&out]),
            2,
            tiles(lhs, form.lhs_across, factors),
            tiles(transposed(rhs), form.rhs_across, factors),
            addend.map(|it| it.into_tensor_arg()).into(),
            out.into_tensor_arg(),
            rows as u32,
            columns as u32,
            steps as u32,
            steps.div_ceil(parts) as u32,
            form,
            [factors, kind],
        );
    }
}

/// How the copy engine reads a factor, `[rows or columns, inner]`: boxes of `[TILE, INNER]`, or of `[INNER, TILE / 2]` where the
/// inner axis is not contiguous.
fn tiles(factor: TensorBinding, across: bool, kind: ElemType) -> TensorMapArg<Tiled> {
    let (mut factor, tile_size) = match across {
        true => (transposed(factor), shape![INNER, TILE / 2]),
        false => (factor, shape![TILE, INNER]),
    };
    // Of a single row, any stride may have been given.
    factor.strides = [factor.shape[1], 1].into_iter().collect();
    TensorMapArg::new(TiledArgs { tile_size }, factor.into_tensor_arg(), kind)
        .with_swizzle(TensorMapSwizzle::B128)
}

fn transposed(mut matrix: TensorBinding) -> TensorBinding {
    matrix.shape = matrix.shape.iter().rev().copied().collect();
    matrix.strides = matrix.strides.iter().rev().copied().collect();
    matrix
}

/// A cube owns a tile of the result and a part of the inner axis. The first unit of its last plane asks the copy engine for
/// stages of both factors, ahead of two warpgroups, each of which multiplies half of the rows.
#[cube(launch_unchecked, address_type = "dynamic")]
fn warpgroup_kernel<F: Float, O: Float, V: Size>(
    lhs: &TensorMap<F, Tiled>,
    rhs: &TensorMap<F, Tiled>,
    addend: ComptimeOption<&Tensor<Vector<f32, V>>>, // [rows, columns]
    out: &mut Tensor<Vector<O, V>>,                  // [parts, rows, columns]
    rows: u32,
    columns: u32,
    steps: u32,
    steps_a_part: u32,
    #[comptime] form: Form,
    #[define(F, O)] _dtypes: [ElemType; 2],
) {
    // Bands of row tiles, each through all columns.
    let row_tiles = rows.div_ceil(comptime!(TILE as u32));
    let column_tiles = columns.div_ceil(comptime!(TILE as u32));
    let band = CUBE_POS_X / (BAND * column_tiles);
    let within = CUBE_POS_X % (BAND * column_tiles);
    let high = clamp_max(row_tiles - band * BAND, BAND);
    let row = (band * BAND + within % high) * comptime!(TILE as u32);
    let column = within / high * comptime!(TILE as u32);
    let first = CUBE_POS_Z * steps_a_part;
    let steps = clamp_max(steps - first, steps_a_part);

    let bytes = comptime!(2 * STAGES * STAGE + 2 * STAGES * 8);
    let memory = Shared::<[u64]>::new_aligned_slice(comptime!(bytes / 8), 1024usize);
    let left = generic_to_shared::<u64>(memory.as_ptr());
    let right = left + comptime!((STAGES * STAGE) as u32);
    let full = right + comptime!((STAGES * STAGE) as u32);
    let empty = full + comptime!((STAGES * 8) as u32);
    if UNIT_POS == 0 {
        #[unroll]
        for stage in 0..comptime!(STAGES as u32) {
            init_barrier(full + stage * 8, 1u32);
            // One arrival a plane.
            init_barrier(empty + stage * 8, comptime!((CONSUMERS / PLANE) as u32));
        }
        gpu_asm!("fence.mbarrier_init.release.cluster;");
    }
    sync_cube();

    if UNIT_POS < comptime!(CONSUMERS as u32) {
        let group = UNIT_POS / 128;
        let lane = UNIT_POS % comptime!(PLANE as u32);
        let sums = multiply(
            left + group * comptime!(BLOCK as u32),
            right,
            full,
            empty,
            steps,
            u32::cast_from(lane == 0),
            form,
        );
        let upper = row + UNIT_POS / comptime!(PLANE as u32) * 16 + lane / 4;
        let left_column = column + lane % 4 * 2;
        let plane = (CUBE_POS_Z as usize) * rows as usize;
        #[unroll]
        for half in 0..2usize {
            let at = upper + comptime!(half as u32 * 8);
            if at < rows {
                let begin = (plane + at as usize) * (columns as usize / 2);
                #[unroll]
                for i in 0..comptime!(TILE / 8) {
                    let to = left_column + comptime!(i as u32 * 8);
                    if to < columns {
                        let place = begin + to as usize / 2;
                        let mut pair = Vector::<f32, V>::empty();
                        pair.insert(0usize, sums.extract(comptime!(4 * i + 2 * half)));
                        pair.insert(1usize, sums.extract(comptime!(4 * i + 2 * half + 1)));
                        #[comptime]
                        if let ComptimeOption::Some(addend) = addend {
                            pair += addend[place];
                        }
                        out[place] = Vector::cast_from(pair);
                    }
                }
            }
        }
    } else if UNIT_POS == comptime!(CONSUMERS as u32) {
        let lhs = tensor_map_address::<F, Tiled>(lhs);
        let rhs = tensor_map_address::<F, Tiled>(rhs);
        for step in 0..steps {
            let stage = step % comptime!(STAGES as u32);
            let round = step / comptime!(STAGES as u32);
            // A new barrier counts as one whose last phase was odd.
            wait(empty + stage * 8, (round + 1) % 2);
            let barrier = full + stage * 8;
            expect(barrier, comptime!(2 * STAGE));
            let inner = (first + step) * comptime!(INNER as u32);
            let offset = stage * comptime!(STAGE as u32);
            load(left + offset, lhs, row, inner, barrier, form.lhs_across);
            load(right + offset, rhs, column, inner, barrier, form.rhs_across);
        }
    }
}

#[cube]
#[allow(unused_variables)] // the assembly reads them
fn init_barrier(barrier: u32, count: u32) {
    gpu_asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(_) barrier, in(_) count);
}

/// Announces a stage: the barrier's phase ends once that many bytes have come.
#[cube]
#[allow(unused_variables)] // the assembly reads them
fn expect(barrier: u32, #[comptime] bytes: usize) {
    gpu_asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {bytes};", in(_) barrier);
}

/// Waits until the phase of that parity is over.
#[cube]
#[allow(unused_variables)] // the assembly reads them
fn wait(barrier: u32, parity: u32) {
    gpu_asm!(
        "{{",
        ".reg .pred over;",
        "AGAIN:",
        "mbarrier.try_wait.parity.shared::cta.b64 over, [{}], {};",
        "@!over bra AGAIN;",
        "}}",
        in(_) barrier, in(_) parity
    );
}

/// Asks for a factor's stage: values from `row` and `inner`.
#[cube]
fn load(to: u32, map: u64, row: u32, inner: u32, barrier: u32, #[comptime] across: bool) {
    if across {
        copy_box(to, map, row, inner, barrier);
        let to = to + comptime!(BLOCK as u32);
        copy_box(to, map, row + comptime!(TILE as u32 / 2), inner, barrier);
    } else {
        copy_box(to, map, inner, row, barrier);
    }
}

#[cube]
#[allow(unused_variables)] // the assembly reads them
fn copy_box(to: u32, map: u64, x: u32, y: u32, barrier: u32) {
    gpu_asm!(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes",
        "[{}], [{}, {{{}, {}}}], [{}];",
        in(_) to, in(_) map, in(_) x, in(_) y, in(_) barrier
    );
}

/// A warpgroup's products of all stages.
///
/// The whole loop is one piece of assembly, since its sums stay in flight from step to step: the compiler must not find
/// a place to move them. A step's instructions run while the next stage is waited for; once they are over, the stage
/// goes back to the copy engine.
#[cube]
#[allow(unused_variables)] // the assembly reads them
fn multiply(
    lhs: u32,
    rhs: u32,
    full: u32,
    empty: u32,
    steps: u32,
    leads: u32,
    #[comptime] form: Form,
) -> Vector<f32, Const<64>> {
    let kind = comptime!(form.kind());
    let lhs_form = comptime!(descriptor(form.lhs_across));
    let rhs_form = comptime!(descriptor(form.rhs_across));
    let lhs_advance = comptime!(advance(form.lhs_across));
    let rhs_advance = comptime!(advance(form.rhs_across));
    let lhs_across = comptime!(form.lhs_across as u32);
    let rhs_across = comptime!(form.rhs_across as u32);
    let stages = comptime!(STAGES);
    let stage_units = comptime!(STAGE / ALIGNED);
    let sums: Vector<f32, Const<64>>;
    gpu_asm!(
        "{{",
        ".reg .pred ready, later, always, wraps, leads;",
        ".reg .b32 step, stage, phase, wait, done;",
        ".reg .b64 a, b, lhs, rhs;",
        "mov.b32 step, 0;",
        "mov.b32 stage, 0;",
        "mov.b32 phase, 0;",
        "mov.b32 done, 0;",
        "setp.eq.u32 always, step, 0;",
        "setp.ne.u32 leads, {leads}, 0;",
        "shr.u32 wait, {lhs}, 4;",
        "cvt.u64.u32 lhs, wait;",
        "or.b64 lhs, lhs, {lhs_form};",
        "shr.u32 wait, {rhs}, 4;",
        "cvt.u64.u32 rhs, wait;",
        "or.b64 rhs, rhs, {rhs_form};",
        "NEXT:",
        "mad.lo.u32 wait, stage, 8, {full};",
        "AGAIN:",
        "mbarrier.try_wait.parity.shared::cta.b64 ready, [wait], phase;",
        "@!ready bra AGAIN;",
        "mul.wide.u32 b, stage, {stage_units};",
        "add.u64 a, lhs, b;",
        "add.u64 b, rhs, b;",
        "setp.ne.u32 later, step, 0;",
        "wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {sums}, a, b, later, 1, 1, {lhs_across}, {rhs_across};",
        "add.u64 a, a, {lhs_advance};",
        "add.u64 b, b, {rhs_advance};",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {sums}, a, b, always, 1, 1, {lhs_across}, {rhs_across};",
        "add.u64 a, a, {lhs_advance};",
        "add.u64 b, b, {rhs_advance};",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {sums}, a, b, always, 1, 1, {lhs_across}, {rhs_across};",
        "add.u64 a, a, {lhs_advance};",
        "add.u64 b, b, {rhs_advance};",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {sums}, a, b, always, 1, 1, {lhs_across}, {rhs_across};",
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 1;",
        "and.pred ready, later, leads;",
        "@ready mbarrier.arrive.shared::cta.b64 _, [done];",
        "mad.lo.u32 done, stage, 8, {empty};",
        "add.u32 step, step, 1;",
        "add.u32 stage, stage, 1;",
        "setp.eq.u32 wraps, stage, {stages};",
        "@wraps mov.b32 stage, 0;",
        "@wraps xor.b32 phase, phase, 1;",
        "setp.lt.u32 ready, step, {steps};",
        "@ready bra NEXT;",
        "wgmma.wait_group.sync.aligned 0;",
        "}}",
        sums = out(_) sums,
        lhs = in(_) lhs, rhs = in(_) rhs, full = in(_) full, empty = in(_) empty,
        steps = in(_) steps, leads = in(_) leads
    );
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inner_axis_is_cut_where_tiles_are_few() {
        assert_eq!(parts([8192, 768, 3072], 132), 1);
        assert_eq!(parts([80, 8192, 1536], 132), 8);
        for inner in 1..2000 {
            let parts = parts([8, inner, 8], 132);
            let stages = inner.div_ceil(INNER);
            let last = (parts - 1) * stages.div_ceil(parts);
            assert!(last < stages, "{inner}");
        }
    }
}
