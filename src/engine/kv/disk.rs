//! The tier that survives a restart: copies of cached blocks, on disk.
//!
//! A block is stored when its request ends, or when another one finds it in the cache, with all blocks before it, so that
//! what is on disk can be reached from its beginning; what the disk could not keep up with is stored when the engine is
//! shut down. What was found again is not given up for what came once. The blocks of the device stay where they are. What
//! a prompt continues with on disk is read into free blocks, which are cached from then on. An entry is known by its
//! block's chained hash and confirmed by comparison.

use std::collections::{BTreeSet, HashMap};

use super::tiers::Pending;
use super::{KvCache, Place, PrefixMatch};
use crate::engine::prefix::{Content, Space};
use crate::engine::request::{DEFAULT_RETENTION_PRIORITY, Keep};
use crate::ids::{BlockId, TokenId};
use crate::step::{DiskLimits, DiskOrder, Pieces, StoredPrefix};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Being written by this transfer.
    Storing(u64),
    Ready,
    /// Being read by this transfer.
    Loading(u64),
}

struct Entry {
    prefix: StoredPrefix,
    state: State,
    /// Whether another request has found it; then those before it are found again, too.
    again: bool,
    /// Later than those of the entries behind.
    used: u64,
}

/// What makes an entry worth more than another.
type Rank = (bool, u64);

/// What is on disk, and what shall happen there.
#[derive(Default)]
pub(super) struct Disk {
    max_blocks: usize,
    /// Most stores under way.
    max_stores: usize,
    stores: usize,
    entries: HashMap<u64, Entry>,
    by_use: BTreeSet<(Rank, u64)>,
    clock: u64,
    orders: Vec<DiskOrder>,
}

impl Disk {
    /// With what is there already; what cannot be reached from its beginning, or is too much, is removed.
    pub fn new(limits: DiskLimits) -> Self {
        let mut disk = Self { max_blocks: limits.max_blocks, max_stores: limits.max_stores, ..Self::default() };
        let mut known: HashMap<u64, StoredPrefix> = limits.stored.into_iter().map(|one| (one.key, one)).collect();
        let mut depth = vec![known.values().filter(|one| one.parent.is_none()).map(|one| one.key).collect::<Vec<_>>()];
        while let Some(above) = depth.last().filter(|above| !above.is_empty()) {
            let above: BTreeSet<_> = above.iter().copied().collect();
            let is_next = |one: &&StoredPrefix| one.parent.is_some_and(|parent| above.contains(&parent));
            depth.push(known.values().filter(is_next).map(|one| one.key).collect());
        }
        for key in depth.into_iter().rev().flatten() {
            if let Some(prefix) = known.remove(&key) {
                disk.insert(prefix, State::Ready, false);
            }
        }
        disk.orders.extend(known.into_keys().map(|key| DiskOrder::Remove { key }));
        while disk.entries.len() > disk.max_blocks && disk.evict((true, u64::MAX)) {}
        disk
    }

    pub fn is_there(&self) -> bool {
        self.max_blocks > 0
    }

    fn insert(&mut self, prefix: StoredPrefix, state: State, again: bool) {
        self.clock += 1;
        self.by_use.insert(((again, self.clock), prefix.key));
        self.entries.insert(prefix.key, Entry { prefix, state, again, used: self.clock });
    }

    fn touch(&mut self, key: u64, again: bool) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        self.clock += 1;
        self.by_use.remove(&((entry.again, entry.used), key));
        entry.again |= again;
        entry.used = self.clock;
        self.by_use.insert(((entry.again, entry.used), key));
    }

    fn remove(&mut self, key: u64) {
        if self.forget(key).is_some() {
            self.orders.push(DiskOrder::Remove { key });
        }
    }

    fn forget(&mut self, key: u64) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.by_use.remove(&((entry.again, entry.used), key));
        Some(entry)
    }

    /// Gives up the entry that was not used for longest, if that is worth less than `rank`.
    fn evict(&mut self, rank: Rank) -> bool {
        let is_ready =
            |&&(_, key): &&(Rank, u64)| self.entries.get(&key).is_some_and(|entry| entry.state == State::Ready);
        let oldest = self.by_use.iter().find(is_ready).copied();
        let Some((_, key)) = oldest.filter(|(used, _)| *used < rank) else { return false };
        self.remove(key);
        true
    }

    /// The entry that continues `parent` with these tokens.
    fn child(&self, key: u64, parent: Option<u64>, salt: u64, tokens: &[TokenId]) -> Option<&Entry> {
        let entry = self.entries.get(&key)?;
        let StoredPrefix { parent: before, salt: own_salt, tokens: held, .. } = &entry.prefix;
        let is_equal = *before == parent && *own_salt == salt && held == tokens;
        Some(entry).filter(|entry| is_equal && !matches!(entry.state, State::Storing(_)))
    }
}

