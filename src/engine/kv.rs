//! KV memory as sequences see it: blocks with content that outlives its sequence.

mod check;
mod disk;
mod reuse;
mod tiers;
mod tree;
mod windows;

use std::collections::BTreeSet;

use super::blocks::{KvBlocks, Worth};
use super::events::{KvEventData, KvEvents};
use super::prefix::{Content, PrefixCache, Space};
use super::request::{DEFAULT_RETENTION_PRIORITY, Keep};
use super::stats::{MAX_WINDOW_STATS, WindowStats};
use crate::error::{Error, Result};
use crate::ids::BlockId;
use crate::step::{ExecutorLimits, WindowPool};
use disk::Disk;
pub(super) use reuse::{PartialMatch, PrefixMatch};
use tiers::Tiers;
pub(super) use windows::WindowTable;
use windows::Windows;

/// Where a block stands in the tree, and how long it is kept there.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub parent: Option<BlockId>,
    pub space: Space,
    pub keep: Keep,
}

/// How long a block keeps its priority once nobody uses it; 0: for ever.
#[derive(Clone, Copy, Default)]
struct Timer {
    duration_ns: u64,
    /// 0: does not run.
    expiry_ns: u64,
}

/// Blocks and the prefix cache over them.
pub(super) struct KvCache {
    blocks: KvBlocks,
    prefix: PrefixCache,
    block_size: usize,
    reuse: bool,
    reused_blocks: u64,
    evicted_blocks: u64,
    /// Sources of copies in the plan that is being made: not to be overwritten by the same plan.
    pinned: Vec<BlockId>,
    now_ns: u64,
    timers: Vec<Timer>,
    /// Free blocks that return to the default priority, and when.
    expiring: BTreeSet<(u64, BlockId)>,
    events: Option<KvEvents>,
    /// Empty between calls.
    removed: Vec<BlockId>,
    tiers: Tiers,
    disk: Disk,
    windows: Windows,
}

impl KvCache {
    /// `events`: who hears of changes.
    pub fn new(limits: &ExecutorLimits, host_blocks: usize, reuse: bool, events: Option<KvEvents>) -> Self {
        let (num_blocks, block_size) = (limits.num_blocks, limits.block_size_tokens);
        let host_blocks = if reuse { host_blocks } else { 0 };
        if let Some(events) = &events {
            let levels = [num_blocks, host_blocks];
            let num_blocks_per_cache_level = levels.into_iter().filter(|&blocks| blocks > 0).collect();
            events.push(KvEventData::Created { num_blocks_per_cache_level });
        }
        Self {
            blocks: KvBlocks::new(num_blocks),
            prefix: PrefixCache::new(num_blocks, host_blocks, block_size),
            block_size,
            reuse,
            reused_blocks: 0,
            evicted_blocks: 0,
            pinned: Vec::new(),
            now_ns: 0,
            timers: vec![Timer::default(); num_blocks + host_blocks],
            expiring: BTreeSet::new(),
            events,
            removed: Vec::new(),
            tiers: Tiers::new(num_blocks, host_blocks),
            disk: Disk::default(),
            windows: Windows::new(&[], (num_blocks, host_blocks), &[], block_size, 0),
        }
    }

    /// Adds pools for layers that see a window of the context, with so many blocks of the host each.
    ///
    /// # Errors
    /// `Internal`, when one sequence would not fit.
    pub fn add_windows(&mut self, pools: &[WindowPool], host_blocks: &[usize], limits: &ExecutorLimits) -> Result<()> {
        let in_flight_tokens = limits.pipeline_depth * limits.max_step_tokens;
        let nodes = (self.blocks.len(), self.prefix.nodes() - self.blocks.len());
        let host_blocks = if self.reuse { host_blocks } else { &[] };
        self.windows = Windows::new(pools, nodes, host_blocks, self.block_size, in_flight_tokens);
        match self.windows.too_small() {
            Some(pool) => Err(Error::internal(format!("a window pool cannot hold one sequence: {pool:?}"))),
            None => Ok(()),
        }
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub fn free(&self) -> usize {
        self.blocks.free()
    }

    /// Blocks with reusable content, used ones included.
    pub fn cached_blocks(&self) -> usize {
        self.prefix.len()
    }

    pub fn reused_blocks(&self) -> u64 {
        self.reused_blocks
    }

    /// Blocks whose reusable content was given up for other content.
    pub fn evicted_blocks(&self) -> u64 {
        self.evicted_blocks
    }

    pub fn is_cached(&self, block: BlockId) -> bool {
        self.prefix.contains(block)
    }

    /// Passes time: priorities whose duration is over become the default.
    pub fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        while let Some(&(expiry_ns, block)) = self.expiring.first()
            && expiry_ns <= now_ns
        {
            self.expiring.pop_first();
            self.timers[block.0 as usize] = Timer::default();
            self.set_priority(block, DEFAULT_RETENTION_PRIORITY);
        }
    }

