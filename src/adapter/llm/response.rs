//! From what the engine generates for one sequence to the tensors of its responses.

use std::sync::Arc;

use super::beams::BeamRow;
use super::logits::Logits;
use super::request::{Item, LogProbs, Plan};
use super::wanted::Wanted;
use crate::engine::{Delta, FinishReason, RequestStats};
use crate::error::Error;
use crate::ids::TokenId;
use crate::text::{Detokenizer, StopMatcher, StopStrings, Tokenizer};
use crate::triton::{DataType, OutputTensor, ParameterValue, Response};

/// One sequence on its way to the client.
pub struct Row {
    batch_index: i32,
    wanted: Wanted,
    sequence_index: i32,
    prompt_len: usize,
    seed: u64,
    finish_reason: &'static str,
    /// Tokens of the next response; a non-streaming one starts with the prompt unless that is excluded.
    tokens: Vec<TokenId>,
    log_probs: Option<LogProbs>,
    /// Of every generated token.
    token_log_probs: Vec<f32>,
    /// Of the tokens of the next response, `top_count` each.
    top: Vec<(TokenId, f32)>,
    top_count: usize,
    /// Of the prompt; gone once they were sent.
    prompt_log_probs: Vec<f32>,
    cum_log_prob: f64,
    logits: Logits,
    text: Option<RowText>,
    /// Of a beam search, whose hypotheses come in place of tokens.
    beams: Option<BeamRow>,
    ended: bool,
}

/// What a delta of the engine means for the client.
pub enum Step {
    /// Nothing to send.
    Nothing,
    /// A response, and more will follow.
    More(Response),
    /// The last response of the sequence.
    Last(Response),
    /// The sequence failed.
    Failed(Error),
    /// The sequence ended, and what it said is part of another response.
    Ended,
}

/// The text of a sequence on its way to the client.
#[derive(Clone)]
pub struct RowText {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    /// Text of the next response.
    pub pending: String,
    /// The stop text that ended the sequence.
    stopped_by: Option<usize>,
}

impl Row {
    /// The states of all sequences at their start, item by item. `tokenizer` is there where text is wanted or stops a
    /// sequence.
    pub fn all(plan: &Plan, items: &[Item], tokenizer: Option<&Arc<Tokenizer>>) -> Vec<Self> {
        let rows = |item: &Item| 0..item.request.num_sequences as i32;
        let of = |item| rows(item).map(move |index| Self::new(plan, item, item.first_sequence + index, tokenizer));
        items.iter().flat_map(of).collect()
    }

    fn new(plan: &Plan, item: &Item, sequence_index: i32, tokenizer: Option<&Arc<Tokenizer>>) -> Self {
        let prompt = &item.request.prompt;
        let wants_text = plan.wanted.has("text_output") || item.stop_texts.is_some();
        let text = tokenizer.filter(|_| wants_text).map(|tokenizer| RowText::new(plan, item, tokenizer));
        let (text, beams) = match &item.request.beam {
            None => (text, None),
            Some(_) => {
                let echoed = if item.echo { prompt.clone() } else { Vec::new() };
                (None, Some(BeamRow { echoed, text, hypotheses: Vec::new() }))
            }
        };
        Self {
            batch_index: item.batch_index,
            wanted: item.wanted,
            sequence_index,
            prompt_len: prompt.len(),
            seed: item.request.sampling.seed.wrapping_add((sequence_index - item.first_sequence) as u64),
            finish_reason: "",
            tokens: if item.echo { prompt.clone() } else { Vec::new() },
            log_probs: item.log_probs,
            token_log_probs: Vec::new(),
            top: Vec::new(),
            top_count: item.request.sampling.top_log_probs as usize,
            prompt_log_probs: Vec::new(),
            cum_log_prob: 0.0,
            logits: Logits::default(),
            text,
            beams,
            ended: false,
        }
    }

    /// The stop text that ended the sequence, by its place in the request.
    pub fn stop_text(&self) -> Option<usize> {
        self.text.as_ref()?.stopped_by
    }

