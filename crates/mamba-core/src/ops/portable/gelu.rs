//! `x sigmoid(x (a x^2 + b))`: GELU in the form with tanh.

use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

use super::Prim;

/// `2 sqrt(2 / pi)`
const LINEAR: f64 = SQRT_2 * FRAC_2_SQRT_PI;
const CUBIC: f64 = 0.044715 * LINEAR;

pub(crate) fn forward<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = Prim::<B>(x);
    let slope = (&x * &x).scale(CUBIC).shift(LINEAR);
    (&x * &(&x * &slope).sigmoid()).0
}

pub(crate) fn backward<B: Backend>(x: FloatTensor<B>, grad_y: FloatTensor<B>) -> FloatTensor<B> {
    let x = Prim::<B>(x);
    let square = &x * &x;
    let gate = (&x * &square.scale(CUBIC).shift(LINEAR)).sigmoid();
    let bent = &x * &square.scale(3.0 * CUBIC).shift(LINEAR);
    let slope = &gate + &(&(&gate * &gate.one_minus()) * &bent);
    (&Prim::<B>(grad_y) * &slope).0
}
