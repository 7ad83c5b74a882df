//! Host memory and a disk behind the fake device.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{FakeExecutor, Slot, extend};
use crate::ids::TokenId;
use crate::step::{Pieces, PoolCopy, StoredPrefix, TierCopy, Transfer};

/// Host memory behind the fake device: copies to it are made at once, copies from it when they land.
#[derive(Default)]
pub(super) struct FakeTiers {
    pub(super) host: Vec<Slot>,
    /// Of each pool of windows.
    pub(super) window_hosts: Vec<Vec<Slot>>,
    /// Of 100 transfers.
    pub(super) failing: u64,
    /// Times that somebody must ask before a transfer lands.
    pub(super) delay: usize,
    pub(super) asked: usize,
    pub(super) open: VecDeque<(Open, usize)>,
    pub(super) disk: Option<FakeDisk>,
}

/// A disk that outlives executors.
#[derive(Clone, Default)]
pub struct FakeDisk {
    pub(super) max_blocks: usize,
    pub(super) max_stores: usize,
    pub(super) files: Arc<Mutex<HashMap<u64, FakeFile>>>,
}

/// The slots of each pool, those of full length first; none of a pool that had nothing.
pub(super) type FakeFile = (StoredPrefix, Vec<Vec<Slot>>);

impl FakeDisk {
    /// Room for so many blocks.
    pub fn new(max_blocks: usize) -> Self {
        Self { max_blocks, max_stores: usize::MAX, ..Self::default() }
    }

    /// The disk that takes so many blocks at a time only.
    pub fn slow(self, max_stores: usize) -> Self {
        Self { max_stores, ..self }
    }

    /// Blocks on it.
    pub fn len(&self) -> usize {
        self.files.lock().len()
    }

    /// Whether there is nothing on it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A transfer that has not landed.
pub(super) enum Open {
    Copies(Transfer),
    Store { id: u64 },
    Load { id: u64, blocks: Vec<(u64, Pieces)> },
}

impl Open {
    pub(super) fn id(&self) -> u64 {
        match self {
            Self::Copies(Transfer { id, .. }) | Self::Store { id } | Self::Load { id, .. } => *id,
        }
    }
}

impl FakeExecutor {
    /// One block's slots from one tier to another; garbage if the transfer fails.
    pub(super) fn copy_tier(&mut self, PoolCopy { pool, copy }: PoolCopy, fails: bool) {
        let size = self.limits.block_size_tokens;
        let range = |block: u32| block as usize * size..(block as usize + 1) * size;
        let (device, host) = match pool.checked_sub(1) {
            None => (&mut self.slots, &mut self.tiers.host),
            Some(window) => (&mut self.windows[window].1, &mut self.tiers.window_hosts[window]),
        };
        let (source, target) = match copy {
            TierCopy::Offload { from, to } => (&device[range(from.0)], &mut host[range(to.0)]),
            TierCopy::Onboard { from, to } => (&host[range(from.0)], &mut device[range(to.0)]),
        };
        match fails {
            true => target.fill(Slot::default()),
            false => target.copy_from_slice(source),
        }
    }

    /// Reads blocks from disk; an entry that is not there makes all of it fail.
    pub(super) fn load(&mut self, blocks: &[(u64, Pieces)]) -> bool {
        let size = self.limits.block_size_tokens;
        let Some(disk) = &self.tiers.disk else { return false };
        let files = disk.files.lock();
        for (key, to) in blocks {
            let Some((_, pieces)) = files.get(key) else { return false };
            let pools = std::iter::once(&mut self.slots).chain(self.windows.iter_mut().map(|(_, slots)| slots));
            let targets = std::iter::once(Some(to.full)).chain(to.windows.iter().copied());
            for ((slots, target), piece) in pools.zip(targets).zip(pieces) {
                let Some(block) = target else { continue };
                if piece.is_empty() {
                    return false;
                }
                slots[block.0 as usize * size..(block.0 as usize + 1) * size].copy_from_slice(piece);
            }
        }
        true
    }

    pub(super) fn fails(&self, id: u64) -> bool {
        extend(self.model.seed, id as TokenId) % 100 < self.tiers.failing
    }
}
