//! From a path to a checkpoint, whatever the format.

use super::fp8;
use super::gguf::{self, GgufModel};
use super::native::NativeFolder;
use super::trtllm::{EngineFolder, EngineLimits, MANAGED, Searched, TrtllmCheckpoint};
use super::{PickleFolder, SafetensorsFolder, TensorStore, found_in};
use crate::error::{Error, ErrorKind, Result};
use crate::model::families::text_part;
use crate::model::{Section, SpecialTokens};
use std::path::{Path, PathBuf};

/// Where to look for the weights of an engine folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightPlaces {
    /// `checkpoint_dir`: goes before everything else.
    pub checkpoint_dir: Option<PathBuf>,
    /// `tokenizer_dir`: the last place, for the tokenizer mostly lies beside the weights.
    pub tokenizer_dir: Option<PathBuf>,
}

/// A model's files, opened.
#[derive(Debug)]
pub struct OpenedCheckpoint {
    /// `"Hugging Face folder"`, `"TensorRT-LLM checkpoint (tp 2, pp 1)"` …
    pub format: String,
    pub path: PathBuf,
    /// The configuration with the keys of a Hugging Face folder.
    pub config: Section,
    pub special_tokens: SpecialTokens,
    pub store: Box<dyn TensorStore>,
    /// Of the engine, where the path is that of one.
    pub limits: EngineLimits,
}

/// Opens what `path` names: a Hugging Face folder, a TensorRT-LLM checkpoint or engine folder, a GGUF file or a folder
/// that holds one.
///
/// # Errors
/// One sentence that names the file or key and what is wrong with it; for a path that is no model, what was found.
pub fn open(path: &Path, places: &WeightPlaces) -> Result<OpenedCheckpoint> {
    if path.is_file() && path.extension().is_some_and(|extension| extension == "engine") {
        return open(path.parent().unwrap_or(path), places);
    }
    if let Some(file) = gguf_file(path)? {
        return open_gguf(&file);
    }
    if !path.join("config.json").exists() && path.join("encoder").is_dir() && path.join("decoder").is_dir() {
        return Err(Error::unsupported(format!(
            "{} holds an encoder and a decoder: encoder-decoder models are not served yet",
            path.display()
        )));
    }
    if NativeFolder::is_in(path) {
        return open_native(path);
    }
    refuse_adapter(path)?;
    let config = Section::read_model(path)?;
    if let Some(engine) = EngineFolder::read(path, &config)? {
        return open_engine(&engine, places);
    }
    if config.first(&["architecture"]).is_some() && config.first(&["architectures", "model_type"]).is_none() {
        return open_trtllm(path, &config, "");
    }
    open_folder(path, config)
}

/// The GGUF file that `path` names, unless it is a folder with another form of the model.
///
/// # Errors
/// When a folder holds several GGUF models.
pub fn gguf_file(path: &Path) -> Result<Option<PathBuf>> {
    let is_other_form = path.is_dir() && path.join("config.json").exists() && has_safetensors(path);
    if is_other_form { Ok(None) } else { gguf::find(path) }
}

fn open_gguf(path: &Path) -> Result<OpenedCheckpoint> {
    let (model, description) = GgufModel::open(path)?;
    let limits = EngineLimits::default();
    let (config, special_tokens) = (description.config, description.special_tokens);
    let (format, store) = ("GGUF".to_owned(), Box::new(model));
    Ok(OpenedCheckpoint { format, path: path.to_owned(), config, special_tokens, store, limits })
}

fn open_native(path: &Path) -> Result<OpenedCheckpoint> {
    let (store, config) = NativeFolder::open(path)?;
    Ok(OpenedCheckpoint {
        format: "folder with params.json".to_owned(),
        path: path.to_owned(),
        special_tokens: SpecialTokens::read(path, &config)?,
        config,
        store: Box::new(store),
        limits: EngineLimits::default(),
    })
}

