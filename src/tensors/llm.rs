//! The tensors of the LLM role, one table for inputs and one for outputs: names, types, shapes, what is served.
//!
//! The tables feed the reading of requests, the auto-completed model configuration, the check of the template and
//! `docs/tensors.md`.

use super::DataType::{Bool, Bytes, Fp16, Fp32, Int32, Int64, Uint8, Uint64};
use super::{DataType, config_type};

/// How the server is told that an input has one number per batch item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `dims: [1] reshape: { shape: [] }`.
    Scalar,
    /// `dims: [1]`, no reshape.
    One,
    /// These dims; -1 where any size goes.
    Dims(&'static [i64]),
    /// These dims, `allow_ragged_batch: true`.
    Ragged(&'static [i64]),
}

/// What is done with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It does what its documentation says.
    Served,
    /// Refused unless it has no element.
    OnlyEmpty,
    /// Accepted and ignored: it has no meaning for a decoder-only model.
    Ignored,
}

/// Where the input is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// In upstream's template and in an auto-completed configuration.
    Template,
    /// Only with a tokenizer, in an auto-completed configuration.
    WithText,
    /// In no template: users may add it to the inputs of their configuration.
    ByUser,
}

/// One input.
pub struct InputRow {
    pub name: &'static str,
    /// Other names of the same input: of older repositories, and of the ensemble.
    pub aliases: &'static [&'static str],
    pub dtype: DataType,
    pub shape: Shape,
    pub declared: Declared,
    pub usage: Use,
    pub default: &'static str,
    pub doc: &'static str,
}

/// One output.
pub struct OutputRow {
    pub name: &'static str,
    pub dtype: DataType,
    pub dims: &'static [i64],
    pub served: bool,
    pub doc: &'static str,
}

const ANY1: &[i64] = &[-1];
const ANY2: &[i64] = &[-1, -1];
const WORDS: &[i64] = &[2, -1];

const fn row(
    name: &'static str,
    dtype: DataType,
    shape: Shape,
    usage: Use,
    default: &'static str,
    doc: &'static str,
) -> InputRow {
    InputRow { name, aliases: &[], dtype, shape, declared: Declared::Template, usage, default, doc }
}

impl InputRow {
    const fn or(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn declared(mut self, declared: Declared) -> Self {
        self.declared = declared;
        self
    }

    /// The row of an input or of one of its aliases.
    pub fn find(name: &str) -> Option<&'static Self> {
        INPUTS.iter().find(|row| row.name == name || row.aliases.contains(&name))
    }
}

/// Inputs that sequence batching adds; skipped.
pub const SEQUENCE_CONTROLS: [&str; 3] = ["START", "CORRID", "END"];

use Declared::{ByUser, WithText};
use Shape::{Dims, One, Ragged, Scalar};
use Use::{Ignored, OnlyEmpty, Served};

