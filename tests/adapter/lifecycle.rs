//! Lifecycle and metrics (contract 4 and 5), the rows that the tests of operation do not have.

use crate::fake::{RequestSpec, Series, Server, Tensor};
use crate::operation::until;
use crate::script::{POISON, error, flag, int, model, outputs, request, start, with_id};

const INVALID_ARG: u32 = 3;
const PROMPT: [i32; 3] = [5, 6, 7];

fn endless(id: &str) -> RequestSpec {
    with_id(request(&[100], 1_000_000), id).input(flag("streaming"))
}

fn batch_of_two() -> RequestSpec {
    outputs(RequestSpec::new(""))
        .input(Tensor::int32("input_ids", &[2, 2], &[5, 7, 7, 0]))
        .input(Tensor::int32("input_lengths", &[2], &[2, 1]))
        .input(Tensor::int32("request_output_len", &[2], &[2, 3]))
}

fn gauge(server: &Server, family: &str, label: &str, value: &str) -> f64 {
    server.metric(family, &[(label, value), ("model", "llm")]).unwrap().value
}

#[test]
fn s4_1_what_needs_the_decoupled_policy_is_refused_without_it() {
    let server = start();
    let unary = server.load(model("unary", false, &[])).unwrap();
    for (spec, fragment) in [
        (
            request(&PROMPT, 2).input(flag("streaming")),
            "Streaming is only supported if model is deployed using decoupled mode",
        ),
        (batch_of_two(), "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"),
        (
            request(&PROMPT, 2).input(int("num_return_sequences", 2)),
            "more than 1 requires the decoupled transaction policy",
        ),
    ] {
        let (code, text) = error(&unary.infer(spec));
        assert!(code == INVALID_ARG && text.contains(fragment), "{text}");
    }
    assert_eq!(unary.infer(request(&PROMPT, 2).input(int("num_return_sequences", 1))).len(), 1);
}

#[test]
fn s4_2_the_final_flag_is_on_the_last_response_and_never_alone() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let several = request(&PROMPT, 2).input(int("num_return_sequences", 3));
    let batch = batch_of_two();
    let streamed = batch_of_two().input(Tensor::bools("streaming", &[2], &[true, true]));
    for (spec, count) in [(request(&PROMPT, 2), 1), (several, 3), (batch, 2), (streamed, 5)] {
        let replies = model.infer(spec);
        let finals: Vec<_> = replies.iter().map(|reply| reply.is_final).collect();
        assert_eq!((finals.len(), finals.iter().filter(|is_final| **is_final).count()), (count, 1));
        assert!(finals[count - 1] && replies.iter().all(|reply| reply.output("output_ids").is_some()));
    }
}

#[test]
fn s4_4_a_stop_reaches_its_own_instance_only() {
    let server = start();
    let model = server.load(model("llm", true, &[]).instances(2)).unwrap();
    let running = model.execute_on(0, vec![endless("a")])[0];
    running.wait_for(2);
    let stop = || with_id(request(&[0], 0), "a").input(flag("stop"));
    assert!(model.execute_on(1, vec![stop()])[0].wait()[0].error.is_none());
    let before = running.replies().len();
    assert!(running.wait_for(before + 3).iter().all(|reply| !reply.is_final), "it goes on");
    model.execute_on(0, vec![stop()])[0].wait();
    assert!(running.wait().last().unwrap().is_final);
}

#[test]
fn s4_6_what_is_wrong_is_in_the_words_of_the_contract() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let mut flat = request(&PROMPT, 2);
    flat.inputs[0].tensor = Tensor::int32("input_ids", &[3], &PROMPT);
    let lookahead = request(&PROMPT, 2).input(Tensor::int32("lookahead_window_size", &[1, 1], &[3]));
    let draft = request(&PROMPT, 2).input(Tensor::int32("draft_input_ids", &[1, 2], &[20, 21])).input(Tensor::fp32(
        "draft_logits",
        &[1, 1, 300],
        &[0.0; 300],
    ));
    for (spec, fragment) in [
        (flat, "expected 2 dimensions"),
        (lookahead, "lookahead_window_size"),
        (draft, "draft_logits has 1 rows, expected one for each of the 2 tokens"),
        (request(&PROMPT, 2).input(int("beam_width", 0)), "beam_width is 0"),
    ] {
        let ticket = model.execute(vec![spec])[0];
        let (_, text) = error(&ticket.wait());
        assert!(text.contains(fragment), "{text:?} lacks {fragment:?}");
        assert_eq!(ticket.statistics().iter().filter(|report| !report.success).count(), 1, "counted as a failure");
    }
}

