//! When a sequence ends, decided on token ids.

use super::StopCriteria;
use crate::ids::TokenId;

/// What the next token means for its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopVerdict {
    /// Output; the sequence goes on.
    Continue,
    /// Ends the sequence and is not output.
    EndId,
    /// Output; it completes a stop word.
    StopWord,
    /// Output; it is the last one that was asked for.
    Length,
}

impl StopCriteria {
    /// Judges `next` after the `generated` tokens. The end id wins over a stop word, a stop word over the length.
    pub fn judge(&self, generated: &[TokenId], next: TokenId) -> StopVerdict {
        if self.end_ids.contains(&next) {
            return StopVerdict::EndId;
        }
        let completes = |word: &Vec<TokenId>| match word.split_last() {
            Some((last, rest)) => *last == next && generated.ends_with(rest),
            None => false,
        };
        if self.stop_words.iter().any(completes) {
            return StopVerdict::StopWord;
        }
        if generated.len() + 1 >= self.max_tokens { StopVerdict::Length } else { StopVerdict::Continue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn criteria(max_tokens: usize) -> StopCriteria {
        StopCriteria { max_tokens, end_ids: vec![7, 8], stop_words: vec![vec![1, 2], vec![3]] }
    }

    #[test]
    fn an_end_id_wins_over_the_length() {
        assert_eq!(criteria(1).judge(&[], 8), StopVerdict::EndId);
    }

    #[test]
    fn a_stop_word_ends_at_its_last_token_only() {
        assert_eq!(criteria(9).judge(&[], 2), StopVerdict::Continue);
        assert_eq!(criteria(9).judge(&[5, 1], 2), StopVerdict::StopWord);
        assert_eq!(criteria(9).judge(&[1, 5], 2), StopVerdict::Continue);
        assert_eq!(criteria(9).judge(&[1], 3), StopVerdict::StopWord);
    }

    #[test]
    fn the_last_token_that_was_asked_for_ends_the_sequence() {
        assert_eq!(criteria(3).judge(&[5], 5), StopVerdict::Continue);
        assert_eq!(criteria(3).judge(&[5, 5], 5), StopVerdict::Length);
    }
}
