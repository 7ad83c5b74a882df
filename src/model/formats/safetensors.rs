//! Hugging Face folders: `model.safetensors`, or shards with `model.safetensors.index.json`.

use super::encoding::{MXFP4_BYTES, MXFP4_ELEMENTS};
use super::fp8::Fp8Blocks;
use super::{Encoding, StoredTensor, TensorStore};
use crate::device::DType;
use crate::device::cpu::mapped_file::MappedFile;
use crate::error::{Error, Result};
use crate::model::Section;
use ::safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The names of the files of a folder.
pub(super) struct Files {
    /// One with everything.
    pub single: &'static str,
    /// Which of several holds what.
    pub index: &'static str,
}

const NAMES: Files = Files { single: "model.safetensors", index: "model.safetensors.index.json" };
/// Forms of the weights that are not read.
const PICKLES: [&str; 2] = ["consolidated.00.pth", "model.ckpt"];
/// Ends of the names of 4-bit floats and of their scales.
const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";
/// Behind the names of matrices of 8-bit floats: their scales.
const FP8_SCALES: [&str; 2] = ["_scale_inv", "_scale"];
/// Names of files in an error message, at most.
const MAX_SHOWN: usize = 12;

/// The tensors of one folder, mapped into memory.
#[derive(Debug)]
pub struct SafetensorsFolder {
    /// Of matrices of 8-bit floats.
    fp8_block: [usize; 2],
    shards: Vec<Shard>,
    tensors: HashMap<String, Location>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: MappedFile,
    data_start: usize,
}

#[derive(Debug)]
struct Location {
    shard: usize,
    info: TensorInfo,
}

impl SafetensorsFolder {
    /// Maps the files and reads their headers.
    ///
    /// # Errors
    /// One sentence that names the file and what is wrong with it.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_named(folder, &NAMES)
    }

    /// [`SafetensorsFolder::open`] with other names of files.
    ///
    /// # Errors
    /// As there.
    pub(super) fn open_named(folder: &Path, names: &Files) -> Result<Self> {
        let (files, index) = checkpoint_files(folder, names)?;
        let mut checkpoint = Self { fp8_block: [1, 1], shards: Vec::new(), tensors: HashMap::new() };
        for file in files {
            checkpoint.add_shard(folder.join(file))?;
        }
        for (name, file) in &index {
            let held = checkpoint.tensors.get(name).is_some_and(|at| checkpoint.shards[at.shard].path.ends_with(file));
            if !held {
                return Err(Error::invalid(format!(
                    "{} says that {name} is in {file}, which does not hold it",
                    folder.join(names.index).display()
                )));
            }
        }
        Ok(checkpoint)
    }

    /// Maps one file.
    ///
    /// # Errors
    /// One sentence that names the file and what is wrong with it.
    pub fn open_file(file: &Path) -> Result<Self> {
        let mut checkpoint = Self { fp8_block: [1, 1], shards: Vec::new(), tensors: HashMap::new() };
        checkpoint.add_shard(file.to_owned())?;
        Ok(checkpoint)
    }

    /// With blocks of this size in matrices of 8-bit floats.
    pub fn with_fp8_block(self, fp8_block: [usize; 2]) -> Self {
        Self { fp8_block, ..self }
    }

    /// With other ends of names: `(from, to)`.
    pub fn renamed(mut self, ends: &[(&str, &str)]) -> Self {
        let rename = |(name, at): (String, Location)| {
            let new = ends.iter().find_map(|(from, to)| Some(format!("{}{to}", name.strip_suffix(from)?)));
            (new.unwrap_or(name), at)
        };
        self.tensors = self.tensors.into_iter().map(rename).collect();
        self
    }

    /// Whether there is a tensor of this name, whatever its type.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<()> {
        let file = MappedFile::open(&path)?;
        let (header_bytes, metadata) =
            SafeTensors::read_metadata(file.bytes()).map_err(|error| header_error(&path, file.bytes(), &error))?;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            self.tensors.insert(name, Location { shard, info: info.clone() });
        }
        self.shards.push(Shard { path, file, data_start: 8 + header_bytes });
        Ok(())
    }
}

