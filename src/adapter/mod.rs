//! Composition root: tensors to requests, outputs to tensors, config to an engine.

pub mod errors;
mod events;
pub mod llm;
pub mod roles;
pub mod tensor;
pub mod tokenizer;

use std::sync::Arc;

use serde_json::Value;

use crate::config::{Level, Loaded, ModelRole, Note, Parameters, with_engine_arguments};
use crate::error::Result;
use crate::tensors::OldVersion;
use crate::triton::{Model, ModelHandler};
use llm::{ExecutorSource, LlmModel};
use roles::{BlsModel, RoleModel};

/// Loads a model for the role that its parameter `model_role` names.
///
/// # Errors
/// Parameters that do not load, files that are missing or wrong, an unknown role.
pub fn load_model(model: &Model) -> Result<Arc<dyn ModelHandler>> {
    load_model_from(model, Arc::new(llm::load_checkpoint))
}

/// [`load_model`] with executors of another source.
///
/// # Errors
/// As for [`load_model`].
pub fn load_model_from(model: &Model, source: ExecutorSource) -> Result<Arc<dyn ModelHandler>> {
    let arguments = with_engine_arguments(&model.config, &llm::version_dir(model))?;
    let model = &Model { config: arguments.config, ..model.clone() };
    let mut loaded = Parameters::load(&model.config)?;
    loaded.notes.splice(0..0, arguments.notes);
    let role = loaded.parameters.role()?;
    let old = OldVersion::of(role, &model.config);
    loaded.notes.extend(old.map(|old| Note { level: Level::Info, text: old.note().to_owned() }));
    for Note { level, text } in loaded.report(role) {
        match level {
            Level::Info => tracing::info!("{}: {text}", model.name),
            Level::Warning => tracing::warn!("{}: {text}", model.name),
        }
    }
    let parameters = loaded.parameters;
    parameters.check()?;
    match role {
        ModelRole::Llm | ModelRole::LlmApi | ModelRole::Vllm => {
            Ok(Arc::new(LlmModel::load(model, parameters, source, roles::interface(role))?))
        }
        ModelRole::Bls => Ok(Arc::new(BlsModel::load(model, &parameters)?)),
        role => Ok(Arc::new(RoleModel::load(role, &model.config, &parameters)?)),
    }
}

/// The model's config with what is missing filled in, or none where nothing is missing.
///
/// # Errors
/// Parameters that do not load, an unknown role.
pub fn auto_complete(model: &Model) -> Result<Option<Value>> {
    let config = with_engine_arguments(&model.config, &llm::version_dir(model))?.config;
    let Loaded { parameters, .. } = Parameters::load(&config)?;
    Ok(match parameters.role()? {
        role @ (ModelRole::LlmApi | ModelRole::Vllm) => {
            let mut own = model.config.clone();
            if let (Some(policy), None) = (config.get("model_transaction_policy"), own.get("model_transaction_policy"))
            {
                own["model_transaction_policy"] = policy.clone();
            }
            roles::complete_prompts(&own, role)
        }
        ModelRole::Llm => llm::complete(&model.config, llm::has_tokenizer(&parameters, model)),
        ModelRole::Bls => roles::complete_bls(&model.config),
        role => roles::complete(&model.config, role),
    })
}