#[test]
fn s4_7_runtime_failures_have_the_prefix_that_log_scrapers_know() {
    let server = start();
    let model = server.load(model("llm", true, &[("max_seq_len", "100")])).unwrap();
    let prefix = "Executor failed process requestId ";
    let (_, long) = error(&model.infer(request(&[5; 200], 1)));
    assert!(
        long.starts_with(prefix)
            && long.contains(
                " due to the following error: Encountered an error when fetching new request: Prompt length (200) exceeds \
                 maximum input length ("
            ),
        "{long}"
    );
    let fetching = "due to the following error: Encountered an error when fetching new request: ";
    for (spec, reason) in [
        (request(&PROMPT, 1).input(int("beam_width", 2)), "beam_width is 2, expected 1 to max_beam_width"),
        (request(&PROMPT, 1).input(int("end_id", 1000)), "end_id 1000 is outside the vocabulary"),
    ] {
        let (code, text) = error(&model.infer(spec));
        assert!(code == INVALID_ARG && text.starts_with(prefix), "{text}");
        assert!(text.contains(&format!("{fetching}{reason}")), "{text}");
    }
    let guided = request(&PROMPT, 2)
        .input(Tensor::strings("guided_decoding_guide_type", &[1, 1], &["json"]))
        .input(int("end_id", 2));
    assert!(error(&model.infer(guided)).1.contains("guided decoding is not available"));
    let (_, failed) = error(&model.infer(request(&[POISON], 1)));
    assert!(
        failed.starts_with(prefix) && failed.contains("Encountered an error in forwardAsync function:"),
        "{failed}"
    );
}

#[test]
fn s5_1_every_series_is_there_with_zero_before_the_first_request() {
    let server = start();
    let _model = server.load(model("llm", true, &[])).unwrap();
    let ours: Vec<Series> = server.metrics();
    let upstreams = ours.iter().filter(|series| series.family.starts_with("nv_trt_llm_")).count();
    let histograms = ours.iter().filter(|series| series.kind == 2).count();
    assert_eq!((upstreams, histograms), (22, 2));
    for series in &ours {
        assert_eq!(series.labels.len(), if series.labels.contains_key("window_tokens") { 4 } else { 3 }, "{series:?}");
        assert_eq!((series.labels["model"].as_str(), series.labels["version"].as_str()), ("llm", "1"));
        assert!(series.observations.is_empty());
    }
    assert_eq!(gauge(&server, "nv_trt_llm_request_metrics", "request_type", "active"), 0.0);
    assert_eq!(gauge(&server, "nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "used"), 0.0);
}

#[test]
fn s5_3_a_batch_is_one_observation_of_all_its_items() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    model.infer(batch_of_two());
    model.infer(request(&PROMPT, 2).input(int("num_return_sequences", 3)));
    error(&model.infer(request(&[-5], 2)));
    let observed = |family: &str| server.metric(family, &[("model", "llm")]).unwrap().observations;
    assert_eq!(observed("nv_llm_input_token_len"), [3.0, 3.0], "prompts of 2 and 1; the prompt once");
    assert_eq!(observed("nv_llm_output_token_len"), [5.0, 6.0], "2 and 3 tokens; three times 2");
}

#[test]
fn s5_3_gauges_stand_still_without_iteration_statistics_and_when_idle() {
    let server = start();
    let still =
        server.load(model("llm", true, &[("iter_stats_max_iterations", "0"), ("stats_check_period_ms", "1")])).unwrap();
    still.infer(request(&PROMPT, 5));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(gauge(&server, "nv_trt_llm_general_metrics", "general_type", "iteration_counter"), 0.0);
    drop(still);
    let model = server.load(model("llm", true, &[("stats_check_period_ms", "1")])).unwrap();
    model.infer(request(&PROMPT, 5));
    let steps = || gauge(&server, "nv_trt_llm_general_metrics", "general_type", "iteration_counter");
    until(|| steps() > 0.0 && gauge(&server, "nv_trt_llm_request_metrics", "request_type", "active") == 0.0);
    let time = || gauge(&server, "nv_trt_llm_general_metrics", "general_type", "timestamp");
    let (last, at) = (steps(), time());
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((steps(), time()), (last, at), "the last values stay");
}