impl SafetensorsFolder {
    /// The scales of a tensor of 4-bit floats: `…_scales` of `…_blocks`.
    fn scales_of(&self, name: &str, info: &TensorInfo) -> Option<&Location> {
        let stem = name.strip_suffix(BLOCKS).filter(|_| info.dtype == Dtype::U8)?;
        self.tensors.get(&format!("{stem}{SCALES}")).filter(|scales| scales.info.dtype == Dtype::U8)
    }

    /// Blocks `[.., K / 32, 16]` with scales `[.., K / 32]` as a tensor `[.., K]`.
    fn four_bit<'a>(
        &'a self,
        shard: &'a Shard,
        name: &str,
        info: &TensorInfo,
        scales: &'a Location,
    ) -> Result<StoredTensor<'a>> {
        let [above @ .., blocks, MXFP4_BYTES] = info.shape.as_slice() else {
            return Err(Error::invalid(format!(
                "{}: {name} has shape {:?}; blocks of 4-bit floats end with a dimension of {MXFP4_BYTES}",
                shard.path.display(),
                info.shape
            )));
        };
        let cols = blocks.saturating_mul(MXFP4_ELEMENTS);
        let shape = above.iter().copied().chain([cols]).collect();
        let scales = self.shards[scales.shard].bytes(&scales.info);
        StoredTensor::mxfp4(&shard.path, shape, shard.bytes(info), scales)
    }

    /// The scales of a matrix of 8-bit floats: `…weight_scale_inv` or `…weight_scale` of `…weight`. They multiply,
    /// whatever the name says.
    fn fp8_scales_of(&self, name: &str, info: &TensorInfo) -> Option<&Location> {
        let find = |end: &&str| self.tensors.get(&format!("{name}{end}"));
        FP8_SCALES.iter().find_map(find).filter(|_| info.dtype == Dtype::F8_E4M3)
    }

    fn fp8<'a>(&'a self, shard: &'a Shard, name: &str, info: &TensorInfo) -> Result<StoredTensor<'a>> {
        let (file, shape) = (shard.path.display(), &info.shape);
        let Some(scales) = self.fp8_scales_of(name, info) else {
            let [inverse, plain] = FP8_SCALES.map(|end| format!("{name}{end}"));
            return Err(Error::invalid(format!(
                "{file}: {name} has type F8_E4M3, but there is no {inverse} or {plain}"
            )));
        };
        let unfit = |what: &str| {
            let (dtype, scales, block) = (scales.info.dtype, &scales.info.shape, self.fp8_block);
            Error::invalid(format!(
                "{file}: the scales of {name}, {dtype:?} {scales:?}, do not fit its shape {shape:?} and blocks of {block:?}{what}"
            ))
        };
        let dtype = supported(scales.info.dtype).ok_or_else(|| unfit(": they must be F32, F16 or BF16"))?;
        let &[rows, cols] = shape.as_slice() else { return Err(unfit(": only matrices are read")) };
        let blocks = Fp8Blocks::of((rows, cols), &scales.info.shape, self.fp8_block, dtype);
        let scales = self.shards[scales.shard].bytes(&scales.info);
        StoredTensor::fp8(&shard.path, shape.clone(), blocks.ok_or_else(|| unfit(""))?, shard.bytes(info), scales)
    }
}

impl Shard {
    fn bytes(&self, info: &TensorInfo) -> &[u8] {
        let (start, end) = info.data_offsets;
        &self.file.bytes()[self.data_start + start..self.data_start + end]
    }
}

impl TensorStore for SafetensorsFolder {
    fn names(&self) -> Vec<&str> {
        let is_part = |name: &str| {
            let stem = name.strip_suffix(SCALES);
            let of_fp8 = |end: &&str| name.strip_suffix(end).and_then(|stem| self.tensors.get(stem));
            stem.is_some_and(|stem| self.tensors.contains_key(&format!("{stem}{BLOCKS}")))
                || FP8_SCALES.iter().find_map(of_fp8).is_some_and(|of| of.info.dtype == Dtype::F8_E4M3)
        };
        self.tensors.keys().map(String::as_str).filter(|name| !is_part(name)).collect()
    }

    fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        let Some(Location { shard, info }) = self.tensors.get(name) else { return Ok(None) };
        let shard = &self.shards[*shard];
        if let Some(scales) = self.scales_of(name, info) {
            return self.four_bit(shard, name, info, scales).map(Some);
        }
        if info.dtype == Dtype::F8_E4M3 {
            return self.fp8(shard, name, info).map(Some);
        }
        let dtype = supported(info.dtype).ok_or_else(|| {
            Error::unsupported(format!(
                "{}: {name} has type {:?}, which is not supported; supported are F32, F16, BF16 and F8_E4M3 with scales",
                shard.path.display(),
                info.dtype
            ))
        })?;
        let tensor = StoredTensor::new(&shard.path, info.shape.clone(), Encoding::Plain(dtype), shard.bytes(info))?;
        Ok(Some(tensor.mapped_from(&shard.file)))
    }

    fn main_dtype(&self) -> Option<DType> {
        let size = |at: &Location| at.info.data_offsets.1 - at.info.data_offsets.0;
        let (name, largest) = self.tensors.iter().max_by_key(|(_, at)| size(at))?;
        let is_narrow = self.scales_of(name, &largest.info).is_some() || largest.info.dtype == Dtype::F8_E4M3;
        let of_blocks = is_narrow.then(|| Encoding::Mxfp4.dtype());
        of_blocks.or(supported(largest.info.dtype))
    }
}

fn supported(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// The files to read, and what the index says of each tensor.
pub(super) fn checkpoint_files(folder: &Path, names: &Files) -> Result<(BTreeSet<String>, BTreeMap<String, String>)> {
    let index_path = folder.join(names.index);
    if !index_path.exists() {
        if folder.join(names.single).exists() {
            return Ok((BTreeSet::from([names.single.to_owned()]), BTreeMap::new()));
        }
        if let Some(pickle) = PICKLES.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
            return Err(Error::unsupported(format!(
                "{} is a torch pickle of a layout that is not read; convert the model to safetensors",
                pickle.display()
            )));
        }
        return Err(Error::invalid(format!(
            "{} has no {} and no {}; {}",
            folder.display(),
            names.single,
            names.index,
            found_in(folder)
        )));
    }
    let index = read_index(&index_path)?;
    let files: BTreeSet<String> = index.values().cloned().collect();
    let missing: Vec<_> = files.iter().filter(|file| !folder.join(file).exists()).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(Error::invalid(format!(
            "{} names shards that are not there: {}",
            index_path.display(),
            missing.join(", ")
        )));
    }
    Ok((files, index))
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let section = Section::read(path)?;
    let (key, value) = section.first(&["weight_map"]).ok_or_else(|| section.missing(&["weight_map"]))?;
    let wanted = || section.error(key, value, "an object of tensor names and file names");
    let map = value.as_object().ok_or_else(wanted)?;
    let entry = |(name, file): (&String, &Value)| {
        let file = file.as_str().filter(|file| is_plain_name(file)).ok_or_else(wanted)?;
        Ok((name.clone(), file.to_owned()))
    };
    map.iter().map(entry).collect()
}

/// Whether a name stays in its folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// "found: a, b, c", for the error about a folder that is no model.
pub(in crate::model) fn found_in(folder: &Path) -> String {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return format!("it cannot be listed: {error}"),
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() {
        return "it is empty".to_owned();
    }
    let more = if names.len() > MAX_SHOWN { format!(" and {} more", names.len() - MAX_SHOWN) } else { String::new() };
    names.truncate(MAX_SHOWN);
    format!("found: {}{more}", names.join(", "))
}

fn header_error(path: &Path, bytes: &[u8], error: &SafeTensorError) -> Error {
    let path = path.display();
    let size = bytes.len();
    if bytes.starts_with(b"version https://git-lfs") {
        return Error::invalid(format!(
            "{path} is a Git LFS pointer of {size} bytes, not the file itself: run git lfs pull"
        ));
    }
    let announced = bytes.get(..8).and_then(|head| head.try_into().ok()).map_or(0, u64::from_le_bytes);
    Error::invalid(match error {
        SafeTensorError::HeaderTooSmall => format!("{path} has {size} bytes: too short for a safetensors file"),
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            format!(
                "{path} announces a header of {announced} bytes, but the file has {size}: cut off, or no safetensors"
            )
        }
        SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_) => {
            format!("{path} has a damaged safetensors header: {error}")
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("{path} has {size} bytes, which is not what its header describes: cut off while copying?")
        }
        SafeTensorError::InvalidOffset(name) => format!("{path}: the offsets of {name} are not valid"),
        other => format!("{path} is damaged: {other}"),
    })
}