/// Every input, in the template's order.
#[rustfmt::skip]
pub const INPUTS: &[InputRow] = &[
    row("input_ids", Int32, Ragged(ANY1), Served, "none", "Prompt tokens, padded on the right when the batch is larger than 1."),
    row("encoder_input_features", Fp16, Ragged(ANY2), OnlyEmpty, "none", "Features for an encoder."),
    row("encoder_output_lengths", Int32, Scalar, Ignored, "none", "Length of the encoder's output."),
    row("input_lengths", Int32, Scalar, Served, "none", "Length of each prompt; used only when the batch is larger than 1."),
    row("request_output_len", Int32, Scalar, Served, "mandatory", "Most tokens to generate, at least 1; cut to what the longest sequence leaves.").or(&["max_tokens"]),
    row("num_return_sequences", Int32, Scalar, Served, "1", "Sequences per prompt, sampled independently: sequence k has the seed plus k. With beams: how many of them are returned, all unless given."),
    row("draft_input_ids", Int32, Ragged(ANY1), Served, "none", "Tokens that are expected behind the prompt: as far as they come true, one step yields them all and the token behind them. Without draft_logits they change no token, only the speed. Not with beams."),
    row("decoder_input_ids", Int32, Ragged(ANY1), Ignored, "none", "For encoder-decoder models."),
    row("decoder_input_lengths", Int32, Scalar, Ignored, "none", "For encoder-decoder models."),
    row("draft_logits", Fp32, Ragged(ANY2), Served, "none", "[draft tokens, vocabulary]: what the draft tokens were drawn from, with the request's temperature, penalties, top-k and so on. A token is then accepted with the probability p / q of the target's in the draft's, else one is drawn from what p has more than q: the answer has the target's distribution, greedy answers do not change."),
    row("draft_acceptance_threshold", Fp32, Scalar, Served, "none", "More than 0, at most 1: a draft token with draft_logits is accepted when p / q is at least this, in place of a random number. Without draft_logits a draft token is accepted when it is the one that is sampled, whatever the threshold."),
    row("end_id", Int32, Scalar, Served, "none; with text_input the tokenizer's", "Token that ends a sequence and is not returned; -1 for none."),
    row("pad_id", Int32, Scalar, Ignored, "none", "The engine pads nothing."),
    row("ignore_eos", Bool, Scalar, Served, "false", "Whether the end tokens are tokens like others; stop_token_ids still end a sequence.").declared(ByUser),
    row("stop_token_ids", Int32, Ragged(ANY1), Served, "none", "Further tokens that end a sequence and are not returned.").declared(ByUser),
    row("stop_words_list", Int32, Ragged(WORDS), Served, "none", "Token sequences that end a sequence and are returned: row 0 all words back to back, row 1 their cumulative ends, padded with -1."),
    row("bad_words_list", Int32, Ragged(WORDS), Served, "none", "Token sequences that are never completed, in the same format."),
    row("embedding_bias", Fp32, Ragged(ANY1), Served, "none", "Added to the logits of every step, one number for each token id; a shorter list leaves the other tokens alone, what exceeds the vocabulary has no effect."),
    row("beam_width", Int32, Scalar, Served, "1", "Above 1: beam search with so many hypotheses, at most max_beam_width. One response has them all, best first; a stream has all of their tokens so far in every response. Temperature, penalties, bias and forbidden words act on each; what draws tokens has no effect. Not with guides, draft tokens, stop_words (texts) and num_top_log_probs."),
    row("beam_width_array", Int32, Ragged(ANY1), Served, "none", "Hypotheses that are followed after the first token, the second and so on, each at most beam_width; the last number goes for all further tokens.").declared(ByUser),
    row("temperature", Fp32, Scalar, Served, "1.0", "At least 0; 0 is greedy. Without effect unless top-k, top-p, min-p or typical-p is set."),
    row("runtime_top_k", Int32, Scalar, Served, "0", "Only the k most likely tokens; 0: no limit, 1: greedy.").or(&["top_k"]),
    row("runtime_top_p", Fp32, Scalar, Served, "unset", "Smallest set of tokens with this mass, at most 1; 0 and less: unset.").or(&["top_p"]),
    row("runtime_top_p_min", Fp32, Scalar, Served, "1e-6", "0 to 1: what the decay does not go below."),
    row("runtime_top_p_decay", Fp32, Scalar, Served, "1", "More than 0, at most 1: top-p is multiplied by it after each token."),
    row("runtime_top_p_reset_ids", Int32, Scalar, Served, "unset", "Token that brings top-p back to its start."),
    row("len_penalty", Fp32, Scalar, Served, "0", "At least 0. Beams are compared by cum_log_prob / length ^ len_penalty, the end token counted: above 0 favours long answers.").or(&["length_penalty"]),
    row("early_stopping", Bool, Scalar, Served, "1", "When a beam search ends before the longest output: 1 or true, as soon as beam_width hypotheses are complete; 0 or false, when the best other one at its present length is no better than the worst of them; another number, when it could not become better at any length. INT32 is taken too."),
    row("min_p", Fp32, Scalar, Served, "0", "0 to 1: only tokens with at least this share of the largest probability.").declared(ByUser),
    row("typical_p", Fp32, Scalar, Served, "1", "More than 0, at most 1: smallest set of the most typical tokens with this mass.").declared(ByUser),
    row("repetition_penalty", Fp32, Scalar, Served, "1.0", "More than 0. Logits of seen tokens are divided by it, or multiplied where they are negative."),
    row("min_tokens", Int32, Scalar, Served, "1", "The end token is not sampled before this many tokens.").or(&["min_length"]),
    row("beam_search_diversity_rate", Fp32, Scalar, Served, "0", "At least 0. Added to the ranking of a continuation, times the rank of the beam that it continues."),
    row("presence_penalty", Fp32, Scalar, Served, "0", "Subtracted from the logits of seen tokens."),
    row("frequency_penalty", Fp32, Scalar, Served, "0", "Subtracted from the logits of seen tokens, times their count."),
    row("prompt_ignore_length", Int32, Scalar, Served, "0", "Leading prompt tokens that count for neither the presence nor the frequency penalty."),
    row("no_repeat_ngram_size", Int32, Scalar, Served, "0", "Length of token sequences that do not occur twice; 0: no limit.").declared(ByUser),
    row("seed", Uint64, Scalar, Served, "0; drawn anew with text_input", "The same seed gives the same tokens.").or(&["random_seed"]),
    row("return_log_probs", Bool, Scalar, Served, "false", "Whether cum_log_probs and output_log_probs are returned."),
    row("return_context_logits", Bool, Scalar, Served, "false", "Whether context_logits is returned. The prompt is then computed anew, whatever is cached."),
    row("return_generation_logits", Bool, Scalar, Served, "false", "Whether generation_logits is returned."),
    row("num_top_log_probs", Int32, Scalar, Served, "0", "0 to 1024: how many of the most likely tokens are returned for each token, in top_log_prob_ids and top_log_probs.").declared(ByUser),
    row("return_prompt_log_probs", Bool, Scalar, Served, "false", "Whether prompt_log_probs is returned. The prompt is then computed as a whole, whatever of it is cached.").declared(ByUser),
    row("return_finish_reason", Bool, Scalar, Served, "false", "Whether finish_reason is returned.").declared(ByUser),
    row("return_seed", Bool, Scalar, Served, "false", "Whether seed is returned.").declared(ByUser),
    row("return_perf_metrics", Bool, Scalar, Served, "false", "Whether the ten performance outputs are returned."),
    row("return_kv_cache_reuse_stats", Bool, Scalar, Served, "false", "Whether the three kv_cache outputs are returned.").declared(ByUser),
    row("return_num_input_tokens", Bool, Scalar, Served, "false", "Whether num_input_tokens is returned."),
    row("return_num_output_tokens", Bool, Scalar, Served, "false", "Whether num_output_tokens is returned."),
    row("exclude_input_in_output", Bool, Scalar, Served, "the parameter of this name", "Whether the prompt is left out of output_ids. Non-streaming only."),
    row("stop", Bool, Scalar, Served, "false", "Makes this a command that stops the request with the same id."),
    row("streaming", Bool, Scalar, Served, "false", "One response for each step; needs the decoupled policy.").or(&["stream"]),
    row("prompt_embedding_table", Fp16, Ragged(ANY2), Served, "none", "Embeddings `[rows, embedding size]` that the request brings along (p-tuning, images), of any floating-point type: the prompt token with the number of the vocabulary's size takes row 0, the next number row 1. They are scaled as the model's own. Without prompt_table_extra_ids KV blocks are shared where the rows are equal."),
    row("prompt_table_extra_ids", Uint64, Ragged(ANY1), Served, "none", "One for each prompt token: KV blocks are shared only where tokens and ids are equal. 0 for ordinary tokens."),
    row("prompt_vocab_size", Int32, Scalar, Ignored, "none", "Not used by any version."),
    row("cross_attention_mask", Bool, Ragged(ANY2), Ignored, "none", "For models with cross attention."),
    row("skip_cross_attn_blocks", Bool, Shape::Ragged(&[1]), Ignored, "none", "For models with cross attention."),
    row("mrope_rotary_cos_sin", Fp32, Dims(ANY1), OnlyEmpty, "none", "Rotary table of multimodal models; without mrope_position_deltas it says nothing and is accepted."),
    row("mrope_position_deltas", Int64, One, Ignored, "none", "Only with mrope_rotary_cos_sin."),
    row("multimodal_embedding", Fp16, Dims(ANY2), OnlyEmpty, "none", "Embeddings of multimodal models.").declared(ByUser),
    row("multimodal_hashes", Int32, Dims(ANY2), OnlyEmpty, "none", "Identity of multimodal items.").declared(ByUser),
    row("multimodal_positions", Int32, Dims(ANY1), OnlyEmpty, "none", "Place of multimodal items.").declared(ByUser),
    row("multimodal_lengths", Int32, Dims(ANY1), OnlyEmpty, "none", "Length of multimodal items.").declared(ByUser),
    row("multimodal_item_runs", Int32, Dims(&[-1, -1, 2]), OnlyEmpty, "none", "Place of multimodal items.").declared(ByUser),
    row("lora_task_id", Uint64, Scalar, Served, "none", "Adapter of the request; 0 is none. No adapter can be loaded yet: any other is not found."),
    row("lora_weights", Fp16, Ragged(ANY2), Ignored, "none", "Without lora_task_id ignored; with it refused."),
    row("lora_config", Int32, Ragged(&[-1, 3]), Ignored, "none", "Without lora_task_id ignored; with it refused."),
    row("context_phase_params", Uint8, Ragged(ANY1), OnlyEmpty, "none", "Result of a context-only request."),
    row("retention_token_range_starts", Int32, Ragged(ANY1), Served, "none", "First prompt token of each range whose KV blocks are kept differently; its presence makes the other retention tensors count."),
    row("retention_token_range_ends", Int32, Ragged(ANY1), Served, "none", "One end for each start, exclusive; -1: the end of the prompt."),
    row("retention_token_range_priorities", Int32, Ragged(ANY1), Served, "none", "One for each start, 0 to 100: blocks of lower priority are given up first; 35 is that of all others."),
    row("retention_token_range_durations_ms", Int32, Ragged(ANY1), Served, "none", "One for each start: for how long after the last use the priority holds; -1 or absent: for ever."),
    row("retention_decode_priority", Int32, Shape::Ragged(&[1]), Served, "35", "Priority of the blocks of generated tokens."),
    row("retention_decode_duration_ms", Int32, Shape::Ragged(&[1]), Served, "none", "For how long that holds; -1 or absent: for ever."),
    row("guided_decoding_guide_type", Bytes, Shape::Ragged(&[1]), Served, "none", "What `guided_decoding_guide` is: `json` (any object, without a guide), `json_schema`, `regex`, `ebnf_grammar`, `choice` (a JSON list of answers), `lark` or `structural_tag`."),
    row("guided_decoding_guide", Bytes, Shape::Ragged(&[1]), Served, "none", "The schema, expression, grammar or description that the answer follows. The end token is sampled exactly when the answer is complete; without `end_id` it is the tokenizer's."),
    row("lookahead_window_size", Int32, Shape::Ragged(&[1]), OnlyEmpty, "none", "Lookahead decoding."),
    row("lookahead_ngram_size", Int32, Shape::Ragged(&[1]), Ignored, "none", "Only with lookahead_window_size."),
    row("lookahead_verification_set_size", Int32, Shape::Ragged(&[1]), Ignored, "none", "Only with lookahead_window_size."),
    row("text_input", Bytes, One, Served, "none", "Prompt as text, in place of input_ids; needs a tokenizer.").declared(WithText),
    row("stop_words", Bytes, Dims(ANY1), Served, "none", "Texts that end a sequence, wherever token borders are.").declared(WithText),
    row("include_stop_str_in_output", Bool, Scalar, Served, "true", "Whether the text ends with the stop text; if not, nothing of it is sent.").declared(WithText),
    row("bad_words", Bytes, Dims(ANY1), Served, "none", "Texts whose tokens are never completed.").declared(WithText),
];

