//! What is written from the tables is in step with them. `REWRITE=1 cargo test --test adapter docs` writes it anew.

use std::path::Path;

use triton_trtllm::adapter::errors::{ERRORS, errors_markdown};
use triton_trtllm::adapter::llm::{config_template, tensors_markdown};
use triton_trtllm::adapter::roles::{bls_template, prompts_markdown};
use triton_trtllm::config::{PARAMETERS, engine_arguments_markdown, parameters_markdown};
use triton_trtllm::metrics::metrics_markdown;

fn in_step(file: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == expected, "{file} is out of step with its table: REWRITE=1 cargo test --test adapter docs");
}

#[test]
fn the_parameters_are_documented() {
    in_step("docs/parameters.md", &parameters_markdown());
}

#[test]
fn the_tensors_are_documented() {
    in_step("docs/tensors.md", &tensors_markdown());
}

#[test]
fn the_metrics_are_documented() {
    in_step("docs/metrics.md", &metrics_markdown());
}

#[test]
fn the_errors_are_documented() {
    in_step("docs/errors.md", &errors_markdown());
}

#[test]
fn every_message_of_the_error_index_is_in_the_sources() {
    let mut sources = String::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    // A text that goes on in the next line is one text.
    let joined: String = sources.split("\\\n").map(|part| part.trim_start()).collect();
    let missing: Vec<_> = ERRORS.iter().map(|row| row.message).filter(|text| !joined.contains(text)).collect();
    assert!(missing.is_empty(), "messages that nothing says: {missing:#?}");
}

fn collect(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            collect(&entry, text);
        } else if !entry.ends_with("errors.rs") {
            text.push_str(&std::fs::read_to_string(&entry).unwrap());
        }
    }
}

#[test]
fn appendix_c_the_load_bearing_messages_are_in_the_error_index() {
    for fragment in [
        "Invalid gpt_model_type",
        "Maximum queue size of",
        "Both encoder and decoder model paths are empty",
        "Streaming is only supported",
        "Batch size > 1 requires",
        "LoRA task",
        "not found in cache",
        "Executor failed process requestId",
    ] {
        assert!(ERRORS.iter().any(|row| row.message.contains(fragment)), "{fragment}");
    }
}

#[test]
fn the_other_backends_are_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/other_backends.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let head = written.split(TABLES).next().unwrap();
    let expected = format!("{head}{TABLES}{}{}", prompts_markdown(), engine_arguments_markdown().trim_end());
    in_step("docs/other_backends.md", &format!("{expected}\n"));
}

/// What follows is made from the tables.
const TABLES: &str = "## Tables\n\n";

#[test]
fn the_template_of_the_llm_has_every_tensor() {
    in_step("model_repo/tensorrt_llm/config.pbtxt", &config_template());
}

#[test]
fn the_template_of_the_bls_has_every_tensor() {
    in_step("model_repo/tensorrt_llm_bls/config.pbtxt", &bls_template());
}

#[test]
fn every_template_uses_known_parameters_only_and_parses_with_its_placeholders() {
    for model in ["ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("model_repo").join(model).join("config.pbtxt");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{model}: {error}"));
        assert!(text.contains(&format!("name: \"{model}\"")));
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(key) = line.strip_prefix("key: \"").and_then(|rest| rest.strip_suffix('"'))
                && model != "ensemble"
            {
                assert!(PARAMETERS.iter().any(|row| row.key == key), "{model}: {key}");
            }
            let placeholder = line.contains("${");
            assert!(!placeholder || line.contains("\"${"), "{model}: an unquoted placeholder does not parse: {line}");
        }
    }
}
