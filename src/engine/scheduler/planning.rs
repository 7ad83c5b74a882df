//! The making of one plan: running sequences first, then waiting ones.

use super::{Blocked, Flight, PlanStats, Scheduler};
use crate::engine::config::ChunkingPolicy;
use crate::engine::kv::PrefixMatch;
use crate::engine::policy::{Candidate, Promise};
use crate::engine::sequence::{SeqRef, Sequence, Status};
use crate::ids::TokenId;
use crate::step::{Chunk, NewSequence, StepPlan, WindowBlocks};

/// A plan under construction.
struct Draft {
    plan: StepPlan,
    flight: Flight,
    budget: usize,
    /// Rows of logits beyond one for each chunk.
    spare_rows: usize,
    /// Sequences with more than one token to compute.
    prefills: Vec<SeqRef>,
    /// Sequences that have started without a chunk: they share the step with the others.
    started: Vec<SeqRef>,
}

/// What became of a candidate.
enum Start {
    Running,
    /// Somebody else computes what it needs.
    Postponed,
    /// No room: those behind it wait too.
    Full,
}

impl Scheduler {
    /// The next plan; without chunks when nothing can run before an output arrives.
    pub fn schedule(&mut self, now_ns: u64) -> StepPlan {
        self.kv.set_time(now_ns);
        self.plans += 1;
        self.leave_windows();
        let mut running = self.running.iter().map(|&seq| &self.slots[seq]);
        let is_open = self.queue.len() > 0 && self.policy.may_join(&mut running);
        let places = self.running.len() + 1;
        let chunks = Vec::with_capacity(places);
        let flight = Flight { chunks: Vec::with_capacity(places), stats: PlanStats::default(), launched_ns: now_ns };
        let plan = StepPlan { chunks, step: self.next_step, ..StepPlan::default() };
        let mut draft = Draft {
            plan,
            flight,
            budget: self.config.max_step_tokens,
            spare_rows: self.spare_rows,
            started: Vec::new(),
            prefills: Vec::new(),
        };
        self.schedule_decodes(&mut draft);
        let decodes = draft.flight.stats.scheduled;
        if let Some(pace) = self.pace.as_ref().filter(|_| decodes > 0) {
            draft.budget = draft.budget.min(pace.prompt_tokens(decodes, self.kv.block_size()));
        }
        if !self.shares_steps() {
            self.schedule_prefills(&mut draft);
        }
        if is_open {
            self.admit(&mut draft, now_ns);
        }
        if self.shares_steps() {
            self.share_out(&mut draft);
        }
        self.kv.unpin();
        self.launch_order(draft)
    }

    /// Gives back the blocks that are out of sight of every token to come. What a step in flight computes is not cached yet.
    fn leave_windows(&mut self) {
        if self.kv.windows().is_empty() {
            return;
        }
        for &seq in &self.running {
            let sequence = &mut self.slots[seq];
            self.kv.shrink_windows(&mut sequence.windows, sequence.num_landed);
        }
    }

    fn schedule_decodes(&mut self, draft: &mut Draft) {
        let mut at = 0;
        self.computing.clear();
        while let Some(&seq) = self.running.get(at) {
            let sequence = &self.slots[seq];
            if sequence.num_landed < sequence.prompt_len() {
                self.computing.push(seq);
            }
            if sequence.remaining() > 1 {
                draft.prefills.push(seq);
            }
            let is_known = sequence.drafter.is_none() || sequence.in_flight_tokens == 0;
            let wants = sequence.remaining() == 1 && is_known;
            if wants && draft.budget > 0 && self.make_room(seq, at) {
                self.push_chunk(draft, seq, 1);
            }
            at += usize::from(self.running.get(at) == Some(&seq));
        }
    }

    fn schedule_prefills(&mut self, draft: &mut Draft) {
        for seq in std::mem::take(&mut draft.prefills) {
            let sequence = &self.slots[seq];
            let remaining = sequence.remaining();
            // It may have been preempted for another one's next token.
            if sequence.status != Status::Running {
                continue;
            }
            let len = self.chunk_len(sequence.num_computed, remaining, draft.budget);
            let len = rows_fit(sequence, sequence.num_computed, len, draft.spare_rows);
            if len > 0 {
                self.push_chunk(draft, seq, len);
            }
        }
    }

