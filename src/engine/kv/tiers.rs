//! The host tier: where content goes that the device has no room for, and how it comes back.
//!
//! Blocks of both tiers are nodes of one tree: those of the host are numbered behind those of the device. Content moves
//! by renaming its node, so that it is found in one place only. A child never sits on the device while its parent sits
//! on the host, since children are given up before parents and come back behind them.

use std::collections::HashMap;

use super::windows::Descent;
use super::{KvCache, PrefixMatch};
use crate::engine::blocks::{KvBlocks, Worth};
use crate::engine::events::{EventDiff, KvEventData};
use crate::engine::request::DEFAULT_RETENTION_PRIORITY;
use crate::engine::stats::TierStats;
use crate::ids::{BlockId, HostBlockId};
use crate::step::{Landed, PoolCopy, TierCopy, Transfer};

/// Content that is worth less is given up when the device needs its block. TensorRT-LLM's
/// `secondary_offload_min_priority`.
pub(super) const OFFLOAD_MIN_PRIORITY: u8 = DEFAULT_RETENTION_PRIORITY;

/// Level of a tier in events.
const DEVICE_LEVEL: u32 = 0;
const HOST_LEVEL: u32 = 1;

/// A block on its way to the device.
pub(super) struct Ascent {
    node: BlockId,
    hash: u64,
    to: BlockId,
}

pub(super) enum Pending {
    Offload {
        node: BlockId,
        hash: u64,
    },
    /// Of blocks of windows.
    Descend {
        descents: Vec<Descent>,
    },
    /// Holds a reference on all of its blocks.
    Onboard {
        before: Vec<BlockId>,
        ascents: Vec<Ascent>,
    },
    Store {
        key: u64,
    },
    /// Holds a reference on all of its blocks.
    Load {
        before: Vec<BlockId>,
        blocks: Vec<(u64, BlockId)>,
    },
}

/// Host memory in blocks, and the transfers that are under way.
pub(super) struct Tiers {
    /// Number of the first host block's node: the blocks of the device.
    first: u32,
    pool: KvBlocks,
    /// For each host block the transfer that reads it, or 0.
    ascending: Vec<u64>,
    pending: HashMap<u64, Pending>,
    onboarding: usize,
    queued: Vec<Transfer>,
    next_id: u64,
    pub(super) stats: TierStats,
}

impl Tiers {
    pub fn new(device_blocks: usize, host_blocks: usize) -> Self {
        Self {
            first: device_blocks as u32,
            pool: KvBlocks::new(host_blocks),
            ascending: vec![0; host_blocks],
            pending: HashMap::new(),
            onboarding: 0,
            queued: Vec::new(),
            next_id: 1,
            stats: TierStats::default(),
        }
    }

    pub fn is_host(&self, node: BlockId) -> bool {
        node.0 >= self.first
    }

    fn local(&self, node: BlockId) -> BlockId {
        BlockId(node.0 - self.first)
    }

    fn host_block(&self, node: BlockId) -> HostBlockId {
        HostBlockId(node.0 - self.first)
    }

    fn queue(&mut self, copies: Vec<PoolCopy>, pending: Pending) -> u64 {
        let id = self.begin(pending);
        self.queued.push(Transfer { id, copies });
        id
    }

    /// The number of a new transfer.
    pub(super) fn begin(&mut self, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.onboarding += usize::from(matches!(pending, Pending::Onboard { .. } | Pending::Load { .. }));
        self.pending.insert(id, pending);
        id
    }
}

impl KvCache {
    /// Transfers to start before the plan that was made last.
    pub fn take_transfers(&mut self) -> Vec<Transfer> {
        std::mem::take(&mut self.tiers.queued)
    }

    /// Whether a transfer has been started that has not landed.
    pub fn awaits_transfers(&self) -> bool {
        !self.tiers.pending.is_empty()
    }

    /// Transfers to the device that have not landed.
    pub fn onboarding(&self) -> usize {
        self.tiers.onboarding
    }

