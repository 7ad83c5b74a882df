//! The tier that survives a restart: copies of what has been found again, on disk.
//!
//! A block is stored when a request finds it in the cache, with all blocks before it, so that what is on disk can be
//! reached from its beginning. The blocks of the device stay where they are. What a prompt continues with on disk is read
//! into free blocks, which are cached from then on. An entry is known by its block's chained hash and confirmed by
//! comparison.

use std::collections::{BTreeSet, HashMap};

use super::tiers::Pending;
use super::{KvCache, Place, PrefixMatch};
use crate::engine::prefix::{Content, Space};
use crate::engine::request::{DEFAULT_RETENTION_PRIORITY, Keep};
use crate::ids::{BlockId, TokenId};
use crate::step::{DiskLimits, DiskOrder, StoredPrefix};

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
    /// Later than those of the entries behind.
    used: u64,
}

/// What is on disk, and what shall happen there.
#[derive(Default)]
pub(super) struct Disk {
    max_blocks: usize,
    entries: HashMap<u64, Entry>,
    by_use: BTreeSet<(u64, u64)>,
    clock: u64,
    orders: Vec<DiskOrder>,
}

impl Disk {
    /// With what is there already; what cannot be reached from its beginning, or is too much, is removed.
    pub fn new(limits: DiskLimits) -> Self {
        let mut disk = Self { max_blocks: limits.max_blocks, ..Self::default() };
        let mut known: HashMap<u64, StoredPrefix> = limits.stored.into_iter().map(|one| (one.key, one)).collect();
        let mut depth = vec![known.values().filter(|one| one.parent.is_none()).map(|one| one.key).collect::<Vec<_>>()];
        while let Some(above) = depth.last().filter(|above| !above.is_empty()) {
            let above: BTreeSet<_> = above.iter().copied().collect();
            let is_next = |one: &&StoredPrefix| one.parent.is_some_and(|parent| above.contains(&parent));
            depth.push(known.values().filter(is_next).map(|one| one.key).collect());
        }
        for key in depth.into_iter().rev().flatten() {
            if let Some(prefix) = known.remove(&key) {
                disk.insert(prefix, State::Ready);
            }
        }
        disk.orders.extend(known.into_keys().map(|key| DiskOrder::Remove { key }));
        while disk.entries.len() > disk.max_blocks && disk.evict(u64::MAX) {}
        disk
    }

    pub fn is_there(&self) -> bool {
        self.max_blocks > 0
    }

    fn insert(&mut self, prefix: StoredPrefix, state: State) {
        self.clock += 1;
        self.by_use.insert((self.clock, prefix.key));
        self.entries.insert(prefix.key, Entry { prefix, state, used: self.clock });
    }

