//! Blocks of layers that see a window of the context only.
//!
//! Every such pool has blocks of its own. A sequence has a table of each pool beside its table of full-length blocks, with
//! an entry for the same tokens; entries that no token to come sees are given back. What is found in the prefix cache is
//! found by its full-length block, whose companions hold the same tokens for the other layers. Companions outlive their
//! sequences like cached blocks do, but may be overwritten alone: a beginning is reusable as far as all that the next
//! token sees is still there.
//!
//! A sequence claims at its start what its windows can ever need, so a pool never runs out while it runs.

use crate::engine::blocks::{KvBlocks, Worth};
use crate::engine::prefix::PrefixCache;
use crate::ids::BlockId;
use crate::step::WindowPool;

/// A sequence's blocks in one pool.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct WindowTable {
    /// One for each block of the full-length table; `None`: out of sight.
    entries: Vec<Option<BlockId>>,
    /// Entries before, but for sinks, have been given back.
    first: usize,
    /// Entries that the runner was told of.
    sent: usize,
}

impl WindowTable {
    fn blocks(&self) -> impl Iterator<Item = BlockId> {
        self.entries.iter().flatten().copied()
    }

    /// Hands over runs of entries that were not handed over before: index of the first, and the blocks.
    pub fn unsent(&mut self, mut tell: impl FnMut(usize, Vec<BlockId>)) {
        let mut at = std::mem::replace(&mut self.sent, self.entries.len());
        while at < self.entries.len() {
            let run: Vec<_> = self.entries[at..].iter().map_while(|&entry| entry).collect();
            let len = run.len().max(1);
            if !run.is_empty() {
                tell(at, run);
            }
            at += len;
        }
    }
}

struct Pool {
    limits: WindowPool,
    blocks: KvBlocks,
    /// Full-length blocks whose content a block holds for this pool's layers.
    owners: Vec<Option<BlockId>>,
    /// By full-length block.
    companions: Vec<Option<BlockId>>,
    /// Most blocks that sequences may claim together.
    capacity: usize,
    claimed: usize,
}

impl Pool {
    fn claim(&self, whole_blocks: usize, block_size: usize) -> usize {
        whole_blocks.min(self.limits.sequence_blocks(block_size))
    }

    /// Indices of blocks that a token at the beginning of block `end` sees among those before.
    fn seen(&self, end: usize, block_size: usize) -> (usize, usize) {
        let first = self.limits.first_seen(end * block_size) / block_size;
        (self.limits.sink_tokens.div_ceil(block_size).min(end), first.min(end))
    }

    fn take(&mut self) -> BlockId {
        let Some(block) = self.blocks.take() else {
            unreachable!("a window pool of {} blocks is used up: claims are wrong", self.blocks.len());
        };
        if let Some(owner) = self.owners[block.0 as usize].take() {
            self.companions[owner.0 as usize] = None;
        }
        block
    }

    fn put_back(&mut self, block: BlockId, prefix: &PrefixCache) {
        let value = self.owners[block.0 as usize].map(|owner| Worth::of(prefix.value(owner)));
        self.blocks.release(block, value.unwrap_or(Worth::NOTHING));
    }
}

/// All pools of windows.
pub(in crate::engine) struct Windows {
    pools: Vec<Pool>,
    block_size: usize,
}

impl Windows {
    /// `nodes`: full-length blocks. `in_flight_tokens`: most tokens in all steps in flight.
    pub fn new(pools: &[WindowPool], nodes: usize, block_size: usize, in_flight_tokens: usize) -> Self {
        let pool = |&limits: &WindowPool| Pool {
            // With a block beside every full-length one nothing can run short.
            capacity: match limits.num_blocks >= nodes {
                true => usize::MAX,
                false => limits.num_blocks.saturating_sub(in_flight_tokens.div_ceil(block_size)),
            },
            claimed: 0,
            blocks: KvBlocks::new(limits.num_blocks),
            owners: vec![None; limits.num_blocks],
            companions: vec![None; nodes],
            limits,
        };
        Self { pools: pools.iter().map(pool).collect(), block_size }
    }

    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// The first pool in which not even one sequence could run.
    pub fn too_small(&self) -> Option<WindowPool> {
        let lacks = |pool: &&Pool| pool.capacity < pool.limits.sequence_blocks(self.block_size);
        self.pools.iter().find(lacks).map(|pool| pool.limits)
    }

    /// Whether a sequence of so many blocks can start beside the others.
    pub fn have_room(&self, whole_blocks: usize) -> bool {
        let fits = |pool: &Pool| pool.claimed + pool.claim(whole_blocks, self.block_size) <= pool.capacity;
        self.pools.iter().all(fits)
    }

    pub fn claim(&mut self, whole_blocks: usize) {
        self.pools.iter_mut().for_each(|pool| pool.claimed += pool.claim(whole_blocks, self.block_size));
    }

    pub fn unclaim(&mut self, whole_blocks: usize) {
        self.pools.iter_mut().for_each(|pool| pool.claimed -= pool.claim(whole_blocks, self.block_size));
    }

    /// How many of these cached blocks can be reused: the token behind them finds all that it sees.
    pub fn usable(&self, full: &[BlockId]) -> usize {
        let (mut runs, mut sinks) = (vec![0; self.pools.len()], vec![0; self.pools.len()]);
        let mut usable = 0;
        for (at, block) in full.iter().enumerate() {
            let mut fits = true;
            for (index, pool) in self.pools.iter().enumerate() {
                let is_there = pool.companions[block.0 as usize].is_some();
                runs[index] = if is_there { runs[index] + 1 } else { 0 };
                sinks[index] += usize::from(is_there && sinks[index] == at);
                let (sink_blocks, first) = pool.seen(at + 1, self.block_size);
                fits &= runs[index] + first > at && sinks[index] >= sink_blocks;
            }
            if fits {
                usable = at + 1;
            }
        }
        usable
    }

