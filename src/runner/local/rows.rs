//! How the rows of a step get their tokens: from the device with the step or behind it, or from the host.

use super::{Launched, LocalExecutor, StepLogits};
use crate::decode::guided::TokenMask;
use crate::device::{EditLogits, RowSample, Sample, SharedDevice, Tensor, TopTokens};
use crate::error::{Error, Result, ResultExt};
use crate::ids::{SeqId, TokenId};
use crate::runner::guided::GuideRow;
use crate::runner::host_rows::HostSample;
use crate::runner::late::LateInput;
use crate::runner::results::{Fetched, ResultShape};
use crate::runner::sequences::Sampler;
use crate::step::{Inspection, SampledRow, StepOutput, StepPlan};
use std::time::Instant;

/// A step whose tokens were not collected.
pub(super) struct Flight {
    pub(super) step: u64,
    pub(super) rows: Vec<FlightRow>,
    pub(super) inspections: Vec<Inspection>,
    /// What the device leaves of it, if it samples some of its rows.
    pub(super) fetches: Option<ResultShape>,
}

/// A sequence that is sampled: index of its row in the flight, and of its last token in the step.
struct Sampled {
    index: usize,
    token: usize,
}

pub(super) struct FlightRow {
    seq: SeqId,
    /// Row of the step's logits that the first token is sampled from.
    row: usize,
    draft: Vec<TokenId>,
    /// Of the sampled token.
    position: usize,
    log_probs: bool,
    /// How many of the most likely tokens are told.
    top_count: usize,
    /// Known at once, when the host has sampled; else empty.
    sampled: Vec<RowSample>,
    /// Why the sequence cannot go on whatever was sampled.
    error: Option<Error>,
    /// The most likely tokens of each row, where they were asked for.
    top: Vec<Vec<(TokenId, f32)>>,
}

impl LocalExecutor {
    /// Appends a token to each sampled sequence: at once where the host samples it, else one in flight.
    pub(super) fn sample(&mut self, plan: &StepPlan, launched: &Launched, flight: &mut Flight) -> Result<()> {
        let (mut by_host, mut late) = (Vec::new(), Vec::new());
        let (mut end, mut tokens) = (0, 0);
        for chunk in &plan.chunks {
            end += chunk.rows();
            tokens += chunk.len;
            if !chunk.sample {
                continue;
            }
            let draft = chunk.draft.clone();
            let row = end - 1 - draft.len();
            let sequence = self.sequences.find_mut(chunk.seq)?;
            flight.rows.push(FlightRow {
                seq: chunk.seq,
                row,
                draft,
                position: sequence.tokens.len(),
                log_probs: sequence.sampling.log_probs,
                top_count: sequence.sampling.top_log_probs as usize,
                sampled: Vec::new(),
                error: None,
                top: Vec::new(),
            });
            let sampled = Sampled { index: flight.rows.len() - 1, token: tokens - 1 };
            match sequence.sampler() {
                Sampler::Host => by_host.push(sampled),
                Sampler::LateRow => late.push(sampled),
                Sampler::Step if chunk.draft.is_empty() => sequence.push_in_flight(launched.first_slot + row),
                Sampler::Step => {}
            }
        }
        if !(by_host.is_empty() && late.is_empty()) {
            // Reading the logits waits for the steps before anyhow, and their tokens belong to the history.
            while !self.in_flight.is_empty() {
                self.land_oldest()?;
            }
        }
        let late_sampling = if late.is_empty() { None } else { Some(self.sample_late(launched, &late, flight)?) };
        if let Some(times) = &mut self.times {
            times.end()?;
        }
        if by_host.len() < flight.rows.len() {
            let by_device = (0..flight.rows.len()).filter(|index| by_host.iter().all(|host| host.index != *index));
            let top = by_device.map(|index| flight.rows[index].top_count).max().unwrap_or(0);
            let rows = if top > 0 { launched.logits.rows.rows() } else { end };
            let shape = ResultShape { rows, top };
            for params in [Some(&launched.sampling), late_sampling.as_ref()].into_iter().flatten().filter(|_| top > 0) {
                let (ids, log_probs) = self.results.top(shape)?;
                let StepLogits { rows: logits, edited, .. } = &launched.logits;
                let (edited, params) = (Some(edited), Some(params));
                self.device.top_tokens(&TopTokens { logits, edited, params, ids: &ids, log_probs: &log_probs })?;
            }
            flight.fetches = Some(shape);
            self.transfers.fetch(&self.results.all(shape)?)?;
        }
        for Sampled { index, .. } in by_host {
            self.sample_on_host(&launched.logits.rows, &mut flight.rows[index])?;
        }
        Ok(())
    }

