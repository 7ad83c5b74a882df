//! Decides what runs in each step and applies what came out. Owns no memory and knows no phases: a sequence has
//! computed tokens and tokens, and a step lets the first catch up with the second.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use super::config::EngineConfig;
use super::gate::kv_slots;
use super::kv::{KvCache, PrefixMatch};
use super::policy::{CapacityPolicy, Promise, capacity_policy};
use super::request::{Request, RequestStats};
use super::sequence::{SeqDelta, Sequence, Status};
use crate::error::{Error, Result};
use crate::ids::SeqId;
use crate::step::{Chunk, ExecutorLimits, NewSequence, SampledRow, SampledToken, StepOutput, StepPlan};

/// Counts of one plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PlanStats {
    pub scheduled: usize,
    pub context: usize,
    pub generation: usize,
    pub context_tokens: usize,
    pub generation_tokens: usize,
}

/// What the scheduler must remember of a plan until its output arrives.
struct Flight {
    /// [`Sequence::life`] of each chunk.
    lives: Vec<usize>,
    stats: PlanStats,
}

/// A plan under construction.
struct Draft {
    plan: StepPlan,
    flight: Flight,
    budget: usize,
}

pub(super) struct Scheduler {
    config: EngineConfig,
    vocab_size: usize,
    policy: Box<dyn CapacityPolicy>,
    kv: KvCache,
    sequences: HashMap<SeqId, Sequence>,
    /// In order of their start.
    running: Vec<SeqId>,
    /// In order of priority, then arrival.
    waiting: BTreeSet<(Reverse<i32>, SeqId)>,
    retired: Vec<SeqId>,
    flights: VecDeque<Flight>,
    next_seq: u64,
    next_step: u64,
    preemptions: u64,
}

impl Scheduler {
    pub fn new(config: EngineConfig, limits: &ExecutorLimits) -> Self {
        Self {
            policy: capacity_policy(config.policy),
            kv: KvCache::new(limits.num_blocks, limits.block_size_tokens, config.kv_reuse),
            vocab_size: limits.vocab_size,
            config,
            sequences: HashMap::new(),
            running: Vec::new(),
            waiting: BTreeSet::new(),
            retired: Vec::new(),
            flights: VecDeque::new(),
            next_seq: 1,
            next_step: 1,
            preemptions: 0,
        }
    }

    /// Queues a request that the gate has admitted.
    pub fn add(&mut self, mut request: Request, arrival_ns: u64) -> SeqId {
        let room = self.config.max_seq_len - request.prompt.len();
        request.stop.max_tokens = request.stop.max_tokens.min(room);
        let seq = SeqId(self.next_seq);
        self.next_seq += 1;
        self.waiting.insert((Reverse(request.priority), seq));
        self.sequences.insert(seq, Sequence::new(seq, request, arrival_ns));
        seq
    }

    /// Ends a sequence now; its blocks are free when this returns. Tokens that are still in flight are dropped.
    pub fn finish(&mut self, seq: SeqId) -> Option<RequestStats> {
        self.take_off(seq);
        let sequence = self.sequences.remove(&seq)?;
        if sequence.introduced {
            self.retired.push(seq);
        }
        Some(sequence.stats)
    }

    /// Sequences whose deadline has passed.
    pub fn expired(&self, now_ns: u64) -> Vec<SeqId> {
        let passed = |sequence: &&Sequence| sequence.request.deadline_ns.is_some_and(|deadline| deadline <= now_ns);
        let mut expired: Vec<_> = self.sequences.values().filter(passed).map(|sequence| sequence.id).collect();
        expired.sort_unstable();
        expired
    }

    /// The next plan; without chunks when nothing can run before an output arrives.
    pub fn schedule(&mut self, now_ns: u64) -> StepPlan {
        let open = self.running.iter().all(|seq| self.policy.may_join(&self.sequences[seq]));
        let flight = Flight { lives: Vec::new(), stats: PlanStats::default() };
        let mut draft = Draft { plan: StepPlan::default(), flight, budget: self.config.max_step_tokens };
        self.schedule_decodes(&mut draft);
        self.schedule_prefills(&mut draft);
        if open {
            self.admit(&mut draft, now_ns);
        }
        self.kv.unpin();
        self.launch_order(draft)
    }