    /// The tables of a sequence that begins with these cached blocks; nothing is taken yet.
    pub fn tables(&self, full: &[BlockId]) -> Vec<WindowTable> {
        let table = |pool: &Pool| {
            let companion = |at: usize| pool.companions[full[at].0 as usize];
            self.table(pool, full.len(), companion)
        };
        self.pools.iter().map(table).collect()
    }

    /// As [`Windows::tables`], from what another sequence holds; `None` when it does not hold enough.
    pub fn lend(&self, tables: &[WindowTable], blocks: usize) -> Option<Vec<WindowTable>> {
        let mut lent = Vec::with_capacity(tables.len());
        for (pool, table) in self.pools.iter().zip(tables) {
            let (sink_blocks, first) = pool.seen(blocks, self.block_size);
            let mut needed = (0..sink_blocks).chain(first.max(sink_blocks)..blocks);
            if needed.any(|at| table.entries.get(at).copied().flatten().is_none()) {
                return None;
            }
            lent.push(self.table(pool, blocks, |at| table.entries[at]));
        }
        Some(lent)
    }

    /// References on all blocks of the tables.
    pub fn hold(&mut self, tables: &[WindowTable]) {
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            table.blocks().for_each(|block| pool.blocks.retain(block));
        }
    }

    /// Takes blocks until the tables have `len` entries.
    pub fn grow(&mut self, tables: &mut [WindowTable], len: usize) {
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            while table.entries.len() < len {
                table.entries.push(Some(pool.take()));
            }
        }
    }

    /// Gives back what no token from position `next` on sees.
    pub fn shrink(&mut self, tables: &mut [WindowTable], next: usize, prefix: &PrefixCache) {
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            let until = (pool.limits.first_seen(next) / self.block_size).min(table.entries.len());
            let from = table.first.max(pool.limits.sink_tokens.div_ceil(self.block_size));
            for at in from..until {
                if let Some(block) = table.entries[at].take() {
                    pool.put_back(block, prefix);
                }
            }
            table.first = table.first.max(until);
        }
    }

    /// Gives everything back.
    pub fn release(&mut self, tables: &[WindowTable], prefix: &PrefixCache) {
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            table.entries.iter().rev().flatten().for_each(|&block| pool.put_back(block, prefix));
        }
    }

    /// What a sequence holds beside its block `at`, which is cached now, can be found there.
    pub fn adopt(&mut self, node: BlockId, at: usize, tables: &[WindowTable]) {
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            let Some(block) = table.entries.get(at).copied().flatten() else { continue };
            let (owner, companion) = (&mut pool.owners[block.0 as usize], &mut pool.companions[node.0 as usize]);
            if owner.is_none() && companion.is_none() {
                (*owner, *companion) = (Some(node), Some(block));
            }
        }
    }

    /// A full-length block is not cached any more.
    pub fn forget(&mut self, node: BlockId) {
        for pool in &mut self.pools {
            if let Some(block) = pool.companions[node.0 as usize].take() {
                pool.owners[block.0 as usize] = None;
                pool.blocks.revalue(block, Worth::NOTHING);
            }
        }
    }

    /// References equal the tables', companions and owners agree, and only cached blocks have companions.
    pub fn check<'a>(
        &self,
        tables: impl Iterator<Item = (&'a [WindowTable], usize)>,
        prefix: &PrefixCache,
    ) -> Result<(), String> {
        let mut refs: Vec<_> = self.pools.iter().map(|pool| vec![0; pool.blocks.len()]).collect();
        let mut claimed = vec![0; self.pools.len()];
        for (tables, whole_blocks) in tables {
            for (index, table) in tables.iter().enumerate() {
                table.blocks().for_each(|block| refs[index][block.0 as usize] += 1);
                claimed[index] += self.pools[index].claim(whole_blocks, self.block_size);
            }
        }
        for ((pool, refs), claimed) in self.pools.iter().zip(&refs).zip(claimed) {
            let named = |error| format!("window of {} tokens: {error}", pool.limits.window_tokens);
            pool.blocks.check(refs).map_err(named)?;
            if claimed != pool.claimed || claimed > pool.capacity {
                return Err(named(format!("{claimed} blocks are claimed, {} counted", pool.claimed)));
            }
            let pairs = pool.companions.iter().enumerate().filter_map(|(node, block)| Some((node, (*block)?)));
            for (node, block) in pairs.clone() {
                let node = BlockId(node as u32);
                if pool.owners[block.0 as usize] != Some(node) || !prefix.contains(node) {
                    return Err(named(format!("block {block} is wrongly the companion of block {node}")));
                }
            }
            if pairs.count() != pool.owners.iter().flatten().count() {
                return Err(named("a block has an owner that does not know it".into()));
            }
        }
        Ok(())
    }

    fn table(&self, pool: &Pool, len: usize, block: impl Fn(usize) -> Option<BlockId>) -> WindowTable {
        let (sink_blocks, first) = pool.seen(len, self.block_size);
        let entry = |at: usize| if at < sink_blocks || at >= first { block(at) } else { None };
        WindowTable { entries: (0..len).map(entry).collect(), first, sent: 0 }
    }
}
