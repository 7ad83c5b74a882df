//! Beam searches on top of the scheduler. Every hypothesis is computed by a sequence of its own, for one token; its KV
//! blocks reach its continuations through the prefix cache: full ones are shared, in the last, partly filled one a
//! continuation goes on, the others in copies. So a search holds no memory between two rounds, needs nothing of the
//! executor, and is chunked, preempted and cancelled like everything else; what is evicted between rounds is computed
//! again.
//!
//! What may follow a hypothesis are the most likely tokens of its row behind all passes, which the executor finds as it does
//! for requests that want them told; ranking those few is all that is done here.

use super::request::{Delta, DeltaLogits, Finish, FinishReason, OutputOptions, Request, RequestStats};
use crate::decode::beam::{BeamParams, BeamSearch, Hypothesis, Outlook};
use crate::decode::sample::SampleFault;
use crate::decode::{SamplingParams, StopCriteria, StopVerdict};
use crate::error::{Error, ErrorKind};
use crate::ids::RequestId;
use std::sync::Arc;

/// What is computed for the next token of a search.
pub(super) struct Round {
    /// Requests of single sequences, each with the earlier one of the round that continues the same hypothesis.
    pub members: Vec<(Request, Option<usize>)>,
    pub search: RequestId,
    /// Tokens behind the prompt. 0: the prompt is computed.
    pub generated: usize,
}

/// One search and the requests of its rounds.
pub(super) struct BeamGroup {
    id: RequestId,
    search: BeamSearch,
    /// The request of every round but the first.
    template: Request,
    /// What the client wants of the prompt, which the first round computes.
    outputs: OutputOptions,
    /// Of the present round's sequences, as they come.
    outlooks: Vec<Outlook>,
    /// Of the prompt, until they are delivered.
    logits: DeltaLogits,
    stats: RequestStats,
}

impl BeamGroup {
    /// `max_tokens`: what the longest sequence leaves.
    pub fn new(id: RequestId, request: Request, params: BeamParams, max_tokens: usize, arrival_ns: u64) -> Self {
        let stop = StopCriteria { max_tokens, ..request.stop.clone() };
        let search = BeamSearch::new(params, stop, request.prompt.clone());
        let stats = RequestStats { arrival_ns, prompt_tokens: request.prompt.len(), ..RequestStats::default() };
        let (outputs, outlooks) = (request.outputs, Vec::new());
        let generation_logits = request.outputs.generation_logits;
        let template = Request {
            sampling: ranked(request.sampling),
            stop: StopCriteria { max_tokens: 1, ..StopCriteria::default() },
            outputs: OutputOptions { generation_logits, ..OutputOptions::default() },
            ..request
        };
        Self { id, search, template, outputs, outlooks, logits: DeltaLogits::default(), stats }
    }

    pub fn arrival_ns(&self) -> u64 {
        self.stats.arrival_ns
    }

    /// Whether the prompt is being computed.
    pub fn is_first_round(&self) -> bool {
        self.search.live().iter().all(|hypothesis| hypothesis.tokens.is_empty())
    }

    /// Whether each round is reported.
    pub fn streams(&self) -> bool {
        self.search.params().stream
    }

    /// What is computed next.
    pub fn round(&mut self) -> Round {
        self.template.sampling.top_log_probs = self.search.num_candidates() as u32;
        let live = self.search.live();
        self.outlooks = vec![Outlook::default(); live.len()];
        let outputs = if self.is_first_round() { self.outputs } else { self.template.outputs };
        let generated = live.first().map_or(0, |hypothesis| hypothesis.tokens.len());
        let member = |(at, hypothesis): (usize, &Hypothesis)| {
            let prompt = [self.search.prompt(), &hypothesis.tokens].concat();
            let mut extra_ids = self.template.extra_ids.clone();
            if !extra_ids.is_empty() {
                extra_ids.resize(prompt.len(), 0);
            }
            let leader = live[..at].iter().position(|other| other.parent == hypothesis.parent);
            (Request { prompt, extra_ids, outputs, ..self.template.clone() }, leader)
        };
        Round { members: live.iter().enumerate().map(member).collect(), search: self.id, generated }
    }

    /// Takes what a sequence of the round has computed.
    pub fn take(&mut self, delta: &mut Delta) {
        let outlook = &mut self.outlooks[delta.sequence_index];
        outlook.top.extend(delta.top.pop().unwrap_or_default());
        if let Some(logits) = &mut delta.logits {
            self.logits.context.append(&mut logits.context);
            self.logits.prompt_log_probs.append(&mut logits.prompt_log_probs);
            outlook.logits = logits.generation.pop().map(Arc::from);
        }
        let stats = &delta.stats;
        self.stats.preemptions += stats.preemptions;
        if self.stats.first_token_ns == 0 {
            self.stats =
                RequestStats { generated_tokens: 0, last_token_ns: 0, preemptions: self.stats.preemptions, ..*stats };
        }
    }

    /// Whether a sequence of the round that failed so ends the search. Where the passes leave no token to a hypothesis, which is
    /// all that is wrong about what the client asked for, others may go on.
    pub fn is_fatal(&self, error: &Error) -> bool {
        error.kind() != ErrorKind::InvalidArg
    }

    /// Goes on by a token, once all of a round are there. Whether there is another round.
    pub fn advance(&mut self) -> Result<bool, SampleFault> {
        self.search.advance(&self.outlooks)
    }

    /// The best hypotheses: those so far, or the answer when the search is over.
    pub fn delta(&mut self, finish: Option<Finish>, now_ns: u64) -> Delta {
        let beams = self.search.best();
        self.stats.generated_tokens = beams.iter().map(|beam| beam.tokens.len()).sum();
        if finish.is_some() {
            self.stats.last_token_ns = now_ns;
        }
        let logits = std::mem::take(&mut self.logits);
        let logits = (logits != DeltaLogits::default()).then(|| Box::new(logits));
        Delta { beams: Some(beams.into()), logits, stats: self.stats, finish, ..Delta::default() }
    }

    /// Why the best hypothesis ends.
    pub fn reason(&self) -> FinishReason {
        match self.search.best().first().and_then(|best| best.verdict) {
            Some(StopVerdict::EndId) => FinishReason::EndId,
            Some(StopVerdict::StopWord) => FinishReason::StopWords,
            Some(StopVerdict::Length | StopVerdict::Continue) | None => FinishReason::Length,
        }
    }
}

/// The passes of a request on rows whose most likely tokens are wanted: nothing is drawn.
fn ranked(sampling: SamplingParams) -> SamplingParams {
    SamplingParams { top_k: 1, top_p: None, min_p: 0.0, typical_p: 1.0, log_probs: false, ..sampling }
}
