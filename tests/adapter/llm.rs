//! The LLM's contract: shapes, order, flags and errors, request by request.

use crate::fake::{RequestSpec, Tensor};
use crate::script::{EOS, Tokens, VOCAB, error, flag, int, model, outputs, request, start, tokens, with_id};

const NOT_FOUND: u32 = 2;
const INVALID_ARG: u32 = 3;
const UNAVAILABLE: u32 = 4;

const PROMPT: [i32; 3] = [5, 6, 7];

fn one(shape: [i64; 3], ids: &[i32], is_final: bool) -> Tokens {
    (shape.to_vec(), ids.to_vec(), vec![ids.len() as i32], is_final)
}

#[test]
fn non_streaming_returns_prompt_and_answer_in_one_response() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let cases = [
        (request(&PROMPT, 2), vec![5, 6, 7, 20, 21]),
        (request(&PROMPT, 2).input(flag("exclude_input_in_output")), vec![20, 21]),
        (request(&PROMPT, 8).input(int("end_id", EOS)), vec![5, 6, 7, 20, 21]),
        (request(&PROMPT, 4).input(int("end_id", -1)), vec![5, 6, 7, 20, 21, EOS, 103]),
    ];
    for (request, expected) in cases {
        let replies = model.infer(request);
        assert_eq!(tokens(&replies), [one([1, 1, expected.len() as i64], &expected, true)]);
        assert_eq!(replies[0].outputs.len(), 2, "only what has contents");
    }
}

#[test]
fn the_parameter_excludes_the_input_unless_the_request_says_otherwise() {
    let server = start();
    let model = server.load(model("llm", false, &[("exclude_input_in_output", "true")])).unwrap();
    assert_eq!(tokens(&model.infer(request(&PROMPT, 1)))[0].1, [20]);
    let included = request(&PROMPT, 1).input(Tensor::bools("exclude_input_in_output", &[1], &[false]));
    assert_eq!(tokens(&model.infer(included))[0].1, [5, 6, 7, 20]);
}

#[test]
fn streaming_returns_each_token_alone_and_flags_the_last() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let replies = model.infer(request(&PROMPT, 2).input(flag("streaming")));
    assert_eq!(tokens(&replies), [one([1, 1, 1], &[20], false), one([1, 1, 1], &[21], true)]);
}

#[test]
fn a_stream_that_ends_at_the_end_token_ends_without_tokens() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let replies = model.infer(request(&PROMPT, 8).input(flag("streaming")).input(int("end_id", EOS)));
    let expected = [one([1, 1, 1], &[20], false), one([1, 1, 1], &[21], false), one([1, 1, 0], &[], true)];
    assert_eq!(tokens(&replies), expected);
}

#[test]
fn log_probs_are_cumulative_while_tokens_are_not() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let replies = model.infer(request(&PROMPT, 3).input(flag("streaming")).input(flag("return_log_probs")));
    let last = replies.last().unwrap();
    let shapes: Vec<_> = replies.iter().map(|reply| reply.output("output_log_probs").unwrap().shape.clone()).collect();
    assert_eq!(shapes, [[1, 1, 1], [1, 1, 2], [1, 1, 3]]);
    assert_eq!(last.output("output_log_probs").unwrap().to_fp32(), [-0.5; 3], "greedy: within the whole vocabulary");
    assert_eq!(last.output("cum_log_probs").unwrap().to_fp32(), [-1.5]);
    assert_eq!(last.output("cum_log_probs").unwrap().shape, [1, 1]);
    let names: Vec<_> = last.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["output_ids", "sequence_length", "output_log_probs", "cum_log_probs"]);
}

#[test]
fn sampled_log_probs_are_relative_to_the_candidates_unless_switched_off() {
    let server = start();
    for (normalize, expected) in [("true", -0.25), ("false", -0.5)] {
        let model = server.load(model("llm", false, &[("normalize_log_probs", normalize)])).unwrap();
        let sampled = request(&PROMPT, 2).input(flag("return_log_probs")).input(int("runtime_top_k", 5));
        let replies = model.infer(sampled);
        assert_eq!(replies[0].output("output_log_probs").unwrap().to_fp32(), [expected; 2]);
        assert_eq!(replies[0].output("cum_log_probs").unwrap().to_fp32(), [-1.0]);
    }
}

