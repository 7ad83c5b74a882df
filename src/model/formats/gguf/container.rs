//! The container: header, metadata, and where each tensor lies. Every length is checked before it is used.

use crate::device::DType;
use crate::device::cpu::mapped_file::MappedFile;
use crate::error::{Error, Result};
use crate::model::formats::{Encoding, GgmlType, StoredTensor};
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"GGUF";
const MAX_DIMENSIONS: u32 = 4;
/// Bytes of a metadata key or a tensor's name, at most.
const MAX_NAME_BYTES: usize = 1024;
/// Arrays in arrays.
const MAX_DEPTH: usize = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// One file, mapped into memory.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: MappedFile,
    pub metadata: Map<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    type_id: u32,
    /// `None`: a type that is not read.
    encoding: Option<Encoding>,
    bytes: Range<usize>,
}

impl GgufFile {
    /// Maps a file and reads everything but the tensors' elements.
    ///
    /// # Errors
    /// One sentence that names the file, the field and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let mut reader = Reader { path, bytes: file.bytes(), at: 0 };
        let (metadata, tensors) = reader.read_all()?;
        Ok(Self { path: path.to_owned(), file, metadata, tensors })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// One tensor; `None`: the file has none of this name.
    ///
    /// # Errors
    /// When its type is not supported.
    pub fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        let encoding = entry.encoding.ok_or_else(|| {
            Error::unsupported(format!(
                "{}: {name} has type {}, which is not supported; supported are F32, F16, BF16, {}",
                self.path.display(),
                GgmlType::name_of_id(entry.type_id),
                GgmlType::supported()
            ))
        })?;
        let bytes = &self.file.bytes()[entry.bytes.clone()];
        let tensor = StoredTensor::new(&self.path, entry.shape.clone(), encoding, bytes)?;
        Ok(Some(tensor.mapped_from(&self.file)))
    }

    /// Type of the largest tensor, as it is read.
    pub fn main_dtype(&self) -> Option<DType> {
        let largest = self.tensors.values().max_by_key(|entry| entry.bytes.len())?;
        largest.encoding.map(Encoding::dtype)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.bytes.len()).sum()
    }
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

/// Shape, type id and offset of a tensor.
type Place = (Vec<usize>, u32, u64);
type Contents = (Map<String, Value>, BTreeMap<String, Entry>);

