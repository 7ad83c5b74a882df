//! NVIDIA GPUs of compute capability 8.0 and later.
//!
//! Nothing of CUDA is linked: the driver and cuBLASLt are opened at run time, and what is missing is said in a sentence.
//! Kernels (`kernels/*.cu`) are embedded as machine code, or compiled at load where the build had no compiler.
//! Activations have the weights' type. Every call only enqueues, except those that say that they wait.

mod attention;
mod bench;
mod driver;
mod elementwise;
mod experts;
mod graph;
mod host_tier;
mod images;
mod jit;
mod kernels;
mod libraries;
mod linear;
mod probes;
mod sampling;

use super::{
    Activation, Attention, CudaOptions, DType, Device, DeviceInfo, EditLogits, Elementwise, ExpertLinear, Feature,
    Graph, HostTier, KvLayer, LayerNorm, RawBuffer, RopeKvWrite, Route, Sample, Stamps, Tensor, TopTokens, Transfers,
    Weight,
};
use crate::error::{Error, Result};
use crate::step::BlockCopy;
use driver::{Context, Properties};
use kernels::{HEAD_DIMS, Kernels};
use linear::{MatrixLibrary, Product};
use std::sync::Arc;

/// GPUs that the driver shows.
///
/// # Errors
/// A sentence on why there is none.
pub fn count_gpus() -> Result<usize> {
    driver::count_gpus()
}

/// Copies memory of a GPU that others in this process have allocated to the host.
///
/// # Errors
/// A sentence on why that GPU cannot be read.
///
/// # Safety
/// `bytes` bytes from `address` on are memory of the GPU that CUDA counts as `gpu`, and nobody writes to them meanwhile.
pub unsafe fn read_memory(gpu: i64, address: u64, bytes: usize) -> Result<Vec<u8>> {
    let mut copy = vec![0; bytes];
    if bytes > 0 {
        // SAFETY: the caller's premise.
        unsafe { driver::read_foreign(gpu as i32, address, &mut copy) }?;
    }
    Ok(copy)
}

/// The number of the GPU, or of the slice of one, whose UUID begins like this.
///
/// # Errors
/// A sentence that lists the UUIDs there are.
pub fn find_gpu(uuid: &str) -> Result<usize> {
    let shown = (0..driver::count_gpus()?).map(|number| driver::uuid(number as i32)).collect::<Result<Vec<_>>>()?;
    let bare = |text: &str| text.trim_start_matches("GPU-").trim_start_matches("MIG-").to_ascii_lowercase();
    let wanted = bare(uuid);
    let found = shown.iter().position(|hex| !wanted.is_empty() && hex.starts_with(&wanted));
    found.ok_or_else(|| {
        Error::invalid(format!(
            "GPU {uuid} was asked for, the driver shows {}; a slice of a GPU is shown where CUDA_VISIBLE_DEVICES names it",
            shown.join(", ")
        ))
    })
}

/// Device memory of the device's own.
struct Memory {
    addr: u64,
    context: Arc<Context>,
}

impl Memory {
    fn new(context: &Arc<Context>, bytes: usize, purpose: &str) -> Result<Self> {
        Ok(Self { addr: context.allocate(bytes, purpose)?, context: context.clone() })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.context.free(self.addr);
    }
}

/// One GPU.
pub struct CudaDevice {
    // Before the context: they return what they hold while it is there.
    library: MatrixLibrary,
    partials: Memory,
    kernels: Kernels,
    properties: Properties,
    ordinal: usize,
    context: Arc<Context>,
}

impl CudaDevice {
    /// Takes GPU `ordinal` of those the driver shows (`CUDA_VISIBLE_DEVICES` counts).
    ///
    /// # Errors
    /// A sentence on what is missing: driver, GPU, library, kernels or memory.
    pub fn open(ordinal: usize, options: &CudaOptions) -> Result<Arc<Self>> {
        let count = driver::count_gpus()?;
        if ordinal >= count {
            let plural = if count == 1 { "" } else { "s" };
            return Err(Error::invalid(format!("GPU {ordinal} was asked for, the driver shows {count} GPU{plural}")));
        }
        let context = Arc::new(Context::new(ordinal as i32)?);
        let properties = context.properties()?;
        let kernels = Kernels::load(&context, properties.compute_capability, options)?;
        let library = MatrixLibrary::open(&context, options)?;
        let partials = Memory::new(&context, attention::PARTIAL_BYTES, "partial results of attention")?;
        let device = Arc::new(Self { library, partials, kernels, properties, ordinal, context });
        device.allow_shared_memory()?;
        tracing::info!("{}, kernels for {}", device.info().description, device.kernels.target);
        Ok(device)
    }