fn batch_of_two(output_len: i32) -> RequestSpec {
    outputs(RequestSpec::new(""))
        .input(Tensor::int32("input_ids", &[2, 3], &[5, 6, 7, 7, 0, 0]))
        .input(Tensor::int32("input_lengths", &[2], &[3, 1]))
        .input(Tensor::int32("request_output_len", &[2, 1], &[output_len, output_len]))
}

#[test]
fn a_batch_is_answered_item_by_item_with_one_final() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let replies = model.infer(batch_of_two(2));
    assert_eq!(replies.len(), 2);
    assert_eq!(replies.iter().filter(|reply| reply.is_final).count(), 1);
    for reply in &replies {
        let index = reply.output("batch_index").unwrap();
        assert_eq!(index.shape, [1, 1]);
        let expected: &[i32] = if index.to_int32() == [0] { &[5, 6, 7, 20, 21] } else { &[7, 20, 21] };
        assert_eq!(reply.outputs[0].to_int32(), expected, "cut to input_lengths");
    }
    let replies = model.infer(batch_of_two(3).input(flag("streaming")));
    assert_eq!(replies.len(), 6);
    assert_eq!(replies.iter().filter(|reply| reply.is_final).count(), 1);
    assert!(replies[5].is_final);
}

#[test]
fn a_batch_of_one_ignores_its_input_length() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let mut request = request(&PROMPT, 1);
    request.inputs[1].tensor = int("input_lengths", 0);
    assert_eq!(tokens(&model.infer(request))[0].1, [5, 6, 7, 20]);
}

#[test]
fn return_sequences_are_series_of_their_own() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let replies = model.infer(request(&PROMPT, 2).input(int("num_return_sequences", 2)));
    let mut indices: Vec<_> =
        replies.iter().map(|reply| reply.output("sequence_index").unwrap().to_int32()[0]).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1]);
    assert!(replies.iter().all(|reply| reply.outputs[0].to_int32() == [5, 6, 7, 20, 21]));
    assert_eq!(replies.iter().filter(|reply| reply.is_final).count(), 1);
}

#[test]
fn a_stop_word_is_part_of_the_answer() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let words = Tensor::int32("stop_words_list", &[1, 2, 3], &[20, 21, 99, 2, 3, -1]);
    let replies = model.infer(request(&PROMPT, 9).input(words).input(flag("streaming")));
    assert_eq!(tokens(&replies), [one([1, 1, 1], &[20], false), one([1, 1, 1], &[21], true)]);
}

#[test]
fn performance_outputs_need_not_be_listed() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let long: Vec<i32> = (0..100).map(|i| 100 + i % 9).collect();
    // The second request finds a whole block and, of the other, what both prompts have in common.
    for (reused, allocated) in [(0, 2), (2, 1)] {
        let mut spec = request(&long, 2)
            .input(flag("return_perf_metrics"))
            .input(flag("return_num_input_tokens"))
            .input(flag("return_num_output_tokens"));
        spec.outputs = vec!["output_ids".into(), "sequence_length".into()];
        let replies = model.infer(spec);
        let number = |name: &str| replies[0].output(name).unwrap_or_else(|| panic!("{name}")).to_int32()[0];
        assert_eq!(number("kv_cache_reused_blocks"), reused);
        assert_eq!(number("kv_cache_alloc_total_blocks"), allocated);
        assert_eq!(number("num_input_tokens"), 100);
        assert_eq!(number("num_output_tokens"), 102);
        assert_eq!(replies[0].output("acceptance_rate").unwrap().to_fp32(), [0.0]);
        let time = |name: &str| {
            let bytes = &replies[0].output(name).unwrap().bytes;
            i64::from_le_bytes(bytes[..].try_into().unwrap())
        };
        assert!(time("arrival_time_ns") <= time("first_scheduled_time_ns"));
        assert!(time("first_token_time_ns") <= time("last_token_time_ns"));
        assert!(time("arrival_time_ns") > 0);
    }
}

