//! What goes into the engine and what comes out of it.

use crate::decode::beam::{BeamParams, Hypothesis};
use crate::decode::{SamplingParams, StopCriteria};
use crate::error::Error;
use crate::ids::TokenId;
use crate::step::{PromptTable, TokenLogProb};
use std::sync::Arc;

/// One generation request. Immutable once submitted; only valid ones reach the engine (the adapter checks fields, the
/// engine checks against its limits).
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one token, each in `0..V`, or behind it where `prompt_table` has a row for it.
    pub prompt: Vec<TokenId>,
    pub prompt_table: Option<PromptTable>,
    pub sampling: SamplingParams,
    pub stop: StopCriteria,
    /// Larger runs earlier; equal priorities run in order of arrival. 0 is the default.
    pub priority: i32,
    /// Monotonic time after which the request ends with [`FinishReason::TimedOut`].
    /// The clock is [`crate::engine::Engine::now_ns`].
    pub deadline_ns: Option<u64>,
    /// Monotonic time after which the request is refused if it has not started.
    pub start_by_ns: Option<u64>,
    /// Requests share KV blocks only with requests of the same salt. 0 is the default.
    pub cache_salt: u64,
    /// Said by the engine: prompt and output together stay within [`crate::step::Executor::rotation_border`].
    pub is_short: bool,
    /// Adapter that computes the request; KV blocks are shared only within one.
    pub lora_id: Option<u64>,
    /// Empty, or one value for each prompt token: what tells equal tokens with different embeddings apart, 0 for others.
    pub extra_ids: Vec<u64>,
    /// How long its KV blocks are kept; `None`: as the blocks of others.
    pub retention: Option<Retention>,
    /// Independent answers to the prompt, at least 1: sequence `k` is sampled with the seed plus `k`.
    pub num_sequences: usize,
    /// On whose behalf; requests that name nobody are one tenant of weight 1.
    pub tenant: Tenant,
    /// What is reported besides tokens.
    pub outputs: OutputOptions,
    /// Tokens that the client expects behind the prompt: they are verified together instead of one a step, and change
    /// nothing but the speed.
    pub draft: Vec<TokenId>,
    /// Search for the likeliest answers instead of sampling one: [`Delta::beams`].
    pub beam: Option<BeamParams>,
}

/// What a request is told besides its tokens; nothing unless it asks. [`SamplingParams::log_probs`] is the option for
/// the log-probabilities of sampled tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputOptions {
    /// [`DeltaLogits::context`]: the prompt is then computed by each sequence for itself, whatever is cached.
    pub context_logits: bool,
    /// [`DeltaLogits::generation`].
    pub generation_logits: bool,
    /// [`DeltaLogits::prompt_log_probs`]: as for `context_logits`, nothing of the prompt is taken from the cache.
    pub prompt_log_probs: bool,
}

/// Tenants share the engine by weight when it is busy; priorities order the requests of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub id: u64,
    /// At least 1: a tenant of weight 2 gets twice the tokens of a tenant of weight 1.
    pub weight: u32,
}

impl Default for Tenant {
    fn default() -> Self {
        Self { id: 0, weight: 1 }
    }
}

impl Default for Request {
    /// No prompt and no tokens to generate: both must be given.
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            prompt_table: None,
            sampling: SamplingParams::default(),
            stop: StopCriteria::default(),
            priority: 0,
            deadline_ns: None,
            start_by_ns: None,
            cache_salt: 0,
            is_short: false,
            lora_id: None,
            extra_ids: Vec::new(),
            retention: None,
            num_sequences: 1,
            tenant: Tenant::default(),
            outputs: OutputOptions::default(),
            draft: Vec::new(),
            beam: None,
        }
    }
}

/// Retention priority of blocks that nobody said anything about.
pub const DEFAULT_RETENTION_PRIORITY: u8 = 35;

/// How eagerly a KV block is kept once nobody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// 0 to 100: blocks of lower priority are given up first.
    pub priority: u8,
    /// Counted from when nobody uses the block any more; then the priority becomes the default. `None`: for ever.
    pub duration_ns: Option<u64>,
}

