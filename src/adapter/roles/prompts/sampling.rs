//! vLLM's sampling parameters as JSON.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Base, Choice};
use crate::adapter::llm::{Item, Rules};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Most answers to one prompt.
const MAX_ANSWERS: i64 = 256;
const DEFAULT_MAX_TOKENS: i64 = 16;
/// Most tokens that log-probabilities are told of in each place.
const MAX_LOG_PROBS: i64 = 1024;
/// Below this a temperature means greedy.
const GREEDY_BELOW: f64 = 1e-5;

/// Every key and what it does here.
#[rustfmt::skip]
const KEYS: &[(&str, &str)] = &[
    ("n", "answers to the prompt, 1 to 256; default 1"),
    ("best_of", "must equal `n`"),
    ("max_tokens", "most tokens of an answer; default 16, null: as many as fit"),
    ("min_tokens", "no end before this many tokens; default 0"),
    ("temperature", "default 1.0; below 0.00001: greedy"),
    ("top_p", "default 1.0"),
    ("top_k", "default 0; 0 and -1: all"),
    ("min_p", "0 to 1; default 0"),
    ("seed", "default and -1: another one for every request"),
    ("presence_penalty", "of the answer's tokens"),
    ("frequency_penalty", "of the answer's tokens"),
    ("repetition_penalty", "of the prompt's and the answer's tokens"),
    ("stop", "text or list of texts"),
    ("stop_token_ids", "list of token ids"),
    ("include_stop_str_in_output", "whether the text that ended an answer is part of it; default false"),
    ("bad_words", "list of texts"),
    ("ignore_eos", "default false"),
    ("skip_special_tokens", "default true"),
    ("spaces_between_special_tokens", "must be true"),
    ("detokenize", "must be true"),
    ("logit_bias", "object of token id to number, -100 to 100"),
    ("allowed_token_ids", "list of token ids"),
    ("truncate_prompt_tokens", "only the last tokens of the prompt; default and -1: all"),
    ("logprobs", "0 to 1024: of the chosen tokens, and of so many most likely ones in their place; within the whole vocabulary, as the tokens were chosen. `rank` is null where the chosen token is none of them"),
    ("prompt_logprobs", "must be null"),
    ("logits_processors", "must be null"),
    ("guided_decoding", "object with one of `json`, `regex`, `choice`, `grammar`, `json_object`; needs guided decoding"),
    ("structured_outputs", "as `guided_decoding`, an object or its text"),
    ("output_kind", "accepted: `stream` decides"),
    ("extra_args", "must be null"),
    ("lora_name", "refused: LoRA is not enabled"),
];

/// What a request says about its tokens.
#[derive(Debug)]
pub struct VllmSampling {
    pub answers: usize,
    pub include_stop_text: bool,
    pub skip_special_tokens: bool,
    /// Of how many of the most likely tokens the log-probabilities are told beside that of the chosen one; `None`: of no
    /// token at all.
    pub log_probs: Option<i32>,
    choice: Choice,
    max_tokens: i32,
    min_tokens: i32,
    seed: Option<u64>,
    repetition_penalty: f32,
    min_p: f32,
    stop: Vec<String>,
    stop_token_ids: Vec<TokenId>,
    bad_words: Vec<String>,
    ignore_eos: bool,
    logit_bias: Vec<(TokenId, f32)>,
    allowed_token_ids: Option<Vec<TokenId>>,
    truncate_prompt_tokens: Option<usize>,
    guide: Option<(&'static str, String)>,
}

impl VllmSampling {
    /// Reads the parameters; values may be texts, as HTTP clients send them.
    ///
    /// # Errors
    /// `InvalidArg` naming a parameter that is unknown, of another type or out of range; `Unsupported` for one that is
    /// not served.
    pub fn parse(map: &Map<String, Value>) -> Result<Self> {
        if let Some(key) = map.keys().find(|key| !KEYS.iter().any(|(known, _)| known == key)) {
            let known = KEYS.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ");
            return Err(Error::invalid(format!("sampling parameter {key:?} is unknown, expected one of {known}")));
        }
        let read = Reader(map);
        read.refuse_unserved()?;
        let answers = read.int("n", 1, MAX_ANSWERS)?.unwrap_or(1);
        if read.int("best_of", 1, MAX_ANSWERS)?.is_some_and(|best_of| best_of != answers) {
            return Err(Error::unsupported(format!("best_of differs from n, which is {answers}: they must be equal")));
        }
        let choice = read.choice()?;
        let log_probs = read.int("logprobs", 0, MAX_LOG_PROBS)?;
        Ok(Self {
            answers: answers as usize,
            include_stop_text: read.flag("include_stop_str_in_output", false)?,
            skip_special_tokens: read.flag("skip_special_tokens", true)?,
            log_probs: log_probs.map(|count| count as i32),
            choice,
            max_tokens: read.max_tokens()?,
            min_tokens: read.int("min_tokens", 0, i64::from(i32::MAX))?.unwrap_or(0) as i32,
            seed: read.int("seed", -1, i64::MAX)?.filter(|&seed| seed >= 0).map(|seed| seed as u64),
            repetition_penalty: read.number("repetition_penalty")?.unwrap_or(1.0) as f32,
            min_p: read.min_p()?,
            stop: read.texts("stop")?,
            stop_token_ids: read.ids("stop_token_ids")?.unwrap_or_default(),
            bad_words: read.texts("bad_words")?,
            ignore_eos: read.flag("ignore_eos", false)?,
            logit_bias: read.logit_bias()?,
            allowed_token_ids: read.ids("allowed_token_ids")?,
            truncate_prompt_tokens: read
                .int("truncate_prompt_tokens", -1, i64::from(i32::MAX))?
                .filter(|&tokens| tokens > 0)
                .map(|tokens| tokens as usize),
            guide: read.guide()?,
        })
    }