/// Bad requests: code and a fragment of the text, which names the input and its bound.
#[test]
fn bad_requests_are_refused_and_the_next_one_is_served() {
    let server = start();
    let model = server.load(model("llm", false, &[("max_seq_len", "100")])).unwrap();
    let base = || request(&PROMPT, 2);
    let without = |name: &str| {
        let mut request = base();
        request.inputs.retain(|input| input.tensor.name != name);
        request
    };
    let float = |name: &str, value: f32| base().input(Tensor::fp32(name, &[1], &[value]));
    let words =
        |values: &[i32]| base().input(Tensor::int32("stop_words_list", &[1, 2, values.len() as i64 / 2], values));
    let unlisted = |name: &str| {
        let mut request = base();
        request.outputs.retain(|output| output != name);
        request
    };
    let cases = [
        (
            base().input(flag("streaming")),
            INVALID_ARG,
            "Streaming is only supported if model is deployed using decoupled mode",
        ),
        (batch_of_two(1), INVALID_ARG, "Batch size > 1 requires the tensorrt_llm backend to be using decoupled"),
        (without("request_output_len"), INVALID_ARG, "request_output_len is not present"),
        (without("input_ids"), INVALID_ARG, "not provided"),
        (request(&[], 2), INVALID_ARG, "the prompt is not provided"),
        (request(&PROMPT, 0), INVALID_ARG, "request_output_len is 0, expected 1 or more"),
        (request(&[5, VOCAB as i32], 1), INVALID_ARG, "input_ids is 300, expected token ids of 0 to 299"),
        (request(&[-1], 1), INVALID_ARG, "input_ids is -1"),
        (
            base().input(int("draft_input_ids", 300)),
            INVALID_ARG,
            "draft_input_ids is 300, expected token ids of 0 to 299",
        ),
        (base().input(int("end_id", 300)), INVALID_ARG, "end_id 300 is outside the vocabulary, expected 0 to 299"),
        (float("temperature", -0.5), INVALID_ARG, "temperature is -0.5, expected 0 or more"),
        (float("temperature", f32::NAN), INVALID_ARG, "temperature is NaN, expected a finite number"),
        (float("runtime_top_p", 1.5), INVALID_ARG, "runtime_top_p is 1.5, expected at most 1"),
        (float("repetition_penalty", 0.0), INVALID_ARG, "repetition_penalty is 0, expected more than 0"),
        (float("presence_penalty", f32::INFINITY), INVALID_ARG, "presence_penalty is inf"),
        (base().input(int("runtime_top_k", -1)), INVALID_ARG, "runtime_top_k is -1, expected 0 or more"),
        (base().input(int("min_length", -2)), INVALID_ARG, "min_length is -2, expected 0 or more"),
        (
            base().input(Tensor::int32("runtime_top_k", &[2], &[1, 2])),
            INVALID_ARG,
            "Invalid size for tensor runtime_top_k",
        ),
        (base().input(Tensor::fp32("seed", &[1], &[1.0])), INVALID_ARG, "\"seed\" has type FP32, expected UINT64"),
        (base().input(int("seed2", 1)), INVALID_ARG, "input \"seed2\" is unknown"),
        (base().input(int("min_tokens", 1)).input(int("min_length", 1)), INVALID_ARG, "mean the same"),
        (words(&[10, 11, 5, -1]), INVALID_ARG, "out-of-bound offsets"),
        (words(&[10, 11, -1, 2]), INVALID_ARG, "additional -1s"),
        (words(&[10, 11, 2, 1]), INVALID_ARG, "non-increasing offsets"),
        (base().input(Tensor::int32("stop_words_list", &[1, 3], &[1, 2, 3])), INVALID_ARG, "odd length"),
        (words(&[999, 11, 1, -1]), INVALID_ARG, "stop_words_list is 999"),
        (base().input(int("num_return_sequences", 2)), INVALID_ARG, "num_return_sequences is 2"),
        (base().input(int("beam_width", 2)), INVALID_ARG, "beam_width is 2, expected 1 to max_beam_width, which is 1"),
        (base().input(int("beam_width", 0)), INVALID_ARG, "beam_width is 0, expected 1 or more"),
        (base().input(int("beam_width", 1_000_000_000)), INVALID_ARG, "expected 1 to max_beam_width, which is 1"),
        (float("len_penalty", -1.0), INVALID_ARG, "len_penalty is -1, expected 0 or more"),
        (
            float("beam_search_diversity_rate", -1.0),
            INVALID_ARG,
            "beam_search_diversity_rate is -1, expected 0 or more",
        ),
        (
            base().input(Tensor::fp32("embedding_bias", &[1, 2], &[0.0, f32::NAN])),
            INVALID_ARG,
            "embedding_bias is NaN, expected numbers or -inf",
        ),
        (
            float("runtime_top_p_decay", 0.0),
            INVALID_ARG,
            "runtime_top_p_decay is 0, expected more than 0 and at most 1",
        ),
        (float("runtime_top_p_min", 1.5), INVALID_ARG, "runtime_top_p_min is 1.5, expected 0 to 1"),
        (base().input(int("runtime_top_p_reset_ids", -1)), INVALID_ARG, "runtime_top_p_reset_ids is -1"),
        (base().input(int("no_repeat_ngram_size", -1)), INVALID_ARG, "no_repeat_ngram_size is -1"),
        (base().input(int("prompt_ignore_length", -1)), INVALID_ARG, "prompt_ignore_length is -1"),
        (base().input(Tensor::uint64("lora_task_id", &[1], &[7])), NOT_FOUND, "LoRA task 7 not found in cache"),
        (
            base().input(Tensor::fp32("draft_logits", &[1, 1, 1], &[1.0])),
            INVALID_ARG,
            "draft_logits has 1 rows, expected one for each of the 0 tokens of draft_input_ids",
        ),
        (
            base().input(int("draft_input_ids", 3)).input(Tensor::fp32("draft_logits", &[1, 1, 2], &[1.0; 2])),
            INVALID_ARG,
            "draft_logits has 2 logits for each token, expected the 300 of the vocabulary",
        ),
        (
            base().input(int("draft_input_ids", 3)).input(Tensor::fp32("draft_logits", &[1, 1, 300], &[f32::NAN; 300])),
            INVALID_ARG,
            "draft_logits has the logit NaN, expected numbers or -inf",
        ),
        (
            float("draft_acceptance_threshold", 0.0),
            INVALID_ARG,
            "draft_acceptance_threshold is 0, expected more than 0 and at most 1",
        ),
        (unlisted("output_ids"), INVALID_ARG, "output_ids must be in the list"),
        (unlisted("sequence_length"), INVALID_ARG, "sequence_length must be in the list"),
        (request(&[5; 100], 1), INVALID_ARG, "Prompt length (100) exceeds maximum input length (99)"),
        (request(&[5; 99], 1).input(flag("stop")), INVALID_ARG, "request ID is not provided"),
    ];
    let count = cases.len();
    for (request, code, fragment) in cases {
        let (got, text) = error(&model.infer(request));
        assert!(text.contains(fragment), "{text:?} lacks {fragment:?}");
        assert_eq!(got, code, "{text}");
        assert_eq!(tokens(&model.infer(base()))[0].1, [5, 6, 7, 20, 21]);
    }
    assert!(count > 30);
}

