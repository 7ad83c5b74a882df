//! What a request may say about its tokens.

use crate::ids::TokenId;

/// How the next token is chosen. The default is greedy.
///
/// Order of application (the C++ backend's): temperature, repetition, presence and frequency penalties, minimum
/// length, bad words, then top-k and top-p.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by this, `>= 0`; 0 means greedy.
    pub temperature: f32,
    /// Only the k most likely tokens; 0: no limit; 1: greedy.
    pub top_k: u32,
    /// Smallest set of tokens whose mass reaches this, in `(0, 1]`; `None`: not set. With `top_k` 0 as well: greedy.
    pub top_p: Option<f32>,
    /// `> 0`; positive logits of seen tokens are divided by it, negative multiplied.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each seen token.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each seen token times its count.
    pub frequency_penalty: f32,
    /// The end ids cannot be sampled before this many tokens were generated.
    pub min_tokens: u32,
    /// Key of the random stream; the same seed gives the same tokens in any batch and after preemption.
    pub seed: u64,
    /// Token sequences that must not be completed.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Masked while `min_tokens` is not reached.
    pub end_ids: Vec<TokenId>,
    /// Whether [`crate::step::SampledToken::log_prob`] is filled.
    pub log_probs: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            min_tokens: 0,
            seed: 0,
            bad_words: Vec::new(),
            end_ids: Vec::new(),
            log_probs: false,
        }
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
