//! A device that computes nothing: a forward pass on it shows how much memory the real one needs.

use crate::device::{
    Activation, Attention, DType, Device, DeviceInfo, EditLogits, Elementwise, ExpertLinear, Feature, Graph, HostTier,
    KvLayer, LayerNorm, RawBuffer, RopeKvWrite, Route, Sample, SharedDevice, Tensor, TopTokens, Transfers, Weight,
};
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands in for a device while memory is planned: addresses without memory behind them, operations without effect.
pub struct PlanningDevice {
    real: SharedDevice,
    next_addr: AtomicU64,
    /// Free memory of the GPU that is played.
    gpu_bytes: Option<u64>,
}

impl PlanningDevice {
    /// A stand-in with the types of `real`.
    pub fn shared(real: &SharedDevice) -> SharedDevice {
        Self::with(real, None)
    }

    /// A stand-in for a GPU with this much free memory; what operations there are is what `real` has.
    pub fn gpu(real: &SharedDevice, free_bytes: u64) -> SharedDevice {
        Self::with(real, Some(free_bytes))
    }

    fn with(real: &SharedDevice, gpu_bytes: Option<u64>) -> SharedDevice {
        Arc::new(Self { real: real.clone(), next_addr: AtomicU64::new(1 << 12), gpu_bytes })
    }

    /// So that a model is refused before it is loaded, not in its first step.
    fn need(&self, feature: Feature) -> Result<()> {
        if self.real.supports(feature) { Ok(()) } else { Err(feature.missing()) }
    }
}

impl Device for PlanningDevice {
    fn info(&self) -> DeviceInfo {
        let real = self.real.info();
        match self.gpu_bytes {
            None => DeviceInfo { host_accessible: false, ..real },
            Some(bytes) => DeviceInfo {
                description: "such a GPU".to_owned(),
                total_bytes: bytes,
                free_bytes: bytes,
                host_accessible: false,
            },
        }
    }

    fn activation_dtype(&self, weights: DType) -> DType {
        if self.gpu_bytes.is_some() { weights } else { self.real.activation_dtype(weights) }
    }

    fn kv_dtype(&self, weights: DType) -> DType {
        self.real.kv_dtype(weights)
    }

    fn allocate(&self, bytes: usize, _purpose: &str) -> Result<RawBuffer> {
        let addr = self.next_addr.fetch_add((bytes as u64).next_multiple_of(256), Ordering::Relaxed);
        Ok(RawBuffer { addr, bytes })
    }

    fn free(&self, _buffer: RawBuffer) {}

    fn upload(&self, _dst: &Tensor, _src: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, _src: &Tensor, dst: &mut [u8]) -> Result<()> {
        dst.fill(0);
        Ok(())
    }

    fn host_bytes<'a>(&self, _tensor: &'a Tensor) -> Option<&'a [u8]> {
        None
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn embed(&self, _out: &Tensor, _table: &Tensor, _ids: &Tensor, _scale: f32) -> Result<()> {
        Ok(())
    }

    fn rms_norm(&self, _out: &Tensor, _x: &Tensor, _weight: &Tensor, _eps: f32) -> Result<()> {
        Ok(())
    }

    fn add_rms_norm(&self, _out: &Tensor, _residual: &Tensor, _x: &Tensor, _weight: &Tensor, _eps: f32) -> Result<()> {
        Ok(())
    }

    fn linear(&self, _out: &Tensor, _x: &Tensor, _weight: &Weight, _bias: Option<&Tensor>) -> Result<()> {
        Ok(())
    }

    fn rope_kv_write(&self, _args: &RopeKvWrite<'_>) -> Result<()> {
        Ok(())
    }

    fn attention(&self, args: &Attention<'_>) -> Result<()> {
        args.sinks.map_or(Ok(()), |_| self.need(Feature::Sinks))?;
        args.alibi.map_or(Ok(()), |_| self.need(Feature::Alibi))?;
        args.chunk.map_or(Ok(()), |_| self.need(Feature::ChunkedAttention))?;
        if args.cache.keys_only { self.need(Feature::LatentAttention) } else { Ok(()) }
    }

    fn gated_activation(&self, _out: &Tensor, _gate_up: &Tensor, activation: Activation) -> Result<()> {
        self.need(Feature::Gated(activation))
    }

    fn supports(&self, feature: Feature) -> bool {
        self.real.supports(feature)
    }

    fn layer_norm(&self, _args: &LayerNorm<'_>) -> Result<()> {
        self.need(Feature::LayerNorm)
    }

    fn elementwise(&self, _out: &Tensor, _x: &Tensor, _function: Elementwise) -> Result<()> {
        self.need(Feature::Elementwise)
    }

    fn add(&self, _sum: &Tensor, _x: &Tensor) -> Result<()> {
        self.need(Feature::Add)
    }

    fn route(&self, _args: &Route<'_>) -> Result<()> {
        self.need(Feature::Experts)
    }

    fn expert_linear(&self, _args: &ExpertLinear<'_>) -> Result<()> {
        self.need(Feature::Experts)
    }

    fn combine(&self, _out: &Tensor, _x: &Tensor, _weights: &Tensor, _accumulate: bool) -> Result<()> {
        self.need(Feature::Experts)
    }

    fn gather_rows(&self, _out: &Tensor, _x: &Tensor, _rows: &Tensor) -> Result<()> {
        Ok(())
    }

    fn is_asynchronous(&self) -> bool {
        self.gpu_bytes.is_some() || self.real.is_asynchronous()
    }

    fn transfers(&self, upload_bytes: usize, result_bytes: usize, depth: usize) -> Result<Box<dyn Transfers>> {
        self.real.transfers(upload_bytes, result_bytes, depth)
    }

    fn host_tier(&self, block_bytes: usize, num_blocks: usize) -> Result<Box<dyn HostTier>> {
        self.real.host_tier(block_bytes, num_blocks)
    }

    fn capture(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        Ok(None)
    }

    fn resolve_tokens(&self, _tokens: &Tensor, _sampled: &Tensor) -> Result<()> {
        Ok(())
    }

    fn sample(&self, _args: &Sample<'_>) -> Result<()> {
        Ok(())
    }

    fn edit_logits(&self, _args: &EditLogits<'_>) -> Result<()> {
        Ok(())
    }

    fn top_tokens(&self, _args: &TopTokens<'_>) -> Result<()> {
        Ok(())
    }

    fn copy_blocks(&self, _cache: &KvLayer, _copies: &[crate::step::BlockCopy]) -> Result<()> {
        Ok(())
    }
}
