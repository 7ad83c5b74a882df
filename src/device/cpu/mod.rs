//! The CPU: the embedded default, and the oracle that other devices are checked against.
//!
//! Activations are F32 whatever the weights are. Every kernel is written once over a vector type ([`simd`]) and compiled
//! for AVX-512, AVX2 and plain arrays; the device picks at run time. A row's bits do not depend on the rows that are
//! computed with it, nor on how a prompt is cut into chunks: every path adds up in the same order.

mod attend;
mod attention;
mod edits;
mod elementwise;
mod experts;
mod functions;
mod host_tier;
mod linear;
pub mod mapped_file;
mod memory;
mod panel;
mod pool;
pub mod probe;
mod sampling;
mod scratch;
mod simd;
mod transfers;
mod view;

use super::{
    Activation, Attention, DType, Device, DeviceInfo, EditLogits, Elementwise, ExpertLinear, Feature, Graph, HostTier,
    KvLayer, LayerNorm, RawBuffer, RopeKvWrite, Route, Sample, Tensor, TopTokens, Transfers, Weight,
};
use crate::error::{Error, Result};
use crate::step::BlockCopy;
use pool::Pool;
use std::fmt;
use std::sync::{Arc, OnceLock};
use view::Matrix;

/// Instruction set that the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every CPU of the target has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// The same and AVX-512 BF16, for dot products of bf16 weights. Activations are then split into two bf16 numbers,
    /// which hold them to one part in 2¹⁶.
    Avx512Bf16,
}

impl Isa {
    /// All that this CPU has, oldest first.
    pub fn available() -> Vec<Self> {
        let all = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];
        all.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest that this CPU has. The newest, but for the bf16 dot product, which on some CPUs is slower than the
    /// multiply-adds that it replaces: measured once in a process.
    pub fn fastest() -> Self {
        static FASTEST: OnceLock<Isa> = OnceLock::new();
        *FASTEST.get_or_init(|| match Self::available().pop() {
            Some(Self::Avx512Bf16) if !probe::is_bf16_dot_product_fast() => Self::Avx512,
            newest => newest.unwrap_or(Self::Portable),
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq"),
            Self::Avx512Bf16 => Self::Avx512.is_available() && has!("avx512bf16"),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable kernels",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Bf16 => "AVX-512 with bf16 dot products",
        })
    }
}

/// How a [`CpuDevice`] is made. The default takes what the machine has.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; `None`: as many as this process may use.
    pub threads: Option<usize>,
    /// `None`: the fastest that this CPU has.
    pub isa: Option<Isa>,
}

/// The host CPU as a device. Calls return when the work is done.
pub struct CpuDevice {
    pool: Arc<Pool>,
    isa: Isa,
}

impl CpuDevice {
    /// # Errors
    /// When the options ask for what this machine does not have.
    pub fn new(options: CpuOptions) -> Result<Arc<Self>> {
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or(available);
        if threads == 0 {
            return Err(Error::invalid("the CPU device needs at least 1 thread, 0 were asked for"));
        }
        let isa = options.isa.unwrap_or_else(Isa::fastest);
        if !isa.is_available() {
            return Err(Error::unsupported(format!("this CPU has no {isa}; its best is {}", Isa::fastest())));
        }
        Ok(Arc::new(Self { pool: Pool::shared(threads)?, isa }))
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// Address of a contiguous tensor.
fn contiguous(tensor: &Tensor) -> Result<*mut u8> {
    if tensor.is_contiguous() {
        return Ok(tensor.addr() as *mut u8);
    }
    let (rows, cols, stride) = (tensor.rows(), tensor.cols(), tensor.stride());
    Err(Error::internal(format!("a copy of a tensor [{rows}, {cols}] whose rows are {stride} elements apart")))
}

fn expect_size(tensor: &Tensor, bytes: usize) -> Result<()> {
    if tensor.bytes() == bytes {
        return Ok(());
    }
    Err(Error::internal(format!("a copy of {bytes} bytes and a tensor of {}", tensor.bytes())))
}

/// Copies host bytes into a tensor.
fn copy_in(dst: &Tensor, src: &[u8]) -> Result<()> {
    expect_size(dst, src.len())?;
    // SAFETY: the tensor has that many bytes, and calls on a device are ordered: nobody else uses them now.
    unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), contiguous(dst)?, src.len()) };
    Ok(())
}

/// Copies a tensor into host bytes.
fn copy_out(src: &Tensor, dst: &mut [u8]) -> Result<()> {
    expect_size(src, dst.len())?;
    // SAFETY: the tensor has that many bytes, and calls on a device are ordered: nobody writes to them now.
    unsafe { std::ptr::copy_nonoverlapping(contiguous(src)?, dst.as_mut_ptr(), dst.len()) };
    Ok(())
}

impl Device for CpuDevice {
    fn info(&self) -> DeviceInfo {
        let memory = memory::host_memory();
        let threads = self.pool.num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        DeviceInfo {
            description: format!("CPU: {threads} thread{plural}, {}", self.isa),
            total_bytes: memory.total_bytes,
            free_bytes: memory.available_bytes,
            host_accessible: true,
        }
    }

    fn activation_dtype(&self, _weights: DType) -> DType {
        DType::F32
    }

