//! Responses of a request with one prompt: all its answers together.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::vllm::NO_LOG_PROBS;
use crate::adapter::llm::{End, Form, Step};
use crate::adapter::tensor::{NamedTensor, TensorData};
use crate::engine::FinishReason;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;
use crate::text::Tokenizer;
use crate::triton::Response;

/// What differs between the two roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Every response has the whole text so far; performance figures by the LLM API's names.
    LlmApi,
    /// Every response has what is new.
    Vllm,
}

/// What the client asked to see beside the text.
pub struct Shown {
    /// Names of the outputs, of the role.
    pub outputs: Vec<&'static str>,
    /// Precedes the first text of every answer.
    pub prompt: String,
    pub prompt_tokens: usize,
    /// The stop texts, for `stop_reason`.
    pub stops: Vec<String>,
}

/// Makes the responses of one request.
pub struct AnswersForm {
    style: Style,
    streaming: bool,
    shown: Shown,
    tokenizer: Arc<Tokenizer>,
    rows: Vec<Answer>,
    error: Option<Error>,
}

#[derive(Default)]
struct Answer {
    /// Since the last response; for the LLM API since the beginning.
    text: String,
    tokens: Vec<TokenId>,
    /// Of `tokens`.
    log_probs: Vec<f32>,
    /// The most likely tokens in the place of each of `tokens`, as many each, best first.
    top_ids: Vec<TokenId>,
    top_log_probs: Vec<f32>,
    /// Log-probabilities that went out with earlier responses.
    log_probs_sent: usize,
    cumulative: f32,
    finish_reason: Option<&'static str>,
    stop_reason: Option<String>,
    ended: bool,
    /// Performance figures by the LLM's names.
    figures: BTreeMap<String, TensorData>,
}

impl AnswersForm {
    /// For a request with this many answers.
    pub fn new(style: Style, streaming: bool, answers: usize, shown: Shown, tokenizer: Arc<Tokenizer>) -> Self {
        let first = || Answer { text: shown.prompt.clone(), ..Answer::default() };
        let rows = (0..answers).map(|_| first()).collect();
        Self { style, streaming, shown, tokenizer, rows, error: None }
    }

    fn take(&mut self, row: usize, response: Response) -> Result<()> {
        let row = &mut self.rows[row];
        for output in response.outputs {
            let tensor = NamedTensor::from_bytes(&output.name, output.dtype, &output.shape, &output.bytes)?;
            match tensor.name.as_str() {
                "text_output" => row.text.push_str(&tensor.to_strings()?.concat()),
                "output_ids" => row.tokens.extend(tensor.to_i32()?),
                "output_log_probs" => row.log_probs = tensor.to_f32()?.into_iter().skip(row.log_probs_sent).collect(),
                "cum_log_probs" => row.cumulative = tensor.to_f32()?.first().copied().unwrap_or(0.0),
                "top_log_prob_ids" => row.top_ids.extend(tensor.to_i32()?),
                "top_log_probs" => row.top_log_probs.extend(tensor.to_f32()?),
                "sequence_length" => {}
                _ => drop(row.figures.insert(tensor.name, tensor.data)),
            }
        }
        Ok(())
    }

    fn end(&mut self, row: usize, end: End) {
        let reason = match (end.finish, end.stop_text) {
            (_, Some(_)) | (Some(FinishReason::EndId | FinishReason::StopWords) | None, _) => "stop",
            (Some(FinishReason::Length), _) => "length",
            (Some(FinishReason::TimedOut), _) if self.style == Style::LlmApi => "timeout",
            (Some(FinishReason::Cancelled), _) if self.style == Style::LlmApi => "cancelled",
            _ => "abort",
        };
        let stop_text = end.stop_text.and_then(|index| self.shown.stops.get(index).cloned());
        let row = &mut self.rows[row];
        // The end token counts for vLLM; the LLM does not hand it out.
        let counts = self.style == Style::Vllm && end.stop_text.is_none() && end.finish == Some(FinishReason::EndId);
        row.tokens.extend(counts.then_some(-1));
        (row.finish_reason, row.stop_reason, row.ended) = (Some(reason), stop_text, true);
    }

    fn response(&mut self) -> Response {
        let outputs = self.shown.outputs.iter().filter_map(|name| self.output(name)).map(Into::into).collect();
        for row in &mut self.rows {
            if self.style == Style::Vllm {
                row.text.clear();
            }
            row.tokens.clear();
            row.log_probs_sent += row.log_probs.len();
            row.log_probs.clear();
            row.top_ids.clear();
            row.top_log_probs.clear();
        }
        Response { outputs, parameters: Vec::new() }
    }

