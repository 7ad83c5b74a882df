//! The role `postprocessing`: token tensors of the LLM to text.

use std::sync::Arc;

use serde_json::Value;

use crate::adapter::roles::{Parameters, find, flag, load_tokenizer, refuse_unknown, require};
use crate::adapter::tensor::{NamedTensor, TensorData};
use crate::config::ModelRole;
use crate::error::{Error, Result};
use crate::tensors::text::{HANDED_ON, POSTPROCESSING_INPUTS};
use crate::tensors::{OldVersion, Row};
use crate::text::Tokenizer;

/// Detokenizes, with the tensor names of TensorRT-LLM's `postprocessing` model.
pub struct Postprocessor {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    /// Rows come without lengths, as version 0.5 had them.
    whole_rows: bool,
    /// Declared outputs that hand an input on; without the input they are a zero.
    handed_on: Vec<&'static str>,
}

impl Postprocessor {
    /// Takes the parameters `tokenizer_dir` and `skip_special_tokens` (default true).
    ///
    /// # Errors
    /// The tokenizer cannot be loaded.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        Ok(Self::with_tokenizer(load_tokenizer(parameters)?, flag(parameters, "skip_special_tokens")))
    }

    /// The same with a tokenizer that others share.
    pub fn with_tokenizer(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, whole_rows: false, handed_on: Vec::new() }
    }

    /// The same for what a configuration declares.
    pub fn configured(self, config: &Value) -> Self {
        let declared = |name: &str| config["output"].as_array()?.iter().find(|output| output["name"] == name);
        let handed_on = HANDED_ON.iter().map(|(_, name)| *name).filter(|name| declared(name).is_some());
        let old = OldVersion::of(ModelRole::Postprocessing, config);
        Self { whole_rows: old == Some(OldVersion::WholeRows), handed_on: handed_on.collect(), ..self }
    }

    /// `TOKENS_BATCH [batch, beams, tokens]` and `SEQUENCE_LENGTH [batch, beams]` to `OUTPUT`, a flat array of
    /// `batch * beams` texts: each of the first `SEQUENCE_LENGTH` tokens of its row. Log-probabilities, logits and the
    /// batch index come out as they went in. Where a configuration of version 0.5 has no lengths, a row ends before the -1
    /// at its end.
    ///
    /// # Errors
    /// InvalidArg naming the input that is missing, unknown or malformed.
    pub fn run(&self, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>> {
        refuse_unknown(inputs, POSTPROCESSING_INPUTS.iter().chain(HANDED_ON.iter().map(|(row, _)| row)))?;
        let tokens = require(inputs, "TOKENS_BATCH")?;
        let ids = tokens.to_i32()?;
        let (width, leading) = match tokens.shape.split_last() {
            Some((&width, leading)) => (width.max(0) as usize, leading),
            None => return Err(Error::invalid("input `TOKENS_BATCH` must have the shape [batch, beams, tokens]")),
        };
        let count = leading.iter().product::<i64>().max(0) as usize;
        let lengths = match find(inputs, "SEQUENCE_LENGTH") {
            None if self.whole_rows => (0..count).map(|row| unpadded(&ids[row * width..][..width])).collect(),
            _ => given_lengths(require(inputs, "SEQUENCE_LENGTH")?, tokens, count, width)?,
        };
        let text = |(row, &length): (usize, &usize)| self.decode(&ids[row * width..][..length]);
        let texts: Vec<_> = lengths.iter().enumerate().map(text).collect::<Result<_>>()?;
        let text = NamedTensor::new("OUTPUT", [texts.len() as i64], TensorData::Bytes(texts));
        let renamed = |(row, name): &(Row, &str)| {
            let zero = || self.handed_on.contains(name).then(|| zero(row));
            let input = find(inputs, row.0).cloned().or_else(zero)?;
            Some(NamedTensor { name: (*name).to_owned(), ..input })
        };
        Ok(std::iter::once(text).chain(HANDED_ON.iter().filter_map(renamed)).collect())
    }

    fn decode(&self, ids: &[i32]) -> Result<Vec<u8>> {
        match ids.iter().find(|&&id| id < 0) {
            Some(id) => Err(Error::invalid(format!("input `TOKENS_BATCH` has the token {id}, expected 0 or more"))),
            None => Ok(self.tokenizer.decode(ids, self.skip_special_tokens).into_bytes()),
        }
    }
}

