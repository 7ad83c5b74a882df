//! What stands between a caller and the engine: limits that can be checked without asking the engine thread.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::config::EngineConfig;
use super::request::Request;
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::step::ExecutorLimits;

/// Admits requests: all of a call or none of them.
pub(super) struct Gate {
    config: EngineConfig,
    limits: ExecutorLimits,
    next_id: AtomicU64,
    queued: AtomicUsize,
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
            closed: Mutex::new(None),
            failure: Mutex::new(None),
        }
    }

    /// Ids for requests that the engine will take, in order. Each is charged to the queue until [`Gate::leave_queue`].
    pub fn admit<'a>(&self, requests: impl ExactSizeIterator<Item = &'a Request>) -> Result<Vec<RequestId>> {
        let count = requests.len();
        let first = self.next_id.fetch_add(count as u64, Ordering::Relaxed);
        let ids: Vec<_> = (first..first + count as u64).map(RequestId).collect();
        for (id, request) in ids.iter().zip(requests) {
            self.check(*id, request)?;
        }
        let closed = self.closed.lock();
        if let Some(error) = &*closed {
            return Err(error.clone());
        }
        self.enter_queue(count)?;
        Ok(ids)
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
    pub fn leave_queue(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    fn enter_queue(&self, count: usize) -> Result<()> {
        let limit = self.config.max_queue_requests.unwrap_or(usize::MAX);
        let taken = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |queued| {
            queued.checked_add(count).filter(|&total| total <= limit)
        });
        taken.map(|_| ()).map_err(|_| {
            Error::unavailable(format!("Maximum queue size of {limit} has been reached, please try again later"))
        })
    }

    fn check(&self, id: RequestId, request: &Request) -> Result<()> {
        let (prompt, vocab) = (request.prompt.len(), self.limits.vocab_size);
        if prompt == 0 {
            return Err(Error::invalid("the prompt is empty, expected at least 1 token"));
        }
        if request.stop.max_tokens == 0 {
            return Err(Error::invalid("the number of output tokens is 0, expected at least 1"));
        }
        let longest = self.config.longest_prompt();
        if prompt > longest {
            let reason = format!("Prompt length ({prompt}) exceeds maximum input length ({longest})");
            return Err(Error::invalid(failed_request(id, &reason)));
        }
        let in_vocab = |token: &i32| usize::try_from(*token).is_ok_and(|token| token < vocab);
        if let Some(token) = request.prompt.iter().find(|&token| !in_vocab(token)) {
            return Err(Error::invalid(format!(
                "prompt token {token} is outside the vocabulary, expected 0 to {}",
                vocab - 1
            )));
        }
        if let Some(token) = request.stop.end_ids.iter().find(|&token| !in_vocab(token)) {
            let reason = format!("end id {token} is outside the vocabulary, expected 0 to {}", vocab - 1);
            return Err(Error::invalid(failed_request(id, &reason)));
        }
        if request.stop.stop_words.iter().any(Vec::is_empty) {
            return Err(Error::invalid("a stop word is empty, expected at least 1 token"));
        }
        self.check_fits(prompt, request.stop.max_tokens)
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

/// Slots that a sequence can come to use: the last token is returned, not computed.
pub(super) fn kv_slots(prompt: usize, max_tokens: usize) -> usize {
    prompt + max_tokens - 1
}

/// The words in which a runtime error of one request is reported.
pub(super) fn failed_request(id: RequestId, reason: &str) -> String {
    format!("Executor failed process requestId {id} due to the following error: {reason}")
}
