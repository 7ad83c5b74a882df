//! Numbers that the engine publishes.

use crate::step::ExecutorMemory;

/// KV blocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvStats {
    pub max_blocks: usize,
    /// Blocks that no sequence uses; some of them hold reusable content.
    pub free_blocks: usize,
    /// Blocks in some sequence's table.
    pub used_blocks: usize,
    pub tokens_per_block: usize,
    /// Blocks found in the prefix cache since start.
    pub reused_blocks: u64,
    /// Blocks with reusable content, used ones included.
    pub cached_blocks: usize,
    /// Blocks whose reusable content was given up for other content, since start.
    pub evicted_blocks: u64,
}

/// Pools of windows that statistics speak of: the first ones.
pub const MAX_WINDOW_STATS: usize = 8;

/// The blocks of layers that see a window of the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowStats {
    /// 0: there is no such pool.
    pub window_tokens: usize,
    pub max_blocks: usize,
    /// Blocks that sequences use.
    pub used_blocks: usize,
}

/// The tiers behind the device's blocks: sizes now, traffic since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Blocks of the host tier.
    pub host_blocks: usize,
    /// Blocks of the host tier with reusable content.
    pub host_cached_blocks: usize,
    /// Blocks moved to the host instead of being given up.
    pub offloaded_blocks: u64,
    /// Blocks brought back to the device.
    pub onboarded_blocks: u64,
    /// Blocks of the host tier whose content was given up for other content.
    pub host_evicted_blocks: u64,
    /// Transfers that failed; what they carried was computed again.
    pub failed_transfers: u64,
    /// Blocks that the tier on disk has room for.
    pub disk_blocks: usize,
    /// Blocks on disk.
    pub disk_cached_blocks: usize,
    /// Blocks written to disk.
    pub stored_blocks: u64,
    /// Blocks read from disk.
    pub loaded_blocks: u64,
}

impl KvStats {
    /// `used / max`, 0 without blocks.
    pub fn used_fraction(&self) -> f64 {
        if self.max_blocks == 0 { 0.0 } else { self.used_blocks as f64 / self.max_blocks as f64 }
    }
}

/// One step, looked at when its output has been applied: counts of what ran are the step's, all others are the state
/// after it. The last record before the engine goes idle therefore shows an empty engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IterationStats {
    /// Counts from 1.
    pub iteration: u64,
    /// Requests accepted and not ended.
    pub active_requests: usize,
    /// Most requests that run together.
    pub max_requests: usize,
    pub scheduled_requests: usize,
    /// Scheduled requests that computed prompt tokens.
    pub context_requests: usize,
    /// Scheduled requests that generated.
    pub generation_requests: usize,
    /// Active requests that were not scheduled.
    pub waiting_requests: usize,
    /// Requests that were preempted and wait to run again.
    pub paused_requests: usize,
    /// Prompt tokens computed by the step.
    pub total_context_tokens: usize,
    /// Tokens computed by the step that are not prompt tokens.
    pub total_generation_tokens: usize,
    /// Places in the batch that the step left empty.
    pub empty_generation_slots: usize,
    /// Pipeline micro-batch: always 0, since one step is one micro-batch.
    pub micro_batch_id: usize,
    pub kv: KvStats,
    /// By pool.
    pub windows: [WindowStats; MAX_WINDOW_STATS],
    pub tiers: TierStats,
    pub memory: ExecutorMemory,
}

/// Sums since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineTotals {
    pub requests_accepted: u64,
    pub requests_finished: u64,
    pub requests_cancelled: u64,
    pub requests_timed_out: u64,
    pub requests_failed: u64,
    /// Of accepted requests, once for each return sequence.
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Prompt tokens that the prefix cache made unnecessary to compute.
    pub cached_tokens: u64,
    pub preemptions: u64,
    /// Checks that found an invariant broken when the engine went idle: a leak, which is a bug. 0 for ever.
    pub failed_checks: u64,
}

/// A snapshot: cheap to take, never waits for a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    pub last_iteration: IterationStats,
    pub totals: EngineTotals,
    /// Steps that were launched and not collected when the record was made.
    pub steps_in_flight: usize,
    /// Since when the engine works on the present step, by the engine's clock; 0: it has nothing to do. Known to the
    /// handle only.
    pub busy_since_ns: u64,
}
