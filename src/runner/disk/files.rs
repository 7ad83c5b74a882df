//! The files of the KV cache on disk.
//!
//! ```text
//! PREFIX-FINGERPRINT-KEY.kv:  "TRTLLMKV" | version u32 | bytes of the record u32 | record, JSON | payload | checksum u64
//! ```
//!
//! Little-endian. The payload is the block of every layer, one after the other: those of full length first, then those of
//! each pool of windows that the record names. The fingerprint says for which model and which layout of blocks it was
//! computed; what another one has written is left alone. A file appears under its name when it is complete.

use super::DiskOptions;
use crate::error::{Error, Result};
use crate::step::StoredPrefix;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"TRTLLMKV";
const VERSION: u32 = 1;
/// What files of ours begin with.
const PREFIX: &str = "trtllm-kv";
/// No record is longer: it has the tokens of one block.
const MAX_RECORD_BYTES: usize = 1 << 20;

#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Record {
    pub(super) fingerprint: u64,
    pub(super) payload_bytes: usize,
    pub(super) prefix: StoredPrefix,
}

/// Bytes of a block in each pool, those of full length first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout(pub(super) Vec<usize>);

impl Layout {
    /// Where the payload of a file with these pools of windows has each pool's part.
    pub(super) fn parts(&self, windows: u64) -> Vec<Option<Range<usize>>> {
        let mut end = 0;
        let part = |(pool, &bytes): (usize, &usize)| {
            let is_there = pool == 0 || windows >> (pool - 1) & 1 == 1;
            is_there.then(|| {
                end += bytes;
                end - bytes..end
            })
        };
        self.0.iter().enumerate().map(part).collect()
    }

    pub(super) fn payload_bytes(&self, windows: u64) -> usize {
        self.parts(windows).into_iter().flatten().map(|part| part.len()).sum()
    }
}

/// Writes a file at once: under another name first.
///
/// # Errors
/// A full disk, for one.
pub(super) fn write(options: &DiskOptions, key: u64, bytes: &[u8]) -> Result<()> {
    let path = path(options, key);
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written =
        File::create(&part).and_then(|mut file| file.write_all(bytes)).and_then(|()| fs::rename(&part, &path));
    written.map_err(|error| {
        // What is left of a full disk's file is in the way.
        let _ = fs::remove_file(&part);
        Error::unavailable(format!("cannot write {}: {error}", path.display()))
    })
}

/// Record and payload of a block that is stored here.
///
/// # Errors
/// A file that is not there, or damaged.
pub(super) fn read(options: &DiskOptions, layout: &Layout, key: u64) -> Result<(Record, Vec<u8>)> {
    let path = path(options, key);
    let mut bytes =
        fs::read(&path).map_err(|error| Error::unavailable(format!("cannot read {}: {error}", path.display())))?;
    let decoded = decode(&bytes, options.fingerprint, layout).filter(|(record, _)| record.prefix.key == key);
    let Some((record, payload)) = decoded else {
        return Err(Error::unavailable(format!("{} is damaged", path.display())));
    };
    bytes.truncate(payload.end);
    bytes.drain(..payload.start);
    Ok((record, bytes))
}

/// Removes the file of a block, if it is there.
pub(super) fn remove(options: &DiskOptions, key: u64) {
    let path = path(options, key);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("KV cache on disk: {} cannot be removed and takes space: {error}", path.display());
        }
        _ => {}
    }
}

fn path(options: &DiskOptions, key: u64) -> PathBuf {
    options.folder.join(file_name(options.fingerprint, key))
}

fn file_name(fingerprint: u64, key: u64) -> String {
    format!("{PREFIX}-{fingerprint:016x}-{key:016x}.kv")
}

/// What this model has left in the folder.
pub(super) fn scan(options: &DiskOptions, layout: &Layout) -> std::io::Result<Vec<StoredPrefix>> {
    let (mut stored, mut ignored) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(&options.folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let record = read_record(&path);
        let own = record.as_ref().ok().and_then(Option::as_ref).filter(|record| {
            record.fingerprint == options.fingerprint
                && record.payload_bytes == layout.payload_bytes(record.prefix.windows)
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

pub(super) fn encode_head(record: &Record) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(record).map_err(|error| Error::internal(format!("a record of a block: {error}")))?;
    let mut head = Vec::with_capacity(16 + text.len() + record.payload_bytes + 8);
    head.extend(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend((text.len() as u32).to_le_bytes());
    head.extend(text);
    Ok(head)
}

/// Record of a whole, undamaged file, and where its payload is.
fn decode(bytes: &[u8], fingerprint: u64, layout: &Layout) -> Option<(Record, Range<usize>)> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    let start = 16 + record_len(content)?;
    let record: Record = serde_json::from_slice(content.get(16..start)?).ok()?;
    let is_whole = checksum(content).to_le_bytes() == sum;
    let is_right = content.len() - start == layout.payload_bytes(record.prefix.windows);
    (is_whole && is_right && record.fingerprint == fingerprint).then_some((record, start..content.len()))
}

/// Fowler, Noll and Vo's FNV-1a, over words of 8 bytes: quick, and no flipped bit or lost word goes unnoticed.
pub(in crate::runner) fn checksum(bytes: &[u8]) -> u64 {
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
pub(in crate::runner) fn fingerprint(parts: &[String], folder: Option<&Path>) -> Result<u64> {
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
        let prefix = StoredPrefix { key, parent: Some(4), salt: 0, tokens: vec![1, 2, 3], windows: 0 };
        Record { fingerprint: 7, payload_bytes: 40, prefix }
    }

    fn layout(bytes: usize) -> Layout {
        Layout(vec![bytes])
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
        assert_eq!(decode(&bytes, 7, &layout(40)).unwrap().0.prefix, record(5).prefix);
        assert!(decode(&bytes, 8, &layout(40)).is_none() && decode(&bytes, 7, &layout(48)).is_none());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(decode(&damaged, 7, &layout(40)).is_none(), "byte {at}");
            assert!(decode(&bytes[..at], 7, &layout(40)).is_none(), "cut to {at} bytes");
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
        assert_eq!(scan(&options, &layout(40)).unwrap(), [record(5).prefix]);
        assert!(scan(&options, &layout(48)).unwrap().is_empty(), "blocks of another size");
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

    #[test]
    fn parts_of_windows_lie_behind_one_another_where_they_are() {
        let layout = Layout(vec![40, 8, 16]);
        assert_eq!(layout.parts(0b10), [Some(0..40), None, Some(40..56)]);
        assert_eq!([0, 1, 2, 3].map(|windows| layout.payload_bytes(windows)), [40, 48, 56, 64]);
    }
}
