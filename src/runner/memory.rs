//! How much memory the KV cache gets.

use crate::error::{Error, Result};

/// What limits the KV cache. The smallest wins.
#[derive(Clone, Debug, PartialEq)]
pub struct KvLimits {
    pub block_size_tokens: usize,
    /// Keys and values of one token, all layers.
    pub bytes_per_token: usize,
    pub max_seq_len_tokens: usize,
    pub max_batch_size: usize,
    /// `max_tokens_in_paged_kv_cache`.
    pub max_tokens: Option<usize>,
    /// Share of the free memory, `(0, 1]`; `None`: `default_fraction`, unless `max_tokens` is set and decides alone.
    pub free_fraction: Option<f64>,
    pub default_fraction: f64,
    /// Free on the device behind weights and workspace.
    pub free_bytes: u64,
}

/// The size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvPlan {
    pub num_blocks: usize,
    pub tokens: usize,
    pub bytes: usize,
}

impl KvPlan {
    /// # Errors
    /// When not even one sequence of the greatest length fits: says both numbers and what would fit.
    pub fn new(limits: &KvLimits) -> Result<Self> {
        let size = limits.block_size_tokens;
        let sequence_blocks = limits.max_seq_len_tokens.div_ceil(size);
        let block_bytes = size.saturating_mul(limits.bytes_per_token).max(1);
        let mut num_blocks = sequence_blocks.saturating_mul(limits.max_batch_size);
        let mut reason = String::new();
        if let Some(max_tokens) = limits.max_tokens {
            num_blocks = num_blocks.min(max_tokens / size);
            reason = format!("max_tokens_in_paged_kv_cache is {max_tokens}");
        }
        if limits.free_fraction.is_some() || limits.max_tokens.is_none() {
            let fraction = limits.free_fraction.unwrap_or(limits.default_fraction);
            let fitting = (limits.free_bytes as f64 * fraction) as usize / block_bytes;
            if fitting < num_blocks {
                num_blocks = fitting;
                let free = limits.free_bytes >> 20;
                reason = format!("kv_cache_free_gpu_mem_fraction is {fraction} of {free} MiB free");
            }
        }
        if num_blocks < sequence_blocks {
            let wanted = limits.max_seq_len_tokens;
            return Err(Error::invalid(format!(
                "the KV cache is too small: number of blocks is {num_blocks} ({} tokens, {reason}) and one sequence of \
                 max_seq_len {wanted} needs {sequence_blocks} ({wanted} tokens, {} MiB); raise maxTokensInPagedKvCache, \
                 or set max_seq_len to at most {}",
                num_blocks * size,
                (sequence_blocks as u64).saturating_mul(block_bytes as u64) >> 20,
                num_blocks * size
            )));
        }
        Ok(Self { num_blocks, tokens: num_blocks * size, bytes: num_blocks.saturating_mul(block_bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> KvLimits {
        KvLimits {
            block_size_tokens: 64,
            bytes_per_token: 1024,
            max_seq_len_tokens: 1000,
            max_batch_size: 4,
            max_tokens: None,
            free_fraction: None,
            default_fraction: 0.5,
            free_bytes: 1 << 30,
        }
    }

    #[test]
    fn never_more_than_the_batch_can_use() {
        assert_eq!(KvPlan::new(&limits()).unwrap(), KvPlan { num_blocks: 64, tokens: 4096, bytes: 4 << 20 });
    }

    #[test]
    fn the_smallest_limit_wins() {
        let blocks = |changed: KvLimits| KvPlan::new(&changed).unwrap().num_blocks;
        assert_eq!(blocks(KvLimits { max_tokens: Some(2000), ..limits() }), 31);
        assert_eq!(blocks(KvLimits { free_bytes: 4 << 20, ..limits() }), 32);
        assert_eq!(blocks(KvLimits { free_fraction: Some(0.75), free_bytes: 4 << 20, ..limits() }), 48);
        assert_eq!(blocks(KvLimits { max_tokens: Some(1100), free_fraction: Some(0.75), ..limits() }), 17);
        // without a fraction max_tokens decides alone
        assert_eq!(blocks(KvLimits { max_tokens: Some(4096), free_bytes: 1 << 20, ..limits() }), 64);
    }

    #[test]
    fn refusal_says_both_numbers_and_what_would_fit() {
        let error = KvPlan::new(&KvLimits { max_tokens: Some(700), ..limits() }).unwrap_err();
        let message = error.message();
        for part in ["number of blocks is 10", "640 tokens", "needs 16", "maxTokensInPagedKvCache", "at most 640"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
