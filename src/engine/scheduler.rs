//! Decides what runs in each step and applies what came out. Owns no memory and knows no phases: a sequence has
//! computed tokens and tokens, and a step lets the first catch up with the second.

mod beginning;
mod checks;
mod planning;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::beams::Round;
use super::config::EngineConfig;
use super::events::KvEvents;
use super::kv::{KvCache, Place};
use super::pace::Pace;
use super::policy::{CapacityPolicy, capacity_policy};
use super::queue::{Cursor, Key, WaitingQueue};
use super::request::{Request, RequestStats};
use super::sequence::{Address, SearchStep, SeqDelta, SeqRef, Sequence, Slots, Status};
use crate::decode::draft::Drafter;
use crate::error::{Error, Result};
use crate::ids::SeqId;
use crate::step::{DiskLimits, DiskOrder, ExecutorLimits, Landed, StepOutput, StepPlan, Transfer, WindowPool};

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
    /// Each chunk's sequence and its [`Sequence::life`].
    chunks: Vec<(SeqRef, usize)>,
    stats: PlanStats,
    launched_ns: u64,
}

/// The head of the queue did not fit, and will not before more is free or somebody has left.
struct Blocked {
    seq: SeqRef,
    available: usize,
    running: usize,
}

pub(super) struct Scheduler {
    config: EngineConfig,
    vocab_size: usize,
    /// Rows of logits in a step beyond one for each running sequence.
    spare_rows: usize,
    policy: Box<dyn CapacityPolicy>,
    pace: Option<Pace>,
    kv: KvCache,
    slots: Slots,
    /// In order of their first start: who was preempted is not the youngest when it comes back, and not the next victim.
    running: Vec<SeqRef>,
    /// Those of them that may compute a part of their prompt still, as of the plan that is being made.
    computing: Vec<SeqRef>,
    queue: WaitingQueue,
    cursor: Cursor,
    blocked: Option<Blocked>,
    deadlines: BTreeSet<(u64, SeqRef)>,
    /// When waiting sequences that never ran have waited for too long.
    patience: BTreeSet<(u64, SeqRef)>,
    retired: Vec<SeqId>,
    flights: VecDeque<Flight>,
    /// Blocks that running sequences may still claim without asking.
    promised: usize,
    /// Blocks of the whole lengths of protected sequences.
    protected: usize,
    /// Clients whose first sequence has started, until somebody asks.
    started: Vec<u32>,
    next_seq: u64,
    next_step: u64,
    next_rank: u64,
    /// Plans that were begun, those without work included.
    plans: u64,
    preemptions: u64,
    paused: usize,
}

impl Scheduler {
    pub fn new(config: EngineConfig, limits: &ExecutorLimits, host_blocks: usize, events: Option<KvEvents>) -> Self {
        let ageing_ns = config.priority_ageing.map(|ageing| u64::try_from(ageing.as_nanos()).unwrap_or(u64::MAX));
        Self {
            policy: capacity_policy(config.policy),
            pace: config.max_step_slowdown.map(Pace::new),
            kv: KvCache::new(limits, host_blocks, config.kv_reuse, events),
            vocab_size: limits.vocab_size,
            spare_rows: limits.max_step_rows.saturating_sub(config.max_batch_size),
            config,
            slots: Slots::default(),
            running: Vec::new(),
            computing: Vec::new(),
            queue: WaitingQueue::new(ageing_ns),
            cursor: Cursor::default(),
            blocked: None,
            deadlines: BTreeSet::new(),
            patience: BTreeSet::new(),
            retired: Vec::new(),
            flights: VecDeque::new(),
            promised: 0,
            protected: 0,
            started: Vec::new(),
            next_seq: 1,
            next_step: 1,
            next_rank: 0,
            plans: 0,
            preemptions: 0,
            paused: 0,
        }
    }

    /// Adds pools for layers that see a window of the context.
    ///
    /// # Errors
    /// As [`KvCache::add_windows`].
    pub fn add_windows(&mut self, pools: &[WindowPool], host_blocks: &[usize], limits: &ExecutorLimits) -> Result<()> {
        self.kv.add_windows(pools, host_blocks, limits)
    }

