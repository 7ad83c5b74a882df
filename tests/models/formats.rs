//! The same models in other formats: the logits and tokens of the Hugging Face folder.

use crate::driver::{device, fixtures, options};
use crate::golden::check_folder;
use serde_json::{Value, json};
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use triton_trtllm::adapter::tokenizer::{has_tokenizer, load_tokenizer};
use triton_trtllm::device::DType;
use triton_trtllm::error::{Error, ErrorKind};
use triton_trtllm::model::formats::WeightPlaces;
use triton_trtllm::model::formats::gguf::GgufFile;
use triton_trtllm::runner::{LoadReport, ModelOptions, load_on};
use triton_trtllm::step::Executor;

pub fn formats(kind: &str) -> PathBuf {
    fixtures().join("formats").join(kind)
}

fn folders(kind: &str, at_least: usize) -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(formats(kind)).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= at_least, "fixtures are missing: {folders:?}");
    folders
}

/// A folder with copies of folders, by name.
pub fn copies(folders: &[(&str, PathBuf)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, from) in folders {
        let to = root.path().join(name);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    root
}

fn change_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn report(options: &ModelOptions) -> Result<LoadReport, Error> {
    load_on(&device(), options).map(|model| model.report)
}

fn failure(folder: &Path) -> Error {
    report(&options(folder, 64)).expect_err("it loaded")
}

fn assert_names(error: &Error, parts: &[&str]) {
    let message = error.message();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
    assert!(!message.contains('\n'), "{message:?} is not one sentence");
}

#[test]
fn tensorrt_llm_checkpoints_of_any_parallelism_equal_the_reference() {
    let folders = folders("trtllm", 39);
    let failed: Vec<_> =
        folders.iter().filter(|folder| panic::catch_unwind(|| check_folder(folder)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn tensorrt_llm_names_of_one_architecture_mean_the_same() {
    let cases: [(&str, &[&str]); 3] = [
        ("qwen2-tied-tp2-pp1", &["Qwen2VLForConditionalGeneration", "Qwen2VLModel"]),
        ("gpt2-tp2-pp2", &["GPTForCausalLM", "GPT2LMHeadCustomModel"]),
        (
            "llama-gqa-tp2-pp1",
            &[
                "InternLMForCausalLM",
                "InternLM2ForCausalLM",
                "SkyworkForCausalLM",
                "LLaMAForCausalLM",
                "LlavaLlamaModel",
            ],
        ),
    ];
    for (folder, names) in cases {
        let root = copies(&[("model", formats("trtllm").join(folder))]);
        for name in names {
            change_config(&root.path().join("model"), |config| {
                config["architecture"] = json!(name);
                if name.starts_with("Qwen2VL") {
                    config["position_embedding_type"] = json!("mrope");
                    config["rotary_scaling"] = json!({"type": "mrope", "mrope_section": [2, 1, 1]});
                }
            });
            check_folder(&root.path().join("model"));
        }
    }
}

#[test]
fn gguf_files_equal_the_reference() {
    let folders = folders("gguf", 51);
    let failed: Vec<_> =
        folders.iter().filter(|folder| panic::catch_unwind(|| check_folder(folder)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_report_says_the_format_and_what_is_not_used() {
    let folder = formats("trtllm").join("llama-gqa-tp2-pp1");
    let report_of = |path: &Path| report(&options(path, 64)).unwrap();
    let trtllm = report_of(&folder);
    assert_eq!((trtllm.format.as_str(), trtllm.family), ("TensorRT-LLM checkpoint (tp 2, pp 1)", "llama"));
    let plain = report_of(&fixtures().join("models/llama-gqa"));
    assert_eq!((plain.format.as_str(), plain.parameters), ("Hugging Face folder", trtllm.parameters));
    let gguf = report_of(&formats("gguf").join("llama-llama3/model.gguf"));
    assert_eq!((gguf.format.as_str(), gguf.unused.len()), ("GGUF", 0));
    assert!(gguf.to_string().contains("format     GGUF"));
}

#[test]
fn the_memory_that_is_told_is_all_that_was_planned() {
    let model = load_on(&device(), &options(&fixtures().join("models/qwen3"), 64)).unwrap();
    let report = &model.report;
    let parts = [report.weight_bytes, report.workspace_bytes, report.buffer_bytes, report.kv.bytes];
    assert!(report.buffer_bytes > 0 && report.to_string().contains("buffers    "), "{report}");
    let memory = model.executor.memory();
    let told = (memory.cpu_bytes + memory.gpu_bytes) as usize;
    match told.checked_sub(parts.iter().sum()) {
        Some(0) => {}
        // What recorded steps take of a GPU is measured, while other tests come and go there.
        Some(_) if memory.gpu_bytes > 0 => {}
        other => panic!("{told} bytes are told, {parts:?} were planned: {other:?} more"),
    }
}

#[test]
fn gguf_blocks_are_read_like_the_reference_reads_them() {
    let file = GgufFile::open(&fixtures().join("formats/gguf-blocks.gguf")).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap().unwrap();
        let mut bytes = Vec::new();
        tensor.read(0..tensor.rows(), DType::F32, &mut bytes);
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    };
    let mut checked = 0;
    for name in file.names().filter_map(|name| name.strip_suffix(".blocks")) {
        let (got, expected) = (floats(&format!("{name}.blocks")), floats(&format!("{name}.values")));
        assert_eq!(got.len(), expected.len(), "{name}");
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!((got - expected).abs() <= expected.abs() * 1e-6, "{name}: element {i} is {got}, not {expected}");
        }
        checked += 1;
    }
    assert_eq!(checked, 13);
}

#[test]
fn a_gguf_file_brings_its_tokenizer() {
    let path = formats("gguf").join("llama-gqa");
    assert!(has_tokenizer(&path) && !has_tokenizer(&fixtures().join("models/llama-gqa")));
    for path in [path.clone(), path.join("model.gguf")] {
        let tokenizer = load_tokenizer(&path).unwrap();
        // <bos>, "he", "y", " he"
        assert_eq!(tokenizer.encode("hey he", true).unwrap(), [0, 97, 90, 98]);
        assert_eq!(tokenizer.decode(&[0, 97, 90, 98, 1], true), "hey he");
        assert_eq!(tokenizer.encode("<eos>", false).unwrap(), [1]);
        assert_eq!((tokenizer.eos_ids(), tokenizer.bos().unwrap().id), ([1].as_slice(), 0));
    }
}

#[test]
fn a_sentencepiece_vocabulary_of_a_gguf_file_gives_the_ids_of_the_model() {
    let tokenizer = load_tokenizer(&formats("sentencepiece.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("tokenizers/sentencepiece/bpe.model"), folder.path().join("tokenizer.model")).unwrap();
    let config = json!({"tokenizer_class": "LlamaTokenizer", "legacy": true});
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let expected = load_tokenizer(folder.path()).unwrap();
    for text in ["Once upon a time", " two  blanks", "caf\u{e9} \u{1f600}", "a</s>b", ""] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids, expected.encode(text, true).unwrap(), "{text:?}");
        assert_eq!(ids[0], 1);
        assert_eq!(tokenizer.decode(&ids, true), expected.decode(&ids, true));
    }
}

#[test]
fn the_tokenizer_of_a_gemma_gguf_file_gives_the_ids_of_its_model() {
    let tokenizer = load_tokenizer(&formats("gemma-tokenizer.gguf")).unwrap();
    let text = fs::read_to_string(formats("gemma-tokenizer.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    for case in reference["cases"].as_array().unwrap() {
        let (text, ids): (_, Vec<i32>) =
            (case["text"].as_str().unwrap(), serde_json::from_value(case["ids"].clone()).unwrap());
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), [&[2], ids.as_slice()].concat(), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true), case["decoded"].as_str().unwrap(), "{text:?}");
    }
}

/// A GGUF file with ten digits, two pairs of them, and the name of a way to cut texts.
fn digits_gguf(path: &Path, pre: &str) {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let (string, array) = (8_u32.to_le_bytes(), 9_u32.to_le_bytes());
    let strings = |key: &str, texts: &[&str]| {
        let mut out =
            [text(key), array.to_vec(), string.to_vec(), (texts.len() as u64).to_le_bytes().to_vec()].concat();
        texts.iter().for_each(|one| out.extend(text(one)));
        out
    };
    let named = |key: &str, value: &str| [text(key), string.to_vec(), text(value)].concat();
    let tokens = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "12", "34"];
    let bytes = [
        b"GGUF".to_vec(),
        3_u32.to_le_bytes().to_vec(),
        0_u64.to_le_bytes().to_vec(),
        6_u64.to_le_bytes().to_vec(),
        named("general.architecture", "llama"),
        [text("tokenizer.ggml.bos_token_id"), 4_u32.to_le_bytes().to_vec(), 9_u32.to_le_bytes().to_vec()].concat(),
        named("tokenizer.ggml.model", "gpt2"),
        named("tokenizer.ggml.pre", pre),
        strings("tokenizer.ggml.tokens", &tokens),
        strings("tokenizer.ggml.merges", &["1 2", "3 4"]),
    ];
    fs::write(path, bytes.concat()).unwrap();
}

#[test]
fn vocabularies_of_gguf_files_are_cut_as_their_names_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digits.gguf");
    let (runs, threes, single): (&[i32], &[i32], &[i32]) = (&[10, 11], &[10, 3, 4], &[1, 2, 3, 4]);
    let expected = [
        ("gpt-2", runs),
        ("exaone4", runs),
        ("bloom", runs),
        ("deepseek-llm", runs),
        ("llama-bpe", threes),
        ("glm4", threes),
        ("dbrx", threes),
        ("falcon", threes),
        ("deepseek-v3", threes),
        ("falcon3", threes),
        ("pixtral", threes),
        ("kimi-k2", threes),
        ("gpt-4o", threes),
        ("qwen2", single),
        ("tekken", single),
        ("smollm", single),
        ("deepseek-coder", single),
        ("viking", single),
    ];
    for (name, ids) in expected {
        digits_gguf(&path, name);
        let tokenizer = load_tokenizer(&path).unwrap();
        assert_eq!(tokenizer.encode("1234", false).unwrap(), ids, "{name}");
        // The file says nothing of it.
        let begins_with_bos = tokenizer.encode("1234", true).unwrap()[0] == 9;
        assert_eq!(begins_with_bos, ["llama-bpe", "falcon3", "pixtral", "tekken"].contains(&name), "{name}");
    }
    digits_gguf(&path, "secret");
    let error = load_tokenizer(&path).err().unwrap();
    assert_names(&error, &["tokenizer.ggml.pre \"secret\" is not supported"]);
}

/// The layers with a window are not guessed.
#[test]
fn a_gguf_file_must_say_which_layers_have_a_window() {
    for (name, architecture) in [("exaone4", "exaone4"), ("olmo3", "olmo2")] {
        let root = copies(&[("model", formats("gguf").join(name))]);
        let path = root.path().join("model/model.gguf");
        let mut bytes = fs::read(&path).unwrap();
        let key = b"sliding_window_pattern";
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
        bytes[at..at + 3].copy_from_slice(b"xxx");
        fs::write(&path, bytes).unwrap();
        let parts = ["model.gguf", architecture, "sliding_window is 16", "sliding_window_pattern", "is not there"];
        assert_names(&failure(&path), &parts);
    }
}

#[test]
fn torch_pickles_equal_the_reference() {
    let folders = folders("pickle", 2);
    folders.iter().for_each(|folder| check_folder(folder));
    let report = report(&options(&folders[0], 64)).unwrap();
    assert_eq!(
        (report.format.as_str(), report.unused),
        ("Hugging Face folder, torch pickles", vec!["position_ids".into()])
    );
}

#[test]
fn what_is_no_file_of_torch_tensors_is_refused() {
    let root = copies(&[("model", fixtures().join("models/qwen3")), ("pickle", formats("pickle").join("llama-gqa"))]);
    let folder = root.path().join("model");
    fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    assert_names(&failure(&folder), &["pytorch_model.bin", "no zip archive"]);
    fs::rename(folder.join("pytorch_model.bin"), folder.join("consolidated.00.pth")).unwrap();
    assert_names(&failure(&folder), &["consolidated.00.pth is a torch pickle of a layout that is not read"]);
    // A function of the same length that is no tensor's.
    let path = root.path().join("pickle/pytorch_model.bin");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(18).position(|window| window == b"_rebuild_tensor_v2").unwrap();
    bytes[at..at + 18].copy_from_slice(b"_rebuild_tensor_vX");
    fs::write(&path, bytes).unwrap();
    assert_names(&failure(&root.path().join("pickle")), &["torch._utils._rebuild_tensor_vX", "only tensors are"]);
}

#[test]
fn quantisations_that_are_not_read_are_named() {
    let root = copies(&[("model", fixtures().join("models/qwen3"))]);
    let folder = root.path().join("model");
    change_config(&folder, |config| config["quantization_config"] = json!({"quant_method": "awq", "bits": 4}));
    assert_names(&failure(&folder), &["quantization_config", "awq is not supported yet"]);
}

#[test]
fn a_folder_with_several_gguf_models_asks_for_one() {
    let root = copies(&[("model", formats("gguf").join("llama-gqa"))]);
    let folder = root.path().join("model");
    fs::copy(folder.join("model.gguf"), folder.join("other.gguf")).unwrap();
    assert_names(&failure(&folder), &["several GGUF models: model.gguf, other.gguf", "gpt_model_path"]);
    fs::rename(folder.join("other.gguf"), folder.join("mmproj-other.gguf")).unwrap();
    report(&options(&folder, 64)).unwrap();
}

#[test]
fn a_missing_part_of_a_split_gguf_model_is_named() {
    let root = copies(&[("model", formats("gguf").join("llama-gqa"))]);
    let folder = root.path().join("model");
    fs::rename(folder.join("model.gguf"), folder.join("m-00001-of-00002.gguf")).unwrap();
    assert_names(&failure(&folder), &["m-00001-of-00002.gguf has 2 parts", "m-00002-of-00002.gguf is the first"]);
}

#[test]
fn a_split_gguf_model_is_read_from_all_its_parts() {
    let root = copies(&[("model", formats("gguf").join("llama-gqa"))]);
    let folder = root.path().join("model");
    let bytes = fs::read(folder.join("model.gguf")).unwrap();
    let (first, second) = (folder.join("m-00001-of-00002.gguf"), folder.join("m-00002-of-00002.gguf"));
    // As they are split by default: the first part has the metadata, and no tensor.
    fs::write(&first, [&bytes[..8], &[0; 8], &bytes[16..]].concat()).unwrap();
    fs::rename(folder.join("model.gguf"), &second).unwrap();
    check_folder(&folder);
    for path in [&folder, &first, &second] {
        assert!(report(&options(path, 64)).unwrap().unused.is_empty() && has_tokenizer(path));
    }
}

/// An engine folder beside a Hugging Face folder.
fn engine(pretrained: &Path, build: Value) -> TempDir {
    let root = copies(&[("hf", fixtures().join("models/llama-gqa"))]);
    let folder = root.path().join("engine");
    fs::create_dir(&folder).unwrap();
    let config: Value = serde_json::from_str(&fs::read_to_string(pretrained.join("config.json")).unwrap()).unwrap();
    let config = json!({"version": "0.20.0", "pretrained_config": config, "build_config": build});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("rank0.engine"), "opaque").unwrap();
    root
}

