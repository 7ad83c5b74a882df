//! The tensors of the LLM (contract 2 and 3), the rows that the tests by request do not have: what is declared, what is
//! taken without effect, what is refused, and what each response holds.

use serde_json::{Value, json};

use crate::fake::{Reply, RequestSpec, Tensor, dtype};
use crate::script::{EOS, error, flag, int, model, outputs, request, start, text_model, tokens};

const INVALID_ARG: u32 = 3;
const UNSUPPORTED: u32 = 5;
const UINT8: u32 = 2;
const PROMPT: [i32; 3] = [5, 6, 7];
const ANSWER: [i32; 5] = [5, 6, 7, 20, 21];

/// Name, type, dims and whether they are `reshape`d to a scalar or ragged.
const INPUTS: &[(&str, &str, &[i64], &str)] = &[
    ("input_ids", "INT32", &[-1], "ragged"),
    ("encoder_input_features", "FP16", &[-1, -1], "ragged"),
    ("encoder_output_lengths", "INT32", &[1], "scalar"),
    ("input_lengths", "INT32", &[1], "scalar"),
    ("request_output_len", "INT32", &[1], "scalar"),
    ("num_return_sequences", "INT32", &[1], "scalar"),
    ("draft_input_ids", "INT32", &[-1], "ragged"),
    ("decoder_input_ids", "INT32", &[-1], "ragged"),
    ("decoder_input_lengths", "INT32", &[1], "scalar"),
    ("draft_logits", "FP32", &[-1, -1], "ragged"),
    ("draft_acceptance_threshold", "FP32", &[1], "scalar"),
    ("end_id", "INT32", &[1], "scalar"),
    ("pad_id", "INT32", &[1], "scalar"),
    ("stop_words_list", "INT32", &[2, -1], "ragged"),
    ("bad_words_list", "INT32", &[2, -1], "ragged"),
    ("embedding_bias", "FP32", &[-1], "ragged"),
    ("beam_width", "INT32", &[1], "scalar"),
    ("temperature", "FP32", &[1], "scalar"),
    ("runtime_top_k", "INT32", &[1], "scalar"),
    ("runtime_top_p", "FP32", &[1], "scalar"),
    ("runtime_top_p_min", "FP32", &[1], "scalar"),
    ("runtime_top_p_decay", "FP32", &[1], "scalar"),
    ("runtime_top_p_reset_ids", "INT32", &[1], "scalar"),
    ("len_penalty", "FP32", &[1], "scalar"),
    ("early_stopping", "BOOL", &[1], "scalar"),
    ("repetition_penalty", "FP32", &[1], "scalar"),
    ("min_tokens", "INT32", &[1], "scalar"),
    ("min_length", "INT32", &[1], "scalar"),
    ("beam_search_diversity_rate", "FP32", &[1], "scalar"),
    ("presence_penalty", "FP32", &[1], "scalar"),
    ("frequency_penalty", "FP32", &[1], "scalar"),
    ("prompt_ignore_length", "INT32", &[1], "scalar"),
    ("seed", "UINT64", &[1], "scalar"),
    ("random_seed", "UINT64", &[1], "scalar"),
    ("return_log_probs", "BOOL", &[1], "scalar"),
    ("return_context_logits", "BOOL", &[1], "scalar"),
    ("return_generation_logits", "BOOL", &[1], "scalar"),
    ("return_perf_metrics", "BOOL", &[1], "scalar"),
    ("return_num_input_tokens", "BOOL", &[1], "scalar"),
    ("return_num_output_tokens", "BOOL", &[1], "scalar"),
    ("exclude_input_in_output", "BOOL", &[1], "scalar"),
    ("stop", "BOOL", &[1], "scalar"),
    ("streaming", "BOOL", &[1], "scalar"),
    ("prompt_embedding_table", "FP16", &[-1, -1], "ragged"),
    ("prompt_table_extra_ids", "UINT64", &[-1], "ragged"),
    ("prompt_vocab_size", "INT32", &[1], "scalar"),
    ("cross_attention_mask", "BOOL", &[-1, -1], "ragged"),
    ("skip_cross_attn_blocks", "BOOL", &[1], "ragged"),
    ("mrope_rotary_cos_sin", "FP32", &[-1], ""),
    ("mrope_position_deltas", "INT64", &[1], ""),
    ("lora_task_id", "UINT64", &[1], "scalar"),
    ("lora_weights", "FP16", &[-1, -1], "ragged"),
    ("lora_config", "INT32", &[-1, 3], "ragged"),
    ("context_phase_params", "UINT8", &[-1], "ragged"),
    ("retention_token_range_starts", "INT32", &[-1], "ragged"),
    ("retention_token_range_ends", "INT32", &[-1], "ragged"),
    ("retention_token_range_priorities", "INT32", &[-1], "ragged"),
    ("retention_token_range_durations_ms", "INT32", &[-1], "ragged"),
    ("retention_decode_priority", "INT32", &[1], "ragged"),
    ("retention_decode_duration_ms", "INT32", &[1], "ragged"),
    ("guided_decoding_guide_type", "STRING", &[1], "ragged"),
    ("guided_decoding_guide", "STRING", &[1], "ragged"),
    ("lookahead_window_size", "INT32", &[1], "ragged"),
    ("lookahead_ngram_size", "INT32", &[1], "ragged"),
    ("lookahead_verification_set_size", "INT32", &[1], "ragged"),
];