    pub fn is_under_way(&self, transfer: u64) -> bool {
        self.tiers.pending.contains_key(&transfer)
    }

    pub fn tier_stats(&self) -> TierStats {
        let host_blocks = self.tiers.pool.len();
        let (disk_blocks, disk_cached_blocks) = self.disk_blocks();
        let host_cached_blocks = self.prefix.far();
        TierStats { host_blocks, host_cached_blocks, disk_blocks, disk_cached_blocks, ..self.tiers.stats }
    }

    /// The transfer that somebody has started and that continues `found` on the device.
    pub fn ascending(&self, found: &PrefixMatch) -> Option<u64> {
        let of_node = |&node: &BlockId| self.tiers.ascending[self.tiers.local(node).0 as usize];
        let first = found.lower.first().map_or(0, of_node);
        if first > 0 {
            return Some(first);
        }
        if self.windows.is_empty() {
            return self.loading(&found.stored);
        }
        let later = found.lower.iter().map(of_node).find(|&transfer| transfer > 0);
        later.or_else(|| self.windows.ascending(&found.chain())).or_else(|| self.loading(&found.stored))
    }

    /// Starts the copies to the host that the pools of windows have led to.
    pub(super) fn queue_descents(&mut self) {
        let descents = self.windows.take_descents();
        if descents.is_empty() {
            return;
        }
        self.tiers.stats.offloaded_blocks += descents.len() as u64;
        let copies = descents.iter().map(Descent::copy).collect();
        self.tiers.queue(copies, Pending::Descend { descents });
    }

    /// Starts to bring the blocks of `found` that are on the host to the device, as far as there is room (beside windows:
    /// all of them); the caller has seen that the sequence fits. The transfer, or `None` if there is nothing to bring, or
    /// no room.
    pub fn fetch(&mut self, found: &PrefixMatch) -> Option<u64> {
        if found.lower.is_empty() && !found.far_windows {
            return self.load(found);
        }
        let is_settled = |node: &&BlockId| self.tiers.ascending[self.tiers.local(**node).0 as usize] == 0;
        let nodes: Vec<_> = found.lower.iter().take_while(is_settled).copied().collect();
        if nodes.is_empty() && !found.far_windows {
            return None;
        }
        found.full.iter().chain(&nodes).for_each(|&block| self.retain(block));
        let mut ascents = Vec::with_capacity(nodes.len());
        for &node in &nodes {
            let Some((to, _)) = self.take() else { break };
            ascents.push(Ascent { node, hash: self.prefix.hash(node), to });
        }
        if !self.windows.is_empty() && ascents.len() < found.lower.len() {
            ascents.drain(..).rev().for_each(|ascent: Ascent| self.put_back(ascent.to));
        }
        nodes[ascents.len()..].iter().rev().for_each(|&node| self.put_back(node));
        if ascents.is_empty() && !(nodes.is_empty() && found.far_windows) {
            self.release(&found.full);
            return None;
        }
        let copy = |ascent: &Ascent| {
            let copy = TierCopy::Onboard { from: self.tiers.host_block(ascent.node), to: ascent.to };
            PoolCopy { pool: 0, copy }
        };
        let mut copies: Vec<_> = ascents.iter().map(copy).collect();
        let locals: Vec<_> = ascents.iter().map(|ascent| self.tiers.local(ascent.node).0 as usize).collect();
        let id = self.tiers.begin(Pending::Onboard { before: found.full.clone(), ascents });
        if !self.windows.is_empty() {
            copies.extend(self.windows.ascend(id, &found.chain(), &self.prefix));
            self.queue_descents();
        }
        self.tiers.queued.push(Transfer { id, copies });
        locals.into_iter().for_each(|at| self.tiers.ascending[at] = id);
        Some(id)
    }