    /// Enqueues a kernel that waits itself for the kernels before (`join_chain` in `prelude.cuh`).
    ///
    /// # Safety
    /// As for [`kernels::launch`].
    unsafe fn launch_chained<A: kernels::Record, const N: usize>(
        &self,
        kernel: driver::Kernel,
        geometry: driver::Geometry,
        args: &A,
        integers: [i32; N],
    ) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe { kernels::launch_as(&self.context, self.kernels.chains, kernel, geometry, args, integers) }
    }

    /// Raises the limits of kernels that need more shared memory than a kernel gets unasked.
    fn allow_shared_memory(&self) -> Result<()> {
        let allow = |kernel, bytes| match bytes {
            bytes if bytes <= self.properties.shared_bytes => self.context.allow_shared(kernel, bytes),
            _ => Ok(()),
        };
        for which in 0..2 {
            for gemv in [self.kernels.gemv[which], self.kernels.gemv_gated[which]] {
                allow(gemv, linear::most_gemv_shared_bytes(&self.properties))?;
            }
            for (class, &dim) in HEAD_DIMS.iter().enumerate() {
                let decode = attention::decode_shared_bytes(dim, self.kernels.small_shared);
                allow(self.kernels.attention_decode[which][class], decode)?;
                allow(self.kernels.attention_prefill[which][class], attention::prefill_shared_bytes(dim))?;
                let hopper = self.kernels.attention_prefill_wgmma.and_then(|all| all[which].get(class).copied());
                if let Some(kernel) = hopper {
                    allow(kernel, attention::wgmma_shared_bytes(dim))?;
                }
            }
        }
        Ok(())
    }
}

/// Address of a contiguous tensor of `bytes` bytes.
fn contiguous(tensor: &Tensor, bytes: usize) -> Result<u64> {
    if tensor.is_contiguous() && tensor.bytes() == bytes {
        return Ok(tensor.addr());
    }
    let (rows, cols, stride) = (tensor.rows(), tensor.cols(), tensor.stride());
    Err(Error::internal(format!("a copy of {bytes} bytes and a tensor [{rows}, {cols}] of stride {stride}")))
}

impl Device for CudaDevice {
    fn info(&self) -> DeviceInfo {
        let (free_bytes, total_bytes) = self.context.memory().unwrap_or_else(|error| {
            tracing::warn!("GPU {} does not say how much memory it has, taken as none: {error}", self.ordinal);
            (0, 0)
        });
        let (major, minor) = self.properties.compute_capability;
        DeviceInfo {
            description: format!("GPU {}: {}, compute capability {major}.{minor}", self.ordinal, self.properties.name),
            total_bytes,
            free_bytes,
            host_accessible: false,
        }
    }

    fn activation_dtype(&self, weights: DType) -> DType {
        weights
    }

    fn kv_dtype(&self, weights: DType) -> DType {
        weights
    }

    fn allocate(&self, bytes: usize, purpose: &str) -> Result<RawBuffer> {
        Ok(RawBuffer { addr: self.context.allocate(bytes, purpose)?, bytes })
    }