#[rustfmt::skip]
const fn out(name: &'static str, dtype: DataType, dims: &'static [i64], served: bool, doc: &'static str) -> OutputRow {
    OutputRow { name, dtype, dims, served, doc }
}

/// Every output, in the order in which a response carries them.
#[rustfmt::skip]
pub const OUTPUTS: &[OutputRow] = &[
    out("output_ids", Int32, ANY2, true, "Tokens: the prompt (unless excluded) and the answer, or when streaming the new ones (of beams all of the answer). A row for each beam, short ones filled with -1. Never the end token."),
    out("sequence_length", Int32, ANY1, true, "Length of each row of output_ids."),
    out("context_logits", Fp32, ANY2, true, "Logits at each prompt token, before anything changes them; FP16 where the configuration declares that."),
    out("generation_logits", Fp32, &[-1, -1, -1], true, "Logits that each token was chosen from: [1, tokens, vocabulary], when streaming [tokens of the response, 1, vocabulary]; of beams [beams, tokens, vocabulary], short ones filled with 0, not when streaming. FP32 or FP16 as declared."),
    out("output_log_probs", Fp32, ANY2, true, "Log-probability of each generated token so far; a row for each beam, short ones filled with -1."),
    out("cum_log_probs", Fp32, ANY1, true, "Sum of the log-probabilities so far, of each beam; that of a beam's end token included."),
    out("batch_index", Int32, &[1], true, "Which prompt of the batch this answers, when there are several."),
    out("sequence_index", Int32, &[1], true, "Which of num_return_sequences this is, when there are several."),
    out("context_phase_params", Uint8, ANY1, false, "Result of a context-only request."),
    out("kv_cache_alloc_new_blocks", Int32, &[1], true, "Of the allocated blocks, those that took no reusable content away."),
    out("kv_cache_reused_blocks", Int32, &[1], true, "Blocks found in the prefix cache."),
    out("kv_cache_alloc_total_blocks", Int32, &[1], true, "Blocks allocated for the request."),
    out("arrival_time_ns", Int64, &[1], true, "Monotonic time: only differences mean something."),
    out("first_scheduled_time_ns", Int64, &[1], true, "First time in a batch."),
    out("first_token_time_ns", Int64, &[1], true, "Time of the first token."),
    out("last_token_time_ns", Int64, &[1], true, "Time of the last token; 0 before it."),
    out("acceptance_rate", Fp32, &[1], true, "Accepted share of draft tokens; 0 without speculation."),
    out("total_accepted_draft_tokens", Int32, &[1], true, "0 without speculation."),
    out("total_draft_tokens", Int32, &[1], true, "0 without speculation."),
    out("num_input_tokens", Int32, &[1], true, "Tokens of the prompt."),
    out("num_output_tokens", Int32, &[1], true, "Tokens of this response."),
    out("top_log_prob_ids", Int32, &[-1, -1, -1], true, "For each token of this response the most likely tokens in its place, best first."),
    out("top_log_probs", Fp32, &[-1, -1, -1], true, "Their log-probabilities within the whole vocabulary, after all passes."),
    out("prompt_log_probs", Fp32, ANY2, true, "Log-probability of each prompt token but the first, by the model alone; in the first response."),
    out("finish_reason", Bytes, &[1], true, "`stop` (end token, stop word or text), `length`, `timeout` or `cancelled`; empty before the last response. Of beams that of the best."),
    out("seed", Uint64, &[1], true, "The seed that the sequence was sampled with."),
    out("text_output", Bytes, ANY1, true, "The answer as text, one for each beam; needs a tokenizer."),
];

