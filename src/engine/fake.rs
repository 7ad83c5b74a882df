//! An executor without a model, for tests of everything above it. Its next token is a hash of all tokens before, read
//! from simulated KV memory: whoever schedules a slot wrongly gets an error, or tokens that differ from
//! [`FakeModel::generate`].

mod tiers;

pub use tiers::FakeDisk;

use std::collections::{HashMap, VecDeque};

use crate::decode::rank::log_prob;
use crate::decode::sample::most_likely_next;
use crate::decode::{SamplingParams, StopCriteria, StopVerdict};
use crate::engine::FinishReason;
use crate::error::{Error, Result};
use crate::ids::{BlockId, SeqId, TokenId};
use tiers::{FakeTiers, Open};

use crate::step::{
    Chunk, DiskLimits, DiskOrder, Executor, ExecutorLimits, Inspection, Landed, SampledRow, SampledToken, StepOutput,
    StepPlan, TierCopy, TierLimits, TokenLogProb, Transfer, WindowCopy, WindowPool,
};

/// The function that stands for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeModel {
    pub vocab_size: usize,
    pub seed: u64,
}

impl FakeModel {
    /// The token after `context`. End ids are never chosen before `min_tokens`.
    pub fn next(&self, context: &[TokenId], prompt_len: usize, sampling: &SamplingParams) -> TokenId {
        let chain = context.iter().fold(0, |chain, &token| extend(chain, token));
        self.pick(chain, context.len() - prompt_len, sampling)
    }

    /// What a request gets when it is alone, and why it ends.
    pub fn generate(
        &self,
        prompt: &[TokenId],
        sampling: &SamplingParams,
        stop: &StopCriteria,
    ) -> (Vec<TokenId>, FinishReason) {
        let mut context = prompt.to_vec();
        loop {
            let next = self.next(&context, prompt.len(), sampling);
            let verdict = stop.judge(&context[prompt.len()..], next);
            if verdict != StopVerdict::EndId {
                context.push(next);
            }
            let reason = match verdict {
                StopVerdict::Continue => continue,
                StopVerdict::EndId => FinishReason::EndId,
                StopVerdict::StopWord => FinishReason::StopWords,
                StopVerdict::Length => FinishReason::Length,
            };
            return (context.split_off(prompt.len()), reason);
        }
    }

    /// The logits `[V]` after `context`; what is sampled does not follow from them.
    pub fn logits(&self, context: &[TokenId]) -> Vec<f32> {
        self.logits_of(context.iter().fold(0, |chain, &token| extend(chain, token)))
    }

    fn logits_of(&self, chain: u64) -> Vec<f32> {
        let logit = |id: usize| -((extend(chain ^ self.seed, id as TokenId + 1) % 1000) as f32) / 200.0;
        (0..self.vocab_size).map(logit).collect()
    }

    fn pick(&self, chain: u64, generated: usize, sampling: &SamplingParams) -> TokenId {
        let vocab = self.vocab_size as u64;
        let first = extend(chain ^ self.seed ^ sampling.seed.rotate_left(32), 0) % vocab;
        let masked = |token: &TokenId| generated < sampling.min_tokens as usize && sampling.end_ids.contains(token);
        let order = (0..vocab).map(|offset| ((first + offset) % vocab) as TokenId);
        order.clone().find(|token| !masked(token)).unwrap_or(first as TokenId)
    }
}

/// What goes wrong, and in which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    LaunchError {
        step: u64,
    },
    LaunchPanic {
        step: u64,
    },
    CollectError {
        step: u64,
    },
    CollectPanic {
        step: u64,
    },
    /// Every row of the step carries an error instead of a token: its sequences fail, the executor goes on.
    RowErrors {
        step: u64,
    },
}

/// One slot of KV memory: which token it was computed from, where, and after what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    written: bool,
    token: TokenId,
    position: usize,
    /// Hash of all tokens up to and including this one.
    chain: u64,
}

