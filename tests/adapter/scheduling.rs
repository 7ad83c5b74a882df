//! When requests run and which KV blocks they share, as tensors and request parameters say.

use crate::fake::{LoadedModel, ModelSpec, ParameterValue, Reply, RequestSpec, Server, Tensor, Ticket, dtype};
use crate::operation::until;
use crate::script::{error, flag, int, model, request, start, tokens, with_id};

const NOT_FOUND: u32 = 2;
const INVALID_ARG: u32 = 3;
const UNAVAILABLE: u32 = 4;
const UNSUPPORTED: u32 = 5;
const ENDLESS: i32 = 1_000_000;

fn number(reply: &Reply, name: &str) -> i32 {
    reply.output(name).unwrap_or_else(|| panic!("{name}")).to_int32()[0]
}

fn time(ticket: Ticket, name: &str) -> i64 {
    let replies = ticket.wait();
    let bytes = &replies.last().unwrap().output(name).unwrap().bytes;
    i64::from_le_bytes(bytes[..].try_into().unwrap())
}

fn prompt(seed: i32, len: i32) -> Vec<i32> {
    (0..len).map(|at| 100 + (at * 7 + seed * 31) % 150).collect()
}

fn measured(prompt: &[i32]) -> RequestSpec {
    request(prompt, 1).input(flag("return_perf_metrics"))
}

/// Blocks that the request found in the prefix cache.
fn reused(model: &LoadedModel<'_>, spec: RequestSpec) -> i32 {
    number(&model.infer(spec)[0], "kv_cache_reused_blocks")
}

fn text(value: &str) -> ParameterValue {
    ParameterValue::Text(value.into())
}

fn row(name: &str, values: &[i32]) -> Tensor {
    Tensor::int32(name, &[1, values.len() as i64], values)
}

#[test]
fn s2_1_retained_blocks_outlive_younger_ones() {
    let server = start();
    let retained = |spec: RequestSpec, priority: i32| {
        spec.input(row("retention_token_range_starts", &[0]))
            .input(row("retention_token_range_ends", &[-1]))
            .input(row("retention_token_range_priorities", &[priority]))
            .input(row("retention_token_range_durations_ms", &[-1]))
            .input(Tensor::int32("retention_decode_priority", &[1, 1], &[0]))
            .input(Tensor::int32("retention_decode_duration_ms", &[1, 1], &[5]))
    };
    for (priority, expected) in [(100, 2), (0, 0)] {
        let parameters = [("max_tokens_in_paged_kv_cache", "512"), ("max_seq_len", "256")];
        let model = server.load(model("llm", false, &parameters)).unwrap();
        model.infer(retained(measured(&prompt(0, 150)), priority));
        (1..4).for_each(|seed| drop(model.infer(measured(&prompt(seed, 150)))));
        assert_eq!(reused(&model, measured(&prompt(0, 150))).min(2), expected, "priority {priority}");
    }
}

#[test]
fn s4_6_retention_tensors_name_what_is_wrong_with_them() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let with = |tensors: &[(&str, &[i32])]| {
        let base = request(&[5, 6, 7], 1).input(row("retention_token_range_starts", &[0, 2]));
        tensors.iter().fold(base, |request, (name, values)| request.input(row(name, values)))
    };
    let (ends, priorities) = ("retention_token_range_ends", "retention_token_range_priorities");
    let durations = "retention_token_range_durations_ms";
    let cases = [
        (with(&[]), "retention_token_range_ends has 0 values, expected 2, as retention_token_range_starts"),
        (with(&[(ends, &[2, 3])]), "retention_token_range_priorities has 0 values, expected 2"),
        (with(&[(ends, &[2, 3]), (priorities, &[1])]), "retention_token_range_priorities has 1 values"),
        (with(&[(ends, &[2, 3]), (priorities, &[1, 101])]), "priorities is 101, expected 0 to 100"),
        (with(&[(ends, &[2, 1]), (priorities, &[1, 1])]), "retention range 2 to 1 ends before it starts"),
        (with(&[(ends, &[2, -2]), (priorities, &[1, 1])]), "retention_token_range_ends is -2, expected -1 or more"),
        (with(&[(ends, &[2, 3]), (priorities, &[1, 1]), (durations, &[5])]), "durations_ms has 1 values, expected 2"),
    ];
    for (request, fragment) in cases {
        let (code, message) = error(&model.infer(request));
        assert!(code == INVALID_ARG && message.contains(fragment), "{message:?} lacks {fragment:?}");
    }
    let alone = request(&[5, 6, 7], 1).input(row(ends, &[9])).input(int("retention_decode_priority", 300));
    assert_eq!(tokens(&model.infer(alone))[0].1, [5, 6, 7, 20], "without starts they say nothing");
}

