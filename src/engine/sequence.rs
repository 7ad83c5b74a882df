//! One sequence: its tokens, how many of them are computed, and the blocks that hold them.

use super::request::{Finish, FinishReason, Request, RequestStats};
use crate::decode::StopVerdict;
use crate::ids::{BlockId, SeqId, TokenId};
use crate::step::{SampledRow, TokenLogProb};

/// What one step did to one sequence.
pub(super) struct SeqDelta {
    pub seq: SeqId,
    pub tokens: Vec<TokenId>,
    pub log_probs: Vec<TokenLogProb>,
    pub stats: RequestStats,
    pub finish: Option<Finish>,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Not started, or preempted.
    Waiting,
    Running,
}

/// A sequence catches `num_computed` up with `num_tokens()`: prefill, decode, recomputation are this one rule.
pub(super) struct Sequence {
    pub id: SeqId,
    pub request: Request,
    pub status: Status,
    /// Prompt and generated tokens that the engine has read.
    pub tokens: Vec<TokenId>,
    /// Tokens sampled by steps that are in flight; the runner knows them.
    pub in_flight_tokens: usize,
    /// Slots written by all launched steps.
    pub num_computed: usize,
    /// Slots written by collected steps.
    pub num_landed: usize,
    pub table: Vec<BlockId>,
    /// Entries of the table that the runner has.
    pub sent_blocks: usize,
    /// Leading blocks of the table that are in the prefix cache.
    pub cached_blocks: usize,
    /// False once a block's content turned out to be cached in another block.
    pub cacheable: bool,
    /// Blocks that are set aside for the sequence, those in the table included.
    pub reserved_blocks: usize,
    /// Counts preemptions: tells the chunks of an earlier life from those of the present one.
    pub life: usize,
    /// Whether the runner knows the sequence.
    pub introduced: bool,
    pub stats: RequestStats,
}

impl Sequence {
    pub fn new(id: SeqId, request: Request, arrival_ns: u64) -> Self {
        let stats = RequestStats { arrival_ns, prompt_tokens: request.prompt.len(), ..RequestStats::default() };
        Self {
            id,
            tokens: request.prompt.clone(),
            request,
            status: Status::Waiting,
            in_flight_tokens: 0,
            num_computed: 0,
            num_landed: 0,
            table: Vec::new(),
            sent_blocks: 0,
            cached_blocks: 0,
            cacheable: true,
            reserved_blocks: 0,
            life: 0,
            introduced: false,
            stats,
        }
    }

    pub fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + self.in_flight_tokens
    }

    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len()..]
    }

    /// Tokens to compute. The last token that was asked for is returned, not computed.
    pub fn remaining(&self) -> usize {
        if self.num_tokens() - self.prompt_len() >= self.request.stop.max_tokens {
            return 0;
        }
        self.num_tokens() - self.num_computed
    }

    /// Appends the tokens of a row, up to the one that ends the self.
    pub fn accept(&mut self, row: &SampledRow, now_ns: u64) -> SeqDelta {
        self.in_flight_tokens -= 1;
        let mut delta = SeqDelta {
            seq: self.id,
            tokens: Vec::with_capacity(row.tokens.len()),
            log_probs: Vec::new(),
            stats: self.stats,
            finish: None,
        };
        for token in &row.tokens {
            let verdict = self.request.stop.judge(self.generated(), token.id);
            let reason = match verdict {
                StopVerdict::Continue => None,
                StopVerdict::EndId => Some(FinishReason::EndId),
                StopVerdict::StopWord => Some(FinishReason::StopWords),
                StopVerdict::Length => Some(FinishReason::Length),
            };
            delta.finish = reason.map(|reason| Finish { reason, error: None });
            if self.stats.first_token_ns == 0 {
                self.stats.first_token_ns = now_ns;
            }
            if verdict != StopVerdict::EndId {
                self.tokens.push(token.id);
                self.stats.generated_tokens += 1;
                delta.tokens.push(token.id);
                delta.log_probs.extend(token.log_prob);
            }
            if delta.finish.is_some() {
                self.stats.last_token_ns = now_ns;
                break;
            }
        }
        if let Some(error) = &row.error {
            delta.finish = Some(Finish { reason: FinishReason::Error, error: Some(error.clone()) });
        }
        delta.stats = self.stats;
        delta
    }
}