    fn kv_dtype(&self, weights: DType) -> DType {
        weights
    }

    fn allocate(&self, bytes: usize, purpose: &str) -> Result<RawBuffer> {
        memory::allocate(bytes, purpose)
    }

    fn free(&self, buffer: RawBuffer) {
        // SAFETY: by the trait's contract this came from `allocate`, and the last user is gone.
        unsafe { memory::free(buffer) };
    }

    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        copy_in(dst, src)
    }

    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        copy_out(src, dst)
    }

    fn host_bytes<'a>(&self, tensor: &'a Tensor) -> Option<&'a [u8]> {
        let pointer = contiguous(tensor).ok()?;
        // SAFETY: the tensor has that many bytes and keeps them alive; calls on a device are ordered.
        Some(unsafe { std::slice::from_raw_parts(pointer, tensor.bytes()) })
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn is_asynchronous(&self) -> bool {
        false
    }

    fn transfers(&self, _upload_bytes: usize, _result_bytes: usize, _depth: usize) -> Result<Box<dyn Transfers>> {
        Ok(Box::new(transfers::HostTransfers::default()))
    }

    fn host_tier(&self, block_bytes: usize, num_blocks: usize) -> Result<Box<dyn HostTier>> {
        Ok(Box::new(host_tier::CpuHostTier::new(block_bytes, num_blocks)?))
    }

    fn capture(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        Ok(None)
    }

    fn embed(&self, out: &Tensor, table: &Tensor, ids: &Tensor, scale: f32) -> Result<()> {
        elementwise::embed(self, Matrix::of(out, "embed: out")?, table, ids, scale)
    }

    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        let (out, x) = (Matrix::of(out, "rms_norm: out")?, Matrix::of(x, "rms_norm: x")?);
        elementwise::rms_norm(self, out, x, weight, eps)
    }

    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        let residual = Matrix::of(residual, "add_rms_norm: residual")?;
        let (out, x) = (Matrix::of(out, "add_rms_norm: out")?, Matrix::of(x, "add_rms_norm: x")?);
        elementwise::add_rms_norm(self, out, residual, x, weight, eps)
    }

    fn linear(&self, out: &Tensor, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<()> {
        let Weight::Dense(weight) = weight;
        let (out, x) = (Matrix::of(out, "linear: out")?, Matrix::of(x, "linear: x")?);
        linear::linear(self, out, x, weight, bias)
    }

    fn rope_kv_write(&self, args: &RopeKvWrite<'_>) -> Result<()> {
        elementwise::rope_kv_write(self, args)
    }

    fn attention(&self, args: &Attention<'_>) -> Result<()> {
        attention::attention(self, args)
    }

    fn gated_activation(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()> {
        let out = Matrix::of(out, "gated_activation: out")?;
        elementwise::gated_activation(self, out, Matrix::of(gate_up, "gated_activation: gate_up")?, activation)
    }

    fn gather_rows(&self, out: &Tensor, x: &Tensor, rows: &Tensor) -> Result<()> {
        elementwise::gather_rows(Matrix::of(out, "gather_rows: out")?, Matrix::of(x, "gather_rows: x")?, rows)
    }

    fn resolve_tokens(&self, tokens: &Tensor, sampled: &Tensor) -> Result<()> {
        sampling::resolve_tokens(tokens, sampled)
    }

    fn sample(&self, args: &Sample<'_>) -> Result<()> {
        sampling::sample(self, args)
    }

    fn edit_logits(&self, args: &EditLogits<'_>) -> Result<()> {
        edits::edit_logits(self, args)
    }

    fn top_tokens(&self, args: &TopTokens<'_>) -> Result<()> {
        sampling::top_tokens(self, args)
    }

    fn supports(&self, _feature: Feature) -> bool {
        true
    }

    fn layer_norm(&self, args: &LayerNorm<'_>) -> Result<()> {
        functions::layer_norm(self, args)
    }

    fn elementwise(&self, out: &Tensor, x: &Tensor, function: Elementwise) -> Result<()> {
        let (out, x) = (Matrix::of(out, "elementwise: out")?, Matrix::of(x, "elementwise: x")?);
        functions::elementwise(self, out, x, function)
    }

    fn add(&self, sum: &Tensor, x: &Tensor) -> Result<()> {
        elementwise::add(self, Matrix::of(sum, "add: sum")?, Matrix::of(x, "add: x")?)
    }

    fn route(&self, args: &Route<'_>) -> Result<()> {
        experts::route(self, args)
    }

    fn expert_linear(&self, args: &ExpertLinear<'_>) -> Result<()> {
        experts::expert_linear(self, args)
    }

    fn combine(&self, out: &Tensor, x: &Tensor, weights: &Tensor, accumulate: bool) -> Result<()> {
        let weights = Matrix::of(weights, "combine: weights")?;
        let (out, x) = (Matrix::of(out, "combine: out")?, Matrix::of(x, "combine: x")?);
        experts::combine(self, out, x, weights, accumulate)
    }

    fn copy_blocks(&self, cache: &KvLayer, copies: &[BlockCopy]) -> Result<()> {
        elementwise::copy_blocks(cache, copies)
    }
}
