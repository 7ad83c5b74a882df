//! What an operator may say about scheduling. A plain record: names, defaults and parsing belong to the adapter.

use std::time::Duration;

use crate::decode::draft::NGramOptions;
use crate::error::{Error, Result};
use crate::step::ExecutorLimits;

/// Who gets KV memory. The names are TensorRT-LLM's, but for the default, which it does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulerPolicy {
    /// A request starts when the blocks of its whole possible length are free; it is never preempted.
    GuaranteedNoEvict,
    /// A request starts when it can be expected to end beside the others, judged by the output lengths of late. Needs no
    /// reservation for output that never comes; where the judgement was wrong, the most recently started is preempted.
    #[default]
    Balanced,
    /// A request starts when its present tokens fit; the most recently started one is preempted when blocks run out.
    MaxUtilization,
    /// `V1`: a batch starts together, and the next one starts when all of it has ended.
    StaticBatch,
}

/// How prompts that do not fit in one step share it. The names are TensorRT-LLM's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChunkingPolicy {
    /// Each takes what it can before the next gets anything.
    #[default]
    FirstComeFirstServed,
    /// One block for each in turn, until the step is full.
    EqualProgress,
}

/// Everything that the engine, as opposed to the executor, can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    pub policy: SchedulerPolicy,
    /// Whether a prompt may be computed over several steps. Off: it must fit in one.
    pub chunked_context: bool,
    /// How prompts share steps, where they may be computed over several.
    pub chunking: ChunkingPolicy,
    /// Most sequences that run together.
    pub max_batch_size: usize,
    /// Most tokens in one step.
    pub max_step_tokens: usize,
    /// Most requests that were accepted and have not run yet; `None`: no limit.
    pub max_queue_requests: Option<usize>,
    /// Most prompt tokens of requests that were accepted and have not run yet; `None`: no limit.
    pub max_queue_tokens: Option<usize>,
    /// Waiting for this long raises a request by one priority, so that nobody waits for ever; `None`: never.
    pub priority_ageing: Option<Duration>,
    /// How much longer a step may take because of prompt tokens that run beside generating sequences, above 1: a long
    /// prompt is then computed in smaller chunks. `None`: prompts take all that `max_step_tokens` leaves.
    pub max_step_slowdown: Option<f32>,
    /// How long before the expected end of a step the next one is launched, so that requests which come meanwhile are in
    /// it. `None`: as soon as there is room for it.
    pub launch_lead: Option<Duration>,
    /// Longest time without a completed step while there is work; then the engine is declared broken. `None`: any time.
    pub stall_timeout: Option<Duration>,
    /// Latest KV cache events that are kept for a reader; 0: none.
    pub kv_event_buffer: usize,
    /// Whether blocks are shared between requests with the same prefix.
    pub kv_reuse: bool,
    /// Longest sequence, prompt and output together.
    pub max_seq_len: usize,
    /// Longest prompt.
    pub max_input_len: usize,
    /// Widest beam search.
    pub max_beam_width: usize,
    /// Guesses that every sequence makes from its own tokens; `None`: none.
    pub ngram_drafts: Option<NGramOptions>,
}

impl EngineConfig {
    /// The largest configuration that `limits` allows: balanced, chunked, reuse on, no queue limit, ageing by
    /// one priority in 10 s, no bound on slowdown, no stall timeout, no
    /// events, no guesses.
    pub fn for_limits(limits: &ExecutorLimits) -> Self {
        Self {
            policy: SchedulerPolicy::default(),
            chunked_context: true,
            chunking: ChunkingPolicy::default(),
            max_batch_size: limits.max_step_sequences,
            max_step_tokens: limits.max_step_tokens,
            max_queue_requests: None,
            max_queue_tokens: None,
            priority_ageing: Some(Duration::from_secs(10)),
            max_step_slowdown: None,
            launch_lead: None,
            stall_timeout: None,
            kv_event_buffer: 0,
            kv_reuse: true,
            max_seq_len: limits.max_seq_len_tokens,
            max_input_len: limits.max_seq_len_tokens.saturating_sub(1),
            max_beam_width: 1,
            ngram_drafts: None,
        }
    }

    /// Checks every field against what the executor can hold.
    ///
    /// # Errors
    /// `InvalidArg` with the field, its value and the bound.
    pub fn validate(&self, limits: &ExecutorLimits) -> Result<()> {
        let block = limits.block_size_tokens;
        if !block.is_power_of_two() || limits.num_blocks == 0 || limits.pipeline_depth == 0 || limits.vocab_size == 0 {
            return Err(Error::internal(format!("the executor reports impossible limits: {limits:?}")));
        }
        within("max_batch_size", self.max_batch_size, 1, limits.max_step_sequences.min(limits.max_step_rows))?;
        within("max_step_tokens", self.max_step_tokens, 1, limits.max_step_tokens)?;
        within("max_seq_len", self.max_seq_len, 2, limits.max_seq_len_tokens)?;
        within("max_input_len", self.max_input_len, 1, self.max_seq_len)?;
        within(
            "max_batch_size (each running sequence needs a token of max_step_tokens)",
            self.max_batch_size,
            1,
            self.max_step_tokens,
        )?;
        let is_zero = |duration: Option<Duration>| duration.is_some_and(|duration| duration.is_zero());
        if is_zero(self.stall_timeout) || is_zero(self.priority_ageing) {
            return Err(Error::invalid("stall_timeout or priority_ageing is 0 s, expected more"));
        }
        if let Some(slowdown) = self.max_step_slowdown
            && !(slowdown > 1.0 && slowdown.is_finite() && self.chunked_context)
        {
            return Err(Error::invalid(format!(
                "max_step_slowdown is {slowdown}, expected more than 1, and chunked context"
            )));
        }
        if let Some(NGramOptions { max_draft_len, max_matching_ngram_size }) = self.ngram_drafts {
            within("ngram_max_draft_len", max_draft_len, 1, limits.max_seq_len_tokens)?;
            within("ngram_max_matching_size", max_matching_ngram_size, 1, limits.max_seq_len_tokens)?;
        }
        if self.chunked_context && self.max_step_tokens < block {
            return Err(Error::invalid(format!(
                "max_step_tokens is {}, but chunked context needs at least one block of {block} tokens in a step",
                self.max_step_tokens
            )));
        }
        Ok(())
    }

    /// The longest prompt that can be served: one output token must fit behind it and, without chunked context, the
    /// whole prompt in one step.
    pub fn longest_prompt(&self) -> usize {
        let one_step = if self.chunked_context { usize::MAX } else { self.max_step_tokens };
        self.max_input_len.min(self.max_seq_len - 1).min(one_step)
    }
}

fn within(name: &str, value: usize, min: usize, max: usize) -> Result<()> {
    if value < min || value > max {
        return Err(Error::invalid(format!("{name} is {value}, expected {min} to {max}")));
    }
    Ok(())
}
