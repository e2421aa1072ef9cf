//! What is done by bits against IEEE 754 on the host, on the default device of the runtime built in, whether that device
//! needs it or not.

use cubecl::features::TypeUsage;
use half::{bf16, f16};

use super::*;

/// Values that a unit takes at once.
const LANES: usize = 4;

const UNITS: usize = 64;

/// What [`limit`] is asked for.
const RANGE: [f32; 2] = [1e-3, 100.0];

/// The bits of some 56,000 numbers: of every seventh that bf16 holds, the same with a little more, and those just below, on
/// and just above the tie. Zeros, infinities, NaN, the largest and subnormal ones of both signs are among them.
fn values() -> Vec<u32> {
    let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    let marked = [0x0000, 0x007f, 0x3f80, 0x3f81, 0x7f7f, 0x7f80, 0x7fff];
    let signed = marked.into_iter().flat_map(|upper| [upper, upper | 0x8000]);
    let uppers = (0..=0xffff_u32).step_by(7).chain(signed);
    let mut values: Vec<u32> = uppers
        .flat_map(|upper| lower.map(|lower| upper << 16 | lower))
        .collect();
    // NaN that is one in the lower bits alone is among them, too.
    values.truncate(values.len() / LANES * LANES);
    assert!(values.contains(&0x7f80_0001) && values.contains(&0x3f80_8000));
    values
}

fn client() -> Client {
    cubecl::Device::default().client()
}

/// Launches a kernel over [`values`] that writes `bytes` for each, and returns what it wrote.
fn run(
    client: &Client,
    bytes: usize,
    launch: impl FnOnce(CubeCount, CubeDim, BufferArg, cubecl::server::Handle),
) -> Vec<u8> {
    let values = values();
    let source = client.create_from_slice(u32::as_bytes(&values));
    let target = client.create_from_slice(&vec![0xee; bytes * values.len()]);
    let cube = CubeDim::new_1d(UNITS as u32);
    let count = cubecl::calculate_cube_count_elemwise(client, values.len() / LANES, cube);
    // SAFETY: the handle holds that many values.
    let source = unsafe { BufferArg::from_raw_parts(source, values.len()) };
    launch(count, cube, source, target.clone());
    let written = client.read_one(target).expect("the kernel ran");
    written.to_vec()
}

fn is_nan(bits: u32) -> bool {
    f32::from_bits(bits).is_nan()
}

/// One by one, then as vectors.
#[cube(launch)]
fn nearest_kernel(source: &[u32], target: &mut [u32]) {
    let first = ABSOLUTE_POS * LANES;
    if first >= source.len() {
        terminate!();
    }
    let mut together = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..LANES {
        let value = f32::reinterpret(source[first + i]);
        together.insert(i, value);
        let rounded = nearest_bf16::<Const<1>>(Vector::new(value));
        target[first + i] = u32::reinterpret(rounded.extract(0usize));
    }
    let together = nearest_bf16::<Const<4>>(together);
    #[unroll]
    for i in 0..LANES {
        target[source.len() + first + i] = u32::reinterpret(together.extract(i));
    }
}

#[test]
fn rounding_by_bits_is_rounding_to_the_nearest() {
    let client = client();
    let bytes = run(
        &client,
        2 * size_of::<u32>(),
        |count, cube, source, target| {
            // SAFETY: the handle holds that many values.
            let target = unsafe { BufferArg::from_raw_parts(target, 2 * values().len()) };
            nearest_kernel::launch(&client, count, cube, source, target);
        },
    );
    let got = u32::from_bytes(&bytes);
    let values = values();
    assert_eq!(got.len(), 2 * values.len());
    for (index, &got) in got.iter().enumerate() {
        let bits = values[index % values.len()];
        let want = bf16::from_f32(f32::from_bits(bits)).to_f32().to_bits();
        assert_eq!(got, want, "of {bits:#x}, as {index}");
    }
}

#[cube(launch)]
fn convert_kernel<F: Float>(source: &[u32], target: &mut [F], #[define(F)] _kind: ElemType) {
    let first = ABSOLUTE_POS * LANES;
    if first >= source.len() {
        terminate!();
    }
    #[unroll]
    for i in 0..LANES {
        target[first + i] = round_to::<F>(f32::reinterpret(source[first + i]));
    }
}

