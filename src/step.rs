//! What the engine and the runner share: the plan of one step, what came out of it, and who executes it.
//!
//! Plain, owned records. The runner keeps the tokens and the block table of every sequence it was told of; a plan
//! carries only what changed, so that it stays small at any context length and can be sent to another process.

use crate::decode::SamplingParams;
use crate::error::{Error, Result};
use crate::ids::{BlockId, HostBlockId, SeqId, TokenId};
use std::sync::Arc;

/// What runs in one step. Chunks are packed in this order: decode chunks first, then prefill.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Counts from 1; the output of a step carries the same number.
    pub step: u64,
    /// Sequences that the runner has not seen before.
    pub new_sequences: Vec<NewSequence>,
    /// What is computed.
    pub chunks: Vec<Chunk>,
    /// Whole blocks that are copied before anything is computed (copy-on-write, partial reuse).
    pub block_copies: Vec<BlockCopy>,
    /// Sequences that the runner may forget; they are not part of this plan.
    pub retired: Vec<SeqId>,
    /// Changes of the tables of window pools, for sequences of this plan.
    pub window_blocks: Vec<WindowBlocks>,
    /// As `block_copies`, within the pools of windows.
    pub window_copies: Vec<WindowCopy>,
}

/// A copy of slots within one pool of windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowCopy {
    /// Index of the pool in [`Executor::windows`].
    pub pool: usize,
    pub copy: BlockCopy,
}

/// Entries of a sequence's table of one window pool: the table is cut or extended to `start` entries, then `blocks` are
/// appended. What lies before `start` and was never given is out of sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowBlocks {
    pub seq: SeqId,
    /// Index of the pool in [`Executor::windows`].
    pub pool: usize,
    pub start: usize,
    pub blocks: Vec<BlockId>,
}

/// A pool of KV blocks for layers that see only a part of the context: blocks that they do not see any more are given
/// back while their sequence runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPool {
    pub num_blocks: usize,
    /// A token sees itself and the `window_tokens - 1` before it.
    pub window_tokens: usize,
    /// The first tokens of a sequence, which are always seen.
    pub sink_tokens: usize,
}

impl WindowPool {
    /// The first position, sinks aside, that the token at `position` sees.
    pub fn first_seen(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window_tokens)
    }

    /// Blocks of which every sequence holds some part of whatever length it has, but for tokens of steps in flight.
    pub fn sequence_blocks(&self, block_size: usize) -> usize {
        // Both ends of the window, and the last step's, can lie within a block.
        self.window_tokens.div_ceil(block_size) + self.sink_tokens.div_ceil(block_size) + 3
    }
}

/// A sequence at its first appearance.
#[derive(Clone, Debug)]
pub struct NewSequence {
    pub seq: SeqId,
    /// Prompt tokens, at least one.
    pub prompt: Vec<TokenId>,
    /// How many of the last ones count as generated: an earlier sequence has chosen them.
    pub generated: usize,
    /// What the prompt's tokens behind the vocabulary stand for.
    pub prompt_table: Option<PromptTable>,
    pub sampling: SamplingParams,
    /// Whether it cannot become longer than [`Executor::rotation_border`].
    pub is_short: bool,
}

/// Embeddings that a request brings along (p-tuning, images): token `V + i` of its prompt has row i.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTable {
    width: usize,
    values: Arc<[f32]>,
}

impl PromptTable {
    /// `values [rows, width]`, row-major.
    ///
    /// # Errors
    /// `InvalidArg` unless the values are whole rows.
    pub fn new(width: usize, values: Vec<f32>) -> Result<Self> {
        match values.len().is_multiple_of(width.max(1)) {
            true => Ok(Self { width, values: values.into() }),
            false => Err(Error::invalid(format!("{} values are no rows of {width}", values.len()))),
        }
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    pub fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

/// Positions `start..start + len` of one sequence. Their tokens are known to the runner, but for a draft: prompt tokens, or
/// tokens that it sampled itself in an earlier step (perhaps one whose output the engine has not read yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub seq: SeqId,
    pub start: usize,
    pub len: usize,
    /// The block table is cut to this many entries, then `append_blocks` is appended. 0 after a preemption.
    pub keep_blocks: usize,
    pub append_blocks: Vec<BlockId>,
    /// Whether a token is sampled from the logits of the chunk's last position. The runner appends it to the sequence.
    pub sample: bool,
    /// Guessed tokens: those of the chunk's last positions, behind all that the runner knows, none of which is in flight.
    /// With `sample`, tokens are sampled behind what is known and behind each guess, up to the first that differs from
    /// its guess: what was sampled is appended, so speculation changes no token. Empty without `sample`.
    pub draft: Vec<TokenId>,
    /// What else is read of the logits of the chunk's last positions.
    pub inspect: Inspect,
}

impl Chunk {
    /// Rows of logits that the chunk computes: those of its last positions.
    pub fn rows(&self) -> usize {
        self.inspect.positions.max(if self.sample { 1 + self.draft.len() } else { 0 })
    }
}

/// What is read of a chunk's logits besides a sampled token; the default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inspect {
    /// The last positions of the chunk that are read, 0 to its length.
    pub positions: usize,
    /// Whether the rows themselves come back.
    pub logits: bool,
    /// Whether the log-probability comes back of the token that follows each position, as far as there is one.
    pub next_log_probs: bool,
}

