//! What a request may say about its tokens.

use super::guided::Guide;
use super::logits::History;
use crate::ids::TokenId;
use std::borrow::Cow;
use std::sync::Arc;

/// How the next token is chosen. The default is greedy.
///
/// The order of application is that of [`super::logits::apply`], then min-p, top-k, top-p and typical-p.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by this, `>= 0`; 0 means greedy.
    pub temperature: f32,
    /// Only the k most likely tokens; 0: no limit; 1: greedy.
    pub top_k: u32,
    /// Smallest set of tokens whose mass reaches this, in `(0, 1]`; `None`: not set. With `top_k` 0 as well: greedy.
    pub top_p: Option<f32>,
    /// `top_p` is multiplied by this after each generated token, in `(0, 1]`; 1: it stays.
    pub top_p_decay: f32,
    /// What the decay does not go below, in `[0, 1]`.
    pub top_p_min: f32,
    /// A token that brings `top_p` back to where it started.
    pub top_p_reset_id: Option<TokenId>,
    /// Only tokens with at least this share of the largest probability, in `[0, 1]`; 0: no limit.
    pub min_p: f32,
    /// Smallest set, of what the others leave, of the tokens with the most typical information content whose mass reaches
    /// this, in `(0, 1]`; 1: no limit.
    pub typical_p: f32,
    /// Whether penalties act before or after the temperature.
    pub order: PassOrder,
    /// `> 0`; positive logits of seen tokens are divided by it, negative multiplied.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each seen token.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each seen token times its count.
    pub frequency_penalty: f32,
    /// This many tokens at the start of the prompt count for neither the presence nor the frequency penalty.
    pub prompt_ignore_length: u32,
    /// Sequences of this many tokens do not occur twice, prompt included; 0: they may.
    pub no_repeat_ngram_size: u32,
    /// Added to the logits before anything else; tokens beyond its end get nothing.
    pub embedding_bias: Option<Arc<[f32]>>,
    /// The end ids cannot be sampled before this many tokens were generated.
    pub min_tokens: u32,
    /// Key of the random stream; the same seed gives the same tokens in any batch and after preemption.
    pub seed: u64,
    /// Token sequences that must not be completed.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Masked while `min_tokens` is not reached.
    pub end_ids: Vec<TokenId>,
    /// Which tokens may follow; `None`: all.
    pub guide: Option<Guide>,
    /// What the tokens that are expected behind the prompt were drawn from; `None`: they are accepted where they are what is
    /// sampled anyhow.
    pub draft: Option<DraftLogits>,
    /// How many of the most likely tokens [`crate::step::SampledRow::top`] tells for each token.
    pub top_log_probs: u32,
    /// Whether [`crate::step::SampledToken::log_prob`] is filled.
    pub log_probs: bool,
}

/// Expected tokens with the distributions that they were drawn from: each is accepted by probability.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftLogits {
    pub tokens: Arc<[TokenId]>,
    /// `[V]` for each token, before any pass.
    pub rows: Arc<[Vec<f32>]>,
    /// Least share of the target's in the draft's probability with which a token is accepted, in `(0, 1]`; `None`: a random
    /// number for each token, so that what is generated has the target's distribution.
    pub threshold: Option<f32>,
}

impl DraftLogits {
    /// The token that is expected behind what was generated, and its logits.
    pub fn behind(&self, generated: &[TokenId]) -> Option<(TokenId, &[f32])> {
        let &token = self.tokens.strip_prefix(generated)?.first()?;
        Some((token, self.rows.get(generated.len())?))
    }
}

/// The two orders of the passes that serving systems have. They agree where the temperature is 1 or no penalty is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassOrder {
    /// Temperature, then penalties on the scaled logits; all penalties count the prompt.
    #[default]
    TemperatureFirst,
    /// Penalties, then temperature; the presence and frequency penalties count generated tokens only.
    PenaltiesFirst,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: None,
            top_p_decay: 1.0,
            top_p_min: 1e-6,
            top_p_reset_id: None,
            min_p: 0.0,
            typical_p: 1.0,
            order: PassOrder::default(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            prompt_ignore_length: 0,
            no_repeat_ngram_size: 0,
            embedding_bias: None,
            min_tokens: 0,
            seed: 0,
            bad_words: Vec::new(),
            end_ids: Vec::new(),
            guide: None,
            draft: None,
            top_log_probs: 0,
            log_probs: false,
        }
    }
}

impl SamplingParams {
    /// The parameters that are in force for the next token: `top_p` decays with the generated tokens.
    ///
    /// `p ← max(p · decay, min)` after each token, and back to the start after the reset token.
    pub fn for_next(&self, history: &History<'_>) -> Cow<'_, Self> {
        let Some(top_p) = self.top_p.filter(|_| self.top_p_decay != 1.0) else { return Cow::Borrowed(self) };
        let generated = &history.tokens[history.prompt_len..];
        let since_reset = generated.iter().rev().take_while(|&&token| Some(token) != self.top_p_reset_id).count();
        let decayed = top_p * self.top_p_decay.powi(since_reset.min(i32::MAX as usize) as i32);
        // The minimum holds back the decay only: a smaller top_p than the minimum starts as it is.
        let floored = if since_reset == 0 { top_p } else { decayed.max(self.top_p_min) };
        // A mass of 0 would be no limit; the smallest positive one leaves the most likely token.
        Cow::Owned(Self { top_p: Some(floored.clamp(f32::MIN_POSITIVE, 1.0)), ..self.clone() })
    }
}

/// When generation ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopCriteria {
    /// Most tokens to generate, `>= 1`.
    pub max_tokens: usize,
    /// Any of these ends the sequence and is not part of the output.
    pub end_ids: Vec<TokenId>,
    /// A generated tail equal to one of these ends the sequence; its tokens are part of the output.
    pub stop_words: Vec<Vec<TokenId>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::logits::Occurrences;

    #[test]
    fn top_p_decays_to_its_minimum_and_starts_again_at_the_reset_token() {
        let params = SamplingParams {
            top_p: Some(0.8),
            top_p_decay: 0.5,
            top_p_min: 0.15,
            top_p_reset_id: Some(9),
            ..Default::default()
        };
        let occurrences = Occurrences::default();
        let top_p = |tokens: &[TokenId]| {
            params.for_next(&History { tokens, prompt_len: 2, occurrences: &occurrences }).top_p.unwrap()
        };
        assert_eq!(top_p(&[1, 9]), 0.8);
        assert_eq!(top_p(&[1, 9, 3]), 0.4);
        assert_eq!(top_p(&[1, 9, 3, 3]), 0.2);
        assert_eq!(top_p(&[1, 9, 3, 3, 3]), 0.15);
        assert_eq!(top_p(&[1, 9, 3, 3, 9]), 0.8);
        assert_eq!(top_p(&[1, 9, 3, 3, 9, 4]), 0.4);
    }

    #[test]
    fn without_decay_nothing_is_copied() {
        let params = SamplingParams { top_p: Some(0.5), top_p_min: 0.9, ..Default::default() };
        let history = History { tokens: &[1, 2], prompt_len: 1, occurrences: &Occurrences::default() };
        assert!(matches!(params.for_next(&history), Cow::Borrowed(same) if same.top_p == Some(0.5)));
    }
}
