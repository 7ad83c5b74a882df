//! What one request does: tokens from the text, responses from the LLM, text from each of them.

use std::collections::BTreeMap;

use super::speculation::Drafts;
use super::stops::{RowKey, TextStops};
use crate::adapter::tensor::{NamedTensor, TensorData};
use crate::error::{Error, Result};
use crate::tensors::bls::{self, FROM_PREPROCESSING, To};

/// How the role was configured.
#[derive(Clone, Debug)]
pub struct Settings {
    pub preprocessing: String,
    pub llm: String,
    pub postprocessing: String,
    /// The model that drafts for the LLM.
    pub draft: Option<String>,
    /// Whether a request may have several responses.
    pub decoupled: bool,
    /// Whether each response has the whole text so far; only where decoupled.
    pub accumulate: bool,
    /// Whether the models are those of version 0.7: `preprocessing` takes no end and padding id, the LLM has no logits.
    pub before_logits: bool,
}

/// A request to one of the models.
pub struct Inner {
    pub model: String,
    pub inputs: Vec<NamedTensor>,
    /// None: all that the model declares.
    pub outputs: Vec<String>,
}

/// The models of the server.
pub trait Models {
    /// The responses of a model, which come as they are asked for. Ends early when nobody waits any more.
    ///
    /// # Errors
    /// The model is not there or takes no such request.
    fn call(&self, inner: Inner) -> Result<Box<dyn Responses + '_>>;
}

/// What a model answers, one by one.
pub trait Responses: Iterator<Item = Result<Vec<NamedTensor>>> {
    /// Tells the model that no more is wanted.
    fn cancel(&mut self);
}

/// One request.
pub struct Flow<'a> {
    pub(super) settings: &'a Settings,
    models: &'a dyn Models,
    batch: usize,
    streaming: bool,
    /// Whether the client asked for log-probabilities.
    log_probs: bool,
    drafts: Drafts,
    /// The prompts, unless the answers come without them.
    prompts: Vec<String>,
    stops: TextStops,
    /// All tokens so far of each batch item and return sequence, when accumulating.
    tokens: BTreeMap<(i32, i32), Vec<i32>>,
}

impl<'a> Flow<'a> {
    /// Checks the request.
    ///
    /// # Errors
    /// `InvalidArg` for what is missing, unknown or out of range; `Unsupported` for images.
    pub fn new(settings: &'a Settings, models: &'a dyn Models, inputs: &[NamedTensor]) -> Result<Self> {
        for input in inputs {
            let row =
                bls::find(&input.name).ok_or_else(|| Error::invalid(format!("input `{}` is unknown", input.name)))?;
            if row.to == To::Refused && !is_nothing(input) {
                return Err(Error::unsupported(format!(
                    "input `{}` is not supported by this version: it must be 0 or absent",
                    input.name
                )));
            }
        }
        let text = present(inputs, "text_input").ok_or_else(|| Error::invalid("text_input is required"))?;
        let prompts: Vec<String> = text.to_strings()?.into_iter().map(str::to_owned).collect();
        let batch = prompts.len();
        let max_tokens = present(inputs, "max_tokens").map(NamedTensor::to_i32).transpose()?.unwrap_or_default();
        if (max_tokens.len() != 1 && max_tokens.len() != batch) || max_tokens.iter().any(|&tokens| tokens <= 0) {
            return Err(Error::invalid(format!("max_tokens must be a single value > 0, got {max_tokens:?}")));
        }
        let drafts = Drafts::read(inputs, batch, settings.draft.as_deref())?;
        let streaming = flag(inputs, "stream")?;
        let excluded = streaming || flag(inputs, "exclude_input_in_output")?;
        Ok(Self {
            settings,
            models,
            batch,
            streaming,
            log_probs: flag(inputs, "return_log_probs")?,
            drafts,
            prompts: if excluded { Vec::new() } else { prompts },
            stops: TextStops::new(stop_words(inputs, batch)?),
            tokens: BTreeMap::new(),
        })
    }

