//! From the tensors of a Triton request to requests of the engine: parse, don't validate.

mod sampling;

use std::sync::Arc;

use super::beams;
use super::cache;
use super::inputs::Inputs;
use super::interface::{Form, Interface};
use super::model_warmup::WarmUps;
use super::prompt_table;
use super::terms::TermRules;
use super::wanted::Wanted;
use crate::adapter::tokenizer::encode_prompt;
use crate::config::{BatchingType, DecodingMode};
use crate::decode::guided::{GuideKind, GuideSource};
use crate::decode::{PassOrder, SamplingParams, StopCriteria};
use crate::engine;
use crate::error::{Error, Result, ResultExt};
use crate::ids::TokenId;
use crate::step::PromptTable;
use crate::text::{StopStrings, Tokenizer, encode_words, unpack_words};
use crate::triton::{DataType, Input};

/// Most sequences per prompt.
const MAX_RETURN_SEQUENCES: i32 = 256;

/// What does not change from request to request.
pub struct Rules {
    /// Whether a request may have several responses.
    pub decoupled: bool,
    /// Whether tensors have a batch dimension.
    pub batched: bool,
    pub batching: BatchingType,
    /// Default of `exclude_input_in_output`.
    pub exclude_input: bool,
    /// Whether log-probabilities of sampled tokens are relative to the candidates of top-k and top-p.
    pub normalize_log_probs: bool,
    pub order: PassOrder,
    /// `decoding_mode`, where it narrows what requests may choose.
    pub mode: Option<DecodingMode>,
    /// Tokens that end a guided answer whose request has no `end_id`; or why nothing can be guided.
    pub guided: std::result::Result<Vec<TokenId>, String>,
    /// Token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Values in a row of `prompt_embedding_table`, where the model takes one.
    pub prompt_table_width: Option<usize>,
    pub text: Option<TextRules>,
    /// Names of the outputs that the model's configuration declares.
    pub declared_outputs: Vec<String>,
    /// Whether log-probabilities are part of every answer, 0 where nobody asked for them.
    pub log_probs_always: bool,
    /// The declared type of logits, FP32 or FP16; or why there are none.
    pub logits: Result<DataType>,
    /// Most sequences that the engine runs as one request.
    pub max_sequences: usize,
    pub terms: TermRules,
    /// Tensors of another backend's LLM in place of its own.
    pub interface: Option<Arc<dyn Interface>>,
    pub warm_ups: WarmUps,
}

/// What a tokenizer adds.
pub struct TextRules {
    pub tokenizer: Arc<Tokenizer>,
    pub add_special_tokens: bool,
    pub skip_special_tokens: bool,
    /// Tokens that end a sequence whose request gives text and no `end_id`.
    pub end_ids: Vec<TokenId>,
}

/// What a Triton request asks for.
pub enum Call {
    /// Stop the request with the same id.
    Stop,
    Generate(Generate),
}

/// Sequences to generate.
pub struct Generate {
    pub plan: Plan,
    /// One for each prompt; more where a prompt has more return sequences than run together.
    pub items: Vec<Item>,
    /// What the responses are made into.
    pub form: Option<Box<dyn Form>>,
}

/// How all responses of a request are made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub streaming: bool,
    pub batched: bool,
    /// What any response carries.
    pub wanted: Wanted,
    /// Whether special tokens are left out of `text_output`.
    pub skip_special_tokens: bool,
    /// Whether the text that ended a sequence is left out of it.
    pub drop_stop_text: bool,
    /// FP32 or FP16.
    pub logits: DataType,
}

impl Plan {
    /// The shape of an output, with the batch dimension if the model has one.
    pub fn shape(&self, shape: &[i64]) -> Vec<i64> {
        let batch: &[i64] = if self.batched { &[1] } else { &[] };
        [batch, shape].concat()
    }
}

/// A prompt and its sequences.
#[derive(Clone)]
pub struct Item {
    pub request: engine::Request,
    pub batch_index: i32,
    /// What the responses to it carry.
    pub wanted: Wanted,
    /// Number of the request's first sequence among those of the prompt.
    pub first_sequence: i32,
    /// Whether the prompt precedes the answer.
    pub echo: bool,
    pub log_probs: Option<LogProbs>,
    /// Becomes the guide of the request.
    pub guide: Option<GuideSource>,
    /// Texts that end the sequence.
    pub stop_texts: Option<Arc<StopStrings>>,
    /// Whether the text ends with the stop text.
    pub include_stop: bool,
}