#[test]
fn s2_1_prompt_table_extra_ids_tell_equal_tokens_apart() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let tokens = prompt(0, 130);
    let with = |id: u64, len: i64| {
        let ids: Vec<u64> = (0..len).map(|at| if at < 10 { id } else { 0 }).collect();
        measured(&tokens).input(Tensor::uint64("prompt_table_extra_ids", &[1, len], &ids))
    };
    assert_eq!(reused(&model, with(1, 130)), 0);
    assert_eq!(reused(&model, with(2, 130)), 0, "another picture");
    assert!(reused(&model, with(1, 130)) >= 2);
    assert!(reused(&model, with(1, 140)) >= 2, "the padding of a batch is cut off");
    assert_eq!(reused(&model, measured(&tokens)), 0, "no picture");
    assert!(reused(&model, with(0, 3)) >= 2, "nothing but zeros is none");
    let (code, message) = error(&model.infer(with(1, 3)));
    assert_eq!(code, INVALID_ARG);
    assert_eq!(message, "prompt_table_extra_ids has 3 ids, expected one for each of the 130 prompt tokens");
}

#[test]
fn a_cache_salt_shares_blocks_only_with_itself() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let with = |salt: &str| measured(&prompt(0, 130)).parameter("cache_salt", text(salt));
    assert_eq!(reused(&model, with("a")), 0);
    assert_eq!(reused(&model, with("b")), 0);
    assert_eq!(reused(&model, measured(&prompt(0, 130))), 0);
    assert!(reused(&model, with("a")) >= 2);
    assert!(reused(&model, with("")) >= 2, "the empty salt is none");
}

#[test]
fn a_parameter_without_effect_is_told_of_once() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let with = |name: &str| request(&[5, 6, 7], 2).parameter(name, text("4"));
    for name in ["runtime_top_pp", "runtime_top_pp", "tenant", "id", "x"] {
        assert_eq!(tokens(&model.infer(with(name)))[0].1[..3], [5, 6, 7], "{name}");
    }
    let told: Vec<_> =
        server.log().into_iter().map(|(_, _, text)| text).filter(|t| t.contains("has no effect")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("a parameter \"runtime_top_pp\"") && told[0].ends_with("; is runtime_top_p meant?"),
        "{told:?}"
    );
    assert!(told[1].ends_with("a parameter \"x\", which is no input and has no effect"), "{told:?}");
}

#[test]
fn s2_7_an_unknown_adapter_is_not_found_in_the_words_of_a_runtime_error() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let adapter = |id: u64| request(&[5, 6, 7], 2).input(Tensor::uint64("lora_task_id", &[1], &[id]));
    let weights = || Tensor::new("lora_weights", dtype::FP16, &[1, 1, 2], vec![0; 4]);
    let config = || Tensor::int32("lora_config", &[1, 1, 3], &[0, 0, 1]);
    let (code, message) = error(&model.infer(adapter(7)));
    assert_eq!(code, NOT_FOUND);
    let (wrapper, reason) = message.split_once(" due to the following error: ").unwrap();
    assert!(wrapper.starts_with("Executor failed process requestId "), "{message}");
    assert_eq!(reason, "LoRA task 7 not found in cache. Please send LoRA weights with request");
    assert_eq!(error(&model.infer(adapter(7).input(weights()).input(config()))).0, UNSUPPORTED);
    let (code, message) = error(&model.infer(adapter(7).input(weights())));
    assert_eq!(
        (code, message.as_str()),
        (INVALID_ARG, "lora_weights is given without lora_config, expected both or neither")
    );
    for spec in [adapter(0), request(&[5, 6, 7], 2).input(weights()).input(config())] {
        assert_eq!(tokens(&model.infer(spec))[0].1, [5, 6, 7, 20, 21], "no id: no adapter");
    }
}

