//! `out = x · weightᵀ + bias` for any number of rows.
//!
//! One kernel: a register tile of dot products, some weight rows by some activation rows, along the whole of K. Weights
//! stay as they are stored and are widened in registers; activations are packed once per call, so that a tile reads
//! them as one stream:
//!
//! ```text
//! packed x: [tile of activation rows][step of 2 vectors along K][row of the tile][2 vectors], zeros past K
//! ```
//!
//! Each output is one chain of additions along K and one horizontal sum, whatever the tile: its bits depend on its own
//! row of `x` and row of the weight only, not on the batch.

use super::CpuDevice;
use super::scratch::Scratch;
use super::simd::{Float, Kernel, LINE_BYTES, MAX_LANES, Simd, dispatch};
use super::view::{Matrix, with_element};
use crate::device::Tensor;
use crate::error::Result;
use std::marker::PhantomData;
use std::ops::Range;

/// Weight bytes of a task: enough that claiming it costs nothing, few enough that threads end together.
const TASK_BYTES: usize = 256 << 10;
/// Weight bytes that stay in the second-level cache while all activation rows pass by.
const BLOCK_BYTES: usize = 384 << 10;
/// Up to this many activation tiles a call is bound by reading the weights: it reads them in order, far ahead.
const STREAMED_TILES: usize = 4;
/// Weight rows of a task are a multiple of every tile's.
const ROWS_ALIGNMENT: usize = 12;
/// Activations from this number of elements on are packed by all threads.
const PARALLEL_PACK: usize = 1 << 16;

pub(super) fn linear(
    device: &CpuDevice,
    out: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<()> {
    let bias = bias.map(widened).transpose()?;
    with_element!(weight.dtype(), "linear: weight", W => {
        let weight = Matrix::<W>::of(weight, "linear: weight")?;
        multiply(device, out, x, weight, bias.as_deref())
    })
}

/// A vector of parameters as f32.
pub(super) fn widened(parameters: &Tensor) -> Result<Scratch> {
    with_element!(parameters.dtype(), "a parameter", E => {
        let matrix = Matrix::<E>::of(parameters, "a parameter")?;
        let mut values = Scratch::take(matrix.cols);
        // SAFETY: parameters are not written while a model runs.
        let row = unsafe { matrix.row(0) };
        values.iter_mut().zip(row).for_each(|(to, from)| *to = from.to_f32());
        Ok(values)
    })
}

fn multiply<W: Float>(
    device: &CpuDevice,
    out: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    weight: Matrix<'_, W>,
    bias: Option<&[f32]>,
) -> Result<()> {
    let padded = weight.cols.next_multiple_of(2 * MAX_LANES);
    let mut packed = Scratch::take(x.rows * padded);
    pack::<W>(device, x, padded, &mut packed)?;
    let packed = &*packed;
    let row_bytes = weight.cols * size_of::<W>();
    let rows_per_task = rows_per_task(weight.rows, row_bytes, device.pool.num_threads());
    device.pool.run(weight.rows.div_ceil(rows_per_task), &|task| {
        let start = task * rows_per_task;
        let range = start..(start + rows_per_task).min(weight.rows);
        // SAFETY: the device has this instruction set; shapes were checked by the caller of the device, `packed` was
        // made for them, and columns `range` of `out` are this task's alone.
        unsafe { dispatch(device.isa, Rows { out, packed, padded, num_rows: x.rows, weight, bias, range }) };
    })
}

fn rows_per_task(rows: usize, row_bytes: usize, threads: usize) -> usize {
    let of_size = TASK_BYTES / row_bytes.max(1);
    let for_all = rows / (4 * threads);
    of_size.min(for_all).next_multiple_of(ROWS_ALIGNMENT).max(ROWS_ALIGNMENT)
}

fn pack<W: Float>(device: &CpuDevice, x: Matrix<'_, f32>, padded: usize, packed: &mut [f32]) -> Result<()> {
    let to = Matrix::over(packed, x.rows, padded);
    let pack = |rows: Range<usize>| {
        // SAFETY: the device has this instruction set; `packed` has room for every row, and `rows` are whole tiles,
        // so that nobody else writes to their part.
        unsafe { dispatch(device.isa, Pack::<W> { x, to, rows, weight: PhantomData }) };
    };
    if x.rows * padded < PARALLEL_PACK {
        pack(0..x.rows);
        return Ok(());
    }
    const ROWS: usize = 2 * ROWS_ALIGNMENT;
    device.pool.run(x.rows.div_ceil(ROWS), &|task| pack(task * ROWS..((task + 1) * ROWS).min(x.rows)))
}

struct Pack<'a, W> {
    x: Matrix<'a, f32>,
    /// Only as memory: `[rows, padded]`.
    to: Matrix<'a, f32>,
    /// Begins with a tile.
    rows: Range<usize>,
    weight: PhantomData<W>,
}

