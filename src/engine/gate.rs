//! What stands between a caller and the engine: limits that can be checked without asking the engine thread.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::config::EngineConfig;
use super::request::Request;
use crate::decode::SamplingParams;
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::step::{ExecutorLimits, PromptTable};

/// What a request counts in the queue.
#[derive(Clone, Copy, Default)]
pub(super) struct Charge {
    sequences: usize,
    tokens: usize,
}

impl Charge {
    pub fn of(request: &Request) -> Self {
        Self { sequences: request.num_sequences, tokens: request.prompt.len() }
    }
}

impl std::ops::Add for Charge {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { sequences: self.sequences + other.sequences, tokens: self.tokens + other.tokens }
    }
}

/// Admits requests: all of a call or none of them.
pub(super) struct Gate {
    config: EngineConfig,
    limits: ExecutorLimits,
    next_id: AtomicU64,
    queued: AtomicUsize,
    queued_tokens: AtomicUsize,
    closed: Mutex<Option<Error>>,
    failure: Mutex<Option<Error>>,
}

impl Gate {
    pub fn new(config: EngineConfig, limits: ExecutorLimits) -> Self {
        Self {
            config,
            limits,
            next_id: AtomicU64::new(1),
            queued: AtomicUsize::new(0),
            queued_tokens: AtomicUsize::new(0),
            closed: Mutex::new(None),
            failure: Mutex::new(None),
        }
    }

    /// Ids for requests that the engine will take, in order. Each is charged to the queue until [`Gate::leave_queue`].
    pub fn admit<'a>(&self, requests: impl ExactSizeIterator<Item = &'a Request> + Clone) -> Result<Vec<RequestId>> {
        let count = requests.len();
        let sum = |charge: Charge, request| charge + Charge::of(request);
        let charge = requests.clone().fold(Charge::default(), sum);
        let first = self.next_id.fetch_add(count as u64, Ordering::Relaxed);
        let ids: Vec<_> = (first..first + count as u64).map(RequestId).collect();
        for (id, request) in ids.iter().zip(requests) {
            check_shape(request)?;
            self.check(request).map_err(|error| {
                let reason = format!("Encountered an error when fetching new request: {}", error.message());
                Error::new(error.kind(), failed_request(*id, &reason))
            })?;
        }
        let closed = self.closed.lock();
        if let Some(error) = &*closed {
            return Err(error.clone());
        }
        self.enter_queue(charge)?;
        Ok(ids)
    }

    /// An id that no request has.
    pub fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Refuses everything from now on. The first reason stays.
    pub fn close(&self, reason: Error) {
        self.closed.lock().get_or_insert(reason);
    }

    /// Refuses everything because the engine is broken.
    pub fn fail(&self, failure: Error) {
        self.failure.lock().get_or_insert(failure.clone());
        self.close(failure);
    }

    /// `Ok`, or why the engine is broken.
    pub fn health(&self) -> Result<()> {
        self.failure.lock().clone().map_or(Ok(()), Err)
    }

    /// A queued request runs, or ended without running.
    pub fn leave_queue(&self, charge: Charge) {
        self.queued.fetch_sub(charge.sequences, Ordering::Relaxed);
        self.queued_tokens.fetch_sub(charge.tokens, Ordering::Relaxed);
    }

    fn enter_queue(&self, charge: Charge) -> Result<()> {
        let refused = |limit: usize, unit: &str| {
            Error::unavailable(format!("Maximum queue size of {limit}{unit} has been reached, please try again later"))
        };
        let limit = self.config.max_queue_requests.unwrap_or(usize::MAX);
        enter(&self.queued, charge.sequences, limit).map_err(|_| refused(limit, ""))?;
        let limit = self.config.max_queue_tokens.unwrap_or(usize::MAX);
        enter(&self.queued_tokens, charge.tokens, limit).map(|_| ()).map_err(|_| {
            self.queued.fetch_sub(charge.sequences, Ordering::Relaxed);
            refused(limit, " tokens")
        })
    }

    /// Whether this engine can run the request.
    fn check(&self, request: &Request) -> Result<()> {
        let (prompt, vocab) = (request.prompt.len(), self.limits.vocab_size);
        let longest = self.config.longest_prompt();
        if prompt > longest {
            return Err(Error::invalid(format!("Prompt length ({prompt}) exceeds maximum input length ({longest})")));
        }
        let below = |end: usize| move |token: &i32| usize::try_from(*token).is_ok_and(|token| token < end);
        let in_vocab = below(vocab);
        let known = vocab + request.prompt_table.as_ref().map_or(0, PromptTable::rows);
        if let Some(token) = request.prompt.iter().find(|token| !below(known)(token)) {
            return Err(Error::invalid(format!(
                "prompt token {token} is outside the vocabulary, expected 0 to {}",
                known - 1
            )));
        }
        if request.outputs.prompt_log_probs && !request.prompt.iter().all(in_vocab) {
            return Err(Error::invalid("the log-probabilities of a prompt with tokens of a prompt table do not exist"));
        }
        self.check_beam(request)?;
        if let Some(token) = request.draft.iter().find(|&token| !in_vocab(token)) {
            return Err(Error::invalid(format!(
                "draft token {token} is outside the vocabulary, expected 0 to {}",
                vocab - 1
            )));
        }
        if let Some(token) = request.stop.end_ids.iter().find(|&token| !in_vocab(token)) {
            return Err(Error::invalid(format!(
                "end_id {token} is outside the vocabulary, expected 0 to {}",
                vocab - 1
            )));
        }
        self.check_sequences(request)?;
        self.check_fits(prompt, request.stop.max_tokens)
    }

    fn check_sequences(&self, request: &Request) -> Result<()> {
        let (count, max) = (request.num_sequences, self.config.max_batch_size);
        if count == 0 || count > max {
            return Err(Error::invalid(format!("the number of return sequences is {count}, expected 1 to {max}")));
        }
        Ok(())
    }

    fn check_beam(&self, request: &Request) -> Result<()> {
        let Some(beam) = &request.beam else { return Ok(()) };
        let most = self.config.max_beam_width;
        if beam.width < 1 || beam.width > most {
            return Err(Error::invalid(format!(
                "beam_width is {}, expected 1 to max_beam_width, which is {most}",
                beam.width
            )));
        }
        if beam.num_return < 1 || beam.num_return > beam.width {
            return Err(Error::invalid(format!(
                "num_return_sequences is {}, expected 1 to the beam width, which is {}",
                beam.num_return, beam.width
            )));
        }
        if let Some(width) = beam.widths.iter().find(|width| !(1..=beam.width).contains(*width)) {
            return Err(Error::invalid(format!(
                "beam_width_array has {width}, expected 1 to beam_width, which is {}",
                beam.width
            )));
        }
        let SamplingParams { guide, top_log_probs, .. } = &request.sampling;
        let unsupported = [
            (guide.is_some(), "guided_decoding_guide_type is set: guided decoding does not support beam search"),
            (*top_log_probs > 0, "num_top_log_probs is set, which beam search does not support"),
            (!request.draft.is_empty(), "draft_input_ids are given, which beam search does not verify"),
            (request.num_sequences > 1, "several sequences are sampled, which a beam search is not"),
        ];
        match unsupported.iter().find(|(is_asked, _)| *is_asked) {
            Some((_, what)) => Err(Error::invalid(format!("beam_width is {} and {what}", beam.width))),
            None => Ok(()),
        }
    }

    fn check_fits(&self, prompt: usize, max_tokens: usize) -> Result<()> {
        let (block, pool) = (self.limits.block_size_tokens, self.limits.num_blocks);
        let output = max_tokens.min(self.config.max_seq_len - prompt);
        let needed = kv_slots(prompt, output).div_ceil(block);
        if needed > pool {
            return Err(Error::invalid(format!(
                "the request can never run: {prompt} prompt and {output} output tokens need {needed} KV blocks of {block} tokens, but there are {pool}"
            )));
        }
        Ok(())
    }
}

