//! Models whose tokens are written down, and requests for them.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tempfile::TempDir;
use triton_trtllm::adapter;
use triton_trtllm::adapter::llm::ModelExecutor;
use triton_trtllm::config::Parameters;
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::decode::logits::{self, History, Occurrences};
use triton_trtllm::decode::sample::{SampleScratch, most_likely_next, sample};
use triton_trtllm::error::{Error, Result};
use triton_trtllm::ids::{SeqId, TokenId};
use triton_trtllm::runner::Placement;
use triton_trtllm::step::{
    Executor, ExecutorLimits, Inspection, SampledRow, SampledToken, StepOutput, StepPlan, TokenLogProb, WindowPool,
};
use triton_trtllm::text::Tokenizer;
use triton_trtllm::triton::{Model, ModelHandler, ModelLoader, set_loader};

use crate::fake::{ModelSpec, Reply, RequestSpec, Server, Tensor};

pub const EOS: i32 = 2;
/// The device fails when it is to continue this token.
pub const POISON: i32 = 66;
pub const VOCAB: usize = 300;
/// Values in a row of a prompt table.
pub const TABLE_WIDTH: usize = 4;

/// A model of this name says the same as the others but for every [`DRAFT_PERIOD`]th token, the third of its answer first.
pub const DRAFT: &str = "draft";
pub const DRAFT_PERIOD: usize = 5;

/// What the text model answers to everything, over and over.
pub const ANSWER: &str = " the end of the story — no more. ";

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    folder
});

/// Starts a server whose LLMs run scripts instead of weights.
pub fn start() -> Server {
    let server = Server::start();
    set_loader(&ScriptLoader);
    server
}

/// A model with the whole template's inputs and outputs.
pub fn model(name: &str, decoupled: bool, parameters: &[(&str, &str)]) -> ModelSpec {
    let mut given: Vec<(&str, &str)> = vec![("gpt_model_path", FOLDER.path().to_str().unwrap())];
    given.extend_from_slice(parameters);
    let mut spec = ModelSpec::with_parameters(name, &given).auto_complete();
    spec.config["model_transaction_policy"] = json!({ "decoupled": decoupled });
    spec
}

/// A model that also takes text.
pub fn text_model(name: &str, parameters: &[(&str, &str)]) -> ModelSpec {
    let folder = tokenizer_dir();
    let mut given = vec![("tokenizer_dir", folder.to_str().unwrap())];
    given.extend_from_slice(parameters);
    model(name, true, &given)
}

pub fn tokenizer_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/bytelevel")
}

/// A request of these prompt tokens for this many more, with all outputs of the template.
pub fn request(prompt: &[i32], output_len: i32) -> RequestSpec {
    outputs(RequestSpec::new(""))
        .input(Tensor::int32("input_ids", &[1, prompt.len() as i64], prompt))
        .input(Tensor::int32("input_lengths", &[1], &[prompt.len() as i32]))
        .input(Tensor::int32("request_output_len", &[1], &[output_len]))
}

/// Asks for everything, as a client does that lists no outputs.
pub fn outputs(request: RequestSpec) -> RequestSpec {
    let rows = adapter::llm::OUTPUTS;
    rows.iter().filter(|row| row.name != "text_output").fold(request, |request, row| request.output(row.name))
}

pub fn with_id(mut request: RequestSpec, id: &str) -> RequestSpec {
    request.id = id.to_owned();
    request
}

pub fn flag(name: &str) -> Tensor {
    Tensor::bools(name, &[1], &[true])
}

pub fn int(name: &str, value: i32) -> Tensor {
    Tensor::int32(name, &[1], &[value])
}

/// Shape and ids of `output_ids`, `sequence_length`, and whether the response is the last one.
pub type Tokens = (Vec<i64>, Vec<i32>, Vec<i32>, bool);

/// The token outputs of each response.
pub fn tokens(replies: &[Reply]) -> Vec<Tokens> {
    let row = |reply: &Reply| {
        assert_eq!(reply.error, None);
        assert_eq!(reply.outputs[0].name, "output_ids", "the first output");
        let length = reply.output("sequence_length").unwrap();
        assert_eq!(length.shape, [1, 1]);
        (reply.outputs[0].shape.clone(), reply.outputs[0].to_int32(), length.to_int32(), reply.is_final)
    };
    replies.iter().map(row).collect()
}

