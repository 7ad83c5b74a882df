//! Layer norm, and functions of single elements.

use super::CpuDevice;
use super::linear::widened;
use super::simd::{Kernel, Simd, dispatch, exp, load_up_to, sigmoid, store_up_to, tanh};
use super::view::Matrix;
use crate::device::{Activation, Elementwise, LayerNorm};
use crate::error::Result;

/// Columns of a task of [`elementwise`].
const PIECE: usize = 2048;

pub(super) fn layer_norm(device: &CpuDevice, args: &LayerNorm<'_>) -> Result<()> {
    let (out, x) = (Matrix::<f32>::of(args.out, "layer_norm: out")?, Matrix::<f32>::of(args.x, "layer_norm: x")?);
    let weight = widened(args.weight)?;
    let bias = args.bias.map(widened).transpose()?;
    let (group, eps) = (args.group, args.eps);
    device.pool.run(out.rows, &|t| {
        for start in (0..x.cols).step_by(group) {
            let parameters = start % weight.len();
            let normalize = Center {
                out: out.pointer(t).wrapping_add(start),
                x: x.pointer(t).wrapping_add(start).cast_const(),
                weight: &weight[parameters..parameters + group],
                bias: bias.as_ref().map(|bias| &bias[parameters..parameters + group]),
                eps,
            };
            // SAFETY: the device has this instruction set; the group lies in row t, which is this task's alone.
            unsafe { dispatch(device.isa, normalize) };
        }
    })
}

/// `out = (x - mean) / deviation * weight + bias`; `out` may be `x`. Pointers are good for as many elements as
/// `weight` has, which nobody else uses.
struct Center<'a> {
    out: *mut f32,
    x: *const f32,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl Kernel for Center<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = self.weight.len();
        let whole = len / S::LANES * S::LANES;
        // SAFETY: by the fields' contract; no access passes `len`.
        unsafe {
            let mut sums = S::splat(0.0);
            for i in (0..len).step_by(S::LANES) {
                sums = S::add(sums, load_up_to::<S, f32>(self.x.add(i), len - i));
            }
            let mean = S::sum(sums) / len as f32;
            let mut squares = S::splat(0.0);
            for i in (0..whole).step_by(S::LANES) {
                let centered = S::sub(S::load(self.x.add(i)), S::splat(mean));
                squares = S::fma(centered, centered, squares);
            }
            let rest: f32 = (whole..len).map(|i| (*self.x.add(i) - mean) * (*self.x.add(i) - mean)).sum();
            let factor = S::splat(1.0 / ((S::sum(squares) + rest) / len as f32 + self.eps).sqrt());
            for i in (0..len).step_by(S::LANES) {
                let centered = S::sub(load_up_to::<S, f32>(self.x.add(i), len - i), S::splat(mean));
                let weight = load_up_to::<S, f32>(self.weight.as_ptr().add(i), len - i);
                let mut value = S::mul(S::mul(centered, factor), weight);
                if let Some(bias) = self.bias {
                    value = S::add(value, load_up_to::<S, f32>(bias.as_ptr().add(i), len - i));
                }
                store_up_to::<S>(self.out.add(i), value, len - i);
            }
        }
    }
}

pub(super) fn elementwise(
    device: &CpuDevice,
    out: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    function: Elementwise,
) -> Result<()> {
    let pieces = out.cols.div_ceil(PIECE);
    device.pool.run(out.rows * pieces, &|task| {
        let (t, start) = (task / pieces, task % pieces * PIECE);
        let len = PIECE.min(out.cols - start);
        let (out, x) = (out.pointer(t).wrapping_add(start), x.pointer(t).wrapping_add(start).cast_const());
        // SAFETY: the device has this instruction set; these columns of row t are this task's alone.
        unsafe { dispatch(device.isa, Apply { out, x, len, function }) };
    })
}

/// `out = function(x)` for `len` elements; `out` may be `x`.
struct Apply {
    out: *mut f32,
    x: *const f32,
    len: usize,
    function: Elementwise,
}

impl Kernel for Apply {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for i in (0..self.len).step_by(S::LANES) {
            // SAFETY: pointers are good for `len` elements, and no access passes that.
            unsafe {
                let x = load_up_to::<S, f32>(self.x.add(i), self.len - i);
                let value = match self.function {
                    Elementwise::Activate(activation) => activate::<S>(x, activation),
                    Elementwise::Sigmoid => sigmoid::<S>(x),
                    Elementwise::Scale(factor) => S::mul(x, S::splat(factor)),
                    Elementwise::Clamp(bound) => clamp::<S>(x, bound),
                    Elementwise::Softcap(cap) => S::mul(S::splat(cap), tanh::<S>(S::mul(x, S::splat(1.0 / cap)))),
                };
                store_up_to::<S>(self.out.add(i), value, self.len - i);
            }
        }
    }
}

/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn clamp<S: Simd>(x: S::V, bound: f32) -> S::V {
    // SAFETY: by the contract. The order of operands keeps not-a-number.
    unsafe { S::max(S::splat(-bound), S::min(S::splat(bound), x)) }
}

/// The bound of [`Activation::ClampedSwish`].
pub(super) const SWISH_BOUND: f32 = 7.0;

/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn activate<S: Simd>(x: S::V, activation: Activation) -> S::V {
    /// 2 √(2/π): with `u` the argument of the formula's tanh, `0.5 (1 + tanh u)` is `sigmoid(2u)`.
    const TWICE_ROOT: f32 = 1.595_769;
    // SAFETY: by the contract.
    unsafe {
        match activation {
            Activation::Silu => S::mul(x, sigmoid::<S>(x)),
            Activation::GeluTanh => {
                let cubic = S::fma(S::mul(S::splat(0.044_715), x), S::mul(x, x), x);
                S::mul(x, sigmoid::<S>(S::mul(S::splat(TWICE_ROOT), cubic)))
            }
            Activation::Gelu => S::mul(x, normal::<S>(x)),
            Activation::Relu => S::max(S::splat(0.0), x),
            Activation::ReluSquared => {
                let x = S::max(S::splat(0.0), x);
                S::mul(x, x)
            }
            Activation::ClampedSwish => {
                let x = S::min(S::splat(SWISH_BOUND), x);
                S::mul(x, sigmoid::<S>(S::mul(S::splat(1.702), x)))
            }
        }
    }
}

/// The normal distribution's Φ with an absolute error below 2e-7. Source: Abramowitz and Stegun, 7.1.26.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn normal<S: Simd>(x: S::V) -> S::V {
    const COEFFICIENTS: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    // SAFETY: by the contract.
    unsafe {
        let zero = S::splat(0.0);
        let z = S::mul(S::max(S::sub(zero, x), x), S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::fma(S::splat(0.327_591_1), z, S::splat(1.0)));
        let mut polynomial = S::splat(COEFFICIENTS[0]);
        for coefficient in &COEFFICIENTS[1..] {
            polynomial = S::fma(polynomial, t, S::splat(*coefficient));
        }
        let tail = S::mul(S::mul(polynomial, t), S::mul(S::splat(0.5), exp::<S>(S::sub(zero, S::mul(z, z)))));
        // Below zero Φ is the tail, above it 1 - tail.
        let above = S::sub(S::splat(1.0), S::add(tail, tail));
        S::add(tail, S::zero_below(x, zero, above))
    }
}
