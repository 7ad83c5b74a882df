//! Prompts that are in the prefix cache before the first request comes.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use serde_json::Value;

use crate::decode::StopCriteria;
use crate::engine::{Delta, Engine, FinishReason, Request, RequestSink};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::text::Tokenizer;

/// Each is computed, then found again: what is found is stored where there is a tier on disk.
const ROUNDS: usize = 2;

/// Computes the prompts of a file, one after the other.
///
/// # Errors
/// A file that is not as it should be, a prompt that the engine refuses or fails to compute.
pub(super) fn warm_up(engine: &Engine, file: &Path, tokenizer: Option<&Tokenizer>, add_special: bool) -> Result<()> {
    let prompts = read(file)?;
    let mut tokens = 0;
    for (number, prompt) in prompts.iter().enumerate() {
        let named = |error: Error| error.context(format!("kv_cache_warm_up_file: prompt {number}"));
        let ids = ids(prompt, tokenizer, add_special).map_err(named)?;
        tokens += ids.len();
        for _ in 0..ROUNDS {
            compute(engine, &ids).map_err(named)?;
        }
    }
    tracing::info!("{} prompts of {tokens} tokens are in the prefix cache", prompts.len());
    Ok(())
}

fn read(file: &Path) -> Result<Vec<Value>> {
    let wrong = |why: String| Error::invalid(format!("kv_cache_warm_up_file: {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    match value {
        Value::Array(prompts) => Ok(prompts),
        _ => Err(wrong("expected a JSON array of prompts".into())),
    }
}

fn ids(prompt: &Value, tokenizer: Option<&Tokenizer>, add_special: bool) -> Result<Vec<TokenId>> {
    let id = |value: &Value| value.as_i64().and_then(|id| TokenId::try_from(id).ok());
    match (prompt, tokenizer) {
        (Value::String(text), Some(tokenizer)) => tokenizer.encode(text, add_special),
        (Value::String(_), None) => Err(Error::invalid("is a text, but the model has no tokenizer")),
        (Value::Array(ids), _) => {
            let ids = ids.iter().map(id).collect::<Option<Vec<_>>>();
            ids.ok_or_else(|| Error::invalid("has something else than token ids"))
        }
        _ => Err(Error::invalid("is neither a text nor an array of token ids")),
    }
}

fn compute(engine: &Engine, ids: &[TokenId]) -> Result<()> {
    let (sender, deltas) = channel();
    let stop = StopCriteria { max_tokens: 1, ..StopCriteria::default() };
    engine.submit(Request { prompt: ids.to_vec(), stop, ..Request::default() }, Box::new(Told(sender)))?;
    for delta in deltas {
        match delta.finish {
            Some(finish) if finish.reason == FinishReason::Error => {
                return Err(finish.error.unwrap_or_else(|| Error::internal("failed without a reason")));
            }
            Some(_) => return Ok(()),
            None => {}
        }
    }
    Err(Error::internal("ended without an answer"))
}

struct Told(Sender<Delta>);

impl RequestSink for Told {
    fn delta(&mut self, delta: Delta) {
        // Who waits hears of the end only.
        let _ = self.0.send(delta);
    }
}
