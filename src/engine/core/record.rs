//! What is told of the engine: numbers after every step, and of losses when it is quiet.

use super::super::scheduler::PlanStats;
use super::super::stats::{EngineStats, IterationStats, KvStats};
use super::EngineCore;
use crate::ids::RequestId;

/// Least time between two checks of all invariants when the engine goes idle.
pub(super) const AUDIT_INTERVAL_NS: u64 = 1_000_000_000;

/// Notes that are kept to explain a leak.
pub(super) const HISTORY: usize = 64;

/// What happened to a request: the story behind a leak.
#[derive(Debug)]
#[expect(dead_code, reason = "read through Debug")]
pub(super) struct Note {
    iteration: u64,
    request: RequestId,
    what: &'static str,
    used_blocks: usize,
}

impl EngineCore {
    /// Requests may end without a step: then the last record is brought up to date, before all is quiet. And a quiet
    /// engine that holds anything has lost it.
    pub(super) fn settle(&mut self) {
        if !self.is_idle() {
            return;
        }
        if self.now_ns >= self.next_audit_ns {
            self.next_audit_ns = self.now_ns + AUDIT_INTERVAL_NS;
            self.audit();
        }
        if self.unpublished {
            self.publish(PlanStats::default());
        }
    }

    fn audit(&mut self) {
        let Err(problem) = self.check() else { return };
        if self.totals.failed_checks == 0 {
            tracing::error!(problem, history = ?self.history, "an idle engine is not in order: this is a bug");
        }
        self.totals.failed_checks += 1;
        self.unpublished = true;
    }

    pub(super) fn note(&mut self, request: RequestId, what: &'static str) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        let kv = self.scheduler.kv();
        self.history.push_back(Note {
            iteration: self.iteration,
            request,
            what,
            used_blocks: kv.num_blocks() - kv.free(),
        });
    }

    pub(super) fn publish(&mut self, plan: PlanStats) {
        self.totals.preemptions = self.scheduler.preemptions();
        let last_iteration = self.iteration_stats(plan);
        let steps_in_flight = self.in_flight.len();
        *self.board.lock() =
            EngineStats { last_iteration, totals: self.totals, steps_in_flight, ..EngineStats::default() };
        self.unpublished = false;
        if let Some(hook) = &mut self.on_iteration {
            hook(&last_iteration);
        }
    }

    fn iteration_stats(&self, plan: PlanStats) -> IterationStats {
        let (kv, active) = (self.scheduler.kv(), self.scheduler.active());
        IterationStats {
            iteration: self.iteration,
            active_requests: active,
            max_requests: self.max_batch_size,
            scheduled_requests: plan.scheduled,
            context_requests: plan.context,
            generation_requests: plan.generation,
            waiting_requests: active.saturating_sub(plan.scheduled),
            paused_requests: self.scheduler.paused(),
            total_context_tokens: plan.context_tokens,
            total_generation_tokens: plan.generation_tokens,
            empty_generation_slots: self.max_batch_size - plan.scheduled,
            micro_batch_id: 0,
            kv: KvStats {
                max_blocks: kv.num_blocks(),
                free_blocks: kv.free(),
                used_blocks: kv.num_blocks() - kv.free(),
                tokens_per_block: kv.block_size(),
                reused_blocks: kv.reused_blocks(),
                cached_blocks: kv.cached_blocks(),
                evicted_blocks: kv.evicted_blocks(),
            },
            windows: kv.window_stats(),
            tiers: kv.tier_stats(),
            memory: self.executor.memory(),
        }
    }
}
