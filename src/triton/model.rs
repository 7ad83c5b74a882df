//! A model and its backend, as the server describes them at load. Plain data: copies, no handles.

use std::path::PathBuf;
use std::ptr;

use serde_json::Value;

use super::ffi::{check, read, utf8};
use super::infer::Server;
use super::message::{Message, message_to_json};
use super::sys;
use crate::error::{Result, ResultExt};

const CONFIG_VERSION: u32 = 1;

/// The backend that a model names.
#[derive(Clone, Debug)]
pub struct Backend {
    /// `trtllm` or `tensorrtllm`, by the folder that the library was loaded from.
    pub name: String,
    /// The server's `--backend-config` settings: `{"cmdline": {key: text}}`.
    pub config: Value,
    /// The folder that the library was loaded from.
    pub directory: PathBuf,
}

/// A model that is being loaded.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub version: u64,
    /// The model's folder in the repository, which holds the version folders.
    pub repository: PathBuf,
    /// The model configuration as JSON, after auto-completion.
    pub config: Value,
    pub backend: Backend,
    /// The server, for requests to its other models.
    pub server: Server,
}

impl Model {
    /// # Safety
    /// `raw` is a model that lives through the call.
    pub(super) unsafe fn read(raw: *mut sys::TRITONBACKEND_Model) -> Result<Self> {
        let mut artifacts = sys::TRITONBACKEND_ARTIFACT_FILESYSTEM;
        // SAFETY: `raw` is alive, and so is what is borrowed from it and copied here.
        unsafe {
            let name = read(ptr::null(), |out| sys::TRITONBACKEND_ModelName(raw, out))?;
            let repository = read(ptr::null(), |out| sys::TRITONBACKEND_ModelRepository(raw, &mut artifacts, out))?;
            let backend = read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelBackend(raw, out))?;
            Ok(Self {
                name: utf8(name, "the model name")?.to_owned(),
                version: read(0, |out| sys::TRITONBACKEND_ModelVersion(raw, out))?,
                repository: utf8(repository, "the path of the model repository")?.into(),
                config: read_config(raw)?,
                backend: Backend::read(backend)?,
                server: Server::of_model(raw)?,
            })
        }
    }
}

impl Backend {
    /// # Safety
    /// `raw` is a backend that lives through the call.
    unsafe fn read(raw: *mut sys::TRITONBACKEND_Backend) -> Result<Self> {
        let mut artifacts = sys::TRITONBACKEND_ARTIFACT_FILESYSTEM;
        // SAFETY: `raw` is alive, and so is what is borrowed from it and copied here.
        unsafe {
            let name = read(ptr::null(), |out| sys::TRITONBACKEND_BackendName(raw, out))?;
            let config = read(ptr::null_mut(), |out| sys::TRITONBACKEND_BackendConfig(raw, out))?;
            let directory = read(ptr::null(), |out| sys::TRITONBACKEND_BackendArtifacts(raw, &mut artifacts, out))?;
            Ok(Self {
                name: utf8(name, "the backend name")?.to_owned(),
                config: message_to_json(config).context("backend config")?,
                directory: utf8(directory, "the path of the backend")?.into(),
            })
        }
    }
}

/// Whether the server wants the config of this model completed.
///
/// # Safety
/// `raw` is a model that lives through the call.
pub(super) unsafe fn wants_auto_complete(raw: *mut sys::TRITONBACKEND_Model) -> Result<bool> {
    // SAFETY: `raw` is alive.
    unsafe { read(false, |out| sys::TRITONBACKEND_ModelAutoCompleteConfig(raw, out)) }
}

/// Replaces the config of the model.
///
/// # Safety
/// `raw` is a model inside of its ModelInitialize.
pub(super) unsafe fn set_config(raw: *mut sys::TRITONBACKEND_Model, config: &Value) -> Result<()> {
    let message = Message::from_json(config)?;
    // SAFETY: both are alive; the message stays ours.
    unsafe { check(sys::TRITONBACKEND_ModelSetConfig(raw, CONFIG_VERSION, message.as_ptr())) }
}

/// # Safety
/// `raw` is a model that lives through the call.
pub(super) unsafe fn read_config(raw: *mut sys::TRITONBACKEND_Model) -> Result<Value> {
    // SAFETY: `raw` is alive; the message is handed to us.
    let message = unsafe {
        Message::from_raw(read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelConfig(raw, CONFIG_VERSION, out))?)
    };
    message.to_json().context("model config")
}
