//! Decode steps in few shapes, so that a recorded one can be repeated.
//!
//! A step is padded to a bucket: a number of sequences and a bound of their contexts. All it reads lies at addresses that
//! depend on the bucket only, so the work that was recorded once is right for every step of the bucket. Buckets are
//! recorded at load; nothing is recorded while requests run.

use super::input::StepShape;
use super::local::StepLogits;
use crate::device::{Graph, SharedDevice};
use crate::error::Result;
use crate::step::ExecutorLimits;
use std::collections::HashMap;

/// Sequences of a bucket: small steps are padded little.
const SIZES: [usize; 12] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128];
/// Beyond [`SIZES`].
const SIZE_STEP: usize = 32;
/// Smallest bound of contexts.
const MIN_CONTEXT_TOKENS: usize = 256;
/// From this many sequences on, bounds of contexts grow by a factor of four instead of two: a full GPU does not mind how
/// finely attention is cut.
const COARSE_SEQUENCES: usize = 24;
/// Attempts to record a bucket. What other threads of the process do with the GPU meanwhile can spoil one.
const ATTEMPTS: usize = 3;
/// Most memory that a recorded step takes on a device; measured: docs/performance.md.
const GRAPH_BYTES: usize = 1 << 20;

/// Memory of the device that the buckets of a model take when they are recorded, at most.
pub(super) fn planned_bytes(limits: &ExecutorLimits, most: Option<usize>) -> usize {
    buckets(limits, most).len() * GRAPH_BYTES
}

/// The buckets of decode steps, at most `most`: every number of sequences with the longest context first, which serve
/// any step, then shorter contexts; then the same for steps whose logits are edited. In the result small ones precede
/// larger ones.
fn buckets(limits: &ExecutorLimits, most: Option<usize>) -> Vec<StepShape> {
    let largest = limits.max_step_sequences;
    let steps = (SIZES[SIZES.len() - 1] + SIZE_STEP..).step_by(SIZE_STEP);
    let sizes: Vec<_> = SIZES.into_iter().chain(steps).take_while(|&size| size < largest).chain([largest]).collect();
    let longest = limits.max_seq_len_tokens;
    let mut buckets: Vec<_> = sizes.iter().map(|&size| shape(limits, size, longest)).collect();
    let shorter = (0..).map(|power| MIN_CONTEXT_TOKENS << power).take_while(|&context| context < longest);
    let shorter: Vec<_> = shorter.enumerate().collect();
    for &(index, context) in shorter.iter().rev() {
        let is_fine = |&size: &usize| size < COARSE_SEQUENCES || index.is_multiple_of(2);
        buckets.extend(sizes.iter().copied().filter(is_fine).map(|size| shape(limits, size, context)));
    }
    let edited: Vec<_> = buckets.iter().map(|bucket| StepShape { edits: bucket.rows, ..*bucket }).collect();
    buckets.extend(edited);
    buckets.truncate(most.unwrap_or(usize::MAX));
    buckets.sort_by_key(|bucket| (bucket.sequences, bucket.context_len));
    buckets
}

fn shape(limits: &ExecutorLimits, size: usize, context_len: usize) -> StepShape {
    let blocks = context_len.div_ceil(limits.block_size_tokens);
    StepShape { tokens: size, sequences: size, rows: size, edits: 0, blocks, query_len: 1, context_len }
}

struct Recorded {
    graph: Box<dyn Graph>,
    logits: StepLogits,
}

/// The buckets of decode steps and what was recorded of them.
pub(super) struct Graphs {
    buckets: Vec<StepShape>,
    recorded: HashMap<StepShape, Recorded>,
}

impl Graphs {
    /// `most`: as many buckets at most; `None`: all that are of use.
    pub(super) fn new(limits: &ExecutorLimits, most: Option<usize>) -> Self {
        Self { buckets: buckets(limits, most), recorded: HashMap::new() }
    }

    pub(super) fn buckets(&self) -> &[StepShape] {
        &self.buckets
    }

    /// Buckets that were recorded.
    pub(super) fn num_recorded(&self) -> usize {
        self.recorded.len()
    }