    /// Runs the request; `send` gets each response as soon as it is there.
    ///
    /// # Errors
    /// Those of the models, with the name of the model, and those of `send`.
    pub fn run(
        &mut self,
        inputs: Vec<NamedTensor>,
        mut send: impl FnMut(Vec<NamedTensor>) -> Result<()>,
    ) -> Result<()> {
        let settings = self.settings;
        let (to_preprocessing, mut to_llm) = self.split(inputs);
        let tokens = self.only(&settings.preprocessing, to_preprocessing, Vec::new())?;
        for mut tensor in tokens {
            let name = FROM_PREPROCESSING.iter().find(|(from, _)| *from == tensor.name).map(|(_, name)| *name);
            if let Some(name) = name.filter(|name| !to_llm.iter().any(|tensor| tensor.name == *name)) {
                tensor.name = name.to_owned();
                to_llm.push(self.with_batch(tensor));
            }
        }
        for name in ["return_context_logits", "return_generation_logits"] {
            if !settings.before_logits && !to_llm.iter().any(|tensor| tensor.name == name) {
                let data = TensorData::Bool(vec![false; self.batch]);
                to_llm.push(NamedTensor::new(name, [self.batch as i64, 1], data));
            }
        }
        if self.drafts.tokens > 0 {
            let response = self.speculate(to_llm, self.drafts)?;
            return send(self.texts(response)?.0);
        }
        let inner = Inner { model: settings.llm.clone(), inputs: to_llm, outputs: Vec::new() };
        let models = self.models;
        let mut responses = models.call(inner)?;
        let mut sent = 0;
        while let Some(response) = responses.next() {
            let (outputs, rows) = self.texts(response?)?;
            if !settings.decoupled && sent == 1 {
                responses.cancel();
                return Err(Error::invalid(format!(
                    "model {:?} sent several responses to a model that is not decoupled: both must have the same policy",
                    settings.llm
                )));
            }
            send(outputs).inspect_err(|_| responses.cancel())?;
            sent += 1;
            if self.stops.all_stopped(self.batch, rows) {
                responses.cancel();
                break;
            }
        }
        if sent == 0 && !settings.decoupled {
            return Err(Error::internal(format!("model {:?} sent no response", settings.llm)));
        }
        Ok(())
    }

    /// The inputs of the preprocessing model and those of the LLM.
    fn split(&self, inputs: Vec<NamedTensor>) -> (Vec<NamedTensor>, Vec<NamedTensor>) {
        let (mut preprocessing, mut llm) = (Vec::new(), Vec::new());
        for mut tensor in inputs {
            match bls::find(&tensor.name).map(|row| row.to) {
                Some(To::Preprocessing("END_ID" | "PAD_ID")) if self.settings.before_logits => {
                    llm.push(self.with_batch(tensor));
                }
                Some(To::Preprocessing(name)) => {
                    tensor.name = name.to_owned();
                    preprocessing.push(self.with_batch(tensor));
                }
                Some(To::Llm(name)) => {
                    tensor.name = name.to_owned();
                    llm.push(self.with_batch(tensor));
                }
                _ => {}
            }
        }
        (preprocessing, llm)
    }

    /// Tensors that were declared with a reshape arrive without their last dimension.
    fn with_batch(&self, mut tensor: NamedTensor) -> NamedTensor {
        if tensor.shape.len() == 1 {
            tensor.shape = vec![self.batch as i64, tensor.data.len() as i64 / self.batch as i64];
        }
        tensor
    }

    /// The one response of a model.
    pub(super) fn only(&self, model: &str, inputs: Vec<NamedTensor>, outputs: Vec<String>) -> Result<Vec<NamedTensor>> {
        let mut responses = self.models.call(Inner { model: model.to_owned(), inputs, outputs })?;
        let first =
            responses.next().unwrap_or_else(|| Err(Error::internal(format!("model {model:?} sent no response"))));
        // The request is over when the model says so, not with its first response.
        responses.for_each(drop);
        first
    }

    /// A response of the LLM with the text in place of the tokens, and the number of its rows.
    fn texts(&mut self, response: Vec<NamedTensor>) -> Result<(Vec<NamedTensor>, usize)> {
        let index = |name: &str| -> Result<i32> {
            let given = present(&response, name).map(NamedTensor::to_i32).transpose()?;
            Ok(given.and_then(|values| values.first().copied()).unwrap_or(0))
        };
        let (batch_index, sequence_index) = (index("batch_index")?, index("sequence_index")?);
        let (mut passed, mut ids, mut lengths) = (Vec::with_capacity(response.len()), None, None);
        for tensor in response {
            match tensor.name.as_str() {
                "output_ids" => ids = Some(tensor),
                "sequence_length" => lengths = Some(tensor),
                "context_phase_params" | "text_output" => {}
                _ => passed.push(tensor),
            }
        }
        let model = &self.settings.llm;
        let mut ids = ids.ok_or_else(|| missing_output(model, "output_ids"))?;
        let mut lengths = lengths.ok_or_else(|| missing_output(model, "sequence_length"))?;
        let accumulate = self.settings.accumulate && self.settings.decoupled;
        if accumulate {
            (ids, lengths) = self.accumulate((batch_index, sequence_index), &ids, &lengths)?;
        }
        (ids.name, lengths.name) = ("TOKENS_BATCH".to_owned(), "SEQUENCE_LENGTH".to_owned());
        let rows = lengths.data.len();
        let postprocessing = &self.settings.postprocessing;
        let texts = self.detokenize(vec![ids, lengths], &passed)?;
        let texts = present(&texts, "OUTPUT").ok_or_else(|| missing_output(postprocessing, "OUTPUT"))?;
        let cut = |(row, text): (usize, &str)| {
            let key: RowKey = (batch_index, sequence_index, row);
            if self.streaming && !accumulate {
                return self.stops.piece(key, text.to_owned()).into_bytes();
            }
            let prompt =
                self.prompts.get(batch_index.max(0) as usize).filter(|prompt| text.starts_with(prompt.as_str()));
            self.stops.whole(key, text.to_owned(), prompt.map_or(0, String::len)).into_bytes()
        };
        let texts: Vec<_> = texts.to_strings()?.into_iter().enumerate().map(cut).collect();
        let text = NamedTensor::new("text_output", [texts.len() as i64], TensorData::Bytes(texts));
        passed.insert(0, text);
        Ok((passed, rows))
    }