    fn touch(&mut self, key: u64) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        self.clock += 1;
        self.by_use.remove(&(entry.used, key));
        self.by_use.insert((self.clock, key));
        entry.used = self.clock;
    }

    fn remove(&mut self, key: u64) {
        if let Some(entry) = self.entries.remove(&key) {
            self.by_use.remove(&(entry.used, key));
            self.orders.push(DiskOrder::Remove { key });
        }
    }

    /// Gives up the entry that was not used for longest, if that was before `since`.
    fn evict(&mut self, since: u64) -> bool {
        let is_ready =
            |&&(_, key): &&(u64, u64)| self.entries.get(&key).is_some_and(|entry| entry.state == State::Ready);
        let oldest = self.by_use.iter().find(is_ready).copied();
        let Some((_, key)) = oldest.filter(|(used, _)| *used < since) else { return false };
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
        if self.reuse && self.windows.is_empty() {
            self.disk = Disk::new(limits);
        }
    }

    /// What shall happen on disk, behind the plans before.
    pub fn take_disk_orders(&mut self) -> Vec<DiskOrder> {
        std::mem::take(&mut self.disk.orders)
    }

    /// What a prompt goes on with on disk behind `parent`, from token `at` on.
    pub(super) fn find_stored(
        &self,
        tokens: &[TokenId],
        extra_ids: &[u64],
        space: Space,
        parent: Option<BlockId>,
    ) -> Vec<u64> {
        let mut found = Vec::new();
        let (mut at, end) = (self.disk_start(parent), tokens.len() - 1);
        let mut parent = parent.map(|parent| self.prefix.hash(parent));
        while self.disk.is_there() && is_plain(space) && at + self.block_size <= end {
            let content = Content::of(tokens, extra_ids, at, at + self.block_size);
            let key = self.prefix.key_behind(parent, space, &content);
            if !content.extra_ids.is_empty() || self.disk.child(key, parent, space.salt, content.tokens).is_none() {
                break;
            }
            found.push(key);
            parent = Some(key);
            at += self.block_size;
        }
        found
    }

    fn disk_start(&self, parent: Option<BlockId>) -> usize {
        let blocks = std::iter::successors(parent, |&block| self.prefix.parent(block)).count();
        blocks * self.block_size
    }

    /// The transfer that reads the first of these entries.
    pub(super) fn loading(&self, keys: &[u64]) -> Option<u64> {
        match self.disk.entries.get(keys.first()?)?.state {
            State::Loading(transfer) => Some(transfer),
            _ => None,
        }
    }

    /// Starts to read what `found` goes on with on disk, as far as there is room.
    pub(super) fn load(&mut self, found: &PrefixMatch) -> Option<u64> {
        let is_ready = |key: &&u64| self.disk.entries.get(key).is_some_and(|entry| entry.state == State::Ready);
        let keys: Vec<_> = found.stored.iter().take_while(is_ready).copied().collect();
        found.full.iter().for_each(|&block| self.retain(block));
        let mut blocks = Vec::with_capacity(keys.len());
        for key in keys {
            let Some((to, _)) = self.take() else { break };
            blocks.push((key, to));
        }
        if blocks.is_empty() {
            self.release(&found.full);
            return None;
        }
        let id = self.tiers.begin(Pending::Load { before: found.full.clone(), blocks: blocks.clone() });
        for (key, _) in blocks.iter().rev() {
            self.disk.touch(*key);
            if let Some(entry) = self.disk.entries.get_mut(key) {
                entry.state = State::Loading(id);
            }
        }
        self.disk.orders.push(DiskOrder::Load { id, blocks });
        Some(id)
    }

    /// Stores these cached blocks, from the beginning of a prompt on, as far as they may be and are not stored yet.
    pub fn persist(&mut self, blocks: &[BlockId]) {
        if !self.disk.is_there() {
            return;
        }
        let since = self.disk.clock;
        // What is stored already is not given up for what comes behind it.
        blocks.iter().rev().for_each(|&block| self.disk.touch(self.prefix.hash(block)));
        let mut chain = Vec::new();
        for &block in blocks {
            let key = self.prefix.hash(block);
            let content = self.prefix.content(block);
            let (space, parent) = (self.prefix.space(block), self.prefix.parent(block));
            let is_worth = self.prefix.value(block) >= DEFAULT_RETENTION_PRIORITY;
            if !is_plain(space) || !content.extra_ids.is_empty() || !is_worth {
                break;
            }
            chain.push(key);
            if self.disk.entries.contains_key(&key) {
                continue;
            }
            let parent = parent.map(|parent| self.prefix.hash(parent));
            let prefix = StoredPrefix { key, parent, salt: space.salt, tokens: content.tokens.to_vec() };
            if self.disk.entries.len() >= self.disk.max_blocks && !self.disk.evict(since) {
                chain.pop();
                break;
            }
            let id = self.tiers.begin(Pending::Store { key });
            self.disk.insert(prefix.clone(), State::Storing(id));
            self.disk.orders.push(DiskOrder::Store { id, from: block, prefix });
        }
        chain.into_iter().rev().for_each(|key| self.disk.touch(key));
    }

    pub(super) fn clear_disk(&mut self) {
        let keys: Vec<_> = self.disk.entries.keys().copied().collect();
        keys.into_iter().for_each(|key| self.disk.remove(key));
    }

    pub(super) fn land_store(&mut self, id: u64, key: u64, ok: bool) {
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
        for &(key, to) in blocks {
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
                parent = Some(known);
                continue;
            }
            goes_on = self.declare(Place { parent, space, keep: Keep::default() }, &content, to);
            if goes_on {
                self.report_stored(to);
                self.tiers.stats.loaded_blocks += 1;
                (parent, top) = (Some(to), top.or(Some(to)));
            }
        }
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
