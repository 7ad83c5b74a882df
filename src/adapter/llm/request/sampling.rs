//! How tokens are chosen.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::{LogProbs, Reader, out_of_range};
use crate::config::DecodingMode;
use crate::decode::{DraftLogits, SamplingParams};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Most tokens that `num_top_log_probs` may ask for.
const MAX_TOP_LOG_PROBS: u32 = 1024;

impl Reader<'_> {
    pub(super) fn sampling(&self, row: usize) -> Result<SamplingParams> {
        let default = SamplingParams::default();
        let mut sampling = SamplingParams {
            temperature: self.float("temperature", row, "0 or more", |t| t >= 0.0)?.unwrap_or(default.temperature),
            top_k: self.int("runtime_top_k", row, 0)?.unwrap_or(0),
            // Upstream's clients send 0 for "not set".
            top_p: self.float("runtime_top_p", row, "at most 1", |p| p <= 1.0)?.filter(|&p| p > 0.0),
            repetition_penalty: self
                .float("repetition_penalty", row, "more than 0", |penalty| penalty > 0.0)?
                .unwrap_or(default.repetition_penalty),
            presence_penalty: self.inputs.float("presence_penalty", row)?.unwrap_or(default.presence_penalty),
            frequency_penalty: self.inputs.float("frequency_penalty", row)?.unwrap_or(default.frequency_penalty),
            top_p_decay: self
                .float("runtime_top_p_decay", row, "more than 0 and at most 1", |decay| decay > 0.0 && decay <= 1.0)?
                .unwrap_or(default.top_p_decay),
            top_p_min: self
                .float("runtime_top_p_min", row, "0 to 1", |min| (0.0..=1.0).contains(&min))?
                .unwrap_or(default.top_p_min),
            top_p_reset_id: self.int("runtime_top_p_reset_ids", row, 0)?.map(|id| id as TokenId),
            min_p: self.float("min_p", row, "0 to 1", |p| (0.0..=1.0).contains(&p))?.unwrap_or(default.min_p),
            typical_p: self
                .float("typical_p", row, "more than 0 and at most 1", |p| p > 0.0 && p <= 1.0)?
                .unwrap_or(default.typical_p),
            order: self.rules.order,
            top_log_probs: self.top_log_probs(row)?,
            prompt_ignore_length: self.int("prompt_ignore_length", row, 0)?.unwrap_or(0),
            no_repeat_ngram_size: self.int("no_repeat_ngram_size", row, 0)?.unwrap_or(0),
            embedding_bias: self.embedding_bias(row)?,
            min_tokens: self.int("min_tokens", row, 0)?.unwrap_or(1),
            end_ids: self.end_ids(row)?,
            ..default
        };
        match self.rules.mode {
            Some(DecodingMode::TopK) => sampling.top_p = None,
            Some(DecodingMode::TopP) => sampling.top_k = 0,
            _ => {}
        }
        sampling.seed = match self.inputs.uint64("seed", row)? {
            Some(seed) => seed,
            // Token clients know upstream's default; who gives text expects another answer each time.
            None if self.inputs.has("text_input") && !sampling.is_greedy() => fresh_seed(),
            None => 0,
        };
        Ok(sampling)
    }

    /// -∞ forbids a token.
    fn embedding_bias(&self, row: usize) -> Result<Option<Arc<[f32]>>> {
        let bias = self.inputs.floats("embedding_bias", row)?;
        if let Some(value) = bias.iter().find(|value| value.is_nan() || **value == f32::INFINITY) {
            return Err(out_of_range("embedding_bias", value, "numbers or -inf"));
        }
        Ok((!bias.is_empty()).then(|| bias.into()))
    }

    fn end_ids(&self, row: usize) -> Result<Vec<TokenId>> {
        let mut end_ids = match self.inputs.flag_of("ignore_eos", row)? {
            Some(true) => Vec::new(),
            _ => self.eos_ids(row)?,
        };
        let stop_ids = self.inputs.ints("stop_token_ids", row)?;
        self.check_vocab("stop_token_ids", &stop_ids)?;
        end_ids.extend(stop_ids);
        Ok(end_ids)
    }

    fn eos_ids(&self, row: usize) -> Result<Vec<TokenId>> {
        match self.inputs.int("end_id", row)? {
            Some(-1) => Ok(Vec::new()),
            // One outside the vocabulary is the engine's to refuse, in the words of its runtime errors.
            Some(id) => Ok(vec![id]),
            None if self.inputs.has("text_input") => {
                Ok(self.rules.text.as_ref().map_or_else(Vec::new, |text| text.end_ids.clone()))
            }
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn log_probs(&self, row: usize, sampling: &mut SamplingParams) -> Result<Option<LogProbs>> {
        if !self.inputs.flag_of("return_log_probs", row)?.unwrap_or(false) {
            return Ok(None);
        }
        sampling.log_probs = true;
        let relative = self.rules.normalize_log_probs && !sampling.is_greedy();
        Ok(Some(if relative { LogProbs::Candidates } else { LogProbs::Full }))
    }

    fn top_log_probs(&self, row: usize) -> Result<u32> {
        let most = MAX_TOP_LOG_PROBS.min(self.rules.vocab_size as u32);
        match self.int("num_top_log_probs", row, 0)? {
            Some(count) if count > most => Err(out_of_range("num_top_log_probs", count, &format!("0 to {most}"))),
            count => Ok(count.unwrap_or(0)),
        }
    }

    /// What draft tokens were drawn from. The threshold has a meaning with it only.
    pub(super) fn draft_logits(&self, row: usize, draft: &[TokenId]) -> Result<Option<DraftLogits>> {
        let threshold = self.float("draft_acceptance_threshold", row, "more than 0 and at most 1", |value| {
            value > 0.0 && value <= 1.0
        })?;
        let Some(&[.., rows, width]) = self.inputs.shape("draft_logits") else { return Ok(None) };
        let (tokens, vocab) = (draft.len(), self.rules.vocab_size);
        let wrong = |what: &str| Err(Error::invalid(format!("draft_logits has {what}")));
        if rows != tokens as i64 {
            return wrong(&format!("{rows} rows, expected one for each of the {tokens} tokens of draft_input_ids"));
        }
        if width < vocab as i64 {
            return wrong(&format!("{width} logits for each token, expected the {vocab} of the vocabulary"));
        }
        let values = self.inputs.batch_floats("draft_logits", row)?;
        if let Some(value) = values.iter().find(|value| value.is_nan() || **value == f32::INFINITY) {
            return wrong(&format!("the logit {value}, expected numbers or -inf"));
        }
        let rows = values.chunks_exact(width as usize).map(|row| row[..vocab].to_vec()).collect();
        Ok(Some(DraftLogits { tokens: draft.into(), rows, threshold }))
    }
}

/// Unlike any other seed of the process, and unlike those of the process before.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(0_u8)
}
