//! The arithmetic of attention: one tile of queries over chunks of keys and values.
//!
//! ```text
//! chunk of keys   -> f32, transposed [D, chunk]      scores = q · keys       [rows, chunk]   outer products over D
//! chunk of values -> f32             [chunk, D]      p = exp(scores - max)
//!                                                    o = p · values          [rows, D]       outer products over keys
//! merge:  m' = max(m, m_c)   l' = l·e^(m-m') + l_c·e^(m_c-m')   o' = o·e^(m-m') + o_c·e^(m_c-m')
//! ```
//!
//! Source of the merge: Milakov and Gimelshein, "Online normalizer calculation for softmax", algorithm 3.

mod partial;

use partial::{Partial, add_sinks, clear, finish, merge};

use super::panel::{Panel, outer_products};
use super::scratch::Scratch;
use super::simd::{Float, Kernel, LINE_BYTES, MAX_LANES, Simd, exp, load_up_to, tanh};
use super::view::{Cache, Side};
use std::ops::Range;

/// Keys of a chunk. Chunks begin at multiples of it, so that they are the same for every query.
pub(super) const CHUNK_TOKENS: usize = 64;

/// The longest head.
pub(super) const MAX_HEAD_DIM: usize = 1024;

/// Shapes of a tile in memory.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors of any instruction set.
    padded_dim: usize,
    /// Query heads of a kv head.
    group: usize,
    /// Rows of the largest tile.
    max_rows: usize,
}

impl Sizes {
    pub(super) fn new(head_dim: usize, group: usize, max_queries: usize) -> Self {
        let padded_dim = head_dim.next_multiple_of(MAX_LANES);
        Self { head_dim, padded_dim, group, max_rows: group * max_queries }
    }

    /// f32 of one chunk's partial result: maxima, sums, weighted values.
    pub(super) fn partial_len(&self) -> usize {
        self.max_rows * (self.padded_dim + 2)
    }
}

/// How far back a query sees.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    pub(super) window: Option<usize>,
    pub(super) chunk: Option<usize>,
    /// Seen beside the window.
    pub(super) sink_tokens: usize,
}

impl Reach {
    /// Whether the queries from a position on see nothing of a chunk of keys.
    pub(super) fn skips(self, chunk: usize, position: usize) -> bool {
        chunk * CHUNK_TOKENS >= self.sink_tokens && (chunk + 1) * CHUNK_TOKENS <= self.first_seen(position)
    }

    /// The first chunk of keys that a query at a position sees something of.
    pub(super) fn first_chunk(self, position: usize) -> usize {
        if self.sink_tokens > 0 { 0 } else { self.first_seen(position) / CHUNK_TOKENS }
    }

    /// The first key that a query at a position sees.
    pub(super) fn first_seen(self, position: usize) -> usize {
        let in_window = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        in_window.max(self.chunk.map_or(0, |chunk| position / chunk * chunk))
    }

    /// Keys between the sinks and the window that a query at a position does not see.
    pub(super) fn tokens_before_window(self, position: usize) -> usize {
        self.first_seen(position).saturating_sub(self.sink_tokens)
    }
}

/// The queries of a tile: `count` tokens at consecutive positions, `group` adjacent heads of each.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    pub(super) q: *const f32,
    pub(super) out: *mut f32,
    pub(super) q_stride: usize,
    /// What takes the place of `q` for sinks before the window, and its stride.
    pub(super) sink_q: Option<(*const f32, usize)>,
    pub(super) out_stride: usize,
    pub(super) count: usize,
    pub(super) position: usize,
}

/// A tile over a range of chunks: to `out`, or each chunk's result to `partials`.
pub(super) struct Attend<'a, E> {
    pub(super) queries: Queries,
    pub(super) sizes: Sizes,
    pub(super) cache: &'a Cache<'a, E>,
    pub(super) kv_head: usize,
    pub(super) table: &'a [i32],
    pub(super) scale: f32,
    pub(super) reach: Reach,
    pub(super) softcap: Option<f32>,
    /// Of the group's heads, as are the sinks.
    pub(super) slopes: Option<&'a [f32]>,
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) chunks: Range<usize>,
    pub(super) partials: Option<*mut f32>,
}