    fn output(&self, name: &'static str) -> Option<NamedTensor> {
        let count = self.rows.len() as i64;
        let texts = |text: &dyn Fn(&Answer) -> String| {
            let bytes = self.rows.iter().map(|row| text(row).into_bytes()).collect();
            Some(NamedTensor::new(name, [count], TensorData::Bytes(bytes)))
        };
        match name {
            "text_output" => texts(&|row| row.text.clone()),
            "finish_reason" => texts(&|row| row.finish_reason.unwrap_or("None").to_owned()),
            "stop_reason" => texts(&|row| row.stop_reason.clone().unwrap_or_else(|| "None".to_owned())),
            "logprobs" => texts(&|row| self.log_probs(row).to_string()),
            NO_LOG_PROBS => {
                texts(&|_| "null".to_owned()).map(|tensor| NamedTensor { name: "logprobs".to_owned(), ..tensor })
            }
            "cumulative_logprob" => {
                let sums = self.rows.iter().map(|row| row.cumulative).collect();
                Some(NamedTensor::new(name, [count], TensorData::F32(sums)))
            }
            "num_input_tokens" => {
                Some(NamedTensor::new(name, [1], TensorData::U32(vec![self.shown.prompt_tokens as u32])))
            }
            "num_output_tokens" => {
                let counts = self.rows.iter().map(|row| row.tokens.len() as u32).collect();
                Some(NamedTensor::new(name, [count], TensorData::U32(counts)))
            }
            figure => Some(NamedTensor::new(figure, [1], self.figure(figure)?)),
        }
    }

    /// Per token an object of the tokens that are told about: the chosen one, and the most likely ones.
    fn log_probs(&self, row: &Answer) -> Value {
        let told = |id: TokenId, log_prob: f32, rank: Option<usize>| {
            let text = self.tokenizer.decode(&[id], false);
            (id.to_string(), json!({ "logprob": log_prob, "rank": rank, "decoded_token": text }))
        };
        let count = row.top_ids.len() / row.log_probs.len().max(1);
        let token = |(at, (&id, &log_prob)): (usize, (&TokenId, &f32))| {
            let range = at * count..(at + 1) * count;
            let top = row.top_ids[range.clone()].iter().zip(&row.top_log_probs[range]).enumerate();
            let mut map: Map<String, Value> = top.map(|(at, (&id, &log))| told(id, log, Some(at + 1))).collect();
            if !map.contains_key(&id.to_string()) {
                map.extend([told(id, log_prob, None)]);
            }
            Value::Object(map)
        };
        row.tokens.iter().zip(&row.log_probs).enumerate().map(token).collect()
    }

    /// A performance figure of the first answer.
    fn figure(&self, name: &str) -> Option<TensorData> {
        let figures = &self.rows.first()?.figures;
        let blocks = |name: &str| match figures.get(name)? {
            TensorData::I32(values) => values.first().copied(),
            _ => None,
        };
        let (reused, missed) = (blocks("kv_cache_reused_blocks")?, blocks("kv_cache_alloc_total_blocks")?);
        Some(match name {
            "kv_cache_reused_block" => TensorData::I32(vec![reused]),
            "kv_cache_missed_block" => TensorData::I32(vec![missed]),
            "kv_cache_hit_rate" => TensorData::F32(vec![reused as f32 / (reused + missed).max(1) as f32]),
            other => figures.get(other)?.clone(),
        })
    }

    fn last(&mut self, row: usize) -> Step {
        self.rows[row].ended = true;
        if self.rows.iter().any(|row| !row.ended) {
            return if self.streaming && self.error.is_none() { Step::Last(self.response()) } else { Step::Ended };
        }
        match self.error.take() {
            Some(error) => Step::Failed(error),
            None => Step::Last(self.response()),
        }
    }
}

impl Form for AnswersForm {
    fn step(&mut self, row: usize, step: Step, end: End) -> Step {
        let (response, is_last) = match step {
            Step::More(response) => (response, false),
            Step::Last(response) => (response, true),
            Step::Failed(error) => {
                self.error.get_or_insert(error);
                return self.last(row);
            }
            Step::Nothing | Step::Ended => return step,
        };
        if let Err(error) = self.take(row, response) {
            self.error.get_or_insert(error);
            return self.last(row);
        }
        if !is_last {
            return Step::More(self.response());
        }
        self.end(row, end);
        if end.finish == Some(FinishReason::Cancelled) && end.stop_text.is_none() {
            self.error.get_or_insert(cancelled(self.style));
        }
        self.last(row)
    }

    fn error(&self, error: Error) -> Error {
        worded(self.style, error)
    }
}

/// The end of a request that its client gave up.
pub fn cancelled(style: Style) -> Error {
    let text = match style {
        Style::LlmApi => "Request cancelled by client",
        Style::Vllm => "Request was cancelled",
    };
    Error::new(ErrorKind::Cancelled, text)
}

/// An error in the words of the role.
pub fn worded(style: Style, error: Error) -> Error {
    match (style, error.kind()) {
        (_, ErrorKind::Cancelled) => cancelled(style),
        (Style::LlmApi, kind) => Error::new(kind, format!("Error generating request: {}", error.message())),
        (Style::Vllm, kind) => Error::new(kind, format!("Error generating stream: {}", error.message())),
    }
}