    /// Enqueues the sampling of rows whose sequences are known by now. Returns how `[R, 12]`.
    fn sample_late(&mut self, launched: &Launched, late: &[Sampled], flight: &mut Flight) -> Result<Tensor> {
        let logits = &launched.logits;
        self.late_rows.begin(logits.rows.rows());
        for &Sampled { index, token } in late {
            let row = &mut flight.rows[index];
            let slot = launched.first_slot + row.row;
            let sequence = self.sequences.find_mut(row.seq)?;
            let sampling = sequence.row_sampling(&[], slot);
            let places = sequence.places.as_ref();
            let edits = places.map(|places| places.row(sequence, sequence.tokens.len(), token));
            let mut edits = edits.ok_or_else(|| Error::internal("a late row has no tables"))?;
            let mask = match sequence.guide.as_mut().map(GuideRow::mask) {
                Some(Ok(mask)) => Some(mask),
                Some(Err(error)) => {
                    row.error = Some(error);
                    None
                }
                None => None,
            };
            if mask.is_some_and(TokenMask::only_end) {
                // A complete answer ends even if it is shorter than was asked for.
                edits.end_ids = None;
            }
            self.late_rows.add(row.row, &sampling, edits, mask);
            sequence.push_in_flight(slot);
        }
        let LateInput { sampling, edits, masks } = self.late_rows.upload()?;
        let (device, tables) = (&self.device, self.tables.tensor());
        edit_logits(device, logits, &edits, tables, &launched.tokens, masks.as_ref(), &sampling)?;
        device.sample(&Sample {
            logits: &logits.rows,
            edited: Some(&logits.edited),
            params: &sampling,
            out: &self.results.samples(logits.rows.rows())?,
            narrowed: true,
            sampled: &self.sampled,
        })?;
        Ok(sampling)
    }

    fn sample_on_host(&mut self, logits: &Tensor, row: &mut FlightRow) -> Result<()> {
        let sequence = self.sequences.find_mut(row.seq)?;
        for guesses in 0..=row.draft.len() {
            let HostSample { sample, error, top } =
                self.host_sampler.sample(&self.device, logits, row.row + guesses, sequence)?;
            row.sampled.push(sample);
            row.error = error;
            row.top.extend(Some(top).filter(|top| !top.is_empty()));
            if row.error.is_some() || !comes_true(&row.draft, guesses, &sample) {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the oldest step in flight.
    pub(super) fn land_oldest(&mut self) -> Result<()> {
        let Some(flight) = self.in_flight.pop_front() else {
            return Err(Error::internal("no step was launched that could be collected"));
        };
        if flight.fetches.is_some() {
            self.transfers.collect(&mut self.fetched).context(format!("step {}", flight.step))?;
        }
        let rows = Vec::with_capacity(flight.rows.len());
        let mut output =
            StepOutput { step: flight.step, rows, inspections: flight.inspections, ..StepOutput::default() };
        let ended = Instant::now();
        for mut row in flight.rows {
            if row.sampled.is_empty() {
                self.land(&mut row, flight.fetches.unwrap_or_default())?;
            }
            let samples = row.sampled;
            let tokens = Vec::with_capacity(samples.len());
            let mut sampled = SampledRow { seq: row.seq, tokens, top: row.top, error: row.error };
            for sample in samples {
                match sample.0 {
                    Ok(token) => sampled.tokens.push(token),
                    Err(fault) => sampled.error = Some(fault.into_error(self.limits.vocab_size)),
                }
            }
            if sampled.error.is_some() {
                sampled.tokens.clear();
                sampled.top.clear();
            }
            output.rows.push(sampled);
        }
        self.finished.push_back((output, ended));
        Ok(())
    }

    /// Takes the tokens of a row that the device has sampled, up to the first that was not guessed.
    fn land(&mut self, row: &mut FlightRow, shape: ResultShape) -> Result<()> {
        let fetched = Fetched { bytes: &self.fetched, shape };
        for (guesses, at) in (row.row..=row.row + row.draft.len()).enumerate() {
            let sample = fetched.sample(at, row.log_probs)?;
            match row.draft.is_empty() {
                true => self.sequences.land(row.seq, row.position, sample.token()),
                false => self.sequences.push(row.seq, sample.token()),
            }
            row.sampled.push(sample);
            if row.top_count > 0 && sample.0.is_ok() {
                row.top.push(fetched.top(at, row.top_count)?);
            }
            if !comes_true(&row.draft, guesses, &sample) {
                break;
            }
        }
        Ok(())
    }
}

/// Edits the rows of a step whose requests say so, `edits` `[R, 24]`.
pub(super) fn edit_logits(
    device: &SharedDevice,
    logits: &StepLogits,
    edits: &Tensor,
    tables: &Tensor,
    tokens: &Tensor,
    masks: Option<&Tensor>,
    sampling: &Tensor,
) -> Result<()> {
    let StepLogits { rows: logits, edited: out, counts } = logits;
    device.edit_logits(&EditLogits { logits, out, counts, rows: edits, tables, tokens, masks, sampling })
}

/// Whether what was sampled behind so many guesses is the next guess.
fn comes_true(draft: &[TokenId], guesses: usize, sample: &RowSample) -> bool {
    sample.0.is_ok_and(|token| draft.get(guesses) == Some(&token.id))
}