/// Which log-probability a token is reported with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogProbs {
    /// Within the whole vocabulary.
    Full,
    /// Within the candidates that top-k and top-p left.
    Candidates,
}

impl Rules {
    /// The model's tokenizer.
    ///
    /// # Errors
    /// `InvalidArg` where it has none.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        let text = self.text.as_ref().ok_or_else(|| Error::invalid("the model has no tokenizer: set tokenizer_dir"))?;
        Ok(text.tokenizer.clone())
    }
}

impl Call {
    /// Reads a request.
    ///
    /// # Errors
    /// `InvalidArg` for what the client did wrong, naming input, value and bound; `Unsupported` for a tensor that is
    /// not served.
    pub fn parse(rules: &Rules, tensors: &[Input<'_>], requested: &[&str]) -> Result<Self> {
        let inputs = Inputs::new(tensors, rules.batched)?;
        if inputs.flag("stop") {
            return Ok(Self::Stop);
        }
        let batch = inputs.batch();
        if batch > 1 && !rules.decoupled {
            return Err(Error::invalid(format!(
                "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy (got {batch})"
            )));
        }
        let streaming = inputs.flag("streaming");
        if streaming && !rules.decoupled {
            return Err(Error::invalid(
                "Streaming is only supported if model is deployed using decoupled mode: set \
                 model_transaction_policy { decoupled: true }",
            ));
        }
        inputs.refuse_unsupported()?;
        // Static batches end together, so their streams would have nothing to stream.
        let streaming = streaming && rules.batching == BatchingType::Inflight;
        let reader = Reader { rules, inputs: &inputs, requested, streaming };
        let mut items = Vec::with_capacity(batch);
        for row in 0..batch {
            let item = reader.items(row);
            items.extend(if batch > 1 { item.context(format!("batch item {row}"))? } else { item? });
        }
        let wanted = items.iter().fold(Wanted::default(), |all, item| all.or(item.wanted));
        let logits = if wanted.logits() { rules.logits.clone()? } else { DataType::Fp32 };
        let skip_special_tokens = rules.text.as_ref().is_none_or(|text| text.skip_special_tokens);
        Ok(Self::Generate(Generate {
            plan: Plan {
                streaming,
                batched: rules.batched,
                wanted,
                skip_special_tokens,
                drop_stop_text: false,
                logits,
            },
            items,
            form: None,
        }))
    }
}

/// Reads the items of one request.
struct Reader<'a> {
    rules: &'a Rules,
    inputs: &'a Inputs<'a>,
    /// Names of the outputs that the client lists.
    requested: &'a [&'a str],
    streaming: bool,
}

