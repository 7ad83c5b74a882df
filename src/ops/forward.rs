//! The façade of one step.

use super::{Arena, PromptRow, PromptWindow, Scope};
use crate::device::{
    Activation, Attention, AttentionBatch, DType, KvLayer, RopeKvWrite, RopeTable, SharedDevice, SinkQueries, Tensor,
    Weight,
};
use crate::error::{Error, Result};

/// The inputs of one step, on the device.
#[derive(Clone, Debug)]
pub struct StepTensors {
    /// `[1, T]` I32 token ids.
    pub tokens: Tensor,
    /// `[1, T]` I32.
    pub positions: Tensor,
    /// `[1, T]` I32: `block * B + offset`; negative: padding.
    pub slots: Tensor,
    /// `[1, R]` I32: the rows of the step whose logits are needed.
    pub sample_rows: Tensor,
    pub batch: AttentionBatch,
    /// The same tokens in the pools of layers that see a window of the context.
    pub windows: Vec<StepWindow>,
}

/// Where a step's tokens are in one pool of KV blocks.
#[derive(Clone, Debug)]
pub struct StepWindow {
    /// As [`StepTensors::slots`].
    pub slots: Tensor,
    /// With tables of its own; entries that no token of the step sees are unspecified, but blocks of the pool.
    pub batch: AttentionBatch,
}

/// What the attention of one layer needs beside queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct LayerAttention<'a> {
    pub layer: usize,
    pub num_heads: usize,
    /// `None`: no rotation.
    pub rope: Option<&'a RopeTable>,
    /// Factor of `q·k`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    /// Beside the window, the first tokens of the sequence.
    pub sink_tokens: usize,
    /// A token sees only those of its own chunk of so many positions.
    pub chunk: Option<usize>,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// `[1, H]` F32: scores without a value.
    pub sinks: Option<&'a Tensor>,
    /// `[1, H]` F32: slopes of linear biases.
    pub alibi: Option<&'a Tensor>,
}