fn engine_options(folder: &Path) -> ModelOptions {
    ModelOptions { max_batch_size: None, max_seq_len: None, max_step_tokens: None, ..options(folder, 64) }
}

#[test]
fn an_engine_folder_gives_limits_and_its_neighbour_the_weights() {
    let build = json!({"max_batch_size": 5, "max_num_tokens": 48, "max_seq_len": 40, "max_beam_width": 1});
    let root = engine(&formats("trtllm").join("llama-gqa-tp1-pp1"), build);
    for path in [root.path().join("engine"), root.path().join("engine/rank0.engine")] {
        let report = report(&engine_options(&path)).unwrap();
        assert!(report.format.starts_with("TensorRT-LLM engine folder, weights of "), "{}", report.format);
        let limits =
            (report.limits.max_step_sequences, report.limits.max_step_tokens, report.limits.max_seq_len_tokens);
        assert_eq!(limits, (5, 48, 40));
    }
    let given = ModelOptions { max_batch_size: Some(7), ..engine_options(&root.path().join("engine")) };
    assert_eq!(report(&given).unwrap().limits.max_step_sequences, 7);
}

/// Engines before version 0.8 do not say which checkpoint they were built from, but its sizes.
#[test]
fn an_old_engine_folder_takes_the_weights_of_its_size() {
    let others = [("gptj", "models/gptj"), ("bias", "models/llama-bias"), ("hf", "models/llama-gqa")];
    let root = copies(&others.map(|(name, from)| (name, fixtures().join(from))));
    let folder = root.path().join("engine");
    fs::create_dir(&folder).unwrap();
    let config = |layers: usize| {
        let builder = json!({"name": "llama", "precision": "float16", "num_layers": layers, "num_heads": 4,
            "hidden_size": 32, "vocab_size": 128, "max_batch_size": 5, "max_input_len": 30, "max_output_len": 10});
        let config = json!({"builder_config": builder, "plugin_config": {"tokens_per_block": 64}});
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
    };
    let hf: Value = serde_json::from_str(&fs::read_to_string(root.path().join("hf/config.json")).unwrap()).unwrap();
    assert_eq!((&hf["num_hidden_layers"], &hf["hidden_size"]), (&json!(3), &json!(32)));
    config(3);
    let found = report(&engine_options(&folder)).unwrap();
    assert!(found.format.contains("/hf: Hugging Face folder"), "{}", found.format);
    assert_eq!((found.limits.max_step_sequences, found.limits.max_seq_len_tokens), (5, 40));
    config(7);
    assert_names(&failure(&folder), &["folders beside it (3 without a checkpoint that fits)"]);
}

