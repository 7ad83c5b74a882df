//! What a model is loaded with.

use crate::device::{DType, DeviceKind, DeviceOptions, GpuId};
use crate::error::{Error, Result};
use crate::model::formats::WeightPlaces;
use std::path::PathBuf;

/// Rows of logits beyond one for each sequence where nothing else is said: 64 MiB for a vocabulary of 128 Ki.
const SPARE_STEP_ROWS: usize = 128;

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder or file of any format that [`formats::open`] knows.
    Folder(PathBuf),
    /// The shape of a well-known model with made-up weights.
    Dummy(String),
    /// The shape that a folder's `config.json` says, with made-up weights.
    DummyFolder(PathBuf),
}

/// What a model is loaded with.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    pub source: ModelSource,
    /// Where the weights of an engine folder may be.
    pub weight_places: WeightPlaces,
    pub device: DeviceKind,
    /// GPUs; none: the first.
    pub gpu_ids: Vec<GpuId>,
    pub device_options: DeviceOptions,
    /// Type of the matrices; `None`: the checkpoint's.
    pub dtype: Option<DType>,
    /// Sequences that run together; `None`: what the engine was built for, else 64.
    pub max_batch_size: Option<usize>,
    /// Prompt and output together; `None`: what the engine or the checkpoint was made for.
    pub max_seq_len: Option<usize>,
    /// Most tokens in one step; `None`: chosen for the device.
    pub max_step_tokens: Option<usize>,
    /// Rows of logits of a step beyond one for each sequence: more are computed where prompts or drafts are looked at.
    pub spare_step_rows: usize,
    /// Power of two.
    pub block_size_tokens: usize,
    /// `max_tokens_in_paged_kv_cache`.
    pub kv_max_tokens: Option<usize>,
    /// `kv_cache_free_gpu_mem_fraction`.
    pub kv_free_fraction: Option<f64>,
    /// `max_gpu_total_bytes`: most bytes of the KV cache.
    pub kv_max_bytes: Option<u64>,
    /// `kv_cache_total_gpu_mem_fraction`: share of all memory of the device that weights, workspace and KV cache take.
    pub kv_total_fraction: Option<f64>,
    /// `max_attention_window_size`: windows of the layers, repeated; empty: the model's own.
    pub attention_windows: Vec<usize>,
    /// `sink_token_length`: of the tokens of those windows, the ones that are the first of the sequence.
    pub sink_tokens: usize,
    /// Whether layers that see a window of the context may have blocks of their own, fewer than the others.
    pub window_pools: bool,
    /// `kv_cache_host_memory_bytes`: memory of the host behind the KV cache; 0: none.
    pub kv_host_bytes: u64,
    /// `kv_cache_disk_path` and `kv_cache_disk_bytes`: where blocks are kept that outlive the process, and how much of them.
    pub kv_disk: Option<(PathBuf, u64)>,
    /// `cuda_graph_mode`: whether decode steps are padded to few shapes and repeated from a recording; `None`: where the
    /// device works on its own.
    pub graphs: Option<bool>,
    /// `cuda_graph_cache_size`: most recorded steps; `None`: all that are of use.
    pub max_graphs: Option<usize>,
    /// Before the step of this number the device is made to fail for good: to test what comes after.
    pub fault_step: Option<u64>,
    /// Steps that may be launched before the oldest is read; `None`: 2 where the device works on its own, else 1.
    pub pipeline_depth: Option<usize>,
}

impl ModelOptions {
    /// Defaults for everything but the source.
    pub fn new(source: ModelSource) -> Self {
        Self {
            source,
            weight_places: WeightPlaces::default(),
            device: DeviceKind::Auto,
            gpu_ids: Vec::new(),
            device_options: DeviceOptions::default(),
            dtype: None,
            max_batch_size: None,
            max_seq_len: None,
            max_step_tokens: None,
            spare_step_rows: SPARE_STEP_ROWS,
            block_size_tokens: 64,
            kv_max_tokens: None,
            kv_free_fraction: None,
            kv_max_bytes: None,
            kv_total_fraction: None,
            attention_windows: Vec::new(),
            sink_tokens: 0,
            window_pools: true,
            kv_host_bytes: 0,
            kv_disk: None,
            graphs: None,
            max_graphs: None,
            fault_step: None,
            pipeline_depth: None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let at_least_one = |name: &str, value: Option<usize>| match value {
            Some(0) => Err(Error::invalid(format!("{name} is 0; it must be at least 1"))),
            _ => Ok(()),
        };
        at_least_one("max_batch_size", self.max_batch_size)?;
        at_least_one("max_seq_len", self.max_seq_len)?;
        at_least_one("max_num_tokens", self.max_step_tokens)?;
        at_least_one("max_tokens_in_paged_kv_cache", self.kv_max_tokens)?;
        at_least_one("pipeline_depth", self.pipeline_depth)?;
        at_least_one("cuda_graph_cache_size", self.max_graphs)?;
        let size = self.block_size_tokens;
        if !size.is_power_of_two() || size > 1024 {
            return Err(Error::invalid(format!(
                "tokens_per_block is {size}; it must be a power of two from 1 to 1024"
            )));
        }
        let fractions = [
            ("kv_cache_free_gpu_mem_fraction", self.kv_free_fraction),
            ("kv_cache_total_gpu_mem_fraction", self.kv_total_fraction),
        ];
        let is_share = |fraction: f64| fraction > 0.0 && fraction <= 1.0;
        match fractions.into_iter().find(|(_, fraction)| fraction.is_some_and(|fraction| !is_share(fraction))) {
            Some((name, fraction)) => {
                let fraction = fraction.unwrap_or_default();
                Err(Error::invalid(format!("{name} is {fraction}; it must be greater than 0 and at most 1")))
            }
            None => Ok(()),
        }
    }
}