    /// Whether the chunks of prompts are chosen when it is known whose they are.
    fn shares_steps(&self) -> bool {
        self.config.chunked_context && self.config.chunking == ChunkingPolicy::EqualProgress
    }

    /// Gives one block in turn to each sequence that computes a prompt, until the step is full.
    fn share_out(&mut self, draft: &mut Draft) {
        let started = std::mem::take(&mut draft.started);
        let computes = |seq: &SeqRef| self.slots[*seq].remaining() > 1 || started.contains(seq);
        let members: Vec<_> = self.running.iter().copied().filter(computes).collect();
        let wanted: Vec<_> = members.iter().map(|&seq| self.slots[seq].remaining()).collect();
        for (seq, share) in members.into_iter().zip(shares(&wanted, draft.budget, self.kv.block_size())) {
            let sequence = &self.slots[seq];
            let len = self.chunk_len(sequence.num_computed, sequence.remaining(), share.min(draft.budget));
            let len = rows_fit(sequence, sequence.num_computed, len, draft.spare_rows);
            if len > 0 {
                self.push_chunk(draft, seq, len);
            }
        }
    }

    fn admit(&mut self, draft: &mut Draft, now_ns: u64) {
        self.cursor.reset();
        let sharing =
            self.shares_steps().then(|| self.running.iter().filter(|&&seq| self.slots[seq].remaining() > 1).count());
        while self.running.len() < self.config.max_batch_size && draft.budget > 0 {
            let others = sharing.map_or(0, |computing| computing + draft.started.len());
            if others > 0 && (others + 1) * self.kv.block_size() > draft.budget {
                return;
            }
            let Some((tenant, key)) = self.queue.next(&self.cursor) else { return };
            match self.try_start(draft, key.1, now_ns) {
                Start::Running => self.queue.remove(tenant, key),
                Start::Postponed => self.cursor.skip(tenant, key),
                Start::Full => return,
            }
        }
    }

    fn try_start(&mut self, draft: &mut Draft, seq: SeqRef, now_ns: u64) -> Start {
        if self.slots[seq].in_flight_tokens > 0 || self.is_still_blocked(seq) {
            return Start::Full;
        }
        let may_postpone = self.policy.may_postpone() && !self.slots[seq].inspects_prompt();
        if self.kv.is_under_way(self.slots[seq].fetch) {
            return self.set_aside();
        }
        if may_postpone && (self.is_still_postponed(seq) || self.awaits_leader(seq, draft.plan.step)) {
            return Start::Postponed;
        }
        let mut found = self.find_beginning(seq, draft.plan.step);
        if let Some(transfer) = self.kv.ascending(&found) {
            self.slots[seq].fetch = transfer;
            return self.set_aside();
        }
        if may_postpone && let Some(forerunner) = self.forerunner(&self.slots[seq], &found) {
            self.slots[seq].forerunner = Some(forerunner);
            return Start::Postponed;
        }
        if !self.fits(seq, &mut found) {
            return self.wait_for_room(seq);
        }
        if self.fetches(seq, &found) {
            self.policy.retract();
            return self.set_aside();
        }
        if found.near < found.full.len() {
            self.policy.retract();
            found.come_down();
            if !self.fits(seq, &mut found) {
                return self.wait_for_room(seq);
            }
        }
        let start = found.num_tokens(self.kv.block_size());
        let len = self.chunk_len(start, self.slots[seq].tokens.len() - start, draft.budget);
        let len = rows_fit(&self.slots[seq], start, len, draft.spare_rows);
        if len == 0 || !self.start(draft, seq, &found, now_ns) {
            return Start::Full;
        }
        if self.shares_steps() {
            draft.started.push(seq);
            return Start::Running;
        }
        self.push_chunk(draft, seq, len);
        Start::Running
    }

    /// Whether the candidate has room now and can be expected to keep it; with little room a partly used block is given up.
    fn fits(&mut self, seq: SeqRef, found: &mut PrefixMatch) -> bool {
        let total = self.promised_blocks(&self.slots[seq]);
        if !self.affordable(found, total) {
            self.kv.economize(found);
        }
        let fits = self.affordable(found, total) && self.can_protect(seq) && self.fits_windows(seq);
        fits && self.foresees_room(seq, found, total)
    }

