//! How much memory the KV cache gets.

use crate::error::{Error, Result};
use crate::step::WindowPool;

/// What an operator and the device allow. The smallest wins.
#[derive(Clone, Debug, PartialEq)]
pub struct KvBudget {
    /// `max_tokens_in_paged_kv_cache`.
    pub max_tokens: Option<usize>,
    /// `max_gpu_total_bytes`.
    pub max_bytes: Option<u64>,
    /// Share of the free memory, `(0, 1]`.
    pub free_fraction: Option<f64>,
    /// Share of all memory that everything together may take, `(0, 1]`.
    pub total_fraction: Option<f64>,
    /// Of the free memory, where nothing else is said.
    pub default_fraction: f64,
    /// Free on the device behind weights and workspace.
    pub free_bytes: u64,
    /// Of the device.
    pub total_bytes: u64,
}

impl KvBudget {
    /// Most bytes, and why; `None`: tokens alone decide.
    fn bytes(&self) -> Option<(u64, String)> {
        let mib = |bytes: u64| bytes >> 20;
        let share = |fraction: f64, bytes: u64| (bytes as f64 * fraction) as u64;
        let (free, total) = (self.free_bytes, self.total_bytes);
        let by_bytes = self.max_bytes.map(|bytes| (bytes, format!("max_gpu_total_bytes is {bytes}")));
        let by_free = self.free_fraction.map(|fraction| {
            let reason = format!("kv_cache_free_gpu_mem_fraction is {fraction} of {} MiB free", mib(free));
            (share(fraction, free), reason)
        });
        let by_total = self.total_fraction.map(|fraction| {
            let kept = total - share(fraction, total).min(total);
            let reason = format!(
                "kv_cache_total_gpu_mem_fraction is {fraction} of {} MiB, of which {} MiB are in use or needed otherwise",
                mib(total),
                mib(total.saturating_sub(free))
            );
            (free.saturating_sub(kept), reason)
        });
        let given = [by_bytes, by_free, by_total].into_iter().flatten().min_by_key(|(bytes, _)| *bytes);
        let fraction = self.default_fraction;
        let default = || (share(fraction, free), format!("the KV cache takes {fraction} of {} MiB free", mib(free)));
        given.or_else(|| self.max_tokens.is_none().then(default))
    }
}

/// Layers that see a window of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvWindow {
    pub window_tokens: usize,
    pub sink_tokens: usize,
    pub layers: usize,
    /// Keys and values of one token in one layer.
    pub layer_bytes: usize,
}

impl KvWindow {
    /// Whether layers that see this have their blocks here.
    pub fn is_of(&self, window_tokens: usize, sink_tokens: usize) -> bool {
        (self.window_tokens, self.sink_tokens) == (window_tokens, sink_tokens)
    }

    fn pool(&self, num_blocks: usize) -> WindowPool {
        WindowPool { num_blocks, window_tokens: self.window_tokens, sink_tokens: self.sink_tokens }
    }
}

/// What the KV cache is for, and what limits it.
#[derive(Clone, Debug, PartialEq)]
pub struct KvLimits {
    pub budget: KvBudget,
    pub block_size_tokens: usize,
    /// Keys and values of one token, all layers.
    pub bytes_per_token: usize,
    pub max_seq_len_tokens: usize,
    pub max_batch_size: usize,
    /// Layers that may have fewer blocks than the others.
    pub windows: Vec<KvWindow>,
    /// Tokens of all steps in flight, at most.
    pub in_flight_tokens: usize,
}

/// The size of the KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
    pub num_blocks: usize,
    pub tokens: usize,
    /// Windows included.
    pub bytes: usize,
    /// Pools beside the blocks of full length; none: every layer has all tokens.
    pub windows: Vec<WindowPlan>,
}

/// The blocks of layers that see a window of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPlan {
    pub pool: WindowPool,
    pub layers: usize,
    pub bytes: usize,
}

