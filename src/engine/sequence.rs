//! One sequence: its tokens, how many of them are computed, and the blocks that hold them.

use std::ops::Range;
use std::sync::Arc;

use super::gate::kv_slots;
use super::kv::WindowTable;
use super::prefix::{Content, Space};
use super::request::{Finish, FinishReason, Keep, Request, RequestStats};
use crate::decode::draft::Drafter;
use crate::decode::{SamplingParams, StopVerdict};
use crate::ids::{BlockId, SeqId, TokenId};
use crate::step::{Chunk, Inspect, Inspection, SampledRow};

/// Where a sequence is kept: found without a search, and known to be the one that was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SeqRef {
    pub id: SeqId,
    pub slot: u32,
}

/// Who hears of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub client: u32,
    /// Among the sequences of the request.
    pub index: u32,
}

/// What one step did to one sequence.
pub(super) struct SeqDelta {
    pub address: Address,
    /// Row of the step's output, if the chunk sampled.
    pub row: Option<usize>,
    /// Tokens of the row that are output.
    pub accepted: usize,
    /// What was read of the chunk's logits: an entry of the step's inspections.
    pub inspected: Option<Inspected>,
    pub stats: RequestStats,
    pub finish: Option<Finish>,
}

/// Which rows of an inspection are for whom.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    /// Entry of the step's inspections.
    pub number: usize,
    /// Rows that are context logits, from the first on.
    pub context: usize,
    /// Rows that are generation logits.
    pub generation: Range<usize>,
    /// Log-probabilities of prompt tokens, from the first on.
    pub prompt_log_probs: usize,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Not started, or preempted.
    Waiting,
    Running,
}

/// A running sequence that computes the block that another one waits for.
#[derive(Clone, Copy)]
pub(super) struct Forerunner {
    pub seq: SeqRef,
    pub life: usize,
    /// Cached blocks of the forerunner that are of no help yet.
    pub cached_blocks: usize,
}

/// Which part of a beam search a sequence is.
#[derive(Clone, Copy)]
pub(super) struct SearchStep {
    /// As [`Space::private`].
    pub private: u64,
    /// Tokens that the search has chosen behind its prompt. 0: the sequence computes the prompt; what later ones find in the
    /// cache is the search's own.
    pub generated: usize,
}

/// A sequence catches `num_computed` up with `num_tokens()`: prefill, decode, recomputation are this one rule.
pub(super) struct Sequence {
    pub status: Status,
    pub request: Arc<Request>,
    /// Prompt and generated tokens that the engine has read.
    pub tokens: Vec<TokenId>,
    /// Tokens sampled by steps that are in flight; the runner knows them.
    pub in_flight_tokens: usize,
    /// Slots written by all launched steps.
    pub num_computed: usize,
    /// Slots written by collected steps.
    pub num_landed: usize,
    pub table: Vec<BlockId>,
    /// Beside it, for layers that see a window of the context.
    pub windows: Vec<WindowTable>,
    /// Entries of the table that the runner has.
    pub sent_blocks: usize,
    /// Leading blocks of the table that are in the prefix cache.
    pub cached_blocks: usize,
    /// Blocks that are set aside for the sequence, those in the table included.
    pub reserved_blocks: usize,
    /// Blocks of the whole possible length if others give way when the sequence grows, else 0.
    pub protected_blocks: usize,
    /// Blocks of the table that came from others at the last start.
    pub found_blocks: usize,
    /// Counts preemptions: tells the chunks of an earlier life from those of the present one.
    pub life: usize,
    /// Prompt positions whose logits were read, or are read by a step in flight.
    pub num_inspected: usize,
    /// The search that it computes one token of.
    pub search: Option<SearchStep>,
    /// Guesses the next tokens. Who has one runs one step at a time: how far a step got must be known before the next.
    pub drafter: Option<Drafter>,
    /// The plan with the latest chunk, and where that chunk starts.
    pub last_chunk: (u64, usize),
    pub stats: RequestStats,
    pub id: SeqId,
    pub address: Address,
    pub tenant: u32,
    /// Counts first starts.
    pub rank: u64,
    /// The sequence of the same request whose prompt blocks are shared.
    pub leader: Option<SeqRef>,
    /// Whom the sequence waits for before it starts.
    pub forerunner: Option<Forerunner>,
    /// The transfer that brings blocks for the sequence to the device; 0: none yet.
    pub fetch: u64,
    /// Transfers that the sequence has waited for in this life.
    pub fetches: u8,
    /// False once a block's content turned out to be cached in another block.
    pub cacheable: bool,
    /// Whether the runner knows the sequence.
    pub introduced: bool,
}