/// One request runs, the others wait behind it; when it is gone they run one by one.
fn one_by_one(server: &Server, spec: ModelSpec, first: RequestSpec, others: Vec<RequestSpec>) -> Vec<i64> {
    let model = server.load(spec).unwrap();
    let running = model.execute(vec![first.input(flag("streaming"))])[0];
    running.wait_for(1);
    let count = others.len() as f64;
    let waiting = model.execute(others);
    let queued = || server.metric("nv_trt_llm_request_metrics", &[("request_type", "waiting")]).unwrap().value;
    until(|| queued() == count);
    running.cancel();
    running.wait();
    waiting.into_iter().map(|ticket| time(ticket, "first_scheduled_time_ns")).collect()
}

#[test]
fn the_highest_priority_runs_first() {
    let server = start();
    let mut spec = model("llm", true, &[("max_batch_size", "1"), ("stats_check_period_ms", "1")]);
    spec.config["dynamic_batching"] = serde_json::json!({ "priority_levels": "3", "default_priority_level": "2" });
    let of = |level: i64| measured(&[100]).parameter("priority", ParameterValue::Int(level));
    let times = one_by_one(&server, spec, request(&[100], ENDLESS), vec![of(3), of(0), of(1), measured(&[100])]);
    assert!(times[2] < times[1] && times[1] < times[3] && times[3] < times[0], "{times:?}");
}

#[test]
fn a_busy_tenant_does_not_keep_another_one_waiting() {
    let server = start();
    let parameters = [("max_batch_size", "1"), ("tenant_weights", "b:3"), ("stats_check_period_ms", "1")];
    let of = |spec: RequestSpec, tenant: &str| spec.parameter("tenant", text(tenant));
    let waiting = vec![of(measured(&[100]), "a"), of(measured(&[101]), "a"), of(measured(&[102]), "b")];
    let times = one_by_one(&server, model("llm", true, &parameters), of(request(&[100], ENDLESS), "a"), waiting);
    assert!(times[2] < times[1], "{times:?}");
}

#[test]
fn a_passed_deadline_ends_the_request_with_what_it_has_and_says_so() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let endless = || request(&[100], ENDLESS).input(flag("streaming"));
    let by_api = RequestSpec { timeout_us: 30_000, ..endless() };
    let by_parameter = endless().parameter("timeout", ParameterValue::Int(30_000));
    for spec in [by_api, by_parameter] {
        let ticket = model.execute(vec![spec])[0];
        let replies = ticket.wait();
        let last = replies.last().unwrap();
        assert_eq!(last.error, None);
        assert_eq!(last.parameters, [("finish_reason".to_owned(), text("timeout"))]);
        assert!(replies[..replies.len() - 1].iter().all(|reply| reply.parameters.is_empty()));
    }
    let (code, message) = error(&model.infer(request(&[5], 1).parameter("timeout", text("soon"))));
    assert_eq!(code, INVALID_ARG);
    assert_eq!(message, "request parameter timeout is not a whole number of 0 or more");
}