#[test]
fn the_weights_of_an_engine_are_searched_in_order() {
    let root = engine(&formats("trtllm").join("llama-gqa-tp1-pp1"), json!({"max_seq_len": 40}));
    let (folder, hf) = (root.path().join("engine"), root.path().join("hf"));
    let checkpoint = formats("trtllm").join("llama-gqa-tp2-pp1");
    let with = |checkpoint_dir: Option<&Path>, tokenizer_dir: Option<&Path>| ModelOptions {
        weight_places: WeightPlaces {
            checkpoint_dir: checkpoint_dir.map(Path::to_owned),
            tokenizer_dir: tokenizer_dir.map(Path::to_owned),
        },
        ..engine_options(&folder)
    };
    let named = report(&with(Some(&checkpoint), None)).unwrap();
    assert!(named.format.contains("llama-gqa-tp2-pp1"), "{}", named.format);
    let second = root.path().join("copy");
    fs::create_dir(&second).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(hf.join(file), second.join(file)).unwrap();
    }
    assert_names(&report(&with(None, None)).unwrap_err(), &["several checkpoints beside it fit", "checkpoint_dir"]);
    [hf, second].iter().for_each(|folder| fs::remove_dir_all(folder).unwrap());
    let other = report(&with(Some(&fixtures().join("models/llama-bias")), None)).unwrap_err();
    assert_names(&other, &["num_hidden_layers is 2", "was built with 3"]);
    let last = report(&with(None, Some(&fixtures().join("models/llama-gqa")))).unwrap();
    assert!(last.format.contains("models/llama-gqa"), "{}", last.format);
    fs::copy(
        formats("trtllm/llama-gqa-tp1-pp1").join("rank0.safetensors"),
        folder.join("rank0_managed_weights.safetensors"),
    )
    .unwrap();
    let managed = report(&with(None, Some(&fixtures().join("models/llama-gqa")))).unwrap();
    assert!(managed.format.ends_with("TensorRT-LLM checkpoint (tp 1, pp 1)"), "{}", managed.format);
}