/// Copies the first `num_tokens` slots of a block, in every layer of its pool, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: BlockId,
    pub to: BlockId,
    pub num_tokens: usize,
}

/// Copies of whole blocks between tiers that succeed or fail together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Names the transfer when it lands; never reused.
    pub id: u64,
    /// In this order.
    pub copies: Vec<PoolCopy>,
}

/// A copy of the keys and values of one pool's layers. Each pool has host blocks of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolCopy {
    /// 0: the blocks of full length; else the pool of windows of this number, counted from 1.
    pub pool: usize,
    pub copy: TierCopy,
}

/// A copy of one block between two tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierCopy {
    /// To host memory. Steps that are launched later may overwrite the source.
    Offload { from: BlockId, to: HostBlockId },
    /// To the device. Both blocks are left alone until the transfer has landed.
    Onboard { from: HostBlockId, to: BlockId },
}

/// The end of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landed {
    pub id: u64,
    /// Whether every copy was made; else nothing is known of the destinations.
    pub ok: bool,
}

/// The tiers behind the KV cache of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TierLimits {
    /// Blocks of full length in the host tier; 0: there is no host tier.
    pub host_blocks: usize,
    /// Host blocks of each pool of windows; empty: none.
    pub window_host_blocks: Vec<usize>,
}

/// A block of keys and values on disk, by what it holds: enough to find it again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredPrefix {
    /// Its name: a hash of all tokens up to its last and of the salt.
    pub key: u64,
    /// The key of the block before; `None`: it begins a prompt.
    pub parent: Option<u64>,
    /// What must be equal besides tokens.
    pub salt: u64,
    pub tokens: Vec<TokenId>,
    /// A bit for each pool of windows whose layers' keys and values are there, too.
    #[serde(default)]
    pub windows: u64,
}

/// The blocks of the device that hold the same tokens, by pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    pub full: BlockId,
    /// One for each pool of windows; empty: none.
    pub windows: Vec<Option<BlockId>>,
}

/// The tier on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// 0: there is none.
    pub max_blocks: usize,
    /// Stores that may be under way together.
    pub max_stores: usize,
    /// What an earlier process has left.
    pub stored: Vec<StoredPrefix>,
}

/// What shall happen on disk. Stores and loads land as transfers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOrder {
    /// Steps that are launched later may overwrite the source.
    Store {
        id: u64,
        from: Pieces,
        prefix: StoredPrefix,
    },
    /// Entries by their keys, to blocks that are left alone until the load has landed.
    Load {
        id: u64,
        blocks: Vec<(u64, Pieces)>,
    },
    Remove {
        key: u64,
    },
}

/// What one step produced.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    pub step: u64,
    /// One for each chunk with `sample`, in plan order.
    pub rows: Vec<SampledRow>,
    /// One for each chunk that is inspected, in plan order.
    pub inspections: Vec<Inspection>,
    /// How long before [`Executor::collect`] told of it the step was known to have ended: the launch of the next one may
    /// wait for that, and then goes on.
    pub ended_ns_ago: u64,
}

/// What was read of a chunk's logits, before any pass changed them. V vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    pub seq: SeqId,
    /// The position of the first row.
    pub start: usize,
    /// `[V]` for each position, when they were asked for.
    pub logits: Vec<Vec<f32>>,
    /// Natural log-probabilities of the tokens at `start + 1` and on, when they were asked for: one for each position, but
    /// for those that tokens are sampled at, of which [`SampledToken::log_prob`] speaks.
    pub next_log_probs: Vec<f32>,
}

