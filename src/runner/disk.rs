//! The KV cache on disk: a file for each block, written and read by a thread of its own.
//!
//! ```text
//! PREFIX-FINGERPRINT-KEY.kv:  "TRTLLMKV" | version u32 | bytes of the record u32 | record, JSON | payload | checksum u64
//! ```
//!
//! Little-endian. The payload is the block of every layer, one after the other. The fingerprint says for which model and
//! which layout of blocks it was computed; what another one has written is left alone. A file appears under its name
//! when it is complete.

use crate::device::{KvLayer, SharedDevice};
use crate::error::{Error, Result};
use crate::ids::BlockId;
use crate::step::{DiskLimits, DiskOrder, Landed, StoredPrefix};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

const MAGIC: &[u8; 8] = b"TRTLLMKV";
const VERSION: u32 = 1;
/// What files of ours begin with.
const PREFIX: &str = "trtllm-kv";
/// No record is longer: it has the tokens of one block.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Bytes that wait to be written, at most: further blocks are not stored.
const MAX_QUEUED_BYTES: usize = 256 << 20;

#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    fingerprint: u64,
    payload_bytes: usize,
    prefix: StoredPrefix,
}

/// Where blocks are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskOptions {
    pub(super) folder: PathBuf,
    pub(super) max_blocks: usize,
    /// Of the model and the layout of its blocks.
    pub(super) fingerprint: u64,
}

enum Job {
    Write { id: u64, key: u64, bytes: Vec<u8> },
    Read { id: u64, blocks: Vec<(u64, BlockId)> },
    Remove { key: u64 },
}

enum Done {
    Written { id: u64, ok: bool },
    Read { id: u64, payloads: Option<Vec<(BlockId, Vec<u8>)>> },
}

impl Done {
    fn id(&self) -> u64 {
        match self {
            Self::Written { id, .. } | Self::Read { id, .. } => *id,
        }
    }
}

/// The tier on disk of one executor.
pub(super) struct DiskTier {
    limits: DiskLimits,
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    /// Orders that have not landed.
    open: usize,
    /// Stores that were refused.
    refused: Vec<u64>,
    queued_bytes: Arc<AtomicUsize>,
    fingerprint: u64,
    thread: Option<JoinHandle<()>>,
}

impl DiskTier {
    /// Looks what is there. Files that are damaged, or of another model, are left out and told of in one line.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub(super) fn open(options: DiskOptions, block_bytes: usize) -> Result<Self> {
        let failed = |what: &str, error: std::io::Error| {
            Error::unavailable(format!("kv_cache_disk_path: cannot {what} {}: {error}", options.folder.display()))
        };
        fs::create_dir_all(&options.folder).map_err(|error| failed("make", error))?;
        let stored = scan(&options, block_bytes).map_err(|error| failed("read", error))?;
        tracing::info!("KV cache on disk: {} of up to {} blocks are there", stored.len(), options.max_blocks);
        let (jobs, inbox) = channel();
        let (outbox, done) = channel();
        let queued_bytes = Arc::<AtomicUsize>::default();
        let (limits, fingerprint) = (DiskLimits { max_blocks: options.max_blocks, stored }, options.fingerprint);
        let worker = Worker { options, block_bytes, queued_bytes: Arc::clone(&queued_bytes), failures: 0 };
        let thread = thread::Builder::new()
            .name("kv-disk".into())
            .spawn(move || worker.run(&inbox, &outbox))
            .map_err(|error| Error::internal(format!("cannot start the thread of the KV cache on disk: {error}")))?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        Ok(Self { limits, jobs, done, open: 0, refused: Vec::new(), queued_bytes, fingerprint, thread })
    }

    /// What was found; nothing is kept of it here.
    pub(super) fn take_limits(&mut self) -> DiskLimits {
        let stored = std::mem::take(&mut self.limits.stored);
        DiskLimits { stored, ..self.limits.clone() }
    }

    /// Copies what is to be stored from the device and leaves the rest to the thread.
    pub(super) fn start(&mut self, device: &SharedDevice, layers: &[KvLayer], orders: Vec<DiskOrder>) {
        for order in orders {
            let job = match order {
                DiskOrder::Store { id, from, prefix } => {
                    let key = prefix.key;
                    let is_full = self.queued_bytes.load(Ordering::Relaxed) > MAX_QUEUED_BYTES;
                    let bytes = (!is_full).then(|| self.file(device, layers, from, prefix)).transpose();
                    match bytes.ok().flatten() {
                        Some(bytes) => {
                            self.queued_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
                            Job::Write { id, key, bytes }
                        }
                        None => {
                            self.refused.push(id);
                            continue;
                        }
                    }
                }
                DiskOrder::Load { id, blocks } => Job::Read { id, blocks },
                DiskOrder::Remove { key } => Job::Remove { key },
            };
            self.open += usize::from(!matches!(job, Job::Remove { .. }));
            // A thread that is gone answers nothing; who waits for it sees that it is gone.
            let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
        }
    }

    /// Orders that are over; with `wait` one at least, if one is under way.
    pub(super) fn landed(&mut self, device: &SharedDevice, layers: &[KvLayer], wait: bool) -> Vec<Landed> {
        let mut landed: Vec<_> = self.refused.drain(..).map(|id| Landed { id, ok: false }).collect();
        while self.open > 0 {
            let next = match wait && landed.is_empty() {
                true => self.done.recv().ok(),
                false => self.done.try_recv().ok(),
            };
            let Some(done) = next else { break };
            self.open -= 1;
            let id = done.id();
            let ok = match done {
                Done::Written { ok, .. } => ok,
                Done::Read { payloads, .. } => payloads
                    .is_some_and(|all| all.iter().all(|(to, payload)| upload(device, layers, *to, payload).is_ok())),
            };
            landed.push(Landed { id, ok });
        }
        landed
    }

    fn file(&self, device: &SharedDevice, layers: &[KvLayer], from: BlockId, prefix: StoredPrefix) -> Result<Vec<u8>> {
        let payload_bytes = layers.iter().map(KvLayer::block_bytes).sum();
        let record = Record { fingerprint: self.fingerprint, payload_bytes, prefix };
        let mut file = encode_head(&record)?;
        for layer in layers {
            let start = file.len();
            file.resize(start + layer.block_bytes(), 0);
            device.download(&layer.block(from), &mut file[start..])?;
        }
        let checksum = checksum(&file);
        file.extend(checksum.to_le_bytes());
        Ok(file)
    }
}

