//! What edits of logits need to know of sequences, kept on the device: histories, bad words, end ids, biases.
//!
//! A history is uploaded when its sequence first needs it; from then on the device appends each step's token itself, so
//! that tokens in flight are part of it. All of it lives in one tensor, whose size is fixed when the model is loaded.
//! A sequence that finds no room is sampled by the host.

use super::sequences::{RunnerSequence, Sequences};
use crate::decode::{PassOrder, SamplingParams};
use crate::device::{DType, DecayingTopP, RowEdits, SharedDevice, TableList, Tensor, Transfers};
use crate::error::Result;
use crate::ids::TokenId;
use crate::step::{ExecutorLimits, StepPlan};
use std::collections::BTreeMap;

/// Bytes of one copy.
const PIECE_BYTES: usize = 256 << 10;
/// Most tokens of all histories together.
const HISTORY_TOKENS: usize = 4 << 20;
/// Words for the lists of each sequence.
const LIST_WORDS: usize = 512;
/// Biases as long as the vocabulary.
const BIASES: usize = 256;
/// Room beyond a sequence's tokens.
const MIN_HEADROOM_TOKENS: usize = 256;

/// Size of the tables of a model.
fn table_words(limits: &ExecutorLimits) -> usize {
    let sequences = limits.max_step_sequences;
    let tokens = sequences.saturating_mul(limits.max_seq_len_tokens).min(HISTORY_TOKENS);
    let headroom = tokens / 2 + sequences * MIN_HEADROOM_TOKENS;
    tokens + headroom + sequences * LIST_WORDS + limits.vocab_size * sequences.min(BIASES)
}

/// Bytes that the tables of a model take.
pub(super) fn table_bytes(limits: &ExecutorLimits) -> usize {
    table_words(limits) * DType::I32.size()
}

/// Where a sequence's lists are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// Its length is the room there is.
    history: Option<TableList>,
    words: Option<TableList>,
    end_ids: Option<TableList>,
    bias: Option<TableList>,
    /// All lists but the history.
    lists: Option<TableList>,
}

impl Places {
    /// The edits of a row after `len` tokens of a sequence, the last of which is `token` of the step.
    pub(super) fn row(&self, sequence: &RunnerSequence, len: usize, token: usize) -> RowEdits {
        let (sampling, prompt_len) = (&sequence.sampling, sequence.prompt_len());
        let penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty);
        let decaying = |start: f32, reset_id: TokenId| DecayingTopP {
            start,
            decay: sampling.top_p_decay,
            min: sampling.top_p_min,
            reset_id,
        };
        RowEdits {
            bias: self.bias,
            // After the penalties it is the sampler that scales.
            inverse_temperature: match sampling.order {
                PassOrder::TemperatureFirst => sampling.inverse_temperature(),
                PassOrder::PenaltiesFirst => 1.0,
            },
            mask: None,
            penalties: sampling.has_penalties().then_some(penalties),
            ignored: match sampling.order {
                PassOrder::TemperatureFirst => sampling.prompt_ignore_length.min(prompt_len as u32),
                PassOrder::PenaltiesFirst => prompt_len as u32,
            },
            end_ids: self.end_ids.filter(|_| len - prompt_len < sampling.min_tokens as usize),
            no_repeat_ngram_size: sampling.no_repeat_ngram_size,
            words: self.words,
            top_p: match (sampling.top_p_follows_tokens(), sampling.top_p, sampling.top_p_reset_id) {
                (true, Some(start), Some(reset_id)) => Some(decaying(start, reset_id)),
                _ => None,
            },
            prompt_len: prompt_len as u32,
            history: self.history.map(|history| TableList { start: history.start, len: len as u32 }),
            token: token as u32,
        }
    }
}

/// The tables of all sequences.
pub(super) struct Tables {
    device: SharedDevice,
    /// `[1, N]` I32.
    words: Tensor,
    free: FreeRanges,
    transfers: Box<dyn Transfers>,
}

