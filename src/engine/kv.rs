//! KV memory as sequences see it: blocks with content that outlives its sequence.

mod disk;
mod tiers;
mod windows;

use std::collections::BTreeSet;

use super::blocks::{KvBlocks, Worth};
use super::events::{EventDiff, KvEventData, KvEvents, StoredBlock, UniqueToken};
use super::prefix::{Content, PrefixCache, Space};
use super::request::{DEFAULT_RETENTION_PRIORITY, Keep};
use crate::error::{Error, Result};
use crate::ids::{BlockId, TokenId};
use crate::step::{BlockCopy, ExecutorLimits, TierLimits, WindowPool};
use disk::Disk;
use tiers::Tiers;
pub(super) use windows::WindowTable;
use windows::Windows;

/// Cached blocks at the beginning of a sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct PrefixMatch {
    /// Whole blocks, used as they are.
    pub full: Vec<BlockId>,
    /// A block of which the first slots are used.
    pub partial: Option<PartialMatch>,
    /// Whole blocks behind the full ones that are not on the device.
    pub lower: Vec<BlockId>,
    /// Keys of whole blocks behind the full ones that are on disk only.
    pub stored: Vec<u64>,
    /// What goes with the full blocks in the pools of windows; `None`: their companions.
    pub windows: Option<Vec<WindowTable>>,
}

/// The first slots of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartialMatch {
    pub block: BlockId,
    pub num_slots: usize,
    /// The sequence goes on writing into this very block, which nobody uses; else into a copy.
    pub take_over: bool,
}

impl PrefixMatch {
    pub fn num_tokens(&self, block_size: usize) -> usize {
        self.full.len() * block_size + self.partial.map_or(0, |partial| partial.num_slots)
    }
}

/// Blocks taken for a sequence that does not run yet: ends in `commit` or `cancel`.
#[must_use]
pub(super) struct Reservation {
    table: Vec<BlockId>,
    windows: Vec<WindowTable>,
    copy: Option<BlockCopy>,
    new_blocks: usize,
}