/// # Errors
/// When a folder holds an adapter and no model: names the model that it is for.
fn refuse_adapter(path: &Path) -> Result<()> {
    let adapter = path.join("adapter_config.json");
    if path.join("config.json").exists() || !adapter.exists() {
        return Ok(());
    }
    let config = Section::read(&adapter)?;
    let base = config.text(&["base_model_name_or_path"])?.unwrap_or("a model that it does not name");
    Err(Error::unsupported(format!(
        "{} holds an adapter (adapter_config.json) for {base}, which is not served yet: name the model's own folder",
        path.display()
    )))
}

fn open_folder(path: &Path, config: Section) -> Result<OpenedCheckpoint> {
    let config = text_part(config)?;
    let fp8_block = refuse_quantisation(path, &config)?;
    let (format, store): (_, Box<dyn TensorStore>) = match !has_safetensors(path) && PickleFolder::is_in(path) {
        true => ("Hugging Face folder, torch pickles", Box::new(PickleFolder::open(path)?)),
        false => {
            let folder = SafetensorsFolder::open(path)?;
            match fp8_block {
                None => ("Hugging Face folder", Box::new(folder)),
                Some(block) => {
                    ("Hugging Face folder, FP8 weights widened at load", Box::new(folder.with_fp8_block(block)))
                }
            }
        }
    };
    Ok(OpenedCheckpoint {
        format: format.to_owned(),
        path: path.to_owned(),
        special_tokens: SpecialTokens::read(path, &config)?,
        config,
        store,
        limits: EngineLimits::default(),
    })
}

/// The blocks of matrices of 8-bit floats; `None`: there are none.
///
/// # Errors
/// Names the method, unless it is one that is read.
fn refuse_quantisation(path: &Path, config: &Section) -> Result<Option<[usize; 2]>> {
    let exported = path.join("hf_quant_config.json");
    if exported.exists() {
        return modelopt_block(&Section::read(&exported)?);
    }
    let Some(quantization) = config.section("quantization_config")? else { return Ok(None) };
    match (quantization.text(&["quant_method"])?, quantization.text(&["format"])?) {
        (None | Some("mxfp4"), _) => Ok(None),
        (Some("fp8" | "fbgemm_fp8"), _) | (Some("compressed-tensors"), Some("float-quantized")) => {
            fp8::block_size(&quantization).map(Some)
        }
        (Some("modelopt"), _) => modelopt_block(&quantization),
        (Some(method), format) => {
            let format = format.map_or_else(String::new, |format| format!(" ({format})"));
            Err(Error::unsupported(format!(
                "{}: the quantisation {method}{format} is not supported yet; mxfp4, fp8, fbgemm_fp8 and \
                 compressed-tensors (float-quantized) are",
                quantization.origin()
            )))
        }
    }
}

/// The blocks of what ModelOpt exported: one scale for a matrix, or for blocks of it.
///
/// # Errors
/// Names the algorithm, unless it is one of 8-bit floats.
fn modelopt_block(exported: &Section) -> Result<Option<[usize; 2]>> {
    let nested = exported.section("quantization")?;
    let quantization = nested.as_ref().unwrap_or(exported);
    match quantization.text(&["quant_algo"])? {
        None => Ok(None),
        Some("FP8" | "FP8_PB_WO" | "FP8_PER_CHANNEL_PER_TOKEN") => fp8::block_size(quantization).map(Some),
        Some(algorithm) => Err(Error::unsupported(format!(
            "{}: quant_algo is {algorithm}, which is not supported yet; FP8 and FP8_PB_WO are",
            quantization.origin()
        ))),
    }
}

fn open_trtllm(path: &Path, config: &Section, suffix: &str) -> Result<OpenedCheckpoint> {
    let (store, config) = TrtllmCheckpoint::open(path, config, suffix)?;
    Ok(OpenedCheckpoint {
        format: format!("TensorRT-LLM checkpoint ({})", store.parallelism()),
        path: path.to_owned(),
        special_tokens: SpecialTokens::read(path, &config)?,
        config,
        store: Box::new(store),
        limits: EngineLimits::default(),
    })
}

