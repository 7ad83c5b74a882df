//! Beam searches through the scheduler: their hypotheses are those of a search that computes everything anew, whatever
//! else runs, however little memory there is.

use std::sync::{Arc, Mutex};

use triton_trtllm::decode::beam::{BeamParams, EarlyStopping, Hypothesis};
use triton_trtllm::decode::{SamplingParams, StopCriteria};
use triton_trtllm::engine::fake::{FakeExecutor, Fault};
use triton_trtllm::engine::{
    EngineConfig, EngineCore, FinishReason, OutputOptions, Progress, Request, SchedulerPolicy,
};
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::{ExecutorLimits, StepPlan};

use crate::common::{Recorder, Rng, SEED, Tape, core, limits, model, request, run, search_alone, serve};

fn params(width: usize) -> BeamParams {
    BeamParams {
        width,
        widths: Vec::new(),
        len_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
        diversity_rate: 0.0,
        num_return: width,
        stream: false,
    }
}

fn search(prompt: Vec<TokenId>, max_tokens: usize, params: BeamParams) -> Request {
    let stop = StopCriteria { max_tokens, end_ids: vec![3, 5], stop_words: vec![vec![1, 2]] };
    let sampling = SamplingParams { repetition_penalty: 1.3, min_tokens: 2, end_ids: vec![3, 5], ..Default::default() };
    Request { prompt, stop, sampling, beam: Some(params), ..Request::default() }
}

fn config(policy: SchedulerPolicy, limits: &ExecutorLimits) -> EngineConfig {
    EngineConfig { policy, max_beam_width: 4, ..EngineConfig::for_limits(limits) }
}

fn beams(tape: &Tape) -> Vec<Hypothesis> {
    tape.0.lock().unwrap().beams.clone()
}

#[test]
fn hypotheses_are_those_of_the_search_alone() {
    for width in 1..=4 {
        let limits = limits();
        let mut engine = core(config(SchedulerPolicy::Balanced, &limits), &limits);
        let request = search((0..9).collect(), 8, params(width));
        let tape = serve(&mut engine, request.clone());
        assert_eq!(beams(&tape), search_alone(model(&limits), &request));
        assert_eq!(beams(&tape).len(), width);
        let stats = tape.stats();
        assert_eq!(stats.generated_tokens, beams(&tape).iter().map(|beam| beam.tokens.len()).sum::<usize>());
        assert!(stats.last_token_ns > stats.first_token_ns && stats.prompt_tokens == 9, "{stats:?}");
    }
}

#[test]
fn the_prompt_is_computed_once() {
    for kv_reuse in [true, false] {
        let limits = ExecutorLimits { max_seq_len_tokens: 60, ..limits() };
        let plans: Arc<Mutex<Vec<StepPlan>>> = Arc::default();
        let recorder = Recorder { inner: FakeExecutor::new(limits.clone(), SEED), plans: Arc::clone(&plans) };
        let config = EngineConfig { kv_reuse, kv_event_buffer: 99, ..config(SchedulerPolicy::Balanced, &limits) };
        let mut engine = EngineCore::new(config, Box::new(recorder), None).unwrap();
        let request = search((0..22).map(|at| at % 7).collect(), 6, params(4));
        let tape = serve(&mut engine, request.clone());
        let plans = std::mem::take(&mut *plans.lock().unwrap());
        let computed: usize = plans.iter().flat_map(|plan| &plan.chunks).map(|chunk| chunk.len).sum();
        let hypotheses: usize = plans.iter().map(|plan| plan.new_sequences.len()).sum();
        assert!(hypotheses > 8, "{hypotheses}");
        assert_eq!(computed, 22 + hypotheses - 1, "a hypothesis costs one token");
        let mut chunks = plans.iter().flat_map(|plan| &plan.chunks);
        assert!(chunks.all(|chunk| chunk.inspect.positions == 0), "whole rows of logits are read");
        let first = plans.iter().flat_map(|plan| &plan.new_sequences).map(|new| new.prompt.len() - new.generated);
        assert!(first.clone().all(|prompt_len| prompt_len == 22), "what was chosen is no prompt");
        let stats = engine.stats();
        assert_eq!((tape.stats().cached_tokens, stats.totals.cached_tokens), (0, 0), "what is its own is no reuse");
        assert_eq!(stats.last_iteration.kv.reused_blocks, 0);
        // A second one finds the first one's blocks exactly where requests share them.
        let again = serve(&mut engine, request);
        assert_eq!(beams(&again), beams(&tape));
        assert_eq!(again.stats().cached_tokens > 0, kv_reuse);
        let events = engine.drain_kv_events().events;
        assert_eq!(events.len() > 1, kv_reuse, "blocks of a search alone are nobody's business: {events:?}");
    }
}

