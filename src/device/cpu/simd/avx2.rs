//! Eight lanes: AVX2, FMA and F16C.

use super::{MAX_LANES, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx2;

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

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const TILE: (usize, usize) = (3, 3);
    const OUTER_TILE: (usize, usize) = (6, 2);

    instructions! {
        fn splat(value: f32) -> __m256 { _mm256_set1_ps(value) }
        fn load(from: *const f32) -> __m256 { _mm256_loadu_ps(from) }
        fn store(to: *mut f32, value: __m256) { _mm256_storeu_ps(to, value) }
        fn load_f16(from: *const u16) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        fn load_bf16(from: *const u16) -> __m256 {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        fn widen_bf16<const HALF: usize>(pairs: __m256) -> __m256 {
            let pairs = _mm256_castps_si256(pairs);
            let odd = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let bits = if HALF == 0 { _mm256_slli_epi32::<16>(pairs) } else { _mm256_and_si256(pairs, odd) };
            _mm256_castsi256_ps(bits)
        }
        fn deinterleave(a: __m256, b: __m256) -> (__m256, __m256) {
            let order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
            let (even, odd) = (_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
            (_mm256_permutevar8x32_ps(even, order), _mm256_permutevar8x32_ps(odd, order))
        }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn zero_below(x: __m256, bound: __m256, value: __m256) -> __m256 {
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, bound), value)
        }
        fn round(value: __m256) -> __m256 { _mm256_round_ps::<_MM_FROUND_TO_NEAREST_INT>(value) }
        fn scale_by_power(value: __m256, exponent: __m256) -> __m256 {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
            _mm256_mul_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
        fn sum(value: __m256) -> f32 {
            let four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn largest(value: __m256) -> f32 {
            let four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn transpose(square: &mut [__m256; MAX_LANES]) {
            for i in (0..8).step_by(4) {
                let (a, b, c, d) = (square[i], square[i + 1], square[i + 2], square[i + 3]);
                let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                square[i] = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
                square[i + 1] = _mm256_shuffle_ps::<0xee>(ab_low, cd_low);
                square[i + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
                square[i + 3] = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
            }
            for i in 0..4 {
                let (a, b) = (square[i], square[i + 4]);
                square[i] = _mm256_permute2f128_ps::<0x20>(a, b);
                square[i + 4] = _mm256_permute2f128_ps::<0x31>(a, b);
            }
        }
        fn prefetch(address: *const u8) { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        fn prefetch_far(address: *const u8) { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