impl Drop for DiskTier {
    /// What is queued is written before the thread ends.
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the KV cache on disk ended with a panic");
        }
    }
}

struct Worker {
    options: DiskOptions,
    block_bytes: usize,
    queued_bytes: Arc<AtomicUsize>,
    failures: u64,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Job>, outbox: &Sender<Done>) {
        for job in inbox {
            let done = match job {
                Job::Write { id, key, bytes } => {
                    let written = self.write(key, &bytes);
                    self.queued_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                    Done::Written { id, ok: self.noted(written).is_some() }
                }
                Job::Read { id, blocks } => {
                    let read = blocks.into_iter().map(|(key, to)| Ok((to, self.read(key)?))).collect::<Result<_>>();
                    Done::Read { id, payloads: self.noted(read) }
                }
                Job::Remove { key } => {
                    // It may be gone already.
                    let _ = fs::remove_file(self.path(key));
                    continue;
                }
            };
            // Nobody hears it any more when the executor is gone.
            let _ = outbox.send(done);
        }
    }

    fn write(&self, key: u64, bytes: &[u8]) -> Result<()> {
        let path = self.path(key);
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let written =
            File::create(&part).and_then(|mut file| file.write_all(bytes)).and_then(|()| fs::rename(&part, &path));
        written.map_err(|error| {
            // What is left of a full disk's file is in the way.
            let _ = fs::remove_file(&part);
            Error::unavailable(format!("cannot write {}: {error}", path.display()))
        })
    }

    fn read(&self, key: u64) -> Result<Vec<u8>> {
        let path = self.path(key);
        let bytes =
            fs::read(&path).map_err(|error| Error::unavailable(format!("cannot read {}: {error}", path.display())))?;
        let payload = decode(&bytes, self.options.fingerprint, self.block_bytes)
            .filter(|(record, _)| record.prefix.key == key)
            .map(|(_, payload)| payload.to_vec());
        payload.ok_or_else(|| Error::unavailable(format!("{} is damaged", path.display())))
    }

    fn path(&self, key: u64) -> PathBuf {
        self.options.folder.join(file_name(self.options.fingerprint, key))
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

fn file_name(fingerprint: u64, key: u64) -> String {
    format!("{PREFIX}-{fingerprint:016x}-{key:016x}.kv")
}

/// What this model has left in the folder.
fn scan(options: &DiskOptions, block_bytes: usize) -> std::io::Result<Vec<StoredPrefix>> {
    let (mut stored, mut ignored) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(&options.folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let record = read_record(&path);
        let own = record.as_ref().ok().and_then(Option::as_ref).filter(|record| {
            record.fingerprint == options.fingerprint
                && record.payload_bytes == block_bytes
                && name == file_name(options.fingerprint, record.prefix.key)
        });
        match own {
            Some(record) => stored.push(record.prefix.clone()),
            None => ignored.push(path),
        }
    }
    if let Some(first) = ignored.first() {
        tracing::warn!(
            "KV cache on disk: {} files are damaged or of another model and are ignored, {} the first",
            ignored.len(),
            first.display()
        );
    }
    Ok(stored)
}

/// The record of a file of the right length; the rest is checked when it is used.
fn read_record(path: &Path) -> std::io::Result<Option<Record>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut head = [0; 16];
    match file.read_exact(&mut head) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let Some(record_bytes) = record_len(&head) else { return Ok(None) };
    let mut record = vec![0; record_bytes];
    if file.read_exact(&mut record).is_err() {
        return Ok(None);
    }
    let record = serde_json::from_slice::<Record>(&record).ok();
    Ok(record.filter(|record| len == (16 + record_bytes + record.payload_bytes + 8) as u64))
}