    fn wait_for_room(&mut self, seq: SeqRef) -> Start {
        let available = self.kv.free() - self.promised;
        self.blocked = Some(Blocked { seq, available, running: self.running.len() });
        Start::Full
    }

    /// For a candidate that waits for a transfer: those behind it may start, unless a batch starts together.
    fn set_aside(&self) -> Start {
        if self.policy.may_postpone() { Start::Postponed } else { Start::Full }
    }

    /// Whether nothing has changed for the candidate since it did not fit.
    fn is_still_blocked(&self, seq: SeqRef) -> bool {
        self.blocked.as_ref().is_some_and(|blocked| {
            blocked.seq == seq
                && blocked.running == self.running.len()
                && !self.running.is_empty()
                && self.kv.free() - self.promised <= blocked.available
        })
    }

    /// Moves a waiting sequence to the running ones, with the blocks that others have computed for it.
    fn start(&mut self, draft: &mut Draft, seq: SeqRef, found: &PrefixMatch, now_ns: u64) -> bool {
        let total = self.promised_blocks(&self.slots[seq]);
        let is_protected = self.policy.promise(&self.slots[seq]) == Promise::Protection;
        let Some(reservation) = self.kv.reserve(found) else { return false };
        let is_reuse = self.slots[seq].search.is_none_or(|search| search.generated == 0);
        let admitted = self.kv.commit(reservation, is_reuse);
        let start = found.num_tokens(self.kv.block_size());
        draft.plan.block_copies.extend(admitted.copy);
        draft.plan.window_copies.extend(admitted.window_copies);
        let sequence = &mut self.slots[seq];
        self.paused -= usize::from(sequence.life > 0);
        sequence.status = Status::Running;
        sequence.forerunner = None;
        (sequence.num_computed, sequence.num_landed) = (start, start);
        sequence.cached_blocks = found.full.iter().take_while(|&&block| self.kv.is_cached(block)).count();
        if is_reuse {
            self.kv.persist(&found.full[..sequence.cached_blocks], true);
        }
        sequence.cacheable = true;
        sequence.reserved_blocks = total;
        sequence.protected_blocks = if is_protected { sequence.whole_blocks(self.kv.block_size()) } else { 0 };
        self.protected += sequence.protected_blocks;
        sequence.found_blocks = found.full.len();
        if let Some(start_by_ns) = sequence.request.start_by_ns {
            self.patience.remove(&(start_by_ns, seq));
        }
        if !sequence.introduced {
            sequence.introduced = true;
            sequence.stats.first_scheduled_ns = now_ns;
            sequence.stats.cached_tokens = start;
            sequence.stats.reused_blocks = admitted.reused_blocks;
            sequence.stats.allocated_blocks = usize::from(admitted.copy.is_some());
            sequence.stats.new_blocks = admitted.new_blocks;
            let (prompt, sampling) = (sequence.request.prompt.clone(), sequence.sampling());
            let prompt_table = sequence.request.prompt_table.clone();
            let generated = sequence.search.map_or(0, |search| search.generated);
            let is_short = sequence.request.is_short;
            let new = NewSequence { seq: seq.id, prompt, generated, prompt_table, sampling, is_short };
            draft.plan.new_sequences.push(new);
            self.started.push(sequence.address.client);
            sequence.rank = self.next_rank;
            self.next_rank += 1;
        }
        if sequence.request.retention.is_some() {
            for (at, &block) in found.full.iter().enumerate().take(sequence.cached_blocks) {
                self.kv.keep(block, sequence.keep(at * self.kv.block_size()));
            }
        }
        sequence.table = admitted.table;
        sequence.windows = admitted.windows;
        let whole_blocks = sequence.whole_blocks(self.kv.block_size());
        self.kv.windows_mut().claim(whole_blocks);
        self.promised += total.saturating_sub(sequence.table.len());
        let rank = sequence.rank;
        let at = self.running.partition_point(|&other| self.slots[other].rank < rank);
        self.running.insert(at, seq);
        self.computing.push(seq);
        true
    }