impl KvCache {
    /// Adds the tier on disk.
    pub fn add_disk(&mut self, limits: DiskLimits) {
        if self.reuse {
            self.disk = Disk::new(limits);
        }
    }

    /// What shall happen on disk, behind the plans before.
    pub fn take_disk_orders(&mut self) -> Vec<DiskOrder> {
        std::mem::take(&mut self.disk.orders)
    }

    /// What a prompt goes on with on disk behind these cached blocks.
    pub(super) fn find_stored(
        &self,
        tokens: &[TokenId],
        extra_ids: &[u64],
        space: Space,
        full: &[BlockId],
    ) -> Vec<u64> {
        let mut found = Vec::new();
        let (mut at, end) = (full.len() * self.block_size, tokens.len() - 1);
        let mut parent = full.last().map(|&parent| self.prefix.hash(parent));
        let mut windows = Vec::new();
        while self.disk.is_there() && is_plain(space) && at + self.block_size <= end {
            let content = Content::of(tokens, extra_ids, at, at + self.block_size);
            let key = self.prefix.key_behind(parent, space, &content);
            let known = self.disk.child(key, parent, space.salt, content.tokens);
            let Some(entry) = known.filter(|_| content.extra_ids.is_empty()) else { break };
            windows.push(entry.prefix.windows);
            found.push(key);
            parent = Some(key);
            at += self.block_size;
        }
        if !self.windows.is_empty() && !found.is_empty() {
            let here: Vec<_> = full.iter().map(|&node| self.windows.near_pieces(node)).collect();
            let is_there = |pool: usize, at: usize| match at.checked_sub(full.len()) {
                None => here[at][pool].is_some(),
                Some(number) => windows[number] >> pool & 1 == 1,
            };
            let usable = self.windows.usable_by(full.len() + found.len(), is_there);
            found.truncate(usable.saturating_sub(full.len()));
        }
        found
    }

    /// The transfer that reads some of these entries.
    pub(super) fn loading(&self, keys: &[u64]) -> Option<u64> {
        let of_key = |key: &u64| match self.disk.entries.get(key)?.state {
            State::Loading(transfer) => Some(transfer),
            _ => None,
        };
        // Beside windows all must come together.
        let looked_at = if self.windows.is_empty() { keys.len().min(1) } else { keys.len() };
        keys[..looked_at].iter().find_map(of_key)
    }

    /// Starts to read what `found` goes on with on disk, as far as there is room; beside windows, all of it.
    pub(super) fn load(&mut self, found: &PrefixMatch) -> Option<u64> {
        let is_ready = |key: &&u64| self.disk.entries.get(key).is_some_and(|entry| entry.state == State::Ready);
        let keys: Vec<_> = found.stored.iter().take_while(is_ready).copied().collect();
        found.full.iter().for_each(|&block| self.retain(block));
        let mut blocks = Vec::with_capacity(keys.len());
        for key in keys {
            let Some((to, _)) = self.take() else { break };
            blocks.push((key, to));
        }
        if !self.windows.is_empty() && blocks.len() < found.stored.len() {
            blocks.drain(..).rev().for_each(|(_, to)| self.put_back(to));
        }
        if blocks.is_empty() {
            self.release(&found.full);
            return None;
        }
        let id = self.tiers.begin(Pending::Load { before: found.full.clone(), blocks: blocks.clone() });
        for (key, _) in blocks.iter().rev() {
            self.disk.touch(*key, true);
            if let Some(entry) = self.disk.entries.get_mut(key) {
                entry.state = State::Loading(id);
            }
        }
        let windows = match self.windows.is_empty() {
            true => vec![Vec::new(); blocks.len()],
            false => self.windows.load(id, &found.full, blocks.len(), &self.prefix),
        };
        self.queue_descents();
        let pieces = |((key, full), windows): ((u64, BlockId), _)| (key, Pieces { full, windows });
        self.disk.orders.push(DiskOrder::Load { id, blocks: blocks.into_iter().zip(windows).map(pieces).collect() });
        Some(id)
    }