#[test]
fn an_engine_folder_without_weights_says_where_they_were_searched() {
    let root = engine(&formats("trtllm").join("llama-gqa-tp1-pp1"), json!({}));
    fs::remove_dir_all(root.path().join("hf")).unwrap();
    let error = failure(&root.path().join("engine"));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let parts = ["checkpoint_dir (not set)", "folders beside it", "rank0_managed_weights", "tokenizer_dir (not set)"];
    assert_names(&error, &parts);
    assert_names(&error, &["fill_template.py", "checkpoint_dir:"]);
}

#[test]
fn tensorrt_llm_checkpoints_that_are_not_served_are_named() {
    let cases: [(&str, Value, &[&str]); 9] = [
        ("architecture", json!("MedusaForCausalLM"), &["MedusaForCausalLM is a model with Medusa heads"]),
        ("architecture", json!("EagleForCausalLM"), &["EagleForCausalLM is a model with an EAGLE drafter"]),
        ("architecture", json!("ReDrafterForLLaMALM"), &["ReDrafterForLLaMALM is a model with a recurrent drafter"]),
        ("architecture", json!("DeepseekForCausalLM"), &["DeepseekForCausalLM is not supported as a TensorRT-LLM"]),
        ("architecture", json!("EncoderModel"), &["the encoder of an encoder-decoder model"]),
        ("architecture", json!("WhatForCausalLM"), &["WhatForCausalLM is not supported", "Qwen3ForCausalLM"]),
        ("quantization", json!({"quant_algo": "W4A16_AWQ"}), &["quant_algo is W4A16_AWQ"]),
        ("position_embedding_type", json!("alibi"), &["position_embedding_type alibi is not supported"]),
        (
            "moe",
            json!({"num_experts": 8, "top_k": 2, "normalization_mode": 2}),
            &["moe: normalization_mode 2 is not supported"],
        ),
    ];
    for (key, value, parts) in cases {
        let root = copies(&[("model", formats("trtllm").join("llama-gqa-tp2-pp1"))]);
        let folder = root.path().join("model");
        change_config(&folder, |config| config[key] = value);
        let error = failure(&folder);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_names(&error, parts);
        assert_names(&error, &["config.json"]);
    }
    let root = copies(&[("encoder", formats("gguf").join("qwen3")), ("decoder", formats("gguf").join("qwen3"))]);
    assert_names(&failure(root.path()), &["holds an encoder and a decoder"]);
}

