//! Tokens that are guessed before the model is asked, so that one step can confirm several.
//!
//! A guess is a chain: each token is followed by the next. Trees (Medusa, EAGLE, ReDrafter, lookahead) extend the same
//! seam. A chunk that guesses G tokens brings, in the order of its slots,
//!
//! - the tokens `[G]`, parents before children: [`crate::step::Chunk::draft`];
//! - their depths `[G]`, the first 1: token `i` has the position of the last known token plus its depth, while its slot
//!   stays the one behind that of token `i - 1`;
//! - packed masks `[G, ceil(G / 32)]`: bit `j % 32` of word `j / 32` of row `i` says that token `i` sees token `j`, which is
//!   itself or an ancestor; all of them see what is known.
//!
//! A chain has depths `1..=G` and lower triangles, which is what attention does without masks. A step verifies one path from
//! the root: behind each accepted token it samples from that token's row, and goes on at the child that was sampled. Its
//! output names the accepted slots; where they are no neighbours, the plan of the next step moves them together before
//! anything is computed, as it copies blocks ([`crate::step::BlockCopy`]), so that slots are positions again. A chain moves
//! nothing. What the engine relies on stays the same: a step returns the tokens of one path, the last of which has no slot
//! yet.

use crate::ids::TokenId;
use std::collections::HashMap;

/// Guesses from what the sequence itself has said: what followed the latest occurrence of its last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NGramOptions {
    /// Most tokens guessed at a time, at least 1.
    pub max_draft_len: usize,
    /// Most last tokens that are looked for, at least 1; shorter runs are tried when a longer one never occurred.
    pub max_matching_ngram_size: usize,
}

/// Guesses the next tokens of one sequence.
#[derive(Debug)]
pub struct Drafter {
    given: Vec<TokenId>,
    ngrams: Option<NGrams>,
    /// Tokens from here on are rows of a prompt table, which no model says.
    vocab_size: usize,
}

impl Drafter {
    /// `given`: what the client expects behind the prompt. `None` where there is nothing to guess from.
    pub fn new(given: &[TokenId], ngrams: Option<NGramOptions>, vocab_size: usize) -> Option<Self> {
        let ngrams = ngrams.map(|options| NGrams { options, next: HashMap::new(), indexed: 1 });
        (!given.is_empty() || ngrams.is_some()).then(|| Self { given: given.to_vec(), ngrams, vocab_size })
    }

    /// Up to `most` tokens that may follow `tokens`, which begin with the prompt. The tokens of a later call begin with
    /// those of an earlier one; its cost is that of the tokens that are new.
    pub fn propose(&mut self, tokens: &[TokenId], prompt_len: usize, most: usize) -> Vec<TokenId> {
        let expected = self.given.strip_prefix(&tokens[prompt_len..]).filter(|rest| !rest.is_empty());
        let mut draft = match (expected, &mut self.ngrams) {
            (Some(rest), _) => rest[..rest.len().min(most)].to_vec(),
            (None, Some(ngrams)) => ngrams.propose(tokens, most),
            (None, None) => Vec::new(),
        };
        let is_said = |&token: &TokenId| usize::try_from(token).is_ok_and(|token| token < self.vocab_size);
        draft.truncate(draft.iter().take_while(|token| is_said(token)).count());
        draft
    }

    /// Whether no call of [`Drafter::propose`] can guess any more, now that `generated` has been said.
    pub fn is_exhausted(&self, generated: &[TokenId]) -> bool {
        self.ngrams.is_none() && self.given.strip_prefix(generated).is_none_or(<[TokenId]>::is_empty)
    }
}

/// Where each run of tokens occurred last.
#[derive(Debug)]
struct NGrams {
    options: NGramOptions,
    /// From the hash of a run to the position behind its latest occurrence that something follows.
    next: HashMap<u64, u32>,
    /// Positions before this one are in the map as what follows a run.
    indexed: usize,
}

