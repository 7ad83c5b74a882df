//! How long a device works on steps, and how long it waits between them.

use crate::device::{SharedDevice, Stamps};
use crate::error::Result;
use parking_lot::Mutex;
use std::sync::Arc;

/// Most steps whose times are taken: the first ones. float32 milliseconds since the first still tell microseconds then.
const MAX_STEPS: usize = 2048;

/// A step that followed another one of as many sequences, both of which generated one token for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeTime {
    pub sequences: usize,
    /// From the first operation behind the upload of its inputs to the sampled tokens.
    pub busy_seconds: f64,
    /// From the sampled tokens of the step before to this one's first operation: copies and waiting.
    pub idle_seconds: f64,
}

/// Takes the times of an executor's steps, which are known when it is dropped.
pub(super) struct StepTimes {
    stamps: Box<dyn Stamps>,
    /// Sequences of each step, if it only generated.
    steps: Vec<Option<usize>>,
    told: Arc<Mutex<Vec<DecodeTime>>>,
}

impl StepTimes {
    /// `None` for a device without stamps.
    pub(super) fn new(device: &SharedDevice) -> Result<Option<Self>> {
        let stamps = device.stamps(2 * MAX_STEPS)?;
        Ok(stamps.map(|stamps| Self { stamps, steps: Vec::new(), told: Arc::default() }))
    }

    /// Where the times will be.
    pub(super) fn told(&self) -> Arc<Mutex<Vec<DecodeTime>>> {
        self.told.clone()
    }

    /// Behind the upload of a step's inputs.
    pub(super) fn begin(&mut self, generating: Option<usize>) -> Result<()> {
        if self.stamps.mark()? {
            self.steps.push(generating);
        }
        Ok(())
    }

    /// Behind the sampling of the step.
    pub(super) fn end(&mut self) -> Result<()> {
        self.stamps.mark().map(|_| ())
    }

    /// Waits for the last step.
    pub(super) fn tell(&self) -> Result<()> {
        *self.told.lock() = decode_times(&self.steps, &self.stamps.seconds()?);
        Ok(())
    }
}

/// `seconds`: the begin and the end of each step.
fn decode_times(steps: &[Option<usize>], seconds: &[f64]) -> Vec<DecodeTime> {
    let spans: Vec<_> = steps.iter().zip(seconds.chunks_exact(2)).collect();
    let pairs = spans.windows(2).filter_map(|pair| match (pair[0], pair[1]) {
        ((Some(before), first), (Some(sequences), second)) if before == sequences => Some(DecodeTime {
            sequences: *sequences,
            busy_seconds: second[1] - second[0],
            idle_seconds: second[0] - first[1],
        }),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_that_follow_one_like_them_count() {
        let steps = [None, Some(4), Some(4), Some(3), Some(3), Some(3)];
        let seconds = [0.0, 5.0, 6.0, 7.0, 7.5, 9.0, 9.0, 10.0, 10.25, 11.0, 12.0];
        let time = |sequences, busy_seconds, idle_seconds| DecodeTime { sequences, busy_seconds, idle_seconds };
        assert_eq!(decode_times(&steps, &seconds), [time(4, 1.5, 0.5), time(3, 0.75, 0.25)]);
    }
}
