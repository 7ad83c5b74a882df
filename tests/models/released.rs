//! The configurations of released models: each is read, and asks for as many parameters as were published.

use crate::driver::fixtures;
use serde_json::Value;
use std::fs;
use triton_trtllm::runner::{LoadReport, ModelOptions, ModelSource, plan_gpu};

/// More memory than any of the models takes.
const FREE_BYTES: u64 = 1 << 42;

/// What a folder with nothing but this `config.json` would be.
fn planned(config: &Value, max_seq_len: usize) -> Result<LoadReport, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let source = ModelSource::DummyFolder(folder.path().to_owned());
    let options = ModelOptions { max_seq_len: Some(max_seq_len), ..ModelOptions::new(source) };
    plan_gpu(&options, FREE_BYTES).map_err(|error| error.message().to_owned())
}

fn released() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("released.json")).unwrap()).unwrap()
}

#[test]
fn released_configurations_ask_for_the_published_parameters() {
    let (mut wrong, released) = (Vec::new(), released());
    for (name, model) in released.as_object().unwrap() {
        let expected = model["parameters"].as_u64().unwrap();
        match planned(&model["config"], 1024) {
            Ok(report) if report.parameters == expected => {}
            Ok(report) => wrong.push(format!("{name}: {} parameters, not {expected}", report.parameters)),
            Err(message) => wrong.push(format!("{name}: {message}")),
        }
    }
    assert!(released.as_object().unwrap().len() >= 60 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_would_change_beyond_the_trained_length_is_refused_there() {
    let qwen = &released()["qwen-7b"]["config"];
    assert_eq!(planned(qwen, 8192).unwrap().limits.max_seq_len_tokens, 8192);
    let error = planned(qwen, 8193).unwrap_err();
    assert!(error.contains("positions end at 8192"), "{error}");
}