struct FakeSequence {
    prompt_len: usize,
    tokens: Vec<TokenId>,
    table: Vec<BlockId>,
    windows: Vec<Vec<BlockId>>,
    sampling: SamplingParams,
}

/// Runs plans on [`FakeModel`], and refuses those that a real runner would compute nonsense from.
pub struct FakeExecutor {
    limits: ExecutorLimits,
    model: FakeModel,
    fault: Option<Fault>,
    slots: Vec<Slot>,
    sequences: HashMap<SeqId, FakeSequence>,
    outputs: VecDeque<StepOutput>,
    last_step: u64,
    tiers: FakeTiers,
    /// The pools of windows, and their slots.
    windows: Vec<(WindowPool, Vec<Slot>)>,
}

impl FakeExecutor {
    pub fn new(limits: ExecutorLimits, seed: u64) -> Self {
        Self {
            model: FakeModel { vocab_size: limits.vocab_size, seed },
            slots: vec![Slot::default(); limits.num_blocks * limits.block_size_tokens],
            limits,
            fault: None,
            sequences: HashMap::new(),
            outputs: VecDeque::new(),
            last_step: 0,
            tiers: FakeTiers::default(),
            windows: Vec::new(),
        }
    }

    /// The executor with pools for layers that see a window of the context.
    pub fn with_windows(mut self, pools: &[WindowPool]) -> Self {
        let slots = |pool: &WindowPool| vec![Slot::default(); pool.num_blocks * self.limits.block_size_tokens];
        self.windows = pools.iter().map(|pool| (*pool, slots(pool))).collect();
        self
    }

    /// The executor with a host tier. `failing` of 100 transfers fail; one lands when it was asked for `delay` times.
    pub fn with_host_blocks(mut self, host_blocks: usize, failing: u64, delay: usize) -> Self {
        let host = vec![Slot::default(); host_blocks * self.limits.block_size_tokens];
        self.tiers = FakeTiers { host, failing, delay, ..self.tiers };
        self
    }

    /// The executor with host blocks for each pool of windows.
    pub fn with_window_host_blocks(mut self, blocks: &[usize]) -> Self {
        let slots = |&blocks: &usize| vec![Slot::default(); blocks * self.limits.block_size_tokens];
        self.tiers.window_hosts = blocks.iter().map(slots).collect();
        self
    }

    /// The executor with a tier on disk, whose transfers fail and are late as those of the host tier.
    pub fn with_disk(mut self, disk: &FakeDisk, failing: u64, delay: usize) -> Self {
        (self.tiers.disk, self.tiers.failing, self.tiers.delay) = (Some(disk.clone()), failing, delay);
        self
    }

    /// The executor that fails once, as `fault` says.
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    pub fn model(&self) -> FakeModel {
        self.model
    }