/// Code and text of the only response, an error.
pub fn error(replies: &[Reply]) -> (u32, String) {
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert!(replies[0].is_final);
    let failure = replies[0].error.clone().expect("an error");
    (failure.code, failure.message)
}

struct ScriptLoader;

impl ModelLoader for ScriptLoader {
    fn auto_complete(&self, model: &Model) -> Result<Option<Value>> {
        adapter::auto_complete(model)
    }

    fn load(&self, model: &Model) -> Result<Arc<dyn ModelHandler>> {
        let drafts = model.name == DRAFT;
        let source = move |parameters: &Parameters, _: &Path, _: Placement| script(parameters, drafts);
        adapter::load_model_from(model, Arc::new(source))
    }
}

fn script(parameters: &Parameters, drafts: bool) -> Result<ModelExecutor> {
    let answer = match parameters.tokenizer_dir.value.as_deref() {
        Some(dir) => Tokenizer::load(Path::new(dir))?.encode(ANSWER, false)?,
        None => Vec::new(),
    };
    let (vocab_size, end_ids) = if answer.is_empty() { (VOCAB, vec![EOS]) } else { (560, Vec::new()) };
    let size = 64;
    let kv_tokens = parameters.max_tokens_in_paged_kv_cache.value.map_or(1 << 21, |tokens| tokens as usize);
    let limits = ExecutorLimits {
        num_blocks: kv_tokens / size,
        block_size_tokens: size,
        max_step_tokens: 512,
        max_step_sequences: parameters.max_batch_size.value.map_or(16, |size| size as usize),
        max_step_rows: 512,
        max_seq_len_tokens: parameters.max_seq_len.value.map_or(1 << 20, |len| len as usize),
        vocab_size,
        pipeline_depth: 1,
    };
    let window = |tokens: &i32| WindowPool { num_blocks: 4096, window_tokens: *tokens as usize, sink_tokens: 0 };
    let windows = parameters.max_attention_window_size.value.iter().flatten().map(window).collect();
    let executor =
        Box::new(ScriptExecutor { limits, windows, answer, drafts, sequences: HashMap::new(), steps: VecDeque::new() });
    Ok(ModelExecutor { executor, end_ids, max_input_len: None })
}

/// 5 6 7 is followed by 20, 21 and the end; everything else counts on. The text model says [`ANSWER`].
struct ScriptExecutor {
    limits: ExecutorLimits,
    windows: Vec<WindowPool>,
    answer: Vec<TokenId>,
    /// Whether it is the one that slips.
    drafts: bool,
    sequences: HashMap<SeqId, Sequence>,
    steps: VecDeque<StepOutput>,
}

struct Sequence {
    prompt_len: usize,
    /// How many of the prompt's last tokens count as generated.
    generated: usize,
    /// How much of the answer the prompt ends with.
    said: usize,
    tokens: Vec<TokenId>,
    sampling: SamplingParams,
}

impl Sequence {
    /// What the passes leave of a row in which the scripted token is the most likely one.
    fn passes(&self, id: TokenId, vocab_size: usize) -> Result<TokenId> {
        let mut occurrences = Occurrences::default();
        occurrences.add_prompt(&self.tokens[..self.prompt_len], &self.sampling);
        self.tokens[self.prompt_len..].iter().for_each(|&token| occurrences.add(token));
        let history = History { tokens: &self.tokens, prompt_len: self.prompt_len, occurrences: &occurrences };
        let mut row = vec![0.0; vocab_size];
        row[id as usize] = 10.0;
        logits::apply(&mut row, &self.sampling, &history);
        let greedy = SamplingParams { temperature: 0.0, ..self.sampling.clone() };
        Ok(sample(&row, &greedy, self.tokens.len(), &mut SampleScratch::default())?.id)
    }
}

impl ScriptExecutor {
    /// What the model says after a token: half the token's number for the token itself.
    fn logits(&self, token: TokenId) -> Vec<f32> {
        let mut row = vec![0.0; self.limits.vocab_size];
        row[token as usize] = token as f32 / 2.0;
        row
    }

