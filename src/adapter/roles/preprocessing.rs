//! The role `preprocessing`: text to the token tensors that the LLM takes.

use std::sync::Arc;

use serde_json::Value;

use crate::adapter::roles::{Parameters, find, flag, load_tokenizer, parameter, refuse_unknown, require};
use crate::adapter::tensor::{NamedTensor, TensorData};
use crate::adapter::tokenizer::encode_prompt;
use crate::config::ModelRole;
use crate::error::{Error, Result, ResultExt};
use crate::ids::TokenId;
use crate::tensors::OldVersion;
use crate::tensors::text::{PREPROCESSING_INPUTS, VISION_INPUTS};
use crate::text::{Tokenizer, embedding_bias, encode_word_line, encode_words, pack_words};

/// Tokenizes prompts, word lists and bias words, with the tensor names of TensorRT-LLM's `preprocessing` model.
pub struct Preprocessor {
    tokenizer: Arc<Tokenizer>,
    add_special_tokens: bool,
    end_id: TokenId,
    pad_id: TokenId,
    /// Words come as version 0.5 had them, comma-separated in one text.
    word_lines: bool,
}

impl Preprocessor {
    /// Takes the parameters `tokenizer_dir` and `add_special_tokens` (default true).
    ///
    /// # Errors
    /// The tokenizer cannot be loaded or has no end-of-sequence token. Unsupported if a multimodal model is set.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        for key in ["multimodal_model_path", "visual_model_path"] {
            if let Some(path) = parameter(parameters, key) {
                return Err(Error::unsupported(format!(
                    "parameter `{key}` is {path:?}: only text prompts are supported"
                )));
            }
        }
        Self::with_tokenizer(load_tokenizer(parameters)?, flag(parameters, "add_special_tokens"))
    }

    /// The same with a tokenizer that others share.
    ///
    /// # Errors
    /// The tokenizer has no end-of-sequence token.
    pub fn with_tokenizer(tokenizer: Arc<Tokenizer>, add_special_tokens: bool) -> Result<Self> {
        let (Some(eos), Some(pad)) = (tokenizer.eos(), tokenizer.pad()) else {
            return Err(Error::invalid(
                "the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json",
            ));
        };
        let (end_id, pad_id) = (eos.id, pad.id);
        Ok(Self { tokenizer, add_special_tokens, end_id, pad_id, word_lines: false })
    }

    /// The same for what a configuration declares.
    pub fn configured(self, config: &Value) -> Self {
        let old = OldVersion::of(ModelRole::Preprocessing, config);
        Self { word_lines: old == Some(OldVersion::WordLines), ..self }
    }

    /// The outputs for the inputs of one request, a batch of prompts `[batch, 1]`.
    ///
    /// # Errors
    /// InvalidArg naming the input that is missing, unknown or malformed; Unsupported for images.
    pub fn run(&self, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>> {
        refuse_unknown(inputs, PREPROCESSING_INPUTS.iter().chain(VISION_INPUTS))?;
        if let Some(input) = inputs.iter().find(|input| VISION_INPUTS.iter().any(|row| row.0 == input.name)) {
            return Err(Error::unsupported(format!("input `{}`: only text prompts are supported", input.name)));
        }
        let query = require(inputs, "QUERY")?;
        let batch = query.rows();
        let prompts = self.encode_prompts(query, batch)?;
        let decoder = match find(inputs, "DECODER_QUERY") {
            Some(query) => self.encode_prompts(query, batch)?,
            None => vec![vec![self.pad_id]; batch],
        };
        let output_len = require(inputs, "REQUEST_OUTPUT_LEN")?;
        let mut outputs = vec![
            self.padded("INPUT_ID", &prompts),
            self.padded("DECODER_INPUT_ID", &decoder),
            lengths("REQUEST_INPUT_LEN", &prompts),
            lengths("REQUEST_DECODER_INPUT_LEN", &decoder),
            self.words("BAD_WORDS_IDS", find(inputs, "BAD_WORDS_DICT"), batch)?,
            self.words("STOP_WORDS_IDS", find(inputs, "STOP_WORDS_DICT"), batch)?,
            self.bias(inputs, batch)?,
            i32s("REQUEST_OUTPUT_LEN", output_len.shape.clone(), output_len.to_i32()?),
            token_or(find(inputs, "END_ID"), "OUT_END_ID", self.end_id, batch)?,
            token_or(find(inputs, "PAD_ID"), "OUT_PAD_ID", self.pad_id, batch)?,
        ];
        if let Some(extra_id) = find(inputs, "PROMPT_TABLE_EXTRA_ID") {
            outputs.push(self.extra_ids(extra_id, &prompts)?);
        }
        Ok(outputs)
    }

    fn encode_prompts(&self, query: &NamedTensor, batch: usize) -> Result<Vec<Vec<TokenId>>> {
        let texts = query.to_strings()?;
        if texts.len() != batch || query.rows() != batch || batch == 0 {
            let (name, shape) = (&query.name, &query.shape);
            return Err(Error::invalid(format!(
                "input `{name}` must have one prompt per batch item, [{}, 1], got shape {shape:?}",
                batch.max(1)
            )));
        }
        let encode = |text: &&str| encode_prompt(&self.tokenizer, text, self.add_special_tokens);
        texts.iter().map(encode).collect::<Result<_>>().context(format_args!("input `{}`", query.name))
    }

    /// Rows padded on the right with the tokenizer's padding id to the longest, whatever PAD_ID the client sent.
    fn padded(&self, name: &str, rows: &[Vec<TokenId>]) -> NamedTensor {
        let len = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * len);
        for (row, tokens) in rows.iter().enumerate() {
            ids.extend(tokens);
            ids.resize((row + 1) * len, self.pad_id);
        }
        i32s(name, [rows.len() as i64, len as i64], ids)
    }

    fn words(&self, name: &str, input: Option<&NamedTensor>, batch: usize) -> Result<NamedTensor> {
        let Some(input) = input else { return Ok(i32s(name, [batch as i64, 2, 0], Vec::new())) };
        let texts = input.to_strings()?;
        let lists = rows(input, &texts, batch)?.map(|words| self.encode_words(words));
        let packed = pack_words(&lists.collect::<Result<Vec<_>>>().context(format_args!("input `{}`", input.name))?);
        Ok(i32s(name, [batch as i64, 2, packed.len as i64], packed.values))
    }

    fn encode_words(&self, words: &[&str]) -> Result<Vec<Vec<TokenId>>> {
        if !self.word_lines {
            return encode_words(&self.tokenizer, words);
        }
        let lines = words.iter().map(|line| encode_word_line(&self.tokenizer, line));
        Ok(lines.collect::<Result<Vec<_>>>()?.concat())
    }

    fn bias(&self, inputs: &[NamedTensor], batch: usize) -> Result<NamedTensor> {
        let (words, weights) = (find(inputs, "EMBEDDING_BIAS_WORDS"), find(inputs, "EMBEDDING_BIAS_WEIGHTS"));
        let (Some(words), Some(weights)) = (words, weights) else {
            return Ok(NamedTensor::new("EMBEDDING_BIAS", [batch as i64, 0], TensorData::F32(Vec::new())));
        };
        let (texts, values) = (words.to_strings()?, weights.to_f32()?);
        let mut bias = Vec::with_capacity(batch * self.tokenizer.vocab_size());
        for (words, weights) in rows(words, &texts, batch)?.zip(rows(weights, &values, batch)?) {
            bias.extend(embedding_bias(&self.tokenizer, words, weights)?);
        }
        let shape = [batch as i64, self.tokenizer.vocab_size() as i64];
        Ok(NamedTensor::new("EMBEDDING_BIAS", shape, TensorData::F32(bias)))
    }

    /// Per token of the padded prompts: the client's id where the token stands for a row of the prompt table, else 0.
    fn extra_ids(&self, input: &NamedTensor, prompts: &[Vec<TokenId>]) -> Result<NamedTensor> {
        let ids = input.to_u64()?;
        if ids.len() != prompts.len() || input.rows() != prompts.len() {
            let (name, shape, batch) = (&input.name, &input.shape, prompts.len());
            return Err(Error::invalid(format!(
                "input `{name}` must have one id per batch item, [{batch}, 1], got shape {shape:?}"
            )));
        }
        let len = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let mut extra = vec![0; prompts.len() * len];
        for (row, (prompt, id)) in prompts.iter().zip(ids).enumerate() {
            for (column, &token) in prompt.iter().enumerate() {
                if token as usize >= self.tokenizer.vocab_size() {
                    extra[row * len + column] = id;
                }
            }
        }
        let shape = [prompts.len() as i64, len as i64];
        Ok(NamedTensor::new("OUT_PROMPT_TABLE_EXTRA_IDS", shape, TensorData::U64(extra)))
    }
}

