//! The passes that change logits before a token is chosen, in the C++ backend's order: embedding bias, temperature,
//! repetition, presence and frequency penalties, minimum length, repeated n-grams, bad words. The mask of a guide comes
//! before them. [`PassOrder::PenaltiesFirst`] moves the temperature to the end.

use super::{PassOrder, SamplingParams};
use crate::ids::TokenId;
use std::collections::HashMap;

/// How often each token occurred in a sequence, prompt included. Grows with the distinct tokens, not with the length.
#[derive(Clone, Debug, Default)]
pub struct Occurrences {
    counts: HashMap<TokenId, Count>,
}

/// Occurrences of one token.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u32,
    /// Those that the presence and frequency penalties see.
    penalized: u32,
}

impl Occurrences {
    /// Counts one more occurrence.
    pub fn add(&mut self, token: TokenId) {
        let count = self.counts.entry(token).or_default();
        count.all += 1;
        count.penalized += 1;
    }

    /// Counts the tokens of a prompt; the first ones may be without presence and frequency penalties.
    pub fn add_prompt(&mut self, prompt: &[TokenId], params: &SamplingParams) {
        let ignored = match params.order {
            PassOrder::TemperatureFirst => prompt.len().min(params.prompt_ignore_length as usize),
            PassOrder::PenaltiesFirst => prompt.len(),
        };
        let (ignored, rest) = prompt.split_at(ignored);
        ignored.iter().for_each(|&token| self.counts.entry(token).or_default().all += 1);
        rest.iter().for_each(|&token| self.add(token));
    }

    /// Those of a prompt and the tokens after it; none where no penalty needs them.
    pub fn of(tokens: &[TokenId], prompt_len: usize, params: &SamplingParams) -> Self {
        let mut occurrences = Self::default();
        if params.has_penalties() {
            occurrences.add_prompt(&tokens[..prompt_len], params);
            tokens[prompt_len..].iter().for_each(|&token| occurrences.add(token));
        }
        occurrences
    }

    /// Occurrences of `token`.
    pub fn count(&self, token: TokenId) -> u32 {
        self.counts.get(&token).map_or(0, |count| count.all)
    }

    /// Distinct tokens.
    pub fn distinct(&self) -> usize {
        self.counts.len()
    }
}

/// What the passes know about a sequence.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// Prompt and generated tokens.
    pub tokens: &'a [TokenId],
    pub prompt_len: usize,
    /// Of all of `tokens`; may be empty when [`SamplingParams::has_penalties`] is false.
    pub occurrences: &'a Occurrences,
}

impl History<'_> {
    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}

impl SamplingParams {
    /// Whether the most likely token is taken and nothing is drawn.
    pub fn is_greedy(&self) -> bool {
        let unlimited = self.top_k == 0 && self.top_p.is_none() && self.min_p == 0.0 && self.typical_p >= 1.0;
        self.temperature == 0.0 || self.top_k == 1 || unlimited
    }

    /// Whether any penalty needs the occurrences of tokens.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether [`apply`] would change logits of a sequence with this many generated tokens.
    pub fn changes_logits(&self, generated: usize) -> bool {
        self.edits_logits(generated) || self.inverse_temperature() != 1.0
    }

    /// Whether [`apply`] would do more than to scale. Once false, it stays so for the rest of the sequence.
    fn edits_logits(&self, generated: usize) -> bool {
        self.has_penalties()
            || !self.bad_words.is_empty()
            || self.no_repeat_ngram_size > 0
            || self.embedding_bias.is_some()
            || (generated < self.min_tokens as usize && !self.end_ids.is_empty())
    }

    /// Whether top-p depends on which tokens were generated, not only on how many.
    pub fn top_p_follows_tokens(&self) -> bool {
        self.top_p.is_some() && self.top_p_decay != 1.0 && self.top_p_reset_id.is_some()
    }

    /// Whether the next token is chosen from more than scaled logits and what top-k and top-p leave of them, or by who knows
    /// the tokens before. Once false, it stays so for the rest of the sequence.
    pub fn needs_edits(&self, generated: usize) -> bool {
        let narrowed = !self.is_greedy() && (self.min_p > 0.0 || self.typical_p < 1.0);
        self.edits_logits(generated) || self.top_p_follows_tokens() || self.guide.is_some() || narrowed
    }

    /// Whether what is done to the logits depends on the tokens before.
    pub fn needs_history(&self) -> bool {
        self.has_penalties()
            || self.no_repeat_ngram_size > 0
            || self.bad_words.iter().any(|word| word.len() > 1)
            || self.top_p_follows_tokens()
    }