impl Reader<'_> {
    /// The sequences of one batch item, which share the blocks of their prompt.
    fn items(&self, row: usize) -> Result<Vec<Item>> {
        let prompt_table = prompt_table::read(self.inputs, row, self.rules.prompt_table_width)?;
        let prompt = self.prompt(row, prompt_table.as_ref().map_or(0, PromptTable::rows))?;
        let beam = beams::params(self.rules, self.inputs, row, self.streaming)?;
        let mut sampling = self.sampling(row)?;
        let guide = self.guide(row, &mut sampling)?;
        let stop = self.stop(row, &sampling)?;
        sampling.bad_words = self.bad_words(row)?;
        let log_probs = self.log_probs(row, &mut sampling)?;
        let stop_texts = self.stop_texts(row)?;
        let include_stop = self.inputs.flag_of("include_stop_str_in_output", row)?.unwrap_or(true);
        let exclude = self.inputs.flag_of("exclude_input_in_output", row)?.unwrap_or(self.rules.exclude_input)
            || self.rules.batching == BatchingType::Static;
        let sequences = if beam.is_some() { 1 } else { self.return_sequences(row)? as usize };
        cache::refuse_adapter(self.inputs, row)?;
        let mut extra_ids = cache::extra_ids(self.inputs, row, prompt.len())?;
        if let Some(table) = prompt_table.as_ref().filter(|_| extra_ids.is_empty()) {
            extra_ids = prompt_table::identities(table, &prompt, self.rules.vocab_size);
        }
        let retention = cache::retention(self.inputs, row)?;
        let outputs = self.output_options(row)?;
        let draft = self.inputs.ints("draft_input_ids", row)?;
        self.check_vocab("draft_input_ids", &draft)?;
        sampling.draft = self.draft_logits(row, &draft)?;
        let returned = beam.as_ref().filter(|_| self.inputs.has("num_return_sequences")).map(|beam| beam.num_return);
        let wanted = Wanted::new(self.rules, self.inputs, row, self.requested, returned.unwrap_or(sequences) > 1)?;
        let seed = sampling.seed;
        let item = |first: usize| Item {
            request: engine::Request {
                prompt: prompt.clone(),
                prompt_table: prompt_table.clone(),
                sampling: SamplingParams { seed: seed.wrapping_add(first as u64), ..sampling.clone() },
                stop: stop.clone(),
                extra_ids: extra_ids.clone(),
                retention: retention.clone(),
                outputs,
                draft: draft.clone(),
                beam: beam.clone(),
                num_sequences: (sequences - first).min(self.rules.max_sequences),
                ..engine::Request::default()
            },
            batch_index: row as i32,
            wanted,
            first_sequence: first as i32,
            echo: !self.streaming && !exclude,
            log_probs,
            guide: guide.clone(),
            stop_texts: stop_texts.clone(),
            include_stop,
        };
        Ok((0..sequences).step_by(self.rules.max_sequences).map(item).collect())
    }

    /// `further_ids`: tokens behind the vocabulary that the request has embeddings for.
    fn prompt(&self, row: usize, further_ids: usize) -> Result<Vec<TokenId>> {
        if self.inputs.has("text_input") {
            return self.text_prompt(row);
        }
        if !self.inputs.has("input_ids") {
            return Err(Error::invalid(
                "the prompt is not provided: expected text_input, or input_ids with at least one token",
            ));
        }
        let mut ids = self.inputs.ints("input_ids", row)?;
        if self.inputs.batch() > 1 {
            let Some(length) = self.inputs.int("input_lengths", row)? else {
                return Err(Error::invalid("input_lengths is not present: it is required for a batch size > 1"));
            };
            if length < 1 || length as usize > ids.len() {
                return Err(out_of_range("input_lengths", length, &format!("1 to {}", ids.len())));
            }
            ids.truncate(length as usize);
        }
        self.check_ids("input_ids", &ids, self.rules.vocab_size + further_ids)?;
        Ok(ids)
    }

    fn text_prompt(&self, row: usize) -> Result<Vec<TokenId>> {
        let rules = self.text_rules("text_input")?;
        let texts = self.inputs.texts("text_input", row)?;
        let [text] = texts[..] else {
            return Err(Error::invalid("Invalid size for tensor text_input: expected one text for each batch item"));
        };
        let ids = encode_prompt(&rules.tokenizer, text, rules.add_special_tokens).context("text_input")?;
        if ids.is_empty() {
            return Err(Error::invalid("text_input has no tokens, expected at least 1"));
        }
        self.check_vocab("text_input", &ids)?;
        Ok(ids)
    }

    fn text_rules(&self, name: &str) -> Result<&TextRules> {
        self.rules.text.as_ref().ok_or_else(|| {
            Error::invalid(format!("{name} needs a tokenizer, but the model has none: set the parameter tokenizer_dir"))
        })
    }

    /// What the answer must follow. It ends by itself, so it needs an end token.
    fn guide(&self, row: usize, sampling: &mut SamplingParams) -> Result<Option<GuideSource>> {
        const KIND: &str = "guided_decoding_guide_type";
        let one = |name: &str| match self.inputs.texts(name, row)?[..] {
            [] | [""] => Ok(None),
            [text] => Ok(Some(text.to_owned())),
            _ => Err(Error::invalid(format!("Invalid size for tensor {name}: expected one text for each batch item"))),
        };
        let (kind, text) = (one(KIND)?, one("guided_decoding_guide")?);
        let Some(kind) = kind else {
            return match text {
                None => Ok(None),
                Some(_) => Err(Error::invalid(format!("guided_decoding_guide is given without {KIND}"))),
            };
        };
        let kind = GuideKind::parse(&kind).context(KIND)?;
        let end_ids = self.rules.guided.as_ref().map_err(|reason| {
            Error::unsupported(format!("{KIND} is {}, but guided decoding is not available: {reason}", kind.word()))
        })?;
        if text.is_none() && !matches!(kind, GuideKind::Json | GuideKind::Regex) {
            return Err(Error::invalid(format!("guided_decoding_guide is missing: {KIND} is {}", kind.word())));
        }
        if sampling.end_ids.is_empty() {
            sampling.end_ids.clone_from(end_ids);
        }
        if sampling.end_ids.is_empty() {
            return Err(Error::invalid(format!(
                "{KIND} is {}, which needs an end_id: the tokenizer has none",
                kind.word()
            )));
        }
        Ok(Some(GuideSource { kind, text: text.unwrap_or_default() }))
    }

    fn stop(&self, row: usize, sampling: &SamplingParams) -> Result<StopCriteria> {
        let Some(max_tokens) = self.int("request_output_len", row, 1)? else {
            return Err(Error::invalid(
                "request_output_len is not present: expected the number of tokens to generate, there or in max_tokens",
            ));
        };
        Ok(StopCriteria {
            max_tokens: max_tokens as usize,
            end_ids: sampling.end_ids.clone(),
            stop_words: self.words("stop_words_list", row)?,
        })
    }

    fn bad_words(&self, row: usize) -> Result<Vec<Vec<TokenId>>> {
        let mut words = self.words("bad_words_list", row)?;
        let texts = self.word_texts("bad_words", row)?;
        if !texts.is_empty() {
            let rules = self.text_rules("bad_words")?;
            words.extend(encode_words(&rules.tokenizer, &texts).context("bad_words")?);
        }
        Ok(words)
    }

    fn stop_texts(&self, row: usize) -> Result<Option<Arc<StopStrings>>> {
        let texts = self.word_texts("stop_words", row)?;
        if texts.is_empty() {
            return Ok(None);
        }
        self.text_rules("stop_words")?;
        Ok(Some(StopStrings::new(&texts)))
    }

    /// Empty texts are what `""` of an HTTP client becomes.
    fn word_texts(&self, name: &str, row: usize) -> Result<Vec<&str>> {
        let mut texts = self.inputs.texts(name, row)?;
        texts.retain(|text| !text.is_empty());
        Ok(texts)
    }

    fn words(&self, name: &str, row: usize) -> Result<Vec<Vec<TokenId>>> {
        let words = unpack_words(&self.inputs.ints(name, row)?).context(name)?;
        words.iter().try_for_each(|word| self.check_vocab(name, word))?;
        Ok(words)
    }

    /// Logits are computed where the client can see them.
    fn output_options(&self, row: usize) -> Result<engine::OutputOptions> {
        let wants = |flag, output| {
            let asked = self.inputs.flag_of(flag, row)?.unwrap_or(false);
            Ok::<_, Error>(asked && self.requested.contains(&output))
        };
        Ok(engine::OutputOptions {
            context_logits: wants("return_context_logits", "context_logits")?,
            generation_logits: wants("return_generation_logits", "generation_logits")?,
            prompt_log_probs: self.inputs.flag_of("return_prompt_log_probs", row)?.unwrap_or(false),
        })
    }

    fn return_sequences(&self, row: usize) -> Result<i32> {
        let Some(count) = self.inputs.int("num_return_sequences", row)? else { return Ok(1) };
        if !(1..=MAX_RETURN_SEQUENCES).contains(&count) {
            return Err(out_of_range("num_return_sequences", count, &format!("1 to {MAX_RETURN_SEQUENCES}")));
        }
        if count > 1 && !self.rules.decoupled {
            return Err(Error::invalid(format!(
                "num_return_sequences is {count}: more than 1 requires the decoupled transaction policy"
            )));
        }
        Ok(count)
    }

    fn check_vocab(&self, name: &str, ids: &[TokenId]) -> Result<()> {
        self.check_ids(name, ids, self.rules.vocab_size)
    }

    fn check_ids(&self, name: &str, ids: &[TokenId], end: usize) -> Result<()> {
        match ids.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= end)) {
            Some(&id) => Err(out_of_range(name, id, &format!("token ids of 0 to {}", end - 1))),
            None => Ok(()),
        }
    }

    fn int(&self, name: &str, row: usize, min: i32) -> Result<Option<u32>> {
        match self.inputs.int(name, row)? {
            Some(value) if value < min => {
                Err(out_of_range(self.inputs.given_name(name), value, &format!("{min} or more")))
            }
            value => Ok(value.map(|value| value as u32)),
        }
    }

    fn float(&self, name: &str, row: usize, range: &str, inside: impl Fn(f32) -> bool) -> Result<Option<f32>> {
        match self.inputs.float(name, row)? {
            Some(value) if !inside(value) => Err(out_of_range(self.inputs.given_name(name), value, range)),
            value => Ok(value),
        }
    }
}

/// The error of a number outside of its range.
pub fn out_of_range(name: &str, value: impl std::fmt::Display, range: &str) -> Error {
    Error::invalid(format!("{name} is {value}, expected {range}"))
}