fn i32s(name: &str, shape: impl Into<Vec<i64>>, values: Vec<i32>) -> NamedTensor {
    NamedTensor::new(name, shape, TensorData::I32(values))
}

fn lengths(name: &str, rows: &[Vec<TokenId>]) -> NamedTensor {
    i32s(name, [rows.len() as i64, 1], rows.iter().map(|row| row.len() as i32).collect())
}

/// The client's tensor unchanged but for its name, else `default` for each batch item.
fn token_or(input: Option<&NamedTensor>, name: &str, default: TokenId, batch: usize) -> Result<NamedTensor> {
    Ok(match input {
        Some(input) => i32s(name, input.shape.clone(), input.to_i32()?),
        None => i32s(name, [batch as i64, 1], vec![default; batch]),
    })
}

/// The elements of each batch item.
fn rows<'a, T>(
    input: &NamedTensor,
    values: &'a [T],
    batch: usize,
) -> Result<impl Iterator<Item = &'a [T]> + use<'a, T>> {
    if input.rows() != batch && !(batch == 1 && input.shape.len() == 1) {
        let (name, shape) = (&input.name, &input.shape);
        return Err(Error::invalid(format!("input `{name}` must have {batch} rows like `QUERY`, got shape {shape:?}")));
    }
    let width = values.len() / batch;
    Ok((0..batch).map(move |row| &values[row * width..(row + 1) * width]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::text::TokenizerFiles;
    use crate::text::testing;

    fn preprocessor() -> Preprocessor {
        let files = TokenizerFiles {
            tokenizer: testing::byte_level().to_string().into(),
            tokenizer_config: Some(r#"{"eos_token": "<|end|>", "pad_token": "<|begin|>"}"#.into()),
            ..Default::default()
        };
        Preprocessor::with_tokenizer(Arc::new(Tokenizer::new(&files).unwrap()), true).unwrap()
    }

    fn strings(name: &str, shape: &[i64], texts: &[&str]) -> NamedTensor {
        let texts = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        NamedTensor::new(name, shape, TensorData::Bytes(texts))
    }

    /// A request for these prompts with `more` inputs.
    fn request(prompts: &[&str], more: Vec<NamedTensor>) -> Vec<NamedTensor> {
        let shape = [prompts.len() as i64, 1];
        let output_len = i32s("REQUEST_OUTPUT_LEN", shape, vec![7; prompts.len()]);
        [vec![strings("QUERY", &shape, prompts), output_len], more].concat()
    }

    fn output(inputs: &[NamedTensor], name: &str) -> NamedTensor {
        let mut outputs = preprocessor().run(inputs).unwrap();
        let index = outputs.iter().position(|output| output.name == name).unwrap();
        outputs.swap_remove(index)
    }

    #[test]
    fn prompts_are_padded_on_the_right_with_the_pad_token() {
        let (pad, inputs) = (preprocessor().pad_id, request(&["abc", "d"], vec![i32s("PAD_ID", [2, 1], vec![9, 9])]));
        assert_eq!(output(&inputs, "INPUT_ID"), i32s("INPUT_ID", [2, 3], vec![97, 98, 99, 100, pad, pad]));
        assert_eq!(output(&inputs, "REQUEST_INPUT_LEN"), i32s("REQUEST_INPUT_LEN", [2, 1], vec![3, 1]));
        assert_eq!(output(&inputs, "OUT_PAD_ID"), i32s("OUT_PAD_ID", [2, 1], vec![9, 9]));
    }

    #[test]
    fn every_optional_input_has_its_default() {
        let (inputs, pre) = (request(&["a", "b"], vec![]), preprocessor());
        let (end, pad) = (pre.end_id, pre.pad_id);
        let expected = [
            i32s("INPUT_ID", [2, 1], vec![97, 98]),
            i32s("DECODER_INPUT_ID", [2, 1], vec![pad, pad]),
            i32s("REQUEST_INPUT_LEN", [2, 1], vec![1, 1]),
            i32s("REQUEST_DECODER_INPUT_LEN", [2, 1], vec![1, 1]),
            i32s("BAD_WORDS_IDS", [2, 2, 0], vec![]),
            i32s("STOP_WORDS_IDS", [2, 2, 0], vec![]),
            NamedTensor::new("EMBEDDING_BIAS", [2, 0], TensorData::F32(vec![])),
            i32s("REQUEST_OUTPUT_LEN", [2, 1], vec![7, 7]),
            i32s("OUT_END_ID", [2, 1], vec![end, end]),
            i32s("OUT_PAD_ID", [2, 1], vec![pad, pad]),
        ];
        assert_eq!(pre.run(&inputs).unwrap(), expected);
        assert_ne!(end, pad);
    }

    #[test]
    fn word_lists_are_packed_per_batch_item() {
        let stops = strings("STOP_WORDS_DICT", &[2, 2], &["ab", "c", "", "d"]);
        let expected = vec![97, 98, 99, 2, 3, -1, 100, 0, 0, 1, -1, -1];
        let inputs = request(&["x", "y"], vec![stops, strings("BAD_WORDS_DICT", &[2, 1], &["", ""])]);
        assert_eq!(output(&inputs, "STOP_WORDS_IDS"), i32s("STOP_WORDS_IDS", [2, 2, 3], expected));
        assert_eq!(output(&inputs, "BAD_WORDS_IDS"), i32s("BAD_WORDS_IDS", [2, 2, 1], vec![0, -1, 0, -1]));
    }

    #[test]
    fn bias_words_need_as_many_weights() {
        let weights = |values: &[f32]| {
            NamedTensor::new("EMBEDDING_BIAS_WEIGHTS", [1, values.len() as i64], TensorData::F32(values.to_vec()))
        };
        let words = strings("EMBEDDING_BIAS_WORDS", &[1, 2], &["a", "ab"]);
        let bias = output(&request(&["x"], vec![words.clone(), weights(&[1.0, 2.0])]), "EMBEDDING_BIAS");
        let TensorData::F32(values) = &bias.data else { panic!("{bias:?}") };
        assert_eq!((values[97], values[98], values[99]), (3.0, 2.0, 0.0));
        assert_eq!(bias.shape, [1, values.len() as i64]);
        let error = preprocessor().run(&request(&["x"], vec![words, weights(&[1.0])])).unwrap_err();
        assert!(error.message().contains("2 words but 1 weights"), "{error}");
    }

    #[test]
    fn end_ids_of_the_client_pass_through_whatever_their_declared_type() {
        let end = NamedTensor::new("END_ID", [1, 1], TensorData::U32(vec![50256]));
        assert_eq!(output(&request(&["x"], vec![end]), "OUT_END_ID"), i32s("OUT_END_ID", [1, 1], vec![50256]));
    }

    #[test]
    fn extra_ids_mark_the_rows_of_the_prompt_table() {
        let extra = NamedTensor::new("PROMPT_TABLE_EXTRA_ID", [1, 1], TensorData::U64(vec![5]));
        let out = output(&request(&["xy"], vec![extra]), "OUT_PROMPT_TABLE_EXTRA_IDS");
        assert_eq!((out.shape, out.data), (vec![1, 2], TensorData::U64(vec![0, 0])));
        let two = NamedTensor::new("PROMPT_TABLE_EXTRA_ID", [1, 2], TensorData::U64(vec![5, 6]));
        let error = preprocessor().run(&request(&["xy"], vec![two])).unwrap_err();
        assert!(error.message().contains("one id per batch item"), "{error}");
    }

    #[test]
    fn malformed_requests_are_refused_by_the_name_of_the_input() {
        let bad_utf8 = NamedTensor::new("STOP_WORDS_DICT", [1, 1], TensorData::Bytes(vec![vec![0xC3]]));
        for (inputs, name) in [
            (vec![], "`QUERY` is missing"),
            (vec![strings("QUERY", &[1, 1], &["a"])], "`REQUEST_OUTPUT_LEN` is missing"),
            (request(&["a"], vec![strings("STOP", &[1, 1], &["a"])]), "`STOP` is unknown"),
            (request(&["a"], vec![strings("IMAGE_URL", &[1, 1], &["a"])]), "`IMAGE_URL`: only text"),
            (request(&["a"], vec![bad_utf8]), "`STOP_WORDS_DICT` is not valid UTF-8"),
            (
                request(&["a"], vec![strings("BAD_WORDS_DICT", &[2, 1], &["a", "b"])]),
                "`BAD_WORDS_DICT` must have 1 rows",
            ),
            (vec![strings("QUERY", &[1, 2], &["a", "b"]), i32s("REQUEST_OUTPUT_LEN", [1, 1], vec![1])], "`QUERY` must"),
            (vec![strings("QUERY", &[0, 1], &[]), i32s("REQUEST_OUTPUT_LEN", [0, 1], vec![])], "`QUERY` must"),
        ] {
            let error = preprocessor().run(&inputs).unwrap_err();
            assert!(error.message().contains(name), "{error}");
        }
    }

    #[test]
    fn a_tokenizer_without_an_end_token_and_multimodal_models_are_refused_at_load() {
        let tokenizer = Arc::new(testing::tokenizer(&testing::byte_level()));
        let error = Preprocessor::with_tokenizer(tokenizer, true).err().unwrap();
        assert!(error.message().contains("no end-of-sequence token"), "{error}");
        let parameters = Parameters::from([("multimodal_model_path".into(), "/models/llava".into())]);
        assert_eq!(Preprocessor::new(&parameters).err().unwrap().kind(), ErrorKind::Unsupported);
    }
}