impl<'a> Reader<'a> {
    fn read_all(&mut self) -> Result<Contents> {
        if self.take(4, "the magic number")? != MAGIC {
            return Err(self.error("is no GGUF file: it does not begin with \"GGUF\""));
        }
        let version = self.u32("version")?;
        if !(2..=3).contains(&version) {
            let what = if version.swap_bytes() == 3 { " (big-endian)" } else { "" };
            return Err(Error::unsupported(format!(
                "{}: version is {version}{what}; supported are 2 and 3, little-endian",
                self.path.display()
            )));
        }
        let tensor_count = self.count("tensor_count", 24)?;
        let metadata_count = self.count("metadata_kv_count", 13)?;
        let mut metadata = Map::new();
        for _ in 0..metadata_count {
            let key = self.name("a metadata key")?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.error(format!("has the metadata key {key:?} twice")));
            }
        }
        let mut places = Vec::new();
        for _ in 0..tensor_count {
            places.push(self.place()?);
        }
        let start = self.data_start(&metadata)?;
        let mut tensors = BTreeMap::new();
        for (name, place) in places {
            let entry = self.entry(&name, place, start)?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(self.error(format!("has the tensor {name} twice")));
            }
        }
        Ok((metadata, tensors))
    }

    /// Name, shape, type id and offset of a tensor.
    fn place(&mut self) -> Result<(String, Place)> {
        let name = self.name("a tensor name")?;
        let dimensions = self.u32(&name)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(self.error(format!(
                "gives the tensor {name} {dimensions} dimensions; it must be at most {MAX_DIMENSIONS}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64(&name)? as usize);
        }
        // The file names the dimension of adjacent elements first.
        shape.reverse();
        let type_id = self.u32(&name)?;
        Ok((name.clone(), (shape, type_id, self.u64(&name)?)))
    }

    fn data_start(&self, metadata: &Map<String, Value>) -> Result<u64> {
        let alignment = match metadata.get("general.alignment") {
            Some(value) => {
                value.as_u64().filter(|align| align.is_power_of_two() && *align <= 1 << 20).ok_or_else(|| {
                    self.error(format!("general.alignment is {value}; it must be a power of two up to 1048576"))
                })?
            }
            None => DEFAULT_ALIGNMENT,
        };
        Ok((self.at as u64).next_multiple_of(alignment))
    }

    fn entry(&self, name: &str, (shape, type_id, offset): Place, start: u64) -> Result<Entry> {
        let encoding = match type_id {
            0 => Some(Encoding::Plain(DType::F32)),
            1 => Some(Encoding::Plain(DType::F16)),
            30 => Some(Encoding::Plain(DType::BF16)),
            id => GgmlType::from_id(id).map(Encoding::Blocks),
        };
        let Some(encoding) = encoding else {
            // Whether it matters is known when somebody asks for the tensor.
            return Ok(Entry { shape, type_id, encoding: None, bytes: 0..0 });
        };
        let (cols, above) = shape.split_last().map_or((1, shape.as_slice()), |(&cols, above)| (cols, above));
        let rows = above.iter().try_fold(1_usize, |product, &rows| product.checked_mul(rows));
        let size = rows.and_then(|rows| rows.checked_mul(encoding.row_bytes(cols)?)).ok_or_else(|| {
            self.error(format!("gives the tensor {name} the shape {shape:?}, which type {encoding} cannot have"))
        })?;
        let first = start.checked_add(offset).and_then(|first| usize::try_from(first).ok());
        let range = first.and_then(|first| Some(first..first.checked_add(size)?));
        match range.filter(|range| range.end <= self.bytes.len()) {
            Some(bytes) => Ok(Entry { shape, type_id, encoding: Some(encoding), bytes }),
            None => Err(self.error(format!(
                "places the tensor {name} at byte {offset} of its data with {size} bytes, but has {} bytes in all: cut \
                 off while copying?",
                self.bytes.len()
            ))),
        }
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        let value = match kind {
            0 => self.array::<1>(key)?[0].into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => self.u32(key)?.into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            6 => float(f32::from_le_bytes(self.array(key)?).into()),
            7 => match self.array::<1>(key)?[0] {
                0 => false.into(),
                1 => true.into(),
                other => return Err(self.error(format!("says {other} for {key}; a truth value is 0 or 1"))),
            },
            8 => self.string(key)?.into(),
            9 => self.list(key, depth)?,
            10 => self.u64(key)?.into(),
            11 => i64::from_le_bytes(self.array(key)?).into(),
            12 => float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(self.error(format!("gives {key} the type {other}; metadata types are 0 to 12"))),
        };
        Ok(value)
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value> {
        if depth == MAX_DEPTH {
            return Err(self.error(format!("nests the arrays of {key} deeper than {MAX_DEPTH}")));
        }
        let kind = self.u32(key)?;
        let smallest = match kind {
            8 => 8,
            9 => 12,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => 1,
        };
        let len = self.count(key, smallest)?;
        (0..len).map(|_| self.value(kind, key, depth + 1)).collect::<Result<_>>().map(Value::Array)
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len = self.count(what, 1)?;
        let bytes = self.take(len, what)?;
        // Pieces of byte vocabularies are sometimes no text of their own.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// A name that can be shown in a message.
    fn name(&mut self, what: &str) -> Result<String> {
        let len = self.count(what, 1)?;
        if len == 0 || len > MAX_NAME_BYTES {
            return Err(self.error(format!("has {what} of {len} bytes; it must be 1 to {MAX_NAME_BYTES}")));
        }
        let text = std::str::from_utf8(self.take(len, what)?).ok();
        let text = text.filter(|text| !text.chars().any(char::is_control));
        text.map(str::to_owned).ok_or_else(|| self.error(format!("has {what} that is no text")))
    }

    /// A number of things of at least `each` bytes, which must fit into what is left.
    fn count(&mut self, what: &str, each: usize) -> Result<usize> {
        let count = self.u64(what)?;
        let left = self.bytes.len() - self.at;
        usize::try_from(count).ok().filter(|count| *count <= left / each).ok_or_else(|| {
            self.error(format!(
                "announces {count} elements or bytes for {what}, but only {left} bytes follow: cut off while \
                 copying?"
            ))
        })
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            self.error(format!("ends inside {what}, after {} bytes: cut off while copying?", self.bytes.len()))
        })?;
        self.at += len;
        Ok(taken)
    }

    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(format!("{} {what}", self.path.display()))
    }
}

/// Null for what is no number: whoever needs the key then says that it is missing.
fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}