    /// Blocks to set aside for a sequence that starts now.
    fn promised_blocks(&self, sequence: &Sequence) -> usize {
        let block_size = self.kv.block_size();
        match self.policy.promise(sequence) {
            Promise::WholeLength => sequence.whole_blocks(block_size),
            Promise::PresentTokens | Promise::Protection => sequence.tokens.len().div_ceil(block_size),
        }
    }

    /// Whether the promise of protection, if it is due, could be kept.
    fn can_protect(&self, seq: SeqRef) -> bool {
        let sequence = &self.slots[seq];
        self.policy.promise(sequence) != Promise::Protection
            || self.protected + sequence.whole_blocks(self.kv.block_size()) <= self.kv.num_blocks()
    }

    fn fits_windows(&self, seq: SeqRef) -> bool {
        self.kv.windows().have_room(self.slots[seq].whole_blocks(self.kv.block_size()))
    }

    fn affordable(&self, found: &PrefixMatch, total: usize) -> bool {
        self.kv.cost(found, total) + self.promised <= self.kv.free()
    }

    fn foresees_room(&mut self, seq: SeqRef, found: &PrefixMatch, total: usize) -> bool {
        let candidate = Candidate {
            plan: self.plans,
            sequence: &self.slots[seq],
            cost_blocks: self.kv.cost(found, total),
            used_blocks: self.kv.num_blocks() - self.kv.free() + self.promised,
            num_blocks: self.kv.num_blocks(),
            block_size: self.kv.block_size(),
        };
        let mut running = self.running.iter().map(|&other| &self.slots[other]);
        self.policy.foresees_room(&candidate, &mut running)
    }

    /// Makes sure that the next slot of the running sequence at `at` can have a block; preempts the sequences for it that
    /// started last, which may be this one.
    fn make_room(&mut self, seq: SeqRef, at: usize) -> bool {
        let sequence = &self.slots[seq];
        let has_room = sequence.num_computed < sequence.table.len() * self.kv.block_size();
        if has_room || sequence.table.len() < sequence.reserved_blocks {
            return true;
        }
        while self.kv.free() <= self.promised {
            let may_give_way = |seq: &&SeqRef| {
                let sequence = &self.slots[**seq];
                sequence.protected_blocks == 0 && sequence.reserved_blocks < sequence.whole_blocks(self.kv.block_size())
            };
            let Some(victim) = self.running[at..].iter().rev().find(may_give_way).copied() else { return false };
            self.preempt(victim);
            if victim == seq {
                return false;
            }
        }
        true
    }

    /// How much of `remaining` tokens runs in a step that has room for `budget`: all of it, or whole blocks, so that
    /// what is computed can be shared.
    fn chunk_len(&self, start: usize, remaining: usize, budget: usize) -> usize {
        if remaining <= budget {
            return remaining;
        }
        let whole_step = self.config.max_step_tokens;
        if !self.config.chunked_context && remaining <= whole_step {
            return 0;
        }
        let block = self.kv.block_size();
        let aligned = ((start + budget) / block * block).saturating_sub(start);
        if aligned == 0 && budget == whole_step { budget } else { aligned }
    }

