//! What goes into the engine and what comes out of it.

use crate::decode::{SamplingParams, StopCriteria};
use crate::error::Error;
use crate::ids::TokenId;
use crate::step::TokenLogProb;

/// One generation request. Immutable once submitted; only valid ones reach the engine (the adapter checks fields, the
/// engine checks against its limits).
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one token, each in `0..V`.
    pub prompt: Vec<TokenId>,
    pub sampling: SamplingParams,
    pub stop: StopCriteria,
    /// Larger runs earlier; equal priorities run in order of arrival. 0 is the default.
    pub priority: i32,
    /// Monotonic time after which the request ends with [`FinishReason::TimedOut`].
    /// The clock is [`crate::engine::Engine::now_ns`].
    pub deadline_ns: Option<u64>,
    /// Requests share KV blocks only with requests of the same salt. 0 is the default.
    pub cache_salt: u64,
}

/// Where a request's tokens go. Called on the engine thread: it must not block.
pub trait RequestSink: Send {
    /// New tokens, or the end, or both. Exactly one delta carries `finish`; it is the last.
    fn delta(&mut self, delta: Delta);

    /// Whether the client went away; asked once a step while the request waits or runs.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// What one step added to a request.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    pub tokens: Vec<TokenId>,
    /// One for each token when the request asked for log-probabilities, else empty.
    pub log_probs: Vec<TokenLogProb>,
    /// So far; complete in the last delta.
    pub stats: RequestStats,
    pub finish: Option<Finish>,
}

/// The end of a request.
#[derive(Clone, Debug)]
pub struct Finish {
    pub reason: FinishReason,
    /// Present exactly when the reason is [`FinishReason::Error`].
    pub error: Option<Error>,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    EndId,
    StopWords,
    Length,
    TimedOut,
    Cancelled,
    Error,
}

/// What one request cost. Times are monotonic nanoseconds, 0 where the event did not happen.
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
}
