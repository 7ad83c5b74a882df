//! Damaged files of all formats: they load or are refused with one sentence.

use crate::driver::{device, fixtures, options};
use crate::formats::{copies, formats};
use std::fs;
use std::path::Path;
use triton_trtllm::runner::load_on;

/// Numbers that look random and are always the same.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// Damages a file in many ways. It must load or be refused with one sentence; nothing may panic or take forever.
fn fuzz(folder: &Path, file: &str, header_bytes: usize, rounds: usize) {
    let root = copies(&[("model", folder.to_owned())]);
    let model = root.path().join("model");
    let original = fs::read(model.join(file)).unwrap();
    let mut numbers = Numbers(header_bytes as u64);
    let device = device();
    let mut refused = 0;
    for round in 0..rounds {
        let mut bytes = original.clone();
        match round % 3 {
            0 => bytes.truncate(numbers.below(bytes.len())),
            1 => {
                for _ in 0..=numbers.below(4) {
                    bytes[numbers.below(header_bytes)] = numbers.below(256) as u8;
                }
            }
            _ => {
                let at = numbers.below(header_bytes - 8);
                let value = [0, 1, u64::MAX, 1 << 62, 1 << 31, bytes.len() as u64][numbers.below(6)];
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        fs::write(model.join(file), &bytes).unwrap();
        if let Err(error) = load_on(&device, &options(&model, 16)) {
            assert!(!error.message().contains('\n') && !error.message().is_empty(), "{error:?}");
            refused += 1;
        }
    }
    assert!(refused > rounds / 4, "{file}: {refused} of {rounds} damaged files were refused");
}

#[test]
fn damaged_files_are_refused_in_one_sentence() {
    let gguf = formats("gguf").join("qwen2-tied");
    let header = 5000;
    fuzz(&gguf, "model.gguf", header, 240);
    let trtllm = formats("trtllm").join("qwen2-tied-tp2-pp1");
    fuzz(&trtllm, "rank1.safetensors", 2400, 120);
    let config = fs::read(trtllm.join("config.json")).unwrap().len();
    fuzz(&trtllm, "config.json", config, 120);
    fuzz(&fixtures().join("models/qwen3"), "model.safetensors", 2400, 120);
    fuzz(&fixtures().join("models/gpt-oss-mxfp4"), "model.safetensors", 3000, 60);
    fuzz(&fixtures().join("models/deepseek-v3"), "config.json", 700, 60);
    fuzz(&fixtures().join("models/deepseek-v3-fp8"), "model.safetensors", 3000, 60);
    let latent = formats("trtllm").join("deepseek-v2-groups-tp2-pp1");
    fuzz(&latent, "rank1.safetensors", 3000, 60);
    let config = fs::read(latent.join("config.json")).unwrap().len();
    fuzz(&latent, "config.json", config, 60);
    fuzz(&formats("pickle").join("llama-gqa"), "pytorch_model.bin", 4000, 240);
}