impl<W: Float> Kernel for Pack<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tile_rows = S::TILE.1;
        for row in self.rows.clone() {
            let tile = row - row % tile_rows;
            let rows_of_tile = tile_rows.min(self.x.rows - tile);
            let (x, to) = (self.x.pointer(row), self.to.pointer(tile));
            let mut k = 0;
            while k < self.to.cols {
                let step = k / (2 * S::LANES);
                let to = to.wrapping_add((step * rows_of_tile + row - tile) * 2 * S::LANES);
                // SAFETY: `k` is below the padded length, so that the step lies in `to`; and as of `two_vectors`.
                unsafe {
                    let (mut low, mut high) = two_vectors::<S>(x, k, self.x.cols);
                    if W::INTERLEAVED {
                        (low, high) = S::deinterleave(low, high);
                    }
                    S::store(to, low);
                    S::store(to.add(S::LANES), high);
                }
                k += 2 * S::LANES;
            }
        }
    }
}

/// Elements `k..k + 2 * LANES` of a row of `cols`; zeros past its end.
///
/// # Safety
/// `row` is good for `cols` elements; this CPU has `S`.
#[inline(always)]
unsafe fn two_vectors<S: Simd>(row: *const f32, k: usize, cols: usize) -> (S::V, S::V) {
    // SAFETY: by the contract; the copy stops at the row's end.
    unsafe {
        if k + 2 * S::LANES <= cols {
            return (S::load(row.add(k)), S::load(row.add(k + S::LANES)));
        }
        let mut buffer = [0.0; 2 * MAX_LANES];
        if k < cols {
            std::ptr::copy_nonoverlapping(row.add(k), buffer.as_mut_ptr(), cols - k);
        }
        (S::load(buffer.as_ptr()), S::load(buffer.as_ptr().add(S::LANES)))
    }
}

/// All activation rows by a range of weight rows.
struct Rows<'a, W> {
    out: Matrix<'a, f32>,
    packed: &'a [f32],
    padded: usize,
    num_rows: usize,
    weight: Matrix<'a, W>,
    bias: Option<&'a [f32]>,
    range: Range<usize>,
}

impl<W: Float> Kernel for Rows<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tiles = self.num_rows.div_ceil(S::TILE.1);
        let streamed = tiles <= STREAMED_TILES;
        let row_bytes = self.weight.cols * size_of::<W>();
        let rows_in_cache = (BLOCK_BYTES / row_bytes.max(1) / S::TILE.0 * S::TILE.0).max(S::TILE.0);
        let block_rows = if streamed { S::TILE.0 } else { rows_in_cache };
        let mut start = self.range.start;
        while start < self.range.end {
            let end = (start + block_rows).min(self.range.end);
            for tile in 0..tiles {
                let ahead = if streamed { self.ahead::<S>(end, tile, tiles) } else { Ahead::NOTHING };
                // SAFETY: by the contract of `run`; the block and the tile are within bounds.
                unsafe { self.block::<S>(start..end, tile, ahead) };
            }
            start = end;
        }
    }
}

/// What a tile asks the memory for while it computes: some lines at each step.
#[derive(Clone, Copy)]
struct Ahead {
    address: *const u8,
    lines: usize,
}

impl Ahead {
    const NOTHING: Self = Self { address: std::ptr::null(), lines: 0 };
}

