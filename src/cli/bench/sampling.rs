//! How the requests of a load test choose their tokens.

use crate::decode::SamplingParams;
use crate::decode::guided::{Guide, GuideKind, GuideSource, GuideToken, Guides};
use crate::error::Result;
use clap::ValueEnum;
use std::sync::Arc;

/// What all requests ask for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Choice {
    /// The most likely token.
    Greedy,
    /// Drawn by top-k and top-p.
    Drawn,
    /// Drawn by top-k, min-p and typical-p.
    Narrowed,
    /// With log-probabilities of the five most likely tokens.
    LogProbs,
    /// All penalties, n-grams that do not repeat, a bias, bad words and a minimum length.
    Knobs,
    /// Held to a regular expression of objects with names and values.
    Guided,
}

/// Without an end, so that answers have the length that was asked for.
pub(super) const EXPRESSION: &str = r#"(\{"[a-z]+": ?([0-9]+|"[a-z ]*")\},? ?)*"#;

/// Makes the parameters of requests.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    choice: Choice,
    guide: Option<Guide>,
    bias: Arc<[f32]>,
}

impl Sampler {
    /// # Errors
    /// When the guide cannot be compiled.
    pub(super) fn new(choice: Choice, vocab_size: usize) -> Result<Self> {
        let guide = match choice {
            Choice::Guided => {
                let source = GuideSource { kind: GuideKind::Regex, text: EXPRESSION.to_owned() };
                Some(Guides::new(&vocabulary(vocab_size))?.compile(&source)?)
            }
            _ => None,
        };
        let bias = (0..vocab_size).map(|token| (token % 7) as f32 * 0.01).collect();
        Ok(Self { choice, guide, bias })
    }

    /// Of the request of this number.
    pub(super) fn params(&self, number: usize) -> SamplingParams {
        let greedy = SamplingParams { seed: number as u64, ..SamplingParams::default() };
        let drawn = SamplingParams { temperature: 0.8, top_k: 50, top_p: Some(0.9), ..greedy.clone() };
        match self.choice {
            Choice::Greedy => greedy,
            Choice::Drawn => drawn,
            Choice::Narrowed => SamplingParams { top_p: None, min_p: 0.02, typical_p: 0.9, ..drawn },
            Choice::LogProbs => SamplingParams { log_probs: true, top_log_probs: 5, ..drawn },
            Choice::Knobs => SamplingParams {
                repetition_penalty: 1.1,
                presence_penalty: 0.2,
                frequency_penalty: 0.1,
                no_repeat_ngram_size: 4,
                embedding_bias: Some(self.bias.clone()),
                bad_words: vec![vec![5], vec![17, 3]],
                min_tokens: 8,
                end_ids: vec![2],
                ..drawn
            },
            Choice::Guided => SamplingParams { guide: self.guide.clone(), ..drawn },
        }
    }
}

/// Bytes, then words of letters, some behind a space or in quotes.
pub(super) fn vocabulary(size: usize) -> Vec<GuideToken> {
    let word = |number: usize| {
        let mut rest = number;
        let letters = std::iter::from_fn(|| {
            let letter = (rest > 0).then(|| b'a' + (rest % 26) as u8);
            rest /= 26;
            letter
        });
        let letters: Vec<u8> = letters.collect();
        match number % 4 {
            0 => [b" ", &letters[..]].concat(),
            1 => [b"\"", &letters[..]].concat(),
            _ => letters,
        }
    };
    let text = |token: usize| u8::try_from(token).map_or_else(|_| word(token), |byte| vec![byte]);
    (0..size).map(|token| GuideToken::Text(text(token))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TokenId;

    #[test]
    fn the_guide_never_ends_and_allows_what_it_says() {
        let sampler = Sampler::new(Choice::Guided, 1000).unwrap();
        let mut matcher = sampler.params(1).guide.unwrap().matcher(&[]);
        for byte in *b"{\"ab\": 12}, {\"c\": \"d e\"}" {
            let mask = matcher.mask().unwrap();
            assert!(mask.allows(TokenId::from(byte)) && !mask.allows(TokenId::from(b'#')), "{}", byte as char);
            matcher.advance(TokenId::from(byte)).unwrap();
        }
        assert!(matcher.mask().unwrap().allows(TokenId::from(b'{')));
    }
}