#[test]
fn tensorrt_llm_checkpoints_that_contradict_themselves_are_explained() {
    let cases: [(&str, Value, &[&str]); 5] = [
        ("mapping", json!({"tp_size": 4}), &["tp_size 4 and pp_size 1", "rank2.safetensors, rank3.safetensors"]),
        ("mapping", json!({"tp_size": 0}), &["mapping: tp_size is 0"]),
        ("mapping", json!({"tp_size": 2, "pp_size": 9}), &["tp_size 2 and pp_size 9 do not fit 3 layers"]),
        ("num_attention_heads", json!(5), &["num_attention_heads is 5", "multiple of tp_size, 2"]),
        ("num_key_value_heads", json!(3), &["num_key_value_heads is 3"]),
    ];
    for (key, value, parts) in cases {
        let root = copies(&[("model", formats("trtllm").join("llama-gqa-tp2-pp1"))]);
        let folder = root.path().join("model");
        change_config(&folder, |config| config[key] = value);
        assert_names(&failure(&folder), parts);
    }
    let root = copies(&[("model", formats("trtllm").join("llama-gqa-tp2-pp1"))]);
    let other = formats("trtllm").join("llama-gqa-tp4-pp2/rank1.safetensors");
    fs::copy(other, root.path().join("model/rank1.safetensors")).unwrap();
    assert_names(&failure(&root.path().join("model")), &["safetensors"]);
}