/// Name, type, dims, and the shape in the only response to [`PROMPT`] for two tokens.
const OUTPUTS: &[(&str, &str, &[i64], &[i64])] = &[
    ("output_ids", "INT32", &[-1, -1], &[1, 1, 5]),
    ("sequence_length", "INT32", &[-1], &[1, 1]),
    ("context_logits", "FP32", &[-1, -1], &[1, 3, 300]),
    ("generation_logits", "FP32", &[-1, -1, -1], &[1, 1, 2, 300]),
    ("output_log_probs", "FP32", &[-1, -1], &[1, 1, 2]),
    ("cum_log_probs", "FP32", &[-1], &[1, 1]),
    ("batch_index", "INT32", &[1], &[]),
    ("sequence_index", "INT32", &[1], &[]),
    ("context_phase_params", "UINT8", &[-1], &[]),
    ("kv_cache_alloc_new_blocks", "INT32", &[1], &[1, 1]),
    ("kv_cache_reused_blocks", "INT32", &[1], &[1, 1]),
    ("kv_cache_alloc_total_blocks", "INT32", &[1], &[1, 1]),
    ("arrival_time_ns", "INT64", &[1], &[1, 1]),
    ("first_scheduled_time_ns", "INT64", &[1], &[1, 1]),
    ("first_token_time_ns", "INT64", &[1], &[1, 1]),
    ("last_token_time_ns", "INT64", &[1], &[1, 1]),
    ("acceptance_rate", "FP32", &[1], &[1, 1]),
    ("total_accepted_draft_tokens", "INT32", &[1], &[1, 1]),
    ("total_draft_tokens", "INT32", &[1], &[1, 1]),
    ("num_input_tokens", "INT32", &[1], &[1, 1]),
    ("num_output_tokens", "INT32", &[1], &[1, 1]),
];

fn entry<'a>(config: &'a Value, kind: &str, name: &str) -> &'a Value {
    let found = config[kind].as_array().unwrap().iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("{kind} {name}"))
}

fn number(reply: &Reply, name: &str) -> i32 {
    reply.output(name).unwrap_or_else(|| panic!("{name}")).to_int32()[0]
}

fn time_ns(reply: &Reply, name: &str) -> i64 {
    i64::from_le_bytes(reply.output(name).unwrap().bytes[..].try_into().unwrap())
}

fn measured(spec: RequestSpec) -> RequestSpec {
    ["return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens"]
        .into_iter()
        .fold(spec, |spec, name| spec.input(flag(name)))
}

fn int64(name: &str) -> Tensor {
    Tensor::new(name, dtype::INT64, &[1, 1], vec![0; 8])
}

#[test]
fn s2_1_inputs_are_declared_with_the_types_and_dims_of_the_contract() {
    let server = start();
    let config = server.load(model("llm", true, &[])).unwrap().config();
    for &(name, data_type, dims, form) in INPUTS {
        let entry = entry(&config, "input", name);
        assert_eq!(
            (&entry["data_type"], &entry["dims"]),
            (&json!(format!("TYPE_{data_type}")), &json!(dims)),
            "{name}"
        );
        assert_eq!(entry["reshape"] == json!({ "shape": [] }), form == "scalar", "{name}");
        assert_eq!(entry["allow_ragged_batch"] == true, form == "ragged", "{name}");
    }
}

