//! `config.pbtxt` (contract 1): every parameter key with its type and default, the rules of parsing, and what does not load.

use serde_json::{Value, json};
use triton_trtllm::config::{PARAMETERS, ParameterRow, Parameters, Source};

use crate::fake::{ModelSpec, Server};
use crate::script::{error, flag, int, model, request, start, tokenizer_dir, tokens};

const PROMPT: [i32; 3] = [5, 6, 7];

fn row(key: &str) -> &'static ParameterRow {
    PARAMETERS.iter().find(|row| row.key == key).unwrap_or_else(|| panic!("{key} is a parameter"))
}

fn read(parameters: Value) -> Parameters {
    Parameters::load(&json!({ "parameters": parameters })).unwrap().parameters
}

fn shown(key: &str, text: &str) -> (String, Source) {
    let parameters = read(json!({ key: { "string_value": text } }));
    ((row(key).show)(&parameters), (row(key).source)(&parameters))
}

/// Why a model of the template with these parameters does not load.
fn refusal(server: &Server, parameters: &[(&str, &str)]) -> String {
    server.load(model("llm", false, parameters)).err().expect("must not load").message
}

/// Key, default, a text, its value, and a text that is none of the type (the empty one where every text is a value).
const KEYS: &[(&str, &str, &str, &str, &str)] = &[
    // 1.3.1
    ("gpt_model_type", "unset", "v1", "\"v1\"", ""),
    ("gpt_model_path", "unset", "/models/1", "\"/models/1\"", ""),
    ("encoder_model_path", "unset", "/models/2", "\"/models/2\"", ""),
    ("max_beam_width", "1", "4", "4", "four"),
    ("batch_scheduler_policy", "balanced", "guaranteed_no_evict", "guaranteed_no_evict", "Max_Utilization"),
    ("enable_chunked_context", "true", "False", "false", "off"),
    ("max_num_sequences", "unset", "7", "7", "many"),
    ("enable_trt_overlap", "false", "true", "true", "t"),
    ("gpu_weights_percent", "1", "0.25", "0.25", "all"),
    ("exclude_input_in_output", "false", "1", "true", "yes"),
    ("normalize_log_probs", "true", "FALSE", "false", "no"),
    // 1.3.2
    ("max_tokens_in_paged_kv_cache", "unset", "2560", "2560", "-"),
    ("kv_cache_free_gpu_mem_fraction", "unset", "0.5", "0.5", "half"),
    ("cross_kv_cache_fraction", "unset", "0.25", "0.25", "half"),
    ("kv_cache_host_memory_bytes", "unset", "1e9", "1", "G"),
    ("kv_cache_onboard_blocks", "true", "0", "false", "2"),
    ("max_attention_window_size", "unset", "4096, 128,", "4096,128", ",4096"),
    ("sink_token_length", "unset", "4", "4", "four"),
    ("enable_kv_cache_reuse", "true", "0", "false", "Yes"),
    // 1.3.3
    ("multi_block_mode", "true", "false", "false", "off"),
    ("enable_context_fmha_fp32_acc", "false", "True", "true", "on"),
    ("cuda_graph_mode", "true", "false", "false", "off"),
    ("cuda_graph_cache_size", "0", "16", "16", "x16"),
    ("recv_poll_period_ms", "0", "5", "5", "ms"),
    ("iter_stats_max_iterations", "1000", "0", "0", "none"),
    ("request_stats_max_iterations", "0", "10", "10", "none"),
    ("stats_check_period_ms", "100", "0", "0", "ms"),
    ("cancellation_check_period_ms", "100", "1.5", "1", "ms"),
    // 1.3.4
    ("gpu_device_ids", "unset", "0,1;2,x", "0,1", ";"),
    ("participant_ids", "unset", "1,2;3", "1,2;3", ";1"),
    ("num_nodes", "1", "2 nodes", "2", "two"),
    ("executor_worker_path", "unset", "/opt/worker", "\"/opt/worker\"", ""),
    ("worker_path", "unset", "/opt/worker", "\"/opt/worker\"", ""),
    // 1.3.5
    ("lora_cache_optimal_adapter_size", "8", "16", "16", "x"),
    ("lora_cache_max_adapter_size", "64", "128", "128", "x"),
    ("lora_cache_gpu_memory_fraction", "0.05", ".5", "0.5", "x"),
    ("lora_cache_host_memory_bytes", "1073741824", "2048", "2048", "x"),
    ("lora_prefetch_dir", "unset", "/adapters", "\"/adapters\"", ""),
    // 1.3.6
    ("decoding_mode", "unset", "top_k_top_p", "top_k_top_p", "Top_K"),
    ("medusa_choices", "unset", "{0}, {0, 1}", "{0},{0,1}", "{}"),
    ("eagle_choices", "unset", "{0, 0, 0}, {0, 1}", "{0,0,0},{0,1}", "0"),
    ("lookahead_window_size", "unset", "-1", "4294967295", "x"),
    ("lookahead_ngram_size", "unset", "3", "3", "x"),
    ("lookahead_verification_set_size", "unset", "3", "3", "x"),
    ("speculative_decoding_fast_logits", "false", "1", "true", "on"),
    // 1.3.7, 1.3.8
    ("tokenizer_dir", "unset", "/tokenizer", "\"/tokenizer\"", ""),
    ("xgrammar_tokenizer_info_path", "unset", "/info.json", "\"/info.json\"", ""),
    ("guided_decoding_backend", "unset", "xgrammar", "xgrammar", "outlines"),
    ("FORCE_CPU_ONLY_INPUT_TENSORS", "unset", "no", "\"no\"", ""),
    // Legacy
    ("max_kv_cache_length", "unset", "4096", "4096", "long"),
    ("multiBlockMode", "unset", "true", "true", "on"),
    ("enableContextFMHAFP32Acc", "unset", "false", "false", "off"),
];