    /// A transfer has ended: what it brought is on the device from now on, what it did not bring is forgotten.
    pub fn land(&mut self, landed: Landed) {
        let Some(pending) = self.tiers.pending.remove(&landed.id) else { return };
        self.tiers.stats.failed_transfers += u64::from(!landed.ok);
        match pending {
            Pending::Offload { node, hash } => self.land_offload(node, hash, landed.ok),
            Pending::Descend { descents } if !landed.ok => self.windows.lose(&descents, &self.prefix),
            Pending::Descend { .. } => {}
            Pending::Onboard { before, ascents } => {
                self.tiers.onboarding -= 1;
                self.land_onboard(&before, &ascents, landed.ok);
                self.tiers.stats.onboarded_blocks += self.windows.land(landed.id, landed.ok, &self.prefix);
            }
            Pending::Store { key } => self.land_store(landed.id, key, landed.ok),
            Pending::Load { before, blocks } => {
                self.tiers.onboarding -= 1;
                self.land_load(landed.id, &before, &blocks, landed.ok);
            }
        }
    }

    /// Ends every transfer as failed: the executor has gone.
    pub fn abandon_transfers(&mut self) {
        self.tiers.queued.clear();
        self.take_disk_orders();
        let ids: Vec<_> = self.tiers.pending.keys().copied().collect();
        ids.into_iter().for_each(|id| self.land(Landed { id, ok: false }));
    }

    /// Moves the content of a block that is about to be overwritten to the host, if it is worth it and there is room.
    pub(super) fn offload(&mut self, block: BlockId) -> bool {
        if self.tiers.pool.free() == 0 || !self.is_full(block) || self.prefix.value(block) < OFFLOAD_MIN_PRIORITY {
            return false;
        }
        let Some(to) = self.tiers.pool.take() else { return false };
        let node = BlockId(self.tiers.first + to.0);
        if self.prefix.contains(node) {
            self.end_expiry(node);
            self.tiers.stats.host_evicted_blocks += 1;
            self.forget(node);
        }
        let (hash, expiry_ns) = (self.prefix.hash(block), self.timers[block.0 as usize].expiry_ns);
        self.end_expiry(block);
        self.rename(block, node, DEVICE_LEVEL, HOST_LEVEL);
        self.put_back(node);
        self.continue_expiry(node, expiry_ns);
        self.tiers.stats.offloaded_blocks += 1;
        let copy = TierCopy::Offload { from: block, to: self.tiers.host_block(node) };
        self.tiers.queue(vec![PoolCopy { pool: 0, copy }], Pending::Offload { node, hash });
        true
    }

    /// What is on the host has been computed again: the device's block takes its place.
    pub(super) fn supersede(&mut self, node: BlockId, block: BlockId) {
        self.end_expiry(node);
        self.rename(node, block, HOST_LEVEL, DEVICE_LEVEL);
        self.tiers.pool.revalue(self.tiers.local(node), Worth::NOTHING);
    }

    /// The list that a node's block is in when nobody uses it.
    pub(super) fn revalue(&mut self, node: BlockId, worth: Worth) {
        match self.tiers.is_host(node) {
            true => self.tiers.pool.revalue(self.tiers.local(node), worth),
            false => self.blocks.revalue(node, worth),
        }
    }

    /// The worth of a node whose block nobody uses.
    pub(super) fn worth(&self, node: BlockId) -> Option<Worth> {
        match self.tiers.is_host(node) {
            true => self.tiers.pool.worth(self.tiers.local(node)),
            false => self.blocks.worth(node),
        }
    }

    pub(super) fn hold(&mut self, node: BlockId) {
        match self.tiers.is_host(node) {
            true => self.tiers.pool.retain(self.tiers.local(node)),
            false => self.blocks.retain(node),
        }
    }

    pub(super) fn let_go(&mut self, node: BlockId, worth: Worth) -> bool {
        match self.tiers.is_host(node) {
            true => self.tiers.pool.release(self.tiers.local(node), worth),
            false => self.blocks.release(node, worth),
        }
    }

