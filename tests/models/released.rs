//! The configurations of released models: each is read, and asks for as many parameters as were published.

use crate::driver::fixtures;
use serde_json::Value;
use std::fs;
use triton_trtllm::model::{Rope, Section};
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

#[test]
fn the_report_says_what_the_length_changes_in_the_rotation() {
    let phi = &released()["phi-3-mini-128k"]["config"];
    let long = planned(phi, 131_072).unwrap().to_string();
    assert!(
        long.contains("rotation   the short factors for requests of up to 4096 tokens, prompt and output together"),
        "{long}"
    );
    assert!(!planned(phi, 4096).unwrap().to_string().contains("rotation"));
}

/// Frequencies with the numbers of released models, and the rows of the table around the trained length.
#[test]
fn every_rotary_scaling_has_the_frequencies_of_the_reference() {
    let text = fs::read_to_string(fixtures().join("rope.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 18);
    for case in &cases {
        let (what, config) = (case["what"].as_str().unwrap(), &case["config"]);
        let size = |value: &Value| value.as_u64().unwrap() as usize;
        let of_heads = || size(&config["hidden_size"]) / size(&config["num_attention_heads"]);
        let head_dim = config["head_dim"].as_u64().map_or_else(of_heads, |dim| dim as usize);
        let section = Section::from_value(what, config.clone()).unwrap();
        let rope = Rope::from_config(&section, head_dim, size(&config["max_position_embeddings"])).unwrap();
        let (length, trained, multiplier) =
            (size(&case["max_seq_len"]), size(&case["trained"]), case["multiplier"].as_f64().unwrap());
        let expected: Vec<f64> = serde_json::from_value(case["frequencies"].clone()).unwrap();
        let (frequencies, factor) = rope.frequencies(length);
        assert_eq!(frequencies.len(), expected.len(), "{what}");
        assert!((factor - multiplier).abs() < 1e-6, "{what}: {factor}, not {multiplier}");
        for (got, expected) in frequencies.iter().zip(&expected) {
            assert!((got - expected).abs() <= 2e-6 * expected, "{what}: {got}, not {expected}");
        }
        // Where the length decides, it is that of the case.
        let length = if rope.chosen_for(usize::MAX, false).is_some() { length } else { trained + 2 };
        let table = rope.table(length);
        for position in [0, 1, trained - 1, trained, trained + 1, length - 1].into_iter().filter(|&at| at < length) {
            let row = &table[position * rope.rotary_dim..(position + 1) * rope.rotary_dim];
            for (i, frequency) in expected.iter().enumerate() {
                let (angle, near) = (position as f64 * frequency, 1e-6 + 3e-6 * position as f64 * frequency);
                let (cos, sin) = (f64::from(row[i]), f64::from(row[expected.len() + i]));
                let off = (cos - angle.cos() * multiplier).abs().max((sin - angle.sin() * multiplier).abs());
                assert!(off <= near * multiplier, "{what}: position {position}, frequency {i}: {off}");
            }
        }
    }
}
