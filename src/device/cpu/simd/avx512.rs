//! Sixteen lanes: AVX-512 F, BW, VL and DQ.

use super::{MAX_LANES, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512;

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

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const TILE: (usize, usize) = (5, 4);
    const OUTER_TILE: (usize, usize) = (6, 4);

    instructions! {
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
        fn store(to: *mut f32, value: __m512) { _mm512_storeu_ps(to, value) }
        fn load_f16(from: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        fn load_bf16(from: *const u16) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn load_bf16_half<const HALF: usize>(from: *const u16) -> __m512 {
            let pairs = _mm512_loadu_si512(from.cast());
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
            for i in (0..16).step_by(4) {
                let (a, b, c, d) = (square[i], square[i + 1], square[i + 2], square[i + 3]);
                let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                let pairs = [ab_low, cd_low, ab_high, cd_high].map(|v| _mm512_castps_pd(v));
                square[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[0], pairs[1]));
                square[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[0], pairs[1]));
                square[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[2], pairs[3]));
                square[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[2], pairs[3]));
            }
            let from = *square;
            for i in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x88>(from[i], from[i + 4]);
                let high = _mm512_shuffle_f32x4::<0x88>(from[i + 8], from[i + 12]);
                square[i] = _mm512_shuffle_f32x4::<0x88>(low, high);
                square[i + 8] = _mm512_shuffle_f32x4::<0xdd>(low, high);
                let low = _mm512_shuffle_f32x4::<0xdd>(from[i], from[i + 4]);
                let high = _mm512_shuffle_f32x4::<0xdd>(from[i + 8], from[i + 12]);
                square[i + 4] = _mm512_shuffle_f32x4::<0x88>(low, high);
                square[i + 12] = _mm512_shuffle_f32x4::<0xdd>(low, high);
            }
        }
        fn prefetch(address: *const u8) { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}
