//! What a model configuration says about loading.

use std::path::{Path, PathBuf};

use super::load::{ModelOptions, ModelSource};
use crate::config::{self, GpuName, LoadFormat, Parameters};
use crate::device::cpu::CpuOptions;
use crate::device::{CudaOptions, DeviceKind, DeviceOptions, GpuId};
use crate::error::{Error, Result};
use crate::model::formats::WeightPlaces;

impl ModelOptions {
    /// For an instance of a model in `model_dir`.
    ///
    /// # Errors
    /// `InvalidArg` for a negative number of a GPU.
    pub fn from_parameters(parameters: &Parameters, model_dir: &Path, place: Placement) -> Result<Self> {
        let default = Self::new(match parameters.load_format.value {
            LoadFormat::Auto => ModelSource::Folder(model_dir.to_owned()),
            LoadFormat::Dummy => ModelSource::DummyFolder(model_dir.to_owned()),
        });
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
            gpu_ids: gpu_ids(parameters, place)?,
            device_options: DeviceOptions { cpu: CpuOptions { threads, ..Default::default() }, cuda: cuda_options() },
            max_batch_size: count(parameters.max_batch_size.value),
            max_seq_len: count(parameters.max_seq_len.value),
            max_step_tokens: count(parameters.max_num_tokens.value),
            block_size_tokens: count(parameters.tokens_per_block.value).unwrap_or(default.block_size_tokens),
            kv_max_tokens: count(parameters.max_tokens_in_paged_kv_cache.value),
            kv_free_fraction: parameters.kv_cache_free_gpu_mem_fraction.value.map(f64::from),
            kv_total_fraction: parameters.kv_cache_total_gpu_mem_fraction.value.map(f64::from),
            kv_max_bytes: parameters.max_gpu_total_bytes.value.filter(|&bytes| bytes > 0),
            attention_windows: attention_windows(parameters)?,
            sink_tokens: count(parameters.sink_token_length.value).unwrap_or(0),
            kv_host_bytes: host_bytes(parameters)?,
            kv_disk: disk(parameters)?,
            graphs: (!parameters.cuda_graph_mode.value).then_some(false),
            max_graphs: count(Some(parameters.cuda_graph_cache_size.value).filter(|&most| most > 0)),
            fault_step: Some(parameters.fault_injection_step.value).filter(|&step| step > 0).map(|step| step as u64),
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

/// # Errors
/// `InvalidArg` for a window without a token.
fn attention_windows(parameters: &Parameters) -> Result<Vec<usize>> {
    let windows = parameters.max_attention_window_size.value.iter().flatten();
    let window = |&window: &i32| {
        usize::try_from(window)
            .ok()
            .filter(|&window| window > 0)
            .ok_or_else(|| Error::invalid(format!("max_attention_window_size has {window}, expected 1 or more")))
    };
    windows.map(window).collect()
}

/// # Errors
/// `InvalidArg` for one of the two parameters without the other.
fn disk(parameters: &Parameters) -> Result<Option<(PathBuf, u64)>> {
    let (path, bytes) = (&parameters.kv_cache_disk_path.value, parameters.kv_cache_disk_bytes.value.unwrap_or(0));
    match (path.as_deref().filter(|path| !path.is_empty()), bytes) {
        (None, 0) => Ok(None),
        (Some(path), 1..) => Ok(Some((PathBuf::from(path), bytes))),
        (path, bytes) => Err(Error::invalid(format!(
            "kv_cache_disk_path is {:?} and kv_cache_disk_bytes is {bytes}: expected a folder and more than 0, or neither",
            path.unwrap_or_default()
        ))),
    }
}

/// Which instance of a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Instances count from 0 in the order in which they are made.
    pub instance: usize,
    /// Of an instance group of the kind `KIND_GPU`.
    pub group_gpu: Option<usize>,
}

/// Where CUDA's libraries are looked for and compiled kernels are kept, by the environment: `TRTLLM_CUDA_LIBRARY_DIRS`
/// (folders, separated by `:`), `CUDA_HOME` and `CUDA_PATH`, `VIRTUAL_ENV`; `TRTLLM_KERNEL_CACHE`, else
/// `XDG_CACHE_HOME/trtllm`, else `HOME/.cache/trtllm`.
pub fn cuda_options() -> CudaOptions {
    cuda_options_from(&config::environment)
}

fn cuda_options_from(variable: &dyn Fn(&str) -> Option<String>) -> CudaOptions {
    let folders = |names: &[&str]| names.iter().filter_map(|name| variable(name)).map(PathBuf::from).collect();
    let libraries = variable("TRTLLM_CUDA_LIBRARY_DIRS").unwrap_or_default();
    let cache = variable("TRTLLM_KERNEL_CACHE").map(PathBuf::from);
    let user_cache = || variable("XDG_CACHE_HOME").map(|folder| Path::new(&folder).join("trtllm"));
    let home_cache = || variable("HOME").map(|folder| Path::new(&folder).join(".cache/trtllm"));
    CudaOptions {
        library_dirs: libraries.split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from).collect(),
        toolkit_dirs: folders(&["CUDA_HOME", "CUDA_PATH"]),
        python_dirs: folders(&["VIRTUAL_ENV"]),
        cache_dir: cache.or_else(user_cache).or_else(home_cache),
    }
}