impl Default for Keep {
    fn default() -> Self {
        Self { priority: DEFAULT_RETENTION_PRIORITY, duration_ns: None }
    }
}

/// How the KV blocks of a request are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// For blocks whose first token is a prompt token of the range; the first range that fits counts.
    pub ranges: Vec<RetentionRange>,
    /// For blocks that begin with a generated token.
    pub decode: Keep,
}

/// Prompt tokens `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionRange {
    pub start: usize,
    /// `None`: to the end of the prompt.
    pub end: Option<usize>,
    pub keep: Keep,
}

impl Retention {
    /// For the block that begins with token `at` of a sequence with `prompt_len` prompt tokens.
    pub fn keep(&self, at: usize, prompt_len: usize) -> Keep {
        if at >= prompt_len {
            return self.decode;
        }
        let fits = |range: &&RetentionRange| range.start <= at && range.end.is_none_or(|end| at < end);
        self.ranges.iter().find(fits).map_or(Keep::default(), |range| range.keep)
    }
}

/// Where a request's tokens go. Called on the engine thread (or on its watchdog's): it must not block.
pub trait RequestSink: Send {
    /// New tokens, or the end, or both. For each sequence exactly one delta carries `finish`; it is its last.
    fn delta(&mut self, delta: Delta);

    /// Whether the client went away; asked once a step while the request waits or runs.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Whether one of several sequences is wanted no more; asked once a step, where a request has several.
    fn is_stopped(&self, _sequence_index: usize) -> bool {
        false
    }
}

/// What one step added to a request.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Which of the request's sequences, from 0.
    pub sequence_index: usize,
    pub tokens: Vec<TokenId>,
    /// One for each token when the request asked for log-probabilities, else empty.
    pub log_probs: Vec<TokenLogProb>,
    /// As [`crate::step::SampledRow::top`], for each token.
    pub top: Vec<Vec<(TokenId, f32)>>,
    /// All hypotheses of a beam search, best first: they replace those of the delta before. In the last delta, and in
    /// every one of a search that streams.
    pub beams: Option<Arc<[Hypothesis]>>,
    /// What [`OutputOptions`] ask for, when there is some of it.
    pub logits: Option<Box<DeltaLogits>>,
    /// So far; complete in the last delta.
    pub stats: RequestStats,
    pub finish: Option<Finish>,
}

/// Logits that one step has computed, before any pass changed them; V vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeltaLogits {
    /// `[V]` for further prompt positions in order: P rows in all, before or with the first token.
    pub context: Vec<Vec<f32>>,
    /// `[V]` for each token of the delta: what it was chosen from.
    pub generation: Vec<Vec<f32>>,
    /// Natural log-probabilities of further prompt tokens in order: P - 1 in all, since nothing precedes the first one.
    pub prompt_log_probs: Vec<f32>,
}

/// The end of a sequence.
#[derive(Clone, Debug)]
pub struct Finish {
    pub reason: FinishReason,
    /// Present exactly when the reason is [`FinishReason::Error`].
    pub error: Option<Error>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    EndId,
    StopWords,
    Length,
    TimedOut,
    Cancelled,
    Error,
}

/// What one sequence cost. Times are monotonic nanoseconds, 0 where the event did not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestStats {
    pub arrival_ns: u64,
    pub first_scheduled_ns: u64,
    pub first_token_ns: u64,
    /// 0 until the last delta.
    pub last_token_ns: u64,
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    /// Prompt tokens that came from the prefix cache at the first admission.
    pub cached_tokens: usize,
    /// Blocks of the prompt that were found in the prefix cache, copied ones included.
    pub reused_blocks: usize,
    /// Blocks allocated for the prompt at its first admission.
    pub allocated_blocks: usize,
    /// Of the allocated blocks, those that took no reusable content away.
    pub new_blocks: usize,
    pub preemptions: usize,
    /// Tokens that were guessed and verified.
    pub draft_tokens: usize,
    /// Of them, those that became output.
    pub accepted_draft_tokens: usize,
}
