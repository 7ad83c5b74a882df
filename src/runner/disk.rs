//! The KV cache on disk: a file for each block, written and read by a thread of its own.
//!
//! Between device and disk lies memory for some blocks, the slots. What is stored is copied there behind the steps before,
//! and handed to the thread when the copy is over; what was read is copied to the device beside the steps. So no step
//! waits for the disk.

mod files;
mod worker;

use super::tiers::{Marks, Tiers};
use crate::device::{KvLayer, SharedDevice};
use crate::error::{Error, Result};
use crate::ids::{BlockId, HostBlockId};
use crate::step::{DiskLimits, DiskOrder, Landed, Pieces, PoolCopy, StoredPrefix, TierCopy, Transfer};
use files::Layout;
pub(super) use files::fingerprint;
use std::collections::{HashSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use worker::{Done, Job, Slot, Worker};

/// Memory for blocks on their way to the disk, and from there; where blocks are large or small, so many of them at least
/// and at most.
const STORE_BYTES: usize = 256 << 20;
const STORE_SLOTS: (usize, usize) = (2, 64);
const LOAD_BYTES: usize = 64 << 20;
const LOAD_SLOTS: (usize, usize) = (2, 16);

/// Where blocks are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskOptions {
    pub(super) folder: PathBuf,
    pub(super) max_blocks: usize,
    /// Of the model and the layout of its blocks.
    pub(super) fingerprint: u64,
}

/// What comes when a copy is over.
enum Next {
    Write {
        id: u64,
        slot: Slot,
        prefix: StoredPrefix,
    },
    /// `ends`: it was the last of its order.
    Loaded {
        id: u64,
        slot: Slot,
        ends: bool,
    },
}

/// The tier on disk of one executor.
pub(super) struct DiskTier {
    limits: DiskLimits,
    slots: Tiers,
    free_stores: Vec<Slot>,
    free_loads: Option<Sender<Slot>>,
    /// Copies between device and slots, in the order of their start.
    copying: VecDeque<(Marks, Next)>,
    /// Orders of which something could not be copied.
    failed: HashSet<u64>,
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    /// Orders that have not landed.
    open: usize,
    /// Stores that were refused.
    refused: Vec<u64>,
    thread: Option<JoinHandle<()>>,
}

impl DiskTier {
    /// Looks what is there. Files that are damaged, or of another model, are left out and told of in one line. `pools`:
    /// the layers of each, those of full length first.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or there is no memory for the slots.
    pub(super) fn open(options: DiskOptions, device: &SharedDevice, pools: Vec<Vec<KvLayer>>) -> Result<Self> {
        let failed = |what: &str, error: std::io::Error| {
            Error::unavailable(format!("kv_cache_disk_path: cannot {what} {}: {error}", options.folder.display()))
        };
        let layout = Layout(pools.iter().map(|layers| layers.iter().map(KvLayer::block_bytes).sum()).collect());
        fs::create_dir_all(&options.folder).map_err(|error| failed("make", error))?;
        let stored = files::scan(&options, &layout).map_err(|error| failed("read", error))?;
        tracing::info!("KV cache on disk: {} of up to {} blocks are there", stored.len(), options.max_blocks);
        let block_bytes = layout.0.iter().sum::<usize>().max(1);
        let stores = (STORE_BYTES / block_bytes).clamp(STORE_SLOTS.0, STORE_SLOTS.1).min(options.max_blocks);
        let loads = (LOAD_BYTES / block_bytes).clamp(LOAD_SLOTS.0, LOAD_SLOTS.1);
        let num_pools = pools.len();
        let slots = Tiers::new(device, pools, &vec![stores + loads; num_pools])?;
        let memory = |slot| (0..num_pools).map(|pool| slots.slot(pool, HostBlockId(slot as u32))).collect();
        let memory = (0..stores + loads).map(memory).collect::<Result<_>>()?;
        let ((jobs, inbox), (outbox, done), (free_loads, free)) = (channel(), channel(), channel());
        for slot in stores..stores + loads {
            // The other end is here still.
            let _ = free_loads.send(slot);
        }
        let limits = DiskLimits { max_blocks: options.max_blocks, max_stores: stores, stored };
        let worker = Worker { options, layout, memory, free, outbox, failures: 0 };
        let thread = thread::Builder::new()
            .name("kv-disk".into())
            .spawn(move || worker.run(&inbox))
            .map_err(|error| Error::internal(format!("cannot start the thread of the KV cache on disk: {error}")))?;
        Ok(Self {
            limits,
            slots,
            free_stores: (0..stores).collect(),
            free_loads: Some(free_loads),
            copying: VecDeque::new(),
            failed: HashSet::new(),
            jobs: Some(jobs),
            done,
            open: 0,
            refused: Vec::new(),
            thread: Some(thread),
        })
    }

    /// What was found; nothing is kept of it here.
    pub(super) fn take_limits(&mut self) -> DiskLimits {
        let stored = std::mem::take(&mut self.limits.stored);
        DiskLimits { stored, ..self.limits.clone() }
    }

