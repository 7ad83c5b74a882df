//! GGUF: one file, or several, with weights (mostly quantised), configuration, tokenizer and chat template.

mod config;
mod container;
mod names;
mod particular;
mod vocabulary;

pub use self::config::{GGUF_EXPERTS, GGUF_NORMS, GGUF_ROWS};
pub use self::container::GgufFile;
pub use self::vocabulary::{GgufVocabulary, TextMetadata, VocabularyKind};

use self::names::{Architecture, FUSED, Heads, PARTS};
use super::{RowOrder, StoredTensor, TensorStore};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::model::{Section, SpecialTokens};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A model in one or several GGUF files.
#[derive(Debug)]
pub struct GgufModel {
    origin: String,
    files: Vec<GgufFile>,
    architecture: &'static Architecture,
    num_experts: usize,
    num_heads: usize,
    num_kv_heads: usize,
    /// The Hugging Face names of all tensors, those that nobody knows under their own.
    names: BTreeSet<String>,
}

/// What a GGUF file says of the model besides its weights.
#[derive(Debug)]
pub struct GgufDescription {
    pub config: Section,
    pub special_tokens: SpecialTokens,
}

impl GgufModel {
    /// Maps the file, and the others of a model that is split (`-00001-of-00003.gguf`).
    ///
    /// # Errors
    /// One sentence that names the file, the field and what is wrong with it.
    pub fn open(path: &Path) -> Result<(Self, GgufDescription)> {
        let files = open_all(path)?;
        let origin = files[0].path().display().to_string();
        let metadata = files[0].metadata.clone();
        let general = Section::from_value(origin.clone(), Value::Object(metadata.clone()))?;
        let architecture = config::architecture(&general)?;
        let (num_experts, num_heads, num_kv_heads, names) = (0, 0, 0, BTreeSet::new());
        let mut model = Self { origin, files, architecture, num_experts, num_heads, num_kv_heads, names };
        let config = config::config(&model, &metadata)?;
        model.num_experts = config.index(&["num_experts"])?.unwrap_or(0).min(1 << 16);
        model.num_heads = config.required_count(&["num_attention_heads"], 1 << 16)?;
        model.num_kv_heads = config.count(&["num_key_value_heads"], 1 << 16)?.unwrap_or(model.num_heads);
        let names = model.files.iter().flat_map(GgufFile::names);
        model.names = names.flat_map(|name| model.folder_names(name)).collect();
        let special_tokens = config::special_tokens(&TextMetadata::read(&general)?);
        Ok((model, GgufDescription { config, special_tokens }))
    }

    /// Bytes of all tensors in the files.
    pub fn tensor_bytes(&self) -> usize {
        self.files.iter().map(GgufFile::tensor_bytes).sum()
    }

    fn folder_names(&self, name: &str) -> Vec<String> {
        // Read with the configuration, not as tensors of the model.
        if name.starts_with("rope_f") {
            return Vec::new();
        }
        let known = self.architecture.folder_names(name, self.num_experts);
        if known.is_empty() { vec![name.to_owned()] } else { known }
    }

    /// Whether there is a tensor of this name of the file.
    fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.names().any(|other| other == name))
    }

    fn stored(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        for file in &self.files {
            if let Some(tensor) = file.tensor(name)? {
                return Ok(Some(tensor));
            }
        }
        Ok(None)
    }

    /// Queries, keys or values out of a tensor of all three, where they have none of their own.
    fn stored_or_fused(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        if let Some(tensor) = self.stored(name)? {
            return Ok(Some(tensor));
        }
        let mut words = name.rsplitn(3, '.');
        let (Some(suffix), Some(part), Some(layer)) = (words.next(), words.next(), words.next()) else {
            return Ok(None);
        };
        let Some(part) = PARTS.iter().position(|known| *known == part) else { return Ok(None) };
        let Some(all) = self.stored(&format!("{layer}.{FUSED}.{suffix}"))? else { return Ok(None) };
        let (rows, heads) = (all.shape.first().copied().unwrap_or(0), self.num_heads + 2 * self.num_kv_heads);
        if !rows.is_multiple_of(heads) {
            return Err(Error::invalid(format!(
                "{}: {layer}.{FUSED}.{suffix} has {rows} rows, which are no multiple of {} query and 2 x {} key and \
                 value heads",
                self.origin, self.num_heads, self.num_kv_heads
            )));
        }
        let dim = rows / heads;
        let starts = [0, self.num_heads, self.num_heads + self.num_kv_heads, heads];
        all.slice(starts[part] * dim..starts[part + 1] * dim).map(Some)
    }

    /// The numbers of a small tensor.
    fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.stored(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        tensor.read(0..tensor.rows(), DType::F32, &mut bytes);
        Ok(Some(bytes.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()))
    }

    /// Rows of the embedding: metadata often leave the number out.
    fn vocab_size(&self, own: &Section) -> Result<Option<usize>> {
        let rows = self.stored("token_embd.weight")?.and_then(|tensor| tensor.shape.first().copied());
        Ok(rows.or(own.count(&["vocab_size"], 1 << 26)?))
    }

    fn heads_in_order<'a>(&self, tensor: StoredTensor<'a>, heads: Heads) -> Result<StoredTensor<'a>> {
        let (count, key) = match heads {
            Heads::Query => (self.num_heads, "head_count"),
            Heads::Key => (self.num_kv_heads, "head_count_kv"),
        };
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if !rows.is_multiple_of(2 * count) {
            return Err(Error::invalid(format!(
                "{}: {key} is {count}, but a projection of the heads has {rows} rows",
                self.origin
            )));
        }
        Ok(tensor.with_row_order(RowOrder::InterleavedHalves(rows / count)))
    }
}

