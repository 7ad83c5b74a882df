//! When the next step is launched while one runs.
//!
//! A step that is launched waits behind the one that runs, and a request that comes then waits for both. So the launch is
//! put off until shortly before the running step will end. How long that takes is known from the step before, where both
//! generate one token for each of as many sequences.

use crate::step::StepPlan;

/// Steps that are launched at once to learn how long one takes, after each change of their number of sequences.
const LEARN_STEPS: u32 = 4;
/// Then the time is known for so many steps, before it is learnt again.
const KNOWN_STEPS: u32 = 60;
/// Shortest step that is worth waiting for, in leads.
const LEADS: u64 = 3;
/// Part of a step that is left for the launch at least, one in this many.
const MARGIN: u64 = 8;

/// What is known of the steps' times.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// How long before the expected end of a step the next one is launched; `None`: at once.
    lead_ns: Option<u64>,
    /// When the running step began: the one before had ended then.
    since_ns: Option<u64>,
    /// Sequences of the last step, if it only generated.
    sequences: Option<usize>,
    /// Of such steps in a row: how many, and the time of those to learn from. Not of the others: one that was launched
    /// too late would make the next one later.
    steps: u32,
    learnt_ns: u64,
}

impl Ahead {
    pub(super) fn new(lead_ns: Option<u64>) -> Self {
        Self { lead_ns, ..Self::default() }
    }

    /// A step has ended, at `ended_ns`. `followed`: another one was launched behind it.
    pub(super) fn collected(&mut self, plan: &StepPlan, ended_ns: u64, followed: bool) {
        let took = self.since_ns.map(|since| ended_ns.saturating_sub(since));
        let sequences = generating(plan).filter(|_| took.is_some());
        if sequences != self.sequences || self.steps == LEARN_STEPS + KNOWN_STEPS {
            (self.sequences, self.steps, self.learnt_ns) = (sequences, 0, 0);
        }
        if self.steps < LEARN_STEPS {
            self.learnt_ns += took.unwrap_or(0);
        }
        self.steps += 1;
        self.since_ns = followed.then_some(ended_ns);
    }

    /// Until when the step behind `running` is put off; `None`: it is launched now.
    pub(super) fn due_ns(&self, running: &StepPlan) -> Option<u64> {
        let (lead, since) = (self.lead_ns?, self.since_ns?);
        let takes = self.learnt_ns / u64::from(LEARN_STEPS);
        let like_before = self.sequences.is_some() && generating(running) == self.sequences;
        // The last known step is followed by one to learn from.
        let known = (LEARN_STEPS..LEARN_STEPS + KNOWN_STEPS).contains(&self.steps);
        (known && like_before && takes >= LEADS * lead).then(|| since + takes - lead.max(takes / MARGIN))
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
        // The first one has nothing before it.
        assert_eq!(after(4, 1000).due_ns(&plan(4, 1)), None);
        assert_eq!(after(5, 1000).due_ns(&plan(4, 1)), Some(5000 + 1000 - 125));
        assert_eq!(after(5, 1000).due_ns(&plan(5, 1)), None, "more sequences take another time");
        assert_eq!(after(5, 1000).due_ns(&plan(4, 7)), None, "a prompt takes another time");
        assert_eq!(after(5, 299).due_ns(&plan(4, 1)), None, "short steps leave no time");
        let never = Ahead { lead_ns: None, ..after(5, 1000) };
        assert_eq!(never.due_ns(&plan(4, 1)), None);
    }

    #[test]
    fn a_pause_is_no_long_step() {
        let mut ahead = after(5, 1000);
        ahead.collected(&plan(4, 1), 6000, false);
        ahead.collected(&plan(4, 1), 99_000, true);
        assert_eq!(ahead.due_ns(&plan(4, 1)), None);
    }

    #[test]
    fn late_steps_are_not_what_is_expected_later() {
        let mut ahead = after(5, 1000);
        for step in 1..=10 {
            ahead.collected(&plan(4, 1), 5000 + step * 1500, true);
            assert_eq!(ahead.due_ns(&plan(4, 1)), Some(5000 + step * 1500 + 1000 - 125));
        }
    }

    #[test]
    fn now_and_then_steps_are_launched_at_once_to_learn_from() {
        let waits = |steps: u64| after(steps, 1000).due_ns(&plan(4, 1)).is_some();
        let waiting: Vec<_> = (62..72).map(waits).collect();
        assert_eq!(waiting, [true, true, true, false, false, false, false, true, true, true]);
    }
}
