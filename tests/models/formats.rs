//! The same models in other formats: the logits and tokens of the Hugging Face folder.

use crate::driver::{device, fixtures, options};
use crate::golden::check_folder;
use serde_json::{Value, json};
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use triton_trtllm::error::{Error, ErrorKind};
use triton_trtllm::model::formats::WeightPlaces;
use triton_trtllm::runner::{LoadReport, ModelOptions, load_on};
use triton_trtllm::step::Executor;

pub fn formats(kind: &str) -> PathBuf {
    fixtures().join("formats").join(kind)
}

pub fn folders(kind: &str, at_least: usize) -> Vec<PathBuf> {
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

pub fn report(options: &ModelOptions) -> Result<LoadReport, Error> {
    load_on(&device(), options).map(|model| model.report)
}

pub fn failure(folder: &Path) -> Error {
    report(&options(folder, 64)).expect_err("it loaded")
}

pub fn assert_names(error: &Error, parts: &[&str]) {
    let message = error.message();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
    assert!(!message.contains('\n'), "{message:?} is not one sentence");
}

#[test]
fn tensorrt_llm_checkpoints_of_any_parallelism_equal_the_reference() {
    let folders = folders("trtllm", 40);
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
