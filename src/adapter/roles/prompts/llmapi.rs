//! The tensors of TensorRT-LLM's LLM-API model.

use super::form::{AnswersForm, Shown, Style, cancelled, worded};
use super::given::Given;
use super::{Base, Choice, answers};
use crate::adapter::llm::{Asked, Call, Interface, Rules};
use crate::error::{Error, Result};
use crate::tensors::prompts::{LLMAPI_INPUTS, LLMAPI_OUTPUTS};
use crate::triton::Response;

/// Most answers to one prompt.
const MAX_ANSWERS: i32 = 256;
const DEFAULT_MAX_TOKENS: i32 = 32;

/// The role `llmapi`.
pub struct LlmApi;

impl Interface for LlmApi {
    fn parse(&self, rules: &Rules, asked: &Asked<'_>) -> Result<Call> {
        let given = Given::new(asked.inputs, LLMAPI_INPUTS)?;
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
    let max_tokens = given.int("sampling_param_max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS);
    if max_tokens < 1 {
        return Err(Error::invalid(format!("sampling_param_max_tokens is {max_tokens}, expected 1 or more")));
    }
    base.ints("request_output_len", vec![max_tokens]);
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
    for (name, ..) in LLMAPI_OUTPUTS {
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