    /// Page-locked host memory in use.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.slots.pinned_bytes()
    }

    /// Starts to copy what is to be stored, and leaves the rest to the thread.
    pub(super) fn start(&mut self, orders: Vec<DiskOrder>) {
        for order in orders {
            match order {
                DiskOrder::Store { id, from, prefix } => self.store(id, &from, prefix),
                DiskOrder::Load { id, blocks } => {
                    self.open += 1;
                    self.order(Job::Read { id, blocks });
                }
                DiskOrder::Remove { key } => self.order(Job::Remove { key }),
            }
        }
    }

    /// Orders that are over; with `wait` one at least, if one is under way.
    pub(super) fn landed(&mut self, wait: bool) -> Vec<Landed> {
        let mut landed: Vec<_> = self.refused.drain(..).map(|id| Landed { id, ok: false }).collect();
        loop {
            while let Ok(done) = self.done.try_recv() {
                self.hear(done, &mut landed);
            }
            self.finish_copies(false, &mut landed);
            if !wait || !landed.is_empty() || self.open == 0 {
                return landed;
            }
            if !self.copying.is_empty() {
                self.finish_copies(true, &mut landed);
                continue;
            }
            match self.done.recv() {
                Ok(done) => self.hear(done, &mut landed),
                // The thread has gone.
                Err(_) => return landed,
            }
        }
    }

    fn store(&mut self, id: u64, from: &Pieces, prefix: StoredPrefix) {
        let Some(slot) = self.free_stores.pop() else {
            self.refused.push(id);
            return;
        };
        match self.copy(id, slot, from, |block, to| TierCopy::Offload { from: block, to }) {
            Some(marks) => {
                self.open += 1;
                self.copying.push_back((marks, Next::Write { id, slot, prefix }));
            }
            None => {
                self.free_stores.push(slot);
                self.refused.push(id);
            }
        }
    }

    fn copy(
        &mut self,
        id: u64,
        slot: Slot,
        pieces: &Pieces,
        copy: impl Fn(BlockId, HostBlockId) -> TierCopy,
    ) -> Option<Marks> {
        let blocks = std::iter::once(Some(pieces.full)).chain(pieces.windows.iter().copied());
        let of_pool = |(pool, block): (usize, Option<BlockId>)| {
            Some(PoolCopy { pool, copy: copy(block?, HostBlockId(slot as u32)) })
        };
        let copies = blocks.enumerate().filter_map(of_pool).collect();
        self.slots.copy_noted(&Transfer { id, copies })
    }

    fn hear(&mut self, done: Done, landed: &mut Vec<Landed>) {
        match done {
            Done::Written { id, slot, ok } => {
                self.open -= 1;
                self.free_stores.push(slot);
                landed.push(Landed { id, ok });
            }
            Done::Read { id, slot, loaded, is_last } => {
                let onboard = |block, from| TierCopy::Onboard { from, to: block };
                let marks = loaded.and_then(|to| self.copy(id, slot, &to, onboard));
                if marks.is_none() {
                    self.failed.insert(id);
                }
                // Where nothing is copied, behind the copies before.
                let next = Next::Loaded { id, slot, ends: is_last };
                self.copying.push_back((marks.unwrap_or_default(), next));
            }
        }
    }

    /// Goes on with what has been copied; with `wait`, the oldest at least.
    fn finish_copies(&mut self, mut wait: bool, landed: &mut Vec<Landed>) {
        while let Some((marks, _)) = self.copying.front() {
            let over = match std::mem::take(&mut wait) {
                true => self.slots.wait_noted(marks),
                false => self.slots.over_noted(marks),
            };
            if over == Some(false) {
                return;
            }
            if let Some((_, next)) = self.copying.pop_front() {
                self.go_on(next, over.is_some(), landed);
            }
        }
    }

    fn go_on(&mut self, next: Next, ok: bool, landed: &mut Vec<Landed>) {
        match next {
            Next::Write { id, slot, prefix } if ok => self.order(Job::Write { id, slot, prefix }),
            Next::Write { id, slot, .. } => {
                self.open -= 1;
                self.free_stores.push(slot);
                landed.push(Landed { id, ok: false });
            }
            Next::Loaded { id, slot, ends } => {
                // A thread that is gone takes no slots; who waits for it sees that it is gone.
                let _ = self.free_loads.as_ref().map(|free| free.send(slot));
                if !ok {
                    self.failed.insert(id);
                }
                if ends {
                    self.open -= 1;
                    landed.push(Landed { id, ok: !self.failed.remove(&id) });
                }
            }
        }
    }

    fn order(&self, job: Job) {
        // A thread that is gone answers nothing; who waits for it sees that it is gone.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

impl Drop for DiskTier {
    /// What is to be written is written before the thread ends.
    fn drop(&mut self) {
        while !self.copying.is_empty() {
            self.finish_copies(true, &mut Vec::new());
        }
        (self.jobs, self.free_loads) = (None, None);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the KV cache on disk ended with a panic");
        }
    }
}
