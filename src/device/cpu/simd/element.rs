//! Parameter and cache elements as vectors of f32.

use super::super::view::Element;
use super::Simd;
use half::{bf16, f16};

/// A floating-point element that kernels compute with in f32.
pub(in super::super) trait Float: Element + Default {
    /// Whether [`Float::load_half`] gives even and odd elements instead of lower and upper ones.
    const INTERLEAVED: bool;

    fn to_f32(self) -> f32;

    /// To the nearest, ties to even.
    fn from_f32(value: f32) -> Self;

    /// `LANES` elements in order.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;

    /// Half of `2 * LANES` elements, in the order that costs least.
    ///
    /// # Safety
    /// As [`Simd`], for two vectors.
    unsafe fn load_half<S: Simd, const HALF: usize>(from: *const Self) -> S::V;
}

impl Float for f32 {
    const INTERLEAVED: bool = false;

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

    #[inline(always)]
    unsafe fn load_half<S: Simd, const HALF: usize>(from: *const Self) -> S::V {
        // SAFETY: by the contract.
        unsafe { S::load(from.add(HALF * S::LANES)) }
    }
}

impl Float for f16 {
    const INTERLEAVED: bool = false;

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

    #[inline(always)]
    unsafe fn load_half<S: Simd, const HALF: usize>(from: *const Self) -> S::V {
        // SAFETY: by the contract.
        unsafe { S::load_f16(from.add(HALF * S::LANES).cast()) }
    }
}

impl Float for bf16 {
    const INTERLEAVED: bool = true;

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
    unsafe fn load_half<S: Simd, const HALF: usize>(from: *const Self) -> S::V {
        // SAFETY: by the contract.
        unsafe { S::load_bf16_half::<HALF>(from.cast()) }
    }
}
