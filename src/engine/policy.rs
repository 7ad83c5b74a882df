//! Who may start, and with how much memory set aside.

use super::config::SchedulerPolicy;
use super::sequence::Sequence;

/// Blocks that a starting sequence is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// All that it can ever use: it will not be preempted.
    WholeLength,
    /// Those of its present tokens: it may be preempted when it grows.
    PresentTokens,
}

/// Decides on admission; one object for each [`SchedulerPolicy`].
pub(super) trait CapacityPolicy: Send {
    /// Whether another sequence may start while `running` runs.
    fn may_join(&self, _running: &Sequence) -> bool {
        true
    }

    fn promise(&self, candidate: &Sequence) -> Promise;

    /// Whether a sequence may wait for another one to finish computing the blocks that both begin with.
    fn may_postpone(&self) -> bool {
        true
    }
}

pub(super) fn capacity_policy(policy: SchedulerPolicy) -> Box<dyn CapacityPolicy> {
    match policy {
        SchedulerPolicy::GuaranteedNoEvict => Box::new(GuaranteedNoEvict),
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

/// A sequence that was preempted this often comes back with its whole length reserved: this bounds the work done twice.
pub(super) const MAX_PREEMPTIONS: usize = 3;

struct MaxUtilization;

impl CapacityPolicy for MaxUtilization {
    fn promise(&self, candidate: &Sequence) -> Promise {
        if candidate.stats.preemptions < MAX_PREEMPTIONS { Promise::PresentTokens } else { Promise::WholeLength }
    }
}

struct StaticBatch;

impl CapacityPolicy for StaticBatch {
    /// A batch takes members until the first of them generates.
    fn may_join(&self, running: &Sequence) -> bool {
        running.num_tokens() == running.prompt_len()
    }

    fn promise(&self, _: &Sequence) -> Promise {
        Promise::WholeLength
    }

    /// Waiting for a member of the batch would mean waiting for the whole batch.
    fn may_postpone(&self) -> bool {
        false
    }
}