    /// Adds the LLM's own tensors.
    ///
    /// # Errors
    /// `InvalidArg` for what is out of range.
    pub fn base(&self, base: &mut Base) -> Result<()> {
        base.choice(self.choice)?;
        base.ints("request_output_len", vec![self.max_tokens]);
        base.ints("min_tokens", vec![self.min_tokens]);
        // Presence and frequency are those of the answer.
        base.ints("prompt_ignore_length", vec![i32::MAX]);
        base.float("repetition_penalty", self.repetition_penalty);
        if let Some(count) = self.log_probs.filter(|&count| count > 0) {
            base.ints("num_top_log_probs", vec![count]);
        }
        base.seed(self.seed);
        for (name, texts) in [("stop_words", &self.stop), ("bad_words", &self.bad_words)] {
            if !texts.is_empty() {
                base.texts(name, texts);
            }
        }
        if let Some((kind, guide)) = &self.guide {
            base.texts("guided_decoding_guide_type", &[(*kind).to_owned()]);
            if !guide.is_empty() {
                base.texts("guided_decoding_guide", std::slice::from_ref(guide));
            }
        }
        Ok(())
    }

    /// Adds what the LLM has no tensors for.
    ///
    /// # Errors
    /// `InvalidArg` for token ids beyond the vocabulary.
    pub fn adjust(&self, item: &mut Item, rules: &Rules) -> Result<()> {
        let known = |name: &str, id: TokenId| match usize::try_from(id).is_ok_and(|id| id < rules.vocab_size) {
            true => Ok(()),
            false => {
                Err(Error::invalid(format!("{name} has {id}, expected token ids of 0 to {}", rules.vocab_size - 1)))
            }
        };
        for &id in &self.stop_token_ids {
            known("stop_token_ids", id)?;
            item.request.stop.stop_words.push(vec![id]);
        }
        item.request.sampling.min_p = self.min_p;
        // A guided answer ends with the end token.
        if self.ignore_eos && self.guide.is_none() {
            item.request.stop.end_ids.clear();
            item.request.sampling.end_ids.clear();
        }
        if let Some(tokens) = self.truncate_prompt_tokens {
            let prompt = &mut item.request.prompt;
            prompt.drain(..prompt.len().saturating_sub(tokens));
        }
        if self.logit_bias.is_empty() && self.allowed_token_ids.is_none() {
            return Ok(());
        }
        let mut bias = vec![if self.allowed_token_ids.is_some() { f32::NEG_INFINITY } else { 0.0 }; rules.vocab_size];
        for &id in self.allowed_token_ids.iter().flatten() {
            known("allowed_token_ids", id)?;
            bias[id as usize] = 0.0;
        }
        for &(id, value) in &self.logit_bias {
            known("logit_bias", id)?;
            bias[id as usize] += value;
        }
        let bias: Arc<[f32]> = bias.into();
        item.request.sampling.embedding_bias = Some(bias);
        Ok(())
    }
}

/// Reads one parameter after the other; null is absent.
struct Reader<'a>(&'a Map<String, Value>);