impl NGrams {
    fn propose(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId> {
        let longest = self.options.max_matching_ngram_size;
        for position in self.indexed..tokens.len() {
            for size in 1..=longest.min(position) {
                self.next.insert(hash(&tokens[position - size..position]), position as u32);
            }
        }
        self.indexed = tokens.len();
        let found = (1..=longest.min(tokens.len() - 1)).rev().find_map(|size| {
            let run = &tokens[tokens.len() - size..];
            let position = *self.next.get(&hash(run))? as usize;
            (position >= size && tokens[position - size..position] == *run).then_some(position)
        });
        let Some(start) = found else { return Vec::new() };
        let mut draft: Vec<TokenId> = Vec::with_capacity(most.min(self.options.max_draft_len));
        // Behind the end, what was guessed goes on: a repetition repeats itself.
        for at in start..start + draft.capacity() {
            draft.push(tokens.get(at).copied().unwrap_or_else(|| draft[at - tokens.len()]));
        }
        draft
    }
}

fn hash(run: &[TokenId]) -> u64 {
    let mix = |hash: u64, token: &TokenId| {
        (hash ^ (*token as u32 as u64)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    };
    run.iter().fold(run.len() as u64, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafter(max_draft_len: usize, max_matching_ngram_size: usize) -> Drafter {
        Drafter::new(&[], Some(NGramOptions { max_draft_len, max_matching_ngram_size }), 1000).unwrap()
    }

    #[test]
    fn the_longest_and_latest_match_is_continued() {
        let tokens = [1, 2, 3, 4, 9, 2, 3, 5, 8, 1, 2, 3];
        assert_eq!(drafter(3, 3).propose(&tokens, 12, 9), [4, 9, 2], "three tokens matched");
        assert_eq!(drafter(3, 2).propose(&tokens, 12, 9), [5, 8, 1], "two tokens matched, latest");
        assert_eq!(drafter(3, 2).propose(&tokens, 12, 1), [5]);
        assert!(drafter(3, 3).propose(&[1, 2, 3], 3, 9).is_empty());
        assert!(drafter(3, 3).propose(&[1], 1, 9).is_empty());
    }

    #[test]
    fn a_repetition_is_guessed_to_go_on() {
        assert_eq!(drafter(5, 4).propose(&[7, 1, 2, 1, 2], 5, 9), [1, 2, 1, 2, 1]);
        assert_eq!(drafter(4, 4).propose(&[6, 6], 2, 9), [6, 6, 6, 6]);
    }

    #[test]
    fn a_row_of_a_prompt_table_is_no_guess_but_ends_one() {
        let tokens = [1000, 1001, 5, 6, 1000, 7, 5];
        assert_eq!(drafter(3, 2).propose(&tokens, 7, 9), [6], "6 and not the row that followed it");
        assert!(drafter(3, 2).propose(&[5, 1000, 6, 5], 4, 9).is_empty());
        assert_eq!(drafter(3, 2).propose(&[1000, 5, 6, 1000], 4, 9), [5, 6], "what followed a row is one");
    }

    #[test]
    fn guesses_do_not_depend_on_how_often_was_asked() {
        let tokens: Vec<TokenId> = (0..200).map(|at: TokenId| at * at % 7 % 3).collect();
        let mut often = drafter(4, 3);
        for len in 1..tokens.len() {
            assert_eq!(often.propose(&tokens[..len], 1, 4), drafter(4, 3).propose(&tokens[..len], 1, 4));
        }
    }

    #[test]
    fn what_was_given_counts_as_long_as_it_comes_true() {
        let mut drafter = Drafter::new(&[5, 6, 7], None, 1000).unwrap();
        assert_eq!(drafter.propose(&[1, 2], 2, 2), [5, 6]);
        assert_eq!(drafter.propose(&[1, 2, 5], 2, 9), [6, 7]);
        assert!(drafter.propose(&[1, 2, 4], 2, 9).is_empty());
        assert!(!drafter.is_exhausted(&[5]) && drafter.is_exhausted(&[4]) && drafter.is_exhausted(&[5, 6, 7]));
        assert!(Drafter::new(&[], None, 1000).is_none());
    }
}
