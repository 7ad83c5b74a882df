//! The numbers of one iteration.

/// Pools of windows that a snapshot has room for.
pub const MAX_WINDOWS: usize = 8;

/// KV blocks of layers that see a window of the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowBlocks {
    /// 0: there is no such pool.
    pub window_tokens: u64,
    pub max_blocks: u64,
    pub used_blocks: u64,
}

/// One iteration as the metrics see it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub active_requests: u64,
    pub max_requests: u64,
    pub scheduled_requests: u64,
    pub context_requests: u64,
    pub generation_requests: u64,
    pub waiting_requests: u64,
    pub paused_requests: u64,
    pub total_context_tokens: u64,
    pub total_generation_tokens: u64,
    pub empty_generation_slots: u64,
    pub micro_batch_id: u64,
    pub cpu_bytes: u64,
    pub gpu_bytes: u64,
    pub pinned_bytes: u64,
    pub max_blocks: u64,
    pub free_blocks: u64,
    pub used_blocks: u64,
    pub tokens_per_block: u64,
    pub reused_blocks: u64,
    pub iteration: u64,
    /// Microseconds since the epoch.
    pub timestamp_us: u64,
    /// KV blocks of layers that see a window of the context.
    pub windows: [WindowBlocks; MAX_WINDOWS],
    pub totals: Totals,
}

/// Sums since the model was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub completed_requests: u64,
    pub cancelled_requests: u64,
    pub timed_out_requests: u64,
    pub failed_requests: u64,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Prompt tokens that the prefix cache made unnecessary to compute.
    pub cached_tokens: u64,
    pub preemptions: u64,
    pub evicted_blocks: u64,
    /// Leaks that an idle engine found.
    pub failed_checks: u64,
    /// Blocks that moved from the device to a tier behind it.
    pub offloaded_blocks: u64,
    /// Blocks that came back.
    pub onboarded_blocks: u64,
    /// Blocks of a tier behind the device that were given up for other content.
    pub dropped_blocks: u64,
    pub failed_transfers: u64,
    /// Blocks written to disk.
    pub stored_blocks: u64,
    /// Blocks read from disk.
    pub loaded_blocks: u64,
}

impl std::ops::Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            completed_requests: self.completed_requests + other.completed_requests,
            cancelled_requests: self.cancelled_requests + other.cancelled_requests,
            timed_out_requests: self.timed_out_requests + other.timed_out_requests,
            failed_requests: self.failed_requests + other.failed_requests,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            preemptions: self.preemptions + other.preemptions,
            evicted_blocks: self.evicted_blocks + other.evicted_blocks,
            failed_checks: self.failed_checks + other.failed_checks,
            offloaded_blocks: self.offloaded_blocks + other.offloaded_blocks,
            onboarded_blocks: self.onboarded_blocks + other.onboarded_blocks,
            dropped_blocks: self.dropped_blocks + other.dropped_blocks,
            failed_transfers: self.failed_transfers + other.failed_transfers,
            stored_blocks: self.stored_blocks + other.stored_blocks,
            loaded_blocks: self.loaded_blocks + other.loaded_blocks,
        }
    }
}

impl Snapshot {
    /// Several instances as one: what is counted adds up, what numbers or dates something is the largest.
    pub fn sum(snapshots: impl IntoIterator<Item = Self>) -> Self {
        let add = |a: Self, b: Self| Self {
            active_requests: a.active_requests + b.active_requests,
            max_requests: a.max_requests + b.max_requests,
            scheduled_requests: a.scheduled_requests + b.scheduled_requests,
            context_requests: a.context_requests + b.context_requests,
            generation_requests: a.generation_requests + b.generation_requests,
            waiting_requests: a.waiting_requests + b.waiting_requests,
            paused_requests: a.paused_requests + b.paused_requests,
            total_context_tokens: a.total_context_tokens + b.total_context_tokens,
            total_generation_tokens: a.total_generation_tokens + b.total_generation_tokens,
            empty_generation_slots: a.empty_generation_slots + b.empty_generation_slots,
            micro_batch_id: a.micro_batch_id.max(b.micro_batch_id),
            cpu_bytes: a.cpu_bytes + b.cpu_bytes,
            gpu_bytes: a.gpu_bytes + b.gpu_bytes,
            pinned_bytes: a.pinned_bytes + b.pinned_bytes,
            max_blocks: a.max_blocks + b.max_blocks,
            free_blocks: a.free_blocks + b.free_blocks,
            used_blocks: a.used_blocks + b.used_blocks,
            tokens_per_block: a.tokens_per_block.max(b.tokens_per_block),
            reused_blocks: a.reused_blocks + b.reused_blocks,
            iteration: a.iteration.max(b.iteration),
            timestamp_us: a.timestamp_us.max(b.timestamp_us),
            windows: std::array::from_fn(|at| together(a.windows[at], b.windows[at])),
            totals: a.totals + b.totals,
        };
        snapshots.into_iter().fold(Self::default(), add)
    }
}

/// The same pool of two instances of a model.
fn together(a: WindowBlocks, b: WindowBlocks) -> WindowBlocks {
    WindowBlocks {
        window_tokens: a.window_tokens.max(b.window_tokens),
        max_blocks: a.max_blocks + b.max_blocks,
        used_blocks: a.used_blocks + b.used_blocks,
    }
}
