//! The tensors that say what tells KV blocks apart and how long they are kept.

use super::inputs::Inputs;
use crate::engine::{DEFAULT_RETENTION_PRIORITY, Keep, Retention, RetentionRange};
use crate::error::{Error, Result};

/// One id for each token of a prompt, or none. A list that is longer, as in padded batches, is cut; one that holds
/// nothing but zeros says nothing.
///
/// # Errors
/// `InvalidArg` for a list that is shorter: which tokens it speaks of is not known.
pub fn extra_ids(inputs: &Inputs<'_>, row: usize, prompt_len: usize) -> Result<Vec<u64>> {
    let mut ids = inputs.uint64s("prompt_table_extra_ids", row)?;
    if ids.iter().all(|&id| id == 0) {
        return Ok(Vec::new());
    }
    if ids.len() < prompt_len {
        return Err(Error::invalid(format!(
            "prompt_table_extra_ids has {} ids, expected one for each of the {prompt_len} prompt tokens",
            ids.len()
        )));
    }
    ids.truncate(prompt_len);
    Ok(ids)
}

/// Refuses an adapter that is not there, which is any: 0 and none are the model itself.
///
/// # Errors
/// `NotFound` in the words on which clients send the weights; `Unsupported` for these.
pub fn refuse_adapter(inputs: &Inputs<'_>, row: usize) -> Result<()> {
    let Some(id) = inputs.uint64("lora_task_id", row)?.filter(|&id| id != 0) else { return Ok(()) };
    match (inputs.has("lora_weights"), inputs.has("lora_config")) {
        (false, false) => {
            Err(Error::not_found(format!("LoRA task {id} not found in cache. Please send LoRA weights with request")))
        }
        (true, true) => Err(Error::unsupported("input \"lora_weights\" is not supported by this version")),
        (weights, _) => {
            let (given, missing) =
                if weights { ("lora_weights", "lora_config") } else { ("lora_config", "lora_weights") };
            Err(Error::invalid(format!("{given} is given without {missing}, expected both or neither")))
        }
    }
}

/// How the KV blocks of one batch item are kept; none without `retention_token_range_starts`.
///
/// # Errors
/// `InvalidArg` with the tensor, its value and the bound.
pub fn retention(inputs: &Inputs<'_>, row: usize) -> Result<Option<Retention>> {
    let starts = inputs.ints("retention_token_range_starts", row)?;
    if starts.is_empty() {
        return Ok(None);
    }
    let list = |name: &str, required: bool| {
        let values = inputs.ints(name, row)?;
        if values.len() == starts.len() || (values.is_empty() && !required) {
            return Ok(values);
        }
        Err(Error::invalid(format!(
            "{name} has {} values, expected {}, as retention_token_range_starts",
            values.len(),
            starts.len()
        )))
    };
    let ends = list("retention_token_range_ends", true)?;
    let priorities = list("retention_token_range_priorities", true)?;
    let durations = list("retention_token_range_durations_ms", false)?;
    let mut ranges = Vec::with_capacity(starts.len());
    for (at, (&start, &end)) in starts.iter().zip(&ends).enumerate() {
        ranges.push(RetentionRange {
            start: at_least("retention_token_range_starts", start, 0)? as usize,
            end: match at_least("retention_token_range_ends", end, -1)? {
                -1 => None,
                end => Some(end as usize),
            },
            keep: Keep {
                priority: priority("retention_token_range_priorities", priorities[at])?,
                duration_ns: duration("retention_token_range_durations_ms", durations.get(at).copied())?,
            },
        });
    }
    let decode = inputs.int("retention_decode_priority", row)?.unwrap_or(DEFAULT_RETENTION_PRIORITY.into());
    let decode_duration = inputs.int("retention_decode_duration_ms", row)?;
    let decode = Keep {
        priority: priority("retention_decode_priority", decode)?,
        duration_ns: duration("retention_decode_duration_ms", decode_duration)?,
    };
    Ok(Some(Retention { ranges, decode }))
}

fn priority(name: &str, value: i32) -> Result<u8> {
    u8::try_from(value)
        .ok()
        .filter(|&priority| priority <= 100)
        .ok_or_else(|| Error::invalid(format!("{name} is {value}, expected 0 to 100")))
}

/// -1: for ever.
fn duration(name: &str, value: Option<i32>) -> Result<Option<u64>> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => Ok(Some(at_least(name, value, -1)? as u64 * 1_000_000)),
    }
}

fn at_least(name: &str, value: i32, min: i32) -> Result<i32> {
    if value < min {
        return Err(Error::invalid(format!("{name} is {value}, expected {min} or more")));
    }
    Ok(value)
}
