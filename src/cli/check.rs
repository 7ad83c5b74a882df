//! `trtllm check`: a model repository, looked at as the server and this backend would.

mod tensors;
mod warm_up;

use crate::config::{
    Level, Loaded, ModelRole, Parameters, closest, is_placeholder, parse_config, with_engine_arguments,
};
use crate::device::DeviceKind;
use crate::error::{Error, Result};
use crate::runner::{ModelOptions, Placement, plan, plan_gpu};
use crate::text::Tokenizer;
use clap::Args;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The folders under which this backend is installed.
const OUR_BACKENDS: [&str; 3] = ["tensorrtllm", "trtllm", "vllm"];

#[derive(Debug, Args)]
pub struct Check {
    /// Folder with one folder for each model.
    repository: PathBuf,
    /// Also says how many tokens the KV cache would hold on a GPU with this much free memory.
    #[arg(long, value_name = "GIB")]
    gpu_memory_gib: Option<f64>,
}

/// What is wrong with one model.
#[derive(Default)]
struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
    /// What would be in effect.
    facts: Vec<String>,
}

/// A model of the repository.
struct Entry {
    name: String,
    folder: PathBuf,
    config: Value,
}

impl Check {
    /// Prints every finding, one sentence each.
    ///
    /// # Errors
    /// `InvalidArg` when a model would not load.
    pub fn run(self) -> Result<()> {
        let (mut failed, mut warned) = (0, 0);
        let mut entries = Vec::new();
        for folder in model_folders(&self.repository)? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match read_config(&folder) {
                Ok(config) => entries.push(Entry { name, folder, config }),
                Err(error) => {
                    println!("{name}\n  error: {}", error.message());
                    failed += 1;
                }
            }
        }
        for entry in &entries {
            let findings = check_model(entry, &entries, self.gpu_memory_gib);
            println!("{}", entry.name);
            findings.errors.iter().for_each(|text| println!("  error: {text}"));
            findings.warnings.iter().for_each(|text| println!("  warning: {text}"));
            findings.facts.iter().flat_map(|text| text.lines()).for_each(|line| println!("  {line}"));
            failed += findings.errors.len();
            warned += findings.warnings.len();
        }
        match failed {
            0 => {
                println!("checked: {}, no errors, {}", counted(entries.len(), "model"), counted(warned, "warning"));
                Ok(())
            }
            1 => Err(Error::invalid("1 error: the repository would not load as it is")),
            count => Err(Error::invalid(format!("{count} errors: the repository would not load as it is"))),
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The folders of the models, by name.
fn model_folders(repository: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error| Error::invalid(format!("the repository {} cannot be read: {error}", repository.display()));
    let entries = fs::read_dir(repository).map_err(unreadable)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>();
    let paths = paths.map_err(unreadable)?;
    let mut folders: Vec<_> = paths.into_iter().filter(|path| path.is_dir() && !hidden(path)).collect();
    folders.sort();
    if repository.join("config.pbtxt").exists() {
        return Err(Error::invalid(format!(
            "{} is one model, it has a config.pbtxt: give the repository, which is the folder around it",
            repository.display()
        )));
    }
    if folders.is_empty() {
        return Err(Error::invalid(format!(
            "{} has no model folders: a repository has one for each model, with a config.pbtxt in it",
            repository.display()
        )));
    }
    Ok(folders)
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join("config.pbtxt");
    let text = fs::read_to_string(&path)
        .map_err(|error| Error::invalid(format!("config.pbtxt cannot be read ({error}): every model needs one")))?;
    parse_config(&text).map_err(|error| error.context("config.pbtxt"))
}

fn check_model(entry: &Entry, all: &[Entry], gpu_gib: Option<f64>) -> Findings {
    let mut findings = Findings::default();
    let Entry { name, folder, config } = entry;
    if let Some(given) = config["name"].as_str().filter(|given| given != name) {
        findings.errors.push(format!("name is {given:?}, but the folder is {name:?}: make them equal"));
    }
    let version = newest_version(folder);
    if version.is_none() {
        findings.errors.push("there is no version folder: create the folder 1 (it may be empty)".to_owned());
    }
    warm_up::check(config, folder, &mut findings);
    let backend = config["backend"].as_str().unwrap_or_default();
    if config["platform"] == "ensemble" {
        check_steps(config, all, &mut findings);
    } else if is_placeholder(backend) {
        findings.errors.push(format!("backend is still {backend}: fill it with tensorrtllm"));
    } else if OUR_BACKENDS.contains(&backend) {
        let version_dir = version.unwrap_or_else(|| folder.join("1"));
        if let Err(error) = check_ours(config, &version_dir, all, gpu_gib, &mut findings) {
            findings.errors.push(error.message().to_owned());
        }
    } else {
        check_others(config, backend, version.as_deref(), &mut findings);
    }
    findings
}

/// A model of another backend, if that is what was meant.
fn check_others(config: &Value, backend: &str, version: Option<&Path>, findings: &mut Findings) {
    let is_ours = ["gpt_model_path", "model_role"].iter().any(|key| config["parameters"].get(key).is_some());
    let is_llm_api = version.is_some_and(|version| version.join("model.yaml").is_file());
    match backend {
        "" if is_ours => findings.errors.push("backend is not given: add backend: \"trtllm\"".to_owned()),
        "" => findings.facts.push("no backend is given: not looked at".to_owned()),
        "python" if is_llm_api => findings.warnings.push(
            "served by the backend \"python\", not looked at: with backend: \"trtllm\" its model.yaml is read here"
                .to_owned(),
        ),
        _ => match closest(backend, OUR_BACKENDS.into_iter()).filter(|_| is_ours) {
            Some(meant) => findings.errors.push(format!("backend is {backend:?}; did you mean {meant:?}?")),
            None => findings.facts.push(format!("served by the backend {backend:?}: not looked at")),
        },
    }
}

/// The folder of the newest version.
fn newest_version(folder: &Path) -> Option<PathBuf> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u64>().ok().filter(|&version| version > 0);
    let paths = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    paths.filter_map(|path| Some((number(&path)?, path))).max().map(|(_, path)| path)
}

fn check_steps(config: &Value, all: &[Entry], findings: &mut Findings) {
    let steps = config["ensemble_scheduling"]["step"].as_array();
    for step in steps.into_iter().flatten() {
        let Some(model) = step["model_name"].as_str() else { continue };
        check_there(model, all, findings);
        if let Some(entry) = all.iter().find(|entry| entry.name == model) {
            tensors::check_step(step, &entry.config, findings);
        }
    }
}

/// What the server does with instances that are to be on a GPU, here and elsewhere.
fn check_instances(config: &Value, findings: &mut Findings) {
    let groups = config["instance_group"].as_array();
    if groups.into_iter().flatten().any(|group| group["kind"] == "KIND_GPU") {
        findings.facts.push(
            "instance_group says KIND_GPU: the server starts the instances on each GPU, and refuses the model on a \
             machine without one; with KIND_MODEL it loads everywhere, and gpu_device_ids and device choose"
                .to_owned(),
        );
    }
}

fn check_there(model: &str, all: &[Entry], findings: &mut Findings) {
    if !all.iter().any(|entry| entry.name == model) {
        findings.errors.push(format!("model {model:?} is used here but is not in the repository: add it"));
    }
}

/// # Errors
/// What would keep the model from loading.
fn check_ours(
    config: &Value,
    version_dir: &Path,
    all: &[Entry],
    gpu_gib: Option<f64>,
    findings: &mut Findings,
) -> Result<()> {
    let arguments = with_engine_arguments(config, version_dir)?;
    let config = &arguments.config;
    let Loaded { parameters, notes } = Parameters::load(config)?;
    let role = parameters.role()?;
    for note in arguments.notes.into_iter().chain(notes).chain(parameters.misplaced(role)) {
        match note.level {
            Level::Warning => findings.warnings.push(note.text),
            Level::Info => findings.facts.push(note.text),
        }
    }
    parameters.check()?;
    tensors::check(config, role, findings);
    check_instances(config, findings);
    findings.facts.push(parameters.effective_values(role));
    match role {
        ModelRole::Llm | ModelRole::LlmApi | ModelRole::Vllm => {
            check_llm(config, &parameters, role, version_dir, gpu_gib, findings)?;
        }
        ModelRole::Preprocessing | ModelRole::Postprocessing => {
            let dir = parameters.tokenizer_dir.value.as_deref().ok_or_else(|| {
                Error::invalid("tokenizer_dir is not given: set it to a folder with the model's tokenizer")
            })?;
            check_tokenizer(dir)?;
        }
        ModelRole::Bls => {
            let name = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
            let llm = name(&parameters.tensorrt_llm_model_name.value, "tensorrt_llm");
            check_there(&name(&parameters.preprocessing_model_name.value, "preprocessing"), all, findings);
            check_there(&name(&parameters.postprocessing_model_name.value, "postprocessing"), all, findings);
            check_there(&llm, all, findings);
            if let Some(draft) = &parameters.tensorrt_llm_draft_model_name.value {
                check_there(draft, all, findings);
            }
            let decoupled = |config: &Value| config["model_transaction_policy"]["decoupled"].as_bool();
            let other = all.iter().find(|entry| entry.name == llm).and_then(|entry| decoupled(&entry.config));
            if let (Some(here), Some(there)) = (decoupled(config), other)
                && here != there
            {
                findings.errors.push(format!("decoupled is {here} here and {there} in {llm:?}: give both the same"));
            }
        }
    }
    Ok(())
}

/// # Errors
/// What would keep the LLM from loading.
fn check_llm(
    config: &Value,
    parameters: &Parameters,
    role: ModelRole,
    version_dir: &Path,
    gpu_gib: Option<f64>,
    findings: &mut Findings,
) -> Result<()> {
    parameters.batching()?;
    let model_dir = PathBuf::from(parameters.model_dir(version_dir)?);
    check_files(parameters, findings);
    let mut tokenizer = None;
    if let Some(dir) = &parameters.tokenizer_dir.value {
        match Path::new(dir).exists() {
            false if role == ModelRole::Llm => findings.warnings.push(format!(
                "tokenizer_dir is {dir:?}, which does not exist: the model would take tokens only, correct the path"
            )),
            _ => tokenizer = Some(check_tokenizer(dir)?),
        }
    } else if role != ModelRole::Llm && !model_dir.join("tokenizer.json").exists() {
        return Err(Error::invalid(format!("the role {} takes text: set tokenizer_dir to a tokenizer", role.word())));
    }
    if role != ModelRole::Llm && config["max_batch_size"].as_i64().unwrap_or(0) != 0 {
        return Err(Error::invalid(format!("max_batch_size must be 0: the role {} takes one prompt", role.word())));
    }
    let mut options = ModelOptions::from_parameters(parameters, &model_dir, Placement::default())?;
    let report = match plan(&options) {
        Err(error) if options.device == DeviceKind::Cuda => {
            findings.warnings.push(format!(
                "the device cuda is not to be had here ({}): the memory plan is that of this machine's CPU",
                error.message()
            ));
            options.device = DeviceKind::Cpu;
            plan(&options)?
        }
        report => report?,
    };
    if let Some(tokenizer) = tokenizer {
        tokenizer.check_vocabulary(report.limits.vocab_size)?;
    }
    if !report.host_blocks.is_empty()
        && options.kv_host_bytes > report.device.free_bytes
        && report.device.host_accessible
    {
        findings.errors.push(format!(
            "kv_cache_host_memory_bytes is {}, but this machine has {} free: lower it",
            options.kv_host_bytes, report.device.free_bytes
        ));
    }
    findings.facts.push(report.to_string());
    if let Some(gib) = gpu_gib {
        let report = plan_gpu(&options, (gib * f64::from(1 << 30)) as u64)
            .map_err(|error| error.context(format_args!("on a GPU with {gib} GiB free")))?;
        let kv = report.kv;
        findings.facts.push(format!("on a GPU with {gib} GiB free: KV cache of {} tokens", kv.tokens));
        for window in kv.windows {
            findings.facts.push(format!(
                "  {} of its layers see the last {} tokens and have {} blocks for them",
                window.layers, window.pool.window_tokens, window.pool.num_blocks
            ));
        }
    }
    Ok(())
}

/// Files and folders that are opened after the weights.
fn check_files(parameters: &Parameters, findings: &mut Findings) {
    if let Some(file) = parameters.kv_cache_warm_up_file.value.as_deref().filter(|file| !Path::new(file).is_file()) {
        findings.errors.push(format!("kv_cache_warm_up_file is {file:?}, which is no file: correct the path"));
    }
    let Some(folder) = &parameters.kv_cache_disk_path.value else { return };
    // The folder is made where it is not there.
    let there = Path::new(folder).ancestors().find(|ancestor| ancestor.exists());
    if !there.is_some_and(takes_files) {
        findings
            .errors
            .push(format!("kv_cache_disk_path is {folder:?}, where no file can be written: correct the path"));
    }
}

/// Whether files can be made in a folder, as far as that can be told without making one.
fn takes_files(folder: &Path) -> bool {
    let Ok(metadata) = fs::metadata(folder) else { return false };
    // A file without a name, which is gone when it is closed. Not all file systems have it.
    let unnamed =
        fs::OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(folder).map_err(|error| error.kind());
    metadata.is_dir()
        && !metadata.permissions().readonly()
        && !matches!(unnamed, Err(ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied))
}

fn check_tokenizer(dir: &str) -> Result<Tokenizer> {
    if !Path::new(dir).exists() {
        return Err(Error::invalid(format!("tokenizer_dir is {dir:?}, which does not exist: correct the path")));
    }
    Tokenizer::load(Path::new(dir)).map_err(|error| error.context("tokenizer_dir"))
}
