//! A grammar's state within one sequence.

use llguidance::Matcher;
use llguidance::api::StopReason;

use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Tokens that may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `i % 32` of word `i / 32` is token i; `ceil(V / 32)` words.
    words: Vec<u32>,
    only_end: bool,
}

impl TokenMask {
    /// The bits.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether the answer is complete and nothing can follow but its end.
    pub fn only_end(&self) -> bool {
        self.only_end
    }

    /// Whether the token may come next.
    pub fn allows(&self, token: TokenId) -> bool {
        let token = token as usize;
        self.words.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 != 0)
    }

    /// Sets the logits `[V]` of all other tokens to -∞.
    pub fn apply(&self, logits: &mut [f32]) {
        let (whole, _) = logits.as_chunks_mut::<32>();
        for (chunk, &word) in whole.iter_mut().zip(&self.words) {
            match word {
                0 => chunk.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => mask_chunk(chunk, word),
            }
        }
        let (start, last) = (logits.len() / 32 * 32, self.words.get(logits.len() / 32).copied().unwrap_or(0));
        mask_chunk(&mut logits[start..], last);
    }

    fn allow(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            *word |= 1 << (token as usize % 32);
        }
    }
}

fn mask_chunk(chunk: &mut [f32], word: u32) {
    for (bit, logit) in chunk.iter_mut().enumerate() {
        if word >> bit & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Follows one sequence through its grammar.
pub struct GuideMatcher {
    inner: Matcher,
    /// Spent on states of the grammar, here and by those that it learnt from.
    work: u64,
    end_ids: Vec<TokenId>,
    words: usize,
    ended: bool,
}

impl GuideMatcher {
    pub(super) fn new(inner: Matcher, work: u64, end_ids: &[TokenId], vocab_size: usize) -> Self {
        Self { inner, work, end_ids: end_ids.to_vec(), words: vocab_size.div_ceil(32), ended: false }
    }

    /// Takes the next token of the sequence.
    ///
    /// # Errors
    /// `InvalidArg` for a token that the mask does not allow, or a grammar that has grown too complex.
    pub fn advance(&mut self, token: TokenId) -> Result<()> {
        // Steps overlap: one more may be computed for a sequence that has just ended.
        if self.ended || self.end_ids.contains(&token) && self.inner.is_accepting().unwrap_or(false) {
            self.ended = true;
            return Ok(());
        }
        let id = u32::try_from(token).map_err(|_| Error::internal(format!("token {token} reached a guide")))?;
        self.inner.consume_token(id).map_err(|error| failed(&error.to_string()))
    }

    /// The tokens that may come next; end ids exactly when the answer is complete.
    ///
    /// # Errors
    /// `InvalidArg` at a dead end, and where the grammar has grown too complex.
    pub fn mask(&mut self) -> Result<TokenMask> {
        if self.ended || self.is_complete() {
            return Ok(self.end_mask());
        }
        let accepting = self.inner.is_accepting().map_err(|error| failed(&error.to_string()))?;
        let allowed = match self.inner.compute_mask() {
            Ok(allowed) => allowed,
            Err(_) if accepting && self.inner.stop_reason() == StopReason::NoExtensionBias => {
                return Ok(self.end_mask());
            }
            Err(error) => return Err(failed(&error.to_string())),
        };
        self.work += self.inner.last_step_stats().map_or(0, |stats| stats.lexer_cost);
        let mut words = allowed.as_slice().to_vec();
        words.resize(self.words, 0);
        let mut mask = TokenMask { words, only_end: false };
        if accepting {
            self.end_ids.iter().for_each(|&id| mask.allow(id));
        }
        if mask.words.iter().all(|&word| word == 0) {
            return Err(failed("no token of the vocabulary can follow"));
        }
        Ok(mask)
    }

    pub(super) fn work(&self) -> u64 {
        self.work
    }

    /// Back at the beginning, with the work that its states cost; `None` where the grammar has no way back.
    pub(super) fn into_start(mut self) -> Option<(Matcher, u64)> {
        self.inner.reset().ok()?;
        // What is kept of the last mask is known by its place alone, where another answer may stand otherwise.
        self.inner.invalidate_bias_cache();
        Some((self.inner, self.work))
    }

    /// Nothing can follow.
    fn is_complete(&self) -> bool {
        matches!(self.inner.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence)
    }

    fn end_mask(&self) -> TokenMask {
        let mut mask = TokenMask { words: vec![0; self.words], only_end: true };
        self.end_ids.iter().for_each(|&id| mask.allow(id));
        mask
    }
}

fn failed(reason: &str) -> Error {
    Error::invalid(format!("guided decoding cannot go on: {}", super::shortened(reason)))
}
