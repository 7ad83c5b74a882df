//! What the machine allows: memory traffic over bandwidth, arithmetic over peak.

use super::load_test::LoadTest;
use crate::device::bench::Limits;
use crate::model::ModelConfig;
use crate::runner::LoadReport;

/// The least time for so much traffic and arithmetic, which may overlap.
fn seconds(machine: &Limits, bytes: f64, flops: f64) -> f64 {
    (bytes / machine.read_bytes_per_s).max(flops / machine.flops_per_s)
}

/// What a model's steps cost at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelCost {
    /// Weights that every step reads: all but the embedding table, of which a step reads a few rows.
    pub(super) step_weight_bytes: f64,
    block_parameters: f64,
    head_parameters: f64,
    kv_bytes_per_token: f64,
    /// Of one query over one key and value, all layers.
    attention_flops: f64,
}

impl ModelCost {
    pub(super) fn new(config: &ModelConfig, load: &LoadReport) -> Self {
        let head = (config.vocab_size * config.hidden_size) as f64;
        let embedding = if config.tied_embeddings { 0.0 } else { head };
        let matrices = load.parameters as f64 - embedding;
        Self {
            step_weight_bytes: matrices * load.dtype.size() as f64,
            block_parameters: matrices - head,
            head_parameters: head,
            kv_bytes_per_token: load.kv_bytes_per_token as f64,
            attention_flops: (4 * config.num_layers * config.num_heads * config.head_dim) as f64,
        }
    }

    /// The least time for the prompt of one request alone.
    pub(super) fn prefill_seconds(&self, machine: &Limits, isl: usize) -> f64 {
        let tokens = isl as f64;
        let matrices = 2.0 * (self.block_parameters * tokens + self.head_parameters);
        let attention = self.attention_flops * tokens * (tokens + 1.0) / 2.0;
        seconds(machine, self.step_weight_bytes, matrices + attention)
    }

    /// The least time of a step that generates one token for each of `batch` sequences of `context` tokens.
    pub(super) fn decode_seconds(&self, machine: &Limits, batch: usize, context: f64) -> f64 {
        let batch = batch as f64;
        let bytes = self.step_weight_bytes + batch * context * self.kv_bytes_per_token;
        let flops = batch * (2.0 * (self.block_parameters + self.head_parameters) + context * self.attention_flops);
        seconds(machine, bytes, flops)
    }

    /// The least time between two tokens of a request, at the mean length of a sequence.
    pub(super) fn token_seconds(&self, machine: &Limits, test: &LoadTest, batch: usize) -> f64 {
        self.decode_seconds(machine, batch, test.isl as f64 + test.osl as f64 / 2.0)
    }

    /// The least time for a whole load: every prompt once, and full batches of generation.
    pub(super) fn total_seconds(&self, machine: &Limits, test: &LoadTest, batch: usize) -> f64 {
        let requests = test.requests as f64;
        let rounds = requests / batch as f64 * (test.osl - 1) as f64;
        requests * self.prefill_seconds(machine, test.isl) + rounds * self.token_seconds(machine, test, batch)
    }
}
