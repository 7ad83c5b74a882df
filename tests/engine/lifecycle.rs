//! How requests begin and end.

use triton_trtllm::engine::fake::{FakeExecutor, Fault};
use triton_trtllm::engine::{EngineConfig, EngineCore, FinishReason, Progress, Request};
use triton_trtllm::error::ErrorKind;
use triton_trtllm::step::Executor;

use crate::common::{SEED, Tape, core, limits, model, request, run, serve};

fn plain() -> EngineCore {
    core(EngineConfig::for_limits(&limits()), &limits())
}

#[test]
fn tokens_are_those_of_the_model() {
    let tape = serve(&mut plain(), request([1, 2, 3], 9));
    let (expected, _) = model(&limits()).generate(&[1, 2, 3], &Default::default(), &request([], 9).stop);
    assert_eq!((tape.tokens(), tape.reason()), (expected, Some(FinishReason::Length)));
    assert_eq!(tape.0.lock().unwrap().last_tokens, 1, "the last token comes with the end");
}

#[test]
fn the_end_id_is_not_output_and_its_delta_has_no_tokens() {
    let tokens = serve(&mut plain(), request([1, 2, 3], 9)).tokens();
    let mut with_end = request([1, 2, 3], 9);
    with_end.stop.end_ids = vec![tokens[4]];
    let at = tokens.iter().position(|token| *token == tokens[4]).unwrap();
    for depth in [1, 2] {
        let mut limits = limits();
        limits.pipeline_depth = depth;
        let tape = serve(&mut core(EngineConfig::for_limits(&limits), &limits), with_end.clone());
        assert_eq!((tape.tokens(), tape.reason()), (tokens[..at].to_vec(), Some(FinishReason::EndId)));
        let record = tape.0.lock().unwrap();
        assert_eq!((record.last_tokens, record.deltas), (0, at + 1));
    }
}

#[test]
fn stop_words_are_output() {
    let tokens = serve(&mut plain(), request([1, 2, 3], 9)).tokens();
    let mut stopped = request([1, 2, 3], 9);
    stopped.stop.stop_words = vec![vec![25, 25, 25], tokens[3..6].to_vec()];
    let tape = serve(&mut plain(), stopped);
    assert_eq!((tape.tokens(), tape.reason()), (tokens[..6].to_vec(), Some(FinishReason::StopWords)));
}

#[test]
fn output_is_cut_at_the_longest_sequence() {
    let tape = serve(&mut plain(), request(vec![3; 40], 1000));
    assert_eq!((tape.tokens().len(), tape.reason()), (8, Some(FinishReason::Length)));
}

fn refusal(core: &mut EngineCore, request: triton_trtllm::engine::Request) -> (ErrorKind, String) {
    let tape = Tape::default();
    let error = core.submit(request, tape.sink(), 1).unwrap_err();
    assert_eq!(tape.reason(), None, "a refused request hears of it from submit only");
    (error.kind(), error.message().to_string())
}

#[test]
fn what_cannot_be_served_is_refused_with_the_value_and_the_bound() {
    let mut small = limits();
    small.num_blocks = 6;
    let mut engine = core(EngineConfig::for_limits(&small), &small);
    let malformed = [
        (request([], 1), "the prompt is empty, expected at least 1 token"),
        (request([1], 0), "the number of output tokens is 0, expected at least 1"),
    ];
    for (request, text) in malformed {
        assert_eq!(refusal(&mut engine, request), (ErrorKind::InvalidArg, text.to_string()));
    }
    let cases = [
        (request([1, 26], 1), "prompt token 26 is outside the vocabulary, expected 0 to 25"),
        (request([-1], 1), "prompt token -1 is outside the vocabulary, expected 0 to 25"),
        (request(vec![1; 48], 1), "Prompt length (48) exceeds maximum input length (47)"),
        (
            request(vec![1; 20], 6),
            "the request can never run: 20 prompt and 6 output tokens need 7 KV blocks of 4 tokens, but there are 6",
        ),
    ];
    for (id, (request, reason)) in (3..).zip(cases) {
        let text = format!(
            "Executor failed process requestId {id} due to the following error: Encountered an error when fetching new request: {reason}"
        );
        assert_eq!(refusal(&mut engine, request), (ErrorKind::InvalidArg, text));
    }
    let tape = serve(&mut engine, request(vec![1; 20], 5));
    assert_eq!(tape.reason(), Some(FinishReason::Length), "the next request is served");
}

