//! Parameter and cache elements as vectors of f32.

use super::super::view::Element;
use super::{MAX_LANES, Simd};
use half::{bf16, f16};

/// A floating-point element that kernels compute with in f32.
pub(in super::super) trait Float: Element + Default {
    /// Whether two adjacent elements have the size of a lane.
    const PAIRED: bool;

    fn to_f32(self) -> f32;

    /// To the nearest, ties to even.
    fn from_f32(value: f32) -> Self;

    /// `LANES` elements in order.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;

    /// Two vectors of activations in the order and form that [`Float::add_products`] takes.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn arrange<S: Simd>(low: S::V, high: S::V) -> [S::V; 2] {
        [low, high]
    }

    /// Adds the products of `2 * LANES` weights and those of each row of activations to the row's sum.
    ///
    /// # Safety
    /// As [`Simd`], for two vectors.
    #[inline(always)]
    unsafe fn add_products<S: Simd, const T: usize>(sums: &mut [S::V; T], weights: *const Self, x: &[[S::V; 2]; T]) {
        // SAFETY: by the contract.
        unsafe {
            let (low, high) = (Self::load::<S>(weights), Self::load::<S>(weights.add(S::LANES)));
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = S::fma(low, x[0], *sum);
            }
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = S::fma(high, x[1], *sum);
            }
        }
    }

    /// Elements `d..` of `LANES` rows, `2 * LANES` if they are paired, else `LANES`: transposed, at `to` and every `stride`
    /// from there.
    ///
    /// # Safety
    /// Rows and `to` are good for that many; this CPU has `S`.
    #[inline(always)]
    unsafe fn load_transposed<S: Simd>(to: *mut f32, stride: usize, rows: &[*const Self; MAX_LANES], d: usize) {
        // SAFETY: by the contract.
        unsafe {
            let mut square = [S::splat(0.0); MAX_LANES];
            for (square, row) in square.iter_mut().zip(rows).take(S::LANES) {
                *square = Self::load::<S>(row.add(d));
            }
            S::transpose(&mut square);
            for (i, vector) in square.iter().enumerate().take(S::LANES) {
                S::store(to.add(i * stride), *vector);
            }
        }
    }
}

impl Float for f32 {
    const PAIRED: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by the contract.
        unsafe { S::load(from) }
    }
}

impl Float for f16 {
    const PAIRED: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by the contract; f16 is a transparent u16.
        unsafe { S::load_f16(from.cast()) }
    }
}

impl Float for bf16 {
    const PAIRED: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: by the contract; bf16 is a transparent u16.
        unsafe { S::load_bf16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn arrange<S: Simd>(low: S::V, high: S::V) -> [S::V; 2] {
        // SAFETY: by the contract.
        unsafe { S::arrange_for_bf16(low, high) }
    }

    #[inline(always)]
    unsafe fn add_products<S: Simd, const T: usize>(sums: &mut [S::V; T], weights: *const Self, x: &[[S::V; 2]; T]) {
        // SAFETY: by the contract; two bf16 have the size of a lane.
        unsafe { S::add_bf16_products(sums, S::load(weights.cast()), x) }
    }

    #[inline(always)]
    unsafe fn load_transposed<S: Simd>(to: *mut f32, stride: usize, rows: &[*const Self; MAX_LANES], d: usize) {
        // SAFETY: by the contract. Two bf16 move as one f32, so that half the work moves them.
        unsafe {
            let mut square = [S::splat(0.0); MAX_LANES];
            for (square, row) in square.iter_mut().zip(rows).take(S::LANES) {
                *square = S::load(row.add(d).cast());
            }
            S::transpose(&mut square);
            for (i, pairs) in square.iter().enumerate().take(S::LANES) {
                S::store(to.add(2 * i * stride), S::widen_bf16::<0>(*pairs));
                S::store(to.add((2 * i + 1) * stride), S::widen_bf16::<1>(*pairs));
            }
        }
    }
}