    /// The pools of windows.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    pub fn windows_mut(&mut self) -> &mut Windows {
        &mut self.windows
    }

    /// Gives back what no token from position `next` on sees.
    pub fn shrink_windows(&mut self, tables: &mut [WindowTable], next: usize) {
        self.windows.shrink(tables, next, &self.prefix);
    }

    /// The first of those pools, as statistics have them.
    pub fn window_stats(&self) -> [WindowStats; MAX_WINDOW_STATS] {
        let mut all = [WindowStats::default(); MAX_WINDOW_STATS];
        for (stats, (pool, used_blocks)) in all.iter_mut().zip(self.windows.usage()) {
            *stats = WindowStats { window_tokens: pool.window_tokens, max_blocks: pool.num_blocks, used_blocks };
        }
        all
    }

    pub fn release_windows(&mut self, tables: &[WindowTable]) {
        self.windows.release(tables, &self.prefix);
    }

    /// Takes blocks until the tables of windows have `len` entries.
    pub fn grow_windows(&mut self, tables: &mut [WindowTable], len: usize) {
        self.windows.grow(tables, len, &self.prefix);
        self.queue_descents();
    }

    /// Call when the plan is complete: later plans may overwrite what this one copies from.
    pub fn unpin(&mut self) {
        while let Some(block) = self.pinned.pop() {
            self.put_back(block);
        }
        self.windows.unpin(&self.prefix);
    }

    /// A block, and whether no reusable content was lost for it.
    pub fn take(&mut self) -> Option<(BlockId, bool)> {
        let block = self.blocks.take()?;
        if !self.prefix.contains(block) {
            return Some((block, true));
        }
        if self.offload(block) {
            return Some((block, true));
        }
        self.end_expiry(block);
        self.evicted_blocks += 1;
        self.forget(block);
        Some((block, false))
    }

    /// Gives a table back. Cached blocks keep their content until they are taken again.
    pub fn release(&mut self, table: &[BlockId]) {
        table.iter().rev().for_each(|&block| self.put_back(block));
    }

    /// Makes the content of a full `block` reusable; false when it cannot be, and then nothing behind it can.
    pub fn insert(&mut self, place: Place, content: &Content<'_>, block: BlockId) -> bool {
        if !self.keeps(place.space) || self.prefix.contains(block) {
            return self.keeps(place.space);
        }
        let known = self.prefix.child(place.parent, place.space, content);
        if let Some(node) = known.filter(|&node| self.tiers.is_host(node)) {
            self.supersede(node, block);
            self.keep(block, place.keep);
            return true;
        }
        if let Some(node) = known.filter(|&node| !self.windows.is_empty() && self.blocks.is_free(node)) {
            self.replace(node, block);
            self.keep(block, place.keep);
            return true;
        }
        let is_new = self.declare(place, content, block);
        if is_new {
            self.report_stored(block);
        }
        is_new
    }

    /// Content that could not be used, because not all of it was left in the pools of windows, has been computed again.
    fn replace(&mut self, node: BlockId, block: BlockId) {
        self.end_expiry(node);
        self.prefix.rename(node, block);
        self.timers[block.0 as usize].duration_ns = self.timers[node.0 as usize].duration_ns;
        self.windows.forget(node);
        self.blocks.revalue(node, Worth::NOTHING);
    }

    /// Makes the first slots of a block that is about to be released reusable, unless another block has them. Says
    /// whether.
    pub fn insert_tail(&mut self, place: Place, content: &Content<'_>, block: BlockId) -> bool {
        let closest = self.prefix.closest_child(place.parent, place.space, content);
        let known = closest.is_some_and(|(_, shared)| shared == content.tokens.len());
        self.keeps(place.space) && !known && !self.blocks.is_shared(block) && self.declare(place, content, block)
    }

    /// Whether content is kept for later sequences.
    fn keeps(&self, space: Space) -> bool {
        self.reuse || space.private != 0
    }

    /// Gives a cached block that is in use another priority.
    pub fn keep(&mut self, block: BlockId, keep: Keep) {
        self.timers[block.0 as usize].duration_ns = keep.duration_ns.unwrap_or(0);
        self.set_priority(block, keep.priority);
    }

    /// Forgets all content: after a change of weights it would be wrong. Blocks stay with whom they are.
    pub fn reset(&mut self) {
        let nodes = (0..self.prefix.nodes() as u32).map(BlockId);
        let all: Vec<_> = nodes.filter(|&block| self.is_cached(block)).collect();
        let full = all.iter().filter(|&&block| self.is_reported(block));
        let block_hashes: Vec<_> = full.map(|&block| self.prefix.hash(block)).collect();
        let mut removed = Vec::with_capacity(all.len());
        for block in all {
            self.end_expiry(block);
            self.prefix.remove(block, &mut removed);
            self.revalue(block, Worth::NOTHING);
            self.windows.forget(block);
        }
        self.clear_disk();
        if let Some(events) = self.events.as_ref().filter(|_| !block_hashes.is_empty()) {
            events.push(KvEventData::Removed { block_hashes });
        }
    }

    fn may_take_over(&self, block: BlockId) -> bool {
        self.blocks.is_free(block) && self.prefix.is_leaf(block)
    }

    fn retain(&mut self, block: BlockId) {
        self.end_expiry(block);
        self.hold(block);
    }

    fn put_back(&mut self, block: BlockId) {
        if !self.prefix.contains(block) {
            self.let_go(block, Worth::NOTHING);
            return;
        }
        let value = self.prefix.value(block);
        if !self.let_go(block, Worth::of(value)) {
            return;
        }
        let timer = &mut self.timers[block.0 as usize];
        if timer.duration_ns > 0 {
            timer.expiry_ns = self.now_ns.saturating_add(timer.duration_ns);
            self.expiring.insert((timer.expiry_ns, block));
        }
    }
}
