//! Records that [`super::Device::edit_logits`] reads: what each row's request changes in its logits, in 32-bit words.

use super::Tensor;
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Arguments of [`super::Device::edit_logits`]. R rows, V vocabulary, T tokens of the step.
pub struct EditLogits<'a> {
    /// `[R, V]` F32, unchanged.
    pub logits: &'a Tensor,
    /// `[R, V]` F32: the edited logits of rows that are edited; other rows are left alone.
    pub out: &'a Tensor,
    /// `[R, V]` I32, of no content before and after.
    pub counts: &'a Tensor,
    /// `[R, 24]` I32: a [`RowEdits`] for each row.
    pub rows: &'a Tensor,
    /// `[1, N]` I32: the histories and lists of sequences, where the rows say.
    pub tables: &'a Tensor,
    /// `[1, T]` I32, those in flight resolved: a row's own is put at the end of its history.
    pub tokens: &'a Tensor,
    /// `[M, ⌈V / 32⌉]` I32: bit `v % 32` of word `v / 32` is set where token v may be chosen.
    pub masks: Option<&'a Tensor>,
    /// `[R, 12]` I32 ([`super::RowSampling`]), of the same rows: top-p is replaced where it depends on the tokens so far.
    pub sampling: &'a Tensor,
}

/// Top-p that decays, and starts anew with a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecayingTopP {
    pub start: f32,
    pub decay: f32,
    pub min: f32,
    pub reset_id: TokenId,
}

/// A list of words in [`EditLogits::tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableList {
    pub start: u32,
    pub len: u32,
}

/// What is done to one row, in the order of [`crate::decode::logits::apply`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowEdits {
    /// F32 values, added to the first logits.
    pub bias: Option<TableList>,
    pub inverse_temperature: f32,
    /// Row of [`EditLogits::masks`].
    pub mask: Option<u32>,
    /// `(repetition, presence, frequency)`.
    pub penalties: Option<(f32, f32, f32)>,
    /// Tokens at the start that neither presence nor frequency penalty counts.
    pub ignored: u32,
    /// Masked tokens: the end ids of a sequence that is too short.
    pub end_ids: Option<TableList>,
    /// 0: n-grams may repeat.
    pub no_repeat_ngram_size: u32,
    /// `len` bad words: the end of each among their tokens, then all tokens.
    pub words: Option<TableList>,
    pub top_p: Option<DecayingTopP>,
    pub prompt_len: u32,
    /// Prompt and generated tokens; needed by penalties, n-grams, words of several tokens and a decaying top-p.
    pub history: Option<TableList>,
    /// Which of the step's tokens is the last of the history.
    pub token: u32,
}

const EDITED: i32 = 1;
const PENALTIES: i32 = 2;
const FOLLOWS_TOKENS: i32 = 4;

impl RowEdits {
    /// Words of a row; zeros: the row is left alone.
    pub const WORDS: usize = 24;

    /// As a device reads it.
    pub fn encode(&self) -> [i32; Self::WORDS] {
        let bits = |value: f32| value.to_bits() as i32;
        let start = |list: Option<TableList>| list.map_or(-1, |list| list.start as i32);
        let len = |list: Option<TableList>| list.map_or(0, |list| list.len as i32);
        let (repetition, presence, frequency) = self.penalties.unwrap_or((1.0, 0.0, 0.0));
        let top_p = self.top_p.unwrap_or(DecayingTopP { start: 1.0, decay: 1.0, min: 0.0, reset_id: 0 });
        let flags = EDITED
            | if self.penalties.is_some() { PENALTIES } else { 0 }
            | if self.top_p.is_some() { FOLLOWS_TOKENS } else { 0 };
        [
            flags,
            bits(self.inverse_temperature),
            bits(repetition),
            bits(presence),
            bits(frequency),
            self.ignored as i32,
            self.no_repeat_ngram_size as i32,
            self.prompt_len as i32,
            len(self.history),
            start(self.history),
            start(self.words),
            len(self.words),
            start(self.end_ids),
            len(self.end_ids),
            start(self.bias),
            len(self.bias),
            self.mask.map_or(-1, |row| row as i32),
            bits(top_p.start),
            bits(top_p.decay),
            bits(top_p.min),
            top_p.reset_id,
            self.token as i32,
            0,
            0,
        ]
    }

    /// `None`: the row is left alone.
    ///
    /// # Errors
    /// Internal, for words that [`RowEdits::encode`] does not make.
    pub fn decode(words: &[i32]) -> Result<Option<Self>> {
        if words.len() != Self::WORDS {
            return Err(Error::internal(format!("a row of edits has {} words, not {}", words.len(), Self::WORDS)));
        }
        if words[0] & EDITED == 0 {
            return Ok(None);
        }
        let float = |at: usize| f32::from_bits(words[at] as u32);
        let list = |start: usize, len: usize| {
            (words[start] >= 0).then_some(TableList { start: words[start] as u32, len: words[len] as u32 })
        };
        Ok(Some(Self {
            bias: list(14, 15),
            inverse_temperature: float(1),
            mask: u32::try_from(words[16]).ok(),
            penalties: (words[0] & PENALTIES != 0).then(|| (float(2), float(3), float(4))),
            ignored: words[5] as u32,
            end_ids: list(12, 13),
            no_repeat_ngram_size: words[6] as u32,
            words: list(10, 11),
            top_p: (words[0] & FOLLOWS_TOKENS != 0).then(|| DecayingTopP {
                start: float(17),
                decay: float(18),
                min: float(19),
                reset_id: words[20],
            }),
            prompt_len: words[7] as u32,
            history: list(9, 8),
            token: words[21] as u32,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_way_to_the_device_and_back() {
        let list = |start, len| Some(TableList { start, len });
        let plain = RowEdits {
            bias: None,
            inverse_temperature: 0.5,
            mask: None,
            penalties: None,
            ignored: 0,
            end_ids: None,
            no_repeat_ngram_size: 0,
            words: None,
            top_p: None,
            prompt_len: 7,
            history: None,
            token: 3,
        };
        let full = RowEdits {
            bias: list(0, 100),
            mask: Some(4),
            penalties: Some((1.5, -0.25, 0.125)),
            ignored: 5,
            end_ids: list(100, 2),
            no_repeat_ngram_size: 3,
            words: list(102, 9),
            top_p: Some(DecayingTopP { start: 0.9, decay: 0.5, min: 0.1, reset_id: 11 }),
            history: list(4096, 77),
            ..plain
        };
        for row in [plain, full] {
            assert_eq!(RowEdits::decode(&row.encode()).unwrap(), Some(row));
        }
        assert_eq!(RowEdits::decode(&[0; RowEdits::WORDS]).unwrap(), None);
        assert!(RowEdits::decode(&[0; 8]).is_err());
    }
}
