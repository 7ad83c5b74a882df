//! Outer products of small matrices in a thread's memory.

use super::simd::Simd;

/// A row-major f32 matrix in a workspace.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) pointer: *mut f32,
    pub(super) stride: usize,
}

/// `c [rows, cols] = a [rows, depth] · b [depth, cols]`; each element one chain of additions along `depth`.
///
/// # Safety
/// The panels are good for these sizes, `cols` a multiple of `LANES`; this CPU has `S`.
#[inline(always)]
pub(super) unsafe fn outer_products<S: Simd>(a: Panel, b: Panel, c: Panel, rows: usize, depth: usize, cols: usize) {
    let (tile_rows, vectors) = S::OUTER_TILE;
    let mut col = 0;
    while col < cols {
        let whole = col + vectors * S::LANES <= cols;
        for row in (0..rows).step_by(tile_rows) {
            let a = Panel { pointer: a.pointer.wrapping_add(row * a.stride), ..a };
            let b = Panel { pointer: b.pointer.wrapping_add(col), ..b };
            let c = Panel { pointer: c.pointer.wrapping_add(row * c.stride + col), ..c };
            // SAFETY: by the contract.
            unsafe {
                match (tile_rows.min(rows - row), if whole { vectors } else { 1 }) {
                    (6, 4) => outer_tile::<S, 6, 4>(a, b, c, depth),
                    (5, 4) => outer_tile::<S, 5, 4>(a, b, c, depth),
                    (4, 4) => outer_tile::<S, 4, 4>(a, b, c, depth),
                    (3, 4) => outer_tile::<S, 3, 4>(a, b, c, depth),
                    (2, 4) => outer_tile::<S, 2, 4>(a, b, c, depth),
                    (_, 4) => outer_tile::<S, 1, 4>(a, b, c, depth),
                    (6, 2) => outer_tile::<S, 6, 2>(a, b, c, depth),
                    (5, 2) => outer_tile::<S, 5, 2>(a, b, c, depth),
                    (4, 2) => outer_tile::<S, 4, 2>(a, b, c, depth),
                    (3, 2) => outer_tile::<S, 3, 2>(a, b, c, depth),
                    (2, 2) => outer_tile::<S, 2, 2>(a, b, c, depth),
                    (_, 2) => outer_tile::<S, 1, 2>(a, b, c, depth),
                    (6, _) => outer_tile::<S, 6, 1>(a, b, c, depth),
                    (5, _) => outer_tile::<S, 5, 1>(a, b, c, depth),
                    (4, _) => outer_tile::<S, 4, 1>(a, b, c, depth),
                    (3, _) => outer_tile::<S, 3, 1>(a, b, c, depth),
                    (2, _) => outer_tile::<S, 2, 1>(a, b, c, depth),
                    (_, _) => outer_tile::<S, 1, 1>(a, b, c, depth),
                }
            }
        }
        col += if whole { vectors * S::LANES } else { S::LANES };
    }
}

/// # Safety
/// The panels are good for `R` rows, `N` vectors and `depth`; this CPU has `S`.
#[inline(always)]
unsafe fn outer_tile<S: Simd, const R: usize, const N: usize>(a: Panel, b: Panel, c: Panel, depth: usize) {
    // SAFETY: by the contract.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; R];
        for k in 0..depth {
            let b: [S::V; N] = std::array::from_fn(|n| S::load(b.pointer.add(k * b.stride + n * S::LANES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = S::splat(*a.pointer.add(r * a.stride + k));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = S::fma(a, b, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(c.pointer.add(r * c.stride + n * S::LANES), *sum);
            }
        }
    }
}
