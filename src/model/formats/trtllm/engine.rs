//! TensorRT-LLM engine folders. The engines themselves are opaque: their `config.json` gives limits, and the weights
//! are looked for where they were before the engine was built.

use crate::error::{Error, Result};
use crate::model::Section;
use std::fs;
use std::path::{Path, PathBuf};

/// Limits that an engine was built for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineLimits {
    pub max_batch_size: Option<usize>,
    pub max_num_tokens: Option<usize>,
    pub max_seq_len: Option<usize>,
    pub max_input_len: Option<usize>,
    pub max_beam_width: Option<usize>,
}

/// The configuration of an engine folder.
#[derive(Debug)]
pub struct EngineFolder {
    pub path: PathBuf,
    pub limits: EngineLimits,
    /// The checkpoint that it was built from; engines before version 0.8 do not say it.
    pub checkpoint_config: Option<Section>,
    /// Where the sizes of that checkpoint are.
    sizes: Section,
}

/// Names of the sizes that an engine and its checkpoint share.
const SIZES: [&[&str]; 3] = [
    &["hidden_size", "n_embd", "d_model", "n_embed"],
    &["num_hidden_layers", "n_layer", "n_layers", "num_layers"],
    &["num_attention_heads", "n_head", "n_heads", "num_heads"],
];

/// Where weights were looked for: `(what, where)`.
pub(in crate::model::formats) type Searched = Vec<(&'static str, String)>;

impl EngineFolder {
    /// Reads what `config.json` says; `None`: it is not that of an engine.
    ///
    /// # Errors
    /// Names the key and its value.
    pub fn read(path: &Path, config: &Section) -> Result<Option<Self>> {
        let Some(build) = (match config.section("build_config")? {
            Some(build) => Some(build),
            None => config.section("builder_config")?,
        }) else {
            return Ok(None);
        };
        let limit = |key| build.count(&[key], 1 << 40);
        let max_input_len = limit("max_input_len")?;
        let max_seq_len = match (limit("max_seq_len")?, max_input_len, limit("max_output_len")?) {
            (Some(longest), ..) => Some(longest),
            (None, Some(input), Some(output)) => Some(input + output),
            _ => None,
        };
        let limits = EngineLimits {
            max_batch_size: limit("max_batch_size")?,
            max_num_tokens: limit("max_num_tokens")?,
            max_seq_len,
            max_input_len,
            max_beam_width: limit("max_beam_width")?,
        };
        if let Some(mode) = build.first(&["speculative_decoding_mode"]).filter(|(_, mode)| is_speculative(mode)) {
            tracing::warn!("{}: {} is {}; it is served without speculation", build.origin(), mode.0, mode.1);
        }
        let checkpoint_config = config.section("pretrained_config")?;
        let sizes = checkpoint_config.clone().unwrap_or(build);
        Ok(Some(Self { path: path.to_owned(), limits, checkpoint_config, sizes }))
    }

    /// Whether it says of what sizes its checkpoint is.
    pub fn has_sizes(&self) -> bool {
        SIZES.iter().all(|keys| self.sizes.first(keys).is_some())
    }

    /// Folders beside the engine that may hold its checkpoint, sorted.
    pub fn siblings(&self) -> Vec<PathBuf> {
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let Some(entries) = path.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return Vec::new() };
        let mut folders: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|other| *other != path && other.is_dir()).collect();
        folders.sort();
        folders
    }

    /// Whether rank files with the weights were written beside the engines (`manage_weights`).
    pub fn has_managed_weights(&self) -> bool {
        self.path.join(format!("rank0{MANAGED}.safetensors")).exists()
    }

    /// # Errors
    /// When a checkpoint (in the words of a Hugging Face folder) is not the one that the engine was built from.
    pub fn check(&self, config: &Section) -> Result<()> {
        for keys in SIZES {
            let (expected, found) = (self.sizes.count(keys, usize::MAX)?, config.count(keys, usize::MAX)?);
            if let (Some(expected), Some(found)) = (expected, found)
                && expected != found
            {
                return Err(Error::invalid(format!(
                    "{}: {} is {found}, but the engine in {} was built with {expected}",
                    config.origin(),
                    keys[0],
                    self.path.display()
                )));
            }
        }
        Ok(())
    }

    /// The error when no weights were found.
    pub(in crate::model::formats) fn not_found(&self, searched: &Searched) -> Error {
        let places: Vec<_> = searched.iter().map(|(what, place)| format!("{what} ({place})")).collect();
        Error::not_found(format!(
            "{} is a TensorRT-LLM engine folder, whose weights cannot be read from the engines; no checkpoint was found \
             in: {}; set checkpoint_dir (fill_template.py ... checkpoint_dir:/path/of/the/model) to the Hugging Face folder \
             or TensorRT-LLM checkpoint that the engine was built from",
            self.path.display(),
            places.join("; ")
        ))
    }
}

/// Between `rank0` and `.safetensors` in the names of weights beside an engine.
pub(in crate::model::formats) const MANAGED: &str = "_managed_weights";

/// `NONE` is written as a number or as a word.
fn is_speculative(mode: &serde_json::Value) -> bool {
    mode.as_u64().is_some_and(|mode| mode > 1) || mode.as_str().is_some_and(|mode| !mode.eq_ignore_ascii_case("none"))
}
