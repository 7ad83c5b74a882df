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

/// Requests that differ in every knob.
fn every_knob() -> Vec<SamplingParams> {
    let greedy = SamplingParams::default();
    let drawn = |seed| SamplingParams { top_k: 30, seed, temperature: 1.4, ..Default::default() };
    let bias =
        |token: usize| -> std::sync::Arc<[f32]> { (0..128).map(|i| if i == token { 7.0 } else { 0.0 }).collect() };
    vec![
        greedy.clone(),
        SamplingParams { repetition_penalty: 1.7, log_probs: true, ..drawn(1) },
        SamplingParams { presence_penalty: 1.5, frequency_penalty: 0.7, prompt_ignore_length: 7, ..greedy.clone() },
        SamplingParams { no_repeat_ngram_size: 2, ..greedy.clone() },
        SamplingParams { bad_words: vec![vec![5], vec![17, 3], vec![0, 37, 74]], no_repeat_ngram_size: 1, ..drawn(4) },
        SamplingParams { embedding_bias: Some(bias(9)), frequency_penalty: 0.9, ..greedy.clone() },
        SamplingParams { min_tokens: 9, end_ids: (0..64).collect(), ..drawn(6) },
        SamplingParams { top_p: Some(0.9), top_p_decay: 0.8, top_p_min: 0.1, top_p_reset_id: Some(3), ..drawn(7) },
    ]
}

#[test]
fn a_batch_with_every_knob_gives_each_row_what_it_gets_alone() {
    let knobs = every_knob();
    let solo = |(i, params): (usize, &SamplingParams)| {
        let mut driver = driver();
        let seq = driver.add(&prompt(10 + i), params);
        driver.generate(&[seq], 40, usize::MAX).remove(0)
    };
    let alone: Vec<_> = knobs.iter().enumerate().map(solo).collect();
    let mut together = driver();
    let seqs: Vec<_> = knobs.iter().enumerate().map(|(i, params)| together.add(&prompt(10 + i), params)).collect();
    let mut got = together.generate(&seqs, 15, 6);
    // What is known of a sequence on the device outlives a preemption.
    seqs.iter().step_by(2).for_each(|&seq| together.preempt(seq));
    for (got, further) in got.iter_mut().zip(together.generate(&seqs, 25, 9)) {
        got.extend(further);
    }
    for ((got, alone), params) in got.iter().zip(&alone).zip(&knobs) {
        assert_eq!(got, alone, "{params:?}");
    }
    let plain = &alone[0];
    assert!(alone[2..6].iter().all(|tokens| tokens != plain), "the knobs change nothing");
}
