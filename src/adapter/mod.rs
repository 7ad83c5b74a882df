//! Composition root: tensors to requests, outputs to tensors, config to an engine.

pub mod roles;
pub mod tensor;

use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::triton::{Model, ModelHandler};

/// Loads a model for the role that its parameter `model_role` names.
///
/// # Errors
/// Unsupported for a role that this build does not serve.
pub fn load_model(model: &Model) -> Result<Arc<dyn ModelHandler>> {
    let role = model.config["parameters"]["model_role"]["string_value"].as_str().unwrap_or("tensorrt_llm");
    Err(Error::unsupported(format!("model role `{role}` is not served by this build")))
}

/// The model's config with what is missing filled in, or none where nothing is missing.
///
/// # Errors
/// The model's files contradict the config.
pub fn auto_complete(_model: &Model) -> Result<Option<Value>> {
    Ok(None)
}
