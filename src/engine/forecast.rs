//! How much KV memory the running sequences will come to need, judged by the output lengths of late.

use std::collections::VecDeque;

use super::policy::Candidate;
use super::sequence::Sequence;

/// Output lengths that are remembered.
const WINDOW: usize = 128;

/// Output lengths are told apart this finely.
const GRAIN_TOKENS: usize = 16;

/// Assumed output before any sequence has ended.
const FIRST_GUESS_TOKENS: usize = 128;

/// Moments that are looked at, in blocks that a sequence grows by until then.
const HORIZONS_BLOCKS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Standard deviations between the expected use and what there is: with 1 preemptions are frequent, with 3 memory lies
/// idle.
const MARGIN: f32 = 2.0;

/// Output lengths of the sequences that ended last, and the memory that follows from them.
#[derive(Default)]
pub(super) struct Forecast {
    recent: VecDeque<usize>,
    /// How many of `recent` are longer than `GRAIN_TOKENS` times the index.
    longer: Vec<u32>,
    is_counted: bool,
    outlook: Outlook,
    /// The plan that the outlook is for.
    plan: u64,
}

impl Forecast {
    pub fn observe(&mut self, generated_tokens: usize) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(generated_tokens);
        self.is_counted = false;
    }

    /// Whether, with the candidate, the use of blocks is not expected to exceed what there is at any moment to come.
    /// Always for the first one.
    ///
    /// A sequence that lives on grows; one that ends frees what is its own. Both are weighted with the share of the
    /// remembered outputs that went on for so long after they had got as far.
    /// The outlook of the running ones is made once for each plan; candidates that are let in are added to it.
    pub fn foresees_room(&mut self, candidate: &Candidate<'_>, running: &mut dyn Iterator<Item = &Sequence>) -> bool {
        if self.plan != candidate.plan {
            self.plan = candidate.plan;
            self.count();
            let mut outlook = Outlook::default();
            for sequence in running {
                let own = sequence.table.len().saturating_sub(sequence.found_blocks);
                outlook.add(self, sequence, own, candidate.block_size);
            }
            self.outlook = outlook;
        }
        let mut outlook = self.outlook;
        outlook.add(self, candidate.sequence, candidate.cost_blocks, candidate.block_size);
        let used = (candidate.used_blocks + candidate.cost_blocks) as f32;
        let peaks = outlook.moments.iter().map(|(change, variance)| used + change + MARGIN * variance.sqrt());
        let fits = outlook.sequences == 1 || peaks.fold(0.0, f32::max) <= candidate.num_blocks as f32;
        if fits {
            self.outlook = outlook;
        }
        fits
    }

    /// The candidate that was let in last does not start.
    pub fn retract(&mut self) {
        self.plan = 0;
    }

    /// The probability that an output of `generated` tokens gets `more`.
    fn survival(&self, generated: usize, more: usize) -> f32 {
        let longer = |tokens: usize| self.longer.get(tokens / GRAIN_TOKENS).copied().unwrap_or(0);
        match longer(generated) {
            0 if self.recent.is_empty() => f32::from(generated + more <= FIRST_GUESS_TOKENS),
            // Longer than all that was seen: as likely as not to double.
            0 => f32::from(more <= generated),
            known => longer(generated + more) as f32 / known as f32,
        }
    }

    fn count(&mut self) {
        if std::mem::replace(&mut self.is_counted, true) {
            return;
        }
        self.longer.clear();
        for &length in &self.recent {
            let above = length.div_ceil(GRAIN_TOKENS);
            if self.longer.len() < above {
                self.longer.resize(above, 0);
            }
            self.longer[..above].iter_mut().for_each(|count| *count += 1);
        }
    }
}

/// Expected change of the use of blocks at each horizon, and its variance.
#[derive(Clone, Copy, Default)]
struct Outlook {
    moments: [(f32, f32); HORIZONS_BLOCKS.len()],
    sequences: usize,
}

impl Outlook {
    fn add(&mut self, forecast: &Forecast, sequence: &Sequence, own_blocks: usize, block_size: usize) {
        self.sequences += 1;
        let generated = sequence.num_tokens() - sequence.prompt_len();
        let own = own_blocks as f32;
        for ((change, variance), blocks) in self.moments.iter_mut().zip(HORIZONS_BLOCKS) {
            let more = blocks * block_size;
            let lives = if more > sequence.open_tokens() { 0.0 } else { forecast.survival(generated, more) };
            let grown = blocks as f32;
            *change += lives * grown - (1.0 - lives) * own;
            *variance += lives * (1.0 - lives) * (own + grown) * (own + grown);
        }
    }
}