/// `docs/tensors.md`.
pub fn tensors_markdown() -> String {
    let mut text = String::from(
        "# Tensors of the LLM\n\nShapes are without the batch dimension. \"refused\" inputs get an UNSUPPORTED error unless they hold what is named.\n\n\
         ## Inputs\n\n| Name | Also | Type | Dims | Default | Served | Meaning |\n|---|---|---|---|---|---|---|\n",
    );
    for row in INPUTS {
        let dims = match row.shape {
            Scalar | One => "[1]".to_owned(),
            Dims(dims) | Ragged(dims) => format!("{dims:?}"),
        };
        let aliases: Vec<_> = row.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        let served = match row.usage {
            Served => "yes".to_owned(),
            Ignored => "accepted, no effect".to_owned(),
            OnlyEmpty => "refused unless empty".to_owned(),
        };
        text.push_str(&format!(
            "| `{}` | {} | {} | {dims} | {} | {served} | {} |\n",
            row.name,
            aliases.join(" "),
            config_type(row.dtype),
            row.default,
            row.doc
        ));
    }
    text.push_str("\n## Outputs\n\n| Name | Type | Dims | Served | Meaning |\n|---|---|---|---|---|\n");
    for row in OUTPUTS {
        let served = if row.served { "yes" } else { "not yet" };
        let dtype = config_type(row.dtype);
        text.push_str(&format!("| `{}` | {dtype} | {:?} | {served} | {} |\n", row.name, row.dims, row.doc));
    }
    text
}
