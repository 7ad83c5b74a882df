//! Companions in host memory: where they go when their block is overwritten, and how they come back.

use super::{Pool, Windows};
use crate::engine::blocks::Worth;
use crate::engine::kv::tiers::OFFLOAD_MIN_PRIORITY;
use crate::engine::prefix::PrefixCache;
use crate::ids::{BlockId, HostBlockId};
use crate::step::{PoolCopy, TierCopy};

/// A companion that went to the host.
pub(in crate::engine) struct Descent {
    pool: usize,
    from: BlockId,
    to: HostBlockId,
    /// Of its owner.
    hash: u64,
}

impl Descent {
    pub fn copy(&self) -> PoolCopy {
        PoolCopy { pool: self.pool + 1, copy: TierCopy::Offload { from: self.from, to: self.to } }
    }
}

/// A companion on its way to the device.
struct Ascent {
    pool: usize,
    /// On the host.
    from: BlockId,
    to: BlockId,
    /// Of its owner.
    hash: u64,
}

/// What one transfer holds.
pub(super) struct Transit {
    ascents: Vec<Ascent>,
    /// What the same sequence will need beside it.
    near: Vec<(usize, BlockId)>,
    /// For blocks that come from disk: pool, number among them, and where to.
    loads: Vec<(usize, usize, BlockId)>,
}

impl Transit {
    pub fn held(&self) -> impl Iterator<Item = (usize, BlockId)> {
        let moved = self.ascents.iter().flat_map(|ascent| [(ascent.pool, ascent.from), (ascent.pool, ascent.to)]);
        let loads = self.loads.iter().map(|&(pool, _, to)| (pool, to));
        moved.chain(self.near.iter().copied()).chain(loads)
    }
}

impl Pool {
    pub(super) fn local(&self, block: BlockId) -> BlockId {
        BlockId(block.0 - self.limits.num_blocks as u32)
    }

    pub(super) fn revalue(&mut self, block: BlockId, worth: Worth) {
        match self.is_far(block) {
            true => self.host.revalue(self.local(block), worth),
            false => self.blocks.revalue(block, worth),
        }
    }

    /// Moves what a block holds for `owner` to the host, if it is worth it and there is room.
    fn descend(&mut self, owner: BlockId, prefix: &PrefixCache, block_size: usize) -> Option<HostBlockId> {
        let is_full = prefix.content(owner).tokens.len() == block_size;
        if !is_full || prefix.value(owner) < OFFLOAD_MIN_PRIORITY {
            return None;
        }
        let to = self.host.take()?;
        let far = BlockId(self.limits.num_blocks as u32 + to.0);
        if let Some(former) = self.owners[far.0 as usize].replace(owner) {
            self.companions[former.0 as usize] = None;
        }
        self.companions[owner.0 as usize] = Some(far);
        self.host.release(to, Worth::of(prefix.value(owner)));
        Some(HostBlockId(to.0))
    }
}

impl Windows {
    /// A block of a pool; what it held for others goes to the host.
    pub(super) fn take(&mut self, pool: usize, prefix: &PrefixCache) -> BlockId {
        let of = &mut self.pools[pool];
        let Some(from) = of.blocks.take() else {
            unreachable!("a window pool of {} blocks is used up: claims are wrong", of.blocks.len());
        };
        if let Some(owner) = of.owners[from.0 as usize].take() {
            of.companions[owner.0 as usize] = None;
            if let Some(to) = of.descend(owner, prefix, self.block_size) {
                self.descents.push(Descent { pool, from, to, hash: prefix.hash(owner) });
            }
        }
        from
    }

    /// What went to the host since the last call; must be copied before anything that comes back later.
    pub fn take_descents(&mut self) -> Vec<Descent> {
        std::mem::take(&mut self.descents)
    }

    /// Copies to the host have failed: what they were to bring is lost.
    pub fn lose(&mut self, descents: &[Descent], prefix: &PrefixCache) {
        for &Descent { pool, to, hash, .. } in descents {
            let pool = &mut self.pools[pool];
            let far = BlockId(pool.limits.num_blocks as u32 + to.0);
            if let Some(owner) = pool.owners[far.0 as usize].filter(|&owner| prefix.hash(owner) == hash) {
                pool.part(owner);
            }
        }
    }

    /// What the token behind these cached blocks sees, by pool.
    fn in_sight<'a>(&'a self, chain: &'a [BlockId]) -> impl Iterator<Item = (usize, BlockId, BlockId)> + 'a {
        self.pools.iter().enumerate().flat_map(move |(index, pool)| {
            let (sink_blocks, first) = pool.seen(chain.len(), self.block_size);
            let seen = (0..sink_blocks).chain(first.max(sink_blocks)..chain.len());
            seen.filter_map(move |at| Some((index, chain[at], pool.companion(chain[at])?)))
        })
    }

    /// Whether some of it is on the host.
    pub fn needs_far(&self, chain: &[BlockId]) -> bool {
        self.in_sight(chain).any(|(pool, _, block)| self.pools[pool].is_far(block))
    }

    /// A transfer that brings some of it.
    pub fn ascending(&self, chain: &[BlockId]) -> Option<u64> {
        let transfer = |(pool, _, block): (usize, BlockId, BlockId)| {
            let pool = &self.pools[pool];
            if pool.is_far(block) { pool.ascending[pool.local(block).0 as usize] } else { 0 }
        };
        self.in_sight(chain).map(transfer).find(|&transfer| transfer > 0)
    }