impl Reader<'_> {
    fn find(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.find(key) else { return Ok(None) };
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| wrong(key, value, "a number"))
    }

    fn int(&self, key: &str, min: i64, max: i64) -> Result<Option<i64>> {
        let Some(value) = self.find(key) else { return Ok(None) };
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
        let number = value
            .as_i64()
            .or_else(|| value.as_str()?.trim().parse().ok())
            .or_else(|| value.as_f64().and_then(whole))
            .ok_or_else(|| wrong(key, value, "a whole number"))?;
        if (min..=max).contains(&number) {
            return Ok(Some(number));
        }
        Err(wrong(
            key,
            value,
            &if max >= i64::from(i32::MAX) { format!("{min} or more") } else { format!("{min} to {max}") },
        ))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.find(key) else { return Ok(default) };
        match (value.as_bool(), value.as_str().map(str::to_lowercase).as_deref(), value.as_i64()) {
            (Some(flag), ..) => Ok(flag),
            (_, Some("true" | "1"), _) | (_, _, Some(1)) => Ok(true),
            (_, Some("false" | "0"), _) | (_, _, Some(0)) => Ok(false),
            _ => Err(wrong(key, value, "true or false")),
        }
    }

    /// One text or a list of them.
    fn texts(&self, key: &str) -> Result<Vec<String>> {
        let texts = match self.find(key) {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(value) => strings(value).ok_or_else(|| wrong(key, value, "a text or a list of texts"))?,
        };
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    fn ids(&self, key: &str) -> Result<Option<Vec<TokenId>>> {
        let Some(value) = self.find(key) else { return Ok(None) };
        let id = |value: &Value| value.as_i64().and_then(|id| TokenId::try_from(id).ok());
        let ids = value.as_array().and_then(|values| values.iter().map(id).collect::<Option<Vec<_>>>());
        ids.map(Some).ok_or_else(|| wrong(key, value, "a list of token ids"))
    }

    fn min_p(&self) -> Result<f32> {
        match self.number("min_p")?.unwrap_or(0.0) {
            min_p if (0.0..=1.0).contains(&min_p) => Ok(min_p as f32),
            min_p => Err(Error::invalid(format!("min_p is {min_p}, expected 0 to 1"))),
        }
    }

    fn max_tokens(&self) -> Result<i32> {
        if self.0.get("max_tokens") == Some(&Value::Null) {
            return Ok(i32::MAX);
        }
        Ok(self.int("max_tokens", 1, i64::from(i32::MAX))?.unwrap_or(DEFAULT_MAX_TOKENS) as i32)
    }

    fn choice(&self) -> Result<Choice> {
        let temperature = self.number("temperature")?.unwrap_or(1.0);
        Ok(Choice {
            greedy: (0.0..GREEDY_BELOW).contains(&temperature),
            temperature: temperature as f32,
            top_k: self.int("top_k", -1, i64::from(i32::MAX))?.unwrap_or(0).max(0) as i32,
            top_p: self.number("top_p")?.unwrap_or(1.0) as f32,
            presence_penalty: self.number("presence_penalty")?.unwrap_or(0.0) as f32,
            frequency_penalty: self.number("frequency_penalty")?.unwrap_or(0.0) as f32,
        })
    }

    fn logit_bias(&self) -> Result<Vec<(TokenId, f32)>> {
        let Some(value) = self.find("logit_bias") else { return Ok(Vec::new()) };
        let pair =
            |(id, value): (&String, &Value)| Some((id.parse().ok()?, value.as_f64()?.clamp(-100.0, 100.0) as f32));
        let pairs = value.as_object().and_then(|map| map.iter().map(pair).collect::<Option<Vec<_>>>());
        pairs.ok_or_else(|| wrong("logit_bias", value, "an object of token ids to numbers"))
    }

    /// Kind and text of a guide, in the words of the LLM's own tensors.
    fn guide(&self) -> Result<Option<(&'static str, String)>> {
        let keys = ["structured_outputs", "guided_decoding"];
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, self.find(key)?))) else { return Ok(None) };
        let parsed = value.as_str().map(serde_json::from_str::<Value>);
        let value = match &parsed {
            Some(Ok(value)) => value,
            Some(Err(error)) => return Err(Error::invalid(format!("{key} is not valid JSON: {error}"))),
            None => value,
        };
        let map = value.as_object().ok_or_else(|| wrong(key, value, "a JSON object"))?;
        let has = |name: &&str| map.get(*name).is_some_and(|value| !value.is_null() && value != &Value::Bool(false));
        let kinds: Vec<_> = ["json", "regex", "choice", "grammar", "json_object"].into_iter().filter(has).collect();
        let &[kind] = &kinds[..] else {
            return Err(wrong(key, value, "one of json, regex, choice, grammar and json_object"));
        };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(Some(match kind {
            "json" => ("json_schema", text(&map[kind])),
            "regex" => ("regex", text(&map[kind])),
            "grammar" => ("ebnf_grammar", text(&map[kind])),
            "choice" => {
                strings(&map[kind]).ok_or_else(|| wrong("choice", &map[kind], "a list of texts"))?;
                ("choice", map[kind].to_string())
            }
            _ => ("json", String::new()),
        }))
    }

    fn refuse_unserved(&self) -> Result<()> {
        if let Some(name) = self.find("lora_name") {
            return Err(Error::unsupported(format!("LoRA feature is not enabled. (lora_name is {name})")));
        }
        for key in ["prompt_logprobs", "logits_processors", "extra_args"] {
            if let Some(value) = self.find(key) {
                return Err(Error::unsupported(format!("{key} is {value}: not supported by this version")));
            }
        }
        for key in ["detokenize", "spaces_between_special_tokens"] {
            if !self.flag(key, true)? {
                return Err(Error::unsupported(format!("{key} is false: not supported by this version")));
            }
        }
        Ok(())
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    Error::invalid(format!("{key} is {value}, expected {expected}"))
}

