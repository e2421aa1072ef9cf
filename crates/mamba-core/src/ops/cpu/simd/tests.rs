use super::{math::*, *};
use std::cell::Cell;

/// Applies `F` to every value of a slice whose length is a multiple of the lanes.
struct Map<'a, F>(&'a [f32], F);

trait Function {
    fn call<V: Vector>(&self, x: V) -> V;
}

impl<F: Function> Kernel for Map<'_, F> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<V: Vector>(self) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.0.len()];
        for (x, y) in self.0.chunks(LANES).zip(output.chunks_mut(LANES)) {
            self.1.call(V::load_padded(x)).store_cut(y);
        }
        output
    }
}

macro_rules! function {
    ($name:ident, $call:expr) => {
        #[derive(Clone, Copy)]
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn call<V: Vector>(&self, x: V) -> V {
                $call(x)
            }
        }
    };
}

function!(Exp2, exp2);
function!(Exp, exp);
function!(ExpNonpositive, exp_nonpositive);
function!(Softplus, softplus);
function!(SoftplusDerivative, |x| softplus_with_derivative(x).1);
function!(Sigmoid, sigmoid);
function!(Silu, silu);
function!(SiluDerivative, |x| silu_with_derivative(x).1);

/// An instruction set of this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

thread_local! {
    /// What `dispatch` takes on this thread instead of the widest set.
    pub static FORCED: Cell<Option<Set>> = const { Cell::new(None) };
}

/// The sets that this machine has.
fn sets() -> Vec<Set> {
    let mut sets = vec![Set::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            sets.push(Set::Avx2);
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            sets.push(Set::Avx512);
        }
    }
    sets
}

/// Runs `kernel` on one of [`sets`].
pub fn run_on<K: Kernel>(set: Set, kernel: K) -> K::Output {
    assert!(sets().contains(&set));
    match set {
        Set::Portable => kernel.run::<portable::F32x16>(),
        // SAFETY: the features that the function is compiled for were detected.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { run_avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => unsafe { run_avx512(kernel) },
    }
}

/// What `work` gives on one thread with each instruction set of this machine.
pub fn with_each_set<T: Send>(work: impl Fn() -> T + Sync) -> Vec<(Set, T)> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
    let pool = pool.build().unwrap();
    let forced = |set| {
        pool.install(|| {
            FORCED.set(Some(set));
            work()
        })
    };
    sets().into_iter().map(|set| (set, forced(set))).collect()
}

/// The results of every instruction set of this machine.
fn on_each<K: Kernel>(kernel: impl Fn() -> K) -> Vec<(Set, K::Output)> {
    let sets = sets().into_iter();
    sets.map(|set| (set, run_on(set, kernel()))).collect()
}

fn sweep(low: f32, high: f32) -> Vec<f32> {
    let count = 400_003;
    (0..count)
        .map(|i| low + (high - low) * (i as f32 / (count - 1) as f32))
        .collect()
}

/// The largest error in units of the last place; `scale` is the magnitude whose ulp counts.
fn check<F: Function + Copy>(
    x: &[f32],
    f: F,
    exact: impl Fn(f64) -> f64,
    scale: impl Fn(f64) -> f64,
    limit: f64,
) {
    for (set, y) in on_each(|| Map(x, f)) {
        let (mut worst, mut at) = (0.0, 0.0);
        for (&x, &y) in x.iter().zip(&y) {
            let expected = exact(f64::from(x));
            let magnitude = scale(expected).abs().max(f64::from(f32::MIN_POSITIVE));
            let ulp = magnitude.log2().floor().exp2() * f64::from(f32::EPSILON);
            let error = (f64::from(y) - expected).abs() / ulp;
            if error > worst || error.is_nan() {
                (worst, at) = (error, x);
            }
        }
        println!("{set:?}: {worst:.2} ulp at {at:e}");
        assert!(worst <= limit, "{set:?}: {worst} ulp at {at}");
    }
}