#[test]
fn s1_3_every_key_has_its_type_and_falls_back_to_its_default() {
    assert_eq!(KEYS.len(), 47 + 4 + 1, "the keys of the contract and the one that is none of the C++ backend");
    for &(key, default, text, value, wrong) in KEYS {
        assert_eq!((row(key).show)(&Parameters::default()), default, "{key} is missing");
        assert_eq!(shown(key, text), (value.to_owned(), Source::Given), "{key} = {text:?}");
        let source = if wrong.is_empty() { Source::Default } else { Source::Unparsable };
        assert_eq!(shown(key, wrong), (default.to_owned(), source), "{key} = {wrong:?}");
        assert_eq!(shown(key, ""), (default.to_owned(), Source::Default), "{key} is empty");
        assert_eq!(shown(key, "${placeholder}"), (default.to_owned(), Source::Placeholder), "{key} is not substituted");
    }
}

#[test]
fn s1_2_a_parameter_without_its_text_is_empty() {
    let server = start();
    for parameters in [json!({}), json!({ "enable_kv_cache_reuse": {} }), json!({ "max_beam_width": Value::Null })] {
        assert!(read(parameters.clone()).enable_kv_cache_reuse.value, "{parameters}");
        assert_eq!(read(parameters).max_beam_width.value, 1);
    }
    let mut spec = model("llm", false, &[]);
    spec.config["parameters"]["gpt_model_path"] = json!({});
    let message = server.load(spec).err().expect("must not load").message;
    assert!(message.contains("Both encoder and decoder model paths are empty"), "{message}");
}

#[test]
fn s1_2_repositories_full_of_placeholders_load() {
    let server = start();
    let keys = KEYS.iter().map(|row| row.0).filter(|key| !["gpt_model_type", "gpt_model_path"].contains(key));
    let parameters: Vec<_> = keys.map(|key| (key, "${placeholder}")).collect();
    let model = server.load(model("llm", false, &parameters)).unwrap();
    assert_eq!(tokens(&model.infer(request(&PROMPT, 2)))[0].1, [5, 6, 7, 20, 21]);
}

#[test]
fn s1_3_1_the_batching_type_has_four_words() {
    let server = start();
    for word in ["inflight_fused_batching", "inflight_batching", "V1", "v1"] {
        assert!(server.load(model("llm", false, &[("gpt_model_type", word)])).is_ok(), "{word}");
    }
    for word in ["Inflight_Batching", "v2", "${batching_strategy}", ""] {
        let message = refusal(&server, &[("gpt_model_type", word)]);
        let start = "unexpected error when creating modelState: Invalid gpt_model_type";
        assert!(message.starts_with(start), "{word:?}: {message}");
    }
}

#[test]
fn s1_3_1_paths_that_do_not_exist_are_empty() {
    let server = start();
    for path in ["", "${encoder_engine_dir}", "/no/such/encoder"] {
        assert!(server.load(model("llm", false, &[("encoder_model_path", path)])).is_ok(), "{path:?}");
    }
    let neither = refusal(&server, &[("gpt_model_path", "${engine_dir}"), ("encoder_model_path", "/no/such/encoder")]);
    assert!(neither.contains("Both encoder and decoder model paths are empty"), "{neither}");
    let folder = tempfile::tempdir().unwrap();
    let encoder = refusal(&server, &[("encoder_model_path", folder.path().to_str().unwrap())]);
    assert!(encoder.contains("models with an encoder are not served"), "{encoder}");
}

#[test]
fn s1_3_numbers_that_mean_nothing_do_not_load() {
    let server = start();
    for (key, text) in [
        ("max_beam_width", "0"),
        ("gpu_weights_percent", "1.5"),
        ("kv_cache_free_gpu_mem_fraction", "nan"),
        ("max_tokens_in_paged_kv_cache", "-1"),
        ("sink_token_length", "-4"),
        ("num_nodes", "0"),
        ("lora_cache_gpu_memory_fraction", "inf"),
    ] {
        let message = refusal(&server, &[(key, text)]);
        assert!(message.contains(&format!("{key} is ")) && message.contains("expected "), "{key}: {message}");
    }
}