    /// Takes what one step added. After the end, which a stop text can bring before the engine does, nothing follows.
    pub fn push(&mut self, plan: &Plan, delta: Delta) -> Step {
        if self.ended {
            return Step::Nothing;
        }
        let plan = &Plan { wanted: self.wanted, ..plan.clone() };
        let error = delta.finish.as_ref().and_then(|finish| finish.error.clone());
        if let Some(error) = error {
            self.ended = true;
            return Step::Failed(error);
        }
        if let (Some(beams), Some(hypotheses)) = (&mut self.beams, &delta.beams) {
            beams.hypotheses = hypotheses.to_vec();
        }
        let before = self.tokens.len();
        let stopped = self.take(&delta);
        if let Some(logits) = &delta.logits {
            self.prompt_log_probs.extend(&logits.prompt_log_probs);
            self.logits.push(plan.logits, logits, self.tokens.len() - before);
        }
        let last = stopped || delta.finish.is_some();
        if let Some(text) = self.text.as_mut().filter(|_| last) {
            text.finish(stopped);
        }
        self.ended = last;
        if last {
            let reason = delta.finish.as_ref().filter(|_| !stopped).map(|finish| finish.reason);
            self.finish_reason = reason_word(reason.unwrap_or(FinishReason::StopWords));
        }
        let is_new = !delta.tokens.is_empty() && self.has_news(plan);
        let something = last || plan.streaming && (is_new || delta.beams.is_some());
        if !something {
            return Step::Nothing;
        }
        let mut response = self.response(plan, &delta.stats);
        if delta.finish.is_some_and(|finish| finish.reason == FinishReason::TimedOut) {
            response.parameters.push(("finish_reason".into(), ParameterValue::Text("timeout".into())));
        }
        if last { Step::Last(response) } else { Step::More(response) }
    }

    /// Appends tokens up to the one that completes a stop text; says whether there was one.
    fn take(&mut self, delta: &Delta) -> bool {
        for (index, &token) in delta.tokens.iter().enumerate() {
            self.tokens.push(token);
            self.top.extend(delta.top.get(index).into_iter().flatten());
            if let (Some(kind), Some(log_prob)) = (self.log_probs, delta.log_probs.get(index)) {
                self.cum_log_prob += f64::from(log_prob.full);
                self.token_log_probs.push(match kind {
                    LogProbs::Full => log_prob.full,
                    LogProbs::Candidates => log_prob.candidates,
                });
            } else if self.wanted.has("output_log_probs") {
                self.token_log_probs.push(0.0);
            }
            if self.text.as_mut().is_some_and(|text| text.push(token)) {
                return true;
            }
        }
        false
    }

    /// A response with nothing but an empty text would tell the client nothing.
    fn has_news(&self, plan: &Plan) -> bool {
        plan.wanted.tokens() || self.text.as_ref().is_none_or(|text| !text.pending.is_empty())
    }

    fn response(&mut self, plan: &Plan, stats: &RequestStats) -> Response {
        let tokens = std::mem::take(&mut self.tokens);
        let mut out = Outputs { plan, tensors: Vec::new() };
        let (length, texts) = match &self.beams {
            Some(beams) => {
                let length = beams.put_tokens(&mut out) as i32;
                out.tensors.extend(self.logits.tensors(plan, false));
                beams.put_logits(plan, &mut out);
                beams.put_log_probs(&mut out);
                (length, beams.texts())
            }
            None => {
                let length = tokens.len() as i32;
                out.ints("output_ids", &[1, i64::from(length)], &tokens);
                out.ints("sequence_length", &[1], &[length]);
                out.tensors.extend(self.logits.tensors(plan, true));
                let log_probs = &self.token_log_probs;
                out.floats("output_log_probs", &[1, log_probs.len() as i64], log_probs);
                out.floats("cum_log_probs", &[1], &[self.cum_log_prob as f32]);
                let text = self.text.as_mut().map(|text| std::mem::take(&mut text.pending));
                (length, vec![text.unwrap_or_default()])
            }
        };
        out.ints("batch_index", &[1], &[self.batch_index]);
        out.ints("sequence_index", &[1], &[self.sequence_index]);
        out.ints("kv_cache_alloc_new_blocks", &[1], &[stats.new_blocks as i32]);
        out.ints("kv_cache_reused_blocks", &[1], &[stats.reused_blocks as i32]);
        out.ints("kv_cache_alloc_total_blocks", &[1], &[stats.allocated_blocks as i32]);
        out.time("arrival_time_ns", stats.arrival_ns);
        out.time("first_scheduled_time_ns", stats.first_scheduled_ns);
        out.time("first_token_time_ns", stats.first_token_ns);
        out.time("last_token_time_ns", stats.last_token_ns);
        let (accepted, drafts) = (stats.accepted_draft_tokens, stats.draft_tokens);
        out.floats("acceptance_rate", &[1], &[accepted as f32 / drafts.max(1) as f32]);
        out.ints("total_accepted_draft_tokens", &[1], &[accepted as i32]);
        out.ints("total_draft_tokens", &[1], &[drafts as i32]);
        out.ints("num_input_tokens", &[1], &[self.prompt_len as i32]);
        out.ints("num_output_tokens", &[1], &[length]);
        let top = std::mem::take(&mut self.top);
        let top_shape = [1, (top.len() / self.top_count.max(1)) as i64, self.top_count as i64];
        out.ints("top_log_prob_ids", &top_shape, &top.iter().map(|top| top.0).collect::<Vec<_>>());
        out.floats("top_log_probs", &top_shape, &top.iter().map(|top| top.1).collect::<Vec<_>>());
        if !self.prompt_log_probs.is_empty() {
            let values = std::mem::take(&mut self.prompt_log_probs);
            out.floats("prompt_log_probs", &[1, values.len() as i64], &values);
        }
        out.strings("finish_reason", self.finish_reason);
        out.uint64("seed", self.seed);
        out.texts("text_output", &texts);
        Response { outputs: out.tensors, parameters: Vec::new() }
    }
}

