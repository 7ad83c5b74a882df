//! `out = x · weightᵀ + bias` for any number of rows.
//!
//! One kernel: a register tile of dot products, some weight rows by some activation rows, along the whole of K. Weights
//! stay as they are stored and are widened in registers; activations are packed once per call, so that a tile reads
//! them as one stream:
//!
//! ```text
//! packed x: [block of K][tile of activation rows][step of 2 vectors along K][row of the tile][2 vectors]
//! ```
//!
//! Zeros follow the end of K. K is cut into blocks whose length depends on K only. In each, an output is one chain of additions and one horizontal
//! sum; blocks are added in order. That holds whatever the tile, so that the bits of an output depend on its own row of
//! `x` and row of the weight only, not on the batch. Few rows stream the weights, each of which is read from memory
//! once. Many rows keep a block of weights in the second-level cache and a block of a tile of activations in the first.

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
/// Most elements of a block along K: a tile of activations and the weights that pass by fit into the first-level cache.
const BLOCK_K: usize = 1536;
/// Weight bytes that stay in the second-level cache while the activation rows of a task pass by.
const BLOCK_BYTES: usize = 384 << 10;
/// Most activation rows of a task, which come from the last-level cache.
const TASK_TOKENS: usize = 1024;
/// Bytes of packed activations that stay in the first-level cache while weights pass by.
const CACHED_BYTES: usize = 32 << 10;
/// Up to this many activation rows a call is bound by reading the weights.
const STREAMED_TOKENS: usize = 16;
/// Weight rows of a task are a multiple of every tile's.
const ROWS_ALIGNMENT: usize = 30;
/// Activation rows of a task are a multiple of every tile's.
const TOKENS_ALIGNMENT: usize = 24;
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
    let blocks = Blocks::new(weight.cols);
    let mut packed = Scratch::take(x.rows * blocks.padded);
    pack::<W>(device, x, blocks, &mut packed)?;
    let packed = &*packed;
    let split = Split::new(x.rows, (weight.rows, weight.cols), size_of::<W>(), device.pool.num_threads());
    let parts = weight.rows.div_ceil(split.rows);
    device.pool.run(parts * x.rows.div_ceil(split.tokens), &|task| {
        let (token, row) = (task / parts * split.tokens, task % parts * split.rows);
        let tokens = token..(token + split.tokens).min(x.rows);
        let range = row..(row + split.rows).min(weight.rows);
        // SAFETY: the device has this instruction set; shapes were checked by the caller of the device, `packed` was
        // made for them, and these rows and columns of `out` are this task's alone.
        unsafe { dispatch(device.isa, Rows { out, packed, blocks, num_rows: x.rows, tokens, weight, bias, range }) };
    })
}

/// How K is cut.
#[derive(Clone, Copy)]
struct Blocks {
    /// Elements of a block: whole steps of any instruction set.
    len: usize,
    count: usize,
    /// K rounded up to whole steps.
    padded: usize,
}

impl Blocks {
    fn new(cols: usize) -> Self {
        let padded = cols.next_multiple_of(2 * MAX_LANES).max(2 * MAX_LANES);
        let len = padded.div_ceil(padded.div_ceil(BLOCK_K)).next_multiple_of(2 * MAX_LANES);
        Self { len, count: padded.div_ceil(len), padded }
    }

    /// Where the packed rows of a tile that begins at row `first` of `rows` are, and how long each is.
    fn tile(&self, block: usize, first: usize, rows: usize) -> (usize, usize) {
        let start = block * self.len;
        let len = self.len.min(self.padded - start);
        (start * rows + first * len, len)
    }
}

/// Activation rows and weight rows of a task.
struct Split {
    tokens: usize,
    rows: usize,
}

impl Split {
    fn new(tokens: usize, (rows, cols): (usize, usize), element_bytes: usize, threads: usize) -> Self {
        let block_bytes = Blocks::new(cols).len * element_bytes;
        let of_size = if is_streamed(tokens) {
            TASK_BYTES / (cols.max(1) * element_bytes)
        } else {
            BLOCK_BYTES / block_bytes / ROWS_ALIGNMENT * ROWS_ALIGNMENT
        };
        let for_all = rows / (4 * threads);
        let rows = of_size.min(for_all).next_multiple_of(ROWS_ALIGNMENT).max(ROWS_ALIGNMENT);
        let tokens = tokens.div_ceil(tokens.div_ceil(TASK_TOKENS).max(1)).next_multiple_of(TOKENS_ALIGNMENT);
        Self { tokens, rows }
    }
}

