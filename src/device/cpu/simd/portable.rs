//! Eight lanes in plain arrays, for the compiler to vectorise with what the target always has.

use super::{MAX_LANES, Simd};
use std::array;

#[derive(Clone, Copy)]
pub(super) struct Portable;

const LANES: usize = 8;

type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, function: impl Fn(f32, f32) -> f32) -> V {
    array::from_fn(|lane| function(a[lane], b[lane]))
}

/// Without a branch: the exponent is rebased by a multiplication, which also makes subnormal numbers right.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    const REBASE: f32 = f32::from_bits((127 + 127 - 15) << 23);
    const INFINITE: u32 = 0x7c00 << 13;
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * REBASE).to_bits();
    let widened = if magnitude >= INFINITE { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(widened | (u32::from(bits) & 0x8000) << 16)
}

impl Simd for Portable {
    type V = V;
    const LANES: usize = LANES;
    const TILE: (usize, usize) = (2, 2);
    const OUTER_TILE: (usize, usize) = (2, 2);

    #[inline(always)]
    unsafe fn splat(value: f32) -> V {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        // SAFETY: by the trait's contract.
        unsafe { from.cast::<V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: V) {
        // SAFETY: by the trait's contract.
        unsafe { to.cast::<V>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> V {
        // SAFETY: by the trait's contract.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(widen_f16)
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> V {
        // SAFETY: by the trait's contract.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    unsafe fn widen_bf16<const HALF: usize>(pairs: V) -> V {
        let pairs = pairs.map(f32::to_bits);
        pairs.map(|pair| f32::from_bits(if HALF == 0 { pair << 16 } else { pair & 0xffff_0000 }))
    }

    #[inline(always)]
    unsafe fn deinterleave(a: V, b: V) -> (V, V) {
        let at = |i: usize| if i < LANES { a[i] } else { b[i - LANES] };
        (array::from_fn(|lane| at(2 * lane)), array::from_fn(|lane| at(2 * lane + 1)))
    }

    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn zero_below(x: V, bound: V, value: V) -> V {
        array::from_fn(|lane| if x[lane] < bound[lane] { 0.0 } else { value[lane] })
    }

    #[inline(always)]
    unsafe fn round(value: V) -> V {
        // Adding 1.5 * 2²³ leaves no bits for a fraction.
        const SHIFT: f32 = 12_582_912.0;
        value.map(|value| (value + SHIFT) - SHIFT)
    }

    #[inline(always)]
    unsafe fn scale_by_power(value: V, exponent: V) -> V {
        zip(value, exponent, |value, exponent| value * f32::from_bits(((exponent as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    unsafe fn sum(value: V) -> f32 {
        let [a, b, c, d, e, f, g, h] = value;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn largest(value: V) -> f32 {
        value.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn transpose(square: &mut [V; MAX_LANES]) {
        let from = *square;
        for (i, row) in square.iter_mut().take(LANES).enumerate() {
            *row = array::from_fn(|lane| from[lane][i]);
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}

    #[inline(always)]
    unsafe fn prefetch_far(_address: *const u8) {}
}