impl Sequence {
    pub fn new(id: SeqId, request: Arc<Request>, address: Address, arrival_ns: u64) -> Self {
        let stats = RequestStats { arrival_ns, prompt_tokens: request.prompt.len(), ..RequestStats::default() };
        Self {
            id,
            address,
            tokens: request.prompt.clone(),
            request,
            tenant: 0,
            rank: 0,
            leader: None,
            forerunner: None,
            fetch: 0,
            fetches: 0,
            status: Status::Waiting,
            in_flight_tokens: 0,
            num_computed: 0,
            num_landed: 0,
            table: Vec::new(),
            windows: Vec::new(),
            sent_blocks: 0,
            cached_blocks: 0,
            cacheable: true,
            reserved_blocks: 0,
            protected_blocks: 0,
            found_blocks: 0,
            life: 0,
            num_inspected: 0,
            search: None,
            drafter: None,
            last_chunk: (0, 0),
            introduced: false,
            stats,
        }
    }

    pub fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + self.in_flight_tokens
    }

    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len()..]
    }

    /// Tokens that may still be generated.
    pub fn open_tokens(&self) -> usize {
        self.request.stop.max_tokens - (self.num_tokens() - self.prompt_len())
    }

    /// Tokens to compute. The last token that was asked for is returned, not computed.
    pub fn remaining(&self) -> usize {
        if self.open_tokens() == 0 {
            return 0;
        }
        self.num_tokens() - self.num_computed
    }

    /// Blocks of the longest that the sequence can become.
    pub fn whole_blocks(&self, block_size: usize) -> usize {
        kv_slots(self.prompt_len(), self.request.stop.max_tokens).div_ceil(block_size)
    }

    /// Slots written by the plans before `step`.
    pub fn computed_before(&self, step: u64) -> usize {
        if self.last_chunk.0 == step { self.last_chunk.1 } else { self.num_computed }
    }

    pub fn space(&self) -> Space {
        let private = self.search.map_or(0, |search| search.private);
        let salt = if self.request.is_short { !self.request.cache_salt } else { self.request.cache_salt };
        Space { salt, lora_id: self.request.lora_id, private }
    }

    /// What the slots `from..to` hold.
    pub fn content(&self, from: usize, to: usize) -> Content<'_> {
        Content::of(&self.tokens, &self.request.extra_ids, from, to)
    }

    /// How the block is kept that begins with token `at`.
    pub fn keep(&self, at: usize) -> Keep {
        let retention = self.request.retention.as_ref();
        retention.map_or(Keep::default(), |retention| retention.keep(at, self.prompt_len()))
    }

    /// Prompt positions whose logits are read in the end: the first ones.
    fn inspected_prompt(&self) -> usize {
        let outputs = self.request.outputs;
        match (outputs.context_logits, outputs.prompt_log_probs) {
            (true, _) => self.prompt_len(),
            (false, true) => self.prompt_len() - 1,
            (false, false) => 0,
        }
    }

    /// Whether the sequence must compute positions that others may have computed, because their logits are read.
    pub fn inspects_prompt(&self) -> bool {
        self.num_inspected < self.inspected_prompt()
    }

    /// What is read of a chunk that computes up to `end`, and so many guesses behind it.
    pub fn inspect(&self, start: usize, end: usize, sample: bool, guesses: usize) -> Inspect {
        let outputs = self.request.outputs;
        let from = start.max(self.num_inspected);
        let positions = match from < end.min(self.inspected_prompt()) {
            true => end - from + guesses,
            false if sample && outputs.generation_logits => 1 + guesses,
            false => 0,
        };
        let next_log_probs = outputs.prompt_log_probs && from + 1 < self.prompt_len();
        match positions {
            0 => Inspect::default(),
            _ => Inspect { positions, logits: outputs.context_logits || outputs.generation_logits, next_log_probs },
        }
    }

    /// Who gets which rows of an inspection; the last of them are those of the first token and so many guesses.
    pub fn inspected(&self, number: usize, inspection: &Inspection, guesses: usize, accepted: usize) -> Inspected {
        let (outputs, prompt_len) = (self.request.outputs, self.prompt_len());
        let of_prompt = |end: usize| end.saturating_sub(inspection.start);
        let rows = inspection.logits.len();
        let first = rows.saturating_sub(1 + guesses);
        let generation = if outputs.generation_logits { first..first + accepted } else { 0..0 };
        Inspected {
            number,
            context: if outputs.context_logits { of_prompt(prompt_len).min(rows) } else { 0 },
            generation,
            prompt_log_probs: of_prompt(prompt_len - 1).min(inspection.next_log_probs.len()),
        }
    }

    /// Each sequence of a request has a random stream of its own.
    pub fn sampling(&self) -> SamplingParams {
        let seed = self.request.sampling.seed.wrapping_add(u64::from(self.address.index));
        SamplingParams { seed, ..self.request.sampling.clone() }
    }

    /// A step that has brought no token.
    pub fn nothing_new(&self) -> SeqDelta {
        SeqDelta { address: self.address, row: None, accepted: 0, inspected: None, stats: self.stats, finish: None }
    }

    /// A chunk has landed that belongs to this life.
    pub fn land(&mut self, chunk: &Chunk, row: Option<&SampledRow>) {
        let confirmed = row.map_or(0, |row| row.tokens.len().saturating_sub(1));
        self.num_landed = chunk.start + chunk.len - chunk.draft.len() + confirmed;
        if !chunk.draft.is_empty() {
            self.num_computed = self.num_landed;
        }
    }

    /// Up to `most` tokens to be verified with the next one.
    pub fn guess(&mut self, most: usize) -> Vec<TokenId> {
        let most = most.min(self.open_tokens().saturating_sub(1));
        match &mut self.drafter {
            Some(drafter) if most > 0 && self.in_flight_tokens == 0 => {
                drafter.propose(&self.tokens, self.request.prompt.len(), most)
            }
            _ => Vec::new(),
        }
    }

    /// Appends the tokens of a row, up to the one that ends the sequence; so many had been guessed.
    pub fn accept(&mut self, number: usize, row: &SampledRow, guesses: usize, now_ns: u64) -> SeqDelta {
        self.in_flight_tokens -= 1;
        let (mut accepted, mut finish) = (0, None);
        for token in &row.tokens {
            let verdict = self.request.stop.judge(self.generated(), token.id);
            let reason = match verdict {
                StopVerdict::Continue => None,
                StopVerdict::EndId => Some(FinishReason::EndId),
                StopVerdict::StopWord => Some(FinishReason::StopWords),
                StopVerdict::Length => Some(FinishReason::Length),
            };
            finish = reason.map(|reason| Finish { reason, error: None });
            if self.stats.first_token_ns == 0 {
                self.stats.first_token_ns = now_ns;
            }
            if verdict != StopVerdict::EndId {
                self.tokens.push(token.id);
                self.stats.generated_tokens += 1;
                accepted += 1;
            }
            if finish.is_some() {
                self.stats.last_token_ns = now_ns;
                break;
            }
        }
        if let Some(error) = &row.error {
            finish = Some(Finish { reason: FinishReason::Error, error: Some(error.clone()) });
        }
        self.stats.draft_tokens += guesses;
        self.stats.accepted_draft_tokens += accepted.min(row.tokens.len().saturating_sub(1));
        if self.drafter.as_ref().is_some_and(|drafter| drafter.is_exhausted(self.generated())) {
            self.drafter = None;
        }
        SeqDelta { address: self.address, row: Some(number), accepted, inspected: None, stats: self.stats, finish }
    }
}

