//! Executors from a model's folder.

use std::path::Path;

use super::open::ModelExecutor;
use crate::config::Parameters;
use crate::error::Result;
use crate::runner::{ModelOptions, Placement, load};

/// Loads the weights of `model_dir` for one instance.
///
/// # Errors
/// The file or parameter that is wrong, and what is wrong with it.
pub fn load_checkpoint(parameters: &Parameters, model_dir: &Path, place: Placement) -> Result<ModelExecutor> {
    let model = load(&ModelOptions::from_parameters(parameters, model_dir, place)?)?;
    Ok(ModelExecutor {
        executor: model.executor,
        end_ids: model.special_tokens.eos,
        max_input_len: model.max_input_len,
    })
}