/// One zero in the type of an input, as upstream's clients get it where there is nothing to hand on.
fn zero(&(name, data_type, dims, _): &Row) -> NamedTensor {
    let data = if data_type == "TYPE_INT32" { TensorData::I32(vec![0]) } else { TensorData::F32(vec![0.0]) };
    NamedTensor::new(name, vec![1; dims.len() + 1], data)
}

/// The length of a row without its padding.
fn unpadded(row: &[i32]) -> usize {
    row.iter().rposition(|&id| id != -1).map_or(0, |last| last + 1)
}

/// `SEQUENCE_LENGTH` of the `count` rows of `width` tokens.
fn given_lengths(lengths: &NamedTensor, tokens: &NamedTensor, count: usize, width: usize) -> Result<Vec<usize>> {
    let values = lengths.to_i32()?;
    if values.len() != count {
        return Err(Error::invalid(format!(
            "inputs `TOKENS_BATCH` of shape {:?} and `SEQUENCE_LENGTH` of shape {:?} must have as many rows",
            tokens.shape, lengths.shape
        )));
    }
    let length = |&length: &i32| {
        usize::try_from(length).ok().filter(|&length| length <= width).ok_or_else(|| {
            Error::invalid(format!(
                "input `SEQUENCE_LENGTH` is {length}, expected 0 to the {width} tokens of `TOKENS_BATCH`"
            ))
        })
    };
    values.iter().map(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing;

    fn i32s(name: &str, shape: &[i64], values: &[i32]) -> NamedTensor {
        NamedTensor::new(name, shape, TensorData::I32(values.to_vec()))
    }

    fn run(skip_special_tokens: bool, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>> {
        let tokenizer = Arc::new(testing::tokenizer(&testing::byte_level()));
        Postprocessor::with_tokenizer(tokenizer, skip_special_tokens).run(inputs)
    }

    #[test]
    fn the_result_is_one_text_per_beam_without_a_batch_dimension() {
        let tokens = i32s("TOKENS_BATCH", &[2, 2, 3], &[72, 105, 33, 0x80, 0, 0, 97, 98, 99, 9, 9, 9]);
        let outputs = run(true, &[tokens, i32s("SEQUENCE_LENGTH", &[2, 2], &[2, 1, 3, 0])]).unwrap();
        let texts = [&b"Hi"[..], "\u{FFFD}".as_bytes(), b"abc", b""].map(<[u8]>::to_vec).to_vec();
        assert_eq!(outputs, [NamedTensor::new("OUTPUT", [4], TensorData::Bytes(texts))]);
    }

    #[test]
    fn special_tokens_are_skipped_unless_asked_for() {
        let end = testing::tokenizer(&testing::byte_level()).token_to_id("<|end|>").unwrap();
        for (skip, text) in [(true, "a"), (false, "a<|end|>")] {
            let inputs = [i32s("TOKENS_BATCH", &[1, 1, 2], &[97, end]), i32s("SEQUENCE_LENGTH", &[1, 1], &[2])];
            assert_eq!(run(skip, &inputs).unwrap()[0].data, TensorData::Bytes(vec![text.as_bytes().to_vec()]));
        }
    }

    #[test]
    fn an_empty_response_is_an_empty_text() {
        let inputs = [i32s("TOKENS_BATCH", &[1, 1, 0], &[]), i32s("SEQUENCE_LENGTH", &[1, 1], &[0])];
        assert_eq!(run(true, &inputs).unwrap()[0].data, TensorData::Bytes(vec![vec![]]));
    }

    #[test]
    fn malformed_requests_are_refused_by_the_name_of_the_input() {
        let tokens = i32s("TOKENS_BATCH", &[1, 1, 2], &[1, -1]);
        let lengths = |value| i32s("SEQUENCE_LENGTH", &[1, 1], &[value]);
        for (inputs, message) in [
            (vec![tokens.clone()], "`SEQUENCE_LENGTH` is missing"),
            (vec![tokens.clone(), lengths(3)], "`SEQUENCE_LENGTH` is 3"),
            (vec![tokens.clone(), lengths(-1)], "`SEQUENCE_LENGTH` is -1"),
            (vec![tokens.clone(), lengths(2)], "`TOKENS_BATCH` has the token -1"),
            (vec![tokens.clone(), i32s("SEQUENCE_LENGTH", &[2], &[1, 1])], "as many rows"),
            (vec![tokens.clone(), lengths(1), i32s("LOG_PROBS", &[1], &[1])], "`LOG_PROBS` is unknown"),
        ] {
            let error = run(true, &inputs).unwrap_err();
            assert!(error.message().contains(message), "{error}");
        }
    }
}
