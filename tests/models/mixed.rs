//! One batch of everything that requests may ask for: each gets what it gets alone from a model that was loaded anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use triton_trtllm::decode::beam::{BeamParams, EarlyStopping};
use triton_trtllm::decode::draft::NGramOptions;
use triton_trtllm::decode::{DraftLogits, PassOrder, SamplingParams, StopCriteria};
use triton_trtllm::engine::{Delta, Engine, EngineConfig, Request, SchedulerPolicy};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::Executor;

use crate::driver::{BLOCK_SIZE, fixtures, load, options};
use crate::engine::submit;
use crate::sampling::{every_knob, letters, prompt};

const VOCAB: usize = 128;
const MAX_TOKENS: usize = 24;

fn engine(policy: SchedulerPolicy, kv_blocks: usize, ngram_drafts: Option<NGramOptions>) -> Engine {
    let overlaps = ngram_drafts.is_some();
    let model = load(&ModelOptions {
        max_batch_size: Some(12),
        max_step_tokens: Some(48),
        kv_max_tokens: Some(kv_blocks * BLOCK_SIZE),
        pipeline_depth: Some(1 + usize::from(overlaps)),
        graphs: Some(overlaps),
        ..options(&fixtures().join("models/llama-gqa"), 96)
    });
    let limits = model.executor.limits();
    let config = EngineConfig { policy, ngram_drafts, max_beam_width: 4, ..EngineConfig::for_limits(&limits) };
    Engine::start(config, Box::new(model.executor)).unwrap()
}

/// What a request was told, by its sequences.
#[derive(Debug, Default)]
struct Told {
    tokens: BTreeMap<usize, Vec<TokenId>>,
    log_probs: BTreeMap<usize, Vec<f32>>,
    top: BTreeMap<usize, Vec<Vec<(TokenId, f32)>>>,
    beams: Vec<(Vec<TokenId>, Vec<f32>)>,
    accepted_draft_tokens: usize,
}

fn hear(deltas: &Receiver<Delta>) -> Told {
    let mut told = Told::default();
    for delta in deltas {
        told.tokens.entry(delta.sequence_index).or_default().extend(delta.tokens);
        let full = delta.log_probs.iter().map(|log_prob| log_prob.full);
        told.log_probs.entry(delta.sequence_index).or_default().extend(full);
        told.top.entry(delta.sequence_index).or_default().extend(delta.top);
        if let Some(beams) = delta.beams {
            told.beams = beams.iter().map(|beam| (beam.tokens.clone(), beam.log_probs.clone())).collect();
        }
        if let Some(finish) = delta.finish {
            assert!(finish.error.is_none(), "{finish:?}");
            told.accepted_draft_tokens = delta.stats.accepted_draft_tokens;
        }
    }
    told
}

fn close(got: &[f32], want: &[f32]) -> bool {
    got.len() == want.len() && got.iter().zip(want).all(|(got, want)| got == want || (got - want).abs() < 1e-3)
}

fn assert_same(got: &Told, want: &Told, what: &str) {
    assert_eq!(got.tokens, want.tokens, "{what}");
    let same = got.log_probs.iter().zip(&want.log_probs).all(|(got, want)| close(got.1, want.1));
    assert!(same, "{what}: {:?}, not {:?}", got.log_probs, want.log_probs);
    let places = |told: &Told| told.top.values().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(places(got), places(want), "{what}");
    for (got, want) in got.top.values().flatten().zip(want.top.values().flatten()) {
        let (got_ids, got): (Vec<_>, Vec<_>) = got.iter().copied().unzip();
        let (want_ids, want): (Vec<_>, Vec<_>) = want.iter().copied().unzip();
        assert!(got_ids == want_ids && close(&got, &want), "{what}: {got_ids:?} {got:?}, not {want_ids:?} {want:?}");
    }
    let ids = |told: &Told| told.beams.iter().map(|beam| beam.0.clone()).collect::<Vec<_>>();
    assert_eq!(ids(got), ids(want), "{what}");
    assert!(got.beams.iter().zip(&want.beams).all(|(got, want)| close(&got.1, &want.1)), "{what}: {got:?}");
}

fn request(number: usize, sampling: SamplingParams) -> Request {
    let stop = StopCriteria { max_tokens: MAX_TOKENS, ..Default::default() };
    Request { prompt: prompt(10 + number), sampling, stop, ..Request::default() }
}

/// Logits that like some tokens of each place.
fn draft_logits(tokens: &[TokenId], threshold: Option<f32>) -> DraftLogits {
    let row = |place: usize| (0..VOCAB).map(|id| ((id * 31 + place * 7) % 23) as f32 / 6.0).collect();
    DraftLogits { tokens: tokens.into(), rows: (0..tokens.len()).map(row).collect(), threshold }
}