#[test]
fn gguf_errors_name_the_file_and_the_field() {
    let root = copies(&[("model", formats("gguf").join("qwen3"))]);
    let path = root.path().join("model/model.gguf");
    let original = fs::read(&path).unwrap();
    let check = |change: &dyn Fn(&mut Vec<u8>), parts: &[&str]| {
        let mut bytes = original.clone();
        change(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let error = failure(&path);
        assert_names(&error, parts);
        assert_names(&error, &["model.gguf"]);
    };
    let replace = |bytes: &mut Vec<u8>, from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes.splice(at..at + from.len(), to.iter().copied());
    };
    check(&|bytes| bytes[0] = b'X', &["is no GGUF file"]);
    check(&|bytes| bytes[4] = 9, &["version is 9"]);
    check(&|bytes| bytes[8..16].fill(255), &["announces 18446744073709551615 elements or bytes for tensor_count"]);
    check(&|bytes| bytes.truncate(200), &["cut off while copying?"]);
    check(&|bytes| bytes.truncate(bytes.len() - 100), &["places the tensor", "cut off"]);
    check(&|bytes| replace(bytes, b"qwen3", b"qwenX"), &["general.architecture \"qwenX\" is not supported", "qwen3"]);
    check(
        &|bytes| replace(bytes, b"qwen3.block_count\x04", b"qwen3.block_count\x63"),
        &["qwen3.block_count the type 99"],
    );
    check(
        &|bytes| replace(bytes, b"block_count\x04\0\0\0\x02", b"block_count\x04\0\0\0\0"),
        &["num_hidden_layers is 0"],
    );
    check(
        &|bytes| replace(bytes, b"ffn_norm", b"ffn_gone"),
        &["lacks 1 tensor: model.layers.0.post_attention_layernorm.weight"],
    );
    let type_of = |name: &[u8], dims: usize| {
        let at = original.windows(name.len()).position(|window| window == name).unwrap();
        at + name.len() + 4 + 8 * dims
    };
    let at = type_of(b"output_norm.weight", 1);
    check(&|bytes| bytes[at] = 22, &["output_norm.weight has type IQ2_S (22)", "supported are F32"]);
}

