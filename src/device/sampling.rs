//! Records that [`super::Device::sample`] reads and writes: fixed rows of 32-bit words, so that a step's rows are part of
//! its one upload and its one result.

use super::Tensor;
use crate::decode::SamplingParams;
use crate::decode::sample::SampleFault;
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::step::{SampledToken, TokenLogProb};

/// Arguments of [`super::Device::sample`]. R rows, V vocabulary, N entries.
pub struct Sample<'a> {
    /// `[R, V]` F32, unchanged.
    pub logits: &'a Tensor,
    /// `[R, V]` F32: read instead by rows that are [`RowSampling::edited`].
    pub edited: Option<&'a Tensor>,
    /// `[R, 12]` I32: a [`RowSampling`] for each row.
    pub params: &'a Tensor,
    /// `[R, 4]` I32: becomes a [`RowSample`] for each row but the skipped.
    pub out: &'a Tensor,
    /// Whether rows may have min-p or typical-p.
    pub narrowed: bool,
    /// `[1, N]` I32: the entry that a row names gets its token, or 0 where none could be chosen.
    pub sampled: &'a Tensor,
}

/// Arguments of [`super::Device::top_tokens`]. R rows, V vocabulary, N tokens of each.
pub struct TopTokens<'a> {
    /// `[R, V]` F32, unchanged.
    pub logits: &'a Tensor,
    /// `[R, V]` F32: read instead by rows that are [`RowSampling::edited`].
    pub edited: Option<&'a Tensor>,
    /// `[R, 12]` I32: a [`RowSampling`] for each row, whose logits are scaled by its `inverse_temperature`; skipped rows are
    /// left out. `None`: all rows as they are.
    pub params: Option<&'a Tensor>,
    /// `[R, N]` I32, contiguous, N up to [`MAX_TOP_TOKENS`]: the most likely tokens, best first, equals by their ids. What lies
    /// past the vocabulary, and a whole row that nothing can be chosen from, is -1 with the log-probability -∞.
    pub ids: &'a Tensor,
    /// `[R, N]` F32, contiguous: natural log-probabilities within the whole vocabulary.
    pub log_probs: &'a Tensor,
}

/// Most tokens that [`super::Device::top_tokens`] finds in a row.
pub const MAX_TOP_TOKENS: usize = 1024;

/// How a row's token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowMode {
    /// Not at all: padding, or a row that the host samples.
    Skip = 0,
    /// The most likely token, the lowest id among equals.
    Greedy = 1,
    /// Drawn from what top-k, min-p, top-p and typical-p leave.
    Draw = 2,
}

/// What a device knows of a row's request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSampling {
    pub mode: RowMode,
    pub log_probs: bool,
    /// Whether the row is taken from [`Sample::edited`].
    pub edited: bool,
    /// Factor of the logits.
    pub inverse_temperature: f32,
    /// 0: no limit.
    pub top_k: u32,
    /// 1: no limit.
    pub top_p: f32,
    /// 0: no limit.
    pub min_p: f32,
    /// 1: no limit.
    pub typical_p: f32,
    pub seed: u64,
    /// Tokens before the one that is chosen.
    pub position: u32,
    /// Entry of [`Sample::sampled`].
    pub slot: u32,
}

/// Set in the first word where log-probabilities are wanted.
const LOG_PROBS: i32 = 1 << 8;
/// Set in the first word where edited logits are read.
const EDITED: i32 = 1 << 9;
/// Set in the first word where min-p or typical-p narrow what is drawn from.
const NARROWED: i32 = 1 << 10;

impl RowSampling {
    /// Words of a row.
    pub const WORDS: usize = 12;

    /// The word of [`RowSampling::top_p`].
    pub const TOP_P_WORD: usize = 3;

    /// A row without a token.
    pub const SKIP: Self = Self {
        mode: RowMode::Skip,
        log_probs: false,
        edited: false,
        inverse_temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        seed: 0,
        position: 0,
        slot: 0,
    };

    /// The row of a request whose logits are at most scaled.
    pub fn new(params: &SamplingParams, position: usize, slot: usize) -> Self {
        Self {
            mode: if params.is_greedy() { RowMode::Greedy } else { RowMode::Draw },
            log_probs: params.log_probs,
            edited: false,
            inverse_temperature: params.inverse_temperature(),
            top_k: params.top_k,
            top_p: params.top_p.unwrap_or(1.0).min(1.0),
            min_p: params.min_p,
            typical_p: params.typical_p,
            seed: params.seed,
            position: position as u32,
            slot: slot as u32,
        }
    }

    /// The same row, taken from edited logits, which may be scaled already.
    pub fn of_edited(self, scaled: bool) -> Self {
        Self { edited: true, inverse_temperature: if scaled { 1.0 } else { self.inverse_temperature }, ..self }
    }

