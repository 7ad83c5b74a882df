//! The roles `llmapi` and `vllm`: the LLM with the tensors of TensorRT-LLM's LLM-API model and of Triton's vLLM backend.
//! One prompt a request, text in, text out, no batch dimension.

mod form;
mod given;
mod llmapi;
mod sampling;
mod vllm;

use std::fmt::Write;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::adapter::llm::{Call, Generate, Interface, Item, LogProbs, Rules};
use crate::adapter::tensor::{NamedTensor, TensorData};
use crate::config::ModelRole;
use crate::decode::PassOrder;
use crate::error::{Error, Result};
use crate::tensors::Row;
use crate::tensors::prompts::{LLMAPI_INPUTS, LLMAPI_OUTPUTS, VLLM_INPUTS, VLLM_OUTPUTS};
use crate::triton::Input;

/// The tensors of a role.
struct Tensors {
    inputs: &'static [Row],
    outputs: &'static [Row],
}

fn tensors(role: ModelRole) -> Option<Tensors> {
    match role {
        ModelRole::LlmApi => Some(Tensors { inputs: LLMAPI_INPUTS, outputs: LLMAPI_OUTPUTS }),
        ModelRole::Vllm => Some(Tensors { inputs: VLLM_INPUTS, outputs: VLLM_OUTPUTS }),
        _ => None,
    }
}

/// What translates for the LLM; none where it speaks for itself.
pub fn interface(role: ModelRole) -> Option<Arc<dyn Interface>> {
    match role {
        ModelRole::LlmApi => Some(Arc::new(llmapi::LlmApi)),
        ModelRole::Vllm => Some(Arc::new(vllm::Vllm)),
        _ => None,
    }
}

/// Adds the inputs and outputs that are missing, batch size 0, and the decoupled policy where there is none: decoupled.
pub fn complete_prompts(config: &Value, role: ModelRole) -> Option<Value> {
    let tensors = tensors(role)?;
    let mut completed = config.clone();
    let object = completed.as_object_mut()?;
    for (key, rows) in [("input", tensors.inputs), ("output", tensors.outputs)] {
        let list = object.entry(key).or_insert_with(|| json!([]));
        if !list.is_array() {
            *list = json!([]);
        }
        let missing = |row: &&Row| !list.as_array().into_iter().flatten().any(|entry| entry["name"] == row.0);
        let entries: Vec<_> = rows.iter().filter(missing).map(super::model::config_entry).collect();
        list.as_array_mut()?.extend(entries);
    }
    object.entry("max_batch_size").or_insert_with(|| json!(0));
    object.entry("model_transaction_policy").or_insert_with(|| json!({ "decoupled": true }));
    (completed != *config).then_some(completed)
}

/// The tables of `docs/other_backends.md`.
pub fn prompts_markdown() -> String {
    let mut text = String::new();
    for (title, role) in [("`llmapi`", ModelRole::LlmApi), ("`vllm`", ModelRole::Vllm)] {
        let Some(Tensors { inputs, outputs }) = tensors(role) else { continue };
        for (kind, rows) in [("inputs", inputs), ("outputs", outputs)] {
            // Writing to a String cannot fail.
            let _ = write!(text, "### Role {title}: {kind}\n\n| Name | Type | Dims | Optional |\n|---|---|---|---|\n");
            for (name, data_type, dims, optional) in rows {
                let optional = if *optional { "yes" } else { "no" };
                let _ =
                    writeln!(text, "| `{name}` | {} | {dims:?} | {optional} |", data_type.trim_start_matches("TYPE_"));
            }
            text.push('\n');
        }
    }
    let _ = write!(text, "### `sampling_parameters` of the role `vllm`\n\n{}", sampling::markdown());
    text
}

/// How tokens are chosen, in the LLM API's and vLLM's sense: a temperature alone samples, and penalties come before it.
#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    greedy: bool,
    temperature: f32,
    top_k: i32,
    top_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
}

/// The LLM's own tensors of a request.
#[derive(Default)]
struct Base(Vec<NamedTensor>);

impl Base {
    fn ints(&mut self, name: &str, values: Vec<i32>) {
        self.0.push(NamedTensor::new(name, [values.len() as i64], TensorData::I32(values)));
    }

    fn float(&mut self, name: &str, value: f32) {
        self.0.push(NamedTensor::new(name, [1], TensorData::F32(vec![value])));
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.0.push(NamedTensor::new(name, [1], TensorData::Bool(vec![value])));
    }

    fn texts(&mut self, name: &str, texts: &[String]) {
        let bytes = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        self.0.push(NamedTensor::new(name, [texts.len() as i64], TensorData::Bytes(bytes)));
    }

    fn seed(&mut self, seed: Option<u64>) {
        // Without a seed every request has another one.
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        self.0.push(NamedTensor::new("seed", [1], TensorData::U64(vec![seed])));
    }

    fn choice(&mut self, choice: Choice) -> Result<()> {
        let Choice { greedy, temperature, top_k, top_p, presence_penalty, frequency_penalty } = choice;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::invalid(format!("temperature is {temperature}, expected 0 or more")));
        }
        let has_mass = top_p > 0.0 && top_p <= 1.0;
        if !greedy && !has_mass {
            return Err(Error::invalid(format!("top_p is {top_p}, expected more than 0 and at most 1")));
        }
        self.float("temperature", if greedy { 0.0 } else { temperature });
        if !greedy {
            self.ints("runtime_top_k", vec![top_k]);
            self.float("runtime_top_p", top_p);
        }
        self.float("presence_penalty", presence_penalty);
        self.float("frequency_penalty", frequency_penalty);
        Ok(())
    }

    /// Reads the request as the LLM would.
    fn parse(&self, rules: &Rules) -> Result<Generate> {
        let input = |tensor: &'_ NamedTensor| (tensor.data.dtype(), tensor.data.to_bytes());
        let encoded: Vec<_> = self.0.iter().map(input).collect();
        let inputs = self.0.iter().zip(encoded).map(|(tensor, (dtype, bytes))| Input {
            name: &tensor.name,
            dtype,
            shape: &tensor.shape,
            bytes: bytes.into(),
        });
        match Call::parse(rules, &inputs.collect::<Vec<_>>(), REQUESTED)? {
            Call::Generate(generate) => Ok(generate),
            Call::Stop => Err(Error::internal("a request became a stop command")),
        }
    }
}

/// What the forms are made from.
const REQUESTED: &[&str] = &["output_ids", "sequence_length", "text_output", "cum_log_probs", "output_log_probs"];

/// Answers to the one prompt, each with the next seed; penalties come before the temperature, and log-probabilities are
/// those of the whole vocabulary.
fn answers(item: &Item, count: usize, rules: &Rules) -> Vec<Item> {
    let together = rules.max_sequences.max(1);
    let part = |first: usize| {
        let mut item = Item { first_sequence: first as i32, log_probs: Some(LogProbs::Full), ..item.clone() };
        item.request.sampling.seed = item.request.sampling.seed.wrapping_add(first as u64);
        item.request.sampling.order = PassOrder::PenaltiesFirst;
        item.request.num_sequences = (count - first).min(together);
        item
    };
    (0..count).step_by(together).map(part).collect()
}