impl KvPlan {
    /// Pools for windows where that leaves room for more tokens, or takes less memory for as many.
    ///
    /// # Errors
    /// When not even one sequence of the greatest length fits: says both numbers and what would fit.
    pub fn new(limits: &KvLimits) -> Result<Self> {
        let size = limits.block_size_tokens;
        let sequence_blocks = limits.max_seq_len_tokens.div_ceil(size);
        let budget = limits.budget.bytes();
        let most_bytes = budget.as_ref().map_or(u64::MAX, |(bytes, _)| *bytes);
        let by_tokens = limits.budget.max_tokens.map_or(usize::MAX, |tokens| tokens / size);
        let most_blocks = sequence_blocks.saturating_mul(limits.max_batch_size).min(by_tokens);
        let whole = limits.without_windows(most_blocks, most_bytes);
        let windowed = limits.with_windows(most_blocks, most_bytes);
        let is_better = |plan: &Self| {
            plan.num_blocks > whole.num_blocks || plan.num_blocks == whole.num_blocks && plan.bytes < whole.bytes
        };
        let plan = windowed.filter(is_better).unwrap_or(whole);
        if plan.num_blocks < sequence_blocks {
            let reason = match (limits.budget.max_tokens, budget) {
                (Some(tokens), _) if by_tokens <= plan.num_blocks => {
                    format!("max_tokens_in_paged_kv_cache is {tokens}")
                }
                (_, Some((_, reason))) => reason,
                (tokens, None) => format!("max_tokens_in_paged_kv_cache is {}", tokens.unwrap_or_default()),
            };
            return Err(plan.too_small(limits, &reason));
        }
        Ok(plan)
    }

    /// Bytes of the blocks of windows.
    pub fn window_bytes(&self) -> usize {
        self.windows.iter().map(|window| window.bytes).sum()
    }

    /// Blocks of the host of each pool, those of full length first, in the same proportion as on the device. None where
    /// there is no memory for one of each.
    pub fn host_blocks(&self, host_bytes: u64) -> Option<Vec<usize>> {
        let share = |blocks: usize| {
            let blocks = u128::from(host_bytes) * blocks as u128 / self.bytes.max(1) as u128;
            usize::try_from(blocks).unwrap_or(usize::MAX).min(u32::MAX as usize / 4)
        };
        let windows = self.windows.iter().map(|window| share(window.pool.num_blocks));
        let blocks: Vec<_> = std::iter::once(share(self.num_blocks)).chain(windows).collect();
        blocks.iter().all(|&blocks| blocks > 0).then_some(blocks)
    }

    fn too_small(&self, limits: &KvLimits, reason: &str) -> Error {
        let (num_blocks, size, wanted) = (self.num_blocks, limits.block_size_tokens, limits.max_seq_len_tokens);
        let needed = wanted.div_ceil(size);
        let needed_bytes = (needed as u64).saturating_mul(limits.block_bytes() as u64);
        Error::invalid(format!(
            "the KV cache is too small: number of blocks is {num_blocks} ({} tokens, {reason}) and one sequence of \
             max_seq_len {wanted} needs {needed} ({wanted} tokens, {} MiB); raise maxTokensInPagedKvCache, or set \
             max_seq_len to at most {}",
            num_blocks * size,
            needed_bytes >> 20,
            num_blocks * size
        ))
    }
}

impl KvLimits {
    fn block_bytes(&self) -> usize {
        self.block_size_tokens.saturating_mul(self.bytes_per_token).max(1)
    }

    fn without_windows(&self, most_blocks: usize, most_bytes: u64) -> KvPlan {
        let fitting = usize::try_from(most_bytes / self.block_bytes() as u64).unwrap_or(usize::MAX);
        self.plan(most_blocks.min(fitting), Vec::new())
    }

