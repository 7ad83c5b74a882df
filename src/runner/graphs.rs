//! Decode steps in few shapes, so that a recorded one can be repeated.
//!
//! A step is padded to a bucket: a number of sequences and a bound of their contexts. All it reads lies at addresses that
//! depend on the bucket only, so the work that was recorded once is right for every step of the bucket.

use super::input::StepShape;
use crate::device::{Graph, SharedDevice, Tensor};
use crate::error::Result;
use crate::step::ExecutorLimits;
use std::collections::HashMap;

/// Sequences of a bucket: small steps are padded little.
const SIZES: [usize; 12] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128];
/// Beyond [`SIZES`].
const SIZE_STEP: usize = 32;
/// Smallest bound of contexts.
const MIN_CONTEXT_TOKENS: usize = 256;
/// Attempts to record a bucket. What other threads of the process do with the GPU meanwhile can spoil one.
const ATTEMPTS: usize = 3;

/// The shape that a step of `sequences` single tokens with contexts of up to `context_len` is padded to; the logits of
/// some are edited, or of none.
fn bucket(limits: &ExecutorLimits, sequences: usize, context_len: usize, edited: bool) -> StepShape {
    let size = SIZES.into_iter().find(|&size| size >= sequences);
    let size = size.unwrap_or(sequences.next_multiple_of(SIZE_STEP)).min(limits.max_step_sequences);
    let context_len = context_len.next_power_of_two().max(MIN_CONTEXT_TOKENS).min(limits.max_seq_len_tokens);
    let blocks = context_len.div_ceil(limits.block_size_tokens);
    let edits = if edited { size } else { 0 };
    StepShape { tokens: size, sequences: size, rows: size, edits, blocks, query_len: 1, context_len }
}

enum Recorded {
    /// Ran before: whatever loads or chooses when it is first used has done so.
    Warm {
        failures: usize,
    },
    Graph {
        graph: Box<dyn Graph>,
        logits: Tensor,
    },
}

/// The buckets of decode steps and what was recorded of them.
pub(super) struct Graphs {
    limits: ExecutorLimits,
    recorded: HashMap<StepShape, Recorded>,
    /// Whether the device records.
    records: bool,
}

impl Graphs {
    pub(super) fn new(limits: &ExecutorLimits) -> Self {
        Self { limits: limits.clone(), recorded: HashMap::new(), records: true }
    }

    /// The bucket of a step; `None` when it does more than to decode.
    pub(super) fn bucket(&self, exact: StepShape) -> Option<StepShape> {
        let decodes = exact.query_len == 1 && exact.sequences > 0;
        decodes.then(|| bucket(&self.limits, exact.sequences, exact.context_len, exact.edits > 0))
    }

    /// Runs a step of this bucket: the first time as it is, later from what is recorded the second time.
    pub(super) fn run(
        &mut self,
        device: &SharedDevice,
        bucket: StepShape,
        step: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let failures = match self.recorded.get(&bucket) {
            Some(Recorded::Graph { graph, logits }) => {
                graph.launch()?;
                return Ok(logits.clone());
            }
            Some(Recorded::Warm { failures }) if self.records && *failures < ATTEMPTS => *failures,
            Some(Recorded::Warm { .. }) => return step(),
            None => {
                self.recorded.insert(bucket, Recorded::Warm { failures: 0 });
                return step();
            }
        };
        let mut logits = None;
        let recorded = device.capture(&mut || {
            logits = Some(step()?);
            Ok(())
        });
        match (recorded, logits) {
            (Ok(Some(graph)), Some(logits)) => {
                tracing::debug!(
                    "recorded a step of {} sequences, {} tokens each",
                    bucket.sequences,
                    bucket.context_len
                );
                graph.launch()?;
                self.recorded.insert(bucket, Recorded::Graph { graph, logits: logits.clone() });
                return Ok(logits);
            }
            (Err(error), _) => {
                tracing::warn!("a step of {} sequences was not recorded: {error}", bucket.sequences);
                self.recorded.insert(bucket, Recorded::Warm { failures: failures + 1 });
            }
            (Ok(_), _) => self.records = false,
        }
        step()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_step_and_stay_within_the_limits() {
        let limits = ExecutorLimits {
            num_blocks: 1000,
            block_size_tokens: 16,
            max_step_tokens: 4096,
            max_step_sequences: 200,
            max_step_rows: 200,
            max_seq_len_tokens: 3000,
            vocab_size: 10,
            pipeline_depth: 2,
        };
        for sequences in 1..=200 {
            for context in [1, 255, 257, 1024, 1025, 2999, 3000] {
                let bucket = bucket(&limits, sequences, context, false);
                assert!((sequences..=200).contains(&bucket.sequences), "{bucket:?}");
                assert!((context..=3000).contains(&bucket.context_len), "{bucket:?}");
                assert!(bucket.blocks * 16 >= bucket.context_len && bucket.tokens == bucket.rows, "{bucket:?}");
                assert!(bucket.sequences <= 2 * sequences && bucket.context_len <= (2 * context).max(256));
            }
        }
    }
}