#[test]
fn logits_of_prompt_and_hypotheses_are_told() {
    let limits = limits();
    let mut engine = core(config(SchedulerPolicy::Balanced, &limits), &limits);
    let outputs = OutputOptions { context_logits: true, generation_logits: true, prompt_log_probs: true };
    let request = Request { outputs, ..search((0..9).collect(), 6, params(3)) };
    let tape = serve(&mut engine, request.clone());
    let expected = search_alone(model(&limits), &request);
    assert!(expected.iter().all(|beam| beam.logits.len() == beam.tokens.len()));
    assert_eq!(beams(&tape), expected);
    let record = tape.0.lock().unwrap();
    let after = |len: usize| model(&limits).logits(&request.prompt[..len]);
    assert_eq!(record.logits.context, (1..=9).map(after).collect::<Vec<_>>());
    assert_eq!(record.logits.prompt_log_probs.len(), 8);
}

#[test]
fn a_hypothesis_that_nothing_may_follow_leaves_the_others_alone() {
    let limits = limits();
    let mut engine = core(config(SchedulerPolicy::Balanced, &limits), &limits);
    let plain = search((0..9).collect(), 8, params(3));
    let first = beams(&serve(&mut engine, plain.clone()))[0].tokens[1];
    let mut dead = plain.clone();
    dead.sampling.bad_words = (0..26).map(|token| vec![first, token]).collect();
    let found = beams(&serve(&mut engine, dead.clone()));
    assert_eq!(found, search_alone(model(&limits), &dead));
    assert!(!found.is_empty() && found != beams(&serve(&mut engine, plain.clone())));
    // Where no hypothesis can go on, the search has failed.
    dead.sampling.bad_words = (0..26).map(|token| vec![token]).collect();
    let tape = serve(&mut engine, dead);
    assert!(tape.error().contains("leave no token"), "{}", tape.error());
}

#[test]
fn a_row_that_fails_ends_the_search() {
    let limits = limits();
    let executor = FakeExecutor::new(limits.clone(), SEED).with_fault(Fault::RowErrors { step: 3 });
    let mut engine = EngineCore::new(config(SchedulerPolicy::Balanced, &limits), Box::new(executor), None).unwrap();
    let tape = serve(&mut engine, search((0..9).collect(), 8, params(3)));
    assert!(tape.reason() == Some(FinishReason::Error) && tape.error().contains("injected fault in step 3"));
    assert_eq!(beams(&serve(&mut engine, search((0..9).collect(), 8, params(3)))).len(), 3, "the engine goes on");
}