    /// Windows for as many sequences as run together, or as many as half of the memory is enough for.
    fn with_windows(&self, most_blocks: usize, most_bytes: u64) -> Option<KvPlan> {
        if self.windows.is_empty() {
            return None;
        }
        let full_bytes = self.full_block_bytes();
        let share = if full_bytes == 0 { most_bytes } else { most_bytes / 2 };
        let bytes = |pools: &[WindowPlan]| pools.iter().map(|pool| pool.bytes as u64).sum::<u64>();
        let halves =
            std::iter::successors(Some(self.max_batch_size), |&sequences| (sequences > 1).then_some(sequences / 2));
        let pools = halves.map(|sequences| self.pools(sequences, most_blocks)).find(|pools| bytes(pools) <= share)?;
        let left = most_bytes - bytes(&pools);
        let fitting = left.checked_div(full_bytes as u64).map_or(usize::MAX, |blocks| blocks as usize);
        let num_blocks = most_blocks.min(fitting);
        // More blocks than those of full length are never used.
        let pools = pools.into_iter().map(|plan| self.sized(&plan, plan.pool.num_blocks.min(num_blocks))).collect();
        Some(self.plan(num_blocks, pools))
    }

    fn pools(&self, sequences: usize, most_blocks: usize) -> Vec<WindowPlan> {
        let size = self.block_size_tokens;
        let blocks = |window: &KvWindow| {
            let of_each = window.pool(0).sequence_blocks(size);
            (sequences * of_each + self.in_flight_tokens.div_ceil(size)).min(most_blocks)
        };
        self.windows.iter().map(|window| window_plan(window, blocks(window), size)).collect()
    }

    fn sized(&self, plan: &WindowPlan, num_blocks: usize) -> WindowPlan {
        let bytes = plan.bytes / plan.pool.num_blocks.max(1) * num_blocks;
        WindowPlan { pool: WindowPool { num_blocks, ..plan.pool }, bytes, ..*plan }
    }

    /// Of the layers without a pool of their own.
    fn full_block_bytes(&self) -> usize {
        let windows: usize = self.windows.iter().map(|window| window.layers * window.layer_bytes).sum();
        self.bytes_per_token.saturating_sub(windows) * self.block_size_tokens
    }

    fn plan(&self, num_blocks: usize, windows: Vec<WindowPlan>) -> KvPlan {
        let block_bytes = if windows.is_empty() { self.block_bytes() } else { self.full_block_bytes() };
        let window_bytes: usize = windows.iter().map(|window| window.bytes).sum();
        let bytes = num_blocks.saturating_mul(block_bytes).saturating_add(window_bytes);
        KvPlan { num_blocks, tokens: num_blocks * self.block_size_tokens, bytes, windows }
    }
}