    /// The smallest bucket that holds a step; `None` when it does more than to decode, or no bucket is large enough.
    pub(super) fn bucket(&self, exact: StepShape) -> Option<StepShape> {
        let decodes = exact.query_len == 1 && exact.sequences > 0;
        let is_like = |bucket: &StepShape| decodes && (bucket.edits > 0) == (exact.edits > 0);
        let holds = |bucket: &&StepShape| {
            is_like(bucket) && bucket.sequences >= exact.sequences && bucket.context_len >= exact.context_len
        };
        self.buckets.iter().find(holds).copied()
    }

    /// Records a bucket. The step must have run before: whatever loads or chooses when it is first used has done so
    /// then. Says whether there is a recording; a device without recordings has none.
    ///
    /// # Errors
    /// A failure of the device that is no matter of recording.
    pub(super) fn record(
        &mut self,
        device: &SharedDevice,
        bucket: StepShape,
        step: &mut dyn FnMut() -> Result<StepLogits>,
    ) -> Result<bool> {
        for attempt in 1..=ATTEMPTS {
            let mut logits = None;
            let recorded = device.capture(&mut || {
                logits = Some(step()?);
                Ok(())
            });
            match (recorded, logits) {
                (Ok(Some(graph)), Some(logits)) => {
                    self.recorded.insert(bucket, Recorded { graph, logits });
                    return Ok(true);
                }
                (Err(error), _) if attempt == ATTEMPTS => {
                    device.synchronize()?;
                    tracing::warn!("a step of {} sequences was not recorded: {error}", bucket.sequences);
                }
                (Err(_), _) => {}
                (Ok(_), _) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Runs a step of this bucket: its recording where there is one, else as it is.
    pub(super) fn run(&self, bucket: StepShape, step: &mut dyn FnMut() -> Result<StepLogits>) -> Result<StepLogits> {
        let Some(Recorded { graph, logits }) = self.recorded.get(&bucket) else { return step() };
        graph.launch()?;
        Ok(logits.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ExecutorLimits {
        ExecutorLimits {
            num_blocks: 1000,
            block_size_tokens: 16,
            max_step_tokens: 4096,
            max_step_sequences: 200,
            max_step_rows: 200,
            max_seq_len_tokens: 3000,
            vocab_size: 10,
            pipeline_depth: 2,
        }
    }

    fn step(sequences: usize, context_len: usize) -> StepShape {
        StepShape { query_len: 1, ..shape(&limits(), sequences, context_len) }
    }

    #[test]
    fn buckets_hold_their_step_and_stay_within_the_limits() {
        let graphs = Graphs::new(&limits(), None);
        for sequences in 1..=200 {
            for context in [1, 255, 257, 1024, 1025, 2999, 3000] {
                let bucket = graphs.bucket(step(sequences, context)).unwrap();
                assert!((sequences..=200).contains(&bucket.sequences), "{bucket:?}");
                assert!((context..=3000).contains(&bucket.context_len), "{bucket:?}");
                assert!(bucket.blocks * 16 >= bucket.context_len && bucket.tokens == bucket.rows, "{bucket:?}");
                assert!(bucket.sequences <= 2 * sequences && bucket.context_len <= (4 * context).max(256));
            }
        }
        assert_eq!(graphs.bucket(StepShape { query_len: 2, ..step(1, 10) }), None);
        let edited = graphs.bucket(StepShape { edits: 3, ..step(3, 10) }).unwrap();
        assert_eq!((edited.edits, edited.rows), (4, 4));
    }

    #[test]
    fn few_buckets_serve_any_context_of_the_smallest_steps() {
        let all = buckets(&limits(), None).len();
        for most in 1..all {
            let graphs = Graphs::new(&limits(), Some(most));
            assert_eq!(graphs.buckets().len(), most);
            assert!(graphs.bucket(step(1, 3000)).is_some() && graphs.bucket(step(1, 3)).is_some());
        }
        assert_eq!(Graphs::new(&limits(), Some(2)).bucket(step(3, 10)), None);
        assert_eq!(planned_bytes(&limits(), Some(3)), 3 * GRAPH_BYTES);
    }
}
