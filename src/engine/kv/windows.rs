//! Blocks of layers that see a window of the context only.
//!
//! Every such pool has blocks of its own. A sequence has a table of each pool beside its table of full-length blocks, with
//! an entry for the same tokens; entries that no token to come sees are given back. What is found in the prefix cache is
//! found by its full-length block, whose companions hold the same tokens for the other layers. Companions outlive their
//! sequences like cached blocks do, but may be overwritten alone, and move to the host alone: a beginning is reusable as
//! far as all that the next token sees is still there.
//!
//! A sequence claims at its start what its windows can ever need, so a pool never runs out while it runs.

mod far;

use crate::engine::blocks::{KvBlocks, Worth};
use crate::engine::prefix::PrefixCache;
use crate::ids::BlockId;
use crate::step::{BlockCopy, WindowCopy, WindowPool};
pub(in crate::engine) use far::Descent;
use far::Transit;
use std::collections::HashMap;

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
    /// Of the host: block `b` has the number `limits.num_blocks + b` beside those of the device.
    host: KvBlocks,
    /// Full-length blocks, of either tier, whose content a block holds for this pool's layers.
    owners: Vec<Option<BlockId>>,
    /// By full-length block.
    companions: Vec<Option<BlockId>>,
    /// For each host block the transfer that reads it, or 0.
    ascending: Vec<u64>,
    /// Most blocks that sequences and transfers may claim together.
    capacity: usize,
    claimed: usize,
    /// Blocks of the device that transfers hold.
    in_transit: usize,
}

impl Pool {
    fn claim(&self, whole_blocks: usize, block_size: usize) -> usize {
        whole_blocks.min(self.limits.sequence_blocks(block_size))
    }

    /// Indices of blocks that a token at the beginning of block `end` sees among those before: the first ones up to, and
    /// those from.
    fn seen(&self, end: usize, block_size: usize) -> (usize, usize) {
        let first = self.limits.first_seen(end * block_size) / block_size;
        (self.limits.sink_tokens.div_ceil(block_size).min(end), first.min(end))
    }

    fn companion(&self, node: BlockId) -> Option<BlockId> {
        self.companions[node.0 as usize]
    }

    fn is_far(&self, block: BlockId) -> bool {
        block.0 as usize >= self.limits.num_blocks
    }

    /// Gives up a companion.
    fn part(&mut self, node: BlockId) {
        if let Some(block) = self.companions[node.0 as usize].take() {
            self.owners[block.0 as usize] = None;
            self.revalue(block, Worth::NOTHING);
        }
    }

    fn put_back(&mut self, block: BlockId, prefix: &PrefixCache) {
        let value = self.owners[block.0 as usize].map(|owner| Worth::of(prefix.value(owner)));
        let worth = value.unwrap_or(Worth::NOTHING);
        match self.is_far(block) {
            true => self.host.release(self.local(block), worth),
            false => self.blocks.release(block, worth),
        };
    }
}

/// All pools of windows.
pub(in crate::engine) struct Windows {
    pools: Vec<Pool>,
    block_size: usize,
    /// Sources of copies in the plan that is being made.
    pinned: Vec<(usize, BlockId)>,
    /// What went to the host since somebody asked.
    descents: Vec<Descent>,
    transits: HashMap<u64, Transit>,
}

