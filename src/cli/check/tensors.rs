//! The inputs and outputs that a configuration declares, beside those that the role has.

use super::Findings;
use crate::config::{ModelRole, closest};
use crate::tensors::llm::{InputRow, Shape};
use crate::tensors::{Known, KnownTensor, OldVersion, of_role};
use serde_json::Value;

/// Types that the server writes differently but a role reads alike.
#[derive(PartialEq)]
enum Kind {
    Text,
    Fraction,
    Whole,
}

/// Findings on the tensors of a model of ours.
pub fn check(config: &Value, role: ModelRole, findings: &mut Findings) {
    let Known { inputs, outputs, needed } = of_role(role);
    let old = OldVersion::of(role, config);
    findings.facts.extend(old.map(|old| old.note().to_owned()));
    let (taken, given) = (declared(config, "input"), declared(config, "output"));
    if taken.is_empty() || given.is_empty() {
        findings.facts.push(
            "inputs and outputs that are not declared are completed at load, unless the server runs with \
             --disable-auto-complete-config"
                .to_owned(),
        );
    }
    for (name, data_type) in &taken {
        match inputs.iter().find(|input| input.name == *name) {
            None => findings.warnings.push(unknown("input", name, &inputs, "requests with it are refused")),
            Some(input) if kind(&input.data_type) != kind(data_type) => findings.warnings.push(format!(
                "input {name:?} is declared {data_type}, but must be {}: requests with it are refused",
                input.data_type
            )),
            Some(_) => {}
        }
    }
    if role == ModelRole::Llm && config["max_batch_size"].as_i64().unwrap_or(0) > 0 {
        check_dims(config, findings);
    }
    for (name, data_type) in &given {
        match outputs.iter().find(|output| output.name == *name) {
            None => findings.warnings.push(unknown("output", name, &outputs, "it is never filled")),
            Some(output) if !fits(output, data_type, role) => findings.warnings.push(format!(
                "output {name:?} is declared {data_type}, but is {}: correct the type",
                output.data_type
            )),
            Some(_) => {}
        }
    }
    let lengths = |names: &&Vec<&str>| old == Some(OldVersion::WholeRows) && names == &&["SEQUENCE_LENGTH"];
    for names in needed.iter().filter(|names| !taken.is_empty() && !lengths(names)) {
        if !names.iter().any(|name| taken.iter().any(|(taken, _)| taken == name)) {
            findings.warnings.push(format!(
                "no input {} is declared, without which no request can be served: add it",
                names.join(" or ")
            ));
        }
    }
}

/// Inputs of any length that are declared with another: the server refuses all requests but those of that shape.
fn check_dims(config: &Value, findings: &mut Findings) {
    for input in config["input"].as_array().into_iter().flatten() {
        let Some(row) = input["name"].as_str().and_then(InputRow::find) else { continue };
        let (Shape::Dims(dims) | Shape::Ragged(dims)) = row.shape else { continue };
        let whole = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
        let given: Option<Vec<_>> = input["dims"].as_array().map(|dims| dims.iter().filter_map(whole).collect());
        let fits = |given: &[i64]| {
            given.len() == dims.len() && given.iter().zip(dims).all(|(given, known)| *given == -1 || given == known)
        };
        if let Some(given) = given.filter(|given| input.get("reshape").is_none() && !fits(given)) {
            findings.warnings.push(format!(
                "input {:?} is declared with dims {given:?}, expected {dims:?}: requests of other shapes are refused",
                row.name
            ));
        }
    }
}

/// Findings on a step of an ensemble: the server refuses names that the model does not declare.
pub fn check_step(step: &Value, model: &Value, findings: &mut Findings) {
    let name = step["model_name"].as_str().unwrap_or_default();
    for (map, key) in [("input_map", "input"), ("output_map", "output")] {
        let declared = declared(model, key);
        let mapped = step[map].as_object().into_iter().flatten().map(|(tensor, _)| tensor);
        for tensor in mapped.filter(|tensor| !declared.is_empty() && !declared.iter().any(|(name, _)| name == tensor)) {
            findings
                .errors
                .push(format!("{map} names {tensor:?}, which is no {key} of the model {name:?}: correct it"));
        }
    }
}

/// Names and types.
fn declared<'a>(config: &'a Value, key: &str) -> Vec<(&'a str, &'a str)> {
    let entries = config[key].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| Some((entry["name"].as_str()?, entry["data_type"].as_str().unwrap_or_default())))
        .collect()
}

fn unknown(what: &str, name: &str, known: &[KnownTensor], consequence: &str) -> String {
    let meant = closest(name, known.iter().map(|tensor| tensor.name));
    let meant = meant.map_or(String::new(), |meant| format!("; did you mean {meant:?}?"));
    format!("{what} {name:?} is unknown: {consequence}{meant}")
}

/// Logits come as the configuration declares them, in one of two types, and so do the numbers of `preprocessing`.
fn fits(output: &KnownTensor, data_type: &str, role: ModelRole) -> bool {
    let logits = ["context_logits", "generation_logits"].contains(&output.name) && data_type == "TYPE_FP16";
    let unsigned = output.data_type == "TYPE_INT32" && data_type == "TYPE_UINT32" && role == ModelRole::Preprocessing;
    output.data_type == data_type || logits || unsigned
}

fn kind(data_type: &str) -> Kind {
    match data_type {
        "TYPE_STRING" => Kind::Text,
        "TYPE_FP16" | "TYPE_BF16" | "TYPE_FP32" | "TYPE_FP64" => Kind::Fraction,
        _ => Kind::Whole,
    }
}