    fn next(&self, sequence: &Sequence, end: usize) -> Result<TokenId> {
        if !self.answer.is_empty() {
            let at = sequence.said + end - sequence.prompt_len;
            let slip = self.drafts && at % DRAFT_PERIOD == 2;
            return Ok(self.answer[at % self.answer.len()] + TokenId::from(slip));
        }
        match sequence.tokens[end - 1] {
            POISON => Err(Error::internal("the device fell off the bus")),
            7 => Ok(20),
            20 => Ok(21),
            21 => Ok(EOS),
            token => Ok(100 + (token + 1) % 150),
        }
    }
}

impl ScriptExecutor {
    /// What may follow a hypothesis of a beam search by the logits; `None` for others, which do not always take the best.
    fn search(&self, seq: SeqId, end: usize) -> Option<Vec<(TokenId, f32)>> {
        let Sequence { prompt_len, generated, tokens, sampling, .. } = &self.sequences[&seq];
        let mut row = self.logits(tokens[end - 1]);
        let (tokens, prompt_len, count) = (&tokens[..end], prompt_len - generated, sampling.top_log_probs as usize);
        (sampling.top_k == 1).then(|| most_likely_next(&mut row, sampling, tokens, prompt_len, count).unwrap())
    }

    /// Appends the token behind the first `end` of a sequence.
    fn sample(&mut self, seq: SeqId, end: usize) -> Result<SampledToken> {
        let sequence = &self.sequences[&seq];
        let mut id = self.next(sequence, end)?;
        if sequence.sampling.changes_logits(end - sequence.prompt_len) {
            id = sequence.passes(id, self.limits.vocab_size)?;
        }
        let log_prob = sequence.sampling.log_probs.then_some(TokenLogProb { full: -0.5, candidates: -0.25 });
        let sequence = self.sequences.get_mut(&seq).unwrap();
        sequence.tokens.truncate(end);
        sequence.tokens.push(id);
        Ok(SampledToken { id, log_prob })
    }
}

impl Executor for ScriptExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn prompt_table_width(&self) -> Option<usize> {
        Some(TABLE_WIDTH)
    }

    fn windows(&self) -> Vec<WindowPool> {
        self.windows.clone()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        for new in &plan.new_sequences {
            let (prompt_len, tokens) = (new.prompt.len(), new.prompt.clone());
            let begins = |&said: &usize| tokens[prompt_len - said..].iter().eq(self.answer.iter().cycle().take(said));
            let said = if self.answer.is_empty() { 0 } else { (0..=prompt_len).rev().find(begins).unwrap_or(0) };
            let sampling = new.sampling.clone();
            let sequence = Sequence { prompt_len, generated: new.generated, said, tokens, sampling };
            self.sequences.insert(new.seq, sequence);
        }
        let (mut rows, mut inspections) = (Vec::new(), Vec::new());
        for chunk in &plan.chunks {
            let (tokens, end) = (&self.sequences[&chunk.seq].tokens, chunk.start + chunk.len);
            let start = end - chunk.inspect.positions;
            if start < end {
                let logits = tokens[start..end].iter().map(|&token| self.logits(token)).collect();
                inspections.push(Inspection { seq: chunk.seq, start, logits, next_log_probs: Vec::new() });
            }
        }
        for chunk in plan.chunks.iter().filter(|chunk| chunk.sample) {
            let known = chunk.start + chunk.len - chunk.draft.len();
            let mut tokens = Vec::new();
            for guesses in 0..=chunk.draft.len() {
                let token = self.sample(chunk.seq, known + guesses)?;
                tokens.push(token);
                if chunk.draft.get(guesses) != Some(&token.id) {
                    break;
                }
            }
            // The chosen token is the second of the most likely ones.
            let count = self.sequences[&chunk.seq].sampling.top_log_probs;
            let places = tokens.iter().filter(|_| count > 0);
            let log_prob = |rank: u32| -0.25 * (rank + 1) as f32;
            let told = |token: &SampledToken| match self.search(chunk.seq, known) {
                Some(top) => top,
                None => (0..count).map(|rank| (token.id + 1 - rank as TokenId, log_prob(rank))).collect(),
            };
            let top = places.map(told).collect();
            rows.push(SampledRow { seq: chunk.seq, tokens, top, error: None });
        }
        plan.retired.iter().for_each(|seq| drop(self.sequences.remove(seq)));
        self.steps.push_back(StepOutput { step: plan.step, rows, inspections, ..StepOutput::default() });
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.steps.pop_front().ok_or_else(|| Error::internal("no step is in flight"))
    }
}
