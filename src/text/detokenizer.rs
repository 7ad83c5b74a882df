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
    /// The beginning of a text.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{self, HARD_TEXTS, Random};

    fn stream(tokenizer: &Arc<Tokenizer>, ids: &[TokenId], skip: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
        let mut chunks: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
        chunks.push(detokenizer.finish());
        chunks
    }

    /// Random ids: mostly random, with runs of neighbours, special tokens and ids outside the vocabulary.
    fn random_ids(random: &mut Random, vocab: usize) -> Vec<TokenId> {
        let len = random.below(40);
        let mut ids = Vec::new();
        while ids.len() < len {
            match random.below(8) {
                0 => ids.push((vocab - 1 - random.below(4)) as TokenId),
                1 => ids.push((vocab + random.below(3)) as TokenId),
                2 => {
                    let id = random.below(vocab) as TokenId;
                    ids.extend(std::iter::repeat_n(id, 1 + random.below(4)));
                }
                3 => ids.push(random.below(vocab.min(16)) as TokenId),
                _ => ids.push(random.below(vocab) as TokenId),
            }
        }
        ids
    }

    fn reference(tokenizer: &tokenizers::Tokenizer, ids: &[TokenId], skip: bool) -> String {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        tokenizer.decode(&ids, skip).unwrap()
    }

    #[test]
    fn random_streams_equal_the_whole_text_and_the_reference() {
        for (name, json) in testing::all_kinds() {
            let reference_tokenizer: tokenizers::Tokenizer = json.to_string().parse().unwrap();
            let tokenizer = Arc::new(testing::tokenizer(&json));
            let mut random = Random(99);
            for _ in 0..3000 {
                let ids = random_ids(&mut random, tokenizer.vocab_size());
                for skip in [false, true] {
                    let whole = reference(&reference_tokenizer, &ids, skip);
                    assert_eq!(tokenizer.decode(&ids, skip), whole, "{name}: decode {ids:?} skip {skip}");
                    assert_eq!(stream(&tokenizer, &ids, skip).concat(), whole, "{name}: stream {ids:?} skip {skip}");
                }
            }
        }
    }

    #[test]
    fn hard_texts_come_back_in_whole_characters() {
        for (name, json) in [("byte level", testing::byte_level()), ("fallback", testing::byte_fallback(true))] {
            let tokenizer = Arc::new(testing::tokenizer(&json));
            for text in HARD_TEXTS {
                let ids = tokenizer.encode(text, true).unwrap();
                let expected = if name == "byte level" { text.to_owned() } else { text.replace('▁', " ") };
                let chunks = stream(&tokenizer, &ids, true);
                assert_eq!(chunks.concat(), expected, "{name}");
                assert!(chunks.iter().all(|chunk| !chunk.contains('\u{FFFD}')), "{name}: {chunks:?}");
            }
        }
    }

    #[test]
    fn a_byte_level_character_is_out_with_its_last_byte() {
        let tokenizer = Arc::new(testing::tokenizer(&testing::byte_level()));
        let ids: Vec<TokenId> = "a😀b".bytes().map(TokenId::from).collect();
        assert_eq!(stream(&tokenizer, &ids, true), ["a", "", "", "", "😀", "b", ""]);
    }

    #[test]
    fn a_fallback_run_is_out_with_the_token_after_it_or_at_the_bound() {
        let tokenizer = Arc::new(testing::tokenizer(&testing::byte_fallback(true)));
        let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
        let hello = tokenizer.token_to_id("▁Hello").unwrap();

        let mut ids: Vec<TokenId> = "😀".bytes().map(byte).collect();
        ids.push(hello);
        assert_eq!(stream(&tokenizer, &ids, true), ["", "", "", "", "😀 Hello", ""]);

        let mut detokenizer = Detokenizer::new(tokenizer.clone(), true);
        let text = "é".repeat(1000);
        let mut sent = String::new();
        for (i, b) in text.bytes().enumerate() {
            sent += &detokenizer.push(byte(b));
            assert!(i + 1 - sent.len() <= 32, "held back {} bytes", i + 1 - sent.len());
        }
        assert_eq!(sent + &detokenizer.finish(), text);
    }

    #[test]
    fn an_endless_run_of_invalid_bytes_is_not_held_back() {
        let byte_level = Arc::new(testing::tokenizer(&testing::byte_level()));
        let fallback = Arc::new(testing::tokenizer(&testing::byte_fallback(true)));
        let fallback_id = fallback.token_to_id("<0x80>").unwrap();
        for (tokenizer, id) in [(byte_level, 0x80), (fallback, fallback_id)] {
            let mut detokenizer = Detokenizer::new(tokenizer, true);
            assert!((0..100_000).all(|_| detokenizer.push(id) == "\u{FFFD}"));
        }
    }

    #[test]
    fn a_fork_continues_on_its_own() {
        let tokenizer = Arc::new(testing::tokenizer(&testing::byte_level()));
        let mut one = Detokenizer::new(tokenizer, true);
        assert_eq!(one.push_all(&[0xC3]), "");
        let mut two = one.clone();
        assert_eq!((one.push(0xA9), two.push(0xA8)), ("é".into(), "è".into()));
    }

    #[test]
    fn the_prompt_decides_whether_the_leading_blank_stays() {
        let tokenizer = Arc::new(testing::tokenizer(&testing::byte_fallback(true)));
        let hello = tokenizer.token_to_id("▁Hello").unwrap();
        let mut alone = Detokenizer::new(tokenizer.clone(), true);
        assert_eq!(alone.push(hello), "Hello");
        let mut after_prompt = Detokenizer::new(tokenizer, true);
        after_prompt.push(hello);
        assert_eq!(after_prompt.push(hello), " Hello");
    }
}
