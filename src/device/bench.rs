//! A workbench of the operations: how long each takes on a device, and what share of the device's limits that is.

use super::{
    Activation, Attention, AttentionBatch, DType, KvLayer, RopeKvWrite, RopeStyle, RopeTable, SharedDevice, Tensor,
    Weight,
};
use crate::error::Result;
use std::fmt;
use std::time::{Duration, Instant};

/// What a device can do at best.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes read from its memory.
    pub read_bytes_per_s: f64,
    /// Floating-point operations; a fused multiply-add is two.
    pub flops_per_s: f64,
}

/// One operation on one shape.
#[derive(Clone, Debug)]
pub struct OpFigure {
    /// Operation, shape and types.
    pub name: String,
    /// The shortest of many runs.
    pub seconds: f64,
    /// Bytes that have to be read or written.
    pub bytes: f64,
    /// Operations that have to be done.
    pub flops: f64,
    /// The limits that the shares refer to.
    pub limits: Limits,
}

impl OpFigure {
    /// The share of the time that the limits allow at best: 1 is the limit.
    pub fn share_of_limit(&self) -> f64 {
        let by_memory = self.bytes / self.limits.read_bytes_per_s;
        by_memory.max(self.flops / self.limits.flops_per_s) / self.seconds
    }
}

impl fmt::Display for OpFigure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, flops) = (self.bytes / self.seconds / 1e9, self.flops / self.seconds / 1e9);
        let share = 100.0 * self.share_of_limit();
        write!(f, "{:<52} {:>10.1} us {bytes:>8.1} GB/s {flops:>9.1} GFLOP/s", self.name, self.seconds * 1e6)?;
        write!(f, " {share:>6.1} % of the limit")
    }
}

/// The layer of a model that the shapes are taken from: an 8B model's, scaled down where that changes nothing.
const HIDDEN: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const BLOCK_TOKENS: usize = 64;
/// Weights that are used in turn, so that none is still in a cache.
const ROTATION_BYTES: usize = 512 << 20;
const BUDGET: Duration = Duration::from_millis(400);

/// Measures the operations of a layer of `weights` type. `report` gets each figure when it is there.
///
/// # Errors
/// When the device fails or has no memory.
pub fn bench_ops(
    device: &SharedDevice,
    limits: Limits,
    weights: DType,
    report: &mut dyn FnMut(&OpFigure),
) -> Result<()> {
    let bench = Bench { device, limits, weights };
    for tokens in [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048] {
        report(&bench.linear(tokens, HIDDEN, HIDDEN)?);
    }
    for (tokens, k, n) in [(1, 14336, 4096), (512, 14336, 4096), (1, 2048, 8192), (512, 2048, 8192), (512, 768, 3072)] {
        report(&bench.linear(tokens, k, n)?);
    }
    for (sequences, cached, tokens) in [(1, 4096, 1), (16, 2048, 1), (1, 0, 512), (1, 0, 2048), (1, 2048, 512)] {
        report(&bench.attention(sequences, cached, tokens)?);
    }
    for tokens in [1, 512] {
        bench.small(tokens, report)?;
    }
    Ok(())
}

struct Bench<'a> {
    device: &'a SharedDevice,
    limits: Limits,
    weights: DType,
}