#[test]
fn a_request_that_waits_longer_than_the_queue_policy_allows_is_refused() {
    let server = start();
    let of = |action: &str| {
        let mut spec = model(action, true, &[("max_batch_size", "1")]);
        let policy = serde_json::json!({ "default_timeout_microseconds": "20000", "timeout_action": action });
        spec.config["dynamic_batching"] = serde_json::json!({ "default_queue_policy": policy });
        spec
    };
    let (refusing, delaying) = (server.load(of("REJECT")).unwrap(), server.load(of("DELAY")).unwrap());
    for (model, refuses) in [(&refusing, true), (&delaying, false)] {
        let running = model.execute(vec![request(&[100], ENDLESS).input(flag("streaming"))])[0];
        running.wait_for(1);
        let waiting = model.execute(vec![request(&[5], 1)])[0];
        let after = running.replies().len() + 200;
        running.wait_for(after);
        std::thread::sleep(std::time::Duration::from_millis(40));
        if refuses {
            let (code, message) = error(&waiting.wait());
            assert_eq!((code, message.as_str()), (UNAVAILABLE, "Request timeout expired"));
        }
        running.cancel();
        running.wait();
        assert!(refuses || waiting.wait().iter().all(|reply| reply.error.is_none()), "who runs is not touched");
    }
    assert!(server.log().iter().any(|(_, _, text)| text.contains("timeout_action is DELAY")));
}

#[test]
fn the_queue_is_limited_by_tokens_too() {
    let server = start();
    let model = server.load(model("llm", true, &[("max_queue_tokens", "100")])).unwrap();
    let (code, message) = error(&model.infer(request(&prompt(0, 101), 1)));
    assert_eq!(code, UNAVAILABLE);
    assert!(message.contains("Maximum queue size of 100 tokens has been reached"), "{message}");
    assert_eq!(model.infer(request(&prompt(0, 100), 1)).len(), 1);
}

#[test]
fn s2_1_return_sequences_share_the_blocks_of_their_prompt() {
    let server = start();
    let model = server.load(model("llm", true, &[("enable_kv_cache_reuse", "false")])).unwrap();
    let spec = request(&prompt(0, 192), 4).input(flag("return_perf_metrics")).input(int("num_return_sequences", 3));
    let replies = model.infer(spec);
    let mut allocated: Vec<_> = replies.iter().map(|reply| number(reply, "kv_cache_alloc_total_blocks")).collect();
    allocated.sort_unstable();
    assert_eq!(allocated[2], 3, "one computes the prompt");
    assert!(allocated[1] <= 1, "the others at most copy its last block: {allocated:?}");
}

#[test]
fn s2_1_more_return_sequences_than_run_together_are_served_too() {
    let server = start();
    let model = server.load(model("llm", true, &[("max_batch_size", "2")])).unwrap();
    let replies = model.infer(request(&[5, 6, 7], 2).input(int("num_return_sequences", 5)));
    let mut indices: Vec<_> = replies.iter().map(|reply| number(reply, "sequence_index")).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2, 3, 4]);
    assert_eq!(replies.iter().filter(|reply| reply.is_final).count(), 1);
}

#[test]
fn s4_3_stop_ends_all_sequences_of_a_request() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let endless = with_id(request(&[100], ENDLESS), "a").input(flag("streaming")).input(int("num_return_sequences", 2));
    let victim = model.execute(vec![endless])[0];
    victim.wait_for(4);
    model.infer(with_id(request(&[0], 0), "a").input(flag("stop")));
    assert_eq!(victim.wait().iter().filter(|reply| reply.is_final).count(), 1);
}

#[test]
fn a_longest_prompt_can_be_given() {
    let server = start();
    let model = server.load(model("llm", false, &[("max_input_len", "10")])).unwrap();
    let (_, message) = error(&model.infer(request(&prompt(0, 11), 1)));
    assert!(message.contains("Prompt length (11) exceeds maximum input length (10)"), "{message}");
    assert_eq!(model.infer(request(&prompt(0, 10), 1)).len(), 1);
}

#[test]
fn the_policy_is_balanced_unless_another_one_is_named() {
    let server = start();
    for (given, expected) in [
        ("", "batch_scheduler_policy = balanced (default)"),
        ("guaranteed_no_evict", "batch_scheduler_policy = guaranteed_no_evict (given)"),
        ("max_utilization", "batch_scheduler_policy = max_utilization (given)"),
        ("fastest", "batch_scheduler_policy = balanced (default: the given text is not a value)"),
    ] {
        drop(server.load(model("llm", false, &[("batch_scheduler_policy", given)])).unwrap());
        let log = server.log();
        assert!(log.iter().rev().any(|(_, _, text)| text.contains(expected)), "{expected}");
    }
}