#[test]
fn s3_1_outputs_have_the_types_and_shapes_of_the_contract() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let config = model.config();
    let flags = ["return_log_probs", "return_context_logits", "return_generation_logits"];
    let everything = flags.into_iter().fold(measured(request(&PROMPT, 2)), |spec, name| spec.input(flag(name)));
    let reply = model.infer(everything).remove(0);
    for &(name, data_type, dims, shape) in OUTPUTS {
        let entry = entry(&config, "output", name);
        assert_eq!(
            (&entry["data_type"], &entry["dims"]),
            (&json!(format!("TYPE_{data_type}")), &json!(dims)),
            "{name}"
        );
        let code = match data_type {
            "INT32" => dtype::INT32,
            "INT64" => dtype::INT64,
            _ => dtype::FP32,
        };
        let got = reply.output(name).map(|output| (output.dtype, &output.shape[..]));
        assert_eq!(got, Some((code, shape)).filter(|_| !shape.is_empty()), "{name}");
    }
}

#[test]
fn s2_1_what_says_nothing_to_a_decoder_is_taken() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let flags = |name: &str, shape: &[i64]| {
        let count = shape.iter().product::<i64>() as usize;
        Tensor::bools(name, shape, &vec![true; count])
    };
    let tensors = [
        int("encoder_output_lengths", 4),
        Tensor::int32("decoder_input_ids", &[1, 2], &[9, 9]),
        int("decoder_input_lengths", 2),
        int("pad_id", -1),
        int("prompt_vocab_size", 12),
        flags("cross_attention_mask", &[1, 3, 4]),
        flags("skip_cross_attn_blocks", &[1, 1]),
        Tensor::fp32("mrope_rotary_cos_sin", &[1, 4], &[1.0; 4]),
        int("lookahead_ngram_size", 3),
        int("lookahead_verification_set_size", 3),
        Tensor::fp32("draft_acceptance_threshold", &[1], &[1.0]),
        int("START", 1),
        int("END", 1),
        Tensor::uint64("CORRID", &[1], &[5]),
    ];
    for tensor in tensors.iter().cloned().chain([int64("mrope_position_deltas")]) {
        let name = tensor.name.clone();
        assert_eq!(tokens(&model.infer(request(&PROMPT, 2).input(tensor)))[0].1, ANSWER, "{name}");
    }
    let all = tensors.into_iter().fold(request(&PROMPT, 2), RequestSpec::input);
    assert_eq!(tokens(&model.infer(all))[0].1, ANSWER);
}

#[test]
fn s2_1_what_is_not_served_is_refused_by_name_and_accepted_empty() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let (fp16, int32) = (dtype::FP16, dtype::INT32);
    let cases: [(&str, u32, &[i64], usize); 8] = [
        ("encoder_input_features", fp16, &[1, 2, 2], 2),
        ("multimodal_embedding", fp16, &[1, 2, 2], 2),
        ("multimodal_hashes", int32, &[1, 1, 8], 4),
        ("multimodal_positions", int32, &[1, 1], 4),
        ("multimodal_lengths", int32, &[1, 1], 4),
        ("multimodal_item_runs", int32, &[1, 1, 1, 2], 4),
        ("context_phase_params", UINT8, &[1, 3], 1),
        ("lookahead_window_size", int32, &[1, 1], 4),
    ];
    for (name, dtype, shape, width) in cases {
        let bytes = vec![0; width * shape.iter().product::<i64>() as usize];
        let (code, text) = error(&model.infer(request(&PROMPT, 2).input(Tensor::new(name, dtype, shape, bytes))));
        assert!(code == UNSUPPORTED && text.contains(name), "{name}: {text}");
        let empty = [&shape[..shape.len() - 1], &[0]].concat();
        let spec = request(&PROMPT, 2).input(Tensor::new(name, dtype, &empty, Vec::new()));
        assert_eq!(tokens(&model.infer(spec))[0].1, ANSWER, "{name}");
    }
    let table = Tensor::fp32("mrope_rotary_cos_sin", &[1, 4], &[1.0; 4]);
    let (code, text) = error(&model.infer(request(&PROMPT, 2).input(table).input(int64("mrope_position_deltas"))));
    assert!(code == UNSUPPORTED && text.contains("mrope_rotary_cos_sin"), "{text}");
    let mut features = request(&PROMPT, 2).input(Tensor::new("encoder_input_features", fp16, &[1, 1, 1], vec![0; 2]));
    features.inputs.retain(|input| input.tensor.name != "input_ids");
    assert_eq!(error(&model.infer(features)).0, UNSUPPORTED, "in place of a prompt too");
}

