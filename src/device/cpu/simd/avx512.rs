//! Sixteen lanes: AVX-512 F, BW, VL and DQ, without and with the dot products of bfloat16 pairs.

use super::{MAX_LANES, Simd, add_widened_products};
use std::arch::x86_64::*;

/// `DOT`: multiplies bfloat16 weights by the dot product instruction. An activation is then the sum of two bfloat16
/// numbers, which hold it to one part in 2¹⁶.
#[derive(Clone, Copy)]
pub(super) struct Vectors<const DOT: bool>;

pub(super) type Avx512 = Vectors<false>;
pub(super) type Avx512Bf16 = Vectors<true>;

/// Defines functions of [`Simd`] by their bodies.
macro_rules! instructions {
    ($($(#[$attribute:meta])* fn $name:ident $(<const $half:ident: usize>)? ($($arg:ident: $type:ty),*) $(-> $output:ty)? $body:block)*) => {
        $(
            #[inline(always)]
            unsafe fn $name $(<const $half: usize>)? ($($arg: $type),*) $(-> $output)? {
                // SAFETY: by the trait's contract the CPU has the instructions and pointers are good for a vector.
                unsafe { $body }
            }
        )*
    };
}

impl<const DOT: bool> Simd for Vectors<DOT> {
    type V = __m512;
    const LANES: usize = 16;
    const TILE: (usize, usize) = (5, 4);
    const OUTER_TILE: (usize, usize) = (6, 4);

    #[inline(always)]
    unsafe fn arrange_for_bf16(low: __m512, high: __m512) -> [__m512; 2] {
        // SAFETY: by the trait's contract, which for `DOT` says that the CPU has the instructions.
        unsafe { if DOT { split(low, high) } else { Self::deinterleave(low, high).into() } }
    }

    #[inline(always)]
    unsafe fn add_bf16_products<const T: usize>(sums: &mut [__m512; T], weights: __m512, x: &[[__m512; 2]; T]) {
        // SAFETY: by the trait's contract, which for `DOT` says that the CPU has the instructions.
        unsafe {
            if !DOT {
                return add_widened_products::<Self, T>(sums, weights, x);
            }
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_dpbf16_ps(*sum, bf16_pairs(weights), bf16_pairs(x[0]));
            }
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_dpbf16_ps(*sum, bf16_pairs(weights), bf16_pairs(x[1]));
            }
        }
    }

    instructions! {
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
        fn store(to: *mut f32, value: __m512) { _mm512_storeu_ps(to, value) }
        fn load_f16(from: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        fn load_bf16(from: *const u16) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn widen_bf16<const HALF: usize>(pairs: __m512) -> __m512 {
            let pairs = _mm512_castps_si512(pairs);
            let odd = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let bits = if HALF == 0 { _mm512_slli_epi32::<16>(pairs) } else { _mm512_and_si512(pairs, odd) };
            _mm512_castsi512_ps(bits)
        }
        fn deinterleave(a: __m512, b: __m512) -> (__m512, __m512) {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn zero_below(x: __m512, bound: __m512, value: __m512) -> __m512 {
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), value)
        }
        fn round(value: __m512) -> __m512 { _mm512_roundscale_ps::<0>(value) }
        fn scale_by_power(value: __m512, exponent: __m512) -> __m512 { _mm512_scalef_ps(value, exponent) }
        fn sum(value: __m512) -> f32 { _mm512_reduce_add_ps(value) }
        fn largest(value: __m512) -> f32 { _mm512_reduce_max_ps(value) }
        fn transpose(square: &mut [__m512; MAX_LANES]) {
            // One statement for each value: a loop over the array would keep it in memory.
            let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15] = *square;
            let [a0, a1, a2, a3] = columns_of_four(r0, r1, r2, r3);
            let [b0, b1, b2, b3] = columns_of_four(r4, r5, r6, r7);
            let [c0, c1, c2, c3] = columns_of_four(r8, r9, r10, r11);
            let [d0, d1, d2, d3] = columns_of_four(r12, r13, r14, r15);
            let [o0, o4, o8, o12] = quarters(a0, b0, c0, d0);
            let [o1, o5, o9, o13] = quarters(a1, b1, c1, d1);
            let [o2, o6, o10, o14] = quarters(a2, b2, c2, d2);
            let [o3, o7, o11, o15] = quarters(a3, b3, c3, d3);
            *square = [o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14, o15];
        }
        fn prefetch(address: *const u8) { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        fn prefetch_far(address: *const u8) { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}

/// Transposes the four squares of four lanes in four vectors.
///
/// # Safety
/// This CPU has AVX-512 F and DQ.
#[inline(always)]
unsafe fn columns_of_four(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    // SAFETY: by the contract.
    unsafe {
        let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab_low, ab_high) = (_mm512_castps_pd(ab_low), _mm512_castps_pd(ab_high));
        let (cd_low, cd_high) = (_mm512_castps_pd(cd_low), _mm512_castps_pd(cd_high));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
        ]
    }
}

/// The first quarters of four vectors, then the second ones, and so on.
///
/// # Safety
/// This CPU has AVX-512 F.
#[inline(always)]
unsafe fn quarters(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    // SAFETY: by the contract.
    unsafe {
        let (ab_even, cd_even) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
        let (ab_odd, cd_odd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
        [
            _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even),
            _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd),
            _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even),
            _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd),
        ]
    }
}

fn bf16_pairs(bits: __m512) -> __m512bh {
    // SAFETY: both are 64 bytes of any value.
    unsafe { std::mem::transmute(bits) }
}

/// Two vectors rounded to bfloat16, and what that left of them, rounded.
///
/// # Safety
/// This CPU has AVX-512 F and BF16.
#[inline(always)]
unsafe fn split(low: __m512, high: __m512) -> [__m512; 2] {
    // SAFETY: by the contract; a vector of bfloat16 and one of f32 are 64 bytes of any value.
    unsafe {
        let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        let widen = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
        let low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(rounded)));
        let high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64::<1>(rounded)));
        [_mm512_castsi512_ps(rounded), std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low))]
    }
}
