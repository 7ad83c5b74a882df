//! What the runner remembers of each sequence between steps.

use super::guided::GuideRow;
use super::results::MAX_TOP_TOKENS;
use super::tables::Places;
use crate::decode::logits::{History, Occurrences};
use crate::decode::{PassOrder, SamplingParams};
use crate::device::RowSampling;
use crate::error::{Error, Result};
use crate::ids::{BlockId, SeqId, TokenId};
use crate::step::{Chunk, NewSequence, PromptTable, StepPlan};
use std::borrow::Cow;
use std::collections::HashMap;

/// Who samples a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampler {
    /// The device, as part of the step.
    Step,
    /// The device, as soon as all tokens before are known.
    LateRow,
    /// The host, which must know all tokens before: more is asked for than the device does, or there is no room on it for
    /// what the edits of the logits need.
    Host,
}

/// Tokens, memory and sampling state of one sequence.
#[derive(Debug)]
pub(super) struct RunnerSequence {
    /// A negative one is in flight: `-1 - slot` stands for the token in that entry of the device's sampled tokens.
    pub(super) tokens: Vec<TokenId>,
    pub(super) blocks: Vec<BlockId>,
    /// The tables of the pools of windows; what was never given is block 0.
    pub(super) windows: Vec<Vec<BlockId>>,
    pub(super) sampling: SamplingParams,
    /// What edits of its logits need, on the device.
    pub(super) places: Option<Places>,
    /// Tokens that do not count as generated.
    prompt_len: usize,
    /// [`NewSequence::is_short`].
    pub(super) is_short: bool,
    /// What the prompt's tokens from `first_row` on stand for.
    pub(super) prompt_table: Option<PromptTable>,
    /// The token that is the table's first row: the size of the vocabulary.
    first_row: TokenId,
    /// Has taken all generated tokens that are known.
    pub(super) guide: Option<GuideRow>,
}

impl RunnerSequence {
    pub(super) fn new(new: NewSequence) -> Self {
        Self {
            prompt_len: new.prompt.len() - new.generated,
            tokens: new.prompt,
            blocks: Vec::new(),
            windows: Vec::new(),
            guide: new.sampling.guide.as_ref().map(|guide| GuideRow::start(guide, &new.sampling.end_ids)),
            sampling: new.sampling,
            places: None,
            prompt_table: new.prompt_table,
            is_short: new.is_short,
            first_row: TokenId::MAX,
        }
    }

    /// The embedding that the request has for the token at `position`.
    pub(super) fn prompt_row(&self, position: usize) -> Option<&[f32]> {
        let table = self.prompt_table.as_ref()?;
        let row = self.tokens.get(position)?.checked_sub(self.first_row).and_then(|row| usize::try_from(row).ok())?;
        Some(table.row(row))
    }

    /// Appends a token that the device samples into entry `slot`.
    pub(super) fn push_in_flight(&mut self, slot: usize) {
        self.tokens.push(-1 - slot as TokenId);
    }

    /// Whether the logits of the next token are edited before it is chosen.
    pub(super) fn needs_edits(&self) -> bool {
        self.sampling.needs_edits(self.tokens.len() - self.prompt_len)
    }

    /// Whether something is asked for that only the host does.
    pub(super) fn is_for_host_only(&self) -> bool {
        self.sampling.top_log_probs as usize > MAX_TOP_TOKENS || self.expected().is_some()
    }

    /// The next token that a draft with logits expects, and its logits.
    pub(super) fn expected(&self) -> Option<(TokenId, &[f32])> {
        self.sampling.draft.as_ref()?.behind(&self.tokens[self.prompt_len..])
    }

    /// Who samples the next token.
    pub(super) fn sampler(&self) -> Sampler {
        if self.is_for_host_only() || (self.places.is_none() && self.needs_edits()) {
            Sampler::Host
        } else if self.guide.is_some() {
            Sampler::LateRow
        } else {
            Sampler::Step
        }
    }

    pub(super) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Appends a sampled token.
    pub(super) fn push(&mut self, token: TokenId) {
        if let Some(guide) = &mut self.guide {
            guide.advance(token);
        }
        self.tokens.push(token);
    }

    /// Those of all tokens, if penalties need them.
    pub(super) fn occurrences(&self) -> Occurrences {
        Occurrences::of(&self.tokens, self.prompt_len, &self.sampling)
    }

    /// The parameters of the token behind all that are known and these further ones, of which only the number counts: who
    /// looks at the tokens is edited.
    pub(super) fn sampling_behind(&self, draft: &[TokenId]) -> Cow<'_, SamplingParams> {
        let none = Occurrences::default();
        if draft.is_empty() || self.sampling.top_p_decay == 1.0 {
            let history = History { tokens: &self.tokens, prompt_len: self.prompt_len, occurrences: &none };
            return self.sampling.for_next(&history);
        }
        let tokens = [&self.tokens, draft].concat();
        let history = History { tokens: &tokens, prompt_len: self.prompt_len, occurrences: &none };
        Cow::Owned(self.sampling.for_next(&history).into_owned())
    }

    /// How the device samples the token behind all that are known and these further ones.
    pub(super) fn row_sampling(&self, draft: &[TokenId], slot: usize) -> RowSampling {
        let sampling = self.sampling_behind(draft);
        let row = RowSampling::new(&sampling, self.tokens.len() + draft.len(), slot);
        let scaled = self.sampling.order == PassOrder::TemperatureFirst;
        if self.places.is_some() { row.of_edited(scaled) } else { row }
    }

    pub(super) fn history<'a>(&'a self, occurrences: &'a Occurrences) -> History<'a> {
        History { tokens: &self.tokens, prompt_len: self.prompt_len, occurrences }
    }
}

