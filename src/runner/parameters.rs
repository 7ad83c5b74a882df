//! What a model configuration says about loading.

use std::path::{Path, PathBuf};

use super::load::{ModelOptions, ModelSource};
use crate::config::{self, Parameters};
use crate::device::cpu::CpuOptions;
use crate::device::{DeviceKind, DeviceOptions};
use crate::error::{Error, Result};
use crate::model::formats::WeightPlaces;

impl ModelOptions {
    /// For the instance with this number of a model in `model_dir`.
    ///
    /// # Errors
    /// `InvalidArg` for a negative number of a GPU.
    pub fn from_parameters(parameters: &Parameters, model_dir: &Path, instance: usize) -> Result<Self> {
        let default = Self::new(ModelSource::Folder(model_dir.to_owned()));
        let count = |value: Option<i32>| value.map(|value| value as usize);
        let threads = count(Some(parameters.cpu_threads.value).filter(|&threads| threads > 0));
        let folder = |text: &Option<String>| text.as_deref().map(PathBuf::from);
        Ok(Self {
            weight_places: WeightPlaces {
                checkpoint_dir: folder(&parameters.checkpoint_dir.value),
                tokenizer_dir: folder(&parameters.tokenizer_dir.value),
            },
            device: match parameters.device.value {
                config::DeviceKind::Auto => DeviceKind::Auto,
                config::DeviceKind::Cpu => DeviceKind::Cpu,
                config::DeviceKind::Cuda => DeviceKind::Cuda,
            },
            gpu_ids: gpu_ids(parameters, instance)?,
            device_options: DeviceOptions { cpu: CpuOptions { threads, ..Default::default() }, ..Default::default() },
            max_batch_size: count(parameters.max_batch_size.value),
            max_seq_len: count(parameters.max_seq_len.value),
            max_step_tokens: count(parameters.max_num_tokens.value),
            block_size_tokens: count(parameters.tokens_per_block.value).unwrap_or(default.block_size_tokens),
            kv_max_tokens: count(parameters.max_tokens_in_paged_kv_cache.value),
            kv_free_fraction: parameters.kv_cache_free_gpu_mem_fraction.value.map(f64::from),
            kv_host_bytes: host_bytes(parameters)?,
            graphs: (!parameters.cuda_graph_mode.value).then_some(false),
            ..default
        })
    }
}

/// Memory of the host tier, which blocks are copied back from before they are used.
///
/// # Errors
/// `InvalidArg` where they shall be used in place.
fn host_bytes(parameters: &Parameters) -> Result<u64> {
    let bytes = parameters.kv_cache_host_memory_bytes.value.unwrap_or(0);
    if bytes > 0 && !parameters.kv_cache_onboard_blocks.value {
        return Err(Error::invalid(
            "kv_cache_onboard_blocks is false beside kv_cache_host_memory_bytes: blocks of the host tier cannot be read in place",
        ));
    }
    Ok(bytes)
}

/// The GPUs of an instance: entry `instance` of `gpu_device_ids`, which is repeated cyclically.
///
/// # Errors
/// `InvalidArg` for a negative number.
fn gpu_ids(parameters: &Parameters, instance: usize) -> Result<Vec<usize>> {
    let Some(lists) = &parameters.gpu_device_ids.value else { return Ok(Vec::new()) };
    let list = &lists.0[instance % lists.0.len()];
    let number = |&id: &i32| {
        usize::try_from(id).map_err(|_| Error::invalid(format!("gpu_device_ids has {id}, expected 0 or more")))
    };
    list.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_on_the_host_are_not_read_in_place() {
        let parameters = [("kv_cache_host_memory_bytes", "1000"), ("kv_cache_onboard_blocks", "false")];
        let map = parameters.map(|(key, text)| (key.to_owned(), json!({ "string_value": text })));
        let config = json!({ "parameters": serde_json::Map::from_iter(map) });
        let parameters = Parameters::load(&config).unwrap().parameters;
        assert!(host_bytes(&parameters).unwrap_err().message().contains("kv_cache_onboard_blocks is false"));
    }

    #[test]
    fn s1_3_4_instances_take_the_gpu_lists_in_turn() {
        let with = |text: &str| {
            let config = json!({ "parameters": { "gpu_device_ids": { "string_value": text } } });
            Parameters::load(&config).unwrap().parameters
        };
        let two = with("0;2");
        assert_eq!([0, 1, 2, 3].map(|instance| gpu_ids(&two, instance).unwrap()), [vec![0], vec![2], vec![0], vec![2]]);
        assert!(gpu_ids(&with("${gpu_device_ids}"), 3).unwrap().is_empty());
        assert!(gpu_ids(&with("-1"), 0).unwrap_err().message().contains("gpu_device_ids has -1"));
    }
}