impl Windows {
    /// `nodes`: full-length blocks of the device. `far_nodes`: those of the host. `host_blocks`: of each pool; may be
    /// empty. `in_flight_tokens`: most tokens in all steps in flight.
    pub fn new(
        pools: &[WindowPool],
        (nodes, far_nodes): (usize, usize),
        host_blocks: &[usize],
        block_size: usize,
        in_flight_tokens: usize,
    ) -> Self {
        let pool = |(at, &limits): (usize, &WindowPool)| {
            let host_blocks = host_blocks.get(at).copied().unwrap_or(0);
            Pool {
                // With a block beside every full-length one nothing can run short.
                capacity: match limits.num_blocks >= nodes {
                    true => usize::MAX,
                    false => limits.num_blocks.saturating_sub(in_flight_tokens.div_ceil(block_size)),
                },
                claimed: 0,
                in_transit: 0,
                blocks: KvBlocks::new(limits.num_blocks),
                host: KvBlocks::new(host_blocks),
                owners: vec![None; limits.num_blocks + host_blocks],
                companions: vec![None; nodes + far_nodes],
                ascending: vec![0; host_blocks],
                limits,
            }
        };
        Self {
            pools: pools.iter().enumerate().map(pool).collect(),
            block_size,
            pinned: Vec::new(),
            descents: Vec::new(),
            transits: HashMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// The first pool in which not even one sequence could run.
    pub fn too_small(&self) -> Option<WindowPool> {
        let lacks = |pool: &&Pool| pool.capacity < pool.limits.sequence_blocks(self.block_size);
        self.pools.iter().find(lacks).map(|pool| pool.limits)
    }

    /// Of each pool: what it is, and its blocks that sequences use.
    pub fn usage(&self) -> impl Iterator<Item = (WindowPool, usize)> {
        self.pools.iter().map(|pool| (pool.limits, pool.blocks.len() - pool.blocks.free()))
    }

    /// Whether a sequence of so many blocks can start beside the others.
    pub fn have_room(&self, whole_blocks: usize) -> bool {
        let fits = |pool: &Pool| {
            let taken = pool.claimed + pool.in_transit;
            taken + pool.claim(whole_blocks, self.block_size) <= pool.capacity
        };
        self.pools.iter().all(fits)
    }

    pub fn claim(&mut self, whole_blocks: usize) {
        self.pools.iter_mut().for_each(|pool| pool.claimed += pool.claim(whole_blocks, self.block_size));
    }

    pub fn unclaim(&mut self, whole_blocks: usize) {
        self.pools.iter_mut().for_each(|pool| pool.claimed -= pool.claim(whole_blocks, self.block_size));
    }

    /// How many of these cached blocks, of either tier, can be reused: the token behind them finds all that it sees, with
    /// `near` on the device.
    pub fn usable(&self, chain: &[BlockId], near: bool) -> usize {
        let is_there = |pool: &Pool, node| pool.companion(node).is_some_and(|block| !near || !pool.is_far(block));
        self.usable_by(chain.len(), |pool, at| is_there(&self.pools[pool], chain[at]))
    }

    /// As [`Windows::usable`] for `len` blocks, of which `is_there` says what pool has what.
    pub fn usable_by(&self, len: usize, is_there: impl Fn(usize, usize) -> bool) -> usize {
        let (mut runs, mut sinks) = (vec![0; self.pools.len()], vec![0; self.pools.len()]);
        let mut usable = 0;
        for at in 0..len {
            let mut fits = true;
            for (index, pool) in self.pools.iter().enumerate() {
                let is_there = is_there(index, at);
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
        let table = |pool: &Pool| self.table(pool, full.len(), |at| pool.companion(full[at]));
        self.pools.iter().map(table).collect()
    }

    /// What holds the same tokens as a full-length block, on the device; `None`: not all of it is there.
    pub fn near(&self, node: BlockId) -> Option<Vec<BlockId>> {
        self.near_pieces(node).into_iter().collect()
    }

    /// What is on the device beside a full-length block, by pool.
    pub fn near_pieces(&self, node: BlockId) -> Vec<Option<BlockId>> {
        let near = |pool: &Pool| pool.companion(node).filter(|&block| !pool.is_far(block));
        self.pools.iter().map(near).collect()
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

    /// What a sequence holds beside its block `at`; `None`: not all of it.
    pub fn beside(&self, tables: &[WindowTable], at: usize) -> Option<Vec<BlockId>> {
        tables.iter().map(|table| table.entries.get(at).copied().flatten()).collect()
    }

    /// References on all blocks of the tables.
    pub fn hold(&mut self, tables: &[WindowTable]) {
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            table.blocks().for_each(|block| pool.blocks.retain(block));
        }
    }

    /// Appends to each table a block that gets the first slots of another one, which is left alone until
    /// [`Windows::unpin`].
    pub fn copy(
        &mut self,
        tables: &mut [WindowTable],
        sources: &[BlockId],
        num_tokens: usize,
        prefix: &PrefixCache,
    ) -> Vec<WindowCopy> {
        let mut copies = Vec::with_capacity(sources.len());
        for (pool, (&from, table)) in sources.iter().zip(tables).enumerate() {
            self.pools[pool].blocks.retain(from);
            self.pinned.push((pool, from));
            let to = self.take(pool, prefix);
            table.entries.push(Some(to));
            copies.push(WindowCopy { pool, copy: BlockCopy { from, to, num_tokens } });
        }
        copies
    }

    /// The plan that copies was made.
    pub fn unpin(&mut self, prefix: &PrefixCache) {
        while let Some((pool, block)) = self.pinned.pop() {
            self.pools[pool].put_back(block, prefix);
        }
    }

    /// Takes blocks until the tables have `len` entries.
    pub fn grow(&mut self, tables: &mut [WindowTable], len: usize, prefix: &PrefixCache) {
        for (pool, table) in tables.iter_mut().enumerate() {
            while table.entries.len() < len {
                table.entries.push(Some(self.take(pool, prefix)));
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

    /// What a sequence holds beside its block `at`, which is cached now, can be found there. It takes the place of what
    /// was left there of other memory: who shares the block shares what is beside it.
    pub fn adopt(&mut self, node: BlockId, at: usize, tables: &[WindowTable]) {
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            let Some(block) = table.entries.get(at).copied().flatten() else { continue };
            if pool.owners[block.0 as usize].is_some() {
                continue;
            }
            pool.part(node);
            (pool.owners[block.0 as usize], pool.companions[node.0 as usize]) = (Some(node), Some(block));
        }
    }

    /// A full-length block is not cached any more.
    pub fn forget(&mut self, node: BlockId) {
        self.pools.iter_mut().for_each(|pool| pool.part(node));
    }

    /// What a full-length block held is in another one now, which had no companions.
    pub fn rename(&mut self, from: BlockId, to: BlockId) {
        for pool in &mut self.pools {
            let companion = pool.companions[from.0 as usize].take();
            if let Some(block) = companion {
                pool.owners[block.0 as usize] = Some(to);
            }
            pool.companions[to.0 as usize] = companion;
        }
    }

    /// References equal the tables' and the transfers', companions and owners agree, and only cached blocks have
    /// companions.
    pub fn check<'a>(
        &self,
        tables: impl Iterator<Item = (&'a [WindowTable], usize)>,
        prefix: &PrefixCache,
    ) -> Result<(), String> {
        let mut refs: Vec<_> = self.pools.iter().map(|pool| vec![0; pool.owners.len()]).collect();
        let mut claimed = vec![0; self.pools.len()];
        for (tables, whole_blocks) in tables {
            for (index, table) in tables.iter().enumerate() {
                table.blocks().for_each(|block| refs[index][block.0 as usize] += 1);
                claimed[index] += self.pools[index].claim(whole_blocks, self.block_size);
            }
        }
        let in_transit = self.transits.values().flat_map(Transit::held);
        self.pinned.iter().copied().chain(in_transit).for_each(|(pool, block)| refs[pool][block.0 as usize] += 1);
        for ((pool, refs), claimed) in self.pools.iter().zip(&refs).zip(claimed) {
            let named = |error| format!("window of {} tokens: {error}", pool.limits.window_tokens);
            let (near, far) = refs.split_at(pool.limits.num_blocks);
            pool.blocks.check(near).map_err(named)?;
            pool.host.check(far).map_err(|error| named(format!("host tier: {error}")))?;
            if claimed != pool.claimed || claimed + pool.in_transit > pool.capacity {
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