/// The table of the documentation.
pub fn markdown() -> String {
    let mut text = String::from("| Key | Meaning |\n|---|---|\n");
    for (key, meaning) in KEYS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{key}` | {meaning} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: Value) -> Result<VllmSampling> {
        VllmSampling::parse(json.as_object().unwrap())
    }

    #[test]
    fn s9_defaults_are_those_of_vllm() {
        let sampling = parse(serde_json::json!({})).unwrap();
        assert_eq!((sampling.answers, sampling.max_tokens, sampling.seed), (1, 16, None));
        let Choice { greedy, temperature, top_k, top_p, .. } = sampling.choice;
        assert_eq!((greedy, temperature, top_k, top_p), (false, 1.0, 0, 1.0));
        assert!(sampling.skip_special_tokens && !sampling.include_stop_text && sampling.log_probs.is_none());
    }

    #[test]
    fn s9_values_may_be_texts() {
        let json = serde_json::json!({
            "temperature": "0", "max_tokens": "5", "top_k": -1, "ignore_eos": "true", "stop": "x", "seed": 7.0,
            "presence_penalty": null
        });
        let sampling = parse(json).unwrap();
        assert!(sampling.choice.greedy && sampling.ignore_eos);
        assert_eq!((sampling.max_tokens, sampling.seed, sampling.stop), (5, Some(7), vec!["x".to_owned()]));
        assert_eq!(parse(serde_json::json!({ "max_tokens": null })).unwrap().max_tokens, i32::MAX);
    }

    #[test]
    fn s9_what_is_wrong_is_named() {
        for (json, fragment) in [
            (serde_json::json!({ "temprature": 1 }), "sampling parameter \"temprature\" is unknown"),
            (serde_json::json!({ "n": 0 }), "n is 0, expected 1 to 256"),
            (serde_json::json!({ "max_tokens": 0 }), "max_tokens is 0, expected 1 or more"),
            (serde_json::json!({ "top_k": 1.5 }), "top_k is 1.5, expected a whole number"),
            (serde_json::json!({ "stop": [1] }), "stop is [1], expected a text or a list of texts"),
            (serde_json::json!({ "best_of": 3 }), "best_of differs from n"),
            (serde_json::json!({ "logprobs": 1025 }), "logprobs is 1025, expected 0 to 1024"),
            (serde_json::json!({ "lora_name": "a" }), "LoRA feature is not enabled."),
            (serde_json::json!({ "min_p": 1.5 }), "min_p is 1.5, expected 0 to 1"),
            (serde_json::json!({ "guided_decoding": {} }), "expected one of json, regex"),
            (serde_json::json!({ "logit_bias": { "x": 1 } }), "logit_bias is"),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.message().contains(fragment), "{error} lacks {fragment}");
        }
    }

    #[test]
    fn s9_guides_are_put_in_the_words_of_the_llm() {
        let guide = |json: Value| parse(serde_json::json!({ "guided_decoding": json })).unwrap().guide.unwrap();
        assert_eq!(guide(serde_json::json!({ "choice": ["a.b", "c"] })), ("choice", r#"["a.b","c"]"#.to_owned()));
        assert_eq!(guide(serde_json::json!({ "json": { "type": "object" } })).1, r#"{"type":"object"}"#);
        assert_eq!(guide(serde_json::json!({ "json_object": true })), ("json", String::new()));
        let text = serde_json::json!({ "structured_outputs": "{\"regex\": \"a+\"}" });
        assert_eq!(parse(text).unwrap().guide.unwrap(), ("regex", "a+".to_owned()));
    }
}