/// Looks for the weights: `checkpoint_dir`, beside the engine folder, in it, `tokenizer_dir`.
fn open_engine(engine: &EngineFolder, places: &WeightPlaces) -> Result<OpenedCheckpoint> {
    let mut searched = Searched::new();
    let checkpoint = match find_weights(engine, places, &mut searched)? {
        Some(checkpoint) => checkpoint,
        None => return Err(engine.not_found(&searched)),
    };
    engine.check(&checkpoint.config)?;
    tracing::info!("{}: the weights come from {}", engine.path.display(), checkpoint.path.display());
    let format = format!("TensorRT-LLM engine folder, weights of {}: {}", checkpoint.path.display(), checkpoint.format);
    let limits = engine.limits.clone();
    Ok(OpenedCheckpoint { format, path: engine.path.clone(), limits, ..checkpoint })
}

fn find_weights(
    engine: &EngineFolder,
    places: &WeightPlaces,
    searched: &mut Searched,
) -> Result<Option<OpenedCheckpoint>> {
    match &places.checkpoint_dir {
        Some(folder) if !folder.exists() => {
            searched.push(("checkpoint_dir", format!("{}, not there", folder.display())))
        }
        // What was named must open.
        Some(folder) => return open_plain(folder).map(Some),
        None => searched.push(("checkpoint_dir", "not set".to_owned())),
    }
    let siblings = engine.siblings();
    let fitting: Vec<_> = siblings.iter().filter(|folder| fits(engine, folder)).collect();
    match fitting.as_slice() {
        [single] => return open_plain(single).map(Some),
        [] => searched.push(("folders beside it", format!("{} without a checkpoint that fits", siblings.len()))),
        several => {
            let names: Vec<_> = several.iter().map(|folder| folder.display().to_string()).collect();
            return Err(Error::invalid(format!(
                "{} is an engine folder, and several checkpoints beside it fit: {}; set checkpoint_dir to one of them",
                engine.path.display(),
                names.join(", ")
            )));
        }
    }
    match &engine.checkpoint_config {
        Some(config) if engine.has_managed_weights() => return open_trtllm(&engine.path, config, MANAGED).map(Some),
        _ => searched.push(("weights beside the engines", format!("no rank0{MANAGED}.safetensors"))),
    }
    match &places.tokenizer_dir {
        Some(folder) if has_safetensors(folder) => return open_plain(folder).map(Some),
        Some(folder) => searched.push(("tokenizer_dir", format!("{}, which has no safetensors", folder.display()))),
        None => searched.push(("tokenizer_dir", "not set".to_owned())),
    }
    Ok(None)
}

/// [`open`] of something that is no engine folder itself.
fn open_plain(path: &Path) -> Result<OpenedCheckpoint> {
    let config = path.join("config.json");
    if config.exists() && EngineFolder::read(path, &Section::read(&config)?)?.is_some() {
        return Err(Error::new(
            ErrorKind::InvalidArg,
            format!("{} is an engine folder; checkpoint_dir must hold weights ({})", path.display(), found_in(path)),
        ));
    }
    open(path, &WeightPlaces::default())
}

/// Whether a folder holds a checkpoint with the sizes of the engine.
fn fits(engine: &EngineFolder, folder: &Path) -> bool {
    let Ok(config) = Section::read(&folder.join("config.json")) else { return false };
    let is_engine = !matches!(EngineFolder::read(folder, &config), Ok(None));
    let is_model = !is_engine && engine.has_sizes() && has_safetensors(folder);
    is_model && text_part(config).is_ok_and(|config| engine.check(&config).is_ok())
}

fn has_safetensors(folder: &Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json", "rank0.safetensors"]
        .iter()
        .any(|name| folder.join(name).exists())
}
