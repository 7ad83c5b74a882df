//! The engine on its thread.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use triton_trtllm::engine::fake::{FakeExecutor, Fault};
use triton_trtllm::engine::{Delta, Engine, EngineConfig, FinishReason, RequestSink};
use triton_trtllm::error::{ErrorKind, Result};
use triton_trtllm::step::{Executor, ExecutorLimits, StepOutput, StepPlan};

use crate::common::{SEED, Tape, limits, model, request};

/// Long enough to be a hang.
const PATIENCE: Duration = Duration::from_secs(60);

struct Channel(Sender<Delta>);

impl RequestSink for Channel {
    fn delta(&mut self, delta: Delta) {
        let _ = self.0.send(delta);
    }
}

fn sink() -> (Box<dyn RequestSink>, Receiver<Delta>) {
    let (sender, receiver) = channel();
    (Box::new(Channel(sender)), receiver)
}

/// All tokens and how it ended.
fn wait(deltas: &Receiver<Delta>) -> (Vec<i32>, FinishReason, String) {
    let mut tokens = Vec::new();
    loop {
        let delta = deltas.recv_timeout(PATIENCE).expect("the request hangs");
        tokens.extend(delta.tokens);
        if let Some(finish) = delta.finish {
            return (tokens, finish.reason, finish.error.map_or(String::new(), |error| error.to_string()));
        }
    }
}

fn engine(executor: impl Executor + 'static) -> Engine {
    Engine::start(EngineConfig::for_limits(&executor.limits()), Box::new(executor)).unwrap()
}

fn fake() -> FakeExecutor {
    FakeExecutor::new(ExecutorLimits { pipeline_depth: 2, ..limits() }, SEED)
}

/// Runs a step only when the test says so.
struct Gated(FakeExecutor, Receiver<()>);

impl Executor for Gated {
    fn limits(&self) -> ExecutorLimits {
        self.0.limits()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        let _ = self.1.recv();
        self.0.launch(plan)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.0.collect()
    }
}

#[test]
fn many_threads_get_the_tokens_that_each_gets_alone() {
    let engine = engine(fake());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let engine = engine.clone();
            scope.spawn(move || {
                for round in 0..16 {
                    let prompt = vec![thread, round % 5, 3, round % 2];
                    let (sink, deltas) = sink();
                    engine.submit(request(prompt.clone(), 12), sink).unwrap();
                    let alone = model(&limits()).generate(&prompt, &Default::default(), &request([], 12).stop);
                    let (tokens, reason, _) = wait(&deltas);
                    assert_eq!((tokens, reason), alone);
                }
            });
        }
    });
    assert_eq!(engine.stats().totals.requests_finished, 64);
    assert_eq!(engine.stats().last_iteration.active_requests, 0);
}

#[test]
fn a_batch_is_accepted_whole_or_not_at_all() {
    let executor = fake();
    let config = EngineConfig { max_queue_requests: Some(2), ..EngineConfig::for_limits(&executor.limits()) };
    let engine = Engine::start(config, Box::new(executor)).unwrap();
    let tapes: Vec<_> = (0..3).map(|_| Tape::default()).collect();
    let batch = |prompts: [&[i32]; 3]| -> Vec<_> {
        prompts.iter().zip(&tapes).map(|(prompt, tape)| (request(prompt.to_vec(), 2), tape.sink())).collect()
    };
    let error = engine.submit_all(batch([&[1], &[99], &[2]])).unwrap_err();
    assert!(error.message().ends_with(": prompt token 99 is outside the vocabulary, expected 0 to 25"), "{error}");
    let error = engine.submit_all(batch([&[1], &[3], &[2]])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let mut two = batch([&[1], &[3], &[2]]);
    two.pop();
    assert_eq!(engine.submit_all(two).unwrap().len(), 2);
    assert!(engine.drain(PATIENCE));
    assert_eq!(tapes.iter().map(|tape| tape.tokens().len()).collect::<Vec<_>>(), [2, 2, 0]);
    assert_eq!(engine.stats().totals.requests_accepted, 2);
}

#[test]
fn cancel_reaches_a_running_request() {
    let (go, gate) = channel();
    let engine = engine(Gated(fake(), gate));
    let (sink, deltas) = sink();
    let id = engine.submit(request([1, 2], 40), sink).unwrap();
    (0..3).for_each(|_| go.send(()).unwrap());
    assert_eq!(deltas.recv_timeout(PATIENCE).unwrap().tokens.len(), 1);
    engine.cancel(id);
    (0..3).for_each(|_| go.send(()).unwrap());
    assert_eq!(wait(&deltas).1, FinishReason::Cancelled);
}

#[test]
fn drain_refuses_new_requests_and_lets_accepted_ones_end() {
    let engine = engine(fake());
    let (sink, deltas) = sink();
    engine.submit(request([1, 2], 40), sink).unwrap();
    assert!(engine.drain(PATIENCE));
    assert_eq!(wait(&deltas).1, FinishReason::Length);
    let error = engine.submit(request([1], 1), Tape::default().sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("draining"), "{error}");
    assert!(engine.health().is_ok(), "draining is no failure");
}

#[test]
fn a_drain_that_takes_too_long_ends_the_rest_with_an_error() {
    let (go, gate) = channel();
    let engine = engine(Gated(fake(), gate));
    let (sink, deltas) = sink();
    engine.submit(request([1, 2], 40), sink).unwrap();
    assert!(!engine.drain(Duration::ZERO));
    drop(go);
    let (_, reason, error) = wait(&deltas);
    assert!(reason == FinishReason::Length || error.contains("drained"), "{reason:?} {error}");
}

#[test]
fn the_last_handle_stops_the_engine_and_everybody_is_answered() {
    let (go, gate) = channel();
    let engine = engine(Gated(fake(), gate));
    let (sink, deltas) = sink();
    engine.submit(request([1, 2], 40), sink).unwrap();
    let clone = engine.clone();
    drop(engine);
    (0..2).for_each(|_| go.send(()).unwrap());
    assert_eq!(deltas.recv_timeout(PATIENCE).unwrap().tokens.len(), 1, "a clone keeps it running");
    let opener = std::thread::spawn(move || while go.send(()).is_ok() {});
    drop(clone);
    let (tokens, reason, error) = wait(&deltas);
    assert!(tokens.len() == 39 || reason == FinishReason::Error && error.contains("shut down"), "{error}");
    opener.join().unwrap();
}

#[test]
fn shutdown_refuses_later_requests() {
    let engine = engine(fake());
    engine.shutdown();
    let error = engine.submit(request([1], 1), Tape::default().sink()).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Unavailable, "the engine is shut down"));
    assert!(engine.drain(PATIENCE), "there is nothing to wait for");
}