    /// Blocks of the device that transfers hold, for the check.
    pub(super) fn held_by_transfers(&self) -> impl Iterator<Item = BlockId> {
        let held = |pending: &Pending| match pending {
            Pending::Offload { .. } | Pending::Descend { .. } | Pending::Store { .. } => Vec::new(),
            Pending::Load { before, blocks } => {
                before.iter().copied().chain(blocks.iter().map(|(_, to)| *to)).collect()
            }
            Pending::Onboard { before, ascents } => {
                before.iter().copied().chain(ascents.iter().map(|ascent| ascent.to)).collect()
            }
        };
        self.tiers.pending.values().flat_map(held)
    }

    /// References to host blocks equal the transfers', its free lists the rest, and no child is above its parent.
    pub(super) fn check_tiers(&self) -> Result<(), String> {
        let mut refs = vec![0; self.tiers.pool.len()];
        for pending in self.tiers.pending.values() {
            if let Pending::Onboard { ascents, .. } = pending {
                ascents.iter().for_each(|ascent| refs[self.tiers.local(ascent.node).0 as usize] += 1);
            }
        }
        self.tiers.pool.check(&refs).map_err(|error| format!("host tier: {error}"))?;
        let is_up = |pending: &&Pending| matches!(pending, Pending::Onboard { .. } | Pending::Load { .. });
        let onboarding = self.tiers.pending.values().filter(is_up);
        if onboarding.count() != self.tiers.onboarding {
            return Err(format!("{} transfers to the device are counted", self.tiers.onboarding));
        }
        let order = self.tiers.pool.order().map(|block| BlockId(self.tiers.first + block.0));
        self.check_order(order, self.prefix.nodes())?;
        for node in (0..self.tiers.first).map(BlockId).filter(|&node| self.prefix.contains(node)) {
            if self.prefix.parent(node).is_some_and(|parent| self.tiers.is_host(parent)) {
                return Err(format!("block {node} is on the device, the one before it is not"));
            }
        }
        Ok(())
    }

    fn land_offload(&mut self, node: BlockId, hash: u64, ok: bool) {
        if !ok && self.holds(node, hash) {
            self.end_expiry(node);
            self.forget(node);
            self.revalue(node, Worth::NOTHING);
        }
    }

    fn land_onboard(&mut self, before: &[BlockId], ascents: &[Ascent], ok: bool) {
        for ascent in ascents {
            let local = self.tiers.local(ascent.node).0 as usize;
            self.tiers.ascending[local] = 0;
            if !self.holds(ascent.node, ascent.hash) {
                continue;
            }
            // The block before may have been computed again, and given up again, meanwhile.
            let is_behind_device = self.prefix.parent(ascent.node).is_none_or(|parent| !self.tiers.is_host(parent));
            if !ok {
                self.forget(ascent.node);
            } else if is_behind_device {
                self.rename(ascent.node, ascent.to, HOST_LEVEL, DEVICE_LEVEL);
                self.tiers.stats.onboarded_blocks += 1;
            }
        }
        for ascent in ascents.iter().rev() {
            self.put_back(ascent.to);
            self.put_back(ascent.node);
        }
        for side in [|ascent: &Ascent| ascent.to, |ascent: &Ascent| ascent.node] {
            if let Some(top) = ascents.iter().map(side).find(|&block| self.prefix.contains(block)) {
                self.reorder(top, self.prefix.value(top));
            }
        }
        self.release(before);
    }

    /// Whether the node still holds what it held when its hash was taken.
    fn holds(&self, node: BlockId, hash: u64) -> bool {
        self.prefix.contains(node) && self.prefix.hash(node) == hash
    }

    /// Moves content, its timer included, to a block of another tier.
    fn rename(&mut self, from: BlockId, to: BlockId, old_value: u32, new_value: u32) {
        self.prefix.rename(from, to);
        self.windows.rename(from, to);
        self.timers[to.0 as usize].duration_ns = self.timers[from.0 as usize].duration_ns;
        if let Some(events) = &self.events {
            let diff = Some(EventDiff { new_value, old_value });
            let block_hash = self.prefix.hash(to);
            events.push(KvEventData::Updated { block_hash, cache_level: diff, priority: None });
        }
    }
}
