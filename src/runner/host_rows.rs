//! Rows that the host samples: those with passes that only the host has, and those for whose edits the device has no room.

use super::sequences::RunnerSequence;
use crate::decode::SamplingParams;
use crate::decode::logits;
use crate::decode::sample::{Drafted, SampleScratch, choose, most_likely, verify};
use crate::device::{DType, RowSample, SharedDevice, Tensor};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use std::borrow::Cow;

/// What came out of a row.
pub(super) struct HostSample {
    pub(super) sample: RowSample,
    /// Why the sequence's guide ends it.
    pub(super) error: Option<Error>,
    /// The most likely tokens, where they were asked for.
    pub(super) top: Vec<(TokenId, f32)>,
}

/// Samples single rows on the host.
#[derive(Default)]
pub(super) struct HostSampler {
    bytes: Vec<u8>,
    row: Vec<f32>,
    scratch: SampleScratch,
}

impl HostSampler {
    /// Waits for the logits `[R, V]`, samples one row of them and appends the token to its sequence, all of whose
    /// tokens are known.
    pub(super) fn sample(
        &mut self,
        device: &SharedDevice,
        logits: &Tensor,
        row: usize,
        sequence: &mut RunnerSequence,
    ) -> Result<HostSample> {
        let logits = logits.row_range(row, 1);
        self.bytes.resize(logits.bytes(), 0);
        device.download(&logits, &mut self.bytes)?;
        self.row.clear();
        self.row.extend(floats(&self.bytes));
        let (only_end, error) = match sequence.guide.as_mut().map(|guide| guide.mask()) {
            None => (false, None),
            Some(Ok(mask)) => {
                mask.apply(&mut self.row);
                (mask.only_end(), None)
            }
            Some(Err(error)) => (false, Some(error)),
        };
        let mut sampling = Cow::Borrowed(&sequence.sampling);
        if only_end {
            // A complete answer ends even if it is shorter than was asked for.
            sampling = Cow::Owned(SamplingParams { min_tokens: 0, ..sampling.into_owned() });
        }
        let occurrences = sequence.occurrences();
        logits::apply(&mut self.row, &sampling, &sequence.history(&occurrences));
        // A row without a choice has its fault in the sample.
        let top = most_likely(&self.row, sampling.top_log_probs as usize, &mut self.scratch).unwrap_or_default();
        let sampling = sampling.for_next(&sequence.history(&occurrences));
        let position = sequence.tokens.len();
        let sample = match sequence.expected() {
            None => choose(&self.row, &sampling, position, &mut self.scratch),
            Some((token, drawn_from)) => {
                let mut drawn_from = drawn_from.to_vec();
                logits::apply(&mut drawn_from, &sampling, &sequence.history(&occurrences));
                let threshold = sampling.draft.as_ref().and_then(|draft| draft.threshold);
                let drafted = Drafted { token, logits: &drawn_from, threshold };
                verify(&self.row, drafted, &sampling, position, &mut self.scratch)
            }
        };
        let sample = RowSample(sample);
        sequence.push(sample.token());
        Ok(HostSample { sample, error, top })
    }
}

/// Downloads the rows of logits `[R, V]`.
pub(super) fn download_rows(device: &SharedDevice, logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    let mut bytes = vec![0; logits.bytes()];
    device.download(logits, &mut bytes)?;
    let row_bytes = (logits.cols() * DType::F32.size()).max(1);
    Ok(bytes.chunks_exact(row_bytes).map(|row| floats(row).collect()).collect())
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}
