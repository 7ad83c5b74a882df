//! Folders with `pytorch_model.bin`: what `torch.save` wrote, read without running anything of it.

mod machine;
mod zip;

use self::machine::TensorPlace;
use super::safetensors::{Files, checkpoint_files};
use super::{Encoding, StoredTensor, TensorStore};
use crate::device::DType;
use crate::device::cpu::mapped_file::MappedFile;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The names of the files.
pub(super) const NAMES: Files = Files { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json" };
/// The description of all tensors, at most.
const MAX_PICKLE_BYTES: usize = 16 << 20;

/// The tensors of one folder, mapped into memory.
#[derive(Debug)]
pub struct PickleFolder {
    shards: Vec<(PathBuf, MappedFile)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    shape: Vec<usize>,
    /// As torch calls it.
    storage: String,
    bytes: Range<usize>,
}

impl PickleFolder {
    /// Whether a folder has such files.
    pub fn is_in(folder: &Path) -> bool {
        [NAMES.single, NAMES.index].iter().any(|name| folder.join(name).exists())
    }

    /// Maps the files and reads which tensors they hold.
    ///
    /// # Errors
    /// One sentence that names the file and what is wrong with it, or what is in it that is no tensor.
    pub fn open(folder: &Path) -> Result<Self> {
        let (files, _) = checkpoint_files(folder, &NAMES)?;
        let mut checkpoint = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            let path = folder.join(file);
            let shard = checkpoint.shards.len();
            let mapped = MappedFile::open(&path)?;
            let tensors = read(mapped.bytes(), shard).map_err(|what| {
                Error::invalid(format!("{} cannot be read as a file of torch tensors: {what}", path.display()))
            })?;
            checkpoint.tensors.extend(tensors);
            checkpoint.shards.push((path, mapped));
        }
        Ok(checkpoint)
    }
}

impl TensorStore for PickleFolder {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        let (path, file) = &self.shards[entry.shard];
        let Some((dtype, _)) = kind(&entry.storage).filter(|(dtype, _)| dtype.is_some()) else {
            return Err(Error::unsupported(format!(
                "{}: {name} is a {}, which is not supported; supported are FloatStorage, HalfStorage and \
                 BFloat16Storage",
                path.display(),
                entry.storage
            )));
        };
        let encoding = Encoding::Plain(dtype.unwrap_or(DType::F32));
        let tensor = StoredTensor::new(path, entry.shape.clone(), encoding, &file.bytes()[entry.bytes.clone()])?;
        Ok(Some(tensor.mapped_from(file)))
    }

    fn main_dtype(&self) -> Option<DType> {
        let largest = self.tensors.values().max_by_key(|entry| entry.bytes.len())?;
        kind(&largest.storage)?.0
    }
}

/// Type, if it is one that is read, and bytes of an element.
fn kind(storage: &str) -> Option<(Option<DType>, usize)> {
    Some(match storage {
        "FloatStorage" => (Some(DType::F32), 4),
        "HalfStorage" => (Some(DType::F16), 2),
        "BFloat16Storage" => (Some(DType::BF16), 2),
        "DoubleStorage" | "LongStorage" => (None, 8),
        "IntStorage" => (None, 4),
        "ShortStorage" => (None, 2),
        "CharStorage" | "ByteStorage" | "BoolStorage" => (None, 1),
        _ => return None,
    })
}

fn read(bytes: &[u8], shard: usize) -> std::result::Result<Vec<(String, Entry)>, String> {
    let members = zip::members(bytes)?;
    let pickle = members.iter().find_map(|(name, range)| Some((name.strip_suffix("data.pkl")?, range)));
    let (folder, range) = pickle.ok_or("its archive has no data.pkl")?;
    if range.len() > MAX_PICKLE_BYTES {
        return Err(format!("its data.pkl has {} bytes; the bound is {MAX_PICKLE_BYTES}", range.len()));
    }
    if members.get(&format!("{folder}byteorder")).is_some_and(|range| bytes[range.clone()] != *b"little") {
        return Err("its numbers are not little-endian".to_owned());
    }
    let tensors = machine::tensors(&bytes[range.clone()])?;
    tensors
        .into_iter()
        .map(|(name, place)| {
            let storage = members.get(&format!("{folder}data/{}", place.key));
            let bytes = storage.and_then(|storage| elements(&place, storage));
            let bytes = bytes.ok_or_else(|| format!("the tensor {name} is not inside its storage, or not in rows"))?;
            Ok((name, Entry { shard, shape: place.shape, storage: place.storage.to_string(), bytes }))
        })
        .collect()
}

/// The bytes of a tensor whose elements lie row behind row in its storage.
fn elements(place: &TensorPlace, storage: &Range<usize>) -> Option<Range<usize>> {
    let (_, size) = kind(&place.storage)?;
    let mut expected = 1_usize;
    if place.shape.len() != place.strides.len() {
        return None;
    }
    for (&len, &stride) in place.shape.iter().zip(&place.strides).rev() {
        if len > 1 && stride != expected {
            return None;
        }
        expected = expected.checked_mul(len)?;
    }
    let start = storage.start.checked_add(place.offset.checked_mul(size)?)?;
    let end = start.checked_add(expected.checked_mul(size)?)?;
    (end <= storage.end).then_some(start..end)
}