    fn free(&self, buffer: RawBuffer) {
        self.context.free(buffer.addr);
    }

    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        let to = contiguous(dst, src.len())?;
        if src.is_empty() { Ok(()) } else { self.context.upload(to, src) }
    }

    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        let from = contiguous(src, dst.len())?;
        if dst.is_empty() { self.synchronize() } else { self.context.download(from, dst) }
    }

    fn host_bytes<'a>(&self, _tensor: &'a Tensor) -> Option<&'a [u8]> {
        None
    }

    fn synchronize(&self) -> Result<()> {
        self.context.synchronize()
    }

    fn inject_fault(&self) -> Result<()> {
        self.read_astray()
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn transfers(&self, upload_bytes: usize, result_bytes: usize, depth: usize) -> Result<Box<dyn Transfers>> {
        Ok(Box::new(graph::CudaTransfers::new(&self.context, upload_bytes, result_bytes, depth)?))
    }

    fn stamps(&self, room: usize) -> Result<Option<Box<dyn Stamps>>> {
        Ok(Some(Box::new(graph::CudaStamps::new(&self.context, room)?)))
    }

    fn host_tier(&self, block_bytes: usize, num_blocks: usize) -> Result<Box<dyn HostTier>> {
        Ok(Box::new(host_tier::CudaHostTier::new(&self.context, block_bytes, num_blocks)?))
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        self.record(work).map(Some)
    }

    fn embed(&self, out: &Tensor, table: &Tensor, ids: &Tensor, scale: f32) -> Result<()> {
        if out.rows() == 0 { Ok(()) } else { self.take_rows(out, table, ids, scale) }
    }

    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        if x.rows() == 0 { Ok(()) } else { self.norm(out, x, None, weight, eps) }
    }

    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        if x.rows() == 0 { Ok(()) } else { self.norm(out, x, Some(residual), weight, eps) }
    }

    fn linear(&self, out: &Tensor, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<()> {
        let Weight::Dense(weight) = weight;
        if x.rows() == 0 {
            return Ok(());
        }
        Product { out, x, weight, bias, gated: None }.enqueue(
            &self.context,
            &self.kernels,
            &self.library,
            &self.properties,
        )
    }

    fn gates_products(&self, x: &Tensor, weight: &Weight) -> bool {
        let Weight::Dense(weight) = weight;
        linear::suits_gemv(x, weight)
    }

    fn gated_linear(&self, out: &Tensor, x: &Tensor, weight: &Weight, activation: Activation) -> Result<()> {
        let Weight::Dense(weight) = weight;
        if x.rows() == 0 {
            return Ok(());
        }
        Product { out, x, weight, bias: None, gated: Some(activation) }.multiply_few_rows(
            &self.context,
            &self.kernels,
            &self.properties,
        )
    }

    fn rope_kv_write(&self, args: &RopeKvWrite<'_>) -> Result<()> {
        if args.q.rows() == 0 { Ok(()) } else { self.rope(args) }
    }

    fn attention(&self, args: &Attention<'_>) -> Result<()> {
        if args.q.rows() == 0 { Ok(()) } else { self.attend(args) }
    }

    fn gated_activation(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()> {
        if out.rows() == 0 { Ok(()) } else { self.gated(out, gate_up, activation) }
    }

    fn gather_rows(&self, out: &Tensor, x: &Tensor, rows: &Tensor) -> Result<()> {
        if out.rows() == 0 { Ok(()) } else { self.take_rows(out, x, rows, 1.0) }
    }

    fn resolve_tokens(&self, tokens: &Tensor, sampled: &Tensor) -> Result<()> {
        if tokens.cols() == 0 { Ok(()) } else { self.resolve(tokens, sampled) }
    }

    fn sample(&self, args: &Sample<'_>) -> Result<()> {
        if args.logits.rows() == 0 { Ok(()) } else { self.sample_rows(args) }
    }

    fn edit_logits(&self, args: &EditLogits<'_>) -> Result<()> {
        if args.logits.rows() == 0 { Ok(()) } else { self.edit_rows(args) }
    }

    fn top_tokens(&self, args: &TopTokens<'_>) -> Result<()> {
        if args.logits.rows() == 0 { Ok(()) } else { self.top_rows(args) }
    }

    fn supports(&self, _feature: Feature) -> bool {
        true
    }

    fn layer_norm(&self, args: &LayerNorm<'_>) -> Result<()> {
        if args.x.rows() == 0 { Ok(()) } else { self.center(args) }
    }

    fn elementwise(&self, out: &Tensor, x: &Tensor, function: Elementwise) -> Result<()> {
        if x.rows() == 0 { Ok(()) } else { self.apply(out, x, function) }
    }

    fn add(&self, sum: &Tensor, x: &Tensor) -> Result<()> {
        if x.rows() == 0 { Ok(()) } else { self.sum(sum, x) }
    }

    fn route(&self, args: &Route<'_>) -> Result<()> {
        if args.logits.rows() == 0 { Ok(()) } else { self.choose_experts(args) }
    }

    fn expert_linear(&self, args: &ExpertLinear<'_>) -> Result<()> {
        if args.x.rows() == 0 { Ok(()) } else { self.multiply_by_experts(args) }
    }

    fn combine(&self, out: &Tensor, x: &Tensor, weights: &Tensor, accumulate: bool) -> Result<()> {
        if out.rows() == 0 { Ok(()) } else { self.combine_experts(out, x, weights, accumulate) }
    }

    fn copy_blocks(&self, cache: &KvLayer, copies: &[BlockCopy]) -> Result<()> {
        let slot = cache.head_dim * cache.data.dtype().size();
        let pitch = cache.block_size_tokens * slot;
        let rows = if cache.keys_only { 1 } else { 2 } * cache.kv_heads;
        let block = |id: crate::ids::BlockId| cache.data.addr() + u64::from(id.0) * (rows * pitch) as u64;
        for copy in copies.iter().filter(|copy| copy.num_tokens > 0 && copy.from != copy.to) {
            self.context.copy_rows(block(copy.to), block(copy.from), pitch, copy.num_tokens * slot, rows)?;
        }
        Ok(())
    }
}