/// A search behind every pass; none of the end ids can come, of which there may be more than the device ranks for.
fn search(num_end_ids: usize, order: PassOrder) -> Request {
    let end_ids: Vec<TokenId> = (100..100 + num_end_ids as TokenId).collect();
    let bias: Arc<[f32]> = (0..VOCAB)
        .map(|id| match id {
            100.. => f32::NEG_INFINITY,
            id if id % 9 == 4 => 0.7,
            _ => 0.0,
        })
        .collect();
    let sampling = SamplingParams {
        temperature: 0.7,
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        prompt_ignore_length: 5,
        no_repeat_ngram_size: 3,
        bad_words: vec![vec![5], vec![17, 3]],
        embedding_bias: Some(bias),
        min_tokens: 6,
        end_ids: (0..40).step_by(2).collect(),
        order,
        ..Default::default()
    };
    let beam = BeamParams {
        width: 4,
        widths: vec![4, 3, 4],
        len_penalty: 0.8,
        early_stopping: EarlyStopping::Never,
        diversity_rate: 0.3,
        num_return: 4,
        stream: false,
    };
    let stop = StopCriteria { max_tokens: 14, end_ids, ..Default::default() };
    Request { stop, beam: Some(beam), ..request(8, sampling) }
}

/// All there is, with drafts that come true, that go wrong on the way, and that are accepted by probability.
fn everything(alone: &Engine) -> Vec<Request> {
    let knobs = every_knob();
    let mut all: Vec<_> = knobs.iter().enumerate().map(|(number, params)| request(number, params.clone())).collect();
    for number in [0, 2, 6, 10, 11] {
        let plain = all[number].clone();
        let mut draft = hear(&submit(alone, plain.clone())).tokens.remove(&0).unwrap();
        all.push(Request { draft: draft.clone(), ..plain.clone() });
        draft[5] = (draft[5] + 1) % VOCAB as TokenId;
        all.push(Request { draft, ..plain });
    }
    for threshold in [None, Some(0.4)] {
        let draft: Vec<TokenId> = prompt(12);
        let sampling = SamplingParams { draft: Some(draft_logits(&draft, threshold)), ..knobs[1].clone() };
        all.push(Request { draft, ..request(3, sampling) });
    }
    let several = SamplingParams { log_probs: true, top_log_probs: 2, ..knobs[7].clone() };
    all.push(Request { num_sequences: 3, ..request(5, several) });
    // More than the device tells.
    all.push(request(6, SamplingParams { top_log_probs: 40, log_probs: true, ..knobs[3].clone() }));
    let guide = Some(letters("([a-z]{3} ?)*"));
    all.push(request(7, SamplingParams { guide, top_log_probs: 5, log_probs: true, ..knobs[2].clone() }));
    all.extend([search(1, PassOrder::TemperatureFirst), search(9, PassOrder::PenaltiesFirst)]);
    all
}

#[test]
fn a_batch_of_everything_gives_each_request_what_it_gets_alone() {
    let alone = engine(SchedulerPolicy::GuaranteedNoEvict, 200, None);
    let requests = everything(&alone);
    let expected: Vec<_> = requests.iter().map(|request| hear(&submit(&alone, request.clone()))).collect();
    for (request, told) in requests.iter().zip(&expected).filter(|(request, _)| request.beam.is_none()) {
        assert_eq!(told.tokens.len(), request.num_sequences);
        assert!(told.tokens.values().all(|tokens| tokens.len() == MAX_TOKENS), "{told:?}");
    }
    let ngrams = Some(NGramOptions { max_draft_len: 3, max_matching_ngram_size: 2 });
    for (policy, kv_blocks) in [(SchedulerPolicy::MaxUtilization, 30), (SchedulerPolicy::Balanced, 90)] {
        let together = engine(policy, kv_blocks, ngrams);
        let running: Vec<_> = requests.iter().map(|request| submit(&together, request.clone())).collect();
        for (number, (deltas, want)) in running.iter().zip(&expected).enumerate() {
            let what = format!("{policy:?}: request {number}: {:?}", requests[number].sampling);
            assert_same(&hear(deltas), want, &what);
        }
        let preemptions = together.stats().totals.preemptions;
        assert!(preemptions > 0 || policy == SchedulerPolicy::Balanced, "{preemptions}");
    }
    let accepted = |at: usize| expected[at].accepted_draft_tokens;
    let first = every_knob().len();
    assert!(accepted(first) > 15 && accepted(first + 1) >= 5, "{} {}", accepted(first), accepted(first + 1));
}

#[test]
fn searches_rank_the_same_by_the_device_and_by_the_host() {
    let engine = engine(SchedulerPolicy::Balanced, 200, None);
    for order in [PassOrder::TemperatureFirst, PassOrder::PenaltiesFirst] {
        // (1 + 1) * 4 tokens of each row, and (1 + 9) * 4, which only the host finds.
        let [device, host] = [1, 9].map(|num_end_ids| hear(&submit(&engine, search(num_end_ids, order))));
        assert_eq!(device.beams.len(), 4);
        assert!(device.beams.iter().all(|beam| beam.0.len() == 14), "{device:?}");
        assert_same(&host, &device, &format!("{order:?}"));
        let plain = Request { sampling: SamplingParams::default(), ..search(1, order) };
        assert_ne!(hear(&submit(&engine, plain)).beams, device.beams, "the passes change nothing");
    }
}
