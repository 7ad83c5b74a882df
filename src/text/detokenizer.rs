//! Incremental detokenization: tokens in, text out as soon as it is certain.

use std::sync::Arc;

use crate::ids::TokenId;
use crate::text::decoder::State;
use crate::text::tokenizer::Tokenizer;

/// The text of one growing sequence. The concatenation of all chunks is [`Tokenizer::decode`] of all tokens, byte
/// for byte; each chunk is valid UTF-8 and has a U+FFFD only where the whole text has one. A token costs time in
/// its own length; what is held back is at most an unfinished character or a short run of byte-fallback tokens.
///
/// Cloning it forks the sequence. To continue a prompt's text, push the prompt first and drop what comes out.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    state: State,
}

impl Detokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let state = tokenizer.start();
        Self { tokenizer, skip_special_tokens, state }
    }

    /// The text that has become certain with `token`; often empty. Ids outside the vocabulary give nothing.
    pub fn push(&mut self, token: TokenId) -> String {
        self.push_all(&[token])
    }

    /// The text that has become certain with these tokens.
    pub fn push_all(&mut self, tokens: &[TokenId]) -> String {
        let mut text = String::new();
        for &token in tokens {
            self.tokenizer.step(&mut self.state, token, self.skip_special_tokens, &mut text);
        }
        text
    }

    /// The text that was still held back. The next push begins a new sequence.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.tokenizer.finish(&mut self.state, &mut text);
        self.state = self.tokenizer.start();
        text
    }
}