/// One step's forward pass. Each verb checks its shapes and types, takes its output from the arena and calls the
/// device; tensors live until the [`Scope`] that they were made in ends.
pub struct Forward<'a> {
    device: &'a SharedDevice,
    arena: &'a Arena,
    step: &'a StepTensors,
    kv: &'a [KvLayer],
    activation: DType,
    prompt_rows: Option<(&'a PromptWindow, &'a [PromptRow<'a>])>,
    /// For each layer 0, or 1 and up for a pool of windows; empty: 0 for all.
    pools: &'a [usize],
}

impl<'a> Forward<'a> {
    /// `kv`: one cache for each layer. `activation`: type of the activations.
    pub fn new(
        device: &'a SharedDevice,
        arena: &'a Arena,
        step: &'a StepTensors,
        kv: &'a [KvLayer],
        activation: DType,
    ) -> Self {
        Self { device, arena, step, kv, activation, prompt_rows: None, pools: &[] }
    }

    /// Says which layers have their keys and values in which of [`StepTensors::windows`], counted from 1; 0: in none.
    pub fn with_pools(self, pools: &'a [usize]) -> Self {
        Self { pools, ..self }
    }

    /// With embeddings of requests for some of the step's tokens, in their order.
    pub fn with_prompt_rows(self, window: &'a PromptWindow, rows: &'a [PromptRow<'a>]) -> Self {
        Self { prompt_rows: (!rows.is_empty()).then_some((window, rows)), ..self }
    }

    /// The inputs of the step.
    pub fn step(&self) -> &StepTensors {
        self.step
    }

    /// Tensors made from now on are given back when the scope is dropped.
    pub fn scope(&self) -> Scope<'a> {
        self.arena.scope()
    }

    /// An activation `[rows, cols]` of unspecified content, to be filled by an `_into` verb.
    pub fn activation(&self, rows: usize, cols: usize) -> Result<Tensor> {
        self.arena.allocate(rows, cols, self.activation)
    }

    /// `table[tokens] * scale`: `[T, C]` from `table [V, C]`; a request's own embeddings take the place of its table's.
    pub fn embed(&self, table: &Tensor, scale: f32) -> Result<Tensor> {
        let out = self.activation(self.step.tokens.cols(), table.cols())?;
        if out.rows() > 0 {
            self.device.embed(&out, table, &self.step.tokens, scale)?;
        }
        if let Some((window, rows)) = self.prompt_rows {
            window.write(self.device, &out, rows, scale)?;
        }
        Ok(out)
    }

    /// `table[positions]`: `[T, C]`, learned positions.
    pub fn embed_positions(&self, table: &Tensor) -> Result<Tensor> {
        let out = self.activation(self.step.positions.cols(), table.cols())?;
        if out.rows() > 0 {
            self.device.embed(&out, table, &self.step.positions, 1.0)?;
        }
        Ok(out)
    }

    /// `x / rms(x) * weight` over each row of `x [T, C]`.
    pub fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        let out = self.activation(x.rows(), x.cols())?;
        check(weight.cols() == x.cols(), "rms_norm", ("x", x), ("weight", weight))?;
        if out.rows() > 0 {
            self.device.rms_norm(&out, x, weight, eps)?;
        }
        Ok(out)
    }

    /// In place on each head of `x [T, heads * D]`, with `weight [1, D]`.
    pub fn head_rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        let fits = weight.cols() > 0 && x.cols().is_multiple_of(weight.cols());
        check(fits, "head_rms_norm", ("x", x), ("weight", weight))?;
        if x.rows() == 0 {
            return Ok(());
        }
        self.device.rms_norm(x, x, weight, eps)
    }

    /// `residual += x`, then `rms_norm(residual)`. All `[T, C]`.
    pub fn add_rms_norm(&self, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        check(same_kind(residual, x), "add_rms_norm", ("residual", residual), ("x", x))?;
        check(weight.cols() == x.cols(), "add_rms_norm", ("x", x), ("weight", weight))?;
        let out = self.activation(x.rows(), x.cols())?;
        if out.rows() > 0 {
            self.device.add_rms_norm(&out, residual, x, weight, eps)?;
        }
        Ok(out)
    }

    /// `x · weightᵀ + bias`: `[T, N]` from `x [T, K]`, `weight [N, K]`, `bias [1, N]`.
    pub fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        let out = self.activation(x.rows(), weight.out_features())?;
        self.linear_into(&out, x, weight, bias, "linear")?;
        Ok(out)
    }

    /// [`Forward::linear`] of a layer that is split by input features over the ranks: the sum over all ranks, into
    /// `out`. With one rank it is that rank's product.
    pub fn linear_reduce(&self, out: &Tensor, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<()> {
        self.linear_into(out, x, weight, bias, "linear_reduce")
    }

    /// `out = x · weightᵀ`, where both are columns of larger tensors.
    pub fn project(&self, out: &Tensor, x: &Tensor, weight: &Weight) -> Result<()> {
        self.linear_into(out, x, weight, None, "project")
    }

    /// Rotates `q [T, H*D]` in place by position, and writes keys and values `[T, K*D]` into the layer's cache. In a layer
    /// with rotation that sees first tokens beside its window, the queries for these: [`SinkQueries`].
    pub fn rope_kv_write(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        args: &LayerAttention<'_>,
    ) -> Result<Option<Tensor>> {
        let cache = self.cache(args.layer)?;
        check(same_kind(k, v), "rope_kv_write", ("k", k), ("v", v))?;
        check(k.cols() == cache.kv_heads * cache.head_dim, "rope_kv_write", ("k", k), ("cache", &cache.data))?;
        check(q.cols() == args.num_heads * cache.head_dim, "rope_kv_write", ("q", q), ("cache", &cache.data))?;
        let same_rows = q.rows() == k.rows() && q.rows() == self.step.positions.cols();
        check(same_rows, "rope_kv_write", ("q", q), ("positions", &self.step.positions))?;
        let has_sinks = args.sink_tokens > 0 && args.rope.is_some();
        let sink_q = has_sinks.then(|| self.activation(q.rows(), q.cols())).transpose()?;
        if q.rows() == 0 {
            return Ok(sink_q);
        }
        let LayerAttention { window, chunk, sink_tokens, .. } = *args;
        self.device.rope_kv_write(&RopeKvWrite {
            q,
            k,
            v,
            positions: &self.step.positions,
            slots: self.window(args.layer)?.map_or(&self.step.slots, |window| &window.slots),
            rope: args.rope,
            cache,
            num_heads: args.num_heads,
            sink_queries: sink_q.as_ref().map(|out| SinkQueries { out, window, chunk, sink_tokens }),
        })?;
        Ok(sink_q)
    }

    /// Causal attention of `q [T, H*D]` (rotated) over the layer's cache; `[T, H*D]`. `sink_q`: what
    /// [`Forward::rope_kv_write`] returned.
    pub fn attention(&self, q: &Tensor, sink_q: Option<&Tensor>, args: &LayerAttention<'_>) -> Result<Tensor> {
        let cache = self.cache(args.layer)?;
        check(q.cols() == args.num_heads * cache.head_dim, "attention", ("q", q), ("cache", &cache.data))?;
        if let Some(sink_q) = sink_q {
            check(same_kind(q, sink_q), "attention", ("q", q), ("sink_q", sink_q))?;
        }
        for of_heads in [args.sinks, args.alibi].into_iter().flatten() {
            check(of_heads.cols() == args.num_heads, "attention", ("q", q), ("a value for each head", of_heads))?;
        }
        let out = self.activation(q.rows(), q.cols())?;
        if out.rows() > 0 {
            self.device.attention(&Attention {
                out: &out,
                q,
                cache,
                batch: self.window(args.layer)?.map_or(&self.step.batch, |window| &window.batch),
                num_heads: args.num_heads,
                scale: args.scale,
                window: args.window,
                sink_tokens: args.sink_tokens,
                sink_q,
                chunk: args.chunk,
                softcap: args.softcap,
                sinks: args.sinks,
                alibi: args.alibi,
            })?;
        }
        Ok(out)
    }

    /// `act(gate) * up`: `[T, F]` from `gate_up [T, 2F]`.
    pub fn gated_activation(&self, gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
        check(gate_up.cols().is_multiple_of(2), "gated_activation", ("gate_up", gate_up), ("gate_up", gate_up))?;
        let out = self.activation(gate_up.rows(), gate_up.cols() / 2)?;
        if out.rows() > 0 {
            self.device.gated_activation(&out, gate_up, activation)?;
        }
        Ok(out)
    }

    /// [`Forward::gated_activation`] of [`Forward::linear`]: `[T, F]` from `x [T, K]`, `weight [2F, K]`, `bias [1, 2F]`.
    pub fn gated_linear(
        &self,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        if bias.is_some() || !self.device.gates_products(x, weight) {
            return self.gated_activation(&self.linear(x, weight, bias)?, activation);
        }
        let Weight::Dense(matrix) = weight;
        let fits = x.cols() == weight.in_features() && weight.out_features().is_multiple_of(2);
        check(fits && x.dtype() == self.activation, "gated_linear", ("x", x), ("weight", matrix))?;
        let out = self.activation(x.rows(), weight.out_features() / 2)?;
        self.device.gated_linear(&out, x, weight, activation)?;
        Ok(out)
    }

    /// `x[sample_rows]`: `[R, C]`, the rows of the step that are sampled.
    pub fn gather_rows(&self, x: &Tensor) -> Result<Tensor> {
        let rows = &self.step.sample_rows;
        let out = self.activation(rows.cols(), x.cols())?;
        if out.rows() > 0 {
            self.device.gather_rows(&out, x, rows)?;
        }
        Ok(out)
    }

    /// `x · weightᵀ + bias` in F32: of a vocabulary `[R, V]`, or of experts `[T, E]`.
    pub fn logits(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        let out = self.arena.allocate(x.rows(), weight.out_features(), DType::F32)?;
        self.linear_into(&out, x, weight, bias, "logits")?;
        Ok(out)
    }

    fn linear_into(
        &self,
        out: &Tensor,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        op: &'static str,
    ) -> Result<()> {
        let Weight::Dense(matrix) = weight;
        check(x.cols() == weight.in_features(), op, ("x", x), ("weight", matrix))?;
        check(x.dtype() == self.activation, op, ("x", x), ("out", out))?;
        check(out.rows() == x.rows() && out.cols() == weight.out_features(), op, ("out", out), ("weight", matrix))?;
        if let Some(bias) = bias {
            check(bias.cols() == weight.out_features() && bias.rows() == 1, op, ("weight", matrix), ("bias", bias))?;
        }
        if x.rows() == 0 {
            return Ok(());
        }
        self.device.linear(out, x, weight, bias)
    }

    fn window(&self, layer: usize) -> Result<Option<&'a StepWindow>> {
        let Some(pool) = self.pools.get(layer).copied().unwrap_or(0).checked_sub(1) else { return Ok(None) };
        let missing = || Error::internal(format!("layer {layer} has no window: there are {}", self.step.windows.len()));
        self.step.windows.get(pool).map(Some).ok_or_else(missing)
    }

    fn cache(&self, layer: usize) -> Result<&'a KvLayer> {
        let num = self.kv.len();
        self.kv.get(layer).ok_or_else(|| Error::internal(format!("layer {layer} has no KV cache: there are {num}")))
    }
}

fn same_kind(a: &Tensor, b: &Tensor) -> bool {
    a.rows() == b.rows() && a.cols() == b.cols() && a.dtype() == b.dtype()
}

/// An error that names the operation and both operands unless `fits`.
fn check(fits: bool, op: &str, a: (&str, &Tensor), b: (&str, &Tensor)) -> Result<()> {
    if fits {
        return Ok(());
    }
    let show =
        |(name, tensor): (&str, &Tensor)| format!("{name} [{}, {}] {}", tensor.rows(), tensor.cols(), tensor.dtype());
    Err(Error::internal(format!("{op}: {} does not fit {}", show(a), show(b))))
}

mod experts;
mod functions;
#[cfg(test)]
mod tests;
