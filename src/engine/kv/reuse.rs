//! What a sequence takes of the cache when it starts: the cached beginning of its tokens, reserved and then committed or
//! given back.

use super::{KvCache, WindowTable};
use crate::engine::prefix::{Content, Space};
use crate::ids::{BlockId, TokenId};
use crate::step::{BlockCopy, WindowCopy};

/// Cached blocks at the beginning of a sequence.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct PrefixMatch {
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
    /// What goes with the partly used block there.
    pub beside: Vec<BlockId>,
    /// Whether the sequence sees something in the pools of windows that is not on the device.
    pub far_windows: bool,
    /// How many of the full blocks can be used without waiting for a transfer.
    pub near: usize,
}

/// The first slots of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct PartialMatch {
    pub block: BlockId,
    pub num_slots: usize,
    /// The sequence goes on writing into this very block, which nobody uses; else into a copy.
    pub take_over: bool,
}

impl PrefixMatch {
    pub fn num_tokens(&self, block_size: usize) -> usize {
        self.full.len() * block_size + self.partial.map_or(0, |partial| partial.num_slots)
    }

    /// Whether more is there than can be used at once.
    pub fn goes_on(&self) -> bool {
        !self.lower.is_empty() || !self.stored.is_empty() || self.far_windows
    }

    /// The whole blocks, where they are.
    pub fn chain(&self) -> Vec<BlockId> {
        self.full.iter().chain(&self.lower).copied().collect()
    }

    /// Leaves what can be used at once.
    pub fn come_down(&mut self) {
        self.full.truncate(self.near);
        (self.lower, self.stored, self.far_windows) = (Vec::new(), Vec::new(), false);
    }
}

/// Blocks taken for a sequence that does not run yet: ends in `commit` or `cancel`.
#[must_use]
pub(in crate::engine) struct Reservation {
    table: Vec<BlockId>,
    windows: Vec<WindowTable>,
    copy: Option<BlockCopy>,
    window_copies: Vec<WindowCopy>,
    new_blocks: usize,
}

/// What a committed reservation gave.
pub(in crate::engine) struct Admitted {
    pub table: Vec<BlockId>,
    pub windows: Vec<WindowTable>,
    pub copy: Option<BlockCopy>,
    pub window_copies: Vec<WindowCopy>,
    pub reused_blocks: usize,
    /// Of the one block that a partial match allocates, whether it took no content away.
    pub new_blocks: usize,
}

impl KvCache {
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
        found.near = found.full.len();
        if !self.windows.is_empty() {
            self.leave_what_windows_lack(&mut found);
            parent = found.full.last().copied();
            at = found.full.len() * self.block_size;
        }
        if found.goes_on() {
            return found;
        }
        found.stored = self.find_stored(tokens, extra_ids, space, &found.full);
        if !found.stored.is_empty() {
            return found;
        }
        let rest = Content::of(tokens, extra_ids, at, end.min(at + self.block_size));
        let closest = self.prefix.closest_child(parent, space, &rest);
        let usable = closest.and_then(|(block, num_slots)| Some((block, num_slots, self.windows.near(block)?)));
        if let Some((block, num_slots, beside)) = usable {
            let loses_nothing = num_slots == self.prefix.content(block).tokens.len();
            let take_over = loses_nothing && beside.is_empty() && self.may_take_over(block);
            found.partial = Some(PartialMatch { block, num_slots, take_over });
            found.beside = beside;
        }
        found
    }

    /// Cuts a match to where a token finds all that it sees in the pools of windows.
    fn leave_what_windows_lack(&self, found: &mut PrefixMatch) {
        let mut chain = found.chain();
        chain.truncate(self.windows.usable(&chain, false));
        found.near = self.windows.usable(&found.full[..found.full.len().min(chain.len())], true);
        found.lower.truncate(chain.len().saturating_sub(found.full.len()));
        found.full.truncate(chain.len());
        found.far_windows = self.windows.needs_far(&chain);
    }

    /// The match with as little memory as possible: a partly used block is taken over, or not used.
    pub fn economize(&self, found: &mut PrefixMatch) {
        let may_take_over = |partial: &PartialMatch| self.windows.is_empty() && self.may_take_over(partial.block);
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
        let (table, window_copies) = (found.full.clone(), Vec::new());
        let mut reservation = Reservation { table, windows, copy: None, window_copies, new_blocks: 0 };
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
        reservation.window_copies = self.windows.copy(&mut reservation.windows, &found.beside, num_slots, &self.prefix);
        self.queue_descents();
        reservation.new_blocks = usize::from(fresh);
        Some(reservation)
    }

    /// `is_reuse`: whether the matched blocks are those of other requests.
    pub fn commit(&mut self, reservation: Reservation, is_reuse: bool) -> Admitted {
        let Reservation { table, windows, copy, window_copies, new_blocks } = reservation;
        self.reused_blocks += if is_reuse { table.len() as u64 } else { 0 };
        Admitted { reused_blocks: table.len(), table, windows, copy, window_copies, new_blocks }
    }

    pub fn cancel(&mut self, reservation: Reservation) {
        self.release(&reservation.table);
        self.windows.release(&reservation.windows, &self.prefix);
    }
}
