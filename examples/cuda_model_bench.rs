//! Times steps of a model with made-up weights on a device: `cuda_model_bench MODEL DEVICE`.
//!
//! A decode step is timed one after the other, its tokens on the host: without sampling and lm_head, greedy, with penalties
//! in every row, and with every knob that edits logits.

use std::time::Instant;
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::device::DType;
use triton_trtllm::error::{Error, Result};
use triton_trtllm::ids::{BlockId, SeqId};
use triton_trtllm::runner::{LoadedModel, ModelOptions, ModelSource, load};
use triton_trtllm::step::{Chunk, Executor, NewSequence, StepPlan};

const BLOCK: usize = 64;
const CONTEXT: usize = 1024;
const STEPS: usize = 20;

struct Bench {
    executor: Box<dyn Executor>,
    step: u64,
    next: u64,
}

impl Bench {
    /// Seconds of one step.
    fn run(&mut self, new_sequences: Vec<NewSequence>, chunks: Vec<Chunk>, retired: Vec<SeqId>) -> Result<f64> {
        self.step += 1;
        let plan = StepPlan { step: self.step, new_sequences, chunks, retired, ..Default::default() };
        let start = Instant::now();
        self.executor.launch(&plan)?;
        self.executor.collect()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn sequences(&mut self, count: usize, len: usize, sampling: &SamplingParams) -> Vec<NewSequence> {
        let make = |index: usize| {
            self.next += 1;
            let prompt = (0..len).map(|i| ((i * 7919 + index * 104_729) % 30_000) as i32).collect();
            NewSequence { seq: SeqId(self.next), prompt, generated: 0, prompt_table: None, sampling: sampling.clone() }
        };
        (0..count).map(make).collect()
    }

    /// Median seconds of a decode step of `batch` sequences around a context of [`CONTEXT`] tokens.
    fn decode(&mut self, batch: usize, sampling: Option<&SamplingParams>) -> Result<f64> {
        let len = CONTEXT + STEPS + 1;
        let (sample, plain) = (sampling.is_some(), SamplingParams::default());
        // Without sampling the prompt itself is fed token by token.
        let mut new = self.sequences(batch, if sample { CONTEXT } else { len }, sampling.unwrap_or(&plain));
        let seqs: Vec<SeqId> = new.iter().map(|sequence| sequence.seq).collect();
        let blocks = len.div_ceil(BLOCK);
        let mut computed = vec![0; batch];
        // Eight prompts a step.
        for group in (0..batch).step_by(8) {
            let members = group..(group + 8).min(batch);
            let chunks = members.clone().map(|i| Chunk {
                seq: seqs[i],
                start: 0,
                len: CONTEXT,
                keep_blocks: 0,
                append_blocks: (0..blocks).map(|b| BlockId((b * batch + i) as u32)).collect(),
                sample,
                draft: Vec::new(),
                inspect: Default::default(),
            });
            let chunks = chunks.collect();
            let announced = new.drain(..members.len()).collect();
            self.run(announced, chunks, Vec::new())?;
            computed[members].fill(CONTEXT);
        }
        let mut times = Vec::new();
        for _ in 0..STEPS {
            let chunks = (0..batch).map(|i| Chunk {
                seq: seqs[i],
                start: computed[i],
                len: 1,
                keep_blocks: blocks,
                append_blocks: Vec::new(),
                sample,
                draft: Vec::new(),
                inspect: Default::default(),
            });
            let chunks = chunks.collect();
            times.push(self.run(Vec::new(), chunks, Vec::new())?);
            computed.iter_mut().for_each(|computed| *computed += 1);
        }
        self.run(Vec::new(), Vec::new(), seqs)?;
        times.sort_by(f64::total_cmp);
        Ok(times[STEPS / 2])
    }

    /// Median seconds of a prompt of `len` tokens in one step, its first token sampled.
    fn prefill(&mut self, len: usize) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..5 {
            let new = self.sequences(1, len, &SamplingParams::default());
            let seq = new[0].seq;
            let append_blocks = (0..len.div_ceil(BLOCK)).map(|b| BlockId(b as u32)).collect();
            let chunk = Chunk {
                seq,
                start: 0,
                len,
                keep_blocks: 0,
                append_blocks,
                sample: true,
                draft: Vec::new(),
                inspect: Default::default(),
            };
            times.push(self.run(new, vec![chunk], Vec::new())?);
            self.run(Vec::new(), Vec::new(), vec![seq])?;
        }
        times.sort_by(f64::total_cmp);
        Ok(times[2])
    }
}

/// What a decode step is timed with; nothing: without lm_head.
fn samplings() -> [(&'static str, Option<SamplingParams>); 4] {
    let greedy = SamplingParams::default();
    let penalties =
        SamplingParams { repetition_penalty: 1.1, presence_penalty: 0.2, frequency_penalty: 0.1, ..greedy.clone() };
    let all = SamplingParams {
        temperature: 0.7,
        top_p: Some(0.9),
        top_p_decay: 0.99,
        top_p_reset_id: Some(1),
        no_repeat_ngram_size: 3,
        bad_words: vec![vec![5, 6], vec![7]],
        min_tokens: 1000,
        end_ids: vec![2],
        embedding_bias: Some(vec![0.25; 128_256].into()),
        ..penalties.clone()
    };
    [
        ("without sampling and lm_head", None),
        ("greedy", Some(greedy)),
        ("penalties in every row", Some(penalties)),
        ("every knob in every row", Some(all)),
    ]
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = || Error::invalid("usage: cuda_model_bench MODEL DEVICE");
    let (model, device) = (args.next().ok_or_else(usage)?, args.next().ok_or_else(usage)?);
    let options = ModelOptions {
        device: device.parse()?,
        dtype: Some(DType::BF16),
        max_batch_size: Some(256),
        max_seq_len: Some(2048 + BLOCK),
        block_size_tokens: BLOCK,
        ..ModelOptions::new(ModelSource::Dummy(model))
    };
    let LoadedModel { executor, report, .. } = load(&options)?;
    println!("{report}");
    let mut bench = Bench { executor, step: 0, next: 0 };
    for batch in [1, 8, 64, 256] {
        for (what, sampling) in samplings() {
            let seconds = bench.decode(batch, sampling.as_ref())?;
            println!("decode {batch:>3} x context {CONTEXT}, {what:<30} {:>9.3} ms", seconds * 1e3);
        }
    }
    for len in [128, 512, 2048] {
        println!("prefill {len:>4} tokens, first token on the host          {:>9.3} ms", bench.prefill(len)? * 1e3);
    }
    Ok(())
}