    /// What logits are multiplied by: `1 / (temperature + 1e-6)`; 1 is "not set" and 0 is greedy, so both leave the
    /// logits alone.
    pub fn inverse_temperature(&self) -> f32 {
        if self.temperature == 1.0 || self.temperature == 0.0 { 1.0 } else { 1.0 / (self.temperature + 1e-6) }
    }
}

/// Applies all passes but the guide's to one row of logits `[V]`.
pub fn apply(logits: &mut [f32], params: &SamplingParams, history: &History<'_>) {
    apply_at(logits, params, params.inverse_temperature(), history);
}

/// [`apply`] with a factor instead of the temperature.
pub fn apply_at(logits: &mut [f32], params: &SamplingParams, inverse_temperature: f32, history: &History<'_>) {
    if let Some(bias) = &params.embedding_bias {
        logits.iter_mut().zip(bias.iter()).for_each(|(logit, bias)| *logit += bias);
    }
    if params.order == PassOrder::TemperatureFirst {
        scale(logits, inverse_temperature);
    }
    if params.has_penalties() {
        penalize(logits, params, history.occurrences);
    }
    if history.generated() < params.min_tokens as usize {
        params.end_ids.iter().for_each(|&id| mask(logits, id));
    }
    mask_repeated_ngrams(logits, params.no_repeat_ngram_size as usize, history.tokens);
    mask_bad_words(logits, &params.bad_words, history.tokens);
    if params.order == PassOrder::PenaltiesFirst {
        scale(logits, inverse_temperature);
    }
}

/// `logits *= factor`, left alone by 1. What overflows stays a number.
pub fn scale(logits: &mut [f32], factor: f32) {
    if factor != 1.0 {
        logits.iter_mut().for_each(|logit| *logit = bounded(*logit * factor, *logit));
    }
}

/// `value`, made of the logit `from`; a number if that was one, for an infinite logit is a fault of the model.
fn bounded(value: f32, from: f32) -> f32 {
    if value == f32::INFINITY && from.is_finite() { f32::MAX } else { value }
}

fn penalize(logits: &mut [f32], params: &SamplingParams, occurrences: &Occurrences) {
    for (&token, &count) in &occurrences.counts {
        let Some(logit) = usize::try_from(token).ok().and_then(|token| logits.get_mut(token)) else { continue };
        let repeated =
            if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
        *logit = bounded(repeated, *logit);
        if count.penalized > 0 {
            *logit -= params.presence_penalty + params.frequency_penalty * count.penalized as f32;
        }
    }
}

/// Masks every token that has followed the last `size - 1` tokens before.
fn mask_repeated_ngrams(logits: &mut [f32], size: usize, tokens: &[TokenId]) {
    if size == 0 || tokens.len() < size {
        return;
    }
    let suffix = &tokens[tokens.len() - (size - 1)..];
    for ngram in tokens.windows(size).filter(|ngram| ngram[..size - 1] == *suffix) {
        mask(logits, ngram[size - 1]);
    }
}

fn mask_bad_words(logits: &mut [f32], bad_words: &[Vec<TokenId>], tokens: &[TokenId]) {
    for word in bad_words {
        if let Some((&last, prefix)) = word.split_last()
            && tokens.ends_with(prefix)
        {
            mask(logits, last);
        }
    }
}

