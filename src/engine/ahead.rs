//! When the next step is launched while one runs.
//!
//! A step that is launched waits behind the one that runs, and a request that comes then waits for both. So the launch is
//! put off until shortly before the running step will end. How long that takes is known from the step before, where both
//! generate one token for each of as many sequences.

use crate::step::StepPlan;

/// A step is late that took longer than expected by more than one part in this many.
const TOLERANCE: u64 = 16;
/// So many late steps in a row: nothing is put off for a while, in case they were launched too late.
const LATE_STEPS: u32 = 3;
/// Steps of that while.
const REST_STEPS: u32 = 64;
/// Every so many steps two are launched at once, and show how long a step takes that surely did not wait for its launch.
const LEARN_EVERY: u32 = 64;
/// Shortest step that is worth waiting for, in leads.
const LEADS: u64 = 3;
/// Part of a step that is left for the launch at least, one in this many.
const MARGIN: u64 = 8;

/// What is known of the steps' times.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// How long before the expected end of a step the next one is launched; `None`: at once.
    lead_ns: Option<u64>,
    /// When the running step began: the one before was collected then.
    since_ns: Option<u64>,
    /// Sequences of the last step that only generated, and the time it took.
    last: Option<(usize, u64)>,
    /// Late steps in a row.
    late: u32,
    steps: u32,
    /// Steps for which nothing is put off.
    rest: u32,
}

impl Ahead {
    pub(super) fn new(lead_ns: Option<u64>) -> Self {
        Self { lead_ns, ..Self::default() }
    }

    /// A step has ended. `followed`: another one was launched behind it.
    pub(super) fn collected(&mut self, plan: &StepPlan, now_ns: u64, followed: bool) {
        let took = self.since_ns.map(|since| now_ns.saturating_sub(since));
        self.steps = self.steps.wrapping_add(1);
        self.rest = self.rest.saturating_sub(1).max(if self.steps.is_multiple_of(LEARN_EVERY) { 2 } else { 0 });
        self.last = match (generating(plan), took) {
            (Some(sequences), Some(took)) => Some((sequences, self.expected(sequences, took))),
            _ => None,
        };
        self.since_ns = followed.then_some(now_ns);
    }

    /// Not the last time alone: one that was late would make the next one later.
    fn expected(&mut self, sequences: usize, took: u64) -> u64 {
        let Some((_, before)) = self.last.filter(|&(count, _)| count == sequences) else { return took };
        self.late = if took > before + before / TOLERANCE { self.late + 1 } else { 0 };
        if self.late == LATE_STEPS {
            (self.rest, self.late) = (REST_STEPS, 0);
        }
        took.min(before + before / 1024)
    }

    /// Until when the step behind `running` is put off; `None`: it is launched now.
    pub(super) fn due_ns(&self, running: &StepPlan) -> Option<u64> {
        let (lead, since) = (self.lead_ns?, self.since_ns?);
        let (sequences, took) = self.last?;
        let known = self.rest == 0 && generating(running) == Some(sequences) && took >= LEADS * lead;
        known.then(|| since + took - lead.max(took / MARGIN))
    }
}

/// The sequences of a step that only generates one token for each.
fn generating(plan: &StepPlan) -> Option<usize> {
    plan.chunks.iter().all(|chunk| chunk.len == 1 && chunk.sample).then_some(plan.chunks.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SeqId;
    use crate::step::{Chunk, Inspect};

    fn plan(sequences: u64, len: usize) -> StepPlan {
        let chunk = |seq| Chunk { seq: SeqId(seq), start: 9, len, sample: true, ..chunk() };
        StepPlan { chunks: (0..sequences).map(chunk).collect(), ..StepPlan::default() }
    }

    fn chunk() -> Chunk {
        Chunk {
            seq: SeqId(0),
            start: 0,
            len: 0,
            keep_blocks: 0,
            append_blocks: Vec::new(),
            sample: false,
            draft: Vec::new(),
            inspect: Inspect::default(),
        }
    }

    /// After `steps` decode steps of `took` each.
    fn after(steps: u64, took: u64) -> Ahead {
        let mut ahead = Ahead::new(Some(100));
        (1..=steps).for_each(|step| ahead.collected(&plan(4, 1), step * took, true));
        ahead
    }

    #[test]
    fn a_launch_is_put_off_once_the_time_of_a_step_is_known() {
        assert_eq!(after(1, 1000).due_ns(&plan(4, 1)), None);
        assert_eq!(after(2, 1000).due_ns(&plan(4, 1)), Some(2000 + 1000 - 125));
        assert_eq!(after(2, 1000).due_ns(&plan(5, 1)), None, "more sequences take another time");
        assert_eq!(after(2, 1000).due_ns(&plan(4, 7)), None, "a prompt takes another time");
        assert_eq!(after(2, 299).due_ns(&plan(4, 1)), None, "short steps leave no time");
        let never = Ahead { lead_ns: None, ..after(2, 1000) };
        assert_eq!(never.due_ns(&plan(4, 1)), None);
    }

    #[test]
    fn a_pause_is_no_long_step() {
        let mut ahead = after(3, 1000);
        ahead.collected(&plan(4, 1), 4000, false);
        ahead.collected(&plan(4, 1), 99_000, true);
        assert_eq!(ahead.due_ns(&plan(4, 1)), None);
    }

    #[test]
    fn late_steps_put_an_end_to_it_for_a_while_and_one_alone_does_not() {
        let mut ahead = after(3, 1000);
        ahead.collected(&plan(4, 1), 4200, true);
        assert_eq!(ahead.due_ns(&plan(4, 1)), Some(4200 + 1000 - 125), "the late step is not what is expected");
        ahead.collected(&plan(4, 1), 5400, true);
        ahead.collected(&plan(4, 1), 6600, true);
        assert_eq!(ahead.due_ns(&plan(4, 1)), None);
        (1..=u64::from(REST_STEPS)).for_each(|step| ahead.collected(&plan(4, 1), 6600 + step * 1000, true));
        assert!(ahead.due_ns(&plan(4, 1)).is_some());
    }

    #[test]
    fn now_and_then_two_steps_are_launched_at_once() {
        let waits = |steps: u32| after(u64::from(steps), 1000).due_ns(&plan(4, 1)).is_some();
        let waiting: Vec<_> = (60..70).map(waits).collect();
        assert_eq!(waiting, [true, true, true, true, false, false, true, true, true, true]);
    }
}