/// A model inside one that also takes images: its configuration as a part, its tensors behind a prefix, and a tensor of
/// the images beside them.
fn wrap(name: &str, outer: Value, prefix: &str, image: &str) -> TempDir {
    let root = copies(&[("model", fixtures().join("models").join(name))]);
    let folder = root.path().join("model");
    change_config(&folder, |config| {
        let mut text = config.clone();
        let whole = config.as_object_mut().unwrap();
        whole.clear();
        whole.extend(outer.as_object().unwrap().clone());
        match outer["text_config"].as_object() {
            Some(changes) => {
                text["architectures"] = Value::Null;
                text.as_object_mut().unwrap().extend(changes.clone());
                whole.insert("text_config".into(), text);
            }
            // Everything is on one level.
            None => {
                whole.extend(text.as_object().unwrap().clone().into_iter().filter(|(key, _)| outer.get(key).is_none()))
            }
        }
    });
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let old: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let mut header = serde_json::Map::new();
    for (name, entry) in old.as_object().unwrap() {
        let inner = name.strip_prefix("model.").map(|inner| format!("{prefix}{inner}"));
        let head = prefix.strip_suffix(".model.").map(|before| format!("{before}.{name}"));
        let new = inner.or(head.filter(|_| name != "__metadata__")).unwrap_or_else(|| name.clone());
        header.insert(new, entry.clone());
    }
    let size = bytes.len() - 8 - len;
    header.insert(image.to_owned(), json!({"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]}));
    let header = Value::Object(header).to_string().into_bytes();
    let parts = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &bytes[8 + len..], &[0; 8]];
    fs::write(path, parts.concat()).unwrap();
    root
}

#[test]
fn the_language_models_of_models_that_take_images_are_served() {
    let mrope = json!({"type": "mrope", "mrope_section": [2, 1, 1]});
    let cases = [
        (
            "llama4",
            json!({"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "vision_config": {},
                "text_config": {"model_type": "llama4_text"}}),
            "language_model.model.",
            "vision_model.class_embedding",
        ),
        (
            "qwen2-tied",
            json!({"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "vision_config": {},
                "rope_scaling": mrope}),
            "model.",
            "visual.patch_embed.proj.weight",
        ),
        (
            "qwen2-tied",
            json!({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
                "vision_config": {}, "text_config": {"model_type": "qwen2_5_vl_text", "rope_scaling": mrope}}),
            "model.language_model.",
            "model.visual.patch_embed.proj.weight",
        ),
        (
            "qwen3",
            json!({"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "vision_config": {},
                "text_config": {"model_type": "qwen3_vl_text",
                    "rope_scaling": {"rope_type": "default", "mrope_interleaved": true, "mrope_section": [4, 2, 2]}}}),
            "model.language_model.",
            "model.visual.blocks.0.norm1.weight",
        ),
    ];
    for (name, outer, prefix, image) in cases {
        let root = wrap(name, outer, prefix, image);
        let folder = root.path().join("model");
        check_folder(&folder);
        assert_eq!(report(&options(&folder, 64)).unwrap().unused, [image], "{name}");
    }
}
