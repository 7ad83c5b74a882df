//! Rows of the contract that state a behaviour, by their section: tables of requests and what comes back.

use crate::fake::{ModelSpec, RequestSpec, Tensor, dtype};
use crate::script::{EOS, error, flag, int, model, outputs, request, start, tokens};

const INTERNAL: u32 = 1;
const INVALID_ARG: u32 = 3;
const PROMPT: [i32; 3] = [5, 6, 7];

fn batch(ids: &[i32], width: i64, lengths: &[i32], output_lens: &[i32]) -> RequestSpec {
    let rows = lengths.len() as i64;
    outputs(RequestSpec::new(""))
        .input(Tensor::int32("input_ids", &[rows, width], ids))
        .input(Tensor::int32("input_lengths", &[rows], lengths))
        .input(Tensor::int32("request_output_len", &[rows], output_lens))
}

fn words(name: &str, values: &[i32]) -> Tensor {
    Tensor::int32(name, &[1, 2, values.len() as i64 / 2], values)
}

#[test]
fn s2_3_a_batch_is_cut_by_its_lengths_and_refused_as_a_whole() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let mut without = batch(&[5, 7], 1, &[1, 1], &[1, 1]);
    without.inputs.retain(|input| input.tensor.name != "input_lengths");
    let cases = [
        (without, "input_lengths is not present"),
        (batch(&[5, 7, 7, 0], 2, &[2, 3], &[1, 1]), "input_lengths is 3, expected 1 to 2"),
        (batch(&[5, 7, 7, 0], 2, &[2, 0], &[1, 1]), "input_lengths is 0, expected 1 to 2"),
        (batch(&[5, 7, 7, 999], 2, &[2, 2], &[1, 1]), "input_ids is 999"),
        (batch(&[5, 7, 7, 0], 2, &[2, 1], &[1, 0]), "request_output_len is 0"),
        (batch(&[5, 7, 7, 0], 2, &[2, 1], &[1, 1]).input(int("end_id", 3)), "Invalid size for tensor end_id"),
    ];
    for (spec, fragment) in cases {
        let (code, text) = error(&model.infer(spec));
        assert!(code == INVALID_ARG && text.contains(fragment), "{text:?} lacks {fragment:?}");
    }
    // What is padding is not looked at.
    let replies = model.infer(batch(&[5, 7, 7, 999], 2, &[2, 1], &[1, 1]));
    assert_eq!(replies.len(), 2);
}

#[test]
fn s2_3_flags_of_the_first_item_are_those_of_all() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let flags = |name: &str| Tensor::bools(name, &[2], &[true, false]);
    let spec = batch(&[7, 7], 1, &[1, 1], &[2, 2]).input(flags("streaming")).input(flags("return_perf_metrics"));
    let replies = model.infer(spec);
    assert_eq!(replies.len(), 4, "both stream");
    assert!(replies.iter().all(|reply| reply.output("arrival_time_ns").is_some()));
}

#[test]
fn s2_4_sampling_corner_cases_give_the_greedy_answer_or_are_refused() {
    let server = start();
    let model = server.load(model("llm", false, &[("max_seq_len", "9")])).unwrap();
    let float = |name: &str, value: f32| Tensor::fp32(name, &[1], &[value]);
    for input in [
        float("temperature", 0.3),
        float("temperature", 0.0),
        int("runtime_top_k", 1),
        float("runtime_top_p", 0.0),
        float("runtime_top_p", -1.0),
        float("runtime_top_p", 0.5),
        int("runtime_top_k", 0),
        int("min_length", 0),
    ] {
        let name = input.name.clone();
        let replies = model.infer(request(&PROMPT, 2).input(input));
        assert_eq!(tokens(&replies)[0].1, [5, 6, 7, 20, 21], "{name}");
    }
    let clipped = tokens(&model.infer(request(&PROMPT, 1000))).remove(0);
    assert_eq!(clipped.1.len(), 9, "s11.42: the output is cut to the room there is");
}

#[test]
fn s2_5_word_lists_are_read_as_the_contract_says() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let answer = |list: Tensor| tokens(&model.infer(request(&PROMPT, 4).input(list))).remove(0).1;
    // [20, 21] and [99]; then what follows the first -1 does not count, nor does the padding of ids.
    assert_eq!(answer(words("stop_words_list", &[20, 21, 99, 2, 3, -1])), [5, 6, 7, 20, 21]);
    assert_eq!(answer(words("stop_words_list", &[20, 0, 0, 1, -1, -1])), [5, 6, 7, 20]);
    assert_eq!(answer(words("stop_words_list", &[20, 0, -1, -1])).len(), 7, "no words");
    assert_eq!(answer(Tensor::int32("stop_words_list", &[1, 2, 0], &[])).len(), 7, "no words");
    assert_ne!(answer(words("bad_words_list", &[20, 0, 1, -1]))[3], 20);
    assert_eq!(answer(words("bad_words_list", &[20, 21, 2, -1]))[3], 20, "only the last token of a word is held back");
    assert_ne!(answer(words("bad_words_list", &[20, 21, 2, -1]))[4], 21);
}

