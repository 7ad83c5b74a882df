//! How many prompt tokens may run beside sequences that generate, so that nobody waits long for the next token.

/// What a step costs is learnt from the steps of late: `fixed + per_token · tokens`, by least squares in which a step
/// counts less the older it is.
pub(super) struct Pace {
    /// How much longer a step may take than one without prompt tokens.
    slowdown: f64,
    /// Decaying sums of 1, tokens, tokens², time, tokens · time.
    sums: [f64; 5],
    /// Tokens of the largest step, decaying: what lies far beyond is not known.
    largest: f64,
    last_landed_ns: u64,
}

/// What a step counts when the next one has landed.
const DECAY: f64 = 0.98;

impl Pace {
    pub fn new(slowdown: f32) -> Self {
        Self { slowdown: f64::from(slowdown), sums: [0.0; 5], largest: 0.0, last_landed_ns: 0 }
    }

    /// A step of `tokens` was launched at one time and has landed at another. Steps overlap: it ran from when the one
    /// before had landed.
    pub fn observe(&mut self, tokens: usize, launched_ns: u64, landed_ns: u64) {
        let time = landed_ns.saturating_sub(launched_ns.max(self.last_landed_ns)) as f64;
        let tokens = tokens as f64;
        self.last_landed_ns = landed_ns;
        self.largest = (self.largest * DECAY).max(tokens);
        for (sum, value) in self.sums.iter_mut().zip([1.0, tokens, tokens * tokens, time, tokens * time]) {
            *sum = *sum * DECAY + value;
        }
    }

    /// Prompt tokens that may run beside `decodes` tokens of others; at least a block.
    pub fn prompt_tokens(&self, decodes: usize, block_size: usize) -> usize {
        let [count, tokens, squares, time, products] = self.sums;
        // Twice what was tried before: a first long prompt must not be a jump into the unknown.
        let explored = (2.0 * self.largest).max((decodes + block_size) as f64);
        let spread = count * squares - tokens * tokens;
        let per_token = (count * products - tokens * time) / spread;
        let fixed = (time - per_token * tokens) / count;
        let alone = fixed + per_token * decodes as f64;
        let known = if spread > 1e-6 * squares && per_token > 0.0 && alone > 0.0 {
            (self.slowdown * alone - fixed) / per_token
        } else {
            f64::INFINITY
        };
        let total = known.min(explored) as usize;
        total.saturating_sub(decodes).max(block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a machine that takes 1 ms and 10 us for each token.
    fn taught(steps: impl IntoIterator<Item = usize>) -> Pace {
        let mut pace = Pace::new(2.0);
        let mut now_ns = 0;
        for tokens in steps {
            let launched_ns = now_ns;
            now_ns += 1_000_000 + 10_000 * tokens as u64;
            pace.observe(tokens, launched_ns, now_ns);
        }
        pace
    }

    #[test]
    fn the_budget_doubles_the_time_of_a_step_and_no_more() {
        let pace = taught([10, 20, 10, 500, 10]);
        // 1 ms + 10 · 10 us is 1.1 ms; 2.2 ms is 120 tokens.
        assert!((105..=111).contains(&pace.prompt_tokens(10, 16)), "{}", pace.prompt_tokens(10, 16));
    }

    #[test]
    fn what_was_never_tried_is_approached_by_doubling() {
        assert_eq!(taught([]).prompt_tokens(10, 16), 16);
        assert_eq!(taught([10; 5]).prompt_tokens(10, 16), 16);
        assert_eq!(taught([10, 26]).prompt_tokens(10, 16), 42);
    }

    #[test]
    fn a_prompt_goes_on_by_a_block_at_least() {
        assert_eq!(taught([1, 2, 100, 1]).prompt_tokens(1, 512), 512);
    }
}
