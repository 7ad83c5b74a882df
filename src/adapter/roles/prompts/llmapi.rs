//! The tensors of TensorRT-LLM's LLM-API model.

use super::form::{AnswersForm, Shown, Style, cancelled, worded};
use super::given::Given;
use super::{Base, Choice, answers};
use crate::adapter::llm::{Asked, Call, Interface, Rules};
use crate::adapter::roles::model::Tensor;
use crate::error::{Error, Result};
use crate::triton::Response;

const ONE: &[i64] = &[1];
const ANY: &[i64] = &[-1];

#[rustfmt::skip]
pub(super) const INPUTS: &[Tensor] = &[
    ("text_input", "TYPE_STRING", ANY, false),
    ("image_url", "TYPE_STRING", ANY, true),
    ("streaming", "TYPE_BOOL", ONE, true),
    ("sampling_param_best_of", "TYPE_INT32", ONE, true),
    ("sampling_param_temperature", "TYPE_FP32", ONE, true),
    ("sampling_param_top_k", "TYPE_INT32", ONE, true),
    ("sampling_param_top_p", "TYPE_FP32", ONE, true),
    ("sampling_param_frequency_penalty", "TYPE_FP32", ONE, true),
    ("sampling_param_presence_penalty", "TYPE_FP32", ONE, true),
    ("sampling_param_max_tokens", "TYPE_INT32", ONE, true),
    ("sampling_param_stop", "TYPE_STRING", ANY, true),
    ("sampling_param_seed", "TYPE_UINT64", ONE, true),
    ("sampling_param_exclude_input_from_output", "TYPE_BOOL", ONE, true),
    ("sampling_param_return_perf_metrics", "TYPE_BOOL", ONE, true),
    ("sampling_param_logits_post_processor_name", "TYPE_STRING", ONE, true),
    ("return_finish_reason", "TYPE_BOOL", ONE, true),
    ("return_stop_reason", "TYPE_BOOL", ONE, true),
    ("return_cumulative_logprob", "TYPE_BOOL", ONE, true),
    ("stop", "TYPE_BOOL", ONE, true),
    ("lora_id", "TYPE_UINT64", ONE, true),
    ("lora_name", "TYPE_STRING", ONE, true),
    ("lora_path", "TYPE_STRING", ONE, true),
    ("lora_ckpt_source", "TYPE_STRING", ONE, true),
];

#[rustfmt::skip]
pub(super) const OUTPUTS: &[Tensor] = &[
    ("text_output", "TYPE_STRING", ANY, false),
    ("finish_reason", "TYPE_STRING", ANY, false),
    ("stop_reason", "TYPE_STRING", ANY, false),
    ("cumulative_logprob", "TYPE_FP32", ANY, false),
    ("kv_cache_reused_block", "TYPE_INT32", ANY, false),
    ("kv_cache_hit_rate", "TYPE_FP32", ANY, false),
    ("kv_cache_alloc_new_blocks", "TYPE_INT32", ANY, false),
    ("kv_cache_alloc_total_blocks", "TYPE_INT32", ANY, false),
    ("kv_cache_missed_block", "TYPE_INT32", ANY, false),
    ("arrival_time_ns", "TYPE_INT64", ONE, false),
    ("first_scheduled_time_ns", "TYPE_INT64", ONE, false),
    ("first_token_time_ns", "TYPE_INT64", ONE, false),
    ("last_token_time_ns", "TYPE_INT64", ONE, false),
    ("acceptance_rate", "TYPE_FP32", ONE, false),
    ("total_accepted_draft_tokens", "TYPE_INT32", ONE, false),
    ("total_draft_tokens", "TYPE_INT32", ONE, false),
];

/// Most answers to one prompt.
const MAX_ANSWERS: i32 = 256;
const DEFAULT_MAX_TOKENS: i32 = 32;

/// The role `llmapi`.
pub struct LlmApi;