    /// Stores these cached blocks, from the beginning of a prompt on, as far as they may be and are not stored yet.
    /// `again`: another request has found them.
    pub fn persist(&mut self, blocks: &[BlockId], again: bool) {
        if !self.disk.is_there() {
            return;
        }
        let since = self.disk.clock + 1;
        // What is stored already is not given up for what comes behind it.
        blocks.iter().rev().for_each(|&block| self.disk.touch(self.prefix.hash(block), again));
        let mut chain = Vec::new();
        for &block in blocks {
            if !self.may_be_stored(block) {
                break;
            }
            let key = self.prefix.hash(block);
            let is_known = self.disk.entries.contains_key(&key);
            let is_stored = if is_known && !self.has_more(block) { true } else { self.store(block, again, since) };
            if !is_stored && !is_known {
                break;
            }
            chain.push(key);
        }
        chain.into_iter().rev().for_each(|key| self.disk.touch(key, again));
    }

    /// Stores what is cached on the device and not on disk, as much as may be under way at a time. False: that was all.
    pub fn flush(&mut self) -> bool {
        if !self.disk.is_there() {
            return false;
        }
        let since = self.disk.clock + 1;
        let nodes = (0..self.blocks.len() as u32).map(BlockId);
        let mut left: Vec<_> = nodes.filter(|&node| self.is_cached(node) && self.may_be_stored(node)).collect();
        left.retain(|&node| !self.disk.entries.contains_key(&self.prefix.hash(node)));
        let is_reachable = |cache: &Self, node: BlockId| {
            let parent = cache.prefix.parent(node).map(|parent| cache.prefix.hash(parent));
            parent.is_none_or(|parent| cache.disk.entries.contains_key(&parent))
        };
        loop {
            let (next, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|&node| is_reachable(self, node));
            if next.is_empty() {
                return false;
            }
            for node in next {
                let is_full = self.disk.stores == self.disk.max_stores;
                if is_full || !self.store(node, false, since) {
                    return is_full;
                }
            }
            left = rest;
        }
    }

    fn may_be_stored(&self, block: BlockId) -> bool {
        let is_worth = self.prefix.value(block) >= DEFAULT_RETENTION_PRIORITY;
        let is_plain = is_plain(self.prefix.space(block)) && self.prefix.content(block).extra_ids.is_empty();
        is_worth && is_plain && self.is_full(block) && !self.tiers.is_host(block)
    }

    /// Whether more of a stored block is on the device than on disk.
    fn has_more(&self, block: BlockId) -> bool {
        let entry = self.disk.entries.get(&self.prefix.hash(block)).filter(|entry| entry.state == State::Ready);
        entry.is_some_and(|entry| {
            let (here, there) = (bits(&self.windows.near_pieces(block)), entry.prefix.windows);
            here != there && here & there == there
        })
    }

    /// Starts to store a block, where there is room or something that is worth less than it. Says whether.
    fn store(&mut self, block: BlockId, again: bool, since: u64) -> bool {
        let key = self.prefix.hash(block);
        let has_room = self.disk.entries.contains_key(&key) || self.disk.entries.len() < self.disk.max_blocks;
        if self.disk.stores >= self.disk.max_stores || !(has_room || self.disk.evict((again, since))) {
            return false;
        }
        let again = self.disk.forget(key).is_some_and(|entry| entry.again) || again;
        let from = Pieces { full: block, windows: self.windows.near_pieces(block) };
        let parent = self.prefix.parent(block).map(|parent| self.prefix.hash(parent));
        let (salt, tokens) = (self.prefix.space(block).salt, self.prefix.content(block).tokens.to_vec());
        let prefix = StoredPrefix { key, parent, salt, tokens, windows: bits(&from.windows) };
        let id = self.tiers.begin(Pending::Store { key });
        self.disk.stores += 1;
        self.disk.insert(prefix.clone(), State::Storing(id), again);
        self.disk.orders.push(DiskOrder::Store { id, from, prefix });
        true
    }

