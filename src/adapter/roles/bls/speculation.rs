//! Draft and target: a small model writes some tokens ahead, the LLM checks them all in one step.

use super::flow::{Flow, present};
use crate::adapter::tensor::{NamedTensor, TensorData};
use crate::error::{Error, Result};
use crate::text::unpack_words;

/// What a request says about its drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Most tokens that are drafted ahead; 0: the LLM writes alone.
    pub tokens: usize,
    /// Whether the LLM gets the draft's logits, which lets it accept by probability.
    pub with_logits: bool,
}

/// Inputs of the LLM that each call sets anew.
const SET_ANEW: [&str; 3] = ["input_ids", "input_lengths", "request_output_len"];

/// Inputs of the LLM that its draft does not get: what is told about the answer, and what fits one model only.
const NOT_FOR_THE_DRAFT: [&str; 15] = [
    "streaming",
    "exclude_input_in_output",
    "min_tokens",
    "min_length",
    "return_log_probs",
    "return_context_logits",
    "return_generation_logits",
    "return_perf_metrics",
    "return_num_input_tokens",
    "return_num_output_tokens",
    "lora_task_id",
    "lora_weights",
    "lora_config",
    "guided_decoding_guide_type",
    "guided_decoding_guide",
];

impl Drafts {
    /// Checks the request of one that drafts.
    ///
    /// # Errors
    /// `InvalidArg` for what does not go with drafts.
    pub fn read(inputs: &[NamedTensor], batch: usize, draft_model: Option<&str>) -> Result<Self> {
        let first = |name: &str| -> Result<i32> {
            let values = present(inputs, name).map(NamedTensor::to_i32).transpose()?;
            Ok(values.and_then(|values| values.first().copied()).unwrap_or(0))
        };
        let tokens = match first("num_draft_tokens")? {
            0 => return Ok(Self::default()),
            tokens if tokens < 0 => {
                return Err(Error::invalid(format!("num_draft_tokens is {tokens}, expected 0 or more")));
            }
            tokens => tokens as usize,
        };
        let needs = |what: &str| Err(Error::invalid(format!("num_draft_tokens is {tokens}, which needs {what}")));
        if draft_model.is_none() {
            return needs("the parameter tensorrt_llm_draft_model_name");
        }
        if batch != 1 {
            return needs(&format!("one prompt a request, got {batch}"));
        }
        for name in ["stream", "return_context_logits"] {
            if first(name)? != 0 {
                return needs(&format!("{name} to be false"));
            }
        }
        if first("beam_width")? > 1 {
            return needs("a beam width of 1");
        }
        Ok(Self { tokens, with_logits: first("use_draft_logits")? != 0 })
    }
}

/// The LLM's side of one request that drafts.
struct Loop {
    /// What every call to the LLM has.
    inputs: Vec<NamedTensor>,
    prompt_len: usize,
    /// Prompt and answer so far.
    ids: Vec<i32>,
    max_tokens: usize,
    stop_words: Vec<Vec<i32>>,
}

impl Loop {
    fn new(inputs: Vec<NamedTensor>) -> Result<Self> {
        let ints = |name: &str| -> Result<Vec<i32>> {
            Ok(present(&inputs, name).map(NamedTensor::to_i32).transpose()?.unwrap_or_default())
        };
        let mut ids = ints("input_ids")?;
        if let Some(&length) = ints("input_lengths")?.first() {
            ids.truncate(length.max(0) as usize);
        }
        let max_tokens = ints("request_output_len")?.first().copied().unwrap_or(0).max(0) as usize;
        let stop_words = unpack_words(&ints("stop_words_list")?)?;
        let dropped =
            |tensor: &NamedTensor| SET_ANEW.contains(&tensor.name.as_str()) || tensor.name == "exclude_input_in_output";
        let inputs = inputs.into_iter().filter(|tensor| !dropped(tensor)).collect();
        Ok(Self { inputs, prompt_len: ids.len(), ids, max_tokens, stop_words })
    }

    fn remaining(&self) -> usize {
        self.max_tokens.saturating_sub(self.ids.len() - self.prompt_len)
    }

    /// A call for this many more tokens, whose answer comes without the tokens so far.
    fn call(&self, output_len: usize, kept: impl Fn(&NamedTensor) -> bool) -> Vec<NamedTensor> {
        let mut inputs: Vec<_> = self.inputs.iter().filter(|tensor| kept(tensor)).cloned().collect();
        inputs.iter_mut().filter(|tensor| tensor.name == "prompt_table_extra_ids").for_each(|ids| self.lengthen(ids));
        inputs.push(ints("input_ids", self.ids.clone()));
        inputs.push(ints("input_lengths", vec![self.ids.len() as i32]));
        inputs.push(ints("request_output_len", vec![output_len as i32]));
        inputs.push(flag("exclude_input_in_output", true));
        inputs
    }

    /// The answer so far counts as a part of the prompt, whose tokens have an id each; those of the answer are ordinary.
    fn lengthen(&self, extra_ids: &mut NamedTensor) {
        if let TensorData::U64(ids) = &mut extra_ids.data {
            ids.resize(self.ids.len(), 0);
            extra_ids.shape = vec![1, self.ids.len() as i64];
        }
    }