impl TensorStore for GgufModel {
    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        let Some(place) = self.architecture.place(name) else { return Ok(None) };
        let Some(tensor) = self.stored_or_fused(&place.name)? else { return Ok(None) };
        let tensor = match place.heads {
            Some(heads) => self.heads_in_order(tensor, heads)?,
            None => tensor,
        };
        let Some(expert) = place.expert else { return Ok(Some(tensor)) };
        if tensor.shape.first().is_none_or(|&experts| expert >= experts) {
            return Ok(None);
        }
        let mut one = tensor.slice(expert..expert + 1)?;
        one.shape.remove(0);
        Ok(Some(one))
    }

    fn main_dtype(&self) -> Option<DType> {
        self.files.iter().max_by_key(|file| file.tensor_bytes())?.main_dtype()
    }
}

/// The GGUF file that `path` names: itself, or the only model in a folder.
///
/// # Errors
/// When there are several models in the folder.
pub fn find(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_file() {
        return Ok(has_extension(path).then(|| path.to_owned()));
    }
    // A folder that cannot be listed has its error where its other files are looked for.
    let Ok(entries) = fs::read_dir(path) else { return Ok(None) };
    let is_model = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Projectors of images lie beside the model of the text.
        has_extension(path) && !name.starts_with("mmproj") && split_name(path).is_none_or(|split| split.index == 1)
    };
    let mut models: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_model).collect();
    models.sort();
    match models.as_slice() {
        [] => Ok(None),
        [single] => Ok(Some(single.clone())),
        several => {
            let names: Vec<_> = several.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy())).collect();
            Err(Error::invalid(format!(
                "{} holds several GGUF models: {}; gpt_model_path must name one of them",
                path.display(),
                names.join(", ")
            )))
        }
    }
}

fn has_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The parts of `model-00002-of-00003.gguf`.
struct SplitName {
    stem: String,
    index: usize,
    count: usize,
}

fn split_name(path: &Path) -> Option<SplitName> {
    let name = path.file_stem()?.to_str()?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, index) = rest.rsplit_once('-')?;
    let number = |text: &str| text.parse::<usize>().ok().filter(|_| text.len() == 5);
    Some(SplitName { stem: stem.to_owned(), index: number(index)?, count: number(count)? })
}

fn open_all(path: &Path) -> Result<Vec<GgufFile>> {
    let Some(split) = split_name(path) else {
        let file = GgufFile::open(path)?;
        return match file.metadata.get("split.count").and_then(Value::as_u64) {
            Some(count) if count > 1 => Err(Error::invalid(format!(
                "{} is one of {count} parts (split.count); its name must end with -00001-of-{count:05}.gguf",
                path.display()
            ))),
            _ => Ok(vec![file]),
        };
    };
    let part = |index| path.with_file_name(format!("{}-{index:05}-of-{:05}.gguf", split.stem, split.count));
    let missing: Vec<_> = (1..=split.count).map(part).filter(|part| !part.exists()).collect();
    if let Some(first) = missing.first() {
        return Err(Error::invalid(format!(
            "{} has {} parts, of which {} are not there: {} is the first",
            path.display(),
            split.count,
            missing.len(),
            first.display()
        )));
    }
    (1..=split.count.max(1)).map(|index| GgufFile::open(&part(index))).collect()
}

/// The metadata of the file that describes the model.
fn metadata(path: &Path) -> Result<(String, Map<String, Value>)> {
    let first = match split_name(path) {
        Some(split) => path.with_file_name(format!("{}-00001-of-{:05}.gguf", split.stem, split.count)),
        None => path.to_owned(),
    };
    let file = GgufFile::open(&first)?;
    Ok((first.display().to_string(), file.metadata.clone()))
}