/// Whether so few rows are bound by reading the weights: those are read in order then, far ahead.
fn is_streamed(tokens: usize) -> bool {
    tokens <= STREAMED_TOKENS
}

fn pack<W: Float>(device: &CpuDevice, x: Matrix<'_, f32>, blocks: Blocks, packed: &mut [f32]) -> Result<()> {
    let to = Matrix::over(packed, x.rows, blocks.padded);
    let pack = |rows: Range<usize>| {
        // SAFETY: the device has this instruction set; `packed` has room for every row, and `rows` are whole tiles,
        // so that nobody else writes to their part.
        unsafe { dispatch(device.isa, Pack::<W> { x, to, blocks, rows, weight: PhantomData }) };
    };
    if x.rows * blocks.padded < PARALLEL_PACK {
        pack(0..x.rows);
        return Ok(());
    }
    device.pool.run(x.rows.div_ceil(TOKENS_ALIGNMENT), &|task| {
        pack(task * TOKENS_ALIGNMENT..((task + 1) * TOKENS_ALIGNMENT).min(x.rows))
    })
}

struct Pack<'a, W> {
    x: Matrix<'a, f32>,
    /// Only as memory: `[rows, padded]`.
    to: Matrix<'a, f32>,
    blocks: Blocks,
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
            for block in 0..self.blocks.count {
                let (start, len) = self.blocks.tile(block, tile, self.x.rows);
                let mut to = self.to.pointer(0).wrapping_add(start + (row - tile) * 2 * S::LANES);
                for k in (0..len).step_by(2 * S::LANES) {
                    // SAFETY: `k` is below the block's length, so that the step lies in `to`; and as of `two_vectors`.
                    unsafe {
                        let (low, high) =
                            two_vectors::<S>(self.x.pointer(row), block * self.blocks.len + k, self.x.cols);
                        let [low, high] = W::arrange::<S>(low, high);
                        S::store(to, low);
                        S::store(to.add(S::LANES), high);
                    }
                    to = to.wrapping_add(rows_of_tile * 2 * S::LANES);
                }
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

/// Some activation rows by a range of weight rows.
struct Rows<'a, W> {
    out: Matrix<'a, f32>,
    packed: &'a [f32],
    blocks: Blocks,
    num_rows: usize,
    /// Begins with a tile.
    tokens: Range<usize>,
    weight: Matrix<'a, W>,
    bias: Option<&'a [f32]>,
    range: Range<usize>,
}

impl<W: Float> Kernel for Rows<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tiles = self.tokens.len().div_ceil(S::TILE.1);
        let blocks = self.blocks.count;
        let is_streamed = is_streamed(self.num_rows);
        let packed_bytes = self.num_rows * self.blocks.padded * size_of::<f32>();
        // SAFETY: by the contract of the kernel's user; rows, tiles and blocks are within bounds.
        unsafe {
            if is_streamed && (packed_bytes <= CACHED_BYTES || self.num_rows == 1) {
                for group in self.groups::<S>() {
                    for tile in 0..tiles {
                        let ahead = self.rows_ahead::<S>(group.end, tile, tiles);
                        self.row_tiles::<S>(group.clone(), tile, 0..blocks, ahead);
                    }
                }
            } else if is_streamed {
                for (block, group) in (0..blocks).flat_map(|block| self.groups::<S>().map(move |group| (block, group)))
                {
                    for tile in 0..tiles {
                        let ahead = self.block_ahead::<S>(group.end, block, tile, tiles);
                        self.row_tiles::<S>(group.clone(), tile, block..block + 1, ahead);
                    }
                }
            } else {
                for (block, tile) in (0..blocks).flat_map(|block| (0..tiles).map(move |tile| (block, tile))) {
                    let ahead = self.activations_ahead::<S>(block, tile);
                    self.row_tiles::<S>(self.range.clone(), tile, block..block + 1, ahead);
                }
            }
        }
    }
}

/// What a tile asks the memory for while it computes: some lines at each step.
#[derive(Clone, Copy)]
struct Ahead {
    address: *const u8,
    lines: usize,
    /// Bytes between the lines of a step.
    line_stride: usize,
    /// Bytes from a step's lines to those of the next.
    step_stride: usize,
    /// No further than into the second-level cache.
    far: bool,
}