impl RowText {
    fn new(plan: &Plan, item: &Item, tokenizer: &Arc<Tokenizer>) -> Self {
        let prompt = &item.request.prompt;
        let skip = plan.skip_special_tokens;
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
        let prompt_text = detokenizer.push_all(prompt);
        // The answer continues the prompt's text, so that its leading blank stays. Where the prompt's last bytes are not
        // certain yet, they would come out with the answer: then the answer is a text of its own.
        let whole = tokenizer.decode(prompt, skip);
        if whole != prompt_text {
            detokenizer = Detokenizer::new(tokenizer.clone(), skip);
        }
        let stops = item.stop_texts.clone().unwrap_or_else(|| StopStrings::new::<&str>(&[]));
        let pending = if item.echo { whole } else { String::new() };
        let include_stop = item.include_stop && !plan.drop_stop_text;
        Self { detokenizer, matcher: StopMatcher::new(stops, include_stop), pending, stopped_by: None }
    }

    /// Says whether a stop text is complete.
    pub fn push(&mut self, token: TokenId) -> bool {
        let text = self.detokenizer.push(token);
        self.append(&text)
    }

    fn append(&mut self, text: &str) -> bool {
        let chunk = self.matcher.push(text);
        self.pending.push_str(&chunk.text);
        self.stopped_by = chunk.stop;
        chunk.stop.is_some()
    }

    /// Adds what was held back, at the end of the sequence.
    pub fn finish(&mut self, stopped: bool) {
        let rest = self.detokenizer.finish();
        if !stopped && !self.append(&rest) {
            let held = self.matcher.flush();
            self.pending.push_str(&held);
        }
    }
}

fn reason_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndId | FinishReason::StopWords => "stop",
        FinishReason::Length => "length",
        FinishReason::TimedOut => "timeout",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Error => "error",
    }
}

/// Collects the wanted tensors, in the order of the calls.
pub struct Outputs<'a> {
    plan: &'a Plan,
    pub tensors: Vec<OutputTensor>,
}

impl Outputs<'_> {
    pub fn ints(&mut self, name: &'static str, shape: &[i64], values: &[i32]) {
        if self.plan.wanted.has(name) {
            let shape = self.plan.shape(shape);
            self.tensors.push(OutputTensor::int32(name, &shape, values));
        }
    }

    pub fn floats(&mut self, name: &'static str, shape: &[i64], values: &[f32]) {
        if self.plan.wanted.has(name) {
            let shape = self.plan.shape(shape);
            self.tensors.push(OutputTensor::fp32(name, &shape, values));
        }
    }

    fn time(&mut self, name: &'static str, value_ns: u64) {
        self.word64(name, DataType::Int64, value_ns);
    }

    fn uint64(&mut self, name: &'static str, value: u64) {
        self.word64(name, DataType::Uint64, value);
    }

    fn word64(&mut self, name: &'static str, dtype: DataType, value: u64) {
        if self.plan.wanted.has(name) {
            let (shape, bytes) = (self.plan.shape(&[1]), value.to_le_bytes().to_vec());
            self.tensors.push(OutputTensor { name: name.into(), dtype, shape, bytes });
        }
    }

    fn strings(&mut self, name: &'static str, value: &str) {
        if self.plan.wanted.has(name) {
            let shape = self.plan.shape(&[1]);
            self.tensors.push(OutputTensor::strings(name, &shape, &[value]));
        }
    }

    /// A text request without token outputs gets its text first: clients that read the first output expect the answer.
    fn texts(&mut self, name: &'static str, texts: &[String]) {
        if self.plan.wanted.has(name) {
            let place = if self.plan.wanted.tokens() { self.tensors.len() } else { 0 };
            let shape = self.plan.shape(&[texts.len() as i64]);
            self.tensors.insert(place, OutputTensor::strings(name, &shape, texts));
        }
    }
}