#[test]
fn s2_1_numbers_at_and_beyond_their_bounds() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let float = |name: &str, value: f32| Tensor::fp32(name, &[1], &[value]);
    let (code, text) = error(&model.infer(request(&PROMPT, 2).input(int("end_id", -2))));
    assert!(code == INVALID_ARG && text.contains("end_id -2 is outside the vocabulary"), "{text}");
    for tensor in [
        int("num_return_sequences", 0),
        int("num_return_sequences", -1),
        int("min_tokens", -1),
        int("beam_width", -1),
        float("draft_acceptance_threshold", 1.5),
        float("runtime_top_p_decay", 1.5),
        float("runtime_top_p_min", -0.5),
        float("repetition_penalty", -1.0),
        float("frequency_penalty", f32::NAN),
    ] {
        let name = tensor.name.clone();
        let (code, text) = error(&model.infer(request(&PROMPT, 2).input(tensor)));
        assert!(code == INVALID_ARG && text.contains(&format!("{name} is ")), "{name}: {text}");
    }
    for tensor in [
        int("end_id", -1),
        int("end_id", 299),
        int("num_return_sequences", 1),
        int("min_tokens", 0),
        int("runtime_top_p_reset_ids", 0),
        float("temperature", 0.0),
        float("runtime_top_p", 1.0),
        float("runtime_top_p_decay", 1.0),
        float("runtime_top_p_min", 0.0),
        float("runtime_top_p_min", 1.0),
        float("len_penalty", 0.0),
        float("presence_penalty", -2.0),
        float("frequency_penalty", -2.0),
    ] {
        let name = tensor.name.clone();
        assert_eq!(tokens(&model.infer(request(&PROMPT, 2).input(tensor)))[0].1, ANSWER, "{name}");
    }
}

#[test]
fn s2_2_texts_of_a_batch_are_told_apart_whatever_their_lengths() {
    let server = start();
    let model = server.load(text_model("llm", &[])).unwrap();
    let batch = |kinds: [&str; 2], guides: [&str; 2]| {
        outputs(RequestSpec::new(""))
            .input(Tensor::int32("input_ids", &[2, 1], &[5, 7]))
            .input(Tensor::int32("input_lengths", &[2], &[1, 1]))
            .input(Tensor::int32("request_output_len", &[2], &[1, 1]))
            .input(Tensor::int32("end_id", &[2], &[EOS, EOS]))
            .input(Tensor::strings("guided_decoding_guide_type", &[2, 1], &kinds))
            .input(Tensor::strings("guided_decoding_guide", &[2, 1], &guides))
    };
    let (_, text) = error(&model.infer(batch(["regex", "nonsense"], ["a+", ""])));
    assert!(text.starts_with("batch item 1: guided_decoding_guide_type: \"nonsense\" is none of"), "{text}");
    let (_, text) = error(&model.infer(batch(["regex", "json_schema"], ["(yes|no)", "{"])));
    assert!(text.contains("the json_schema guide"), "{text}");
    assert_eq!(model.infer(batch(["", "regex"], ["", "(yes|no)"])).len(), 2);
}

#[test]
fn s2_2_without_a_batch_axis_tensors_have_their_own_dims() {
    let server = start();
    let mut spec = model("llm", false, &[]);
    spec.config["input"] = json!([{ "name": "input_ids" }]);
    spec.config["max_batch_size"] = 0.into();
    let model = server.load(spec).unwrap();
    let ask = |tensor: Tensor| {
        outputs(RequestSpec::new(""))
            .input(Tensor::int32("input_ids", &[3], &PROMPT))
            .input(int("request_output_len", 4))
            .input(tensor)
    };
    let stopped = model.infer(ask(Tensor::int32("stop_words_list", &[2, 2], &[20, 0, 1, -1])));
    assert_eq!(stopped[0].outputs[0].to_int32(), [5, 6, 7, 20]);
    let bad = model.infer(ask(Tensor::int32("bad_words_list", &[2, 2], &[20, 0, 1, -1])));
    assert_ne!(bad[0].outputs[0].to_int32()[3], 20);
    let mut bias = vec![0.0; 31];
    bias[30] = 50.0;
    let steered = model.infer(ask(Tensor::fp32("embedding_bias", &[31], &bias)));
    assert_eq!(steered[0].outputs[0].to_int32(), [5, 6, 7, 30, 30, 30, 30]);
}

