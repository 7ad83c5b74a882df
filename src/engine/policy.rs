//! Who may start, and with how much memory set aside.

use super::config::SchedulerPolicy;
use super::forecast::Forecast;
use super::request::FinishReason;
use super::sequence::Sequence;

/// Blocks that a starting sequence is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// All that it can ever use: it will not be preempted.
    WholeLength,
    /// Those of its present tokens: it may be preempted when it grows.
    PresentTokens,
    /// Those of its present tokens, and that others are preempted when it grows: all that have this promise must fit
    /// together at their whole length, beside nobody else.
    Protection,
}

/// Who asks to start, and into what.
pub(super) struct Candidate<'a> {
    /// Counts the plans that were begun: those without work have no number of a step.
    pub plan: u64,
    pub sequence: &'a Sequence,
    /// Free blocks that it takes at once.
    pub cost_blocks: usize,
    /// Blocks that are in use or promised.
    pub used_blocks: usize,
    pub num_blocks: usize,
    pub block_size: usize,
}

/// Decides on admission; one object for each [`SchedulerPolicy`].
pub(super) trait CapacityPolicy: Send {
    /// Whether another sequence may start while these run.
    fn may_join(&self, _running: &mut dyn Iterator<Item = &Sequence>) -> bool {
        true
    }

    fn promise(&self, candidate: &Sequence) -> Promise;

    /// Whether the candidate can be expected to end without anybody having to give way. Asked when it fits now.
    fn foresees_room(&mut self, _: &Candidate<'_>, _running: &mut dyn Iterator<Item = &Sequence>) -> bool {
        true
    }

    /// The candidate that room was foreseen for last does not start now.
    fn retract(&mut self) {}

    /// A sequence has ended after so many generated tokens.
    fn observe_end(&mut self, _generated_tokens: usize, _reason: FinishReason) {}

    /// Whether a sequence may wait for another one to finish computing the blocks that both begin with.
    fn may_postpone(&self) -> bool {
        true
    }
}

pub(super) fn capacity_policy(policy: SchedulerPolicy) -> Box<dyn CapacityPolicy> {
    match policy {
        SchedulerPolicy::GuaranteedNoEvict => Box::new(GuaranteedNoEvict),
        SchedulerPolicy::Balanced => Box::new(Balanced::default()),
        SchedulerPolicy::MaxUtilization => Box::new(MaxUtilization),
        SchedulerPolicy::StaticBatch => Box::new(StaticBatch),
    }
}

struct GuaranteedNoEvict;

impl CapacityPolicy for GuaranteedNoEvict {
    fn promise(&self, _: &Sequence) -> Promise {
        Promise::WholeLength
    }
}

/// A sequence that was preempted this often is protected when it comes back: this bounds the work done twice.
pub(super) const MAX_PREEMPTIONS: usize = 3;

struct MaxUtilization;

impl CapacityPolicy for MaxUtilization {
    fn promise(&self, candidate: &Sequence) -> Promise {
        if candidate.stats.preemptions < MAX_PREEMPTIONS { Promise::PresentTokens } else { Promise::Protection }
    }
}

/// Admits as if each sequence became as long as those that ended lately; when that was wrong, as [`MaxUtilization`].
#[derive(Default)]
struct Balanced(Forecast);

impl CapacityPolicy for Balanced {
    fn promise(&self, candidate: &Sequence) -> Promise {
        MaxUtilization.promise(candidate)
    }

    fn foresees_room(&mut self, candidate: &Candidate<'_>, running: &mut dyn Iterator<Item = &Sequence>) -> bool {
        self.0.foresees_room(candidate, running)
    }

    fn retract(&mut self) {
        self.0.retract();
    }

    fn observe_end(&mut self, generated_tokens: usize, reason: FinishReason) {
        if matches!(reason, FinishReason::EndId | FinishReason::StopWords | FinishReason::Length) {
            self.0.observe(generated_tokens);
        }
    }
}

struct StaticBatch;

impl CapacityPolicy for StaticBatch {
    /// A batch takes members until the first of them generates.
    fn may_join(&self, running: &mut dyn Iterator<Item = &Sequence>) -> bool {
        Iterator::all(&mut { running }, |running| running.num_tokens() == running.prompt_len())
    }

    fn promise(&self, _: &Sequence) -> Promise {
        Promise::WholeLength
    }

    /// Waiting for a member of the batch would mean waiting for the whole batch.
    fn may_postpone(&self) -> bool {
        false
    }
}