/// Merges the chunks' results of a tile.
pub(super) struct Merge<'a> {
    pub(super) partials: *const f32,
    pub(super) num_chunks: usize,
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) sizes: Sizes,
    pub(super) count: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
}

/// A thread's memory for one tile.
struct Workspace {
    /// Keys `[padded_dim, CHUNK_TOKENS]`, then values `[CHUNK_TOKENS, padded_dim]`: the first-level cache has room for
    /// one of them.
    panel: *mut f32,
    /// `[rows, padded_dim]`, scaled.
    queries: *mut f32,
    /// `[rows, CHUNK_TOKENS]`.
    scores: *mut f32,
    /// As the queries and the scores, for sinks.
    sink_queries: *mut f32,
    sink_scores: *mut f32,
    chunk: Partial,
    total: Partial,
    _memory: Scratch,
}

impl Workspace {
    fn take(sizes: &Sizes, has_sink_queries: bool) -> Self {
        let sink_rows = if has_sink_queries { sizes.max_rows } else { 0 };
        let lens = [
            sizes.padded_dim * CHUNK_TOKENS,
            sizes.max_rows * sizes.padded_dim,
            sizes.max_rows * CHUNK_TOKENS,
            sink_rows * sizes.padded_dim,
            sink_rows * CHUNK_TOKENS,
            sizes.partial_len(),
            sizes.partial_len(),
        ];
        let mut memory = Scratch::take(lens.iter().map(|len| len.next_multiple_of(MAX_LANES)).sum());
        let mut next = memory.as_mut_ptr();
        let parts = lens.map(|len| {
            let part = next;
            next = next.wrapping_add(len.next_multiple_of(MAX_LANES));
            part
        });
        let [panel, queries, scores, sink_queries, sink_scores, chunk, total] = parts;
        let (chunk, total) = (Partial::at(chunk, sizes), Partial::at(total, sizes));
        Self { panel, queries, scores, sink_queries, sink_scores, chunk, total, _memory: memory }
    }
}

impl<E: Float> Kernel for Attend<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (sizes, rows) = (&self.sizes, self.queries.count * self.sizes.group);
        let workspace = Workspace::take(sizes, self.queries.sink_q.is_some());
        // SAFETY: by the contract of the kernel's user: rows, blocks and chunks exist; the workspace has room for the
        // largest tile.
        unsafe {
            self.load_queries::<S>((self.queries.q, self.queries.q_stride), workspace.queries);
            if let Some(sink_q) = self.queries.sink_q {
                self.load_queries::<S>(sink_q, workspace.sink_queries);
            }
            clear(workspace.total, rows, sizes);
            for (index, chunk) in self.chunks.clone().enumerate() {
                let partial =
                    self.partials.map(|memory| Partial::at(memory.wrapping_add(index * sizes.partial_len()), sizes));
                if self.reach.skips(chunk, self.queries.position) {
                    if let Some(partial) = partial {
                        std::slice::from_raw_parts_mut(partial.maxima, rows).fill(f32::NEG_INFINITY);
                    }
                    continue;
                }
                self.chunk::<S>(chunk, &workspace, partial.unwrap_or(workspace.chunk));
                if partial.is_none() {
                    merge::<S>(workspace.total, workspace.chunk, rows, sizes);
                }
            }
            if self.partials.is_none() {
                add_sinks(workspace.total, rows, self.sinks);
                finish::<S>(workspace.total, sizes, self.queries.count, self.queries.out, self.queries.out_stride);
            }
        }
    }
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (sizes, rows) = (&self.sizes, self.count * self.sizes.group);
        let workspace = Workspace::take(sizes, false);
        // SAFETY: by the contract of the kernel's user: `num_chunks` results are at `partials`.
        unsafe {
            clear(workspace.total, rows, sizes);
            for chunk in 0..self.num_chunks {
                let chunk = self.partials.wrapping_add(chunk * sizes.partial_len()).cast_mut();
                merge::<S>(workspace.total, Partial::at(chunk, sizes), rows, sizes);
            }
            add_sinks(workspace.total, rows, self.sinks);
            finish::<S>(workspace.total, sizes, self.count, self.out, self.out_stride);
        }
    }
}