/// Checks what the kernels' conversion to a half precision makes of the values that are `compared`.
fn check_conversion(kind: FloatKind, compared: fn(f32) -> bool, convert: fn(f32) -> (u16, f32)) {
    let client = client();
    let elem = ElemType::Float(kind);
    let usage = client.properties().type_usage(elem);
    if !usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion) {
        println!("not tested: the device has no {kind:?}");
        return;
    }
    let bytes = run(&client, size_of::<u16>(), |count, cube, source, target| {
        // SAFETY: the handle holds that many values.
        let target = unsafe { BufferArg::from_raw_parts(target, values().len()) };
        convert_kernel::launch(&client, count, cube, source, target, elem);
    });
    let mut seen = 0;
    for (&got, bits) in u16::from_bytes(&bytes).iter().zip(values()) {
        let value = f32::from_bits(bits);
        if !compared(value) {
            continue;
        }
        seen += 1;
        let (want, back) = convert(value);
        let sign = want & 0x8000;
        let same = match back {
            back if back.is_nan() => got & 0x7fff > convert(f32::INFINITY).0,
            // Whether there are subnormal numbers is left to the device.
            back if back.is_subnormal() => got == want || got == sign,
            _ => got == want,
        };
        assert!(
            same,
            "{value:e} ({bits:#x}) became {got:#x} instead of {want:#x}"
        );
    }
    assert!(seen > 1000, "{seen} values");
}

#[test]
fn bf16_is_rounded_on_this_device() {
    check_conversion(
        FloatKind::BF16,
        |_| true,
        |value| {
            let half = bf16::from_f32(value);
            (half.to_bits(), half.to_f32())
        },
    );
}

/// Nothing is done for it: it has to hold anyway.
#[test]
fn f16_is_rounded_on_this_device() {
    let normal = |value: f32| (1e-4..65000.0).contains(&value.abs());
    check_conversion(FloatKind::F16, normal, |value| {
        let half = f16::from_f32(value);
        (half.to_bits(), half.to_f32())
    });
}

/// Results that a value has here.
const RESULTS: usize = 4;

#[cube(launch)]
fn tests_kernel(source: &[u32], target: &mut [u32], least: f32, most: f32, length: u32) {
    let first = ABSOLUTE_POS * LANES;
    if first >= source.len() {
        terminate!();
    }
    #[unroll]
    for i in 0..LANES {
        let value = f32::reinterpret(source[first + i]);
        let at = (first + i) * RESULTS;
        let zero = select(is_zero_by_bits(value), 1u32, 0u32);
        let negative = select(is_negative_by_bits(value), 2u32, 0u32);
        let beyond = select(is_beyond_by_bits(value, least, most), 4u32, 0u32);
        target[at] = zero | negative | beyond;
        target[at + 1] = u32::reinterpret(limit_by_bits(value, least, most));
        target[at + 2] = u32::reinterpret(flaw_by_bits(value));
        target[at + 3] = u32::reinterpret(value * opaque_zero_by_bits(length));
    }
}

#[test]
fn tests_by_bits_know_nan() {
    let client = client();
    let [least, most] = RANGE;
    let bytes = run(
        &client,
        RESULTS * size_of::<u32>(),
        |count, cube, source, target| {
            // SAFETY: the handle holds that many values.
            let target = unsafe { BufferArg::from_raw_parts(target, RESULTS * values().len()) };
            tests_kernel::launch(&client, count, cube, source, target, least, most, 1000);
        },
    );
    for (got, bits) in u32::from_bytes(&bytes).chunks(RESULTS).zip(values()) {
        let value = f32::from_bits(bits);
        let case = format!("{value:e} ({bits:#x}): {got:x?}");
        let [zero, negative] = [value == 0.0, value < 0.0].map(u32::from);
        let beyond = u32::from(value < least || value > most);
        // A device may take subnormal numbers for zero, but not by bits.
        assert_eq!(
            got[0],
            zero | negative << 1 | beyond << 2,
            "tests of {case}"
        );
        match value.is_nan() {
            true => assert!(is_nan(got[1]), "limit of {case}"),
            false => assert_eq!(
                f32::from_bits(got[1]),
                value.clamp(least, most),
                "limit of {case}"
            ),
        }
        match value.is_finite() {
            true => assert_eq!([got[2], got[3] << 1], [0, 0], "flaw and nothing of {case}"),
            false => assert!(is_nan(got[2]) && is_nan(got[3]), "flaw, nothing of {case}"),
        }
    }
}