    /// Queues the sequences of a request that the gate has admitted.
    pub fn add(&mut self, mut request: Request, client: u32, arrival_ns: u64) -> Vec<SeqRef> {
        let room = self.room(request.prompt.len());
        request.stop.max_tokens = request.stop.max_tokens.min(room);
        let request = Arc::new(request);
        let mut seqs: Vec<SeqRef> = Vec::with_capacity(request.num_sequences);
        for index in 0..request.num_sequences as u32 {
            let leader = seqs.first().copied();
            seqs.push(self.queue_sequence(&request, Address { client, index }, leader, arrival_ns, None));
        }
        seqs
    }

    /// Queues a sequence for each hypothesis of a beam search, for one token.
    pub fn add_round(&mut self, round: Round, client: u32, arrival_ns: u64) -> Vec<SeqRef> {
        let Round { members, search, generated } = round;
        let step = SearchStep { private: if self.config.kv_reuse { 0 } else { search.0 }, generated };
        let mut seqs: Vec<SeqRef> = Vec::with_capacity(members.len());
        for (index, (request, leader)) in members.into_iter().enumerate() {
            let (address, leader) = (Address { client, index: index as u32 }, leader.map(|leader| seqs[leader]));
            seqs.push(self.queue_sequence(&Arc::new(request), address, leader, arrival_ns, Some(step)));
        }
        seqs
    }

    /// Tokens that a sequence may generate behind a prompt.
    pub fn room(&self, prompt_len: usize) -> usize {
        self.config.max_seq_len - prompt_len
    }

    fn queue_sequence(
        &mut self,
        request: &Arc<Request>,
        address: Address,
        leader: Option<SeqRef>,
        arrival_ns: u64,
        search: Option<SearchStep>,
    ) -> SeqRef {
        let id = SeqId(self.next_seq);
        self.next_seq += 1;
        let mut sequence = Sequence::new(id, Arc::clone(request), address, arrival_ns);
        if search.is_none() {
            sequence.drafter = Drafter::new(&request.draft, self.config.ngram_drafts, self.vocab_size);
        }
        sequence.search = search;
        sequence.leader = leader;
        sequence.tenant = self.queue.join(request.tenant);
        let seq = self.slots.insert(sequence);
        self.enqueue(seq);
        if let Some(deadline_ns) = request.deadline_ns {
            self.deadlines.insert((deadline_ns, seq));
        }
        if let Some(start_by_ns) = request.start_by_ns.filter(|_| search.is_none_or(|search| search.generated == 0)) {
            self.patience.insert((start_by_ns, seq));
        }
        seq
    }

    /// Ends a sequence now; its blocks are free when this returns. Tokens that are still in flight are dropped.
    pub fn finish(&mut self, seq: SeqRef) -> Option<RequestStats> {
        let sequence = self.slots.find(seq)?;
        if sequence.search.is_none_or(|search| search.generated == 0) {
            self.kv.persist(&sequence.table[..sequence.cached_blocks], false);
        }
        self.take_off(seq);
        let sequence = self.slots.remove(seq)?;
        self.queue.leave(sequence.tenant);
        if let Some(deadline_ns) = sequence.request.deadline_ns {
            self.deadlines.remove(&(deadline_ns, seq));
        }
        if let Some(start_by_ns) = sequence.request.start_by_ns {
            self.patience.remove(&(start_by_ns, seq));
        }
        if sequence.introduced {
            self.retired.push(seq.id);
        }
        Some(sequence.stats)
    }

    /// Clients whose deadline has passed.
    pub fn expired(&self, now_ns: u64) -> Vec<u32> {
        let passed = self.deadlines.iter().take_while(|(deadline_ns, _)| *deadline_ns <= now_ns);
        passed.map(|(_, seq)| self.slots[*seq].address.client).collect()
    }

    /// Clients that have waited for too long for the start of a sequence.
    pub fn overdue(&self, now_ns: u64) -> Vec<u32> {
        let passed = self.patience.iter().take_while(|(start_by_ns, _)| *start_by_ns <= now_ns);
        passed.map(|(_, seq)| self.slots[*seq].address.client).collect()
    }