fn ln_1p_exp(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn exponentials_are_within_three_ulp() {
    check(&sweep(-126.0, 127.9), Exp2, f64::exp2, |y| y, 3.0);
    check(&sweep(-0.5, 0.5), Exp2, f64::exp2, |y| y, 3.0);
    check(&sweep(-87.3, 88.7), Exp, f64::exp, |y| y, 2.0);
    check(&sweep(-1e-3, 1e-3), Exp, f64::exp, |y| y, 2.0);
    check(&sweep(-87.3, 0.0), ExpNonpositive, f64::exp, |y| y, 2.0);
}

#[test]
fn subnormal_results_of_exp_are_within_a_few_units() {
    check(
        &sweep(-103.0, -87.3),
        Exp,
        f64::exp,
        |_| f64::from(f32::MIN_POSITIVE),
        2.0,
    );
}

#[test]
fn activations_are_within_three_ulp() {
    for x in [
        sweep(-87.0, 87.0),
        sweep(-2.0, 2.0),
        sweep(-1e-3, 1e-3),
        sweep(19.0, 21.0),
    ] {
        check(&x, Softplus, ln_1p_exp, |y| y, 3.0);
        check(&x, Sigmoid, logistic, |y| y, 3.0);
        check(&x, SoftplusDerivative, logistic, |y| y, 3.0);
        check(&x, Silu, |x| x * logistic(x), |y| y, 3.5);
        // The derivative crosses zero: its error counts against the sum's largest term.
        let derivative = |x: f64| logistic(x) * (1.0 + x * (1.0 - logistic(x)));
        check(&x, SiluDerivative, derivative, |y| y.abs().max(0.25), 3.0);
    }
}

#[test]
fn extremes_and_nan_come_through() {
    let x = [
        f32::NEG_INFINITY,
        f32::INFINITY,
        f32::NAN,
        0.0,
        -0.0,
        -1e30,
        1e30,
        -200.0,
        200.0,
    ];
    let infinity = f32::INFINITY;
    let same = |y: &[f32], expected: &[f32], set: Set| {
        for ((&x, &y), &expected) in x.iter().zip(y).zip(expected) {
            let close = (y - expected).abs() <= 1e-5 * expected.abs();
            assert!(
                y == expected || close || y.is_nan() && expected.is_nan(),
                "{set:?}: f({x}) = {y:e}, not {expected:e}"
            );
        }
    };
    let exponential = [
        0.0,
        infinity,
        f32::NAN,
        1.0,
        1.0,
        0.0,
        infinity,
        0.0,
        infinity,
    ];
    for (set, y) in on_each(|| Map(&x, Exp2)) {
        same(&y, &exponential, set);
    }
    for (set, y) in on_each(|| Map(&x, Exp)) {
        same(&y, &exponential, set);
    }
    let least = f32::MIN_POSITIVE;
    let ln_2 = std::f32::consts::LN_2;
    for (set, y) in on_each(|| Map(&x, Softplus)) {
        same(
            &y,
            &[
                least,
                infinity,
                f32::NAN,
                ln_2,
                ln_2,
                least,
                1e30,
                least,
                200.0,
            ],
            set,
        );
    }
    for (set, y) in on_each(|| Map(&x, Sigmoid)) {
        same(
            &y,
            &[least, 1.0, f32::NAN, 0.5, 0.5, least, 1.0, least, 1.0],
            set,
        );
    }
}

struct Sums<'a>(&'a [f32; LANES]);

impl Kernel for Sums<'_> {
    type Output = [f32; 5];

    #[inline(always)]
    fn run<V: Vector>(self) -> [f32; 5] {
        let x = V::load_array(self.0);
        let [a, b, c, d] = V::sums([x, x + x, V::splat(1.0), V::zero() - x]);
        [x.sum(), a, b, c, d]
    }
}

#[test]
fn sums_count_each_lane_once() {
    let x: [f32; LANES] = std::array::from_fn(|lane| (1 << lane) as f32);
    for (set, sums) in on_each(|| Sums(&x)) {
        assert_eq!(
            sums,
            [65_535.0, 65_535.0, 131_070.0, 16.0, -65_535.0],
            "{set:?}"
        );
    }
}

/// Reads the first values of a vector, and writes as many of what came.
struct First<'a>(&'a [f32]);

impl Kernel for First<'_> {
    type Output = (Lanes, Lanes);

    #[inline(always)]
    fn run<V: Vector>(self) -> (Lanes, Lanes) {
        let (mut read, mut written) = (Lanes::ZERO, Lanes([-1.0; LANES]));
        let x = V::load_padded(self.0);
        x.store(&mut read);
        (x + V::splat(1.0)).store_cut(&mut written.0[..self.0.len()]);
        (read, written)
    }
}

#[test]
fn the_first_lanes_touch_no_others() {
    let x: [f32; LANES] = std::array::from_fn(|lane| lane as f32 + 1.0);
    for count in 0..=LANES {
        let lanes = |there: fn(f32) -> f32, past: f32| {
            Lanes(std::array::from_fn(|lane| {
                if lane < count { there(x[lane]) } else { past }
            }))
        };
        for (set, result) in on_each(|| First(&x[..count])) {
            let expected = (lanes(|x| x, 0.0), lanes(|x| x + 1.0, -1.0));
            assert_eq!(result, expected, "{set:?}, {count} lanes");
        }
    }
}

struct Transpose<'a>(&'a [Lanes; LANES]);

impl Kernel for Transpose<'_> {
    type Output = [Lanes; LANES];

    #[inline(always)]
    fn run<V: Vector>(self) -> [Lanes; LANES] {
        let (mut rows, mut output) = ([V::zero(); LANES], [Lanes::ZERO; LANES]);
        for i in 0..LANES {
            rows[i] = V::load(&self.0[i]);
        }
        let columns = V::transpose(rows);
        for i in 0..LANES {
            columns[i].store(&mut output[i]);
        }
        output
    }
}

#[test]
fn transposing_swaps_rows_and_columns() {
    let matrix = |value: fn(usize, usize) -> usize| -> [Lanes; LANES] {
        std::array::from_fn(|i| Lanes(std::array::from_fn(|j| value(i, j) as f32)))
    };
    let rows = matrix(|i, j| i * LANES + j);
    for (set, columns) in on_each(|| Transpose(&rows)) {
        assert_eq!(columns, matrix(|i, j| j * LANES + i), "{set:?}");
    }
}