    /// Applies the output of the oldest plan that was scheduled and not yet updated.
    ///
    /// # Errors
    /// `Internal` when the output does not fit the plan: the executor is broken.
    pub fn update(&mut self, plan: &StepPlan, output: &StepOutput, now_ns: u64) -> Result<(Vec<SeqDelta>, PlanStats)> {
        self.check_output(plan, output)?;
        let Some(flight) = self.flights.pop_front() else {
            return Err(Error::internal(format!("step {} was never scheduled", plan.step)));
        };
        let mut rows = output.rows.iter();
        let mut deltas = Vec::new();
        for (chunk, life) in plan.chunks.iter().zip(flight.lives) {
            let row = if chunk.sample { rows.next() } else { None };
            let Some(sequence) = self.sequences.get_mut(&chunk.seq) else { continue };
            if sequence.life == life {
                sequence.num_landed = chunk.start + chunk.len;
            }
            let delta = row.map(|row| sequence.accept(row, now_ns));
            self.cache_full_blocks(chunk.seq);
            let Some(mut delta) = delta else { continue };
            if delta.finish.is_some() {
                delta.stats = self.finish(chunk.seq).unwrap_or(delta.stats);
            }
            deltas.push(delta);
        }
        Ok((deltas, flight.stats))
    }

    /// Whether no sequence is left.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    pub fn active(&self) -> usize {
        self.sequences.len()
    }

    /// Sequences that were preempted and wait to run again.
    pub fn paused(&self) -> usize {
        self.waiting.iter().filter(|(_, seq)| self.sequences[seq].life > 0).count()
    }

    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    /// Forgets every sequence and plan, after a failure.
    pub fn clear(&mut self) {
        let all: Vec<_> = self.sequences.keys().copied().collect();
        for seq in all {
            self.finish(seq);
        }
        self.flights.clear();
    }

    /// Every invariant of sequences, blocks and cache.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.kv.check(self.sequences.values().map(|sequence| &sequence.table[..]))?;
        let places = self.running.len() + self.waiting.len();
        if places != self.sequences.len() || self.running.len() > self.config.max_batch_size {
            return Err(format!("{} sequences, {} running, {places} placed", self.sequences.len(), self.running.len()));
        }
        for sequence in self.sequences.values() {
            self.check_sequence(sequence).map_err(|error| format!("sequence {}: {error}", sequence.id))?;
        }
        if self.promised() > self.kv.free() {
            return Err(format!("{} blocks are promised, {} are free", self.promised(), self.kv.free()));
        }
        Ok(())
    }

    fn check_sequence(&self, sequence: &Sequence) -> std::result::Result<(), String> {
        let key = (Reverse(sequence.request.priority), sequence.id);
        let (runs, waits) = (self.running.contains(&sequence.id), self.waiting.contains(&key));
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

    fn schedule_decodes(&mut self, draft: &mut Draft) {
        let mut at = 0;
        while let Some(&seq) = self.running.get(at) {
            let wants = self.sequences[&seq].remaining() == 1;
            if wants && draft.budget > 0 && self.make_room(seq, at) {
                self.push_chunk(draft, seq, 1);
            }
            at += usize::from(self.running.get(at) == Some(&seq));
        }
    }

    fn schedule_prefills(&mut self, draft: &mut Draft) {
        for seq in self.running.clone() {
            let sequence = &self.sequences[&seq];
            let len = self.chunk_len(sequence.num_computed, sequence.remaining(), draft.budget);
            if sequence.remaining() > 1 && len > 0 {
                self.push_chunk(draft, seq, len);
            }
        }
    }

    fn admit(&mut self, draft: &mut Draft, now_ns: u64) {
        let mut after = Bound::Unbounded;
        while let Some(&key) = self.waiting.range((after, Bound::Unbounded)).next() {
            after = Bound::Excluded(key);
            let seq = key.1;
            let sequence = &self.sequences[&seq];
            if self.running.len() >= self.config.max_batch_size || draft.budget == 0 || sequence.in_flight_tokens > 0 {
                return;
            }
            let mut found = self.kv.find(&sequence.tokens, sequence.request.cache_salt);
            if self.policy.may_postpone() && self.is_being_computed(sequence, &found) {
                continue;
            }
            let total = self.promised_blocks(sequence);
            if !self.affordable(&found, total) {
                found.partial = None;
            }
            let start = found.num_tokens(self.kv.block_size());
            let len = self.chunk_len(start, sequence.tokens.len() - start, draft.budget);
            if len == 0 || !self.affordable(&found, total) || !self.start(draft, seq, &found, total, now_ns) {
                return;
            }
            self.waiting.remove(&key);
            self.push_chunk(draft, seq, len);
        }
    }

    /// Moves a waiting sequence to the running ones, with the cached part of its blocks.
    fn start(&mut self, draft: &mut Draft, seq: SeqId, found: &PrefixMatch, total: usize, now_ns: u64) -> bool {
        let Some(reservation) = self.kv.reserve(found) else { return false };
        let admitted = self.kv.commit(reservation);
        let start = found.num_tokens(self.kv.block_size());
        draft.plan.block_copies.extend(admitted.copy);
        let Some(sequence) = self.sequences.get_mut(&seq) else { return false };
        sequence.status = Status::Running;
        (sequence.num_computed, sequence.num_landed) = (start, start);
        (sequence.cached_blocks, sequence.cacheable) = (found.full.len(), true);
        sequence.reserved_blocks = total;
        if !sequence.introduced {
            sequence.introduced = true;
            sequence.stats.first_scheduled_ns = now_ns;
            sequence.stats.cached_tokens = start;
            sequence.stats.reused_blocks = admitted.reused_blocks;
            sequence.stats.allocated_blocks = usize::from(admitted.copy.is_some());
            sequence.stats.new_blocks = admitted.new_blocks;
            let (prompt, sampling) = (sequence.request.prompt.clone(), sequence.request.sampling.clone());
            draft.plan.new_sequences.push(NewSequence { seq, prompt, sampling });
        }
        sequence.table = admitted.table;
        self.running.push(seq);
        true
    }

    /// Blocks to set aside for a sequence that starts now.
    fn promised_blocks(&self, sequence: &Sequence) -> usize {
        let slots = match self.policy.promise(sequence) {
            Promise::WholeLength => kv_slots(sequence.prompt_len(), sequence.request.stop.max_tokens),
            Promise::PresentTokens => sequence.tokens.len(),
        };
        slots.div_ceil(self.kv.block_size())
    }

    fn affordable(&self, found: &PrefixMatch, total: usize) -> bool {
        self.kv.cost(found, total) + self.promised() <= self.kv.free()
    }

    /// Blocks that running sequences may still claim without asking.
    fn promised(&self) -> usize {
        let open = |seq: &SeqId| self.sequences[seq].reserved_blocks.saturating_sub(self.sequences[seq].table.len());
        self.running.iter().map(open).sum()
    }

    /// Whether a running sequence is about to compute the first block that `candidate` would have to compute.
    fn is_being_computed(&self, candidate: &Sequence, found: &PrefixMatch) -> bool {
        let have = found.full.len();
        let end = (have + 1) * self.kv.block_size();
        if !self.config.kv_reuse || candidate.tokens.len() <= end {
            return false;
        }
        self.running.iter().map(|seq| &self.sequences[seq]).any(|other| {
            other.cacheable
                && other.cached_blocks <= have
                && other.num_landed < other.prompt_len()
                && other.prompt_len() >= end
                && other.request.cache_salt == candidate.request.cache_salt
                && other.request.prompt[..end] == candidate.tokens[..end]
        })
    }

    /// Makes sure that the next slot of the running sequence at `at` can have a block; preempts the most recently
    /// started sequences for it, which may be this one.
    fn make_room(&mut self, seq: SeqId, at: usize) -> bool {
        let sequence = &self.sequences[&seq];
        let needed = (sequence.num_computed + 1).div_ceil(self.kv.block_size());
        let is_promised = needed <= sequence.reserved_blocks;
        if needed <= sequence.table.len() || is_promised {
            return true;
        }
        while self.kv.free() <= self.promised() {
            let growing = |seq: &SeqId| {
                let sequence = &self.sequences[seq];
                sequence.reserved_blocks
                    < kv_slots(sequence.prompt_len(), sequence.request.stop.max_tokens).div_ceil(self.kv.block_size())
            };
            let Some(victim) = self.running[at..].iter().rev().find(|seq| growing(seq)).copied() else { return false };
            self.preempt(victim);
            if victim == seq {
                return false;
            }
        }
        true
    }

    fn preempt(&mut self, seq: SeqId) {
        self.take_off(seq);
        let Some(sequence) = self.sequences.get_mut(&seq) else { return };
        sequence.life += 1;
        sequence.status = Status::Waiting;
        sequence.stats.preemptions += 1;
        (sequence.num_computed, sequence.num_landed, sequence.sent_blocks) = (0, 0, 0);
        (sequence.cached_blocks, sequence.reserved_blocks) = (0, 0);
        self.waiting.insert((Reverse(sequence.request.priority), seq));
        self.preemptions += 1;
    }

    /// Takes a sequence from where it is; what it has computed stays in the cache.
    fn take_off(&mut self, seq: SeqId) {
        self.cache_tail(seq);
        let Some(sequence) = self.sequences.get_mut(&seq) else { return };
        self.waiting.remove(&(Reverse(sequence.request.priority), seq));
        self.running.retain(|&other| other != seq);
        self.kv.release(&std::mem::take(&mut sequence.table));
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

    fn push_chunk(&mut self, draft: &mut Draft, seq: SeqId, len: usize) {
        let Some(sequence) = self.sequences.get_mut(&seq) else { return };
        let (start, end) = (sequence.num_computed, sequence.num_computed + len);
        while sequence.table.len() * self.kv.block_size() < end {
            let Some((block, fresh)) = self.kv.take() else {
                unreachable!("sequence {seq} was promised blocks that are not there");
            };
            let of_prompt = sequence.table.len() * self.kv.block_size() < sequence.prompt_len();
            if of_prompt && sequence.life == 0 {
                sequence.stats.allocated_blocks += 1;
                sequence.stats.new_blocks += usize::from(fresh);
            }
            sequence.table.push(block);
        }
        let keep_blocks = sequence.sent_blocks;
        let append_blocks = sequence.table[keep_blocks..].to_vec();
        let sample = end == sequence.num_tokens();
        let context_tokens = end.min(sequence.prompt_len()).saturating_sub(start);
        sequence.num_computed = end;
        sequence.sent_blocks = sequence.table.len();
        sequence.in_flight_tokens += usize::from(sample);
        draft.plan.chunks.push(Chunk { seq, start, len, keep_blocks, append_blocks, sample });
        draft.flight.lives.push(sequence.life);
        draft.budget -= len;
        let stats = &mut draft.flight.stats;
        stats.scheduled += 1;
        stats.context += usize::from(context_tokens > 0);
        stats.generation += usize::from(context_tokens == 0);
        stats.context_tokens += context_tokens;
        stats.generation_tokens += len - context_tokens;
    }

    /// Numbers a plan that has work, single tokens first; one without is not launched and leaves no trace.
    fn launch_order(&mut self, draft: Draft) -> StepPlan {
        let Draft { mut plan, mut flight, .. } = draft;
        if plan.chunks.is_empty() {
            return plan;
        }
        let mut chunks: Vec<_> = plan.chunks.into_iter().zip(flight.lives).collect();
        chunks.sort_by_key(|(chunk, _)| chunk.len > 1);
        (plan.chunks, flight.lives) = chunks.into_iter().unzip();
        plan.step = self.next_step;
        plan.retired = std::mem::take(&mut self.retired);
        self.next_step += 1;
        self.flights.push_back(flight);
        plan
    }

    fn check_output(&self, plan: &StepPlan, output: &StepOutput) -> Result<()> {
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
        let in_vocab = |token: &SampledToken| usize::try_from(token.id).is_ok_and(|id| id < self.vocab_size);
        let is_whole = |row: &SampledRow| row.error.is_some() || row.tokens.len() == 1;
        match output.rows.iter().find(|row| !is_whole(row) || !row.tokens.iter().all(in_vocab)) {
            Some(row) => Err(Error::internal(format!(
                "sequence {} sampled {:?}, expected 1 token of 0 to {}",
                row.seq,
                row.tokens,
                self.vocab_size - 1
            ))),
            None => Ok(()),
        }
    }

    /// Makes blocks reusable whose slots are written and whose tokens are known.
    fn cache_full_blocks(&mut self, seq: SeqId) {
        let Some(sequence) = self.sequences.get_mut(&seq) else { return };
        let block_size = self.kv.block_size();
        let full = sequence.num_landed.min(sequence.tokens.len()) / block_size;
        while sequence.cacheable && sequence.cached_blocks < full {
            let at = sequence.cached_blocks;
            let parent = at.checked_sub(1).map(|at| sequence.table[at]);
            let tokens = &sequence.tokens[at * block_size..(at + 1) * block_size];
            sequence.cacheable = self.kv.insert(parent, sequence.request.cache_salt, tokens, sequence.table[at]);
            sequence.cached_blocks += usize::from(sequence.cacheable);
        }
    }

    /// Makes the last, incomplete block of a sequence reusable: only when nobody writes to it any more.
    fn cache_tail(&mut self, seq: SeqId) {
        let Some(sequence) = self.sequences.get(&seq) else { return };
        let (at, block_size) = (sequence.cached_blocks, self.kv.block_size());
        let known = sequence.num_landed.min(sequence.tokens.len());
        if !sequence.cacheable || known <= at * block_size {
            return;
        }
        let parent = at.checked_sub(1).map(|at| sequence.table[at]);
        let tokens = &sequence.tokens[at * block_size..known];
        self.kv.insert_tail(parent, sequence.request.cache_salt, tokens, sequence.table[at]);
    }
}
