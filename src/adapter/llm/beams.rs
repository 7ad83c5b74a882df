//! Beam search on both sides of the engine: from a request's tensors to its parameters, and from hypotheses to tensors.

use super::inputs::Inputs;
use super::logits::beam_logits;
use super::request::{Plan, Rules, out_of_range};
use super::response::{Outputs, RowText};
use crate::config::DecodingMode;
use crate::decode::beam::{BeamParams, EarlyStopping, Hypothesis};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// What fills the rows of shorter hypotheses.
const PAD: i32 = -1;

/// The search that one batch item asks for; none with a width of 1.
///
/// # Errors
/// `InvalidArg` for numbers out of range, and for what a search does not go together with.
pub fn params(rules: &Rules, inputs: &Inputs<'_>, item: usize, stream: bool) -> Result<Option<BeamParams>> {
    let number = |name| match inputs.float(name, item)? {
        Some(value) if value < 0.0 => Err(out_of_range(inputs.given_name(name), value, "0 or more")),
        value => Ok(value.unwrap_or(0.0)),
    };
    let (len_penalty, diversity_rate) = (number("len_penalty")?, number("beam_search_diversity_rate")?);
    let early_stopping = inputs.int("early_stopping", item)?.map_or(EarlyStopping::default(), EarlyStopping::from);
    let widths = inputs.ints("beam_width_array", item)?;
    let width = match inputs.int("beam_width", item)?.unwrap_or(1) {
        width if width < 1 => return Err(out_of_range("beam_width", width, "1 or more")),
        1 if widths.iter().all(|&width| width == 1) => return Ok(None),
        width => width,
    };
    if let Some(wrong) = widths.iter().find(|&&other| !(1..=width).contains(&other)) {
        return Err(out_of_range("beam_width_array", wrong, &format!("1 to the beam_width of {width}")));
    }
    if let Some(mode) = rules.mode.filter(|mode| *mode != DecodingMode::BeamSearch) {
        return Err(Error::invalid(format!(
            "beam_width is {width}, but decoding_mode is {}: expected beam_search or auto",
            DecodingMode::WORDS[mode as usize]
        )));
    }
    for name in ["stop_words", "guided_decoding_guide_type"] {
        if inputs.texts(name, item)?.iter().any(|text| !text.is_empty()) {
            let instead = match name {
                "stop_words" => "give stop_words_list instead",
                _ => "guided decoding does not support beam search",
            };
            return Err(Error::invalid(format!("{name} is given and beam_width is {width}: {instead}")));
        }
    }
    let num_return = match inputs.int("num_return_sequences", item)?.unwrap_or(width) {
        count if !(1..=width).contains(&count) => {
            return Err(out_of_range("num_return_sequences", count, &format!("1 to the beam_width of {width}")));
        }
        count => count as usize,
    };
    let widths = widths.into_iter().map(|width| width as usize).collect();
    let width = width as usize;
    Ok(Some(BeamParams { width, widths, len_penalty, early_stopping, diversity_rate, num_return, stream }))
}

/// The sequence of a request that is a search: all its hypotheses, in each response.
pub struct BeamRow {
    /// Precedes each hypothesis.
    pub echoed: Vec<TokenId>,
    /// At the beginning of the answer.
    pub text: Option<RowText>,
    /// The latest, best first.
    pub hypotheses: Vec<Hypothesis>,
}

impl BeamRow {
    /// `output_ids` and `sequence_length`; returns the number of all tokens.
    pub fn put_tokens(&self, out: &mut Outputs<'_>) -> usize {
        let lengths = self.hypotheses.iter().map(|beam| self.echoed.len() + beam.tokens.len());
        let lengths: Vec<_> = lengths.map(|length| length as i32).collect();
        let longest = lengths.iter().max().map_or(0, |&length| length as usize);
        let mut ids = Vec::with_capacity(longest * lengths.len());
        for (row, beam) in self.hypotheses.iter().enumerate() {
            ids.extend(self.echoed.iter().chain(&beam.tokens));
            ids.resize((row + 1) * longest, PAD);
        }
        let rows = lengths.len() as i64;
        out.ints("output_ids", &[rows, longest as i64], &ids);
        out.ints("sequence_length", &[rows], &lengths);
        lengths.iter().map(|&length| length as usize).sum()
    }

    /// `generation_logits` `[1, B, T, V]`, rows of shorter hypotheses filled with zeros. A stream has none.
    pub fn put_logits(&self, plan: &Plan, out: &mut Outputs<'_>) {
        if plan.wanted.has("generation_logits") && !plan.streaming {
            out.tensors.push(beam_logits(plan, &self.hypotheses));
        }
    }

    /// `output_log_probs` and `cum_log_probs`.
    pub fn put_log_probs(&self, out: &mut Outputs<'_>) {
        let rows = self.hypotheses.len();
        let longest = self.hypotheses.iter().map(|beam| beam.log_probs.len()).max().unwrap_or(0);
        let mut values = Vec::with_capacity(rows * longest);
        for (row, beam) in self.hypotheses.iter().enumerate() {
            values.extend(&beam.log_probs);
            values.resize((row + 1) * longest, PAD as f32);
        }
        out.floats("output_log_probs", &[rows as i64, longest as i64], &values);
        let sums: Vec<_> = self.hypotheses.iter().map(|beam| beam.cum_log_prob).collect();
        out.floats("cum_log_probs", &[rows as i64], &sums);
    }

    /// The text of each hypothesis.
    pub fn texts(&self) -> Vec<String> {
        let Some(start) = &self.text else { return Vec::new() };
        let of = |beam: &Hypothesis| {
            let mut text = start.clone();
            for &token in &beam.tokens {
                text.push(token);
            }
            text.finish(false);
            text.pending
        };
        self.hypotheses.iter().map(of).collect()
    }
}
