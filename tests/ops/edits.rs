//! Edits of logits of whole batches against the passes of `decode::logits`, a row at a time.

use crate::devices;
use crate::harness::Random;
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::decode::logits::{History, Occurrences, apply};
use triton_trtllm::device::{
    DType, DecayingTopP, EditLogits, RowEdits, RowMode, RowSample, RowSampling, Sample, SharedDevice, TableList, Tensor,
};
use triton_trtllm::ids::TokenId;

const POISON: i32 = 0x5a5a_5a5a;

fn integers(device: &SharedDevice, rows: usize, words: &[i32]) -> Tensor {
    let tensor = Tensor::zeros(device, rows, words.len() / rows, DType::I32, "a test").unwrap();
    device.upload(&tensor, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
    tensor
}

fn floats(device: &SharedDevice, rows: &[Vec<f32>]) -> Tensor {
    let tensor = Tensor::zeros(device, rows.len(), rows[0].len(), DType::F32, "a test").unwrap();
    device.upload(&tensor, &rows.iter().flatten().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
    tensor
}

fn words(device: &SharedDevice, tensor: &Tensor) -> Vec<i32> {
    let mut bytes = vec![0; tensor.bytes()];
    device.download(tensor, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| i32::from_ne_bytes(b.try_into().unwrap())).collect()
}

/// A row: what its request says, what came before, and which tokens its guide allows.
struct Case {
    logits: Vec<f32>,
    params: SamplingParams,
    tokens: Vec<TokenId>,
    prompt_len: usize,
    allowed: Option<Vec<bool>>,
}

impl Case {
    fn new(random: &mut Random, vocab: usize) -> Self {
        let some = |random: &mut Random| random.below(2) == 0;
        // Few different tokens, so that they repeat; some outside the vocabulary.
        let pick = |random: &mut Random, values: &[f32]| values[random.below(values.len())];
        let distinct = [3, 40, vocab + 3][random.below(3)];
        let longest = [4, 60, 2000][random.below(3)];
        let len = 1 + random.below(longest);
        let tokens: Vec<_> = (0..len).map(|_| random.below(distinct) as TokenId).collect();
        let word = |random: &mut Random| {
            let size = random.below(4);
            let end = len - random.below(len.min(3));
            let mut word = tokens[end.saturating_sub(size)..end].to_vec();
            word.push(random.below(vocab) as TokenId);
            word
        };
        let params = SamplingParams {
            temperature: pick(random, &[1.0, 0.0, 0.6, 1.9]),
            top_p: some(random).then_some(0.8),
            top_p_decay: if some(random) { 0.97 } else { 1.0 },
            top_p_min: 0.2,
            top_p_reset_id: some(random).then(|| tokens[random.below(len)]),
            repetition_penalty: [1.0, 1.3, 0.7][random.below(3)],
            presence_penalty: [0.0, 0.5, -0.4][random.below(3)],
            frequency_penalty: [0.0, 0.3, -0.1][random.below(3)],
            prompt_ignore_length: [0, 5, 5000][random.below(3)],
            no_repeat_ngram_size: [0, 0, 1, 2, 4][random.below(5)],
            embedding_bias: some(random)
                .then(|| (0..1 + random.below(vocab)).map(|_| random.number() as f32).collect()),
            min_tokens: [0, 3, 5000][random.below(3)],
            bad_words: (0..random.below(5)).map(|_| word(random)).collect(),
            end_ids: (0..random.below(3)).map(|_| random.below(vocab) as TokenId).collect(),
            ..Default::default()
        };
        let logits = (0..vocab).map(|_| (random.number() * 4.0) as f32).collect();
        let allowed = some(random).then(|| (0..vocab).map(|_| random.below(3) > 0).collect());
        Self { logits, params, prompt_len: 1 + random.below(len), tokens, allowed }
    }

    fn expected(&self) -> (Vec<f32>, Option<f32>) {
        let occurrences = Occurrences::of(&self.tokens, self.prompt_len, &self.params);
        let history = History { tokens: &self.tokens, prompt_len: self.prompt_len, occurrences: &occurrences };
        let mut logits = self.logits.clone();
        apply(&mut logits, &self.params, &history);
        for (logit, _) in logits.iter_mut().zip(self.allowed.iter().flatten()).filter(|(_, allowed)| !**allowed) {
            *logit = f32::NEG_INFINITY;
        }
        (logits, self.params.for_next(&history).top_p)
    }

    /// Puts the row's lists into the tables, its history without the last token.
    fn row(&self, tables: &mut Vec<i32>, token: usize, mask: Option<usize>) -> RowEdits {
        let mut list = |words: &[i32], len: usize| {
            tables.push(POISON);
            let start = tables.len() as u32;
            tables.extend(words);
            (len > 0).then_some(TableList { start, len: len as u32 })
        };
        let mut history = self.tokens.clone();
        *history.last_mut().unwrap() = POISON;
        let params = &self.params;
        let ends = params.bad_words.iter().scan(0, |end, word| {
            *end += word.len() as i32;
            Some(*end)
        });
        let words: Vec<i32> = ends.chain(params.bad_words.iter().flatten().copied()).collect();
        let bias: Vec<i32> = params.embedding_bias.iter().flat_map(|b| b.iter()).map(|x| x.to_bits() as i32).collect();
        let short = self.tokens.len() - self.prompt_len < params.min_tokens as usize;
        RowEdits {
            bias: list(&bias, bias.len()),
            inverse_temperature: params.inverse_temperature(),
            mask: mask.map(|mask| mask as u32),
            penalties: params.has_penalties().then_some((
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            )),
            ignored: (params.prompt_ignore_length as usize).min(self.prompt_len) as u32,
            end_ids: list(&params.end_ids, if short { params.end_ids.len() } else { 0 }),
            no_repeat_ngram_size: params.no_repeat_ngram_size,
            words: list(&words, params.bad_words.len()),
            top_p: params.top_p_follows_tokens().then(|| DecayingTopP {
                start: params.top_p.unwrap(),
                decay: params.top_p_decay,
                min: params.top_p_min,
                reset_id: params.top_p_reset_id.unwrap(),
            }),
            prompt_len: self.prompt_len as u32,
            history: list(&history, history.len()),
            token: token as u32,
        }
    }
}

/// Edits the cases in one batch; those of `skipped` are left alone.
fn run(device: &SharedDevice, cases: &[&Case], skipped: usize) -> (Vec<Vec<f32>>, Vec<f32>) {
    let vocab = cases[0].logits.len();
    let (mut tables, mut masks) = (Vec::new(), vec![vec![0; vocab.div_ceil(32)]]);
    let mut rows = Vec::new();
    for (r, case) in cases.iter().enumerate() {
        if let Some(allowed) = &case.allowed {
            let mut mask = vec![0; vocab.div_ceil(32)];
            allowed
                .iter()
                .enumerate()
                .for_each(|(token, &allowed)| mask[token / 32] |= i32::from(allowed) << (token % 32));
            masks.push(mask);
        }
        let row = case.row(&mut tables, r, case.allowed.as_ref().map(|_| masks.len() - 1));
        rows.extend(if r == skipped { [0; RowEdits::WORDS] } else { row.encode() });
    }
    let last_tokens: Vec<_> = cases.iter().map(|case| *case.tokens.last().unwrap()).collect();
    let sampling = cases.iter().map(|case| RowSampling { mode: RowMode::Draw, ..RowSampling::new(&case.params, 1, 0) });
    let sampling: Vec<_> = sampling.flat_map(|row| row.encode()).collect();
    let sampling = integers(device, cases.len(), &sampling);
    let out = floats(device, &vec![vec![f32::NAN; vocab]; cases.len()]);
    device
        .edit_logits(&EditLogits {
            logits: &floats(device, &cases.iter().map(|case| case.logits.clone()).collect::<Vec<_>>()),
            out: &out,
            counts: &integers(device, cases.len(), &vec![POISON; cases.len() * vocab]),
            rows: &integers(device, cases.len(), &rows),
            tables: &integers(device, 1, &tables),
            tokens: &integers(device, 1, &last_tokens),
            masks: Some(&integers(device, masks.len(), &masks.concat())),
            sampling: &sampling,
        })
        .unwrap();
    let out: Vec<f32> = words(device, &out).iter().map(|&bits| f32::from_bits(bits as u32)).collect();
    let top_p = words(device, &sampling)
        .chunks_exact(RowSampling::WORDS)
        .map(|row| RowSampling::decode(row).unwrap().top_p)
        .collect();
    (out.chunks_exact(vocab).map(<[f32]>::to_vec).collect(), top_p)
}

fn same(got: &[f32], want: &[f32]) -> bool {
    got.iter().zip(want).all(|(got, want)| got == want || (got - want).abs() <= 1e-6 * (1.0 + want.abs()))
}

#[test]
fn a_batch_with_other_edits_in_every_row_is_what_each_row_is_alone() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for vocab in [5, 127, 4099, 32_000] {
            let num_rows = if vocab > 10_000 { 9 } else { 33 };
            let cases: Vec<_> = (0..num_rows).map(|_| Case::new(&mut random, vocab)).collect();
            let skipped = random.below(num_rows);
            let (batch, top_p) = run(&device, &cases.iter().collect::<Vec<_>>(), skipped);
            for (r, case) in cases.iter().enumerate() {
                let what = format!(
                    "{name}, seed {}: row {r} of {vocab}: {:?}",
                    random.seed,
                    SamplingParams { embedding_bias: None, ..case.params.clone() }
                );
                if r == skipped {
                    assert!(batch[r].iter().all(|x| x.is_nan()), "{what}: left alone, and written");
                    continue;
                }
                let (want, want_top_p) = case.expected();
                assert!(same(&batch[r], &want), "{what}");
                if case.params.top_p_follows_tokens() {
                    assert!((top_p[r] - want_top_p.unwrap()).abs() < 1e-6, "{what}: top-p {}", top_p[r]);
                }
                if r < 3 {
                    assert_eq!(run(&device, &[case], 1).0[0], batch[r], "{what}: alone it is another");
                }
            }
        }
    }
}

#[test]
fn edited_rows_are_sampled_from_the_edited_logits() {
    for (name, device) in devices() {
        let logits = floats(&device, &[vec![1.0, 5.0, 2.0], vec![1.0, 5.0, 2.0]]);
        let edited = floats(&device, &[vec![9.0, 0.0, 0.0], vec![9.0, 0.0, 0.0]]);
        let plain = RowSampling::new(&SamplingParams::default(), 1, 0);
        let rows = [plain, RowSampling { slot: 1, ..plain }.of_edited(true)];
        let params = integers(&device, 2, &rows.iter().flat_map(RowSampling::encode).collect::<Vec<_>>());
        let (out, sampled) = (integers(&device, 2, &[0; 2 * RowSample::WORDS]), integers(&device, 1, &[POISON; 2]));
        let args = Sample {
            logits: &logits,
            edited: Some(&edited),
            params: &params,
            out: &out,
            narrowed: true,
            sampled: &sampled,
        };
        device.sample(&args).unwrap();
        assert_eq!(words(&device, &sampled), [1, 0], "{name}");
    }
}