impl Tables {
    pub(super) fn new(device: &SharedDevice, limits: &ExecutorLimits) -> Result<Self> {
        let len = table_words(limits);
        Ok(Self {
            words: Tensor::zeros(device, 1, len, DType::I32, "histories and lists of sequences")?,
            free: FreeRanges::new(len),
            transfers: device.transfers(PIECE_BYTES, 0, limits.pipeline_depth.max(2))?,
            device: device.clone(),
        })
    }

    pub(super) fn tensor(&self) -> &Tensor {
        &self.words
    }

    pub(super) fn pinned_bytes(&self) -> usize {
        self.transfers.pinned_bytes()
    }

    /// Takes back what sequences had that a plan retires or begins anew.
    pub(super) fn release_ended(&mut self, plan: &StepPlan, sequences: &mut Sequences) {
        for &seq in plan.retired.iter().chain(plan.new_sequences.iter().map(|new| &new.seq)) {
            if let Ok(sequence) = sequences.find_mut(seq) {
                self.release(sequence);
            }
        }
    }

    /// Gives the sequences that a plan samples what their edits need. Tokens in flight are taken from `sampled`.
    pub(super) fn prepare(&mut self, plan: &StepPlan, sequences: &mut Sequences, sampled: &Tensor) -> Result<()> {
        for chunk in plan.chunks.iter().filter(|chunk| chunk.sample) {
            let sequence = sequences.find_mut(chunk.seq)?;
            // What edits a guessed row depends on the guesses before it: those are the host's.
            // Nor does the device know tokens behind the vocabulary.
            let by_host = sequence.is_for_host_only() || !chunk.draft.is_empty() || sequence.prompt_table.is_some();
            if !sequence.needs_edits() || by_host {
                self.release(sequence);
            } else if !self.is_ready(sequence) && !self.place(sequence, sampled)? {
                tracing::debug!("sequence {} is sampled by the host: no room for its tables", chunk.seq);
            }
        }
        Ok(())
    }

    fn is_ready(&self, sequence: &RunnerSequence) -> bool {
        let room = |places: &Places| places.history.map_or(usize::MAX, |history| history.len as usize);
        sequence.places.as_ref().is_some_and(|places| room(places) >= sequence.tokens.len())
    }

    fn release(&mut self, sequence: &mut RunnerSequence) {
        let Some(places) = sequence.places.take() else { return };
        self.free.give_back(places.history);
        self.free.give_back(places.lists);
    }

    /// Whether there was room.
    fn place(&mut self, sequence: &mut RunnerSequence, sampled: &Tensor) -> Result<bool> {
        self.release(sequence);
        let tokens = sequence.tokens.len();
        let room = sequence.sampling.needs_history().then(|| tokens + (tokens / 2).max(MIN_HEADROOM_TOKENS));
        let (words, mut places) = lists_of(&sequence.sampling);
        let history = room.map(|room| self.free.take(room));
        let lists = (!words.is_empty()).then(|| self.free.take(words.len()));
        let (history, lists) = match (history, lists) {
            (Some(None), lists) => {
                self.free.give_back(lists.flatten());
                return Ok(false);
            }
            (history, Some(None)) => {
                self.free.give_back(history.flatten());
                return Ok(false);
            }
            (history, lists) => (history.flatten(), lists.flatten()),
        };
        if let Some(lists) = lists {
            self.upload(lists.start as usize, &words)?;
            for place in [&mut places.words, &mut places.end_ids, &mut places.bias].into_iter().flatten() {
                place.start += lists.start;
            }
        }
        if let Some(history) = history {
            self.upload(history.start as usize, &sequence.tokens)?;
            if sequence.tokens.iter().any(|&token| token < 0) {
                self.device.resolve_tokens(&self.words.columns(history.start as usize, tokens), sampled)?;
            }
        }
        sequence.places = Some(Places { history, lists, ..places });
        Ok(true)
    }