impl<W: Float> Rows<'_, W> {
    /// This tile's share of the next block of weights, which begins at row `next`.
    #[inline(always)]
    fn ahead<S: Simd>(&self, next: usize, tile: usize, tiles: usize) -> Ahead {
        let bytes_per_step = S::TILE.0 * 2 * S::LANES * size_of::<W>();
        let lines = bytes_per_step.div_ceil(LINE_BYTES * tiles);
        let bytes_per_tile = self.weight.cols / (2 * S::LANES) * lines * LINE_BYTES;
        let address = self.weight.pointer(next).cast::<u8>().wrapping_add(tile * bytes_per_tile);
        Ahead { address, lines }
    }

    /// One activation tile by a block of weight rows.
    ///
    /// # Safety
    /// As of the kernel; `block` lies in the weight and `tile` in the packed activations.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, block: Range<usize>, tile: usize, ahead: Ahead) {
        let first = tile * S::TILE.1;
        let rows_of_tile = S::TILE.1.min(self.num_rows - first);
        let mut n = block.start;
        // SAFETY: by the contract.
        unsafe {
            while n + S::TILE.0 <= block.end {
                match (S::TILE.0, rows_of_tile) {
                    (6, 4) => self.tile::<S, 6, 4>(n, first, ahead),
                    (6, 3) => self.tile::<S, 6, 3>(n, first, ahead),
                    (6, 2) => self.tile::<S, 6, 2>(n, first, ahead),
                    (6, _) => self.tile::<S, 6, 1>(n, first, ahead),
                    (3, 3) => self.tile::<S, 3, 3>(n, first, ahead),
                    (3, 2) => self.tile::<S, 3, 2>(n, first, ahead),
                    (3, _) => self.tile::<S, 3, 1>(n, first, ahead),
                    (_, 2) => self.tile::<S, 2, 2>(n, first, ahead),
                    (_, _) => self.tile::<S, 2, 1>(n, first, ahead),
                }
                n += S::TILE.0;
            }
            for n in n..block.end {
                match rows_of_tile {
                    4 => self.tile::<S, 1, 4>(n, first, ahead),
                    3 => self.tile::<S, 1, 3>(n, first, ahead),
                    2 => self.tile::<S, 1, 2>(n, first, ahead),
                    _ => self.tile::<S, 1, 1>(n, first, ahead),
                }
            }
        }
    }

    /// `R` weight rows from `n` on by `T` activation rows from `first` on.
    ///
    /// # Safety
    /// As of the kernel; the rows exist, and `first` begins a tile of `T` rows.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(&self, n: usize, first: usize, ahead: Ahead) {
        let step_elements = 2 * S::LANES;
        let steps = self.weight.cols / step_elements;
        // SAFETY: weight rows have `steps` whole steps and a rest below one, which is copied to a whole one; the packed
        // tile has a step more than that where there is a rest. `out` has these rows and columns.
        unsafe {
            let mut sums = [[S::splat(0.0); T]; R];
            let weights: [*const W; R] = std::array::from_fn(|r| self.weight.pointer(n + r).cast_const());
            let mut x = self.packed.as_ptr().add(first * self.padded);
            let mut address = ahead.address;
            for step in 0..steps {
                for _ in 0..ahead.lines {
                    S::prefetch(address);
                    address = address.wrapping_add(LINE_BYTES);
                }
                let weights = weights.map(|row| row.add(step * step_elements));
                accumulate::<S, W, R, T, 0>(&mut sums, weights, x);
                accumulate::<S, W, R, T, 1>(&mut sums, weights, x);
                x = x.add(T * step_elements);
            }
            let rest = self.weight.cols % step_elements;
            if rest > 0 {
                let mut buffers = [[W::default(); 2 * MAX_LANES]; R];
                for (buffer, row) in buffers.iter_mut().zip(weights) {
                    std::ptr::copy_nonoverlapping(row.add(steps * step_elements), buffer.as_mut_ptr(), rest);
                }
                let weights = std::array::from_fn(|r| buffers[r].as_ptr());
                accumulate::<S, W, R, T, 0>(&mut sums, weights, x);
                accumulate::<S, W, R, T, 1>(&mut sums, weights, x);
            }
            for t in 0..T {
                let out = self.out.pointer(first + t);
                for (r, sums) in sums.iter().enumerate() {
                    let bias = self.bias.map_or(0.0, |bias| bias[n + r]);
                    *out.add(n + r) = S::sum(sums[t]) + bias;
                }
            }
        }
    }
}

/// Half a step: `R * T` fused multiply-adds.
///
/// # Safety
/// Weights are good for a step, `x` for a step of `T` rows; this CPU has `S`.
#[inline(always)]
unsafe fn accumulate<S: Simd, W: Float, const R: usize, const T: usize, const HALF: usize>(
    sums: &mut [[S::V; T]; R],
    weights: [*const W; R],
    x: *const f32,
) {
    // SAFETY: by the contract.
    unsafe {
        let x: [S::V; T] = std::array::from_fn(|t| S::load(x.add((2 * t + HALF) * S::LANES)));
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weights = W::load_half::<S, HALF>(weights);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = S::fma(weights, x, *sum);
            }
        }
    }
}
