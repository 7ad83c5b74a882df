//! What must hold: of the scheduler between steps, and of an executor's output.

use super::Scheduler;
use crate::engine::sequence::{SeqRef, Sequence, Status};
use crate::error::{Error, Result};
use crate::step::{Chunk, SampledRow, SampledToken, StepOutput, StepPlan};

impl Scheduler {
    /// Every invariant of sequences, blocks and cache.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.kv.check(self.slots.iter().map(|(_, sequence)| &sequence.table[..]))?;
        let block_size = self.kv.block_size();
        let running = self.running.iter().map(|&seq| &self.slots[seq]);
        self.kv.check_windows(running.map(|sequence| (&sequence.windows[..], sequence.whole_blocks(block_size))))?;
        let places = self.running.len() + self.queue.len();
        if places != self.slots.len() || self.running.len() > self.config.max_batch_size {
            return Err(format!("{} sequences, {} running, {places} placed", self.slots.len(), self.running.len()));
        }
        for (seq, sequence) in self.slots.iter() {
            self.check_sequence(seq, sequence).map_err(|error| format!("sequence {}: {error}", seq.id))?;
        }
        let open = |seq: &SeqRef| self.slots[*seq].reserved_blocks.saturating_sub(self.slots[*seq].table.len());
        let promised: usize = self.running.iter().map(open).sum();
        if promised != self.promised || promised > self.kv.free() {
            let free = self.kv.free();
            return Err(format!("{promised} blocks are promised, {} counted, {free} free", self.promised));
        }
        let protected: usize = self.running.iter().map(|&seq| self.slots[seq].protected_blocks).sum();
        if protected != self.protected || protected > self.kv.num_blocks() {
            return Err(format!("{protected} blocks are protected, {} counted", self.protected));
        }
        let is_paused = |sequence: &Sequence| sequence.status == Status::Waiting && sequence.life > 0;
        if self.slots.iter().filter(|(_, sequence)| is_paused(sequence)).count() != self.paused {
            return Err(format!("{} paused sequences are counted", self.paused));
        }
        Ok(())
    }

    #[cfg(test)]
    pub fn lose_a_block(&mut self) {
        let _ = self.kv.take();
    }

    fn check_sequence(&self, seq: SeqRef, sequence: &Sequence) -> std::result::Result<(), String> {
        let (tenant, key) = self.place(seq);
        let (runs, waits) = (self.running.contains(&seq), self.queue.contains(tenant, key));
        if (runs, waits) != (sequence.status == Status::Running, sequence.status == Status::Waiting) {
            return Err(format!("is {:?}, but running: {runs}, waiting: {waits}", sequence.status));
        }
        let slots = sequence.table.len() * self.kv.block_size();
        let ordered = [sequence.num_landed, sequence.num_computed, slots.min(sequence.num_tokens())];
        if !ordered.is_sorted() {
            return Err(format!("landed, computed and possible slots are {ordered:?}"));
        }
        if waits && !sequence.table.is_empty() {
            return Err("waits and holds blocks".into());
        }
        if sequence.num_tokens() - sequence.prompt_len() > sequence.request.stop.max_tokens {
            return Err("has more tokens than it asked for".into());
        }
        Ok(())
    }

    /// # Errors
    /// `Internal` for an output that is not that of the plan.
    pub(super) fn check_output(&self, plan: &StepPlan, output: &StepOutput) -> Result<()> {
        let sampled = || plan.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.seq);
        if output.step != plan.step || !output.rows.iter().map(|row| row.seq).eq(sampled()) {
            return Err(Error::internal(format!(
                "step {} samples {:?}, but its output is of step {} with {:?}",
                plan.step,
                sampled().collect::<Vec<_>>(),
                output.step,
                output.rows.iter().map(|row| row.seq).collect::<Vec<_>>()
            )));
        }
        let inspected = plan.chunks.iter().filter(|chunk| chunk.inspect.positions > 0).map(|chunk| chunk.seq);
        if !output.inspections.iter().map(|inspection| inspection.seq).eq(inspected) {
            return Err(Error::internal(format!("step {} has other inspections than were asked for", plan.step)));
        }
        let in_vocab = |token: &SampledToken| usize::try_from(token.id).is_ok_and(|id| id < self.vocab_size);
        let is_whole = |chunk: &Chunk, row: &SampledRow| {
            let guessed = row.tokens.len().wrapping_sub(1);
            let ids = || row.tokens.iter().map(|token| token.id);
            row.error.is_some()
                || chunk.draft.get(..guessed).is_some_and(|draft| ids().take(guessed).eq(draft.to_vec()))
        };
        let chunks = plan.chunks.iter().filter(|chunk| chunk.sample);
        let is_wrong = |(chunk, row): &(&Chunk, &SampledRow)| !is_whole(chunk, row) || !row.tokens.iter().all(in_vocab);
        match chunks.zip(&output.rows).find(is_wrong) {
            Some((chunk, row)) => Err(Error::internal(format!(
                "sequence {} sampled {:?}, expected 1 token of 0 to {} behind those of the draft that came true",
                chunk.seq,
                row.tokens,
                self.vocab_size - 1
            ))),
            None => Ok(()),
        }
    }
}
