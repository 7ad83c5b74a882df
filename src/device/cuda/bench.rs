//! A workbench of the kernels: time on the GPU for the shapes of an 8B Llama, beside the limits measured in the same run.

use super::CudaDevice;
use super::probes::noise_bf16;
use crate::device::bench::{Limits, OpFigure};
use crate::device::{
    Activation, Attention, AttentionBatch, DType, Device, KvLayer, RopeKvWrite, RopeStyle, RopeTable, SharedDevice,
    Tensor, Weight,
};
use crate::error::Result;
use std::sync::Arc;

const HIDDEN: usize = 4096;
const FEED_FORWARD: usize = 14336;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const BLOCK_TOKENS: usize = 64;
const VOCABULARY: usize = 128_256;
/// Several times the second-level cache: what is used in turn is never in it.
const ROTATION_BYTES: usize = 512 << 20;
/// Launches timed together, so that the host's part of a launch hides behind the one before.
const LAUNCHES: usize = 24;

struct Bench<'a> {
    device: &'a Arc<CudaDevice>,
    shared: SharedDevice,
    limits: Limits,
    noise: Vec<u8>,
}

impl CudaDevice {
    /// Measures every kernel in bfloat16. `report` gets each figure when it is there.
    ///
    /// # Errors
    /// When the device fails or has no memory.
    pub fn bench_ops(self: &Arc<Self>, limits: Limits, report: &mut dyn FnMut(&OpFigure)) -> Result<()> {
        let noise = noise_bf16(1 << 22);
        let bench = Bench { device: self, shared: self.clone(), limits, noise };
        for rows in [1, 64, 2048] {
            bench.elementwise(rows, report)?;
        }
        let shapes = [
            ("qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
            ("o", HIDDEN, HIDDEN),
            ("gate_up", 2 * FEED_FORWARD, HIDDEN),
            ("down", HIDDEN, FEED_FORWARD),
            ("lm_head", VOCABULARY, HIDDEN),
        ];
        for (name, out_features, in_features) in shapes {
            for rows in [1, 2, 4, 8, 16, 64, 256, 2048] {
                report(&bench.linear(name, rows, out_features, in_features)?);
            }
        }
        for (sequences, context) in [(1, 1024), (1, 8192), (8, 1024), (64, 1024), (64, 4096), (256, 1024)] {
            report(&bench.attention(sequences, context - 1, 1)?);
        }
        for (cached, tokens) in [(0, 512), (0, 2048), (0, 8192), (8192, 512)] {
            report(&bench.attention(1, cached, tokens)?);
        }
        Ok(())
    }
}

impl Bench<'_> {
    fn figure(
        &self,
        name: String,
        (bytes, flops): (usize, usize),
        run: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<OpFigure> {
        let mut launch = 0;
        let seconds = self.device.seconds(5, &mut || {
            (0..LAUNCHES).try_for_each(|_| {
                launch += 1;
                run(launch)
            })
        })? / LAUNCHES as f64;
        Ok(OpFigure { name, seconds, bytes: bytes as f64, flops: flops as f64, limits: self.limits })
    }

    fn tensor(&self, rows: usize, cols: usize) -> Result<Tensor> {
        let tensor = Tensor::zeros(&self.shared, rows, cols, DType::BF16, "a benchmark")?;
        let step = (self.noise.len() / 2 / cols).max(1);
        for first in (0..rows).step_by(step) {
            let part = tensor.row_range(first, step.min(rows - first));
            if part.bytes() <= self.noise.len() {
                self.device.upload(&part, &self.noise[..part.bytes()])?;
            }
        }
        Ok(tensor)
    }

    /// As many tensors of one shape as overflow the cache.
    fn rotation(&self, rows: usize, cols: usize) -> Result<Vec<Tensor>> {
        let copies = ROTATION_BYTES.div_ceil(rows * cols * 2).clamp(2, 64);
        (0..copies).map(|_| self.tensor(rows, cols)).collect()
    }

    fn integers(&self, rows: usize, values: &[i32]) -> Result<Tensor> {
        let tensor = Tensor::zeros(&self.shared, rows, values.len() / rows, DType::I32, "a benchmark")?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.device.upload(&tensor, &bytes)?;
        Ok(tensor)
    }

    fn linear(&self, name: &str, rows: usize, out_features: usize, in_features: usize) -> Result<OpFigure> {
        let weights: Vec<_> = self.rotation(out_features, in_features)?.into_iter().map(Weight::Dense).collect();
        let x = self.tensor(rows, in_features)?;
        let out = self.tensor(rows, out_features)?;
        let bytes = 2 * (out_features * in_features + rows * (in_features + out_features));
        let cost = (bytes, 2 * rows * out_features * in_features);
        self.figure(format!("linear {name} {rows} x {in_features} -> {out_features}"), cost, &mut |i| {
            self.device.linear(&out, &x, &weights[i % weights.len()], None)
        })
    }

    fn elementwise(&self, rows: usize, report: &mut dyn FnMut(&OpFigure)) -> Result<()> {
        let (device, qkv) = (self.device, (HEADS + 2 * KV_HEADS) * HEAD_DIM);
        let weight = self.tensor(1, HIDDEN)?;
        let (a, b) = (self.rotation(rows, HIDDEN)?, self.rotation(rows, HIDDEN)?);
        let wide = self.rotation(rows, 2 * FEED_FORWARD)?;
        let out = self.tensor(rows, FEED_FORWARD)?;
        let narrow = out.row_range(0, rows).columns(0, HIDDEN);
        let row = rows * HIDDEN * 2;
        report(&self.figure(format!("rms_norm {rows} x {HIDDEN}"), (2 * row, 0), &mut |i| {
            device.rms_norm(&narrow, &a[i % a.len()], &weight, 1e-5)
        })?);
        report(&self.figure(format!("add_rms_norm {rows} x {HIDDEN}"), (4 * row, 0), &mut |i| {
            device.add_rms_norm(&narrow, &a[i % a.len()], &b[i % b.len()], &weight, 1e-5)
        })?);
        let gated = rows * FEED_FORWARD * 2 * 3;
        report(&self.figure(format!("gated_activation {rows} x {FEED_FORWARD}"), (gated, 0), &mut |i| {
            device.gated_activation(&out, &wide[i % wide.len()], Activation::Silu)
        })?);
        let index: Vec<i32> = (0..rows as i32).map(|row| row.wrapping_mul(7919) % rows as i32).collect();
        let ids = self.integers(1, &index)?;
        report(&self.figure(format!("embed {rows} x {HIDDEN}"), (2 * row, 0), &mut |i| {
            device.embed(&narrow, &a[i % a.len()], &ids, 1.0)
        })?);

        let fused = self.rotation(rows, qkv)?;
        let cache = self.cache(rows.div_ceil(BLOCK_TOKENS))?;
        let cos_sin = Tensor::zeros(&self.shared, 4096, HEAD_DIM, DType::F32, "a benchmark")?;
        let rope = RopeTable { cos_sin, style: RopeStyle::HalfSplit };
        let slots = self.integers(1, &(0..rows as i32).collect::<Vec<_>>())?;
        let bytes = rows * HEAD_DIM * 2 * (2 * HEADS + 4 * KV_HEADS);
        report(&self.figure(format!("rope_kv_write {rows}, {HEADS} and {KV_HEADS} heads"), (bytes, 0), &mut |i| {
            let part = |first: usize, heads: usize| fused[i % fused.len()].columns(first * HEAD_DIM, heads * HEAD_DIM);
            device.rope_kv_write(&RopeKvWrite {
                q: &part(0, HEADS),
                k: &part(HEADS, KV_HEADS),
                v: &part(HEADS + KV_HEADS, KV_HEADS),
                positions: &slots,
                slots: &slots,
                rope: Some(&rope),
                cache: &cache,
                num_heads: HEADS,
                sink_queries: None,
            })
        })?);
        Ok(())
    }

    fn cache(&self, blocks: usize) -> Result<KvLayer> {
        Ok(KvLayer {
            data: self.tensor(blocks * 2 * KV_HEADS * BLOCK_TOKENS, HEAD_DIM)?,
            kv_heads: KV_HEADS,
            block_size_tokens: BLOCK_TOKENS,
            head_dim: HEAD_DIM,
            keys_only: false,
        })
    }

    /// Sequences of `cached` tokens and a chunk of `tokens` each, blocks in mixed order.
    fn attention(&self, sequences: usize, cached: usize, tokens: usize) -> Result<OpFigure> {
        let context = cached + tokens;
        let blocks = context.div_ceil(BLOCK_TOKENS);
        let layer_bytes = sequences * blocks * BLOCK_TOKENS * KV_HEADS * HEAD_DIM * 4;
        let layers = ROTATION_BYTES.div_ceil(layer_bytes).clamp(1, 32);
        let caches = (0..layers).map(|_| self.cache(sequences * blocks)).collect::<Result<Vec<_>>>()?;
        let table: Vec<i32> = (0..sequences * blocks).map(|i| (i % blocks * sequences + i / blocks) as i32).collect();
        let batch = AttentionBatch {
            cu_seqlens: self.integers(1, &(0..=sequences).map(|s| (s * tokens) as i32).collect::<Vec<_>>())?,
            context_lens: self.integers(1, &vec![context as i32; sequences])?,
            block_tables: self.integers(sequences, &table)?,
            max_query_len: tokens,
            max_context_len: context,
        };
        let q = self.tensor(sequences * tokens, HEADS * HEAD_DIM)?;
        let out = self.tensor(sequences * tokens, HEADS * HEAD_DIM)?;
        let bytes = sequences * (context * KV_HEADS * HEAD_DIM * 4 + tokens * HEADS * HEAD_DIM * 4);
        let seen: usize = (cached..context).map(|position| position + 1).sum();
        let flops = 4 * sequences * seen * HEADS * HEAD_DIM;
        let name = format!("attention {sequences} x {tokens} after {cached}");
        self.figure(name, (bytes, flops), &mut |i| {
            self.device.attention(&Attention {
                out: &out,
                q: &q,
                cache: &caches[i % caches.len()],
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
            })
        })
    }
}
