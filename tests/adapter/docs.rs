//! What is written from the tables is in step with them. `REWRITE=1 cargo test --test adapter docs` writes it anew.

use std::path::Path;

use triton_trtllm::adapter::llm::{config_template, tensors_markdown};
use triton_trtllm::adapter::roles::bls_template;
use triton_trtllm::config::{PARAMETERS, parameters_markdown};

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