/// Whether the request is one at all, whatever the engine.
fn check_shape(request: &Request) -> Result<()> {
    if request.prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty, expected at least 1 token"));
    }
    if request.stop.max_tokens == 0 {
        return Err(Error::invalid("the number of output tokens is 0, expected at least 1"));
    }
    if request.stop.stop_words.iter().any(Vec::is_empty) {
        return Err(Error::invalid("a stop word is empty, expected at least 1 token"));
    }
    if request.tenant.weight == 0 {
        return Err(Error::invalid("the weight of the tenant is 0, expected at least 1"));
    }
    check_cache_fields(request)
}

/// Adds to a count unless that would exceed the limit.
fn enter(count: &AtomicUsize, more: usize, limit: usize) -> std::result::Result<usize, usize> {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        count.checked_add(more).filter(|&total| total <= limit)
    })
}

fn check_cache_fields(request: &Request) -> Result<()> {
    let (extra_ids, prompt) = (request.extra_ids.len(), request.prompt.len());
    if extra_ids != 0 && extra_ids != prompt {
        return Err(Error::invalid(format!(
            "there are {extra_ids} extra ids, expected one for each of the {prompt} prompt tokens"
        )));
    }
    let Some(retention) = &request.retention else { return Ok(()) };
    let ranges = retention.ranges.iter();
    if let Some(range) = ranges.clone().find(|range| range.end.is_some_and(|end| end < range.start)) {
        let (start, end) = (range.start, range.end.unwrap_or_default());
        return Err(Error::invalid(format!("retention range {start} to {end} ends before it starts")));
    }
    match ranges.map(|range| range.keep).chain([retention.decode]).find(|keep| keep.priority > 100) {
        Some(keep) => Err(Error::invalid(format!("retention priority is {}, expected 0 to 100", keep.priority))),
        None => Ok(()),
    }
}

/// Slots that a sequence can come to use: the last token is returned, not computed.
pub(super) fn kv_slots(prompt: usize, max_tokens: usize) -> usize {
    prompt + max_tokens - 1
}

/// The words in which a runtime error of one request is reported.
pub(super) fn failed_request(id: RequestId, reason: &str) -> String {
    format!("Executor failed process requestId {id} due to the following error: {reason}")
}