    /// As a device reads it.
    pub fn encode(&self) -> [i32; Self::WORDS] {
        let flag = |set: bool, flag: i32| if set { flag } else { 0 };
        let narrowed = self.mode == RowMode::Draw && (self.min_p > 0.0 || self.typical_p < 1.0);
        [
            self.mode as i32 | flag(self.log_probs, LOG_PROBS) | flag(self.edited, EDITED) | flag(narrowed, NARROWED),
            self.inverse_temperature.to_bits() as i32,
            self.top_k as i32,
            self.top_p.to_bits() as i32,
            self.seed as i32,
            (self.seed >> 32) as i32,
            self.position as i32,
            self.slot as i32,
            self.min_p.to_bits() as i32,
            self.typical_p.to_bits() as i32,
            0,
            0,
        ]
    }

    /// # Errors
    /// Internal, for words that [`RowSampling::encode`] does not make.
    pub fn decode(words: &[i32]) -> Result<Self> {
        let &[flags, inverse_temperature, top_k, top_p, seed_low, seed_high, position, slot, min_p, typical_p, _, _] =
            words
        else {
            let (found, wanted) = (words.len(), Self::WORDS);
            return Err(Error::internal(format!("a row of sampling parameters has {found} words, not {wanted}")));
        };
        let mode = match flags & (LOG_PROBS - 1) {
            0 => RowMode::Skip,
            1 => RowMode::Greedy,
            2 => RowMode::Draw,
            other => return Err(Error::internal(format!("{other} is no way to choose a token"))),
        };
        Ok(Self {
            mode,
            log_probs: flags & LOG_PROBS != 0,
            edited: flags & EDITED != 0,
            inverse_temperature: f32::from_bits(inverse_temperature as u32),
            top_k: top_k as u32,
            top_p: f32::from_bits(top_p as u32),
            min_p: f32::from_bits(min_p as u32),
            typical_p: f32::from_bits(typical_p as u32),
            seed: u64::from(seed_low as u32) | u64::from(seed_high as u32) << 32,
            position: position as u32,
            slot: slot as u32,
        })
    }
}

/// What came out of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSample(pub std::result::Result<SampledToken, SampleFault>);

impl RowSample {
    /// Words of a row.
    pub const WORDS: usize = 4;

    /// As a device writes it: token or number, 0 or the kind of fault, both log-probabilities.
    pub fn encode(&self) -> [i32; Self::WORDS] {
        let bits = |value: f32| value.to_bits() as i32;
        match self.0 {
            Ok(SampledToken { id, log_prob }) => {
                let log_prob = log_prob.unwrap_or(TokenLogProb { full: 0.0, candidates: 0.0 });
                [id, 0, bits(log_prob.full), bits(log_prob.candidates)]
            }
            Err(SampleFault::NotNumbers { count }) => [count as i32, 1, 0, 0],
            Err(SampleFault::Infinite { token }) => [token, 2, 0, 0],
            Err(SampleFault::NoToken) => [0, 3, 0, 0],
        }
    }

    /// # Errors
    /// Internal, for words that no device writes.
    pub fn decode(words: &[i32], log_probs: bool) -> Result<Self> {
        let &[number, status, full, candidates] = words else {
            return Err(Error::internal(format!("a sampled row has {} words, not 4", words.len())));
        };
        let value = |bits: i32| f32::from_bits(bits as u32);
        let log_prob = TokenLogProb { full: value(full), candidates: value(candidates) };
        Ok(Self(match status {
            0 => Ok(SampledToken { id: number, log_prob: log_probs.then_some(log_prob) }),
            1 => Err(SampleFault::NotNumbers { count: number as u32 }),
            2 => Err(SampleFault::Infinite { token: number }),
            3 => Err(SampleFault::NoToken),
            other => return Err(Error::internal(format!("a sampled row has status {other}"))),
        }))
    }

    /// The token that a sequence goes on with, whatever came out.
    pub fn token(&self) -> TokenId {
        self.0.map_or(0, |token| token.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_way_to_the_device_and_back() {
        let params = SamplingParams {
            temperature: 0.7,
            top_k: 40,
            top_p: Some(0.9),
            min_p: 0.05,
            typical_p: 0.8,
            seed: u64::MAX - 5,
            log_probs: true,
            ..Default::default()
        };
        let row = RowSampling::new(&params, 12_345, 77);
        assert_eq!((row.mode, row.inverse_temperature), (RowMode::Draw, params.inverse_temperature()));
        for row in [
            row,
            row.of_edited(true),
            row.of_edited(false),
            RowSampling::new(&SamplingParams::default(), 3, 1),
            RowSampling::SKIP,
        ] {
            assert_eq!(RowSampling::decode(&row.encode()).unwrap(), row);
        }
        let log_prob = Some(TokenLogProb { full: -1.5, candidates: -0.5 });
        for (sample, log_probs) in [
            (Ok(SampledToken { id: 9, log_prob }), true),
            (Ok(SampledToken { id: 0, log_prob: None }), false),
            (Err(SampleFault::NotNumbers { count: 3 }), true),
            (Err(SampleFault::Infinite { token: 5 }), false),
            (Err(SampleFault::NoToken), false),
        ] {
            assert_eq!(RowSample::decode(&RowSample(sample).encode(), log_probs).unwrap(), RowSample(sample));
        }
    }
}
