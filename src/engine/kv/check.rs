//! What must hold of blocks, tree and free lists at any time.

use super::{KvCache, WindowTable};
use crate::engine::blocks::Worth;
use crate::ids::BlockId;

impl KvCache {
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

    pub(super) fn check_order(
        &self,
        order: impl Iterator<Item = BlockId>,
        nodes: usize,
    ) -> std::result::Result<(), String> {
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
}