/// The GPUs of an instance: its entry of `gpu_device_ids`, which is repeated cyclically; else that of its group.
///
/// # Errors
/// `InvalidArg` for a negative number.
fn gpu_ids(parameters: &Parameters, place: Placement) -> Result<Vec<GpuId>> {
    let Some(lists) = &parameters.gpu_device_ids.value else {
        return Ok(place.group_gpu.map(GpuId::Number).into_iter().collect());
    };
    let id = |name: &GpuName| match name {
        GpuName::Uuid(uuid) => Ok(GpuId::Uuid(uuid.clone())),
        GpuName::Number(id) => usize::try_from(*id)
            .map(GpuId::Number)
            .map_err(|_| Error::invalid(format!("gpu_device_ids has {id}, expected 0 or more"))),
    };
    lists.0[place.instance % lists.0.len()].iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(text: &str) -> Parameters {
        let config = json!({ "parameters": { "gpu_device_ids": { "string_value": text } } });
        Parameters::load(&config).unwrap().parameters
    }

    fn place(instance: usize) -> Placement {
        Placement { instance, group_gpu: Some(5) }
    }

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
        let two = with("0;2");
        let ids = [0, 1, 2, 3].map(|instance| gpu_ids(&two, place(instance)).unwrap());
        assert_eq!(ids, [0, 2, 0, 2].map(|number| vec![GpuId::Number(number)]));
        assert!(gpu_ids(&with("-1"), place(0)).unwrap_err().message().contains("gpu_device_ids has -1"));
    }

    #[test]
    fn a_gpu_may_be_named_by_its_uuid_or_by_the_instance_group() {
        let ids = gpu_ids(&with("MIG-af3a1b2c-0; 1"), place(0)).unwrap();
        assert_eq!(ids, [GpuId::Uuid("MIG-af3a1b2c-0".into())]);
        assert_eq!(gpu_ids(&with("${gpu_device_ids}"), place(3)).unwrap(), [GpuId::Number(5)]);
        assert!(gpu_ids(&Parameters::default(), Placement::default()).unwrap().is_empty());
    }

    #[test]
    fn the_environment_says_where_cuda_is() {
        let variable = |name: &str| match name {
            "TRTLLM_CUDA_LIBRARY_DIRS" => Some("/a::/b".to_owned()),
            "CUDA_HOME" => Some("/cuda".to_owned()),
            "HOME" => Some("/home/x".to_owned()),
            _ => None,
        };
        let options = cuda_options_from(&variable);
        assert_eq!(options.library_dirs, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(options.toolkit_dirs, [Path::new("/cuda")]);
        assert_eq!(options.cache_dir.as_deref(), Some(Path::new("/home/x/.cache/trtllm")));
    }
}
