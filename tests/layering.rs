//! The walls between the layers, held by reading the sources: who may name whom, where `unsafe`, the environment,
//! threads and clocks may appear. The picture is in `README.md`, "Architecture".

use std::fs;
use std::path::{Path, PathBuf};

/// For each layer (a folder or file of `src/`) the layers it may name with `crate::`. `error` and `ids` may be named
/// by all.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("ids", &[]),
    ("config", &[]),
    ("metrics", &["config"]),
    ("tensors", &["config"]),
    ("text", &[]),
    ("decode", &["step"]),
    ("step", &["decode"]),
    ("engine", &["decode", "step"]),
    ("device", &["decode", "step"]),
    ("ops", &["device", "step"]),
    ("model", &["device", "ops"]),
    ("runner", &["config", "decode", "device", "model", "ops", "step"]),
    (
        "adapter",
        &["config", "decode", "device", "engine", "metrics", "model", "runner", "step", "tensors", "text", "triton"],
    ),
    ("triton", &["adapter", "device", "tensors"]),
    ("cli", &["config", "decode", "device", "engine", "model", "ops", "runner", "step", "tensors", "text"]),
];

/// Layers, or files of them, that are pure: no thread, no clock, no file.
const PURE: &[&str] = &["decode/", "engine/", "step.rs", "text/"];

/// Where a pure layer meets the world: the engine's thread and handle, and the loading of a tokenizer.
const PURE_EXCEPT: &[&str] = &["engine/handle.rs", "text/tokenizer/tests.rs", "text/load.rs"];

const IMPURE: &[&str] = &["std::thread", "Instant::", "SystemTime", "std::fs", "std::net", "File::"];

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    assert!(files.len() > 20, "the sources of the library were not found under {}", root.display());
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// The code of a file: without comments and without its test module, which comes last.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap()))
}

fn layer(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} breaks of the layering:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_layer_names_only_the_layers_below_it() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let layer = layer(&file);
        if ["lib", "bin"].contains(&layer) {
            continue;
        }
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == layer) else {
            wrong.push(format!("src/{file}: the layer '{layer}' is not in the table"));
            continue;
        };
        for (line, source) in code(&text) {
            for named in source.split("crate::").skip(1) {
                let named: String = named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let free = ["error", "ids", layer].contains(&named.as_str());
                if !free && !allowed.contains(&named.as_str()) {
                    wrong.push(format!("src/{file}:{line}: '{layer}' names '{named}'"));
                }
            }
        }
    }
    report(wrong);
}

#[test]
fn unsafe_stands_only_where_the_world_is_not_rust() {
    let allowed = ["triton/", "device/cuda/", "device/cpu/"];
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if allowed.iter().any(|prefix| file.starts_with(prefix)) {
            continue;
        }
        for (line, source) in code(&text) {
            if source.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                wrong.push(format!("src/{file}:{line}: {}", source.trim()));
            }
        }
    }
    report(wrong);
}

#[test]
fn the_environment_is_read_in_one_file() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (line, source) in code(&text) {
            if (source.contains("std::env") || source.contains("env::var")) && file != "config.rs" {
                wrong.push(format!("src/{file}:{line}: {}", source.trim()));
            }
        }
    }
    report(wrong);
}

#[test]
fn pure_layers_know_no_thread_clock_or_file() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let pure = PURE.iter().any(|prefix| file.starts_with(prefix)) && !PURE_EXCEPT.contains(&file.as_str());
        for (line, source) in code(&text).filter(|_| pure) {
            if let Some(word) = IMPURE.iter().find(|word| source.contains(*word)) {
                wrong.push(format!("src/{file}:{line}: {word}"));
            }
        }
    }
    report(wrong);
}
