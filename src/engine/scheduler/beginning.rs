//! What others have computed, or are about to compute, of a sequence that wants to start.

use super::Scheduler;
use crate::engine::kv::{PartialMatch, PrefixMatch};
use crate::engine::sequence::{Forerunner, SeqRef, Sequence, Status};

/// Transfers from lower tiers that a sequence waits for before it computes what is still missing.
const MAX_FETCHES: u8 = 3;

impl Scheduler {
    /// Whether the candidate waits for blocks that another tier has. One that would miss its batch does not.
    pub(super) fn fetches(&mut self, seq: SeqRef, found: &PrefixMatch) -> bool {
        let misses_batch = !self.policy.may_postpone() && !self.running.is_empty();
        if !found.goes_on() || self.slots[seq].fetches == MAX_FETCHES || misses_batch {
            return false;
        }
        let Some(transfer) = self.kv.fetch(found) else { return false };
        let sequence = &mut self.slots[seq];
        sequence.fetch = transfer;
        sequence.fetches += 1;
        true
    }

    pub(super) fn is_still_postponed(&self, seq: SeqRef) -> bool {
        let Some(Forerunner { seq, life, cached_blocks }) = self.slots[seq].forerunner else { return false };
        self.slots.find(seq).is_some_and(|other| {
            other.status == Status::Running
                && other.life == life
                && other.cacheable
                && other.cached_blocks <= cached_blocks
                && other.num_landed < other.prompt_len()
        })
    }

    /// Whether the first sequence of the same request is about to compute the prompt.
    pub(super) fn awaits_leader(&self, seq: SeqRef, step: u64) -> bool {
        let sequence = &self.slots[seq];
        let leader = sequence.leader.and_then(|leader| self.slots.find(leader));
        leader.is_some_and(|leader| {
            leader.status == Status::Running && leader.computed_before(step) + 1 < sequence.prompt_len()
        })
    }

    /// What others have computed of the sequence: cached blocks, or those of its leader.
    pub(super) fn find_beginning(&self, seq: SeqRef, step: u64) -> PrefixMatch {
        let (sequence, block_size) = (&self.slots[seq], self.kv.block_size());
        if sequence.inspects_prompt() {
            return PrefixMatch::default();
        }
        let found = self.kv.find(&sequence.tokens, &sequence.request.extra_ids, sequence.space());
        let leader = sequence.leader.and_then(|leader| self.slots.find(leader));
        let Some(leader) = leader.filter(|leader| leader.status == Status::Running) else { return found };
        let shared = leader.computed_before(step).min(sequence.prompt_len() - 1);
        if shared <= found.num_tokens(block_size) {
            return found;
        }
        let (full, num_slots) = (shared / block_size, shared % block_size);
        let lent = (self.kv.windows().lend(&leader.windows, full), self.kv.windows().beside(&leader.windows, full));
        let beside = if num_slots > 0 { lent.1 } else { None };
        let windows = match lent.0 {
            Some(windows) if full > found.full.len() || beside.is_some() => Some(windows),
            _ => return found,
        };
        let partial = |_: &Vec<_>| PartialMatch { block: leader.table[full], num_slots, take_over: false };
        let (partial, beside) = (beside.as_ref().map(partial), beside.unwrap_or_default());
        let full = leader.table[..full].to_vec();
        PrefixMatch { near: full.len(), full, partial, windows, beside, ..PrefixMatch::default() }
    }

    /// A running sequence that is about to compute the first block that `candidate` would have to compute.
    pub(super) fn forerunner(&self, candidate: &Sequence, found: &PrefixMatch) -> Option<Forerunner> {
        let have = found.full.len();
        let end = (have + 1) * self.kv.block_size();
        if !(self.config.kv_reuse || candidate.search.is_some()) || candidate.tokens.len() <= end {
            return None;
        }
        let is_ahead = |other: &Sequence| {
            other.status == Status::Running
                && other.cacheable
                && other.cached_blocks <= have
                && other.num_landed < other.prompt_len()
                && other.prompt_len() >= end
                && other.space() == candidate.space()
                && other.content(0, end) == candidate.content(0, end)
        };
        let seq = self.computing.iter().copied().find(|&seq| is_ahead(&self.slots[seq]))?;
        Some(Forerunner { seq, life: self.slots[seq].life, cached_blocks: have })
    }
}
