//! Logits on their way to the client.

use half::f16;
use serde_json::Value;

use super::request::Plan;
use crate::decode::beam::Hypothesis;
use crate::engine::DeltaLogits;
use crate::error::{Error, Result};
use crate::triton::{DataType, OutputTensor};

/// What the logits of a sequence are made of, as the bytes of their tensors: `[rows, V]`.
#[derive(Default)]
pub struct Logits {
    vocab_size: usize,
    /// Of the prompt; complete before the first token.
    context: Vec<u8>,
    /// Of the tokens of the next response.
    generation: Vec<u8>,
}

impl Logits {
    /// Takes what one step has read: of the delta's tokens the first `taken` count.
    pub fn push(&mut self, dtype: DataType, logits: &DeltaLogits, taken: usize) {
        for row in &logits.context {
            self.vocab_size = row.len();
            encode(dtype, row, &mut self.context);
        }
        for row in logits.generation.iter().take(taken) {
            self.vocab_size = row.len();
            encode(dtype, row, &mut self.generation);
        }
    }

    /// The wanted tensors: `context_logits` `[1, P, V]` in every response; `generation_logits` `[1, 1, T, V]` of all
    /// tokens, or when streaming `[1, T, 1, V]` of the response's. `of_tokens`: whether the latter are here.
    pub fn tensors(&mut self, plan: &Plan, of_tokens: bool) -> Vec<OutputTensor> {
        let row_bytes = self.vocab_size * plan.logits.size_bytes().unwrap_or(1);
        let rows = |bytes: &[u8]| bytes.len().checked_div(row_bytes).unwrap_or(0) as i64;
        let vocab = self.vocab_size as i64;
        let mut tensors = Vec::new();
        if plan.wanted.has("context_logits") {
            let shape = plan.shape(&[rows(&self.context), vocab]);
            tensors.push(tensor("context_logits", plan.logits, shape, self.context.clone()));
        }
        if of_tokens && plan.wanted.has("generation_logits") {
            let bytes = std::mem::take(&mut self.generation);
            let count = rows(&bytes);
            let shape = plan.shape(&if plan.streaming { [count, 1, vocab] } else { [1, count, vocab] });
            tensors.push(tensor("generation_logits", plan.logits, shape, bytes));
        }
        tensors
    }
}

/// `generation_logits` `[1, B, T, V]` of hypotheses that have kept theirs.
pub fn beam_logits(plan: &Plan, hypotheses: &[Hypothesis]) -> OutputTensor {
    let rows = || hypotheses.iter().map(|beam| beam.logits.len());
    let vocab = hypotheses.iter().flat_map(|beam| &beam.logits).map(|row| row.len()).max().unwrap_or(0);
    let longest = rows().max().unwrap_or(0);
    let row_bytes = vocab * plan.logits.size_bytes().unwrap_or(1);
    let mut bytes = Vec::with_capacity(hypotheses.len() * longest * row_bytes);
    for (at, beam) in hypotheses.iter().enumerate() {
        beam.logits.iter().for_each(|row| encode(plan.logits, row, &mut bytes));
        bytes.resize((at + 1) * longest * row_bytes, 0);
    }
    let shape = plan.shape(&[hypotheses.len() as i64, longest as i64, vocab as i64]);
    tensor("generation_logits", plan.logits, shape, bytes)
}

fn tensor(name: &'static str, dtype: DataType, shape: Vec<i64>, bytes: Vec<u8>) -> OutputTensor {
    OutputTensor { name: name.into(), dtype, shape, bytes }
}

fn encode(dtype: DataType, row: &[f32], bytes: &mut Vec<u8>) {
    match dtype {
        DataType::Fp16 => bytes.extend(row.iter().flat_map(|&logit| f16::from_f32(logit).to_le_bytes())),
        _ => bytes.extend(row.iter().flat_map(|logit| logit.to_le_bytes())),
    }
}

/// The type of logits: that of the first of the two outputs that the configuration declares.
///
/// # Errors
/// For any request for logits: `InvalidArg` where that is neither FP32 nor FP16.
pub fn declared_type(config: &Value) -> Result<DataType> {
    let outputs = config["output"].as_array().into_iter().flatten();
    let mut logits =
        outputs.filter(|output| output["name"] == "context_logits" || output["name"] == "generation_logits");
    match logits.next().and_then(|output| output["data_type"].as_str()) {
        None | Some("TYPE_FP32") => Ok(DataType::Fp32),
        Some("TYPE_FP16") => Ok(DataType::Fp16),
        Some(other) => Err(Error::invalid(format!(
            "Error encountered while populating response: logits are declared as {other}, expected TYPE_FP32 or TYPE_FP16"
        ))),
    }
}
