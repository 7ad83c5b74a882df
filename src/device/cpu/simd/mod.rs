//! A vector type per instruction set, so that a kernel is written once.
//!
//! A kernel is a [`Kernel`]: its body and all it calls are `#[inline(always)]`, so that [`dispatch`] compiles it inside
//! a function with the instruction set's target features.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
mod portable;

pub(super) use element::Float;

use super::Isa;

/// Bytes of a cache line, and of a prefetch.
pub(super) const LINE_BYTES: usize = 64;
/// Lanes of the widest vector: bound of stack buffers.
pub(super) const MAX_LANES: usize = 16;

/// Vectors of f32 of one instruction set.
///
/// # Safety
/// Of every function: this CPU has the instruction set, and pointers are good for the elements of one vector.
pub(super) trait Simd: Copy + 'static {
    type V: Copy;
    const LANES: usize;
    /// Weight rows and activation rows of a tile of dot products: as many as the registers hold.
    const TILE: (usize, usize);
    /// Rows and vectors of a tile of outer products.
    const OUTER_TILE: (usize, usize);

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// Widens half-precision numbers in order.
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// Widens bfloat16 numbers in order.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// Widens the even (`HALF` 0) or odd (1) ones of `2 * LANES` bfloat16 numbers, two in each lane: one operation.
    unsafe fn widen_bf16<const HALF: usize>(pairs: Self::V) -> Self::V;
    /// The even and the odd elements of `a` then `b`.
    unsafe fn deinterleave(a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// Two vectors of activations as [`Simd::add_bf16_products`] takes them: the even and the odd ones.
    #[inline(always)]
    unsafe fn arrange_for_bf16(low: Self::V, high: Self::V) -> [Self::V; 2] {
        // SAFETY: by the contract.
        unsafe { Self::deinterleave(low, high).into() }
    }
    /// Adds the products of `2 * LANES` bfloat16 weights and those of each row of activations to the row's sum.
    #[inline(always)]
    unsafe fn add_bf16_products<const T: usize>(sums: &mut [Self::V; T], weights: Self::V, x: &[[Self::V; 2]; T]) {
        // SAFETY: by the contract.
        unsafe { add_widened_products::<Self, T>(sums, weights, x) }
    }
    /// `a * b + c`; fused but for the portable path.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where either is not a number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is not a number.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `value`, or zero where `x < bound`.
    unsafe fn zero_below(x: Self::V, bound: Self::V, value: Self::V) -> Self::V;
    /// To the nearest integer, for magnitudes below 2²².
    unsafe fn round(value: Self::V) -> Self::V;
    /// `value * 2^exponent` for integer exponents in -126 ..= 127.
    unsafe fn scale_by_power(value: Self::V, exponent: Self::V) -> Self::V;
    unsafe fn sum(value: Self::V) -> f32;
    /// The largest lane, none of which is not a number.
    unsafe fn largest(value: Self::V) -> f32;
    /// Transposes the square of the first `LANES` vectors.
    unsafe fn transpose(square: &mut [Self::V; MAX_LANES]);
    /// Asks for the cache line at an address, which may be any.
    unsafe fn prefetch(address: *const u8);
    /// As [`Simd::prefetch`], no further than into the second-level cache.
    unsafe fn prefetch_far(address: *const u8);
}

/// [`Simd::add_bf16_products`] by widening the weights.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn add_widened_products<S: Simd, const T: usize>(sums: &mut [S::V; T], weights: S::V, x: &[[S::V; 2]; T]) {
    // SAFETY: by the contract.
    unsafe {
        let (even, odd) = (S::widen_bf16::<0>(weights), S::widen_bf16::<1>(weights));
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = S::fma(even, x[0], *sum);
        }
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = S::fma(odd, x[1], *sum);
        }
    }
}

/// A computation that can be compiled for each instruction set.
pub(super) trait Kernel {
    type Output;

    /// # Safety
    /// This CPU has the instruction set of `S`; and what the kernel itself asks for.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel with an instruction set.
///
/// # Safety
/// This CPU has `isa`; and what the kernel asks for.
pub(super) unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    // SAFETY: by the contract.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => with_avx512_bf16(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => with_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => with_avx2(kernel),
            _ => kernel.run::<portable::Portable>(),
        }
    }
}

/// # Safety
/// As [`dispatch`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: by the contract.
    unsafe { kernel.run::<avx512::Avx512>() }
}

/// # Safety
/// As [`dispatch`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn with_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: by the contract.
    unsafe { kernel.run::<avx512::Avx512Bf16>() }
}

/// # Safety
/// As [`dispatch`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: by the contract.
    unsafe { kernel.run::<avx2::Avx2>() }
}

