//! Stop, disconnect, statistics, metrics, health, loading.

use std::time::Duration;

use serde_json::{Value, json};
use triton_trtllm::config::BatchingType;
use triton_trtllm::metrics::Family;

use crate::fake::{ModelSpec, RequestSpec, Tensor};
use crate::script::{POISON, error, flag, model, request, start, text_model, tokens, with_id};

const PROMPT: [i32; 3] = [5, 6, 7];
/// Longer than any test waits for.
const ENDLESS: i32 = 1_000_000;

fn endless(id: &str) -> RequestSpec {
    with_id(request(&[100], ENDLESS), id).input(flag("streaming"))
}

fn stop(id: &str) -> RequestSpec {
    let mut stop = with_id(request(&[0], 0), id).input(flag("stop"));
    stop.inputs[1].tensor = Tensor::int32("input_lengths", &[1], &[0]);
    stop
}

#[test]
fn stop_ends_the_request_of_its_id_with_what_it_has() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let victim = model.execute(vec![endless("a")])[0];
    victim.wait_for(3);
    let reply = model.execute(vec![stop("a")])[0];
    let answer = reply.wait();
    assert_eq!(answer.len(), 1);
    assert!(answer[0].is_final && answer[0].error.is_none() && answer[0].outputs.is_empty());
    assert!(reply.statistics().is_empty(), "a stop command is in no statistics");
    let replies = victim.wait();
    assert!(replies.len() >= 3 && replies.iter().all(|reply| reply.error.is_none()));
    assert!(victim.statistics()[0].success);
}

#[test]
fn stop_of_an_unknown_id_is_no_error() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let answer = model.infer(stop("nobody"));
    assert!(answer[0].is_final && answer[0].error.is_none() && answer[0].outputs.is_empty());
}

#[test]
fn stop_reaches_the_newest_of_several_requests_with_one_id() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let old = model.execute(vec![endless("a")])[0];
    let new = model.execute(vec![endless("a")])[0];
    old.wait_for(2);
    new.wait_for(2);
    model.infer(stop("a"));
    new.wait();
    let before = old.replies().len();
    assert!(old.wait_for(before + 2).iter().all(|reply| !reply.is_final));
    old.cancel();
    old.wait();
}

#[test]
fn a_client_that_goes_away_frees_its_memory() {
    let server = start();
    let model = server.load(model("llm", true, &[("stats_check_period_ms", "1")])).unwrap();
    let request = model.execute(vec![endless("")])[0];
    request.wait_for(2);
    request.cancel();
    assert!(request.wait().last().unwrap().is_final);
    let used = || server.metric("nv_trt_llm_kv_cache_block_metrics", &[("kv_cache_block_type", "used")]).unwrap().value;
    let active = || server.metric("nv_trt_llm_request_metrics", &[("request_type", "active")]).unwrap().value;
    until(|| used() == 0.0 && active() == 0.0);
}

#[test]
fn a_request_that_was_cancelled_in_the_queue_does_not_run() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let mut spec = endless("");
    spec.cancelled = true;
    let request = model.execute(vec![spec])[0];
    let (code, _) = error(&request.wait());
    assert_eq!(code, 7);
    assert!(request.statistics().is_empty(), "nobody failed");
}

#[test]
fn each_request_is_reported_once_and_failures_too() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let good = model.execute(vec![request(&PROMPT, 2).input(flag("streaming"))])[0];
    good.wait();
    let bad = model.execute(vec![request(&[-5], 2)])[0];
    bad.wait();
    let (good, bad) = (good.statistics(), bad.statistics());
    assert_eq!((good.len(), bad.len()), (1, 1));
    assert!(good[0].success && !bad[0].success);
    let [start, compute_start, compute_end, end] = good[0].times_ns;
    assert!(start < compute_start && compute_start < compute_end && compute_end < end, "{good:?}");
    assert!(bad[0].times_ns.is_sorted());
    assert_eq!(model.execution_count(), 2);
}

#[test]
fn lengths_are_observed_once_per_request() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    model.infer(request(&PROMPT, 2));
    model.infer(request(&PROMPT, 8).input(flag("streaming")).input(Tensor::int32("end_id", &[1], &[2])));
    model.infer(request(&[-5], 2));
    let observed = |family, label| {
        let series =
            server.metric(family, &[("response_metric_type", label), ("model", "llm"), ("version", "1")]).unwrap();
        assert_eq!(series.bounds, [10.0, 50.0, 100.0, 500.0, 1000.0]);
        assert_eq!(series.help, "TRT LLM response metrics");
        series.observations
    };
    assert_eq!(observed("nv_llm_output_token_len", "total_output_tokens"), [2.0, 2.0]);
    assert_eq!(observed("nv_llm_input_token_len", "total_input_tokens"), [3.0, 3.0]);
}

