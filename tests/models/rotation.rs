//! Models whose rotation depends on the length of the request.

use crate::driver::{BLOCK_SIZE, fixtures, load, options};
use crate::engine::{submit, tokens};
use crate::golden::cases;
use triton_trtllm::decode::StopCriteria;
use triton_trtllm::engine::{Engine, EngineConfig, Request};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::Executor;

/// The length of training of the fixture.
const BORDER: usize = 64;

fn engine(pipeline_depth: usize, graphs: bool) -> Engine {
    let folder = fixtures().join("models/phi3-longrope");
    let (pipeline_depth, graphs) = (Some(pipeline_depth), Some(graphs));
    let model = load(&ModelOptions { pipeline_depth, graphs, ..options(&folder, 256) });
    assert_eq!(model.executor.rotation_border(), Some(BORDER));
    Engine::start(EngineConfig::for_limits(&model.executor.limits()), Box::new(model.executor)).unwrap()
}

fn request(prompt: &[TokenId], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        stop: StopCriteria { max_tokens, ..StopCriteria::default() },
        ..Request::default()
    }
}

#[test]
fn short_requests_have_the_short_factors_beside_long_ones() {
    let cases = cases(&fixtures().join("models/phi3-longrope"));
    let is_short = |prompt: &[TokenId], tokens: &[TokenId]| prompt.len() + tokens.len() <= BORDER;
    assert!(cases.iter().any(|case| is_short(&case.prompt, &case.tokens)));
    assert!(cases.iter().any(|case| !is_short(&case.prompt, &case.tokens)));
    for (depth, graphs) in [(1, false), (2, false), (2, true)] {
        let engine = engine(depth, graphs);
        let running: Vec<_> =
            cases.iter().map(|case| submit(&engine, request(&case.prompt, case.tokens.len()))).collect();
        for (case, deltas) in cases.iter().zip(&running) {
            assert_eq!(tokens(deltas), case.tokens, "a prompt of {}, depth {depth}", case.prompt.len());
        }
    }
}

#[test]
fn keys_of_short_requests_are_no_use_to_long_ones() {
    let prompt: Vec<TokenId> = (0..6 * BLOCK_SIZE as TokenId).map(|i| i * 7 % 90).collect();
    let (short, long) = (BORDER - prompt.len(), BORDER - prompt.len() + 1);
    let alone = |max_tokens: usize| tokens(&submit(&engine(1, false), request(&prompt, max_tokens)));
    let (short_tokens, long_tokens) = (alone(short), alone(long));
    let engine = engine(1, false);
    let mut cached = 0;
    for (max_tokens, expected, is_reused) in [
        (short, &short_tokens, false),
        (long, &long_tokens, false),
        (short, &short_tokens, true),
        (long, &long_tokens, true),
    ] {
        assert_eq!(&tokens(&submit(&engine, request(&prompt, max_tokens))), expected);
        let before = std::mem::replace(&mut cached, engine.stats().totals.cached_tokens);
        assert_eq!(cached > before, is_reused, "{max_tokens}");
    }
}