#[test]
fn without_chunked_context_a_prompt_must_fit_a_step() {
    let config = EngineConfig { chunked_context: false, max_step_tokens: 12, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let (kind, text) = refusal(&mut engine, request(vec![1; 13], 1));
    assert_eq!(kind, ErrorKind::InvalidArg);
    assert!(text.ends_with("Prompt length (13) exceeds maximum input length (12)"), "{text}");
    assert_eq!(serve(&mut engine, request(vec![1; 12], 1)).reason(), Some(FinishReason::Length));
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let config = EngineConfig { max_queue_requests: Some(2), ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let tapes: Vec<_> = (0..2).map(|_| Tape::default()).collect();
    for tape in &tapes {
        engine.submit(request([1, 2], 4), tape.sink(), 1).unwrap();
    }
    let full = "Maximum queue size of 2 has been reached, please try again later";
    assert_eq!(refusal(&mut engine, request([1], 1)), (ErrorKind::Unavailable, full.to_string()));
    engine.step(1).unwrap();
    engine.submit(request([1], 1), Tape::default().sink(), 1).expect("those that run are not queued");
    run(&mut engine);
    tapes.iter().for_each(|tape| assert_eq!(tape.reason(), Some(FinishReason::Length)));
}

#[test]
fn cancel_works_in_every_state_and_frees_everything_at_once() {
    for depth in [1, 2] {
        let limits = triton_trtllm::step::ExecutorLimits { pipeline_depth: depth, ..limits() };
        let config = EngineConfig { max_batch_size: 1, max_step_tokens: 8, ..EngineConfig::for_limits(&limits) };
        // Before the first step, in prefill (24 tokens at 8 a step), while generating, and long after.
        for steps in [0, 1, 2, 5, 9] {
            for by_sink in [false, true] {
                let mut engine = core(config.clone(), &limits);
                let (running, waiting) = (Tape::default(), Tape::default());
                let id = engine.submit(request(vec![5; 24], 20), running.sink(), 1).unwrap();
                let other = engine.submit(request(vec![6; 8], 2), waiting.sink(), 1).unwrap();
                for _ in 0..steps {
                    engine.step(2).unwrap();
                }
                for (tape, id) in [(&running, id), (&waiting, other)] {
                    if by_sink { tape.hang_up() } else { engine.cancel(id) }
                }
                engine.step(3).unwrap();
                engine.check().unwrap();
                assert_eq!(running.reason(), Some(FinishReason::Cancelled));
                assert_eq!(waiting.reason(), Some(FinishReason::Cancelled));
                let (all, _) = model(&limits).generate(&[5; 24], &Default::default(), &request([], 20).stop);
                assert!(all.starts_with(&running.tokens()) && running.tokens().len() <= steps);
                assert!(steps < 9 || running.tokens().len() > 2, "what was generated is delivered");
                engine.cancel(id);
                run(&mut engine);
                let next = serve(&mut engine, request([5, 5], 3));
                assert_eq!(next.reason(), Some(FinishReason::Length), "the next request is served");
            }
        }
    }
}

#[test]
fn what_was_in_flight_at_a_cancel_is_not_reused() {
    let limits = triton_trtllm::step::ExecutorLimits { pipeline_depth: 2, ..limits() };
    let mut engine = core(EngineConfig::for_limits(&limits), &limits);
    let id = engine.submit(request(vec![5; 13], 3), Tape::default().sink(), 1).unwrap();
    engine.step(1).unwrap();
    engine.cancel(id);
    let again = serve(&mut engine, request(vec![5; 13], 3));
    assert_eq!(again.stats().cached_tokens, 0, "the step had not been collected");
    assert_eq!(serve(&mut engine, request(vec![5; 13], 3)).stats().cached_tokens, 12);
}

#[test]
fn a_passed_deadline_ends_running_and_waiting_requests() {
    let config = EngineConfig { max_batch_size: 1, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let (running, waiting) = (Tape::default(), Tape::default());
    for tape in [&running, &waiting] {
        let request = triton_trtllm::engine::Request { deadline_ns: Some(50), ..request([1, 2], 30) };
        engine.submit(request, tape.sink(), 1).unwrap();
    }
    for now in 10..14 {
        engine.step(now).unwrap();
    }
    assert_eq!((running.tokens().len(), running.reason()), (4, None));
    assert_eq!(engine.step(50).unwrap(), Progress::Idle);
    for tape in [&running, &waiting] {
        assert_eq!(tape.reason(), Some(FinishReason::TimedOut));
    }
    assert_eq!(engine.stats().totals.requests_timed_out, 2);
}

#[test]
fn who_waits_for_too_long_is_refused_and_who_has_started_is_not() {
    let config = EngineConfig { max_batch_size: 1, max_queue_requests: Some(1), ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let late = |prompt| Request { start_by_ns: Some(5), ..request(prompt, 8) };
    let [runs, waits] = [Tape::default(), Tape::default()];
    engine.submit(late([1, 2, 3]), runs.sink(), 1).unwrap();
    engine.step(2).unwrap();
    engine.submit(late([4, 5, 6]), waits.sink(), 2).unwrap();
    engine.step(4).unwrap();
    assert_eq!(waits.reason(), None);
    engine.step(5).unwrap();
    assert_eq!(waits.reason(), Some(FinishReason::Error));
    assert!(waits.error().contains("Request timeout expired"), "{}", waits.error());
    engine.submit(request([7, 8, 9], 1), Tape::default().sink(), 6).expect("its place in the queue is free");
    run(&mut engine);
    assert_eq!((runs.reason(), runs.tokens().len()), (Some(FinishReason::Length), 8));
}

#[test]
fn higher_priority_runs_earlier_and_equals_in_order_of_arrival() {
    let config = EngineConfig { max_batch_size: 1, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let tapes: Vec<_> = [0, 0, 5, 5, -1].map(|priority| (priority, Tape::default())).into();
    for (priority, tape) in &tapes {
        let request = triton_trtllm::engine::Request { priority: *priority, ..request([1, 2], 1) };
        engine.submit(request, tape.sink(), 1).unwrap();
    }
    for now in 1..=5 {
        engine.step(now).unwrap();
    }
    let ends: Vec<_> = tapes.iter().map(|(_, tape)| tape.stats().first_token_ns).collect();
    assert_eq!(ends, [3, 4, 1, 2, 5]);
}

#[test]
fn a_failing_executor_answers_everybody_and_turns_the_engine_off() {
    let faults = [
        Fault::LaunchError { step: 3 },
        Fault::LaunchPanic { step: 3 },
        Fault::CollectError { step: 3 },
        Fault::CollectPanic { step: 3 },
    ];
    for (fault, depth) in faults.into_iter().flat_map(|fault| [(fault, 1), (fault, 2)]) {
        let limits = triton_trtllm::step::ExecutorLimits { pipeline_depth: depth, ..limits() };
        let config = EngineConfig { max_batch_size: 1, ..EngineConfig::for_limits(&limits) };
        let executor: Box<dyn Executor> = Box::new(FakeExecutor::new(limits, SEED).with_fault(fault));
        let mut engine = EngineCore::new(config, executor, None).unwrap();
        let (running, waiting) = (Tape::default(), Tape::default());
        engine.submit(request([1], 30), running.sink(), 1).unwrap();
        engine.submit(request([2], 30), waiting.sink(), 1).unwrap();
        let failed = (1..9).find_map(|now| engine.step(now).err()).expect("the fault shows");
        for (number, tape) in [(1, &running), (2, &waiting)] {
            assert_eq!(tape.reason(), Some(FinishReason::Error));
            let start = format!(
                "Executor failed process requestId {number} due to the following error: Encountered an error in forwardAsync function: "
            );
            let text = tape.error();
            assert!(text.starts_with(&start) && text.contains("injected fault in step 3"), "{text}");
        }
        assert!(!running.tokens().is_empty(), "what was generated before stays delivered");
        assert_eq!(engine.health().unwrap_err(), failed);
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
        assert_eq!(refusal(&mut engine, request([1], 1)).0, ErrorKind::Unavailable);
        assert!(engine.is_idle() && engine.step(10).is_err());
        assert_eq!(engine.stats().last_iteration.kv.used_blocks, 0);
        engine.check().unwrap();
    }
}

#[test]
fn a_row_that_cannot_be_sampled_ends_its_request_only() {
    for depth in [1, 2] {
        let limits = triton_trtllm::step::ExecutorLimits { pipeline_depth: depth, ..limits() };
        let executor = FakeExecutor::new(limits.clone(), SEED).with_fault(Fault::RowErrors { step: 2 });
        let mut engine = EngineCore::new(EngineConfig::for_limits(&limits), Box::new(executor), None).unwrap();
        let tape = serve(&mut engine, request([1, 2], 9));
        assert_eq!((tape.tokens().len(), tape.reason()), (1, Some(FinishReason::Error)));
        let text = "Executor failed process requestId 1 due to the following error: injected fault in step 2";
        assert_eq!(tape.error(), text);
        assert_eq!(engine.stats().totals.requests_failed, 1);
        assert!(engine.health().is_ok());
        assert_eq!(serve(&mut engine, request([1, 2], 9)).reason(), Some(FinishReason::Length));
    }
}

#[test]
fn a_panicking_sink_loses_its_own_request_only() {
    struct Bomb;
    impl triton_trtllm::engine::RequestSink for Bomb {
        fn delta(&mut self, _: triton_trtllm::engine::Delta) {
            panic!("bomb");
        }
    }
    let mut engine = plain();
    let tape = Tape::default();
    engine.submit(request([1], 20), Box::new(Bomb), 1).unwrap();
    engine.submit(request([2], 20), tape.sink(), 1).unwrap();
    run(&mut engine);
    assert_eq!((tape.tokens().len(), tape.reason()), (20, Some(FinishReason::Length)));
    assert_eq!(engine.stats().totals.requests_cancelled, 1);
}

#[test]
fn a_configuration_beyond_the_executor_is_refused_by_name() {
    let good = EngineConfig::for_limits(&limits());
    let cases = [
        (EngineConfig { max_batch_size: 9, ..good.clone() }, "max_batch_size is 9, expected 1 to 8"),
        (EngineConfig { max_step_tokens: 33, ..good.clone() }, "max_step_tokens is 33, expected 1 to 32"),
        (EngineConfig { max_seq_len: 49, ..good.clone() }, "max_seq_len is 49, expected 2 to 48"),
        (EngineConfig { max_input_len: 0, ..good.clone() }, "max_input_len is 0, expected 1 to 48"),
        (
            EngineConfig { max_step_tokens: 3, max_batch_size: 2, ..good.clone() },
            "max_step_tokens is 3, but chunked context needs at least one block of 4 tokens in a step",
        ),
    ];
    for (config, text) in cases {
        assert_eq!(config.validate(&limits()).unwrap_err().message(), text);
    }
}

#[test]
fn one_of_several_sequences_is_stopped_and_the_others_go_on() {
    let limits = limits();
    let mut engine = core(EngineConfig::for_limits(&limits), &limits);
    let tape = Tape::default();
    engine.submit(Request { num_sequences: 3, ..request([1, 2, 3], 9) }, tape.sink(), 1).unwrap();
    while tape.tokens().len() < 2 {
        engine.step(1).unwrap();
    }
    tape.0.lock().unwrap().unwanted = true;
    run(&mut engine);
    let record = tape.0.lock().unwrap();
    assert_eq!(record.finish.as_ref().unwrap().reason, FinishReason::Cancelled);
    assert!(record.tokens.len() < 9, "{}", record.tokens.len());
    assert_eq!(record.siblings.iter().map(|sibling| sibling.tokens.len()).collect::<Vec<_>>(), [9, 9]);
    assert_eq!(engine.stats().totals.requests_finished, 1);
}