impl<E: Float> Attend<'_, E> {
    /// # Safety
    /// As of the kernel.
    #[inline(always)]
    unsafe fn load_queries<S: Simd>(&self, (q, stride): (*const f32, usize), to: *mut f32) {
        let Sizes { head_dim, padded_dim, group, .. } = self.sizes;
        // SAFETY: by the contract: each head is `head_dim` long, each row of `to` is padded to whole vectors.
        unsafe {
            for row in 0..self.queries.count * group {
                let from = q.add(row / group * stride + row % group * head_dim);
                for d in (0..head_dim).step_by(S::LANES) {
                    let q = load_up_to::<S, f32>(from.add(d), head_dim - d);
                    S::store(to.add(row * padded_dim + d), S::mul(q, S::splat(self.scale)));
                }
            }
        }
    }

    /// All queries over one chunk of keys.
    ///
    /// # Safety
    /// As of the kernel.
    #[inline(always)]
    unsafe fn chunk<S: Simd>(&self, chunk: usize, workspace: &Workspace, to: Partial) {
        let Sizes { head_dim, padded_dim, group, .. } = self.sizes;
        let rows = self.queries.count * group;
        let start = chunk * CHUNK_TOKENS;
        let sinks = self.reach.sink_tokens.saturating_sub(start).min(CHUNK_TOKENS);
        let first_seen = if sinks > 0 { start } else { self.reach.first_seen(self.queries.position) };
        let seen = first_seen.saturating_sub(start).min(CHUNK_TOKENS)
            ..(self.queries.position + self.queries.count - start).min(CHUNK_TOKENS);
        // SAFETY: by the contract; `seen` are keys of the context.
        unsafe {
            let addresses = Addresses::new(self, start, seen.clone());
            let next = Addresses::new(self, start + CHUNK_TOKENS, 0..self.tokens_behind(start + CHUNK_TOKENS));
            self.load_keys::<S>(&addresses, &next, workspace.panel);
            let keys = Panel { pointer: workspace.panel, stride: CHUNK_TOKENS };
            let queries = Panel { pointer: workspace.queries, stride: padded_dim };
            let scores = Panel { pointer: workspace.scores, stride: CHUNK_TOKENS };
            outer_products::<S>(queries, keys, scores, rows, head_dim, CHUNK_TOKENS);
            let has_sink_scores = sinks > 0 && self.queries.sink_q.is_some();
            if has_sink_scores {
                let queries = Panel { pointer: workspace.sink_queries, stride: padded_dim };
                let scores = Panel { pointer: workspace.sink_scores, stride: CHUNK_TOKENS };
                outer_products::<S>(queries, keys, scores, rows, head_dim, sinks.next_multiple_of(S::LANES));
            }
            for row in 0..rows {
                let position = self.queries.position + row / group;
                let from = self.reach.first_seen(position).saturating_sub(start).min(CHUNK_TOKENS);
                let until = (position + 1).saturating_sub(start).min(CHUNK_TOKENS);
                let scores = workspace.scores.add(row * CHUNK_TOKENS);
                let sinks = sinks.min(from);
                if has_sink_scores {
                    std::ptr::copy_nonoverlapping(workspace.sink_scores.add(row * CHUNK_TOKENS), scores, sinks);
                }
                if let Some(slopes) = self.slopes {
                    let behind = position as f32 - start as f32;
                    let left_out = self.reach.tokens_before_window(position) as f32;
                    for key in 0..CHUNK_TOKENS {
                        let behind = if key < sinks { behind - left_out } else { behind };
                        *scores.add(key) += slopes[row % group] * (key as f32 - behind);
                    }
                }
                let (maximum, sum) = self.softmax::<S>(scores, sinks..from, until);
                *to.maxima.add(row) = maximum;
                *to.sums.add(row) = sum;
            }
            let scores = Panel { pointer: workspace.scores.add(seen.start), stride: CHUNK_TOKENS };
            self.load_values::<S>(&addresses, &next, workspace.panel);
            let values = Panel { pointer: workspace.panel.add(seen.start * padded_dim), stride: padded_dim };
            let sums = Panel { pointer: to.values, stride: padded_dim };
            outer_products::<S>(scores, values, sums, rows, seen.len(), padded_dim);
        }
    }

    /// Turns a row's scores up to `until` into weights, but for those `hidden`. Their maximum and sum; minus infinity and
    /// zero where it sees no key here.
    ///
    /// # Safety
    /// `scores` is good for a chunk; this CPU has `S`.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&self, scores: *mut f32, hidden: Range<usize>, until: usize) -> (f32, f32) {
        // SAFETY: by the contract.
        unsafe {
            if let Some(cap) = self.softcap {
                for i in (0..CHUNK_TOKENS).step_by(S::LANES) {
                    let capped = tanh::<S>(S::mul(S::load(scores.add(i)), S::splat(1.0 / cap)));
                    S::store(scores.add(i), S::mul(capped, S::splat(cap)));
                }
            }
            let row = std::slice::from_raw_parts_mut(scores, CHUNK_TOKENS);
            row[until.max(hidden.end)..].fill(f32::NEG_INFINITY);
            row[hidden].fill(f32::NEG_INFINITY);
            let mut maxima = S::splat(f32::NEG_INFINITY);
            for i in (0..CHUNK_TOKENS).step_by(S::LANES) {
                maxima = S::max(S::load(scores.add(i)), maxima);
            }
            let maximum = S::largest(maxima);
            // Weights are e^(score - shift): with nothing seen the shift must not be infinite too.
            let shift = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
            let mut sums = S::splat(0.0);
            for i in (0..CHUNK_TOKENS).step_by(S::LANES) {
                let weight = exp::<S>(S::sub(S::load(scores.add(i)), S::splat(shift)));
                S::store(scores.add(i), weight);
                sums = S::add(sums, weight);
            }
            (maximum, S::sum(sums))
        }
    }

    /// Tokens of the chunk that begins at `start`, if this tile goes on to it.
    fn tokens_behind(&self, start: usize) -> usize {
        let end = (self.queries.position + self.queries.count).min(self.chunks.end * CHUNK_TOKENS);
        end.saturating_sub(start).min(CHUNK_TOKENS)
    }

    /// Keys of a chunk, transposed; those that nobody sees are zero.
    ///
    /// # Safety
    /// As of the kernel.
    #[inline(always)]
    unsafe fn load_keys<S: Simd>(&self, chunk: &Addresses<E>, next: &Addresses<E>, to: *mut f32) {
        let head_dim = self.sizes.head_dim;
        let unseen = [E::default(); MAX_HEAD_DIM];
        let at_once = if E::PAIRED { 2 * S::LANES } else { S::LANES };
        let whole = head_dim / at_once * at_once;
        for first in (0..CHUNK_TOKENS).step_by(S::LANES) {
            let mut rows = [unseen.as_ptr(); MAX_LANES];
            for (row, token) in rows.iter_mut().zip(first..first + S::LANES) {
                *row = chunk.key(token).unwrap_or(unseen.as_ptr());
                next.prefetch::<S>(next.key(token), head_dim);
            }
            let mut to = to.wrapping_add(first);
            // SAFETY: rows are `head_dim` long; `to` has room for whole vectors.
            unsafe {
                for d in (0..whole).step_by(at_once) {
                    E::load_transposed::<S>(to, CHUNK_TOKENS, &rows, d);
                    to = to.wrapping_add(at_once * CHUNK_TOKENS);
                }
                for d in (whole..head_dim).step_by(S::LANES) {
                    let mut square = [S::splat(0.0); MAX_LANES];
                    for (square, row) in square.iter_mut().zip(rows).take(S::LANES) {
                        *square = load_up_to::<S, E>(row.add(d), head_dim - d);
                    }
                    S::transpose(&mut square);
                    for vector in square.iter().take(S::LANES) {
                        S::store(to, *vector);
                        to = to.wrapping_add(CHUNK_TOKENS);
                    }
                }
            }
        }
    }

    /// Values of a chunk that somebody sees.
    ///
    /// # Safety
    /// As of the kernel.
    #[inline(always)]
    unsafe fn load_values<S: Simd>(&self, chunk: &Addresses<E>, next: &Addresses<E>, to: *mut f32) {
        let Sizes { head_dim, padded_dim, .. } = self.sizes;
        let whole = head_dim / S::LANES * S::LANES;
        for token in 0..CHUNK_TOKENS {
            next.prefetch::<S>(next.value(token), head_dim);
            let Some(from) = chunk.value(token) else { continue };
            let to = to.wrapping_add(token * padded_dim);
            // SAFETY: rows of the cache are `head_dim` long and nothing is read past that; rows of `to` are padded.
            unsafe {
                for d in (0..whole).step_by(S::LANES) {
                    S::store(to.add(d), E::load::<S>(from.add(d)));
                }
                for d in (whole..padded_dim).step_by(S::LANES) {
                    S::store(to.add(d), load_up_to::<S, E>(from.wrapping_add(d), head_dim.saturating_sub(d)));
                }
            }
        }
    }
}

