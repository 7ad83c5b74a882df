//! The requests of the server's `model_warmup`.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::ids::TokenId;
use crate::triton::{DataType, Input};

const IDS: &str = "input_ids";

/// Which of an instance's first requests are those of `model_warmup`.
pub struct WarmUps {
    /// For each sample, in the server's order: how many requests there are up to its end, and whether it draws prompts.
    samples: Vec<(u64, bool)>,
    /// Requests so far.
    requests: AtomicU64,
}

/// A request of `model_warmup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmUp {
    /// Whether `input_ids` is `random_data`.
    draws_prompt: bool,
}

impl WarmUps {
    /// Reads the configuration. Its samples run on every instance before anything else does: each `count` times, as
    /// `batch_size` requests.
    pub fn of(config: &Value) -> Self {
        let samples = config["model_warmup"].as_array().into_iter().flatten();
        let samples = samples.scan(0u64, |end, sample| {
            let count = sample["count"].as_u64().unwrap_or(0).max(1);
            *end = end.saturating_add(count.saturating_mul(sample["batch_size"].as_u64().unwrap_or(0)));
            Some((*end, sample["inputs"][IDS]["random_data"] == true))
        });
        Self { samples: samples.collect(), requests: AtomicU64::new(0) }
    }

    /// What the next request is, if it is of the warm-up.
    pub fn next(&self) -> Option<WarmUp> {
        let (last, _) = self.samples.last()?;
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if number >= *last {
            return None;
        }
        let sample = self.samples.iter().find(|(end, _)| number < *end);
        sample.map(|&(_, draws_prompt)| WarmUp { draws_prompt })
    }
}

impl WarmUp {
    /// Brings a drawn prompt into the vocabulary: `random_data` is of any 32 bits, of which hardly any are tokens. The
    /// removed backend computed such prompts too.
    pub fn fit(self, inputs: &mut [Input<'_>], vocab_size: usize) {
        let is_prompt = |input: &&mut Input<'_>| input.name == IDS && input.dtype == DataType::Int32;
        if let Some(prompt) = inputs.iter_mut().find(is_prompt).filter(|_| self.draws_prompt) {
            let (ids, _) = prompt.bytes.as_chunks::<4>();
            let fitted = ids.iter().map(|&id| TokenId::from_le_bytes(id).rem_euclid(vocab_size as TokenId));
            prompt.bytes = Cow::Owned(fitted.flat_map(TokenId::to_le_bytes).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_requests_are_those_of_the_samples() {
        let [drawn, zero] = ["random_data", "zero_data"].map(|data| json!({ "input_ids": { data: true } }));
        let samples = json!([
            { "inputs": zero, "batch_size": 1 },
            { "inputs": drawn, "batch_size": 0 },
            { "inputs": drawn, "batch_size": 2, "count": 2 },
            { "inputs": zero, "batch_size": 1, "count": 1 },
        ]);
        let warm_ups = WarmUps::of(&json!({ "model_warmup": samples }));
        let seen: Vec<_> = (0..8).map(|_| warm_ups.next().map(|it| it.draws_prompt)).collect();
        let [zero, drawn] = [Some(false), Some(true)];
        assert_eq!(seen, [zero, drawn, drawn, drawn, drawn, zero, None, None]);
        assert_eq!(WarmUps::of(&json!({})).next(), None);
    }

    #[test]
    fn only_drawn_prompts_are_brought_into_the_vocabulary() {
        let bytes: Vec<u8> = [1_936_311_911i32, -3].iter().flat_map(|id| id.to_le_bytes()).collect();
        for (draws_prompt, expected) in [(true, [1_936_311_911 % 4096, 4093]), (false, [1_936_311_911, -3])] {
            let input = Input { name: IDS, dtype: DataType::Int32, shape: &[1, 2], bytes: Cow::Borrowed(&bytes) };
            let mut inputs = [input];
            WarmUp { draws_prompt }.fit(&mut inputs, 4096);
            let fitted: Vec<_> = inputs[0].bytes.as_chunks::<4>().0.iter().map(|&id| i32::from_le_bytes(id)).collect();
            assert_eq!(fitted, expected);
        }
    }
}