impl Interface for LlmApi {
    fn parse(&self, rules: &Rules, asked: &Asked<'_>) -> Result<Call> {
        let given = Given::new(asked.inputs, INPUTS)?;
        if given.flag("stop")? {
            return Ok(Call::Stop);
        }
        let prompt = given.prompt()?;
        let streaming = given.flag("streaming")?;
        if streaming && !rules.decoupled {
            return Err(Error::invalid(
                "Streaming is only supported in decoupled mode: set triton_config.decoupled in model.yaml",
            ));
        }
        refuse_unserved(&given)?;
        let count = given.int("sampling_param_best_of")?.unwrap_or(1);
        if !(1..=MAX_ANSWERS).contains(&count) {
            return Err(Error::invalid(format!("sampling_param_best_of is {count}, expected 1 to {MAX_ANSWERS}")));
        }
        let stops = given.texts("sampling_param_stop")?;
        let mut generate = base(&given, &prompt, streaming, &stops)?.parse(rules)?;
        generate.plan.drop_stop_text = true;
        let item = generate.items.first().ok_or_else(|| Error::internal("a prompt without a sequence"))?;
        generate.items = answers(item, count as usize, rules);
        let echo = !streaming && !given.flag("sampling_param_exclude_input_from_output")?;
        let shown = Shown {
            outputs: outputs(&given, asked.requested)?,
            prompt: if echo { prompt } else { String::new() },
            prompt_tokens: generate.items[0].request.prompt.len(),
            stops,
        };
        let tokenizer = rules.tokenizer()?;
        let form = AnswersForm::new(Style::LlmApi, streaming, count as usize, shown, tokenizer);
        generate.form = Some(Box::new(form));
        Ok(Call::Generate(generate))
    }

    /// The command itself ends as a request that its client gave up.
    fn stopped(&self) -> Result<Response> {
        Err(cancelled(Style::LlmApi))
    }

    fn error(&self, error: Error) -> Error {
        worded(Style::LlmApi, error)
    }
}

fn base(given: &Given, prompt: &str, streaming: bool, stops: &[String]) -> Result<Base> {
    let mut base = Base::default();
    base.texts("text_input", &[prompt.to_owned()]);
    base.ints("request_output_len", vec![given.int("sampling_param_max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS)]);
    base.flag("streaming", streaming);
    base.flag("exclude_input_in_output", true);
    base.flag("return_log_probs", given.flag("return_cumulative_logprob")?);
    base.flag("return_perf_metrics", given.flag("sampling_param_return_perf_metrics")?);
    if !stops.is_empty() {
        base.texts("stop_words", stops);
    }
    base.seed(given.uint64("sampling_param_seed")?);
    let temperature = given.float("sampling_param_temperature")?;
    let (top_k, top_p) = (given.int("sampling_param_top_k")?, given.float("sampling_param_top_p")?);
    let nothing = temperature.is_none() && top_k.is_none() && top_p.is_none();
    base.choice(Choice {
        greedy: nothing || top_k == Some(1) || top_p == Some(0.0) || temperature == Some(0.0),
        temperature: temperature.unwrap_or(1.0),
        top_k: top_k.unwrap_or(0),
        top_p: top_p.unwrap_or(1.0),
        presence_penalty: given.float("sampling_param_presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: given.float("sampling_param_frequency_penalty")?.unwrap_or(0.0),
    })?;
    Ok(base)
}

fn refuse_unserved(given: &Given) -> Result<()> {
    let lora = ["lora_id", "lora_name", "lora_path"].map(|name| given.find(name).is_some());
    if lora.contains(&true) && lora.contains(&false) {
        return Err(Error::invalid("lora_id, lora_name, and lora_path must all be provided together"));
    }
    if let Some(source) =
        given.texts("lora_ckpt_source")?.iter().find(|source| !["hf", "nemo"].contains(&source.as_str()))
    {
        return Err(Error::invalid(format!("lora_ckpt_source is {source:?}, expected hf or nemo")));
    }
    if lora[0] {
        return Err(Error::unsupported("lora_id: LoRA adapters are not supported by this version"));
    }
    if let [url, ..] = &given.texts("image_url")?[..] {
        return Err(Error::unsupported(format!("image_url is {url:?}: only text prompts are supported")));
    }
    if let [name, ..] = &given.texts("sampling_param_logits_post_processor_name")?[..] {
        return Err(Error::invalid(format!("Unknown logits post-processor {name:?}. Available: none configured")));
    }
    Ok(())
}

/// The outputs that the request's flags fill and that it lists.
fn outputs(given: &Given, requested: &[&str]) -> Result<Vec<&'static str>> {
    let mut outputs = Vec::new();
    for (name, ..) in OUTPUTS {
        let filled = match *name {
            "text_output" => true,
            "finish_reason" => given.flag("return_finish_reason")?,
            "stop_reason" => given.flag("return_stop_reason")?,
            "cumulative_logprob" => given.flag("return_cumulative_logprob")?,
            _ => given.flag("sampling_param_return_perf_metrics")?,
        };
        if filled && requested.contains(name) {
            outputs.push(*name);
        }
    }
    Ok(outputs)
}