    fn check_plan(&self, plan: &StepPlan) -> Result<()> {
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.len).sum();
        let rows: usize = plan.chunks.iter().map(Chunk::rows).sum();
        let (max_tokens, max_sequences) = (self.limits.max_step_tokens, self.limits.max_step_sequences);
        expect(plan.step == self.last_step + 1, || format!("step {} follows step {}", plan.step, self.last_step))?;
        expect(self.outputs.len() < self.limits.pipeline_depth, || "too many steps in flight".into())?;
        expect(tokens <= max_tokens, || format!("{tokens} tokens, at most {max_tokens}"))?;
        expect(rows <= self.limits.max_step_rows, || format!("{rows} rows of logits"))?;
        expect(!plan.chunks.is_empty(), || "a plan without chunks".into())?;
        expect(plan.chunks.len() <= max_sequences, || format!("{} chunks", plan.chunks.len()))?;
        expect(plan.chunks.is_sorted_by_key(|chunk| chunk.len > 1), || "prefill before decode".into())?;
        let mut sequences: Vec<_> = plan.chunks.iter().map(|chunk| chunk.seq).collect();
        sequences.sort_unstable();
        expect(sequences.is_sorted_by(|a, b| a < b), || "two chunks of one sequence".into())
    }

    fn learn(&mut self, plan: &StepPlan) -> Result<()> {
        for seq in &plan.retired {
            expect(self.sequences.remove(seq).is_some(), || format!("sequence {seq} is retired, but unknown"))?;
        }
        for new in &plan.new_sequences {
            let sequence = FakeSequence {
                prompt_len: new.prompt.len() - new.generated,
                tokens: new.prompt.clone(),
                table: Vec::new(),
                windows: vec![Vec::new(); self.windows.len()],
                sampling: new.sampling.clone(),
            };
            let known = self.sequences.insert(new.seq, sequence).is_some();
            expect(!known, || format!("sequence {} is new twice", new.seq))?;
        }
        for change in &plan.window_blocks {
            let is_planned = plan.chunks.iter().any(|chunk| chunk.seq == change.seq);
            let known = self.sequences.get_mut(&change.seq).and_then(|sequence| sequence.windows.get_mut(change.pool));
            let Some(table) = known.filter(|_| is_planned) else {
                return Err(Error::internal(format!("blocks of a window that nobody has: {change:?}")));
            };
            table.resize(change.start, BlockId(0));
            table.extend(&change.blocks);
        }
        let size = self.limits.block_size_tokens;
        for copy in &plan.block_copies {
            let (from, to) = (copy.from.0 as usize * size, copy.to.0 as usize * size);
            expect(copy.num_tokens <= size && from != to, || format!("impossible copy {copy:?}"))?;
            self.slots.copy_within(from..from + copy.num_tokens, to);
            self.slots[to + copy.num_tokens..to + size].fill(Slot::default());
        }
        for WindowCopy { pool, copy } in &plan.window_copies {
            let (from, to) = (copy.from.0 as usize * size, copy.to.0 as usize * size);
            let slots = &mut self.windows[*pool].1;
            expect(copy.num_tokens <= size && from != to, || format!("impossible copy {copy:?}"))?;
            slots.copy_within(from..from + copy.num_tokens, to);
            slots[to + copy.num_tokens..to + size].fill(Slot::default());
        }
        Ok(())
    }

    fn run_chunk(&mut self, chunk: &Chunk, output: &mut StepOutput) -> Result<()> {
        let size = self.limits.block_size_tokens;
        let Some(sequence) = self.sequences.get_mut(&chunk.seq) else {
            return Err(Error::internal(format!("sequence {} is unknown", chunk.seq)));
        };
        let end = chunk.start + chunk.len;
        expect(chunk.keep_blocks <= sequence.table.len(), || format!("keeps more blocks than it has: {chunk:?}"))?;
        sequence.table.truncate(chunk.keep_blocks);
        sequence.table.extend(&chunk.append_blocks);
        let known = sequence.tokens.len();
        sequence.tokens.extend(&chunk.draft);
        expect(chunk.len > chunk.draft.len() && end <= sequence.tokens.len(), || {
            format!("tokens that do not exist: {chunk:?}")
        })?;
        expect(sequence.table.len() >= end.div_ceil(size), || format!("a table that is too short: {chunk:?}"))?;
        let at = |position: usize| sequence.table[position / size].0 as usize * size + position % size;
        expect(chunk.inspect.positions <= chunk.len, || format!("inspects more than it computes: {chunk:?}"))?;
        let mut inspection = Inspection {
            seq: chunk.seq,
            start: end - chunk.inspect.positions,
            logits: Vec::new(),
            next_log_probs: Vec::new(),
        };
        let mut chain = 0;
        let mut chains = Vec::with_capacity(1 + chunk.draft.len());
        for position in 0..end {
            let token = sequence.tokens[position];
            chain = extend(chain, token);
            if position + 1 >= known {
                chains.push(chain);
            }
            let slot = Slot { written: true, token, position, chain };
            if position >= chunk.start {
                self.slots[at(position)] = slot;
            }
            let held = self.slots[at(position)];
            expect(held == slot, || format!("slot {} holds {held:?}, expected {slot:?}: {chunk:?}", at(position)))?;
            for ((pool, slots), table) in self.windows.iter_mut().zip(&sequence.windows) {
                let Some(block) = table.get(position / size) else {
                    return Err(Error::internal(format!("bad plan: a window table that is too short: {chunk:?}")));
                };
                let at = block.0 as usize * size + position % size;
                if position >= chunk.start {
                    slots[at] = slot;
                }
                let is_seen = position < pool.sink_tokens || position >= pool.first_seen(chunk.start);
                let held = slots[at];
                expect(!is_seen || held == slot, || {
                    format!("{pool:?}: slot {at} holds {held:?}, expected {slot:?}: {chunk:?}")
                })?;
            }
            if position >= inspection.start {
                let logits = self.model.logits_of(chain);
                if let Some(&next) = sequence.tokens.get(position + 1).filter(|_| chunk.inspect.next_log_probs) {
                    inspection.next_log_probs.push(log_prob(&logits, next));
                }
                inspection.logits.extend(chunk.inspect.logits.then_some(logits));
            }
        }
        if chunk.inspect.positions > 0 {
            output.inspections.push(inspection);
        }
        expect(chunk.sample == (end == sequence.tokens.len()), || format!("samples at the wrong place: {chunk:?}"))?;
        sequence.tokens.truncate(known);
        if !chunk.sample {
            return expect(chunk.draft.is_empty(), || format!("guesses without sampling: {chunk:?}"));
        }
        let mut tokens = Vec::with_capacity(chains.len());
        let (mut top, mut error) = (Vec::new(), None);
        for (guesses, chain) in chains.into_iter().enumerate() {
            let FakeSequence { tokens: context, sampling, prompt_len, .. } = &*sequence;
            if sampling.top_log_probs > 0 {
                let count = sampling.top_log_probs as usize;
                match most_likely_next(&mut self.model.logits_of(chain), sampling, context, *prompt_len, count) {
                    Ok(found) => top.push(found),
                    Err(fault) => error = Some(fault.into_error(self.limits.vocab_size)),
                }
            }
            let id = self.model.pick(chain, known + guesses - sequence.prompt_len, &sequence.sampling);
            sequence.tokens.push(id);
            let value = -((chain % 1000) as f32) / 100.0;
            let log_prob = sequence.sampling.log_probs.then_some(TokenLogProb { full: value, candidates: value });
            tokens.push(SampledToken { id, log_prob });
            if chunk.draft.get(guesses) != Some(&id) {
                break;
            }
        }
        if error.is_some() {
            (tokens, top) = (Vec::new(), Vec::new());
        }
        output.rows.push(SampledRow { seq: chunk.seq, tokens, top, error });
        Ok(())
    }
}

