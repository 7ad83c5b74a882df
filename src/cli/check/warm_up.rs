//! The samples of `model_warmup`, which the server runs while the model loads.

use super::Findings;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Findings on the samples of a model whose folder is `folder`.
pub fn check(config: &Value, folder: &Path, findings: &mut Findings) {
    let samples = config["model_warmup"].as_array().into_iter().flatten();
    for sample in samples {
        let name = sample["name"].as_str().unwrap_or_default();
        if config["platform"] == "ensemble" {
            findings.errors.push(format!(
                "model_warmup {name:?}: the server takes none for an ensemble, give it to the models of its steps"
            ));
        } else if sample["batch_size"].as_u64().unwrap_or(0) == 0 {
            findings.warnings.push(format!("model_warmup {name:?} has no batch_size: the server skips it, write 1"));
        } else {
            let inputs = sample["inputs"].as_object().into_iter().flatten();
            let faults = inputs.filter_map(|(input, given)| Some((input, fault(input, given, folder)?)));
            findings.errors.extend(faults.map(|(input, why)| format!("model_warmup {name:?}: input {input:?} {why}")));
        }
    }
}

fn fault(input: &str, given: &Value, folder: &Path) -> Option<String> {
    let dims = given["dims"].as_array().into_iter().flatten().filter_map(Value::as_i64);
    let Some(count) = dims.map(|dim| u64::try_from(dim).ok()).product::<Option<u64>>() else {
        return Some("has a size of -1: give every size".to_owned());
    };
    if given["zero_data"] == true && ["request_output_len", "max_tokens"].contains(&input) {
        return Some("is zero, which is no length: give it a file".to_owned());
    }
    if given["zero_data"] == true || given["random_data"] == true {
        return None;
    }
    let Some(file) = given["input_data_file"].as_str() else {
        return Some("has no data: give it zero_data, random_data or input_data_file".to_owned());
    };
    let needed = count.saturating_mul(element_bytes(given["data_type"].as_str().unwrap_or_default()));
    match fs::metadata(folder.join("warmup").join(file)) {
        Err(error) => Some(format!("is from warmup/{file} ({error}): put the file there")),
        Ok(metadata) if metadata.len() < needed => {
            Some(format!("takes {needed} bytes, but warmup/{file} has {}", metadata.len()))
        }
        Ok(_) => None,
    }
}

/// 0 for texts, which have lengths of their own.
fn element_bytes(data_type: &str) -> u64 {
    match data_type {
        "TYPE_STRING" => 0,
        wide if wide.ends_with("64") => 8,
        wide if wide.ends_with("32") => 4,
        wide if wide.ends_with("16") => 2,
        _ => 1,
    }
}