#[test]
fn s1_3_2_the_old_name_of_the_window_counts_where_the_new_one_is_not_given() {
    let window = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(key, text)| ((*key).to_owned(), json!({ "string_value": text })));
        read(Value::Object(pairs.collect())).max_attention_window_size.value
    };
    let (new, old) = ("max_attention_window_size", "max_kv_cache_length");
    assert_eq!(window(&[(old, "128")]), Some(vec![128]));
    assert_eq!(window(&[(old, "128"), (new, "${max_attention_window_size}")]), Some(vec![128]));
    assert_eq!(window(&[(old, "128"), (new, "64,32")]), Some(vec![64, 32]));
    assert_eq!(window(&[(old, "${max_kv_cache_length}"), (new, "64")]), Some(vec![64]));
}

#[test]
fn s1_3_6_modes_without_drafts_of_their_own_say_so_and_lookahead_needs_three_numbers() {
    let server = start();
    let lookahead =
        ["lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"].map(|key| (key, "3"));
    let mode = ("decoding_mode", "lookahead");
    for missing in 0..3 {
        let mut given = vec![mode];
        given.extend(lookahead.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, pair)| *pair));
        let message = refusal(&server, &given);
        assert!(lookahead.iter().all(|(key, _)| message.contains(key)), "{message}");
    }
    assert!(server.load(model("llm", false, &lookahead[..1])).is_ok(), "read with that mode only");
    let whole: Vec<_> = [mode].into_iter().chain(lookahead).collect();
    let all =
        [&whole[..], &[("decoding_mode", "medusa")], &[("decoding_mode", "eagle")], &[("decoding_mode", "redrafter")]];
    for parameters in all {
        let name = parameters[0].1;
        let model = server.load(model(name, false, parameters)).unwrap();
        assert_eq!(tokens(&model.infer(request(&PROMPT, 2)))[0].1, [5, 6, 7, 20, 21], "{name}");
        let warned = |text: &str| text.contains(&format!("{name}: decoding_mode is {name}, whose drafts"));
        assert!(server.log().iter().any(|(_, _, text)| warned(text)), "{name}");
    }
}

#[test]
fn s1_3_7_guided_decoding_wants_its_file_and_one_of_its_words() {
    let server = start();
    let (path, backend) = ("xgrammar_tokenizer_info_path", "guided_decoding_backend");
    let missing = refusal(&server, &[(path, "/no/such/info.json"), (backend, "xgrammar")]);
    assert!(missing.contains("\"/no/such/info.json\", which does not exist"), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("info.json");
    let file = file.to_str().unwrap();
    std::fs::write(file, "{}").unwrap();
    let broken = refusal(&server, &[(path, file)]);
    assert!(broken.contains("xgrammar_tokenizer_info_path") && broken.contains("tokenizer_str is missing"), "{broken}");
    let vocabulary = std::fs::read_to_string(tokenizer_dir().join("tokenizer.json")).unwrap();
    std::fs::write(file, json!({ "tokenizer_str": vocabulary, "stop_token_ids": [2] }).to_string()).unwrap();
    let other = refusal(&server, &[(path, file), (backend, "outlines")]);
    assert!(other.contains("guided_decoding_backend is \"outlines\", expected one of xgrammar, "), "{other}");
    for given in [
        &[(path, file), (backend, "xgrammar")][..],
        &[(path, file), (backend, "${guided_decoding_backend}")],
        &[(path, "/no/such/info.json"), (backend, "off")],
        &[(backend, "xgrammar")],
        &[(backend, "outlines")],
    ] {
        assert!(server.load(model("llm", false, given)).is_ok(), "{given:?}");
    }
}

#[test]
fn s1_1_what_stands_outside_of_the_parameters() {
    let server = start();
    let full = server.load(model("full", false, &[])).unwrap().config();
    let with = |change: fn(&mut Value)| {
        let mut spec = ModelSpec { auto_complete: false, ..model("llm", true, &[]) };
        for key in ["input", "output", "max_batch_size"] {
            spec.config[key] = full[key].clone();
        }
        change(&mut spec.config);
        server.load(spec).unwrap()
    };
    let changes: [fn(&mut Value); 2] = [
        |config| drop(config.as_object_mut().unwrap().remove("model_transaction_policy")),
        |config| config["model_transaction_policy"] = json!({}),
    ];
    for change in changes {
        let (_, text) = error(&with(change).infer(request(&PROMPT, 2).input(flag("streaming"))));
        assert!(text.contains("Streaming is only supported"), "{text}");
    }
    // None of these is a limit of the engine's queue.
    let changes: [fn(&mut Value); 3] = [
        |config| config["dynamic_batching"] = json!({ "max_queue_delay_microseconds": 100 }),
        |config| config["dynamic_batching"] = json!({ "default_queue_policy": {} }),
        |config| config["dynamic_batching"] = json!({ "default_queue_policy": { "max_queue_size": 0 } }),
    ];
    for change in changes {
        let model = with(change);
        let several = (0..40).map(|_| request(&PROMPT, 2).input(int("end_id", -1))).collect();
        model.execute(several).into_iter().for_each(|ticket| assert_eq!(ticket.wait()[0].error, None));
    }
}
