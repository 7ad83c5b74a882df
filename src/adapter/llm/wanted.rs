//! Which outputs a response carries.

use super::inputs::Inputs;
use super::request::Rules;
use crate::error::{Error, Result};
use crate::tensors::llm::OUTPUTS;

/// A set of outputs of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted(u64);

/// Outputs of logits and the flags that ask for them.
const LOGITS: [(&str, &str); 2] =
    [("context_logits", "return_context_logits"), ("generation_logits", "return_generation_logits")];

const PERF: [&str; 10] = [
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
];

impl Wanted {
    /// The outputs that one batch item gets: those that the request lists, as far as the item's flags and the batch give
    /// them contents (of the performance flags, the first item's go for all). `sequences`: it has several answers. A
    /// request that lists none asks for all that the configuration declares; it then gets its answer in the form of its
    /// prompt, text for text and tokens for tokens. The outputs of the performance flags need not be listed.
    ///
    /// # Errors
    /// `Invalid size for tensor` for a flag without one element for each batch item; `InvalidArg` where neither the tokens nor the text of the answer is listed.
    pub fn new(rules: &Rules, inputs: &Inputs<'_>, item: usize, requested: &[&str], sequences: bool) -> Result<Self> {
        let lists = |name: &str| requested.contains(&name);
        let by_text = inputs.has("text_input");
        let all = rules.declared_outputs.iter().all(|name| lists(name));
        let text = rules.text.is_some() && lists("text_output") && (by_text || !all);
        let tokens = !(by_text && all && text);
        if !text {
            // A configuration of version 0.5 has no `sequence_length` to list.
            let declared = |name: &str| rules.declared_outputs.iter().any(|output| output == name);
            for name in ["output_ids", "sequence_length"] {
                if !lists(name) && (name == "output_ids" || declared(name)) {
                    return Err(Error::invalid(format!(
                        "Error encountered while populating response: {name} must be in the list of requested outputs"
                    )));
                }
            }
        }
        let asks = |name: &str| Ok::<_, Error>(inputs.flag_of(name, item)?.unwrap_or(false));
        let log_probs = rules.log_probs_always || asks("return_log_probs")?;
        let mut wanted = Self::default();
        wanted.add("output_ids", tokens && lists("output_ids"));
        wanted.add("sequence_length", tokens && lists("sequence_length"));
        for (name, flag) in LOGITS {
            wanted.add(name, asks(flag)? && lists(name));
        }
        wanted.add("output_log_probs", log_probs && lists("output_log_probs"));
        wanted.add("cum_log_probs", log_probs && lists("cum_log_probs"));
        wanted.add("batch_index", inputs.batch() > 1 && lists("batch_index"));
        wanted.add("sequence_index", sequences && lists("sequence_index"));
        wanted.add("text_output", text);
        let perf = inputs.flag("return_perf_metrics");
        let blocks = inputs.flag("return_kv_cache_reuse_stats");
        for (index, name) in PERF.iter().enumerate() {
            wanted.add(name, perf || (blocks && index < 3));
        }
        wanted.add("num_input_tokens", asks("return_num_input_tokens")?);
        wanted.add("num_output_tokens", asks("return_num_output_tokens")?);
        let top = inputs.has("num_top_log_probs");
        wanted.add("top_log_prob_ids", top);
        wanted.add("top_log_probs", top);
        wanted.add("prompt_log_probs", asks("return_prompt_log_probs")?);
        wanted.add("finish_reason", asks("return_finish_reason")?);
        wanted.add("seed", asks("return_seed")?);
        Ok(wanted)
    }

    /// The outputs of either set.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the output is in the set.
    pub fn has(self, name: &str) -> bool {
        self.0 & bit(name) != 0
    }

    /// Whether every response has something for a client even without new text.
    pub fn tokens(self) -> bool {
        self.has("output_ids")
    }

    /// Whether there are logits.
    pub fn logits(self) -> bool {
        LOGITS.iter().any(|(name, _)| self.has(name))
    }

    fn add(&mut self, name: &str, condition: bool) {
        if condition {
            self.0 |= bit(name);
        }
    }
}

fn bit(name: &str) -> u64 {
    OUTPUTS.iter().position(|row| row.name == name).map_or(0, |index| 1 << index)
}