    /// Starts to bring what the token behind these cached blocks sees to the device; the caller has seen that a sequence
    /// with them has room. Descents that this leads to come before the copies.
    pub fn ascend(&mut self, transfer: u64, chain: &[BlockId], prefix: &PrefixCache) -> Vec<PoolCopy> {
        let seen: Vec<_> = self.in_sight(chain).collect();
        let mut transit = Transit { ascents: Vec::new(), near: Vec::new(), loads: Vec::new() };
        for &(index, _, block) in &seen {
            let pool = &mut self.pools[index];
            pool.in_transit += 1;
            match pool.is_far(block) {
                true => pool.host.retain(pool.local(block)),
                false => {
                    pool.blocks.retain(block);
                    transit.near.push((index, block));
                }
            }
        }
        for (index, node, from) in seen {
            if self.pools[index].is_far(from) {
                let to = self.take(index, prefix);
                let pool = &mut self.pools[index];
                let local = pool.local(from).0 as usize;
                pool.ascending[local] = transfer;
                transit.ascents.push(Ascent { pool: index, from, to, hash: prefix.hash(node) });
            }
        }
        let copy = |ascent: &Ascent| {
            let from = HostBlockId(self.pools[ascent.pool].local(ascent.from).0);
            PoolCopy { pool: ascent.pool + 1, copy: TierCopy::Onboard { from, to: ascent.to } }
        };
        let copies = transit.ascents.iter().map(copy).collect();
        self.transits.insert(transfer, transit);
        copies
    }

    /// Starts to read what the token behind these cached blocks, and `more` blocks that are on disk, sees of the latter:
    /// where each of these goes in every pool. The caller has seen that a sequence with them has room.
    pub fn load(
        &mut self,
        transfer: u64,
        chain: &[BlockId],
        more: usize,
        prefix: &PrefixCache,
    ) -> Vec<Vec<Option<BlockId>>> {
        let mut targets = vec![vec![None; self.pools.len()]; more];
        let mut transit = Transit { ascents: Vec::new(), near: Vec::new(), loads: Vec::new() };
        let end = chain.len() + more;
        let seen: Vec<_> = self.pools.iter().map(|pool| pool.seen(end, self.block_size)).collect();
        let in_sight = |(sinks, first): (usize, usize)| (0..sinks).chain(first.max(sinks)..end);
        for (index, &seen) in seen.iter().enumerate() {
            let pool = &mut self.pools[index];
            let here = in_sight(seen).filter_map(|at| pool.companions[chain.get(at)?.0 as usize]);
            transit.near.extend(here.filter(|&block| !pool.is_far(block)).map(|block| (index, block)));
        }
        for &(index, block) in &transit.near {
            self.pools[index].in_transit += 1;
            self.pools[index].blocks.retain(block);
        }
        for (index, &seen) in seen.iter().enumerate() {
            for number in in_sight(seen).filter_map(|at| at.checked_sub(chain.len())) {
                let to = self.take(index, prefix);
                self.pools[index].in_transit += 1;
                transit.loads.push((index, number, to));
                targets[number][index] = Some(to);
            }
        }
        self.transits.insert(transfer, transit);
        targets
    }

    /// What was read from disk has come, to the cached blocks `nodes`; `None`: it is of no use.
    pub fn land_load(&mut self, transfer: u64, nodes: &[Option<BlockId>], prefix: &PrefixCache) {
        let Some(Transit { near, loads, .. }) = self.transits.remove(&transfer) else { return };
        for (index, number, to) in loads {
            let pool = &mut self.pools[index];
            pool.in_transit -= 1;
            let node = nodes.get(number).copied().flatten();
            if let Some(node) = node.filter(|&node| pool.companion(node).is_none_or(|block| pool.is_far(block))) {
                pool.part(node);
                (pool.owners[to.0 as usize], pool.companions[node.0 as usize]) = (Some(node), Some(to));
            }
            pool.put_back(to, prefix);
        }
        for (index, block) in near {
            self.pools[index].in_transit -= 1;
            self.pools[index].put_back(block, prefix);
        }
    }

    /// A transfer has ended: what it brought is on the device from now on, what it did not bring is lost. How many came.
    pub fn land(&mut self, transfer: u64, ok: bool, prefix: &PrefixCache) -> u64 {
        let Some(Transit { ascents, near, .. }) = self.transits.remove(&transfer) else { return 0 };
        let mut landed = 0;
        for Ascent { pool, from, to, hash } in ascents {
            let pool = &mut self.pools[pool];
            let local = pool.local(from).0 as usize;
            pool.ascending[local] = 0;
            pool.in_transit -= 1;
            if let Some(owner) = pool.owners[from.0 as usize].filter(|&owner| prefix.hash(owner) == hash) {
                pool.part(owner);
                if ok {
                    pool.owners[to.0 as usize] = Some(owner);
                    pool.companions[owner.0 as usize] = Some(to);
                    landed += 1;
                }
            }
            pool.put_back(to, prefix);
            pool.put_back(from, prefix);
        }
        for (pool, block) in near {
            self.pools[pool].in_transit -= 1;
            self.pools[pool].put_back(block, prefix);
        }
        landed
    }
}