impl Executor for FakeExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        match self.fault {
            Some(Fault::LaunchError { step }) if step == plan.step => return Err(injected(step)),
            Some(Fault::LaunchPanic { step }) if step == plan.step => panic!("{}", injected(step)),
            _ => {}
        }
        self.check_plan(plan)?;
        self.last_step = plan.step;
        self.learn(plan)?;
        let mut output = StepOutput { step: plan.step, ..StepOutput::default() };
        for chunk in &plan.chunks {
            self.run_chunk(chunk, &mut output)?;
        }
        self.outputs.push_back(output);
        Ok(())
    }

    fn tiers(&self) -> TierLimits {
        let blocks = |slots: &Vec<Slot>| slots.len() / self.limits.block_size_tokens;
        let window_host_blocks = self.tiers.window_hosts.iter().map(blocks).collect();
        TierLimits { host_blocks: blocks(&self.tiers.host), window_host_blocks }
    }

    fn windows(&self) -> Vec<WindowPool> {
        self.windows.iter().map(|(pool, _)| *pool).collect()
    }

    fn transfer(&mut self, transfers: Vec<Transfer>) {
        for transfer in transfers {
            let fails = self.fails(transfer.id);
            let offloads = transfer.copies.iter().filter(|one| matches!(one.copy, TierCopy::Offload { .. }));
            for &copy in offloads {
                self.copy_tier(copy, fails);
            }
            self.tiers.open.push_back((Open::Copies(transfer), self.tiers.asked));
        }
    }

    fn open_disk(&mut self) -> DiskLimits {
        let stored = |disk: &FakeDisk| disk.files.lock().values().map(|(prefix, _)| prefix.clone()).collect();
        let limits = |disk: &FakeDisk| DiskLimits {
            max_blocks: disk.max_blocks,
            max_stores: disk.max_stores,
            stored: stored(disk),
        };
        self.tiers.disk.as_ref().map(limits).unwrap_or_default()
    }

    fn disk(&mut self, orders: Vec<DiskOrder>) {
        let (size, asked) = (self.limits.block_size_tokens, self.tiers.asked);
        let Some(disk) = self.tiers.disk.clone() else { return };
        let mut files = disk.files.lock();
        for order in orders {
            match order {
                DiskOrder::Store { id, from, prefix } => {
                    let piece = |slots: &[Slot], block: BlockId| {
                        slots[block.0 as usize * size..(block.0 as usize + 1) * size].to_vec()
                    };
                    if !self.fails(id) {
                        let of_windows = self.windows.iter().zip(&from.windows);
                        let of_windows = of_windows
                            .map(|((_, slots), block)| block.map_or_else(Vec::new, |block| piece(slots, block)));
                        let pieces = std::iter::once(piece(&self.slots, from.full)).chain(of_windows).collect();
                        files.insert(prefix.key, (prefix, pieces));
                    }
                    self.tiers.open.push_back((Open::Store { id }, asked));
                }
                DiskOrder::Load { id, blocks } => self.tiers.open.push_back((Open::Load { id, blocks }, asked)),
                DiskOrder::Remove { key } => drop(files.remove(&key)),
            }
        }
    }

    fn landed(&mut self, wait: bool) -> Vec<Landed> {
        self.tiers.asked += 1;
        let mut landed = Vec::new();
        while let Some((_, since)) = self.tiers.open.front() {
            let must = wait && landed.is_empty();
            if !must && self.tiers.asked - since <= self.tiers.delay {
                break;
            }
            let Some((open, _)) = self.tiers.open.pop_front() else { break };
            let mut ok = !self.fails(open.id());
            match &open {
                Open::Copies(transfer) => {
                    let onboards = transfer.copies.iter().filter(|one| matches!(one.copy, TierCopy::Onboard { .. }));
                    for &copy in onboards {
                        self.copy_tier(copy, !ok);
                    }
                }
                Open::Store { .. } => {}
                Open::Load { blocks, .. } => ok = ok && self.load(blocks),
            }
            landed.push(Landed { id: open.id(), ok });
        }
        landed
    }

    fn collect(&mut self) -> Result<StepOutput> {
        let mut output = self.outputs.pop_front().ok_or_else(|| Error::internal("no step is in flight"))?;
        match self.fault {
            Some(Fault::CollectError { step }) if step == output.step => Err(injected(step)),
            Some(Fault::CollectPanic { step }) if step == output.step => panic!("{}", injected(step)),
            Some(Fault::RowErrors { step }) if step == output.step => {
                for row in &mut output.rows {
                    (row.tokens, row.error) = (Vec::new(), Some(injected(step)));
                }
                Ok(output)
            }
            _ => Ok(output),
        }
    }
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::internal(format!("bad plan: {}", what()))) }
}

fn injected(step: u64) -> Error {
    Error::internal(format!("injected fault in step {step}"))
}

fn extend(chain: u64, token: TokenId) -> u64 {
    let wide = u128::from(chain ^ 0x9E37_79B9_7F4A_7C15) * u128::from((token as u64) ^ 0xD6E8_FEB8_6659_FD93);
    ((wide >> 64) as u64 ^ wide as u64).rotate_left(17)
}
