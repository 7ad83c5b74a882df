//! The tensors of Triton's vLLM backend.

use serde_json::{Map, Value};

use super::form::{AnswersForm, Shown, Style, worded};
use super::given::Given;
use super::sampling::VllmSampling;
use super::{Base, answers};
use crate::adapter::llm::{Asked, Call, Interface, Rules};
use crate::error::{Error, Result};
use crate::tensors::prompts::{VLLM_INPUTS, VLLM_OUTPUTS};
use crate::triton::{ParameterValue, Response};

/// Request parameters that belong to the server and its scheduling, not to the sampling.
#[rustfmt::skip]
const SERVER_PARAMETERS: [&str; 8] = [
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "tenant", "cache_salt", "request_type",
];

/// The role `vllm`.
pub struct Vllm;

impl Interface for Vllm {
    fn parse(&self, rules: &Rules, asked: &Asked<'_>) -> Result<Call> {
        let given = Given::new(asked.inputs, VLLM_INPUTS)?;
        for name in ["image", "embedding_request"] {
            if !given.texts(name)?.is_empty() {
                return Err(Error::unsupported(format!("{name}: only text generation is supported by this version")));
            }
        }
        let prompt = given.prompt()?;
        let streaming = given.flag("stream")?;
        if streaming && !rules.decoupled {
            return Err(Error::invalid(
                "stream needs the decoupled transaction policy: set model_transaction_policy { decoupled: true }",
            ));
        }
        let exclude = given.given_flag("exclude_input_in_output")?;
        if streaming && exclude == Some(false) {
            return Err(Error::invalid("When streaming, `exclude_input_in_output` = False is not allowed."));
        }
        let sampling = VllmSampling::parse(&sampling_json(&given, asked)?)?;
        let mut base = Base::default();
        base.texts("text_input", std::slice::from_ref(&prompt));
        base.flag("streaming", streaming);
        base.flag("exclude_input_in_output", true);
        base.flag("return_log_probs", true);
        sampling.base(&mut base)?;
        let mut generate = base.parse(rules)?;
        generate.plan.drop_stop_text = !sampling.include_stop_text;
        generate.plan.skip_special_tokens = sampling.skip_special_tokens;
        let mut item =
            generate.items.into_iter().next().ok_or_else(|| Error::internal("a prompt without a sequence"))?;
        sampling.adjust(&mut item, rules)?;
        let prompt_tokens = item.request.prompt.len();
        generate.items = answers(&item, sampling.answers, rules);
        let echo = !streaming && exclude != Some(true);
        let shown = Shown {
            outputs: outputs(&given, asked.requested, sampling.log_probs.is_some())?,
            prompt: if echo { prompt } else { String::new() },
            prompt_tokens,
            stops: Vec::new(),
        };
        let form = AnswersForm::new(Style::Vllm, streaming, sampling.answers, shown, rules.tokenizer()?);
        generate.form = Some(Box::new(form));
        Ok(Call::Generate(generate))
    }

    fn stopped(&self) -> Result<Response> {
        Err(Error::internal("this role has no stop command"))
    }

    fn error(&self, error: Error) -> Error {
        worded(Style::Vllm, error)
    }
}

/// The tensor `sampling_parameters`, or without it the request's own parameters.
fn sampling_json(given: &Given, asked: &Asked<'_>) -> Result<Map<String, Value>> {
    if let Some(text) = given.texts("sampling_parameters")?.first() {
        return match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(other) => Err(Error::invalid(format!("sampling_parameters is {other}, expected a JSON object"))),
            Err(error) => Err(Error::invalid(format!("sampling_parameters is not valid JSON: {error}"))),
        };
    }
    let parameters = asked
        .parameters
        .iter()
        .filter(|(name, _)| !SERVER_PARAMETERS.contains(&name.as_str()) && !name.starts_with("triton_"));
    Ok(parameters.map(|(name, value)| (name.clone(), json_of(value))).collect())
}

fn json_of(value: &ParameterValue) -> Value {
    match value {
        ParameterValue::Text(text) => text.as_str().into(),
        ParameterValue::Int(number) => (*number).into(),
        ParameterValue::Bool(flag) => (*flag).into(),
        ParameterValue::Double(number) => (*number).into(),
    }
}

/// The outputs that the request's flags fill and that it lists.
fn outputs(given: &Given, requested: &[&str], log_probs: bool) -> Result<Vec<&'static str>> {
    let mut outputs = Vec::new();
    for (name, ..) in VLLM_OUTPUTS {
        let filled = *name == "text_output" || given.flag(&format!("return_{name}"))?;
        if filled && requested.contains(name) {
            // Without the sampling parameter of this name there is nothing to tell, and that is told.
            outputs.push(if *name == "logprobs" && !log_probs { NO_LOG_PROBS } else { *name });
        }
    }
    Ok(outputs)
}

/// Stands for an output `logprobs` of nothing.
pub(super) const NO_LOG_PROBS: &str = "logprobs=null";