/// The tokens of one sequence in one step: one, or up to one more than the chunk's draft, all but the last of which are
/// those of the draft.
#[derive(Clone, Debug)]
pub struct SampledRow {
    pub seq: SeqId,
    pub tokens: Vec<SampledToken>,
    /// Where the sequence asked for them, for each token those that were most likely in its place, with their natural
    /// log-probabilities within the whole vocabulary after all passes: best first.
    pub top: Vec<Vec<(TokenId, f32)>>,
    /// Why no token could be sampled (`tokens` is empty then): ends this sequence only.
    /// With `pipeline_depth` above 1 the runner appends some token all the same: the next step may already compute it.
    pub error: Option<Error>,
}

/// One sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    pub id: TokenId,
    /// Natural log-probabilities; present when the sequence asked for them.
    pub log_prob: Option<TokenLogProb>,
}

/// Log-probabilities of a chosen token, after bias, temperature and penalties.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogProb {
    /// Within the whole vocabulary. `cum_log_probs` accumulates this one.
    pub full: f32,
    /// Within the candidate set that top-k and top-p left.
    pub candidates: f32,
}

/// What an executor can hold. Fixed at load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorLimits {
    /// KV blocks, all of them usable by the engine.
    pub num_blocks: usize,
    /// Token slots in a block, a power of two.
    pub block_size_tokens: usize,
    /// Most tokens in one step (sum of chunk lengths).
    pub max_step_tokens: usize,
    /// Most chunks in one step.
    pub max_step_sequences: usize,
    /// Most rows of logits in one step (sum of [`Chunk::rows`]); at least `max_step_sequences`.
    pub max_step_rows: usize,
    /// Longest sequence, prompt and output together.
    pub max_seq_len_tokens: usize,
    /// Token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Steps that may be launched before the oldest is collected: 1 without overlap, 2 with.
    pub pipeline_depth: usize,
}

/// Runs plans. Steps complete in launch order.
pub trait Executor: Send {
    fn limits(&self) -> ExecutorLimits;

    /// Starts a step; may return before it is done. At most `pipeline_depth` steps are in flight.
    ///
    /// # Errors
    /// An error here or in `collect` is a device failure: the engine answers everybody and turns itself off.
    fn launch(&mut self, plan: &StepPlan) -> Result<()>;

    /// Waits for the oldest launched step.
    fn collect(&mut self) -> Result<StepOutput>;

    /// Values in a row of a [`PromptTable`]; `None`: prompts have no tokens behind the vocabulary.
    fn prompt_table_width(&self) -> Option<usize> {
        None
    }

    /// Sequences that cannot become longer than this are rotated otherwise than longer ones, so that keys of the one are
    /// no use to the other. `None`: all are rotated alike.
    fn rotation_border(&self) -> Option<usize> {
        None
    }

    /// What there is behind the KV cache.
    fn tiers(&self) -> TierLimits {
        TierLimits::default()
    }

    /// Pools of layers that see a window of the context. Layers that see all of it have the blocks of
    /// [`ExecutorLimits::num_blocks`], as have all layers where there are no such pools.
    fn windows(&self) -> Vec<WindowPool> {
        Vec::new()
    }

    /// Starts copies between tiers, behind the steps and transfers before; returns at once. Failures are told by
    /// [`Executor::landed`].
    fn transfer(&mut self, _transfers: Vec<Transfer>) {}

    /// What there is on disk. Asked once.
    fn open_disk(&mut self) -> DiskLimits {
        DiskLimits::default()
    }

    /// Starts what shall happen on disk, behind the steps before; returns at once. Failures are told by
    /// [`Executor::landed`].
    fn disk(&mut self, _orders: Vec<DiskOrder>) {}

    /// Transfers that have ended, in the order of their start; with `wait` at least one, if one is under way.
    fn landed(&mut self, _wait: bool) -> Vec<Landed> {
        Vec::new()
    }

    /// Bytes in use for the runtime memory gauges.
    fn memory(&self) -> ExecutorMemory {
        ExecutorMemory::default()
    }
}

/// Bytes allocated by the runtime, for `nv_trt_llm_runtime_memory_metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutorMemory {
    pub cpu_bytes: u64,
    pub gpu_bytes: u64,
    pub pinned_bytes: u64,
}
