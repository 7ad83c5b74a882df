//! What sampling promises when it runs behind a model.

use crate::driver::{Driver, fixtures, load, options};
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::ids::TokenId;

fn driver() -> Driver {
    Driver::new(load(&options(&fixtures().join("models/llama-gqa"), 128)).executor)
}

fn prompt(len: usize) -> Vec<TokenId> {
    (0..len).map(|i| (i * 37 % 128) as TokenId).collect()
}

fn sampled(seed: u64) -> SamplingParams {
    SamplingParams { top_k: 40, top_p: Some(0.95), seed, presence_penalty: 0.3, temperature: 1.3, ..Default::default() }
}

#[test]
fn a_seed_gives_the_same_tokens_alone_in_a_batch_and_after_preemption() {
    let mut alone = driver();
    let seq = alone.add(&prompt(20), &sampled(11));
    let expected = alone.generate(&[seq], 30, usize::MAX).remove(0);

    let mut batched = driver();
    let others: Vec<_> = (0..5).map(|i| batched.add(&prompt(i + 3), &sampled(i as u64))).collect();
    let seq = batched.add(&prompt(20), &sampled(11));
    let mut all = others.clone();
    all.push(seq);
    assert_eq!(batched.generate(&all, 30, 7).pop().unwrap(), expected);

    let mut preempted = driver();
    let seq = preempted.add(&prompt(20), &sampled(11));
    let mut got = preempted.generate(&[seq], 12, usize::MAX).remove(0);
    preempted.preempt(seq);
    got.extend(preempted.generate(&[seq], 18, 9).remove(0));
    assert_eq!(got, expected);

    let mut other = driver();
    let seq = other.add(&prompt(20), &sampled(12));
    assert_ne!(other.generate(&[seq], 30, usize::MAX).remove(0), expected);
}

#[test]
fn penalties_count_prompt_and_output() {
    let mut plain = driver();
    let seq = plain.add(&prompt(30), &SamplingParams::default());
    let greedy = plain.generate(&[seq], 40, usize::MAX).remove(0);
    let distinct = |tokens: &[TokenId]| tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct(&greedy) < 40, "the fixture never repeats itself");

    let mut penalized = driver();
    let seq = penalized.add(&prompt(30), &SamplingParams { presence_penalty: 1e4, ..Default::default() });
    let got = penalized.generate(&[seq], 40, usize::MAX).remove(0);
    assert_eq!(distinct(&got), 40);
    assert!(got.iter().all(|token| !prompt(30).contains(token)), "{got:?}");
}

#[test]
fn a_row_without_candidates_fails_alone() {
    let mut driver = driver();
    let all_bad = SamplingParams { bad_words: (0..128).map(|id| vec![id]).collect(), ..Default::default() };
    let (bad, good) = (driver.add(&prompt(4), &all_bad), driver.add(&prompt(4), &SamplingParams::default()));
    let rows = driver.step(&[bad, good], usize::MAX, Vec::new());
    assert!(rows[0].tokens.is_empty());
    assert!(rows[0].error.as_ref().unwrap().message().contains("no token"));
    assert!(rows[1].error.is_none() && rows[1].tokens.len() == 1);
    assert_eq!(driver.generate(&[good], 5, usize::MAX)[0].len(), 5);
}
