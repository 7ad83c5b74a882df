//! Changes of the tree: what is declared, forgotten or worth something else, and who hears of it.

use super::{KvCache, Place};
use crate::engine::blocks::Worth;
use crate::engine::events::{EventDiff, KvEventData, StoredBlock, UniqueToken};
use crate::engine::prefix::Content;
use crate::ids::{BlockId, TokenId};

impl KvCache {
    pub(super) fn end_expiry(&mut self, block: BlockId) {
        let expiry_ns = std::mem::take(&mut self.timers[block.0 as usize].expiry_ns);
        if expiry_ns > 0 {
            self.expiring.remove(&(expiry_ns, block));
        }
    }

    /// Lets a timer that was started elsewhere run on.
    pub(super) fn continue_expiry(&mut self, block: BlockId, expiry_ns: u64) {
        if expiry_ns > 0 {
            self.end_expiry(block);
            self.timers[block.0 as usize].expiry_ns = expiry_ns;
            self.expiring.insert((expiry_ns, block));
        }
    }

    pub(super) fn declare(&mut self, place: Place, content: &Content<'_>, block: BlockId) -> bool {
        let Place { parent, space, keep } = place;
        let is_new = self.prefix.insert(parent, space, content, block, keep.priority);
        if is_new {
            self.timers[block.0 as usize].duration_ns = keep.duration_ns.unwrap_or(0);
            self.reorder(block, 0);
        }
        is_new
    }

    /// Takes a block, and all behind it, out of the tree.
    pub(super) fn forget(&mut self, block: BlockId) {
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

    pub(super) fn set_priority(&mut self, block: BlockId, priority: u8) {
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
    pub(super) fn reorder(&mut self, block: BlockId, before: u8) {
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
    pub(super) fn is_reported(&self, block: BlockId) -> bool {
        self.is_full(block) && self.prefix.space(block).private == 0
    }

    pub(super) fn is_full(&self, block: BlockId) -> bool {
        self.prefix.content(block).tokens.len() == self.block_size
    }

    pub(super) fn report_stored(&self, block: BlockId) {
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

    pub(super) fn report_removed(&self, block: BlockId) {
        let Some(events) = &self.events else { return };
        let full = self.prefix.subtree(block).into_iter().filter(|&block| self.is_reported(block));
        let block_hashes: Vec<_> = full.map(|block| self.prefix.hash(block)).collect();
        if !block_hashes.is_empty() {
            events.push(KvEventData::Removed { block_hashes });
        }
    }
}