/// Where the keys of a chunk are.
struct Addresses<E> {
    keys: [*const E; CHUNK_TOKENS],
    seen: Range<usize>,
    /// Elements from a token's key to its value.
    to_value: usize,
}

impl<E: Float> Addresses<E> {
    /// Of the tokens `seen`, relative to `start`.
    #[inline(always)]
    fn new(attend: &Attend<'_, E>, start: usize, seen: Range<usize>) -> Self {
        let cache = attend.cache;
        let row = |block: usize, side| cache.row(attend.table[block] as usize, side, attend.kv_head, 0);
        let mut keys = [std::ptr::null(); CHUNK_TOKENS];
        let mut token = seen.start;
        while token < seen.end {
            let (block, offset) = ((start + token) / cache.block_size, (start + token) % cache.block_size);
            let first = cache.data.pointer(row(block, Side::Keys)).cast_const();
            let until = seen.end.min(token + cache.block_size - offset);
            for (key, offset) in keys[token..until].iter_mut().zip(offset..) {
                *key = first.wrapping_add(offset * cache.data.stride);
            }
            token = until;
        }
        let to_value = (cache.sides - 1) * cache.kv_heads * cache.block_size * cache.data.stride;
        Self { keys, seen, to_value }
    }

    #[inline(always)]
    fn key(&self, token: usize) -> Option<*const E> {
        self.seen.contains(&token).then(|| self.keys[token])
    }

    #[inline(always)]
    fn value(&self, token: usize) -> Option<*const E> {
        self.key(token).map(|key| key.wrapping_add(self.to_value))
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, row: Option<*const E>, head_dim: usize) {
        let Some(row) = row else { return };
        for byte in (0..head_dim * size_of::<E>()).step_by(LINE_BYTES) {
            // SAFETY: this CPU has `S`.
            unsafe { S::prefetch_far(row.cast::<u8>().wrapping_add(byte)) };
        }
    }
}