    pub(super) fn clear_disk(&mut self) {
        let keys: Vec<_> = self.disk.entries.keys().copied().collect();
        keys.into_iter().for_each(|key| self.disk.remove(key));
    }

    pub(super) fn land_store(&mut self, id: u64, key: u64, ok: bool) {
        self.disk.stores -= 1;
        let Some(entry) = self.disk.entries.get_mut(&key).filter(|entry| entry.state == State::Storing(id)) else {
            return;
        };
        entry.state = State::Ready;
        match ok {
            true => self.tiers.stats.stored_blocks += 1,
            false => self.disk.remove(key),
        }
    }

    /// What was read is cached, unless it has been computed or forgotten meanwhile.
    pub(super) fn land_load(&mut self, id: u64, before: &[BlockId], blocks: &[(u64, BlockId)], ok: bool) {
        let mut parent = before.last().copied();
        let mut goes_on = ok && parent.is_none_or(|parent| self.is_cached(parent));
        let mut top = None;
        let mut nodes = vec![None; blocks.len()];
        for (number, &(key, to)) in blocks.iter().enumerate() {
            let Some(entry) = self.disk.entries.get_mut(&key).filter(|entry| entry.state == State::Loading(id)) else {
                goes_on = false;
                continue;
            };
            entry.state = State::Ready;
            let prefix = entry.prefix.clone();
            if !ok {
                self.disk.remove(key);
                continue;
            }
            let space = Space { salt: prefix.salt, ..Space::default() };
            let content = Content { tokens: &prefix.tokens, extra_ids: &[] };
            if !goes_on || prefix.parent != parent.map(|parent| self.prefix.hash(parent)) {
                goes_on = false;
                continue;
            }
            if let Some(known) = self.prefix.child(parent, space, &content) {
                goes_on = !self.tiers.is_host(known);
                (parent, nodes[number]) = (Some(known), Some(known).filter(|_| goes_on));
                continue;
            }
            goes_on = self.declare(Place { parent, space, keep: Keep::default() }, &content, to);
            if goes_on {
                self.report_stored(to);
                self.tiers.stats.loaded_blocks += 1;
                (parent, top, nodes[number]) = (Some(to), top.or(Some(to)), Some(to));
            }
        }
        self.windows.land_load(id, &nodes, &self.prefix);
        blocks.iter().rev().for_each(|&(_, to)| self.put_back(to));
        if let Some(top) = top {
            self.reorder(top, self.prefix.value(top));
        }
        self.release(before);
    }

    pub(super) fn disk_blocks(&self) -> (usize, usize) {
        (self.disk.max_blocks, self.disk.entries.len())
    }

    pub(super) fn check_disk(&self) -> std::result::Result<(), String> {
        let Disk { entries, by_use, max_blocks, .. } = &self.disk;
        if entries.len() > *max_blocks || entries.len() != by_use.len() {
            return Err(format!("{} entries on disk, {} listed, room for {max_blocks}", entries.len(), by_use.len()));
        }
        let storing = entries.values().filter(|entry| matches!(entry.state, State::Storing(_))).count();
        if storing > self.disk.stores {
            return Err(format!("{storing} entries are being stored, {} counted", self.disk.stores));
        }
        let is_pending = |entry: &&Entry| match entry.state {
            State::Ready => true,
            State::Storing(id) | State::Loading(id) => self.is_under_way(id),
        };
        match entries.values().all(|entry| is_pending(&entry)) {
            true => Ok(()),
            false => Err("an entry on disk waits for a transfer that has landed".into()),
        }
    }
}

/// Whether content may outlive the process: an adapter of the same id can be another one then.
fn is_plain(space: Space) -> bool {
    space.lora_id.is_none() && space.private == 0
}

/// A bit for each pool that has something.
fn bits(pieces: &[Option<BlockId>]) -> u64 {
    pieces.iter().enumerate().fold(0, |bits, (pool, piece)| bits | u64::from(piece.is_some()) << pool)
}