#[test]
fn gauges_follow_the_engine_and_the_json_line_has_their_keys() {
    let server = start();
    server.set_verbose(true);
    let model = server.load(model("llm", true, &[("stats_check_period_ms", "1")])).unwrap();
    let gauge = |family: &str, label: &str, value: &str| {
        server.metric(family, &[(label, value), ("model", "llm"), ("version", "1")]).unwrap().value
    };
    let tokens_per = || gauge("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "tokens_per");
    model.infer(request(&PROMPT, 2));
    until(|| tokens_per() == 64.0);
    until(|| gauge("nv_trt_llm_general_metrics", "general_type", "iteration_counter") >= 2.0);
    assert_eq!(gauge("nv_trt_llm_request_metrics", "request_type", "max"), 16.0);
    let line = || {
        let log = server.log();
        let line = log.iter().rev().find(|(_, _, text)| text.contains("Active Request Count"))?;
        Some(line.2.clone())
    };
    until(|| line().is_some());
    let line: Value = serde_json::from_str(&line().unwrap()).expect("one JSON object");
    let series = server.metrics().iter().filter(|series| series.family.starts_with("nv_trt_llm_")).count();
    assert_eq!(line.as_object().unwrap().len(), series);
    assert_eq!(series, 22);
    assert_eq!(line["Active Request Count"], 0);
    assert_eq!(line["Used KV cache blocks"], 0);
}

#[test]
fn a_failed_device_answers_everybody_and_turns_readiness_off() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    assert!(model.ready().is_ok());
    let bystander = model.execute(vec![endless("a")])[0];
    bystander.wait_for(1);
    let (_, text) = error(&model.infer(request(&[POISON], 2)));
    assert!(text.contains("the device fell off the bus"), "{text}");
    assert!(bystander.wait().last().unwrap().error.is_some());
    assert!(model.ready().unwrap_err().message.contains("the device fell off the bus"));
    let (code, _) = error(&model.infer(request(&PROMPT, 2)));
    assert_eq!(code, 4);
}

#[test]
fn what_happened_to_requests_and_their_tokens_is_counted() {
    let server = start();
    let parameters = [("stats_check_period_ms", "1"), ("max_tokens_in_paged_kv_cache", "256"), ("max_seq_len", "256")];
    let model = server.load(model("llm", true, &parameters)).unwrap();
    let value = |model: &str, family: &str, label: &str| {
        let is = |series: &crate::fake::Series| {
            series.family == family && series.labels["model"] == model && series.labels.values().any(|it| it == label)
        };
        server.metrics().into_iter().find(is).unwrap_or_else(|| panic!("{family} {label}")).value
    };
    let long: Vec<i32> = (0..130).map(|at| 100 + at).collect();
    let other: Vec<i32> = (0..130).map(|at| 100 + (at * 7) % 150).collect();
    for prompt in [&long, &long, &other] {
        model.infer(request(prompt, 2));
    }
    until(|| value("llm", "nv_llm_requests", "completed") == 3.0);
    assert_eq!(value("llm", "nv_llm_tokens", "prompt"), 390.0);
    assert_eq!(value("llm", "nv_llm_tokens", "generated"), 6.0);
    let cached = value("llm", "nv_llm_tokens", "cached");
    assert!((128.0..=130.0).contains(&cached), "{cached}");
    assert_eq!(value("llm", "nv_llm_prefix_cache", "hit_rate"), cached / 390.0);
    assert!(value("llm", "nv_llm_scheduling", "evicted_block") >= 1.0);
    let model = server.load(self::model("big", true, &parameters[..1])).unwrap();
    let running = model.execute(vec![endless("")])[0];
    running.wait_for(1);
    running.cancel();
    running.wait();
    model.infer(request(&[100], ENDLESS).parameter("timeout", crate::fake::ParameterValue::Int(1)));
    model.infer(request(&[-5], 2));
    let outcomes = ["completed", "cancelled", "timed_out", "failed"];
    until(|| outcomes.map(|outcome| value("big", "nv_llm_requests", outcome)) == [0.0, 1.0, 1.0, 0.0]);
    assert_eq!(value("big", "nv_llm_scheduling", "failed_check"), 0.0);
}

#[test]
fn prompts_of_the_warm_up_file_are_cached_before_the_first_request() {
    let server = start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.json");
    let system: Vec<i32> = (0..140).map(|at| 100 + (at * 3) % 120).collect();
    std::fs::write(&file, json!([system, "You are a helpful assistant."]).to_string()).unwrap();
    let parameters = [("stats_check_period_ms", "1"), ("kv_cache_warm_up_file", file.to_str().unwrap())];
    let model = server.load(text_model("warm", &parameters)).unwrap();
    let value = |family: &str, label: &str| {
        let is = |series: &crate::fake::Series| {
            series.family == family && series.labels["model"] == "warm" && series.labels.values().any(|it| it == label)
        };
        server.metrics().into_iter().find(is).unwrap_or_else(|| panic!("{family} {label}")).value
    };
    until(|| value("nv_llm_requests", "completed") == 4.0);
    let before = value("nv_llm_tokens", "cached");
    let prompt: Vec<i32> = system.iter().copied().chain([7, 8, 9]).collect();
    model.infer(request(&prompt, 2));
    until(|| value("nv_llm_requests", "completed") == 5.0);
    assert!(value("nv_llm_tokens", "cached") - before >= 128.0, "two whole blocks of the system prompt");
    assert_eq!(value("nv_llm_kv_cache_tiers", "failed_transfer"), 0.0);
    for (text, part) in [("{}", "JSON array"), ("[3]", "prompt 0"), ("[[1, -5]]", "vocabulary"), ("[", "EOF")] {
        std::fs::write(&file, text).unwrap();
        let error = server.load(text_model("cold", &parameters)).err().unwrap();
        assert!(error.message.contains(part) && error.message.contains("kv_cache_warm_up_file"), "{error:?}");
    }
}