#[test]
fn neutral_values_of_what_is_not_served_are_accepted() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let ensemble = request(&PROMPT, 2)
        .input(Tensor::int32("decoder_input_ids", &[1, 1], &[0]))
        .input(int("decoder_input_lengths", 1))
        .input(Tensor::fp32("embedding_bias", &[1, 0], &[]))
        .input(Tensor::int32("stop_words_list", &[1, 2, 0], &[]))
        .input(Tensor::int32("bad_words_list", &[1, 2, 1], &[0, -1]))
        .input(int("beam_width", 1))
        .input(int("pad_id", 0))
        .input(Tensor::fp32("len_penalty", &[1], &[1.0]))
        .input(Tensor::fp32("runtime_top_p", &[1], &[0.0]))
        .input(Tensor::bools("return_context_logits", &[1], &[false]))
        .input(Tensor::uint64("random_seed", &[1, 1], &[3]))
        .input(int("START", 1));
    assert_eq!(tokens(&model.infer(ensemble))[0].1, [5, 6, 7, 20, 21]);
}

#[test]
fn static_batching_neither_streams_nor_returns_the_prompt() {
    let server = start();
    let model = server.load(model("llm", true, &[("gpt_model_type", "V1")])).unwrap();
    let replies = model.infer(request(&PROMPT, 2).input(flag("streaming")));
    assert_eq!(tokens(&replies), [one([1, 1, 2], &[20, 21], true)]);
}