fn record_len(head: &[u8]) -> Option<usize> {
    let number = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let len = number(12)? as usize;
    (head.starts_with(MAGIC) && number(8)? == VERSION && len <= MAX_RECORD_BYTES).then_some(len)
}

fn encode_head(record: &Record) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(record).map_err(|error| Error::internal(format!("a record of a block: {error}")))?;
    let mut head = Vec::with_capacity(16 + text.len() + record.payload_bytes + 8);
    head.extend(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend((text.len() as u32).to_le_bytes());
    head.extend(text);
    Ok(head)
}

/// Record and payload of a whole, undamaged file.
fn decode(bytes: &[u8], fingerprint: u64, block_bytes: usize) -> Option<(Record, &[u8])> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    let payload = content.get(16 + record_len(content)?..)?;
    let record: Record = serde_json::from_slice(&content[16..content.len() - payload.len()]).ok()?;
    let is_whole = checksum(content).to_le_bytes() == sum && payload.len() == block_bytes;
    (is_whole && record.fingerprint == fingerprint).then_some((record, payload))
}

fn upload(device: &SharedDevice, layers: &[KvLayer], to: BlockId, payload: &[u8]) -> Result<()> {
    let mut rest = payload;
    for layer in layers {
        let (block, behind) = rest.split_at(layer.block_bytes());
        device.upload(&layer.block(to), block)?;
        rest = behind;
    }
    Ok(())
}

/// Fowler, Noll and Vo's FNV-1a, over words of 8 bytes: quick, and no flipped bit or lost word goes unnoticed.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| step(sum, u64::from_le_bytes(*word)));
    step(rest.iter().fold(sum, |sum, &byte| step(sum, u64::from(byte))), bytes.len() as u64)
}

/// What tells models apart whose blocks must not be mixed: parts in words, and the files of the weights by name, length,
/// time and beginning.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn fingerprint(parts: &[String], folder: Option<&Path>) -> Result<u64> {
    const BEGINNING: u64 = 64 << 10;
    let mut text: Vec<u8> = parts.join("\n").into_bytes();
    let failed = |error| Error::unavailable(format!("the files of the model cannot be read: {error}"));
    let mut files: Vec<PathBuf> = match folder {
        Some(folder) if folder.is_dir() => {
            let entries = fs::read_dir(folder).map_err(failed)?.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
            entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).collect()
        }
        Some(file) => vec![file.to_owned()],
        None => Vec::new(),
    };
    files.sort();
    for path in files {
        let file = File::open(&path).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        text.extend(format!("\n{name} {} {:?}\n", data.len(), data.modified().ok()).into_bytes());
        file.take(BEGINNING).read_to_end(&mut text).map_err(failed)?;
    }
    Ok(checksum(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u64) -> Record {
        let prefix = StoredPrefix { key, parent: Some(4), salt: 0, tokens: vec![1, 2, 3] };
        Record { fingerprint: 7, payload_bytes: 40, prefix }
    }

    fn file(key: u64) -> Vec<u8> {
        let mut bytes = encode_head(&record(key)).unwrap();
        bytes.extend((0..40).map(|i| i as u8));
        let sum = checksum(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    #[test]
    fn every_damage_is_seen() {
        let bytes = file(5);
        assert_eq!(decode(&bytes, 7, 40).unwrap().0.prefix, record(5).prefix);
        assert!(decode(&bytes, 8, 40).is_none() && decode(&bytes, 7, 48).is_none());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(decode(&damaged, 7, 40).is_none(), "byte {at}");
            assert!(decode(&bytes[..at], 7, 40).is_none(), "cut to {at} bytes");
        }
    }

    #[test]
    fn a_folder_may_hold_anything_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path(&file_name(7, 5)), file(5)).unwrap();
        fs::write(path(&file_name(7, 6)), &file(6)[..30]).unwrap();
        fs::write(path(&file_name(7, 9)), file(8)).unwrap();
        fs::write(path(&file_name(8, 5)), file(5)).unwrap();
        fs::write(path("readme.txt"), "hello").unwrap();
        fs::create_dir(path("folder")).unwrap();
        let options = DiskOptions { folder: folder.path().to_owned(), max_blocks: 10, fingerprint: 7 };
        assert_eq!(scan(&options, 40).unwrap(), [record(5).prefix]);
        assert!(scan(&options, 48).unwrap().is_empty(), "blocks of another size");
    }

    #[test]
    fn a_fingerprint_changes_with_every_file() {
        let folder = tempfile::tempdir().unwrap();
        let of = |part: &str| fingerprint(&[part.to_owned()], Some(folder.path())).unwrap();
        let empty = of("bf16");
        assert_ne!(empty, of("f16"));
        fs::write(folder.path().join("weights"), "1").unwrap();
        let one = of("bf16");
        fs::write(folder.path().join("weights"), "2").unwrap();
        assert!(one != empty && one != of("bf16"));
        assert_eq!(of("bf16"), of("bf16"));
    }
}
