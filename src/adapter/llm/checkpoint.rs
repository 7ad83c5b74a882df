//! Executors from a model's folder.

use std::path::Path;

use super::open::ModelExecutor;
use crate::config::{self, Parameters};
use crate::device::cpu::CpuOptions;
use crate::device::{DeviceKind, DeviceOptions};
use crate::error::{Error, Result};
use crate::runner::{ModelOptions, ModelSource, load};

/// Loads the weights of `model_dir`.
///
/// # Errors
/// The file or parameter that is wrong, and what is wrong with it.
pub fn load_checkpoint(parameters: &Parameters, model_dir: &Path) -> Result<ModelExecutor> {
    one_device(parameters)?;
    let model = load(&options(parameters, model_dir))?;
    Ok(ModelExecutor { executor: model.executor, end_ids: model.special_tokens.eos })
}

fn options(parameters: &Parameters, model_dir: &Path) -> ModelOptions {
    let default = ModelOptions::new(ModelSource::Folder(model_dir.to_owned()));
    let count = |value: Option<i32>| value.map(|value| value as usize);
    let threads = count(Some(parameters.cpu_threads.value).filter(|&threads| threads > 0));
    ModelOptions {
        device: match parameters.device.value {
            config::DeviceKind::Auto => DeviceKind::Auto,
            config::DeviceKind::Cpu => DeviceKind::Cpu,
            config::DeviceKind::Cuda => DeviceKind::Cuda,
        },
        device_options: DeviceOptions { cpu: CpuOptions { threads, ..Default::default() }, ..Default::default() },
        max_batch_size: count(parameters.max_batch_size.value).unwrap_or(default.max_batch_size),
        max_seq_len: count(parameters.max_seq_len.value),
        max_step_tokens: count(parameters.max_num_tokens.value),
        block_size_tokens: count(parameters.tokens_per_block.value).unwrap_or(default.block_size_tokens),
        kv_max_tokens: count(parameters.max_tokens_in_paged_kv_cache.value),
        kv_free_fraction: parameters.kv_cache_free_gpu_mem_fraction.value.map(f64::from),
        ..default
    }
}

/// # Errors
/// `Unsupported` where an instance is to span several GPUs.
fn one_device(parameters: &Parameters) -> Result<()> {
    let lists = parameters.gpu_device_ids.value.as_ref();
    match lists.and_then(|lists| lists.0.iter().find(|list| list.len() > 1)) {
        Some(list) => Err(Error::unsupported(format!(
            "gpu_device_ids gives {} GPUs to one instance: models on several GPUs are not served by this version",
            list.len()
        ))),
        None => Ok(()),
    }
}
