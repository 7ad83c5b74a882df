//! The thread that writes and reads files.

use super::DiskOptions;
use super::files::{self, Layout, Record, checksum, encode_head};
use crate::device::HostSlot;
use crate::error::{Error, Result};
use crate::step::{Pieces, StoredPrefix};
use std::sync::mpsc::{Receiver, Sender};

/// A place in the memory between device and disk.
pub(super) type Slot = usize;

/// The memory of a slot in each pool; `None`: the pool has no layers.
pub(super) type Memory = Vec<Option<Box<dyn HostSlot>>>;

pub(super) enum Job {
    /// What is in the slot.
    Write {
        id: u64,
        slot: Slot,
        prefix: StoredPrefix,
    },
    /// One after the other, into slots that are free.
    Read {
        id: u64,
        blocks: Vec<(u64, Pieces)>,
    },
    Remove {
        key: u64,
    },
}

pub(super) enum Done {
    Written {
        id: u64,
        slot: Slot,
        ok: bool,
    },
    /// One block of a job has been read into the slot; `None`: it could not, and the rest is not tried.
    Read {
        id: u64,
        slot: Slot,
        loaded: Option<Pieces>,
        is_last: bool,
    },
}

pub(super) struct Worker {
    pub(super) options: DiskOptions,
    pub(super) layout: Layout,
    pub(super) memory: Vec<Memory>,
    /// Slots to read into.
    pub(super) free: Receiver<Slot>,
    pub(super) outbox: Sender<Done>,
    pub(super) failures: u64,
}

impl Worker {
    pub(super) fn run(mut self, inbox: &Receiver<Job>) {
        for job in inbox {
            match job {
                Job::Write { id, slot, prefix } => {
                    let written = self.write(slot, prefix);
                    self.tell(Done::Written { id, slot, ok: written });
                }
                Job::Read { id, blocks } => self.read_all(id, blocks),
                Job::Remove { key } => files::remove(&self.options, key),
            }
        }
    }

    fn write(&mut self, slot: Slot, prefix: StoredPrefix) -> bool {
        let file = self.file(slot, prefix);
        let written = file.and_then(|(key, bytes)| files::write(&self.options, key, &bytes));
        self.noted(written).is_some()
    }

    fn file(&self, slot: Slot, prefix: StoredPrefix) -> Result<(u64, Vec<u8>)> {
        let (key, parts) = (prefix.key, self.layout.parts(prefix.windows));
        let payload_bytes = self.layout.payload_bytes(prefix.windows);
        let mut file = encode_head(&Record { fingerprint: self.options.fingerprint, payload_bytes, prefix })?;
        for (memory, _) in self.memory[slot].iter().zip(&parts).filter(|(_, part)| part.is_some()) {
            memory.iter().for_each(|memory| memory.read(&mut file));
        }
        let sum = checksum(&file);
        file.extend(sum.to_le_bytes());
        Ok((key, file))
    }

    fn read_all(&mut self, id: u64, blocks: Vec<(u64, Pieces)>) {
        let mut left = blocks.len();
        for (key, pieces) in blocks {
            left -= 1;
            // No more of them: the executor is gone.
            let Ok(slot) = self.free.recv() else { return };
            let read = self.read(key, slot, &pieces);
            let loaded = self.noted(read).map(|()| pieces);
            let is_last = left == 0 || loaded.is_none();
            self.tell(Done::Read { id, slot, loaded, is_last });
            if is_last {
                return;
            }
        }
    }

    fn read(&self, key: u64, slot: Slot, wanted: &Pieces) -> Result<()> {
        let (record, payload) = files::read(&self.options, &self.layout, key)?;
        let parts = self.layout.parts(record.prefix.windows);
        let is_wanted = |pool: usize| pool == 0 || wanted.windows.get(pool - 1).is_some_and(Option::is_some);
        for (pool, (memory, part)) in
            self.memory[slot].iter().zip(parts).enumerate().filter(|(pool, _)| is_wanted(*pool))
        {
            let Some(memory) = memory else { continue };
            let part = part.ok_or_else(|| Error::unavailable(format!("a block on disk lacks its window {pool}")))?;
            memory.write(&payload[part])?;
        }
        Ok(())
    }

    fn tell(&self, done: Done) {
        // Nobody hears it any more when the executor is gone.
        let _ = self.outbox.send(done);
    }

    /// Logs the first failure; they cost computation only.
    fn noted<T>(&mut self, result: Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if self.failures == 0 {
            tracing::warn!("the KV cache on disk failed, its content is computed again: {error}");
        }
        self.failures += 1;
        None
    }
}