    fn draft_call(&self, tokens: usize, with_logits: bool) -> Vec<NamedTensor> {
        let mut inputs = self.call(tokens, |tensor| !NOT_FOR_THE_DRAFT.contains(&tensor.name.as_str()));
        // The draft's end is not the answer's.
        inputs.push(ints("min_tokens", vec![tokens as i32]));
        inputs.push(flag("return_generation_logits", with_logits));
        inputs
    }

    fn target_call(&self, drafts: &[i32], logits: Option<NamedTensor>) -> Vec<NamedTensor> {
        let mut inputs = self.call(drafts.len() + 1, |_| true);
        if !drafts.is_empty() {
            inputs.push(ints("draft_input_ids", drafts.to_vec()));
            inputs.extend(logits);
        }
        inputs
    }

    /// Appends what the LLM wrote; says whether that was the last.
    fn take(&mut self, new: &[i32], drafts: &[i32]) -> bool {
        let new = &new[..new.len().min(self.remaining())];
        self.ids.extend(new);
        // The token after the accepted drafts differs from the draft there; without one, the LLM ended.
        let ended = new.len() <= drafts.len() && drafts.starts_with(new);
        let answer = &self.ids[self.prompt_len..];
        new.is_empty() || ended || self.stop_words.iter().any(|word| !word.is_empty() && answer.ends_with(word))
    }
}

impl Flow<'_> {
    /// The LLM's last response with the whole answer as its tokens.
    ///
    /// # Errors
    /// Those of the two models.
    pub(super) fn speculate(&self, inputs: Vec<NamedTensor>, drafts: Drafts) -> Result<Vec<NamedTensor>> {
        let settings = self.settings;
        let draft_model = settings.draft.as_deref().unwrap_or_default();
        let exclude = present(&inputs, "exclude_input_in_output").map(NamedTensor::to_bool).transpose()?;
        let exclude = exclude.is_some_and(|flags| flags.first() == Some(&true));
        let mut state = Loop::new(inputs)?;
        let mut last = Vec::new();
        while state.remaining() > 0 {
            let count = drafts.tokens.min(state.remaining() - 1);
            let (mut drafted, mut logits) = (Vec::new(), None);
            if count > 0 {
                let response = self.only(draft_model, state.draft_call(count, drafts.with_logits), Vec::new())?;
                drafted = tokens(&response, draft_model)?;
                drafted.truncate(count);
                logits = draft_logits(response, drafted.len(), drafts.with_logits, draft_model)?;
            }
            last = self.only(&settings.llm, state.target_call(&drafted, logits), Vec::new())?;
            if state.take(&tokens(&last, &settings.llm)?, &drafted) {
                break;
            }
        }
        let ids = state.ids.split_off(if exclude { state.prompt_len } else { 0 });
        last.retain(|tensor| tensor.name != "output_ids" && tensor.name != "sequence_length");
        last.push(NamedTensor::new("sequence_length", [1, 1], TensorData::I32(vec![ids.len() as i32])));
        last.push(NamedTensor::new("output_ids", [1, 1, ids.len() as i64], TensorData::I32(ids)));
        Ok(last)
    }
}

/// The tokens of a response's one row.
fn tokens(response: &[NamedTensor], model: &str) -> Result<Vec<i32>> {
    let missing = |name: &str| Error::internal(format!("model {model:?} answered without the output {name:?}"));
    let ids = response.iter().find(|tensor| tensor.name == "output_ids").ok_or_else(|| missing("output_ids"))?;
    let length = present(response, "sequence_length").ok_or_else(|| missing("sequence_length"))?.to_i32()?;
    let mut ids = ids.to_i32()?;
    ids.truncate(length.first().copied().unwrap_or(0).max(0) as usize);
    Ok(ids)
}

/// `generation_logits [1, 1, tokens, V]` as `draft_logits [1, tokens, V]`.
fn draft_logits(response: Vec<NamedTensor>, tokens: usize, wanted: bool, model: &str) -> Result<Option<NamedTensor>> {
    if !wanted || tokens == 0 {
        return Ok(None);
    }
    let found = response.into_iter().find(|tensor| tensor.name == "generation_logits");
    let Some(mut logits) = found else {
        return Err(Error::internal(format!(
            "model {model:?} answered without the output \"generation_logits\", which use_draft_logits needs"
        )));
    };
    match logits.shape[..] {
        [1, 1, rows, vocab] if rows == tokens as i64 => logits.shape = vec![1, rows, vocab],
        _ => {
            return Err(Error::internal(format!(
                "model {model:?} answered with generation_logits of shape {:?}, expected [1, 1, {tokens}, V]",
                logits.shape
            )));
        }
    }
    logits.name = "draft_logits".to_owned();
    Ok(Some(logits))
}

fn ints(name: &str, values: Vec<i32>) -> NamedTensor {
    NamedTensor::new(name, [1, values.len() as i64], TensorData::I32(values))
}

fn flag(name: &str, value: bool) -> NamedTensor {
    NamedTensor::new(name, [1, 1], TensorData::Bool(vec![value]))
}

#[cfg(test)]
mod tests;