#[test]
fn a_panic_of_the_executor_is_seen_by_health_before_clients_hear_of_it() {
    for fault in [Fault::LaunchPanic { step: 2 }, Fault::CollectError { step: 1 }] {
        let engine = engine(fake().with_fault(fault));
        let (sink, deltas) = sink();
        engine.submit(request([1, 2], 40), sink).unwrap();
        let (_, reason, error) = wait(&deltas);
        assert_eq!(reason, FinishReason::Error);
        assert!(error.contains("injected fault"), "{error}");
        assert!(engine.health().unwrap_err().message().contains("injected fault"));
        let refused = engine.submit(request([1], 1), Tape::default().sink()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(engine.drain(PATIENCE), "nothing hangs");
    }
}

/// Collects a step only when the test says so.
struct Stuck(FakeExecutor, Receiver<()>);

impl Executor for Stuck {
    fn limits(&self) -> ExecutorLimits {
        self.0.limits()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        self.0.launch(plan)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        let _ = self.1.recv();
        self.0.collect()
    }
}

#[test]
fn a_step_that_hangs_is_noticed_and_everybody_is_answered_by_the_watchdog() {
    for drop_first in [false, true] {
        let (go, gate) = channel();
        let executor = Stuck(fake(), gate);
        let limits = executor.limits();
        let stall_timeout = Some(Duration::from_millis(40));
        let config = EngineConfig { stall_timeout, max_batch_size: 1, ..EngineConfig::for_limits(&limits) };
        let engine = Engine::start(config, Box::new(executor)).unwrap();
        let (running, waiting) = (sink(), sink());
        engine.submit(request([1, 2], 40), running.0).unwrap();
        go.send(()).unwrap();
        assert_eq!(running.1.recv_timeout(PATIENCE).unwrap().tokens.len(), 1, "a step that ends is no stall");
        let _ = engine.submit(request([3, 4], 40), waiting.0);
        for deltas in [&running.1, &waiting.1] {
            let (_, reason, error) = wait(deltas);
            assert_eq!(reason, FinishReason::Error);
            assert!(error.contains("no step was completed for 40ms"), "{error}");
        }
        assert!(engine.stats().busy_since_ns > 0 && engine.stats().steps_in_flight <= 2);
        let failure = engine.health().unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Unavailable);
        assert_eq!(engine.submit(request([1], 1), Tape::default().sink()).unwrap_err(), failure);
        if drop_first {
            // Does not wait for a thread that hangs.
            drop(engine);
            drop(go);
        } else {
            // The step ends after all: nobody hears of it twice, and the engine stays off.
            for _ in 0..3 {
                let _ = go.send(());
            }
            assert!(engine.drain(PATIENCE));
            assert!(running.1.try_recv().is_err() && engine.health().is_err());
        }
    }
}

#[test]
fn an_idle_engine_is_not_stalled() {
    let executor = fake();
    let stall_timeout = Some(Duration::from_millis(1));
    let config = EngineConfig { stall_timeout, ..EngineConfig::for_limits(&executor.limits()) };
    let engine = Engine::start(config, Box::new(executor)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(engine.health().is_ok());
    assert_eq!(engine.stats().busy_since_ns, 0);
}

#[test]
fn events_reach_another_thread() {
    let executor = fake();
    let config = EngineConfig { kv_event_buffer: 64, ..EngineConfig::for_limits(&executor.limits()) };
    let engine = Engine::start(config, Box::new(executor)).unwrap();
    let (sink, deltas) = sink();
    engine.submit(request([1, 2, 3, 4, 5], 1), sink).unwrap();
    wait(&deltas);
    let kinds: Vec<_> = engine.drain_kv_events().events.iter().map(|event| event.to_json()).collect();
    assert!(kinds.len() == 2 && kinds[0].contains("created") && kinds[1].contains("stored"), "{kinds:?}");
}
