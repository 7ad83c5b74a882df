//! Tokens to text and back: tokenizer, incremental detokenization, stop strings, word lists. Pure; only
//! [`Tokenizer::load`] reads files.

mod decoder;
mod detokenizer;
mod special;
mod stop;
#[cfg(test)]
pub(crate) mod testing;
mod tokenizer;
mod words;

pub use detokenizer::Detokenizer;
pub use special::SpecialToken;
pub use stop::{StopChunk, StopMatcher, StopStrings};
pub use tokenizer::{Tokenizer, TokenizerFiles};
pub use words::{PackedWords, embedding_bias, encode_words, pack_words, unpack_words};