/// `e^x` with a relative error below 2e-7; zero below -87.3, and at most e^88.3. Not-a-number stays so.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.3;
    /// ln 2 in two parts: multiples of the first are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Of (e^r - 1 - r) / r² on |r| ≤ ln 2 / 2, highest power first. Source: Cephes, expf.
    const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_5e-2, 1.666_666_6e-1, 0.5];
    // SAFETY: by the contract.
    unsafe {
        let clamped = S::min(S::splat(HIGHEST), S::max(S::splat(LOWEST), x));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-LN_2_HIGH), clamped);
        let r = S::fma(n, S::splat(-LN_2_LOW), r);
        let mut polynomial = S::splat(COEFFICIENTS[0]);
        for coefficient in &COEFFICIENTS[1..] {
            polynomial = S::fma(polynomial, r, S::splat(*coefficient));
        }
        let result = S::add(S::fma(polynomial, S::mul(r, r), r), S::splat(1.0));
        S::zero_below(x, S::splat(LOWEST), S::scale_by_power(result, n))
    }
}

/// `1 / (1 + e^-x)`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: by the contract.
    unsafe { S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// `tanh x` with an absolute error below 3e-7.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: by the contract.
    unsafe { S::sub(S::mul(S::splat(2.0), sigmoid::<S>(S::mul(S::splat(2.0), x))), S::splat(1.0)) }
}

/// The first `count` elements, or a whole vector of them; zeros in the lanes past them.
///
/// # Safety
/// `from` is good for `min(count, LANES)` elements; this CPU has `S`.
#[inline(always)]
pub(super) unsafe fn load_up_to<S: Simd, E: Float>(from: *const E, count: usize) -> S::V {
    // SAFETY: by the contract; the buffer holds a whole vector.
    unsafe {
        if count >= S::LANES {
            return E::load::<S>(from);
        }
        let mut buffer = [E::default(); MAX_LANES];
        std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), count);
        E::load::<S>(buffer.as_ptr())
    }
}

/// Stores the first `count` lanes, or all.
///
/// # Safety
/// `to` is good for `min(count, LANES)` elements; this CPU has `S`.
#[inline(always)]
pub(super) unsafe fn store_up_to<S: Simd>(to: *mut f32, value: S::V, count: usize) {
    // SAFETY: by the contract; the buffer holds a whole vector.
    unsafe {
        if count >= S::LANES {
            return S::store(to, value);
        }
        let mut buffer = [0.0; MAX_LANES];
        S::store(buffer.as_mut_ptr(), value);
        std::ptr::copy_nonoverlapping(buffer.as_ptr(), to, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map<'a> {
        x: &'a [f32],
        out: &'a mut [f32],
        function: Function,
    }

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Sigmoid,
        Tanh,
    }

    impl Kernel for Map<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for (x, out) in self.x.chunks(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
                // SAFETY: the chunks have that many elements, at most a vector.
                unsafe {
                    let mut buffer = [0.0; MAX_LANES];
                    buffer[..x.len()].copy_from_slice(x);
                    let x = S::load(buffer.as_ptr());
                    let y = match self.function {
                        Function::Exp => exp::<S>(x),
                        Function::Sigmoid => sigmoid::<S>(x),
                        Function::Tanh => tanh::<S>(x),
                    };
                    S::store(buffer.as_mut_ptr(), y);
                    out.copy_from_slice(&buffer[..out.len()]);
                }
            }
        }
    }

    fn map(isa: Isa, function: Function, x: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len()];
        // SAFETY: only available instruction sets are asked for.
        unsafe { dispatch(isa, Map { x, out: &mut out, function }) };
        out
    }

    #[test]
    fn exp_is_accurate_to_f32_and_ends_well() {
        let x: Vec<f32> = (-87_000..88_000).map(|i| i as f32 / 1000.0 + 0.000_37).collect();
        for isa in Isa::available() {
            for (&x, y) in x.iter().zip(map(isa, Function::Exp, &x)) {
                let exact = f64::from(x).exp();
                assert!((f64::from(y) / exact - 1.0).abs() < 3e-7, "{isa}: exp({x}) = {y}, not {exact}");
            }
            let ends = map(isa, Function::Exp, &[f32::NEG_INFINITY, -1e30, -0.0, 1e30, f32::NAN]);
            assert_eq!(ends[..3], [0.0, 0.0, 1.0], "{isa}");
            assert!(ends[3] > 1e38 && ends[4].is_nan(), "{isa}: {ends:?}");
        }
    }

    #[test]
    fn sigmoid_and_tanh_are_accurate_to_f32() {
        let x: Vec<f32> = (-30_000..30_000).map(|i| i as f32 / 1000.0).collect();
        for isa in Isa::available() {
            let (sigmoid, tanh) = (map(isa, Function::Sigmoid, &x), map(isa, Function::Tanh, &x));
            for (i, &x) in x.iter().enumerate() {
                let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
                assert!((f64::from(sigmoid[i]) / exact - 1.0).abs() < 1e-6, "{isa}: sigmoid({x})");
                assert!((f64::from(tanh[i]) - f64::from(x).tanh()).abs() < 3e-7, "{isa}: tanh({x})");
            }
        }
    }
}
