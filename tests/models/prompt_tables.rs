//! Embeddings that a request brings along take the place of the model's own.

use crate::driver::{Driver, fixtures, load, options};
use half::bf16;
use serde_json::Value;
use std::collections::BTreeSet;
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::{Executor, PromptTable};

/// Rows of the embedding of a fixture, and their width.
fn embedding(model: &str, tensor: &str, tokens: &[TokenId]) -> PromptTable {
    let file = std::fs::read(fixtures().join("models").join(model).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let entry = &tensors[tensor];
    let (start, width) = (entry["data_offsets"][0].as_u64().unwrap(), entry["shape"][1].as_u64().unwrap() as usize);
    let data = &file[8 + header + start as usize..];
    let values: Vec<f32> = match entry["dtype"].as_str().unwrap() {
        "F32" => data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        "BF16" => data.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        dtype => panic!("{dtype}"),
    };
    let row = |&token: &TokenId| values[token as usize * width..(token as usize + 1) * width].to_vec();
    PromptTable::new(width, tokens.iter().flat_map(row).collect()).unwrap()
}

#[test]
fn the_models_own_rows_in_a_table_change_nothing() {
    let cases = [
        ("llama-gqa", "model.embed_tokens.weight"),
        // A scale, positions that are learned, and embeddings of another size than the model's.
        ("gemma2", "model.embed_tokens.weight"),
        ("gpt2", "transformer.wte.weight"),
        ("opt-projected", "model.decoder.embed_tokens.weight"),
    ];
    let plain: Vec<TokenId> = (0..90).map(|at| at * 37 % 96).collect();
    // Alone, in a run longer than what is uploaded at a time, at the end.
    let replaced: BTreeSet<usize> = [0, 3].into_iter().chain(10..82).chain([89]).collect();
    let tokens: Vec<TokenId> = replaced.iter().map(|&at| plain[at]).collect();
    for (name, tensor) in cases {
        let table = embedding(name, tensor, &tokens);
        let options = options(&fixtures().join("models").join(name), 128);
        for graphs in [false, true] {
            let mut driver = Driver::new(load(&ModelOptions { graphs: Some(graphs), ..options.clone() }).executor);
            assert_eq!(driver.executor.prompt_table_width(), Some(table.width()), "{name}");
            let vocab = driver.executor.limits().vocab_size as TokenId;
            let mut prompt = plain.clone();
            replaced.iter().zip(vocab..).for_each(|(&at, row)| prompt[at] = row);
            let seq = driver.add(&plain, &SamplingParams::default());
            let expected = driver.generate(&[seq], 9, usize::MAX);
            for chunk in [usize::MAX, 7, 1] {
                let seq = driver.add(&prompt, &SamplingParams::default());
                driver.set_prompt_table(seq, table.clone());
                assert_eq!(driver.generate(&[seq], 9, chunk), expected, "{name}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn tables_of_sequences_that_run_together_are_told_apart_and_survive_preemption() {
    let mut driver = Driver::new(load(&options(&fixtures().join("models/llama-gqa"), 128)).executor);
    let table = |tokens: &[TokenId]| embedding("llama-gqa", "model.embed_tokens.weight", tokens);
    // Counts of tokens that are none must not matter.
    let sampling =
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.2, min_tokens: 3, ..Default::default() };
    let runs: Vec<Vec<TokenId>> = (0..3).map(|run| (0..9).map(|at| (at * 11 + run * 5) % 128).collect()).collect();
    let add = |driver: &mut Driver, tokens: &[TokenId]| {
        let seq = driver.add(&[128, 129, 130, 131, 132, 133, 134, 7, 136], &sampling);
        driver.set_prompt_table(seq, table(tokens));
        seq
    };
    let alone: Vec<_> = runs
        .iter()
        .map(|tokens| {
            let seq = add(&mut driver, tokens);
            driver.generate(&[seq], 12, usize::MAX).remove(0)
        })
        .collect();
    assert!(alone[0] != alone[1] && alone[1] != alone[2]);
    let together: Vec<_> = runs.iter().map(|tokens| add(&mut driver, tokens)).collect();
    let mut got = driver.generate(&together, 5, 4);
    driver.preempt(together[1]);
    let rest = driver.generate(&together, 7, 6);
    got.iter_mut().zip(rest).for_each(|(got, rest)| got.extend(rest));
    assert_eq!(got, alone);
}