#[test]
fn a_model_without_batch_dimension_takes_plain_rows() {
    let server = start();
    let mut spec = model("llm", false, &[]);
    spec.config["input"] = serde_json::json!([{ "name": "input_ids" }]);
    spec.config["max_batch_size"] = 0.into();
    let model = server.load(spec).unwrap();
    let request = outputs(RequestSpec::new(""))
        .input(Tensor::int32("input_ids", &[3], &PROMPT))
        .input(int("request_output_len", 2));
    let replies = model.infer(request);
    assert_eq!(replies[0].outputs[0].shape, [1, 5]);
    assert_eq!(replies[0].outputs[1].shape, [1]);
}

#[test]
fn a_full_queue_refuses_all_or_nothing() {
    let server = start();
    let mut spec = model("llm", true, &[("max_batch_size", "1")]);
    spec.config["dynamic_batching"] = serde_json::json!({ "default_queue_policy": { "max_queue_size": 1 } });
    let model = server.load(spec).unwrap();
    let (code, text) = error(&model.infer(batch_of_two(1)));
    assert_eq!(code, UNAVAILABLE);
    assert!(text.contains("Maximum queue size of 1 has been reached, please try again later"), "{text}");
    assert_eq!(tokens(&model.infer(with_id(request(&PROMPT, 2), "x")))[0].1, [5, 6, 7, 20, 21]);
}

#[test]
fn drafts_change_no_token_and_are_counted() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let plain = tokens(&model.infer(request(&PROMPT, 5)));
    let half_right = Tensor::int32("draft_input_ids", &[1, 3], &[20, 21, 99]);
    let replies = model.infer(request(&PROMPT, 5).input(half_right).input(flag("return_perf_metrics")));
    assert_eq!(tokens(&replies), plain);
    let number = |name: &str| replies[0].output(name).unwrap().to_int32()[0];
    assert_eq!((number("total_accepted_draft_tokens"), number("total_draft_tokens")), (2, 3));
    let rate = replies[0].output("acceptance_rate").unwrap().to_fp32()[0];
    assert!((rate - 2.0 / 3.0).abs() < 1e-6, "{rate}");
    let outside = request(&PROMPT, 5).input(Tensor::int32("draft_input_ids", &[1, 1], &[VOCAB as i32]));
    let (code, message) = error(&model.infer(outside));
    assert_eq!(code, INVALID_ARG);
    assert!(message.contains("draft_input_ids"), "{message}");
}

#[test]
fn a_sequence_that_counts_on_guesses_from_its_own_words() {
    let server = start();
    let model = server.load(model("llm", false, &[("ngram_max_draft_len", "4")])).unwrap();
    let chain: Vec<i32> = std::iter::successors(Some(110), |token| Some(100 + (token + 1) % 150)).take(14).collect();
    let repeated = [&chain[..], &chain[..8]].concat();
    let replies = model.infer(request(&repeated, 6).input(flag("return_perf_metrics")));
    assert_eq!(tokens(&replies)[0].1[repeated.len()..], chain[8..]);
    assert!(replies[0].output("total_accepted_draft_tokens").unwrap().to_int32()[0] >= 2);
}