    /// What the postprocessing model makes of its inputs.
    fn detokenize(&self, mut inputs: Vec<NamedTensor>, passed: &[NamedTensor]) -> Result<Vec<NamedTensor>> {
        let model = &self.settings.postprocessing;
        let call = |inputs| self.only(model, inputs, vec!["OUTPUT".to_owned()]);
        let told =
            |(name, to): (&str, &str)| Some(NamedTensor { name: to.to_owned(), ..present(passed, name)?.clone() });
        let log_probs: Vec<_> = LOG_PROBS.into_iter().filter_map(told).collect();
        // Up to version 0.9 the LLM tells them unasked, as the model cannot do without. Where they were asked for, the
        // server's refusal says that it is such a model.
        if self.settings.before_logits || !self.log_probs || log_probs.is_empty() {
            inputs.extend(log_probs);
            return call(inputs);
        }
        match call(inputs.clone()) {
            Err(error) if error.message().contains(LOG_PROBS[0].1) => {
                inputs.extend(log_probs);
                call(inputs)
            }
            texts => texts,
        }
    }

    /// All tokens so far, and their number.
    fn accumulate(
        &mut self,
        key: (i32, i32),
        ids: &NamedTensor,
        lengths: &NamedTensor,
    ) -> Result<(NamedTensor, NamedTensor)> {
        let (&[1, 1, width], &[length]) = (&ids.shape[..], &lengths.to_i32()?[..]) else {
            return Err(Error::invalid(format!(
                "accumulate_tokens needs one row of tokens in each response, a beam width of 1; got shape {:?}",
                ids.shape
            )));
        };
        let all = self.tokens.entry(key).or_default();
        all.extend(ids.to_i32()?.iter().take(length.clamp(0, width as i32) as usize));
        let total = all.len();
        Ok((
            NamedTensor::new("output_ids", [1, 1, total as i64], TensorData::I32(all.clone())),
            NamedTensor::new("sequence_length", [1, 1], TensorData::I32(vec![total as i32])),
        ))
    }
}

/// Outputs of the LLM that `postprocessing` took up to version 0.13.
const LOG_PROBS: [(&str, &str); 2] = [("cum_log_probs", "CUM_LOG_PROBS"), ("output_log_probs", "OUTPUT_LOG_PROBS")];

fn missing_output(model: &str, name: &str) -> Error {
    Error::internal(format!("model {model:?} answered without the output {name:?}"))
}

/// The tensor, if it has an element.
pub(super) fn present<'a>(tensors: &'a [NamedTensor], name: &str) -> Option<&'a NamedTensor> {
    tensors.iter().find(|tensor| tensor.name == name && !tensor.data.is_empty())
}

fn flag(inputs: &[NamedTensor], name: &str) -> Result<bool> {
    let flags = present(inputs, name).map(NamedTensor::to_bool).transpose()?;
    Ok(flags.is_some_and(|flags| flags.first() == Some(&true)))
}

fn is_nothing(tensor: &NamedTensor) -> bool {
    match &tensor.data {
        TensorData::Bool(values) => values.iter().all(|value| !value),
        TensorData::Bytes(values) => values.iter().all(Vec::is_empty),
        _ => tensor.to_i32().is_ok_and(|values| values.iter().all(|&value| value == 0)) || tensor.data.is_empty(),
    }
}

/// The stop words of each batch item.
fn stop_words(inputs: &[NamedTensor], batch: usize) -> Result<Vec<Vec<String>>> {
    let Some(words) = present(inputs, "stop_words") else { return Ok(vec![Vec::new(); batch]) };
    let texts = words.to_strings()?;
    if texts.len() % batch != 0 {
        return Err(Error::invalid(format!("stop_words has shape {:?}, expected {batch} rows", words.shape)));
    }
    let row = |row: &[&str]| row.iter().map(|word| (*word).to_owned()).collect();
    Ok(texts.chunks(texts.len() / batch).map(row).collect())
}

#[cfg(test)]
mod tests;