/// What a committed reservation gave.
pub(super) struct Admitted {
    pub table: Vec<BlockId>,
    pub windows: Vec<WindowTable>,
    pub copy: Option<BlockCopy>,
    pub reused_blocks: usize,
    /// Of the one block that a partial match allocates, whether it took no content away.
    pub new_blocks: usize,
}

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
    pub fn new(limits: &ExecutorLimits, tiers: TierLimits, reuse: bool, events: Option<KvEvents>) -> Self {
        let (num_blocks, block_size) = (limits.num_blocks, limits.block_size_tokens);
        let host_blocks = if reuse { tiers.host_blocks } else { 0 };
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
            windows: Windows::new(&[], num_blocks, block_size, 0),
        }
    }

    /// Adds pools for layers that see a window of the context. Then blocks are shared as a whole only.
    ///
    /// # Errors
    /// `Internal`, when one sequence would not fit, or there are other tiers.
    pub fn add_windows(&mut self, pools: &[WindowPool], limits: &ExecutorLimits) -> Result<()> {
        let in_flight_tokens = limits.pipeline_depth * limits.max_step_tokens;
        self.windows = Windows::new(pools, limits.num_blocks, self.block_size, in_flight_tokens);
        if let Some(pool) = self.windows.too_small() {
            return Err(Error::internal(format!("a window pool cannot hold one sequence: {pool:?}")));
        }
        match !pools.is_empty() && self.prefix.nodes() > self.blocks.len() {
            true => Err(Error::internal("window pools beside a host tier")),
            false => Ok(()),
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

    /// The cached beginning of `tokens`, the last of which is always left to compute.
    pub fn find(&self, tokens: &[TokenId], extra_ids: &[u64], space: Space) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        if !self.keeps(space) {
            return found;
        }
        let (mut at, end) = (0, tokens.len() - 1);
        let mut parent = None;
        while at + self.block_size <= end {
            let content = Content::of(tokens, extra_ids, at, at + self.block_size);
            let Some(block) = self.prefix.child(parent, space, &content) else { break };
            let known = if self.tiers.is_host(block) { &mut found.lower } else { &mut found.full };
            known.push(block);
            parent = Some(block);
            at += self.block_size;
        }
        if !self.windows.is_empty() {
            found.full.truncate(self.windows.usable(&found.full));
        }
        if !found.lower.is_empty() || !self.windows.is_empty() {
            return found;
        }
        found.stored = self.find_stored(tokens, extra_ids, space, parent);
        if !found.stored.is_empty() {
            return found;
        }
        let rest = Content::of(tokens, extra_ids, at, end.min(at + self.block_size));
        found.partial = self.prefix.closest_child(parent, space, &rest).map(|(block, num_slots)| {
            let loses_nothing = num_slots == self.prefix.content(block).tokens.len();
            PartialMatch { block, num_slots, take_over: loses_nothing && self.may_take_over(block) }
        });
        found
    }

    /// The match with as little memory as possible: a partly used block is taken over, or not used.
    pub fn economize(&self, found: &mut PrefixMatch) {
        let may_take_over = |partial: &PartialMatch| self.may_take_over(partial.block);
        found.partial = found.partial.filter(may_take_over).map(|partial| PartialMatch { take_over: true, ..partial });
    }

    /// Free blocks that a sequence of `total` blocks takes, now or later, when it starts with `found`.
    pub fn cost(&self, found: &PrefixMatch, total: usize) -> usize {
        let is_free = |block: &BlockId| self.blocks.is_free(*block);
        let pinned = found.partial.iter().filter(|partial| !partial.take_over && is_free(&partial.block)).count();
        total - found.full.len() + found.full.iter().filter(|block| is_free(block)).count() + pinned
    }

    /// Takes the matched blocks, and a block to copy the partial one to. `None` when there is none: nothing is taken.
    pub fn reserve(&mut self, found: &PrefixMatch) -> Option<Reservation> {
        found.full.iter().for_each(|&block| self.retain(block));
        let windows = found.windows.clone().unwrap_or_else(|| self.windows.tables(&found.full));
        self.windows.hold(&windows);
        let mut reservation = Reservation { table: found.full.clone(), windows, copy: None, new_blocks: 0 };
        let Some(PartialMatch { block, num_slots, take_over }) = found.partial else { return Some(reservation) };
        self.retain(block);
        if take_over {
            self.forget(block);
            reservation.table.push(block);
            return Some(reservation);
        }
        self.pinned.push(block);
        let Some((to, fresh)) = self.take() else {
            self.cancel(reservation);
            return None;
        };
        reservation.table.push(to);
        reservation.copy = Some(BlockCopy { from: block, to, num_tokens: num_slots });
        reservation.new_blocks = usize::from(fresh);
        Some(reservation)
    }

    /// `is_reuse`: whether the matched blocks are those of other requests.
    pub fn commit(&mut self, reservation: Reservation, is_reuse: bool) -> Admitted {
        let Reservation { table, windows, copy, new_blocks } = reservation;
        self.reused_blocks += if is_reuse { table.len() as u64 } else { 0 };
        Admitted { reused_blocks: table.len(), table, windows, copy, new_blocks }
    }

    pub fn cancel(&mut self, reservation: Reservation) {
        self.release(&reservation.table);
        self.windows.release(&reservation.windows, &self.prefix);
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

    pub fn release_windows(&mut self, tables: &[WindowTable]) {
        self.windows.release(tables, &self.prefix);
    }

    /// Call when the plan is complete: later plans may overwrite what this one copies from.
    pub fn unpin(&mut self) {
        while let Some(block) = self.pinned.pop() {
            self.put_back(block);
        }
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

    /// Makes the first slots of a block that is about to be released reusable, unless another block has them.
    pub fn insert_tail(&mut self, place: Place, content: &Content<'_>, block: BlockId) {
        let closest = self.prefix.closest_child(place.parent, place.space, content);
        let known = closest.is_some_and(|(_, shared)| shared == content.tokens.len());
        if self.keeps(place.space) && !known && !self.blocks.is_shared(block) && self.windows.is_empty() {
            self.declare(place, content, block);
        }
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

    /// References equal `tables`, the free lists equal the rest, the tree is sound, used blocks have used parents, and
    /// no block is handed out before the ones behind it.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) -> std::result::Result<(), String> {
        let mut refs = vec![0; self.blocks.len()];
        for table in tables {
            for (at, block) in table.iter().enumerate() {
                refs[block.0 as usize] += 1;
                if self.prefix.contains(*block) && self.prefix.parent(*block) != at.checked_sub(1).map(|at| table[at]) {
                    return Err(format!("block {block} is cached behind another block than it is used behind"));
                }
            }
        }
        self.pinned.iter().for_each(|block| refs[block.0 as usize] += 1);
        self.held_by_transfers().for_each(|block| refs[block.0 as usize] += 1);
        self.blocks.check(&refs)?;
        self.prefix.check()?;
        self.check_order(self.blocks.order(), self.blocks.len())?;
        self.check_tiers()?;
        self.check_disk()?;
        let timers = self.expiring.iter().filter(|(_, block)| self.worth(*block).is_some()).count();
        if timers != self.expiring.len() {
            return Err("a block in use has a timer".into());
        }
        Ok(())
    }

    /// As [`KvCache::check`], for the tables of windows; with each the blocks of its sequence's whole length.
    pub fn check_windows<'a>(
        &self,
        tables: impl Iterator<Item = (&'a [WindowTable], usize)>,
    ) -> std::result::Result<(), String> {
        self.windows.check(tables, &self.prefix)
    }

    fn check_order(&self, order: impl Iterator<Item = BlockId>, nodes: usize) -> std::result::Result<(), String> {
        let mut is_left = vec![true; nodes];
        for block in order {
            let is_cached = self.prefix.contains(block);
            let worth = if is_cached { Worth::of(self.prefix.value(block)) } else { Worth::NOTHING };
            if self.worth(block) != Some(worth) {
                return Err(format!("block {block} is worth {worth:?}, but listed as {:?}", self.worth(block)));
            }
            let parent = if is_cached { self.prefix.parent(block) } else { None };
            if parent.is_some_and(|parent| !is_left[parent.0 as usize]) {
                return Err(format!("the parent of block {block} is evicted before it"));
            }
            is_left[block.0 as usize] = false;
        }
        Ok(())
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

    fn end_expiry(&mut self, block: BlockId) {
        let expiry_ns = std::mem::take(&mut self.timers[block.0 as usize].expiry_ns);
        if expiry_ns > 0 {
            self.expiring.remove(&(expiry_ns, block));
        }
    }

    /// Lets a timer that was started elsewhere run on.
    fn continue_expiry(&mut self, block: BlockId, expiry_ns: u64) {
        if expiry_ns > 0 {
            self.end_expiry(block);
            self.timers[block.0 as usize].expiry_ns = expiry_ns;
            self.expiring.insert((expiry_ns, block));
        }
    }

    fn declare(&mut self, place: Place, content: &Content<'_>, block: BlockId) -> bool {
        let Place { parent, space, keep } = place;
        let is_new = self.prefix.insert(parent, space, content, block, keep.priority);
        if is_new {
            self.timers[block.0 as usize].duration_ns = keep.duration_ns.unwrap_or(0);
            self.reorder(block, 0);
        }
        is_new
    }

    /// Takes a block, and all behind it, out of the tree.
    fn forget(&mut self, block: BlockId) {
        let (parent, value) = (self.prefix.parent(block), self.prefix.value(block));
        self.report_removed(block);
        let mut removed = std::mem::take(&mut self.removed);
        self.prefix.remove(block, &mut removed);
        for &other in removed.iter().filter(|&&other| other != block) {
            self.end_expiry(other);
            self.revalue(other, Worth::NOTHING);
        }
        if !self.windows.is_empty() {
            removed.iter().for_each(|&other| self.windows.forget(other));
        }
        removed.clear();
        self.removed = removed;
        if let Some(parent) = parent {
            let before = self.prefix.value(parent);
            self.prefix.child_changed(parent, value, 0);
            if self.prefix.value(parent) != before {
                self.reorder(parent, before);
            }
        }
    }

    fn set_priority(&mut self, block: BlockId, priority: u8) {
        let (old, before) = (self.prefix.priority(block), self.prefix.value(block));
        if old == priority {
            return;
        }
        self.prefix.set_priority(block, priority);
        if let Some(events) = self.events.as_ref().filter(|_| self.is_reported(block)) {
            let diff = EventDiff { new_value: priority.into(), old_value: old.into() };
            let block_hash = self.prefix.hash(block);
            events.push(KvEventData::Updated { block_hash, cache_level: None, priority: Some(diff) });
        }
        self.reorder(block, before);
    }

    /// A block that was worth `before` is worth something else: it and its ancestors get the places in the free lists
    /// that this leads to, children before parents.
    fn reorder(&mut self, block: BlockId, before: u8) {
        let (mut at, mut before) = (block, before);
        loop {
            let value = self.prefix.value(at);
            self.revalue(at, Worth::of(value));
            let Some(parent) = self.prefix.parent(at) else { return };
            let parent_before = self.prefix.value(parent);
            self.prefix.child_changed(parent, before, value);
            let worth = self.worth(at);
            let is_same_tier = self.tiers.is_host(at) == self.tiers.is_host(parent);
            let must_follow = is_same_tier && worth.is_some() && worth == self.worth(parent);
            if self.prefix.value(parent) == parent_before && !must_follow {
                return;
            }
            (at, before) = (parent, parent_before);
        }
    }

    /// Whether readers of events know the block.
    fn is_reported(&self, block: BlockId) -> bool {
        self.is_full(block) && self.prefix.space(block).private == 0
    }

    fn is_full(&self, block: BlockId) -> bool {
        self.prefix.content(block).tokens.len() == self.block_size
    }

    fn report_stored(&self, block: BlockId) {
        let Some(events) = self.events.as_ref().filter(|_| self.is_reported(block)) else { return };
        let content = self.prefix.content(block);
        let extra_id = |at: usize| content.extra_ids.get(at).copied().unwrap_or(0);
        let unique = |(at, &token_id): (usize, &TokenId)| UniqueToken { token_id, token_extra_id: extra_id(at) };
        let stored = StoredBlock {
            block_hash: self.prefix.hash(block),
            tokens: content.tokens.iter().enumerate().map(unique).collect(),
            lora_id: self.prefix.space(block).lora_id,
            cache_level: 0,
            priority: self.prefix.priority(block).into(),
        };
        events.stored(self.prefix.parent(block).map(|parent| self.prefix.hash(parent)), stored);
    }

    fn report_removed(&self, block: BlockId) {
        let Some(events) = &self.events else { return };
        let full = self.prefix.subtree(block).into_iter().filter(|&block| self.is_reported(block));
        let block_hashes: Vec<_> = full.map(|block| self.prefix.hash(block)).collect();
        if !block_hashes.is_empty() {
            events.push(KvEventData::Removed { block_hashes });
        }
    }
}
