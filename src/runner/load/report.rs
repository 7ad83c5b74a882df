//! What was loaded, told in a few lines.

use super::super::memory::KvPlan;
use crate::device::{DType, DeviceInfo};
use crate::step::ExecutorLimits;
use std::fmt;

/// What was loaded and which memory it takes.
#[derive(Clone, Debug)]
pub struct LoadReport {
    pub source: String,
    /// What kind of checkpoint was found.
    pub format: String,
    pub family: &'static str,
    pub device: DeviceInfo,
    pub parameters: u64,
    pub dtype: DType,
    pub weight_bytes: usize,
    pub workspace_bytes: usize,
    /// Inputs of steps, tables and results of sampling, rows of prompts.
    pub buffer_bytes: usize,
    /// Recorded steps: planned, and after the model is loaded how many there are and what they took.
    pub graphs: usize,
    pub graph_bytes: usize,
    pub kv: KvPlan,
    pub kv_dtype: DType,
    /// Bytes of keys and values of one token, all layers.
    pub kv_bytes_per_token: usize,
    /// Blocks of the host tier in each pool, those of full length first; empty: there is none.
    pub host_blocks: Vec<usize>,
    pub limits: ExecutorLimits,
    /// What lengths decide of the rotation.
    pub rotation: Option<String>,
    /// Names of tensors that the model does not use.
    pub unused: Vec<String>,
    /// From the first look at the files until the model can run; of a plan, the time that planning took.
    pub seconds: f64,
    /// Of these: memory for weights and their way there, and the first steps with their recording. 0 in a plan.
    pub weight_seconds: f64,
    pub warm_up_seconds: f64,
}

impl LoadReport {
    /// Bytes of the device that the model has for itself.
    pub fn device_bytes(&self) -> usize {
        self.weight_bytes + self.workspace_bytes + self.buffer_bytes + self.graph_bytes + self.kv.bytes
    }

    /// Whether more memory for the KV cache would have no use.
    fn is_all_that_is_needed(&self) -> bool {
        let limits = &self.limits;
        let sequence = limits.max_seq_len_tokens.div_ceil(limits.block_size_tokens);
        self.kv.num_blocks == sequence * limits.max_step_sequences
    }
}

/// Bytes for people: MiB, from 10 GiB on GiB.
fn mib(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10240.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = &self.limits;
        writeln!(f, "model      {} ({}, {:.1} M parameters)", self.source, self.family, self.parameters as f64 / 1e6)?;
        writeln!(f, "format     {}", self.format)?;
        writeln!(f, "device     {}", self.device.description)?;
        writeln!(f, "weights    {} ({})", mib(self.weight_bytes), self.dtype)?;
        writeln!(f, "workspace  {} (steps of up to {} tokens)", mib(self.workspace_bytes), limits.max_step_tokens)?;
        writeln!(f, "buffers    {} (inputs, sampling)", mib(self.buffer_bytes))?;
        if self.graphs > 0 {
            writeln!(f, "graphs     {} ({} recorded steps)", mib(self.graph_bytes), self.graphs)?;
        }
        writeln!(
            f,
            "KV cache   {} ({}): {} blocks of {} = {} tokens{}",
            mib(self.kv.bytes - self.kv.window_bytes()),
            self.kv_dtype,
            self.kv.num_blocks,
            limits.block_size_tokens,
            self.kv.tokens,
            if self.is_all_that_is_needed() { ", all that the sequences below need" } else { "" }
        )?;
        for window in &self.kv.windows {
            let (pool, layers) = (window.pool, window.layers);
            let sinks =
                if pool.sink_tokens > 0 { format!("the first {} and ", pool.sink_tokens) } else { String::new() };
            writeln!(
                f,
                "           {}: {} blocks for {layers} layers that see {sinks}the last {} tokens",
                mib(window.bytes),
                pool.num_blocks,
                pool.window_tokens
            )?;
        }
        if !self.kv.windows.is_empty() {
            let whole = self.kv.tokens * self.kv_bytes_per_token;
            writeln!(f, "           {} in all; without windows {}", mib(self.kv.bytes), mib(whole))?;
        }
        if let Some(&blocks) = self.host_blocks.first() {
            let tokens = blocks * limits.block_size_tokens;
            let bytes = mib((blocks as u128 * self.kv.bytes as u128 / self.kv.num_blocks.max(1) as u128) as usize);
            writeln!(f, "host tier  {bytes}: {blocks} blocks = {tokens} tokens")?;
        }
        write!(
            f,
            "limits     {} sequences of up to {} tokens; vocabulary of {}",
            limits.max_step_sequences, limits.max_seq_len_tokens, limits.vocab_size
        )?;
        if let Some(rotation) = &self.rotation {
            writeln!(f, "rotation   {rotation}")?;
        }
        if let Some(first) = self.unused.first() {
            write!(f, "\nignored    {} tensors that the model does not use, {first} the first", self.unused.len())?;
        }
        Ok(())
    }
}