#[test]
fn searches_and_samples_run_side_by_side_under_any_policy() {
    let mut rng = Rng(77);
    let mut preemptions = 0;
    for round in 0..60 {
        let policies = [
            SchedulerPolicy::Balanced,
            SchedulerPolicy::GuaranteedNoEvict,
            SchedulerPolicy::MaxUtilization,
            SchedulerPolicy::StaticBatch,
        ];
        let limits = ExecutorLimits {
            num_blocks: 12,
            pipeline_depth: 1 + round % 2,
            max_step_tokens: 8 + rng.below(20),
            ..limits()
        };
        let config = EngineConfig { kv_reuse: round % 5 != 4, ..config(policies[round % 4], &limits) };
        let mut engine = core(config, &limits);
        let mut searches = Vec::new();
        let mut samples = Vec::new();
        for now in 1..=6 {
            let prompt: Vec<TokenId> = (0..1 + rng.below(18)).map(|at| (at % (2 + rng.below(3))) as TokenId).collect();
            let tape = Tape::default();
            let max_tokens = 1 + rng.below(9);
            if rng.chance(50) {
                let wanted = search(
                    prompt,
                    max_tokens,
                    BeamParams {
                        widths: if rng.chance(30) { vec![1, 2, 1] } else { Vec::new() },
                        ..params(2 + rng.below(3))
                    },
                );
                engine.submit(wanted.clone(), tape.sink(), now).unwrap();
                searches.push((wanted, tape));
            } else {
                let wanted = request(prompt, 10 + max_tokens);
                engine.submit(wanted.clone(), tape.sink(), now).unwrap();
                samples.push((wanted, tape));
            }
            for _ in 0..rng.below(4) {
                engine.step(now).unwrap();
                engine.check().unwrap();
            }
        }
        run(&mut engine);
        preemptions += engine.stats().totals.preemptions;
        for (wanted, tape) in &searches {
            assert_eq!(beams(tape), search_alone(model(&limits), wanted), "round {round}: {wanted:?}");
        }
        for (wanted, tape) in &samples {
            let (tokens, _) = model(&limits).generate(&wanted.prompt, &wanted.sampling, &wanted.stop);
            assert_eq!(tape.tokens(), tokens);
        }
    }
    assert!(preemptions > 5, "{preemptions}");
}

#[test]
fn a_search_that_streams_reports_every_round() {
    let limits = limits();
    let mut engine = core(config(SchedulerPolicy::Balanced, &limits), &limits);
    let tape = serve(&mut engine, search(vec![1, 2, 3], 6, BeamParams { stream: true, ..params(3) }));
    let record = tape.0.lock().unwrap();
    assert!(record.deltas >= 3 && record.beams.len() == 3, "{} deltas", record.deltas);
}

#[test]
fn a_cancelled_search_ends_with_what_it_has() {
    let limits = limits();
    let mut engine = core(config(SchedulerPolicy::Balanced, &limits), &limits);
    let tape = Tape::default();
    let id = engine.submit(search(vec![1, 2, 3], 30, params(3)), tape.sink(), 1).unwrap();
    (0..3).for_each(|_| assert_eq!(engine.step(1).unwrap(), Progress::Working));
    engine.cancel(id);
    engine.check().unwrap();
    run(&mut engine);
    assert_eq!(tape.reason(), Some(FinishReason::Cancelled));
    assert_eq!(beams(&tape).iter().map(|beam| beam.tokens.len()).collect::<Vec<_>>(), [3, 3, 3]);
}

#[test]
fn what_a_search_cannot_do_is_refused() {
    let limits = limits();
    let mut engine = core(config(SchedulerPolicy::Balanced, &limits), &limits);
    let good = || search(vec![1], 2, params(2));
    let mut refused = |request: Request, text: &str| {
        let error = engine.submit(request, Tape::default().sink(), 1).unwrap_err();
        assert!(error.message().contains(text), "{error}");
    };
    refused(Request { beam: Some(params(5)), ..good() }, "beam_width is 5, expected 1 to max_beam_width, which is 4");
    refused(
        Request { beam: Some(BeamParams { num_return: 3, ..params(2) }), ..good() },
        "num_return_sequences is 3, expected 1 to the beam width, which is 2",
    );
    refused(
        Request { beam: Some(BeamParams { widths: vec![2, 3], ..params(2) }), ..good() },
        "beam_width_array has 3, expected 1 to beam_width, which is 2",
    );
    refused(Request { draft: vec![1], ..good() }, "beam_width is 2 and draft_input_ids");
    refused(Request { num_sequences: 2, ..good() }, "beam_width is 2 and several sequences");
    let sampling = SamplingParams { top_log_probs: 1, ..SamplingParams::default() };
    refused(Request { sampling, ..good() }, "beam_width is 2 and num_top_log_probs");
}
