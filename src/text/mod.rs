//! Tokens to text and back: tokenizer, chat templates, incremental detokenization, stop strings, word lists. Pure; only
//! [`Tokenizer::load`] and [`ChatTemplate::load`] read files.

mod chat;
mod decoder;
mod detokenizer;
mod jinja;
mod jinja_source;
mod load;
mod sentencepiece;
mod special;
mod stop;
#[cfg(test)]
pub(crate) mod testing;
mod tiktoken;
mod tokenizer;
mod words;

pub use chat::{ChatFiles, ChatOptions, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use special::SpecialToken;
pub use stop::{StopChunk, StopMatcher, StopStrings};
pub use tokenizer::{Tokenizer, TokenizerFiles, Vocabulary};
pub use words::{PackedWords, embedding_bias, encode_word_line, encode_words, pack_words, unpack_words};