impl Bench<'_> {
    fn figure(
        &self,
        name: String,
        (bytes, flops): (usize, usize),
        run: &mut dyn FnMut() -> Result<()>,
    ) -> Result<OpFigure> {
        run()?;
        self.device.synchronize()?;
        let (begin, mut seconds) = (Instant::now(), f64::INFINITY);
        while begin.elapsed() < BUDGET {
            let start = Instant::now();
            run()?;
            self.device.synchronize()?;
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
        Ok(OpFigure { name, seconds, bytes: bytes as f64, flops: flops as f64, limits: self.limits })
    }

    /// A tensor of small numbers that are not zero.
    fn tensor(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        let tensor = Tensor::zeros(self.device, rows, cols, dtype, "the operations' benchmark")?;
        // The bits of 0.0078 in each type, so that no shape meets subnormal numbers.
        let element: &[u8] = match dtype {
            DType::F32 => &[0, 0, 0, 0x3c],
            DType::BF16 => &[0, 0x3c],
            DType::F16 => &[0, 0x20],
            DType::I32 => &[0, 0, 0, 0],
        };
        self.device.upload(&tensor, &element.repeat(rows * cols))?;
        Ok(tensor)
    }

    fn ids(&self, rows: usize, ids: &[i32]) -> Result<Tensor> {
        let tensor = Tensor::zeros(self.device, rows, ids.len() / rows, DType::I32, "the operations' benchmark")?;
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        self.device.upload(&tensor, &bytes)?;
        Ok(tensor)
    }

    fn linear(&self, tokens: usize, k: usize, n: usize) -> Result<OpFigure> {
        let activations = self.device.activation_dtype(self.weights);
        let (x, out) = (self.tensor(tokens, k, activations)?, self.tensor(tokens, n, activations)?);
        let copies = if tokens <= 64 { ROTATION_BYTES.div_ceil(n * k * self.weights.size()) } else { 1 };
        let weights = (0..copies).map(|_| Ok(Weight::Dense(self.tensor(n, k, self.weights)?)));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let name = format!("linear [{tokens}, {k}] x [{n}, {k}] {}", self.weights);
        let bytes = weights[0].bytes() + x.bytes() + out.bytes();
        let mut turn = weights.iter().cycle();
        self.figure(name, (bytes, 2 * tokens * n * k), &mut || match turn.next() {
            Some(weight) => self.device.linear(&out, &x, weight, None),
            None => Ok(()),
        })
    }

    fn attention(&self, sequences: usize, cached: usize, tokens: usize) -> Result<OpFigure> {
        let dtype = self.device.kv_dtype(self.weights);
        let activations = self.device.activation_dtype(self.weights);
        let context = cached + tokens;
        let blocks = context.div_ceil(BLOCK_TOKENS);
        let rows = sequences * blocks * 2 * KV_HEADS * BLOCK_TOKENS;
        let data = self.tensor(rows, HEAD_DIM, dtype)?;
        let cache =
            KvLayer { data, kv_heads: KV_HEADS, block_size_tokens: BLOCK_TOKENS, head_dim: HEAD_DIM, keys_only: false };
        let q = self.tensor(sequences * tokens, HEADS * HEAD_DIM, activations)?;
        let out = self.tensor(sequences * tokens, HEADS * HEAD_DIM, activations)?;
        let cu_seqlens: Vec<i32> = (0..=sequences).map(|s| (s * tokens) as i32).collect();
        let tables: Vec<i32> = (0..(sequences * blocks) as i32).collect();
        let batch = AttentionBatch {
            cu_seqlens: self.ids(1, &cu_seqlens)?,
            context_lens: self.ids(1, &vec![context as i32; sequences])?,
            block_tables: self.ids(sequences, &tables)?,
            max_query_len: tokens,
            max_context_len: context,
        };
        let pairs = sequences * (tokens * cached + tokens * (tokens + 1) / 2);
        let bytes = sequences * context * 2 * KV_HEADS * HEAD_DIM * dtype.size() + q.bytes() + out.bytes();
        let name = format!("attention {sequences} x {tokens} tokens after {cached}, {dtype}");
        let args = Attention {
            out: &out,
            q: &q,
            cache: &cache,
            batch: &batch,
            num_heads: HEADS,
            scale: 0.088,
            window: None,
            sink_tokens: 0,
            sink_q: None,
            chunk: None,
            softcap: None,
            sinks: None,
            alibi: None,
        };
        self.figure(name, (bytes, 4 * pairs * HEADS * HEAD_DIM), &mut || self.device.attention(&args))
    }

    /// The operations that touch each activation once.
    fn small(&self, tokens: usize, report: &mut dyn FnMut(&OpFigure)) -> Result<()> {
        let device = self.device;
        let activations = device.activation_dtype(self.weights);
        let features = 14336;
        let (x, out) = (self.tensor(tokens, HIDDEN, activations)?, self.tensor(tokens, HIDDEN, activations)?);
        let weight = self.tensor(1, HIDDEN, self.weights)?;
        let bytes = x.bytes() + out.bytes();
        let mut figure = |name: &str, bytes: usize, run: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            report(&self.figure(format!("{name}, {tokens} tokens"), (bytes, 0), run)?);
            Ok(())
        };
        figure("rms_norm", bytes, &mut || device.rms_norm(&out, &x, &weight, 1e-5))?;
        figure("add_rms_norm", 2 * bytes, &mut || device.add_rms_norm(&out, &x, &out, &weight, 1e-5))?;
        let gate_up = self.tensor(tokens, 2 * features, activations)?;
        let gated = self.tensor(tokens, features, activations)?;
        figure("silu gate", gate_up.bytes() + gated.bytes(), &mut || {
            device.gated_activation(&gated, &gate_up, Activation::Silu)
        })?;
        let ids = self.ids(1, &vec![0; tokens])?;
        let table = self.tensor(32, HIDDEN, self.weights)?;
        figure("embed", bytes, &mut || device.embed(&out, &table, &ids, 1.0))?;

        let kv_cols = KV_HEADS * HEAD_DIM;
        let qkv = self.tensor(tokens, HIDDEN + 2 * kv_cols, activations)?;
        let dtype = device.kv_dtype(self.weights);
        let rows = tokens.div_ceil(BLOCK_TOKENS) * 2 * KV_HEADS * BLOCK_TOKENS;
        let data = self.tensor(rows, HEAD_DIM, dtype)?;
        let cache =
            KvLayer { data, kv_heads: KV_HEADS, block_size_tokens: BLOCK_TOKENS, head_dim: HEAD_DIM, keys_only: false };
        let slots = self.ids(1, &(0..tokens as i32).collect::<Vec<_>>())?;
        let rope = RopeTable { cos_sin: self.tensor(tokens, HEAD_DIM, DType::F32)?, style: RopeStyle::HalfSplit };
        let (k, v) = (qkv.columns(HIDDEN, kv_cols), qkv.columns(HIDDEN + kv_cols, kv_cols));
        let q = qkv.columns(0, HIDDEN);
        let args = RopeKvWrite {
            q: &q,
            k: &k,
            v: &v,
            positions: &slots,
            slots: &slots,
            rope: Some(&rope),
            cache: &cache,
            num_heads: HEADS,
            sink_queries: None,
        };
        let bytes = 2 * q.bytes() + 2 * k.bytes() + 2 * tokens * kv_cols * dtype.size();
        figure("rope and cache write", bytes, &mut || device.rope_kv_write(&args))
    }
}