impl<W: Float> Rows<'_, W> {
    /// Weight rows that meet all activations before the next come.
    #[inline(always)]
    fn groups<S: Simd>(&self) -> impl Iterator<Item = Range<usize>> + use<S, W> {
        let Range { start, end } = self.range.clone();
        (start..end).step_by(S::TILE.0).map(move |row| row..(row + S::TILE.0).min(end))
    }

    /// A tile's share of the whole rows from `next` on, in the order of their addresses.
    #[inline(always)]
    fn rows_ahead<S: Simd>(&self, next: usize, tile: usize, tiles: usize) -> Ahead {
        let bytes_per_step = S::TILE.0 * 2 * S::LANES * size_of::<W>();
        let lines = bytes_per_step.div_ceil(LINE_BYTES * tiles);
        let bytes_per_tile = self.weight.cols / (2 * S::LANES) * lines * LINE_BYTES;
        let address = self.weight.pointer(next).cast::<u8>().wrapping_add(tile * bytes_per_tile);
        Ahead { address, lines, line_stride: LINE_BYTES, step_stride: lines * LINE_BYTES, far: false }
    }

    /// A tile's share of a block of the rows from `next` on.
    #[inline(always)]
    fn block_ahead<S: Simd>(&self, next: usize, block: usize, tile: usize, tiles: usize) -> Ahead {
        let at = |tile: usize| tile * S::TILE.0 / tiles;
        let start = self.weight.pointer(next + at(tile)).wrapping_add(block * self.blocks.len);
        Ahead {
            address: start.cast::<u8>(),
            lines: at(tile + 1) - at(tile),
            line_stride: self.weight.stride * size_of::<W>(),
            step_stride: 2 * S::LANES * size_of::<W>(),
            // With more tiles the weights come back from the first-level cache.
            far: tiles == 1,
        }
    }

    /// The activations of the tiles behind this one.
    #[inline(always)]
    fn activations_ahead<S: Simd>(&self, block: usize, tile: usize) -> Ahead {
        let first = self.tokens.start + (tile + 1) * S::TILE.1;
        let (start, _) = self.blocks.tile(block, first.min(self.num_rows), self.num_rows);
        let address = self.packed.as_ptr().wrapping_add(start).cast();
        Ahead { address, lines: 1, line_stride: LINE_BYTES, step_stride: LINE_BYTES, far: true }
    }

    /// One activation tile by some weight rows, over some blocks of K.
    ///
    /// # Safety
    /// As of the kernel; the rows lie in the weight, `tile` in the packed activations and `blocks` in K.
    #[inline(always)]
    unsafe fn row_tiles<S: Simd>(&self, rows: Range<usize>, tile: usize, blocks: Range<usize>, ahead: Ahead) {
        let ahead = &mut { ahead };
        let first = self.tokens.start + tile * S::TILE.1;
        let rows_of_tile = S::TILE.1.min(self.num_rows - first);
        let blocks = &blocks;
        let mut n = rows.start;
        // SAFETY: by the contract.
        unsafe {
            while n + S::TILE.0 <= rows.end {
                match (S::TILE.0, rows_of_tile) {
                    (5, 4) => self.tile::<S, 5, 4>(n, first, blocks, ahead),
                    (5, 3) => self.tile::<S, 5, 3>(n, first, blocks, ahead),
                    (5, 2) => self.tile::<S, 5, 2>(n, first, blocks, ahead),
                    (5, _) => self.tile::<S, 5, 1>(n, first, blocks, ahead),
                    (3, 3) => self.tile::<S, 3, 3>(n, first, blocks, ahead),
                    (3, 2) => self.tile::<S, 3, 2>(n, first, blocks, ahead),
                    (3, _) => self.tile::<S, 3, 1>(n, first, blocks, ahead),
                    (_, 2) => self.tile::<S, 2, 2>(n, first, blocks, ahead),
                    (_, _) => self.tile::<S, 2, 1>(n, first, blocks, ahead),
                }
                n += S::TILE.0;
            }
            for n in n..rows.end {
                match rows_of_tile {
                    4 => self.tile::<S, 1, 4>(n, first, blocks, ahead),
                    3 => self.tile::<S, 1, 3>(n, first, blocks, ahead),
                    2 => self.tile::<S, 1, 2>(n, first, blocks, ahead),
                    _ => self.tile::<S, 1, 1>(n, first, blocks, ahead),
                }
            }
        }
    }

    /// `R` weight rows from `n` on by `T` activation rows from `first` on, over some blocks of K.
    ///
    /// # Safety
    /// As of the kernel; the rows and blocks exist, and `first` begins a tile of `T` rows.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        &self,
        n: usize,
        first: usize,
        blocks: &Range<usize>,
        ahead: &mut Ahead,
    ) {
        for block in blocks.clone() {
            let is_last = block + 1 == self.blocks.count;
            // SAFETY: by the contract; `out` has these rows and columns, and was written by the block before.
            unsafe {
                for t in 0..T {
                    S::prefetch(self.out.pointer(first + t).wrapping_add(n).cast());
                }
                let sums = self.dot_products::<S, R, T>(n, first, block, ahead);
                // Through memory: loops over registers are not unrolled when their bodies are large.
                let mut lanes = [[[0.0; MAX_LANES]; T]; R];
                for (lanes, sums) in lanes.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                    S::store(lanes.as_mut_ptr(), *sums);
                }
                for (r, lanes) in lanes.iter().enumerate() {
                    let bias = self.bias.filter(|_| is_last).map_or(0.0, |bias| bias[n + r]);
                    for (t, lanes) in lanes.iter().enumerate() {
                        let out = self.out.pointer(first + t).add(n + r);
                        let before = if block == 0 { 0.0 } else { *out };
                        *out = before + S::sum(S::load(lanes.as_ptr())) + bias;
                    }
                }
            }
        }
    }

    /// The sums of a tile over a block of K, not yet added across lanes.
    ///
    /// # Safety
    /// As of [`Self::tile`].
    #[inline(always)]
    unsafe fn dot_products<S: Simd, const R: usize, const T: usize>(
        &self,
        n: usize,
        first: usize,
        block: usize,
        ahead: &mut Ahead,
    ) -> [[S::V; T]; R] {
        let step_elements = 2 * S::LANES;
        let start = block * self.blocks.len;
        let len = self.blocks.len.min(self.weight.cols - start);
        let (steps, rest) = (len / step_elements, len % step_elements);
        let (packed, _) = self.blocks.tile(block, first, self.num_rows);
        // SAFETY: weight rows have `steps` whole steps from `start` on and a rest below one, which is copied to a whole
        // one; the packed tile has a step more than that where there is a rest.
        unsafe {
            let mut sums = [[S::splat(0.0); T]; R];
            let mut weights: [*const W; R] =
                std::array::from_fn(|r| self.weight.pointer(n + r).cast_const().add(start));
            let mut x = self.packed.as_ptr().add(packed);
            for _ in 0..steps {
                for line in 0..ahead.lines {
                    let address = ahead.address.wrapping_add(line * ahead.line_stride);
                    if ahead.far { S::prefetch_far(address) } else { S::prefetch(address) }
                }
                ahead.address = ahead.address.wrapping_add(ahead.step_stride);
                accumulate::<S, W, R, T>(&mut sums, weights, x);
                weights = weights.map(|row| row.add(step_elements));
                x = x.add(T * step_elements);
            }
            if rest > 0 {
                let rest = self.rest::<R>(n, start + steps * step_elements);
                let weights = std::array::from_fn(|r| rest[r].as_ptr());
                accumulate::<S, W, R, T>(&mut sums, weights, x);
            }
            sums
        }
    }

    /// Columns from `start` on of `R` weight rows, less than a step, with zeros after them.
    fn rest<const R: usize>(&self, n: usize, start: usize) -> [[W; 2 * MAX_LANES]; R] {
        let mut rest = [[W::default(); 2 * MAX_LANES]; R];
        for (r, rest) in rest.iter_mut().enumerate() {
            // SAFETY: the row exists; parameters are not written while a model runs.
            let row = unsafe { self.weight.row(n + r) };
            rest[..row.len() - start].copy_from_slice(&row[start..]);
        }
        rest
    }
}

/// A step: `2 * R * T` fused multiply-adds.
///
/// # Safety
/// Weights are good for a step, `x` for a step of `T` rows; this CPU has `S`.
#[inline(always)]
unsafe fn accumulate<S: Simd, W: Float, const R: usize, const T: usize>(
    sums: &mut [[S::V; T]; R],
    weights: [*const W; R],
    x: *const f32,
) {
    // SAFETY: by the contract.
    unsafe {
        let x: [[S::V; 2]; T] =
            std::array::from_fn(|t| [S::load(x.add(2 * t * S::LANES)), S::load(x.add((2 * t + 1) * S::LANES))]);
        for (sums, weights) in sums.iter_mut().zip(weights) {
            W::add_products::<S, T>(sums, weights, &x);
        }
    }
}