#[test]
fn s3_1_an_index_comes_where_it_is_listed_and_there_are_several() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let batch = || {
        outputs(RequestSpec::new(""))
            .input(Tensor::int32("input_ids", &[2, 1], &[7, 7]))
            .input(Tensor::int32("input_lengths", &[2], &[1, 1]))
            .input(Tensor::int32("request_output_len", &[2], &[1, 1]))
    };
    let several = || request(&PROMPT, 1).input(int("num_return_sequences", 2));
    let without = |mut spec: RequestSpec, name: &str| {
        spec.outputs.retain(|output| output != name);
        spec
    };
    let cases = [
        (request(&PROMPT, 1), false, false),
        (request(&PROMPT, 1).input(int("num_return_sequences", 1)), false, false),
        (batch(), true, false),
        (without(batch(), "batch_index"), false, false),
        (several(), false, true),
        (without(several(), "sequence_index"), false, false),
        (batch().input(Tensor::int32("num_return_sequences", &[2], &[2, 2])), true, true),
    ];
    for (at, (spec, batch_index, sequence_index)) in cases.into_iter().enumerate() {
        for reply in model.infer(spec) {
            let has = |name: &str| reply.output(name).is_some();
            assert_eq!((has("batch_index"), has("sequence_index")), (batch_index, sequence_index), "case {at}");
        }
    }
}

#[test]
fn s2_3_each_item_of_a_batch_gets_what_it_asked_for() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    for [first, second] in [[true, false], [false, true]] {
        let mut spec = outputs(RequestSpec::new(""))
            .input(Tensor::int32("input_ids", &[2, 1], &[7, 7]))
            .input(Tensor::int32("input_lengths", &[2], &[1, 1]))
            .input(Tensor::int32("request_output_len", &[2], &[1, 1]))
            .input(Tensor::int32("num_return_sequences", &[2], &[1 + i32::from(first), 1 + i32::from(second)]));
        for name in ["log_probs", "context_logits", "generation_logits", "num_input_tokens", "num_output_tokens"] {
            spec = spec.input(Tensor::bools(&format!("return_{name}"), &[2], &[first, second]));
        }
        let replies = model.infer(spec);
        assert_eq!(replies.len(), 3);
        for reply in replies {
            let asked = [first, second][number(&reply, "batch_index") as usize];
            for name in [
                "sequence_index",
                "output_log_probs",
                "cum_log_probs",
                "context_logits",
                "generation_logits",
                "num_input_tokens",
                "num_output_tokens",
            ] {
                assert_eq!(reply.output(name).is_some(), asked, "{name}");
            }
        }
    }
}

#[test]
fn s2_1_the_old_flag_of_reuse_asks_for_the_three_block_counts() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let reply = model.infer(request(&PROMPT, 1).input(flag("return_kv_cache_reuse_stats"))).remove(0);
    let names: Vec<_> = reply.outputs.iter().map(|output| output.name.as_str()).collect();
    let blocks = ["kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"];
    assert_eq!(names[2..], blocks);
    assert_eq!(blocks.map(|name| number(&reply, name)), [1, 0, 1]);
}

#[test]
fn s3_3_each_response_of_a_stream_has_its_own_counts_and_times() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    // Whether the input is excluded or not, a stream never has it.
    for excluded in [true, false] {
        let spec = measured(request(&PROMPT, 8)).input(flag("streaming")).input(int("end_id", EOS));
        let replies = model.infer(spec.input(Tensor::bools("exclude_input_in_output", &[1], &[excluded])));
        let ids: Vec<_> = tokens(&replies).into_iter().map(|reply| reply.1).collect();
        assert_eq!(ids, [vec![20], vec![21], vec![]]);
        for (reply, count) in replies.iter().zip([1, 1, 0]) {
            assert_eq!((number(reply, "num_input_tokens"), number(reply, "num_output_tokens")), (3, count));
            assert_eq!(time_ns(reply, "last_token_time_ns") != 0, reply.is_final, "0 until the last");
            let [arrival, scheduled, first] =
                ["arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns"].map(|name| time_ns(reply, name));
            assert!(0 < arrival && arrival <= scheduled && scheduled <= first, "{reply:?}");
        }
    }
}