/// All sequences that the runner was told of and has not been told to forget.
#[derive(Debug)]
pub(super) struct Sequences {
    by_id: HashMap<SeqId, RunnerSequence>,
    vocab_size: usize,
    /// Values in a row of a prompt table.
    table_width: usize,
}

impl Sequences {
    pub(super) fn new(vocab_size: usize, table_width: usize) -> Self {
        Self { by_id: HashMap::new(), vocab_size, table_width }
    }

    /// Takes over what a plan says: forgets, adds, and changes block tables.
    ///
    /// # Errors
    /// Internal, when the plan does not fit what the runner knows.
    pub(super) fn apply(&mut self, plan: &StepPlan) -> Result<()> {
        for seq in &plan.retired {
            self.by_id.remove(seq);
        }
        for new in &plan.new_sequences {
            let rows = new.prompt_table.as_ref().map_or(0, PromptTable::rows);
            let known = |token: TokenId| usize::try_from(token).is_ok_and(|token| token < self.vocab_size + rows);
            if let Some(token) = new.prompt.iter().find(|&&token| !known(token)) {
                return Err(Error::internal(format!("the prompt of sequence {} has a token {token}", new.seq)));
            }
            if new.generated >= new.prompt.len() {
                return Err(Error::internal(format!("sequence {} has no prompt", new.seq)));
            }
            if let Some(table) = new.prompt_table.as_ref().filter(|table| table.width() != self.table_width) {
                let (seq, width) = (new.seq, table.width());
                let expected = self.table_width;
                return Err(Error::internal(format!("sequence {seq} brings embeddings of {width}, not {expected}")));
            }
            let first_row = self.vocab_size as TokenId;
            self.by_id.insert(new.seq, RunnerSequence { first_row, ..RunnerSequence::new(new.clone()) });
        }
        for chunk in &plan.chunks {
            self.apply_chunk(chunk)?;
        }
        for change in &plan.window_blocks {
            let sequence = self.find_mut(change.seq)?;
            if sequence.windows.len() <= change.pool {
                sequence.windows.resize(change.pool + 1, Vec::new());
            }
            let table = &mut sequence.windows[change.pool];
            table.resize(change.start, BlockId(0));
            table.extend(&change.blocks);
        }
        Ok(())
    }

    fn apply_chunk(&mut self, chunk: &Chunk) -> Result<()> {
        let sequence = self.by_id.get_mut(&chunk.seq).ok_or_else(|| unknown(chunk.seq))?;
        let (end, known) = (chunk.start + chunk.len, sequence.tokens.len() + chunk.draft.len());
        let guesses_too_early = !chunk.draft.is_empty() && (!chunk.sample || sequence.tokens.last() < Some(&0));
        if chunk.rows() > chunk.len
            || guesses_too_early
            || end > known
            || (chunk.sample && end != known)
            || chunk.len == 0
        {
            return Err(Error::internal(format!(
                "a chunk of sequence {} computes tokens {}..{end} of {known}{}",
                chunk.seq,
                chunk.start,
                if chunk.sample { " and samples the next" } else { "" }
            )));
        }
        if chunk.keep_blocks > sequence.blocks.len() {
            return Err(Error::internal(format!(
                "a chunk of sequence {} keeps {} of {} blocks",
                chunk.seq,
                chunk.keep_blocks,
                sequence.blocks.len()
            )));
        }
        sequence.blocks.truncate(chunk.keep_blocks);
        sequence.blocks.extend(&chunk.append_blocks);
        Ok(())
    }

    pub(super) fn find(&self, seq: SeqId) -> Result<&RunnerSequence> {
        self.by_id.get(&seq).ok_or_else(|| unknown(seq))
    }

    pub(super) fn find_mut(&mut self, seq: SeqId) -> Result<&mut RunnerSequence> {
        self.by_id.get_mut(&seq).ok_or_else(|| unknown(seq))
    }

    /// Appends a sampled token, unless the sequence is gone.
    pub(super) fn push(&mut self, seq: SeqId, token: TokenId) {
        if let Some(sequence) = self.by_id.get_mut(&seq) {
            sequence.push(token);
        }
    }

    /// Replaces the token in flight at `position`, unless the sequence is gone.
    pub(super) fn land(&mut self, seq: SeqId, position: usize, token: TokenId) {
        if let Some(sequence) = self.by_id.get_mut(&seq) {
            sequence.tokens[position] = token;
            if let Some(guide) = &mut sequence.guide {
                guide.advance(token);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}

fn unknown(seq: SeqId) -> Error {
    Error::internal(format!("the plan names sequence {seq}, which the runner does not know"))
}
