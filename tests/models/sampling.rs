//! What sampling promises when it runs behind a model.

use crate::driver::{Driver, fixtures, load, options};
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::decode::guided::{Guide, GuideKind, GuideSource, GuideToken, Guides};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;

fn driver() -> Driver {
    let options = ModelOptions { max_batch_size: Some(12), ..options(&fixtures().join("models/llama-gqa"), 128) };
    Driver::new(load(&options).executor)
}

pub fn prompt(len: usize) -> Vec<TokenId> {
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

/// A guide of answers that fit a regular expression, where a token is the character of its number.
pub fn letters(regex: &str) -> Guide {
    let tokens: Vec<_> = (0..128_u8).map(|byte| GuideToken::Text(vec![byte])).collect();
    Guides::new(&tokens).unwrap().compile(&GuideSource { kind: GuideKind::Regex, text: regex.into() }).unwrap()
}

/// Generates `count` tokens of one request: the tokens, and those that were most likely in the place of each.
fn with_top(params: &SamplingParams, count: usize) -> (Vec<TokenId>, Vec<Vec<(TokenId, f32)>>) {
    let mut driver = driver();
    let seq = driver.add(&prompt(12), params);
    let (mut tokens, mut top) = (Vec::new(), Vec::new());
    while tokens.len() < count {
        for row in driver.step(&[seq], usize::MAX, Vec::new()) {
            tokens.extend(row.tokens.iter().map(|token| token.id));
            top.extend(row.top);
        }
    }
    (tokens, top)
}

#[test]
fn the_most_likely_tokens_are_the_same_from_the_device_and_the_host() {
    for params in every_knob() {
        // The host samples where more are asked for than the device tells.
        let few = with_top(&SamplingParams { top_log_probs: 4, ..params.clone() }, 20);
        let many = with_top(&SamplingParams { top_log_probs: 100, ..params.clone() }, 20);
        assert_eq!(few.0, many.0, "{params:?}");
        assert_eq!((few.1.len(), many.1.len()), (20, 20), "{params:?}");
        for (few, many) in few.1.iter().zip(&many.1) {
            assert_eq!((few.len(), many.len()), (4, 100), "{params:?}");
            for (few, many) in few.iter().zip(many) {
                let equal = few.1 == many.1 || (few.1 - many.1).abs() < 1e-3;
                assert!(few.0 == many.0 && equal, "{few:?}, not {many:?}: {params:?}");
            }
        }
    }
}

#[test]
fn a_guide_is_held_and_its_end_ends_the_row_alone() {
    let mut driver = driver();
    let guided = |regex: &str, min_tokens| SamplingParams {
        guide: Some(letters(regex)),
        end_ids: vec![10],
        min_tokens,
        ..Default::default()
    };
    let free = driver.add(&prompt(6), &SamplingParams::default());
    let words = driver.add(&prompt(7), &guided("[x-z]{4}", 0));
    let short = driver.add(&prompt(8), &guided("q", 5));
    let stuck = driver.add(&prompt(9), &SamplingParams { end_ids: Vec::new(), ..guided("a", 0) });
    let seqs = [free, words, short, stuck];
    let mut got = vec![Vec::new(); 4];
    let mut errors = vec![None; 4];
    for _ in 0..5 {
        let running: Vec<_> = (0..4).filter(|&i| errors[i].is_none() && got[i].last() != Some(&10)).collect();
        let rows = driver.step(&running.iter().map(|&i| seqs[i]).collect::<Vec<_>>(), usize::MAX, Vec::new());
        for (i, row) in running.into_iter().zip(rows) {
            got[i].extend(row.tokens.iter().map(|token| token.id));
            errors[i] = row.error;
        }
    }
    assert_eq!(got[0].len(), 5);
    assert!(got[1][..4].iter().all(|token| (120..=122).contains(token)) && got[1][4] == 10, "{:?}", got[1]);
    // A complete answer ends though it is shorter than was asked for.
    assert_eq!(got[2], [113, 10]);
    assert_eq!(got[3], [97]);
    assert!(errors[..3].iter().all(Option::is_none) && errors[3].is_some(), "{errors:?}");
}

/// Requests that differ in every knob.
pub fn every_knob() -> Vec<SamplingParams> {
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
        SamplingParams { min_p: 0.2, ..drawn(8) },
        SamplingParams { typical_p: 0.4, top_log_probs: 3, repetition_penalty: 1.3, ..drawn(9) },
        SamplingParams { guide: Some(letters("[a-f]*")), presence_penalty: 0.2, ..drawn(10) },
        SamplingParams { guide: Some(letters("([a-z][0-9])*")), top_log_probs: 2, min_p: 0.1, ..drawn(11) },
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