/// All sequences, each in a slot that it keeps.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Option<Sequence>>,
    free: Vec<u32>,
}

impl Slots {
    pub fn insert(&mut self, sequence: Sequence) -> SeqRef {
        let id = sequence.id;
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        if slot as usize == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot as usize] = Some(sequence);
        SeqRef { id, slot }
    }

    pub fn remove(&mut self, seq: SeqRef) -> Option<Sequence> {
        self.find(seq)?;
        self.free.push(seq.slot);
        self.slots[seq.slot as usize].take()
    }

    pub fn find(&self, seq: SeqRef) -> Option<&Sequence> {
        self.slots.get(seq.slot as usize)?.as_ref().filter(|sequence| sequence.id == seq.id)
    }

    pub fn find_mut(&mut self, seq: SeqRef) -> Option<&mut Sequence> {
        self.slots.get_mut(seq.slot as usize)?.as_mut().filter(|sequence| sequence.id == seq.id)
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (SeqRef, &Sequence)> {
        let place = |(slot, sequence): (usize, &Option<Sequence>)| SeqRef {
            id: sequence.as_ref().map_or(SeqId(0), |sequence| sequence.id),
            slot: slot as u32,
        };
        let all = self.slots.iter().enumerate();
        all.filter_map(move |entry| Some((place(entry), entry.1.as_ref()?)))
    }
}

/// For sequences that are known to live.
impl std::ops::Index<SeqRef> for Slots {
    type Output = Sequence;

    fn index(&self, seq: SeqRef) -> &Sequence {
        self.find(seq).unwrap_or_else(|| unreachable!("sequence {} has ended", seq.id))
    }
}

impl std::ops::IndexMut<SeqRef> for Slots {
    fn index_mut(&mut self, seq: SeqRef) -> &mut Sequence {
        self.find_mut(seq).unwrap_or_else(|| unreachable!("sequence {} has ended", seq.id))
    }
}