    fn upload(&mut self, start: usize, words: &[i32]) -> Result<()> {
        let mut at = start;
        for piece in words.chunks(PIECE_BYTES / DType::I32.size()) {
            let bytes: Vec<u8> = piece.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.transfers.upload(&self.words.columns(at, piece.len()), &bytes)?;
            at += piece.len();
        }
        Ok(())
    }
}

/// The lists of a request one after the other, and where in them they start.
fn lists_of(sampling: &SamplingParams) -> (Vec<i32>, Places) {
    let mut all = Vec::new();
    let mut places = Places::default();
    let list = |start: usize, len: usize| (len > 0).then_some(TableList { start: start as u32, len: len as u32 });
    let mut end = 0;
    let ends = sampling.bad_words.iter().map(|word| {
        end += word.len() as i32;
        end
    });
    all.extend(ends);
    places.words = list(0, all.len());
    all.extend(sampling.bad_words.iter().flatten());
    if sampling.min_tokens > 0 {
        places.end_ids = list(all.len(), sampling.end_ids.len());
        all.extend(&sampling.end_ids);
    }
    if let Some(bias) = &sampling.embedding_bias {
        places.bias = list(all.len(), bias.len());
        all.extend(bias.iter().map(|bias| bias.to_bits() as i32));
    }
    (all, places)
}

/// Ranges of a tensor that nobody uses, by their starts; no two touch.
#[derive(Debug)]
struct FreeRanges {
    by_start: BTreeMap<usize, usize>,
}

impl FreeRanges {
    fn new(len: usize) -> Self {
        Self { by_start: BTreeMap::from([(0, len)]) }
    }

    /// The first range of `len` words.
    fn take(&mut self, len: usize) -> Option<TableList> {
        let (start, found) =
            self.by_start.iter().find(|(_, found)| **found >= len).map(|(start, len)| (*start, *len))?;
        self.by_start.remove(&start);
        if found > len {
            self.by_start.insert(start + len, found - len);
        }
        Some(TableList { start: start as u32, len: len as u32 })
    }

    fn give_back(&mut self, range: Option<TableList>) {
        let Some(TableList { start, len }) = range else { return };
        let (mut start, mut len) = (start as usize, len as usize);
        if let Some(after) = self.by_start.remove(&(start + len)) {
            len += after;
        }
        if let Some((&before, &before_len)) = self.by_start.range(..start).next_back()
            && before + before_len == start
        {
            (start, len) = (before, before_len + len);
        }
        self.by_start.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_again() {
        let mut free = FreeRanges::new(100);
        let taken: Vec<_> = (0..4).map(|_| free.take(25)).collect();
        assert!(taken.iter().all(Option::is_some) && free.take(1).is_none());
        for index in [1, 3, 0] {
            free.give_back(taken[index]);
        }
        assert_eq!(free.by_start, BTreeMap::from([(0, 50), (75, 25)]));
        assert_eq!(free.take(26), Some(TableList { start: 0, len: 26 }));
        free.give_back(Some(TableList { start: 0, len: 26 }));
        free.give_back(taken[2]);
        assert_eq!(free.by_start, BTreeMap::from([(0, 100)]));
    }

    #[test]
    fn a_requests_lists_lie_behind_one_another() {
        let sampling = SamplingParams {
            bad_words: vec![vec![7], vec![1, 2, 3]],
            end_ids: vec![50, 51],
            min_tokens: 3,
            embedding_bias: Some([0.5, -1.0].into()),
            ..Default::default()
        };
        let (words, places) = lists_of(&sampling);
        assert_eq!(words[..8], [1, 4, 7, 1, 2, 3, 50, 51]);
        assert_eq!(words[8..], [0.5f32.to_bits() as i32, (-1.0f32).to_bits() as i32]);
        let list = |start, len| Some(TableList { start, len });
        assert_eq!((places.words, places.end_ids, places.bias), (list(0, 2), list(6, 2), list(8, 2)));
        assert_eq!(lists_of(&SamplingParams { end_ids: vec![2], ..Default::default() }), (vec![], Places::default()));
    }
}