/// The test runs itself anew, as the process that is to end.
#[test]
fn a_failed_device_ends_the_process_where_that_was_asked_for() {
    const CHILD: &str = "FATAL_ACTION_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let name = "operation::a_failed_device_ends_the_process_where_that_was_asked_for";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", name]).env(CHILD, "1").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        return;
    }
    let server = start();
    let model = server.load(model("llm", true, &[("fatal_action", "exit")])).unwrap();
    assert_eq!(tokens(&model.infer(request(&PROMPT, 2)))[0].1, [5, 6, 7, 20, 21]);
    assert!(model.infer(request(&[-5], 2))[0].error.is_some(), "an error of a request ends nothing");
    let (_, text) = error(&model.infer(request(&[POISON], 2)));
    assert!(text.contains("the device fell off the bus"), "everybody is answered first: {text}");
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn many_mixed_requests_at_once_all_end() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let mixed = |index: i32| match index % 4 {
        0 => request(&PROMPT, 2),
        1 => request(&PROMPT, 2).input(flag("streaming")),
        2 => request(&[-1], 2),
        _ => endless(&format!("{index}")),
    };
    let tickets = model.execute((0..64).map(mixed).collect());
    for (index, ticket) in tickets.iter().enumerate() {
        match index % 4 {
            0 => assert_eq!(tokens(&ticket.wait())[0].1, [5, 6, 7, 20, 21]),
            1 => assert_eq!(ticket.wait().len(), 2),
            2 => assert!(ticket.wait()[0].error.is_some()),
            _ if index % 8 == 3 => drop(model.infer(stop(&index.to_string()))),
            _ => ticket.cancel(),
        }
    }
    tickets.iter().for_each(|ticket| assert!(ticket.wait().last().unwrap().is_final));
}

#[test]
fn a_wrong_path_or_type_says_so_at_load() {
    let server = start();
    let load = |parameters: &[(&str, &str)]| {
        let spec = ModelSpec::with_parameters("llm", parameters);
        server.load(spec).err().expect("must not load").message
    };
    let message = load(&[("gpt_model_path", "/no/such/engine")]);
    assert!(message.contains("Both encoder and decoder model paths are empty"), "{message}");
    assert!(message.contains("/no/such/engine"), "{message}");
    assert!(load(&[("gpt_model_type", "${batching_strategy}")]).contains("Invalid gpt_model_type"));
    assert!(load(&[("model_role", "multimodal")]).contains("llm, preprocessing, postprocessing, bls"));
}

#[test]
fn a_minimal_configuration_is_completed_for_generate_and_generate_stream() {
    let server = start();
    let mut spec = model("llm", true, &[]);
    spec.config.as_object_mut().unwrap().remove("model_transaction_policy");
    let model = server.load(spec).unwrap();
    let config = model.config();
    assert_eq!(config["model_transaction_policy"], json!({ "decoupled": true }));
    assert!(config["input"].as_array().unwrap().iter().any(|input| input["name"] == "streaming"));
    assert_eq!(model.infer(request(&PROMPT, 2)).len(), 1);
    assert_eq!(model.infer(request(&PROMPT, 2).input(flag("streaming"))).len(), 2);
}

#[test]
fn unloading_removes_every_series() {
    let server = start();
    let loaded = server.load(model("llm", true, &[])).unwrap();
    loaded.infer(request(&PROMPT, 2));
    assert_eq!(server.family_count(), Family::of(BatchingType::Inflight).count());
    drop(loaded);
    assert_eq!(server.family_count(), 0);
}

pub fn until(condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the condition never came true");
}

#[test]
fn each_pool_of_windows_has_gauges() {
    let server = start();
    let windows = ("max_attention_window_size", "128,256");
    let model = server.load(model("llm", true, &[("stats_check_period_ms", "1"), windows])).unwrap();
    let gauge = |window, kind| {
        let labels = [("window_tokens", window), ("kv_cache_block_type", kind), ("model", "llm"), ("version", "1")];
        server.metric("nv_llm_kv_cache_windows", &labels).unwrap().value
    };
    assert_eq!([gauge("128", "max"), gauge("256", "max"), gauge("128", "used")], [4096.0, 4096.0, 0.0]);
    let request = model.execute(vec![endless("")])[0];
    until(|| gauge("128", "used") > 0.0 && gauge("256", "used") > 0.0);
    request.cancel();
    request.wait();
    until(|| gauge("128", "used") == 0.0 && gauge("256", "used") == 0.0);
}
