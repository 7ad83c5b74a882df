//! KV memory as sequences see it: blocks with content that outlives its sequence.

use super::blocks::KvBlocks;
use super::prefix::PrefixCache;
use crate::ids::{BlockId, TokenId};
use crate::step::BlockCopy;

/// Cached blocks at the beginning of a sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct PrefixMatch {
    /// Whole blocks, used as they are.
    pub full: Vec<BlockId>,
    /// A block whose first slots are used through a copy, and how many.
    pub partial: Option<(BlockId, usize)>,
}

impl PrefixMatch {
    pub fn num_tokens(&self, block_size: usize) -> usize {
        self.full.len() * block_size + self.partial.map_or(0, |(_, slots)| slots)
    }
}

/// Blocks taken for a sequence that does not run yet: ends in `commit` or `cancel`.
#[must_use]
pub(super) struct Reservation {
    table: Vec<BlockId>,
    copy: Option<BlockCopy>,
    new_blocks: usize,
}

/// What a committed reservation gave.
pub(super) struct Admitted {
    pub table: Vec<BlockId>,
    pub copy: Option<BlockCopy>,
    pub reused_blocks: usize,
    /// Of the one block that a partial match allocates, whether it took no content away.
    pub new_blocks: usize,
}

/// Blocks and the prefix cache over them.
pub(super) struct KvCache {
    blocks: KvBlocks,
    prefix: PrefixCache,
    block_size: usize,
    reuse: bool,
    reused_blocks: u64,
    /// Sources of copies in the plan that is being made: not to be overwritten by the same plan.
    pinned: Vec<BlockId>,
}

impl KvCache {
    pub fn new(num_blocks: usize, block_size: usize, reuse: bool) -> Self {
        Self {
            blocks: KvBlocks::new(num_blocks),
            prefix: PrefixCache::new(num_blocks),
            block_size,
            reuse,
            reused_blocks: 0,
            pinned: Vec::new(),
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

    pub fn reused_blocks(&self) -> u64 {
        self.reused_blocks
    }

    /// The cached beginning of `tokens`, the last of which is always left to compute.
    pub fn find(&self, tokens: &[TokenId], salt: u64) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        if !self.reuse {
            return found;
        }
        let mut rest = &tokens[..tokens.len() - 1];
        while rest.len() >= self.block_size {
            let Some(block) = self.prefix.child(found.full.last().copied(), salt, &rest[..self.block_size]) else {
                break;
            };
            found.full.push(block);
            rest = &rest[self.block_size..];
        }
        let next = &rest[..rest.len().min(self.block_size)];
        found.partial = self.prefix.closest_child(found.full.last().copied(), salt, next);
        found
    }

    /// Free blocks that a sequence of `total` blocks takes, now or later, when it starts with `found`.
    pub fn cost(&self, found: &PrefixMatch, total: usize) -> usize {
        let is_free = |block: &BlockId| self.blocks.is_free(*block);
        let pinned = found.partial.iter().filter(|(block, _)| is_free(block)).count();
        total - found.full.len() + found.full.iter().filter(|block| is_free(block)).count() + pinned
    }

    /// Takes the matched blocks, and a block to copy the partial one to. `None` when there is none: nothing is taken.
    pub fn reserve(&mut self, found: &PrefixMatch) -> Option<Reservation> {
        found.full.iter().for_each(|&block| self.blocks.retain(block));
        let mut reservation = Reservation { table: found.full.clone(), copy: None, new_blocks: 0 };
        if let Some((from, num_tokens)) = found.partial {
            self.blocks.retain(from);
            self.pinned.push(from);
            let Some((to, fresh)) = self.take() else {
                self.cancel(reservation);
                return None;
            };
            reservation.table.push(to);
            reservation.copy = Some(BlockCopy { from, to, num_tokens });
            reservation.new_blocks = usize::from(fresh);
        }
        Some(reservation)
    }

    pub fn commit(&mut self, reservation: Reservation) -> Admitted {
        let Reservation { table, copy, new_blocks } = reservation;
        self.reused_blocks += table.len() as u64;
        Admitted { reused_blocks: table.len(), table, copy, new_blocks }
    }

    pub fn cancel(&mut self, reservation: Reservation) {
        self.release(&reservation.table);
    }

    /// Call when the plan is complete: later plans may overwrite what this one copies from.
    pub fn unpin(&mut self) {
        for block in std::mem::take(&mut self.pinned) {
            self.blocks.release(block, self.prefix.contains(block));
        }
    }

    /// A block, and whether no reusable content was lost for it.
    pub fn take(&mut self) -> Option<(BlockId, bool)> {
        let block = self.blocks.take()?;
        let removed = self.prefix.remove(block);
        removed.iter().filter(|&&other| other != block).for_each(|&other| self.blocks.demote(other));
        Some((block, removed.is_empty()))
    }

    /// Gives a table back. Cached blocks keep their content until they are taken again.
    pub fn release(&mut self, table: &[BlockId]) {
        for &block in table.iter().rev() {
            self.blocks.release(block, self.prefix.contains(block));
        }
    }

    /// Makes the content of `block` reusable; false when it cannot be, and then nothing behind it can.
    pub fn insert(&mut self, parent: Option<BlockId>, salt: u64, tokens: &[TokenId], block: BlockId) -> bool {
        self.reuse && self.prefix.insert(parent, salt, tokens, block)
    }

    /// Makes the first slots of a block that is about to be released reusable, unless another block has them.
    pub fn insert_tail(&mut self, parent: Option<BlockId>, salt: u64, tokens: &[TokenId], block: BlockId) {
        let known = self.prefix.closest_child(parent, salt, tokens).is_some_and(|(_, shared)| shared == tokens.len());
        if self.reuse && !known {
            self.prefix.insert(parent, salt, tokens, block);
        }
    }

    /// References equal `tables`, the free list equals the rest, the tree is sound, and used blocks have used parents.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) -> Result<(), String> {
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
        self.blocks.check(&refs)?;
        self.prefix.check()
    }
}
