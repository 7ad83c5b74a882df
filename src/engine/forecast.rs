//! How much KV memory the running sequences will come to need, judged by the output lengths of late.

use std::collections::VecDeque;

use super::policy::Candidate;
use super::sequence::Sequence;

/// Output lengths that are remembered.
const WINDOW: usize = 128;

/// Assumed output before any sequence has ended.
const FIRST_GUESS_TOKENS: usize = 128;

/// Output lengths of the sequences that ended last, and the memory that follows from them.
#[derive(Default)]
pub(super) struct Forecast {
    recent: VecDeque<usize>,
    /// `recent`, ascending, and behind each the mean of it and all larger ones.
    sorted: Vec<(usize, usize)>,
    is_sorted: bool,
    /// For each number of blocks that a sequence will still grow by: how many sequences, and the blocks they will free.
    buckets: Vec<(usize, usize)>,
}

impl Forecast {
    pub fn observe(&mut self, generated_tokens: usize) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(generated_tokens);
        self.is_sorted = false;
    }

    /// Whether, with the candidate, the expected use of blocks never exceeds what there is. Always for the first one.
    ///
    /// All sequences grow at one pace and free their own blocks at their expected end. So the use peaks just before
    /// some end: `used + k · (sequences that grow by k or more) − (blocks of those that end before)`.
    pub fn foresees_room(&mut self, candidate: &Candidate<'_>, running: &mut dyn Iterator<Item = &Sequence>) -> bool {
        self.sort();
        self.buckets.clear();
        let block_size = candidate.block_size;
        for sequence in running {
            let growth = self.growth_blocks(sequence, block_size);
            self.count(growth, sequence.table.len().saturating_sub(sequence.found_blocks));
        }
        if self.buckets.is_empty() {
            return true;
        }
        let growth = self.growth_blocks(candidate.sequence, block_size);
        self.count(growth, candidate.cost_blocks);
        let mut alive: usize = self.buckets.iter().map(|bucket| bucket.0).sum();
        let mut used = candidate.used_blocks + candidate.cost_blocks;
        for (blocks, &(ending, freed)) in self.buckets.iter().enumerate() {
            if used + blocks * alive > candidate.num_blocks {
                return false;
            }
            alive -= ending;
            used = used.saturating_sub(freed);
        }
        true
    }

    fn growth_blocks(&self, sequence: &Sequence, block_size: usize) -> usize {
        let generated = sequence.num_tokens() - sequence.prompt_len();
        let expected = match self.sorted.get(self.sorted.partition_point(|(length, _)| *length <= generated)) {
            Some((_, mean)) => mean - generated,
            None if self.sorted.is_empty() => FIRST_GUESS_TOKENS,
            None => block_size,
        };
        let slots_left = (sequence.table.len() * block_size).saturating_sub(sequence.num_tokens());
        expected.min(sequence.open_tokens()).saturating_sub(slots_left).div_ceil(block_size)
    }

    fn count(&mut self, growth: usize, blocks: usize) {
        if self.buckets.len() <= growth {
            self.buckets.resize(growth + 1, (0, 0));
        }
        let bucket = &mut self.buckets[growth];
        *bucket = (bucket.0 + 1, bucket.1 + blocks);
    }

    fn sort(&mut self) {
        if std::mem::replace(&mut self.is_sorted, true) {
            return;
        }
        self.sorted.clear();
        self.sorted.extend(self.recent.iter().map(|&length| (length, 0)));
        self.sorted.sort_unstable();
        let mut sum = 0;
        for (count, entry) in self.sorted.iter_mut().rev().enumerate() {
            sum += entry.0;
            entry.1 = sum / (count + 1);
        }
    }
}
