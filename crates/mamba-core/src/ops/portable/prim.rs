//! Arithmetic on backend primitives that reads like arithmetic on tensors.

use std::ops::{Add, Mul, Sub};

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Slice, TensorData};

/// A float primitive of backend `B`. Clones share storage; binary operators broadcast axes of
/// length 1.
pub(crate) struct Prim<B: Backend>(pub(crate) FloatTensor<B>);

impl<B: Backend> Clone for Prim<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:ident) => {
        impl<B: Backend> $trait<&Prim<B>> for &Prim<B> {
            type Output = Prim<B>;

            fn $method(self, other: &Prim<B>) -> Prim<B> {
                Prim(B::$op(self.0.clone(), other.0.clone()))
            }
        }

        impl<B: Backend> $trait<Prim<B>> for Prim<B> {
            type Output = Prim<B>;

            fn $method(self, other: Prim<B>) -> Prim<B> {
                Prim(B::$op(self.0, other.0))
            }
        }
    };
}

operator!(Add, add, float_add);
operator!(Sub, sub, float_sub);
operator!(Mul, mul, float_mul);

impl<B: Backend> Prim<B> {
    pub(crate) fn dims<const D: usize>(&self) -> [usize; D] {
        self.0.shape().dims()
    }

    /// A tensor of one value on the device of this one.
    pub(crate) fn like<const D: usize>(&self, dims: [usize; D], value: f64) -> Self {
        let device = self.0.device();
        Self(B::float_full(
            dims.into(),
            value.into(),
            &device,
            FloatDType::F32,
        ))
    }

    /// Values by their place in row-major order, on the device of this tensor.
    pub(crate) fn constant<const D: usize>(
        &self,
        dims: [usize; D],
        value: impl Fn(usize) -> f32,
    ) -> Self {
        let len = dims.iter().product();
        let values: Vec<f32> = (0..len).map(value).collect();
        let device = self.0.device();
        Self(B::float_from_data(TensorData::new(values, dims), &device))
    }

    /// Entries, all axes together.
    pub(crate) fn len(&self) -> usize {
        self.0.shape().num_elements()
    }

    /// 1 where two tensors of whole numbers are equal, else 0.
    pub(crate) fn equals(&self, other: &Self) -> Self {
        (self - other).abs().clamp(0.0, 1.0).one_minus()
    }

    /// 1 where a value is not negative, else 0.
    pub(crate) fn is_positive(&self) -> Self {
        Self(B::float_sign(self.0.clone()))
            .shift(1.0)
            .clamp(0.0, 1.0)
    }

    pub(crate) fn reshape<const D: usize>(&self, dims: [usize; D]) -> Self {
        Self(B::float_reshape(self.0.clone(), dims.into()))
    }

    /// `len` entries of axis `dim` from `start` on.
    pub(crate) fn narrow(&self, dim: usize, start: usize, len: usize) -> Self {
        let shape = self.0.shape();
        let slices: Vec<Slice> = (0..shape.num_dims())
            .map(|axis| match axis == dim {
                true => Slice::from(start..start + len),
                false => Slice::from(0..shape[axis]),
            })
            .collect();
        Self(B::float_slice(self.0.clone(), &slices))
    }

    pub(crate) fn cat(parts: Vec<Self>, dim: usize) -> Self {
        Self(B::float_cat(
            parts.into_iter().map(|part| part.0).collect(),
            dim,
        ))
    }

    pub(crate) fn transpose(&self) -> Self {
        Self(B::float_transpose(self.0.clone()))
    }

    pub(crate) fn swap(&self, first: usize, second: usize) -> Self {
        Self(B::float_swap_dims(self.0.clone(), first, second))
    }

    pub(crate) fn expand<const D: usize>(&self, dims: [usize; D]) -> Self {
        Self(B::float_expand(self.0.clone(), dims.into()))
    }

    /// The product of the last two axes, for each index of the others.
    pub(crate) fn matmul(&self, other: &Self) -> Self {
        Self(B::float_matmul(self.0.clone(), other.0.clone()))
    }

    pub(crate) fn cumsum(&self, dim: usize) -> Self {
        Self(B::float_cumsum(self.0.clone(), dim))
    }

    pub(crate) fn sum_dim(&self, dim: usize) -> Self {
        Self(B::float_sum_dim(self.0.clone(), dim))
    }

    pub(crate) fn max_dim(&self, dim: usize) -> Self {
        Self(B::float_max_dim(self.0.clone(), dim))
    }

    pub(crate) fn gather(&self, dim: usize, indices: IntTensor<B>) -> Self {
        Self(B::float_gather(dim, self.0.clone(), indices))
    }

    pub(crate) fn scale(&self, factor: f64) -> Self {
        Self(B::float_mul_scalar(self.0.clone(), factor.into()))
    }

    pub(crate) fn shift(&self, offset: f64) -> Self {
        Self(B::float_add_scalar(self.0.clone(), offset.into()))
    }

    pub(crate) fn one_minus(&self) -> Self {
        self.scale(-1.0).shift(1.0)
    }

    pub(crate) fn clamp(&self, min: f64, max: f64) -> Self {
        Self(B::float_clamp(self.0.clone(), min.into(), max.into()))
    }

    pub(crate) fn abs(&self) -> Self {
        Self(B::float_abs(self.0.clone()))
    }

    pub(crate) fn exp(&self) -> Self {
        Self(B::float_exp(self.0.clone()))
    }

    pub(crate) fn log(&self) -> Self {
        Self(B::float_log(self.0.clone()))
    }

    pub(crate) fn sqrt(&self) -> Self {
        Self(B::float_sqrt(self.0.clone()))
    }

    pub(crate) fn recip(&self) -> Self {
        Self(B::float_recip(self.0.clone()))
    }

    /// `1 / (1 + exp(-x))`; the exponent is held where f32 stays finite, which changes no value
    /// by more than the smallest normal f32.
    pub(crate) fn sigmoid(&self) -> Self {
        self.scale(-1.0).clamp(-87.0, 87.0).exp().shift(1.0).recip()
    }

    pub(crate) fn silu(&self) -> Self {
        self * &self.sigmoid()
    }

    /// The derivative of [`Self::silu`]: `s + x s (1 - s)` with `s = sigmoid(x)`.
    pub(crate) fn silu_grad(&self) -> Self {
        let sigmoid = self.sigmoid();
        &sigmoid + &(&(self * &sigmoid) * &sigmoid.one_minus())
    }

    /// `ln(1 + exp(x))` as `max(x, 0) + log1p(exp(-|x|))`, which never overflows. Past the
    /// official threshold of 20 the second term is below half an ulp: it is `x` itself.
    pub(crate) fn softplus(&self) -> Self {
        let tail = Self(B::float_log1p(self.abs().scale(-1.0).exp().0));
        Self(B::float_clamp_min(self.0.clone(), 0.0.into())) + tail
    }
}
