//! Results over some of the keys, and how they are added up.

use super::super::simd::{Simd, store_up_to};
use super::Sizes;

/// Maxima `[rows]`, sums `[rows]` and weighted values `[rows, padded_dim]` of queries over some keys.
#[derive(Clone, Copy)]
pub(super) struct Partial {
    pub(super) maxima: *mut f32,
    pub(super) sums: *mut f32,
    pub(super) values: *mut f32,
}

impl Partial {
    pub(super) fn at(memory: *mut f32, sizes: &Sizes) -> Self {
        let sums = memory.wrapping_add(sizes.max_rows);
        Self { maxima: memory, sums, values: sums.wrapping_add(sizes.max_rows) }
    }
}

/// # Safety
/// `total` is good for `rows` rows.
pub(super) unsafe fn clear(total: Partial, rows: usize, sizes: &Sizes) {
    // SAFETY: by the contract.
    unsafe {
        std::slice::from_raw_parts_mut(total.maxima, rows).fill(f32::NEG_INFINITY);
        std::slice::from_raw_parts_mut(total.sums, rows).fill(0.0);
        std::slice::from_raw_parts_mut(total.values, rows * sizes.padded_dim).fill(0.0);
    }
}

/// Adds the keys of `chunk` to `total`.
///
/// # Safety
/// Both are good for `rows` rows; this CPU has `S`.
#[inline(always)]
pub(super) unsafe fn merge<S: Simd>(total: Partial, chunk: Partial, rows: usize, sizes: &Sizes) {
    // SAFETY: by the contract.
    unsafe {
        for row in 0..rows {
            let (old, new) = (*total.maxima.add(row), *chunk.maxima.add(row));
            if new == f32::NEG_INFINITY {
                continue;
            }
            let maximum = if old > new { old } else { new };
            let (keep, add) = ((old - maximum).exp(), (new - maximum).exp());
            *total.maxima.add(row) = maximum;
            *total.sums.add(row) = *total.sums.add(row) * keep + *chunk.sums.add(row) * add;
            for d in (0..sizes.padded_dim).step_by(S::LANES) {
                let (to, from) = (total.values.add(row * sizes.padded_dim + d), chunk.values);
                let from = S::load(from.add(row * sizes.padded_dim + d));
                S::store(to, S::fma(from, S::splat(add), S::mul(S::load(to), S::splat(keep))));
            }
        }
    }
}

/// Adds a head's sink to the sum of each of its rows: a score without a value.
///
/// # Safety
/// `total` is good for `rows` rows.
pub(super) unsafe fn add_sinks(total: Partial, rows: usize, sinks: Option<&[f32]>) {
    let Some(sinks) = sinks else { return };
    for row in 0..rows {
        // SAFETY: by the contract. Where the sink is far above the scores the sum overflows, and the result is zero.
        unsafe { *total.sums.add(row) += (sinks[row % sinks.len()] - *total.maxima.add(row)).exp() };
    }
}

/// Writes `total / sum` of each row.
///
/// # Safety
/// `total` and `out` are good for `count` queries; this CPU has `S`.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd>(total: Partial, sizes: &Sizes, count: usize, out: *mut f32, out_stride: usize) {
    let Sizes { head_dim, padded_dim, group, .. } = *sizes;
    // SAFETY: by the contract; nothing is written past a head's end.
    unsafe {
        for row in 0..count * group {
            let factor = S::splat(1.0 / *total.sums.add(row));
            let out = out.add(row / group * out_stride + row % group * head_dim);
            for d in (0..head_dim).step_by(S::LANES) {
                let value = S::mul(S::load(total.values.add(row * padded_dim + d)), factor);
                store_up_to::<S>(out.add(d), value, head_dim - d);
            }
        }
    }
}