    fn push_chunk(&mut self, draft: &mut Draft, seq: SeqRef, len: usize) {
        let block_size = self.kv.block_size();
        let sequence = &mut self.slots[seq];
        let (start, end) = (sequence.num_computed, sequence.num_computed + len);
        while sequence.table.len() * block_size < end {
            let Some((block, fresh)) = self.kv.take() else {
                unreachable!("sequence {} was promised blocks that are not there", seq.id);
            };
            if sequence.table.len() * block_size < sequence.prompt_len() && sequence.life == 0 {
                sequence.stats.allocated_blocks += 1;
                sequence.stats.new_blocks += usize::from(fresh);
            }
            self.promised -= usize::from(sequence.table.len() < sequence.reserved_blocks);
            sequence.table.push(block);
        }
        let sample = end == sequence.num_tokens();
        let guesses = if sample { self.guess(draft, seq, len) } else { Vec::new() };
        let sequence = &mut self.slots[seq];
        self.kv.grow_windows(&mut sequence.windows, sequence.table.len());
        for (pool, table) in sequence.windows.iter_mut().enumerate() {
            let changes = &mut draft.plan.window_blocks;
            table.unsent(|start, blocks| changes.push(WindowBlocks { seq: seq.id, pool, start, blocks }));
        }
        let keep_blocks = sequence.sent_blocks;
        let append_blocks = sequence.table[keep_blocks..].to_vec();
        let context_tokens = end.min(sequence.prompt_len()).saturating_sub(start);
        let inspect = sequence.inspect(start, end, sample, guesses.len());
        sequence.num_inspected = sequence.num_inspected.max(end.min(sequence.prompt_len()));
        sequence.num_computed = end;
        sequence.last_chunk = (draft.plan.step, start);
        sequence.sent_blocks = sequence.table.len();
        sequence.in_flight_tokens += usize::from(sample);
        let len = len + guesses.len();
        let chunk = Chunk { seq: seq.id, start, len, keep_blocks, append_blocks, sample, draft: guesses, inspect };
        draft.spare_rows -= chunk.rows().saturating_sub(1);
        draft.plan.chunks.push(chunk);
        draft.flight.chunks.push((seq, sequence.life));
        draft.budget -= len;
        self.queue.charge(sequence.tenant, len);
        let stats = &mut draft.flight.stats;
        stats.scheduled += 1;
        stats.context += usize::from(context_tokens > 0);
        stats.generation += usize::from(context_tokens == 0);
        stats.context_tokens += context_tokens;
        stats.generation_tokens += len - context_tokens;
    }

    /// Tokens that are verified with the next one of a sequence whose chunk has `len` tokens: as many as the step has
    /// tokens and rows for, in blocks that nobody is promised.
    fn guess(&mut self, draft: &Draft, seq: SeqRef, len: usize) -> Vec<TokenId> {
        let block_size = self.kv.block_size();
        let unclaimed = self.kv.free() - self.promised;
        let sequence = &mut self.slots[seq];
        let blocks = sequence.table.len().max(sequence.reserved_blocks) + unclaimed;
        let end = sequence.num_computed + len;
        let inspected =
            if sequence.inspects_prompt() { end - sequence.num_inspected.max(sequence.num_computed) } else { 1 };
        let rows = (draft.spare_rows + 1).saturating_sub(inspected);
        let most = (draft.budget - len).min(rows).min(blocks * block_size - end);
        let guesses = sequence.guess(most);
        while sequence.table.len() * block_size < end + guesses.len() {
            let Some((block, _)) = self.kv.take() else {
                unreachable!("sequence {} guesses into blocks that are not there", seq.id);
            };
            self.promised -= usize::from(sequence.table.len() < sequence.reserved_blocks);
            sequence.table.push(block);
        }
        guesses
    }

    /// Numbers a plan that has work, single tokens first; one without is not launched and leaves no trace.
    fn launch_order(&mut self, draft: Draft) -> StepPlan {
        let Draft { mut plan, mut flight, .. } = draft;
        if plan.chunks.is_empty() {
            return StepPlan { step: 0, ..plan };
        }
        if !plan.chunks.is_sorted_by_key(|chunk| chunk.len > 1) {
            let mut chunks: Vec<_> = plan.chunks.into_iter().zip(flight.chunks).collect();
            chunks.sort_by_key(|(chunk, _)| chunk.len > 1);
            (plan.chunks, flight.chunks) = chunks.into_iter().unzip();
        }
        plan.retired = std::mem::take(&mut self.retired);
        self.next_step += 1;
        self.flights.push_back(flight);
        plan
    }
}

/// How much of a budget each gets that wants so much, when units are given in turn.
fn shares(wanted: &[usize], budget: usize, unit: usize) -> Vec<usize> {
    let (mut shares, mut left) = (vec![0; wanted.len()], budget);
    loop {
        let before = left;
        for (share, &wanted) in shares.iter_mut().zip(wanted) {
            let more = unit.min(wanted - *share).min(left);
            *share += more;
            left -= more;
        }
        if left == 0 || left == before {
            return shares;
        }
    }
}

/// As much of a chunk of `len` tokens as leaves no more rows of logits than one and the spare ones.
fn rows_fit(sequence: &Sequence, start: usize, len: usize, spare_rows: usize) -> usize {
    match sequence.inspects_prompt() {
        true => len.min(sequence.num_inspected.saturating_sub(start) + 1 + spare_rows),
        false => len,
    }
}