fn window_plan(window: &KvWindow, num_blocks: usize, block_size: usize) -> WindowPlan {
    let bytes = num_blocks * block_size * window.layers * window.layer_bytes;
    WindowPlan { pool: window.pool(num_blocks), layers: window.layers, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> KvBudget {
        KvBudget {
            max_tokens: None,
            max_bytes: None,
            free_fraction: None,
            total_fraction: None,
            default_fraction: 0.5,
            free_bytes: 1 << 30,
            total_bytes: 2 << 30,
        }
    }

    fn with(budget: KvBudget) -> KvLimits {
        KvLimits {
            budget,
            block_size_tokens: 64,
            bytes_per_token: 1024,
            max_seq_len_tokens: 1000,
            max_batch_size: 4,
            windows: Vec::new(),
            in_flight_tokens: 256,
        }
    }

    fn blocks(budget: KvBudget) -> usize {
        KvPlan::new(&with(budget)).unwrap().num_blocks
    }

    #[test]
    fn never_more_than_the_batch_can_use() {
        let plan = KvPlan::new(&with(budget())).unwrap();
        assert_eq!((plan.num_blocks, plan.tokens, plan.bytes, plan.windows), (64, 4096, 4 << 20, vec![]));
    }

    #[test]
    fn the_smallest_limit_wins() {
        let small = KvBudget { free_bytes: 4 << 20, ..budget() };
        assert_eq!(blocks(KvBudget { max_tokens: Some(2000), ..budget() }), 31);
        assert_eq!(blocks(small.clone()), 32);
        assert_eq!(blocks(KvBudget { free_fraction: Some(0.75), ..small.clone() }), 48);
        assert_eq!(blocks(KvBudget { max_tokens: Some(1100), free_fraction: Some(0.75), ..budget() }), 17);
        assert_eq!(blocks(KvBudget { max_bytes: Some(2 << 20), free_fraction: Some(0.75), ..small.clone() }), 32);
        assert_eq!(blocks(KvBudget { max_bytes: Some(2 << 20), ..budget() }), 32, "bytes alone");
        // without a fraction max_tokens decides alone
        assert_eq!(blocks(KvBudget { max_tokens: Some(4096), free_bytes: 1 << 20, ..budget() }), 64);
    }

    #[test]
    fn a_share_of_all_memory_counts_what_is_taken() {
        // Of 10 MiB 6 are taken: 80 % leave 2.
        let tight = KvBudget { total_bytes: 10 << 20, free_bytes: 4 << 20, ..budget() };
        assert_eq!(blocks(KvBudget { total_fraction: Some(0.8), ..tight.clone() }), 32);
        let error = KvPlan::new(&with(KvBudget { total_fraction: Some(0.5), ..tight })).unwrap_err();
        assert!(
            error.message().contains("kv_cache_total_gpu_mem_fraction is 0.5 of 10 MiB, of which 6 MiB"),
            "{error}"
        );
    }

    #[test]
    fn refusal_says_both_numbers_and_what_would_fit() {
        let error = KvPlan::new(&with(KvBudget { max_tokens: Some(700), ..budget() })).unwrap_err();
        let message = error.message();
        for part in ["number of blocks is 10", "640 tokens", "needs 16", "maxTokensInPagedKvCache", "at most 640"] {
            assert!(message.contains(part), "{message}");
        }
    }

    /// 16 layers of 64 bytes a token, half of which see 100 tokens.
    fn alternating(budget: KvBudget) -> KvLimits {
        let window = KvWindow { window_tokens: 100, sink_tokens: 0, layers: 8, layer_bytes: 64 };
        KvLimits { max_seq_len_tokens: 8192, windows: vec![window], ..with(budget) }
    }

    #[test]
    fn layers_with_windows_need_less_memory() {
        let plan = KvPlan::new(&alternating(budget())).unwrap();
        let pool = plan.windows[0];
        assert_eq!((plan.num_blocks, pool.pool.num_blocks, pool.layers), (4 * 128, 4 * (2 + 3) + 4, 8));
        assert_eq!(plan.bytes, (512 + 24) * 64 * 512, "instead of twice 512 blocks");
    }

    #[test]
    fn what_windows_save_holds_more_tokens() {
        let tight = KvBudget { free_bytes: 32 << 20, ..budget() };
        let whole = KvPlan::new(&KvLimits { windows: Vec::new(), ..alternating(tight.clone()) }).unwrap();
        let plan = KvPlan::new(&alternating(tight.clone())).unwrap();
        assert_eq!((whole.num_blocks, plan.num_blocks), (256, 488));
        assert!(plan.bytes <= 16 << 20);
        let narrow = KvLimits { max_seq_len_tokens: 100, in_flight_tokens: 1000, ..alternating(tight) };
        assert!(KvPlan::new(&narrow).unwrap().windows.is_empty(), "nothing to save");
    }

    #[test]
    fn a_model_of_windows_alone_has_room_for_all_sequences() {
        let window = KvWindow { window_tokens: 100, sink_tokens: 4, layers: 16, layer_bytes: 64 };
        let tight = KvBudget { max_bytes: Some(2 << 20), ..budget() };
        let plan = KvPlan::new(&KvLimits { windows: vec![window], ..alternating(tight) }).unwrap();
        assert_eq!((plan.num_blocks, plan.windows[0].pool.num_blocks), (512, 4 * 6 + 4));
        assert_eq!(plan.bytes, 28 * 64 * 1024);
    }
}