fn mask(logits: &mut [f32], token: TokenId) {
    if let Some(logit) = usize::try_from(token).ok().and_then(|token| logits.get_mut(token)) {
        *logit = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(logits: &[f32], params: &SamplingParams, tokens: &[TokenId], prompt_len: usize) -> Vec<f32> {
        let mut occurrences = Occurrences::default();
        tokens.iter().for_each(|&token| occurrences.add(token));
        let mut logits = logits.to_vec();
        apply(&mut logits, params, &History { tokens, prompt_len, occurrences: &occurrences });
        logits
    }

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!(g == e || (g - e).abs() < 1e-4, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn nothing_set_changes_nothing() {
        let logits = [1.0, -2.0, 0.5];
        assert_eq!(run(&logits, &SamplingParams::default(), &[0, 1], 1), logits);
        assert!(!SamplingParams::default().changes_logits(0));
    }

    #[test]
    fn penalties_act_on_scaled_logits_in_order() {
        let params = SamplingParams {
            temperature: 0.5,
            repetition_penalty: 2.0,
            presence_penalty: 0.25,
            frequency_penalty: 0.1,
            ..Default::default()
        };
        // token 0 seen twice (prompt and generated), token 1 once, token 2 never
        let got = run(&[3.0, -1.0, 1.0], &params, &[0, 1, 0], 2);
        close(&got, &[3.0 * 2.0 / 2.0 - 0.25 - 0.2, -2.0 * 2.0 - 0.25 - 0.1, 2.0]);
    }

    #[test]
    fn temperature_zero_keeps_the_scale() {
        close(&run(&[3.0, -1.0], &SamplingParams { temperature: 0.0, ..Default::default() }, &[0], 1), &[3.0, -1.0]);
    }

    #[test]
    fn end_ids_are_masked_until_the_minimum_length() {
        let params = SamplingParams { min_tokens: 2, end_ids: vec![1], ..Default::default() };
        assert_eq!(run(&[0.0, 9.0], &params, &[0, 0], 1)[1], f32::NEG_INFINITY);
        assert_eq!(run(&[0.0, 9.0], &params, &[0, 0, 0], 1)[1], 9.0);
    }

    #[test]
    fn bad_words_mask_the_completing_token_only() {
        let params = SamplingParams { bad_words: vec![vec![2], vec![0, 1, 3], vec![9, 9]], ..Default::default() };
        let inf = f32::NEG_INFINITY;
        assert_eq!(run(&[0.0; 4], &params, &[5, 0, 1], 2), [0.0, 0.0, inf, inf]);
        assert_eq!(run(&[0.0; 4], &params, &[0, 1, 5], 2), [0.0, 0.0, inf, 0.0]);
        assert_eq!(run(&[0.0; 4], &params, &[1], 1), [0.0, 0.0, inf, 0.0]);
    }

    #[test]
    fn the_embedding_bias_is_added_before_everything_else() {
        let bias: std::sync::Arc<[f32]> = [1.0, -2.0].into();
        let params = SamplingParams { embedding_bias: Some(bias), temperature: 0.5, ..Default::default() };
        assert!(params.changes_logits(0));
        close(&run(&[0.5, 1.0, 3.0], &params, &[0], 1), &[3.0, -2.0, 6.0]);
    }

    #[test]
    fn a_token_that_would_repeat_an_ngram_is_masked() {
        let inf = f32::NEG_INFINITY;
        let of = |size| SamplingParams { no_repeat_ngram_size: size, ..Default::default() };
        assert_eq!(run(&[0.0; 5], &of(3), &[1, 2, 3, 4, 1, 2], 3), [0.0, 0.0, 0.0, inf, 0.0]);
        assert_eq!(run(&[0.0; 5], &of(3), &[1, 2, 3, 4, 2, 1], 3), [0.0; 5]);
        assert_eq!(run(&[0.0; 5], &of(1), &[1, 3], 1), [0.0, inf, 0.0, inf, 0.0]);
        assert_eq!(run(&[0.0; 5], &of(2), &[1], 1), [0.0; 5]);
    }

    #[test]
    fn the_start_of_the_prompt_can_be_left_out_of_presence_and_frequency() {
        let params = SamplingParams {
            presence_penalty: 1.0,
            frequency_penalty: 0.5,
            repetition_penalty: 2.0,
            prompt_ignore_length: 2,
            ..Default::default()
        };
        let mut occurrences = Occurrences::default();
        occurrences.add_prompt(&[0, 1, 1], &params);
        let mut logits = [4.0; 3];
        apply(&mut logits, &params, &History { tokens: &[0, 1, 1], prompt_len: 3, occurrences: &occurrences });
        close(&logits, &[2.0, 2.0 - 1.0 - 0.5, 4.0]);
    }

    #[test]
    fn ids_outside_the_vocabulary_are_ignored() {
        let params = SamplingParams {
            min_tokens: 5,
            end_ids: vec![-1, 77],
            bad_words: vec![vec![1000], vec![-3]],
            repetition_penalty: 2.0,
            ..Default::default()
        };
        assert_eq!(run(&[1.0, 1.0], &params, &[99, -7], 2), [1.0, 1.0]);
    }

    #[test]
    fn occurrences_grow_with_distinct_tokens() {
        let mut occurrences = Occurrences::default();
        (0..1000).for_each(|i| occurrences.add(i % 3));
        assert_eq!((occurrences.distinct(), occurrences.count(0), occurrences.count(7)), (3, 334, 0));
    }
}