    /// Clients that have started since the last call, in order.
    pub fn take_started(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.started)
    }

    /// Applies the output of the oldest plan that was scheduled and not yet updated; what it did to each sequence is
    /// appended to `deltas`.
    ///
    /// # Errors
    /// `Internal` when the output does not fit the plan: the executor is broken.
    pub fn update(
        &mut self,
        plan: &StepPlan,
        output: &StepOutput,
        now_ns: u64,
        deltas: &mut Vec<SeqDelta>,
    ) -> Result<PlanStats> {
        self.check_output(plan, output)?;
        let Some(flight) = self.flights.pop_front() else {
            return Err(Error::internal(format!("step {} was never scheduled", plan.step)));
        };
        self.kv.set_time(now_ns);
        if let Some(pace) = &mut self.pace {
            let tokens = flight.stats.context_tokens + flight.stats.generation_tokens;
            pace.observe(tokens, flight.launched_ns, now_ns);
        }
        let mut rows = output.rows.iter().enumerate();
        let mut inspections = output.inspections.iter().enumerate();
        for (chunk, (seq, life)) in plan.chunks.iter().zip(flight.chunks) {
            let row = if chunk.sample { rows.next() } else { None };
            let inspection = if chunk.inspect.positions > 0 { inspections.next() } else { None };
            let Some(sequence) = self.slots.find_mut(seq) else { continue };
            if sequence.life == life {
                sequence.land(chunk, row.map(|(_, row)| row));
            }
            let mut delta = row.map(|(number, row)| sequence.accept(number, row, chunk.draft.len(), now_ns));
            if let Some((number, inspection)) = inspection {
                let delta = delta.get_or_insert_with(|| sequence.nothing_new());
                delta.inspected = Some(sequence.inspected(number, inspection, chunk.draft.len(), delta.accepted));
            }
            self.cache_full_blocks(seq);
            let Some(mut delta) = delta else { continue };
            if let Some(finish) = &delta.finish {
                let is_whole = self.slots.find(seq).is_some_and(|sequence| sequence.search.is_none());
                if is_whole {
                    self.policy.observe_end(delta.stats.generated_tokens, finish.reason);
                }
                delta.stats = self.finish(seq).unwrap_or(delta.stats);
            }
            deltas.push(delta);
        }
        Ok(flight.stats)
    }

    /// Whether no sequence is left.
    pub fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    pub fn active(&self) -> usize {
        self.slots.len()
    }

    /// Sequences that were preempted and wait to run again.
    pub fn paused(&self) -> usize {
        self.paused
    }

    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    /// Transfers between tiers to start before the plan that was made last.
    pub fn take_transfers(&mut self) -> Vec<Transfer> {
        self.kv.take_transfers()
    }

    /// What shall happen on disk, behind the plans before the one that was made last.
    pub fn take_disk_orders(&mut self) -> Vec<DiskOrder> {
        self.kv.take_disk_orders()
    }

    /// As [`KvCache::flush`].
    pub fn flush_disk(&mut self) -> bool {
        self.kv.flush()
    }

    /// Adds the tier on disk.
    pub fn add_disk(&mut self, limits: DiskLimits) {
        self.kv.add_disk(limits);
    }

    /// A transfer has ended.
    pub fn land(&mut self, landed: Landed) {
        self.kv.land(landed);
        self.blocked = None;
    }

    /// Forgets every sequence and plan, after a failure.
    pub fn clear(&mut self) {
        let all: Vec<_> = self.slots.iter().map(|(seq, _)| seq).collect();
        for seq in all {
            self.finish(seq);
        }
        self.flights.clear();
        self.kv.abandon_transfers();
    }

    /// Forgets all reusable content. What running sequences have computed is theirs alone from now on.
    pub fn reset_cache(&mut self) {
        self.kv.reset();
        for &seq in &self.running {
            let sequence = &mut self.slots[seq];
            (sequence.cached_blocks, sequence.cacheable) = (0, false);
        }
    }

    fn place(&self, seq: SeqRef) -> (u32, Key) {
        let sequence = &self.slots[seq];
        let (priority, arrival_ns) = (sequence.request.priority, sequence.stats.arrival_ns);
        (sequence.tenant, self.queue.key(seq, priority, arrival_ns))
    }

    fn enqueue(&mut self, seq: SeqRef) {
        let (tenant, key) = self.place(seq);
        self.queue.push(tenant, key);
    }

    fn preempt(&mut self, seq: SeqRef) {
        self.take_off(seq);
        let sequence = &mut self.slots[seq];
        sequence.life += 1;
        sequence.status = Status::Waiting;
        sequence.stats.preemptions += 1;
        (sequence.num_computed, sequence.num_landed, sequence.sent_blocks) = (0, 0, 0);
        (sequence.cached_blocks, sequence.reserved_blocks) = (0, 0);
        sequence.fetches = 0;
        self.enqueue(seq);
        self.preemptions += 1;
        self.paused += 1;
    }

    /// Takes a sequence from where it is; what it has computed stays in the cache.
    fn take_off(&mut self, seq: SeqRef) {
        self.cache_tail(seq);
        let (tenant, key) = self.place(seq);
        if self.slots[seq].status == Status::Running {
            let rank = self.slots[seq].rank;
            let at = self.running.partition_point(|&other| self.slots[other].rank < rank);
            self.running.remove(at);
        }
        let sequence = &mut self.slots[seq];
        match sequence.status {
            Status::Waiting => {
                self.paused -= usize::from(sequence.life > 0);
                self.queue.remove(tenant, key);
            }
            Status::Running => {
                self.promised -= sequence.reserved_blocks.saturating_sub(sequence.table.len());
                self.protected -= std::mem::take(&mut sequence.protected_blocks);
                let whole_blocks = sequence.whole_blocks(self.kv.block_size());
                self.kv.windows_mut().unclaim(whole_blocks);
            }
        }
        self.kv.release_windows(&std::mem::take(&mut sequence.windows));
        self.kv.release(&std::mem::take(&mut sequence.table));
    }

    /// Makes blocks reusable whose slots are written and whose tokens are known.
    fn cache_full_blocks(&mut self, seq: SeqRef) {
        let Some(sequence) = self.slots.find_mut(seq) else { return };
        let block_size = self.kv.block_size();
        let full = sequence.num_landed.min(sequence.tokens.len()) / block_size;
        while sequence.cacheable && sequence.cached_blocks < full {
            let at = sequence.cached_blocks;
            let place = place_of(sequence, at, block_size);
            let content = sequence.content(at * block_size, (at + 1) * block_size);
            let is_cached = self.kv.insert(place, &content, sequence.table[at]);
            if is_cached {
                self.kv.windows_mut().adopt(sequence.table[at], at, &sequence.windows);
            }
            sequence.cacheable = is_cached;
            sequence.cached_blocks += usize::from(is_cached);
        }
    }

    /// Makes the last, incomplete block of a sequence reusable: only when nobody writes to it any more.
    fn cache_tail(&mut self, seq: SeqRef) {
        let Some(sequence) = self.slots.find(seq) else { return };
        let (at, block_size) = (sequence.cached_blocks, self.kv.block_size());
        let known = sequence.num_landed.min(sequence.tokens.len());
        // Full blocks that are not cached are those of a sequence that computes them still.
        let is_tail = at * block_size < known && known <= (at + 1) * block_size;
        if !sequence.cacheable || !is_tail {
            return;
        }
        let content = sequence.content(at * block_size, known);
        if self.kv.insert_tail(place_of(sequence, at, block_size), &content, sequence.table[at]) {
            self.kv.windows_mut().adopt(sequence.table[at], at, &sequence.windows);
        }
    }
}

/// Where block `at` of a sequence belongs in the cache.
fn place_of(sequence: &Sequence, at: usize, block_size: usize) -> Place {
    let parent = at.checked_sub(1).map(|at| sequence.table[at]);
    Place { parent, space: sequence.space(), keep: sequence.keep(at * block_size) }
}