#[test]
fn s2_7_adapters_are_named_by_number_and_nothing_is_one() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let weights = || Tensor::new("lora_weights", dtype::FP16, &[1, 1, 2], vec![0; 4]);
    let config = || Tensor::int32("lora_config", &[1, 1, 3], &[0, 0, 1]);
    let id = |id: u64| Tensor::uint64("lora_task_id", &[1], &[id]);
    for spec in [request(&PROMPT, 2).input(id(0)), request(&PROMPT, 2).input(weights()).input(config())] {
        assert_eq!(tokens(&model.infer(spec))[0].1, [5, 6, 7, 20, 21]);
    }
    for (spec, fragment) in [
        (request(&PROMPT, 2).input(id(7)).input(weights()), "lora_weights is given without lora_config"),
        (request(&PROMPT, 2).input(id(7)).input(config()), "lora_config is given without lora_weights"),
        (request(&PROMPT, 2).input(id(7)), "Executor failed process requestId"),
    ] {
        let (_, text) = error(&model.infer(spec));
        assert!(text.contains(fragment), "{text:?} lacks {fragment:?}");
    }
}

#[test]
fn s3_2_what_is_listed_and_what_comes() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let mut spec = request(&PROMPT, 2)
        .input(flag("return_perf_metrics"))
        .input(flag("return_log_probs"))
        .input(flag("return_num_input_tokens"))
        .input(flag("return_num_output_tokens"));
    let names = |spec: RequestSpec| {
        let reply = model.infer(spec).remove(0);
        assert_eq!(reply.error, None);
        reply.outputs.into_iter().map(|output| output.name).collect::<Vec<_>>()
    };
    assert_eq!(
        names(spec.clone()),
        [
            "output_ids",
            "sequence_length",
            "output_log_probs",
            "cum_log_probs",
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
            "num_input_tokens",
            "num_output_tokens"
        ],
        "the order of the contract"
    );
    spec.outputs = vec!["sequence_length".into(), "output_ids".into(), "context_logits".into()];
    let listed = names(spec);
    assert_eq!(listed[..2], ["output_ids", "sequence_length"], "whatever order the client lists");
    assert!(listed.contains(&"num_output_tokens".to_owned()), "performance and counts need not be listed");
    assert!(!listed.iter().any(|name| name.ends_with("log_probs") || name == "context_logits"), "{listed:?}");
}

#[test]
fn s3_2_an_output_that_the_configuration_lacks_is_an_error_and_not_half_a_response() {
    let server = start();
    let full = server.load(model("full", false, &[])).unwrap().config();
    let mut spec = model("llm", false, &[]);
    spec.config["input"] = full["input"].clone();
    spec.config["max_batch_size"] = full["max_batch_size"].clone();
    let declared = full["output"].as_array().unwrap().iter().filter(|output| output["name"] != "arrival_time_ns");
    spec.config["output"] = declared.cloned().collect();
    let model = server.load(ModelSpec { auto_complete: false, ..spec }).unwrap();
    assert_eq!(tokens(&model.infer(request(&PROMPT, 2)))[0].1, [5, 6, 7, 20, 21]);
    let (code, text) = error(&model.infer(request(&PROMPT, 2).input(flag("return_perf_metrics"))));
    assert!(text.contains("Error encountered while populating response"), "{text}");
    assert!(code == INTERNAL || code == INVALID_ARG, "{code}");
}

#[test]
fn s2_1_the_load_report_names_inputs_without_effect_and_unknown_ones() {
    let server = start();
    let mut spec = model("llm", false, &[]);
    let input =
        |name: &str| serde_json::json!({ "name": name, "data_type": "TYPE_INT32", "dims": [1], "optional": true });
    let names = ["input_ids", "input_lengths", "request_output_len", "pad_id", "CORRID", "surprise"];
    spec.config["input"] = names.map(input).into_iter().collect();
    let _model = server.load(spec).unwrap();
    let said = |part: &str| server.log().iter().any(|(_, _, text)| text.contains(part));
    assert!(
        said("input \\\"surprise\\\" of the configuration is unknown")
            || said("input \"surprise\" of the configuration is unknown")
    );
    assert!(said("declared inputs without effect on this model: pad_id"));
    assert!(!said("CORRID"));
}

/// Responses as shape, tokens and whether it is the last, for the requests of appendix B that end alone.
#[test]
fn appendix_b_worked_examples() {
    let server = start();
    for decoupled in [false, true] {
        let model = server.load(model("llm", decoupled, &[])).unwrap();
        let ending = || request(&PROMPT, 8).input(int("end_id", EOS));
        let cases: Vec<(RequestSpec, &[&[i32]])> = vec![
            (request(&PROMPT, 2), &[&[5, 6, 7, 20, 21]]),
            (request(&PROMPT, 2).input(flag("exclude_input_in_output")), &[&[20, 21]]),
            (ending(), &[&[5, 6, 7, 20, 21]]),
            (request(&PROMPT, 2).input(flag("streaming")), &[&[20], &[21]]),
            (ending().input(flag("streaming")), &[&[20], &[21], &[]]),
        ];
        for (spec, expected) in cases {
            let replies = model.infer(spec);
            if !decoupled && expected.len() > 1 {
                assert!(error(&replies).1.contains("Streaming is only supported"));
                continue;
            }
            let last = expected.len() - 1;
            let want = expected
                .iter()
                .enumerate()
                .map(|(at, ids)| (vec![1, 1, ids.len() as i64], ids.to_vec(), vec![ids.len() as i32], at == last));
            assert_eq!(tokens(&replies), want.collect::<Vec<_>>());
        }
    }
}
