//! The symbols that the library imports and exports, held against the headers and the server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const ENTRY_POINTS: [&str; 9] = [
    "TRITONBACKEND_Finalize",
    "TRITONBACKEND_GetBackendAttribute",
    "TRITONBACKEND_Initialize",
    "TRITONBACKEND_ModelFinalize",
    "TRITONBACKEND_ModelInitialize",
    "TRITONBACKEND_ModelInstanceExecute",
    "TRITONBACKEND_ModelInstanceFinalize",
    "TRITONBACKEND_ModelInstanceInitialize",
    "TRITONBACKEND_ModelInstanceReady",
];

/// `TRITON_SERVER_LIB` names a server library to hold the declarations against; without it the committed list of what
/// Triton 2.51 exports is used.
fn server_exports() -> BTreeSet<String> {
    match std::env::var_os("TRITON_SERVER_LIB") {
        Some(path) => symbols(Path::new(&path), "--defined-only"),
        None => include_str!("exports.txt").lines().map(str::to_owned).collect(),
    }
}

/// The `TRITON*` functions that the headers declare.
fn declared() -> BTreeSet<String> {
    let headers = Path::new(env!("CARGO_MANIFEST_DIR")).join("triton_headers");
    let read = |name| std::fs::read_to_string(headers.join(name)).unwrap();
    let text = read("tritonserver.h") + &read("tritonbackend.h");
    let words =
        text.split('(').filter_map(|before| before.split(|c: char| !c.is_alphanumeric() && c != '_').next_back());
    words.filter(|word| word.starts_with("TRITON")).map(str::to_owned).collect()
}

/// The library that cargo built along with this test.
fn library() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.set_file_name("libtriton_trtllm.so");
    path
}

/// The dynamic symbols of a library, without versions.
fn symbols(path: &Path, which: &str) -> BTreeSet<String> {
    assert!(path.is_file(), "{} is no file", path.display());
    let output = Command::new("nm").args(["-D", which]).arg(path).output().expect("nm of binutils runs");
    assert!(output.status.success(), "nm: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let name = |line: &str| line.split_whitespace().next_back().unwrap().split('@').next().unwrap().to_owned();
    text.lines().map(name).collect()
}

#[test]
fn the_server_exports_every_function_that_the_headers_declare() {
    let exports = server_exports();
    let mut declared = declared();
    assert!(declared.len() > 90, "only {} functions were found in the headers", declared.len());
    for entry_point in ENTRY_POINTS {
        assert!(declared.remove(entry_point), "{entry_point} is not declared");
    }
    let missing: Vec<_> = declared.difference(&exports).collect();
    assert!(missing.is_empty(), "the server does not export {missing:?}");
}

#[test]
fn the_library_exports_the_entry_points_and_nothing_else() {
    let exports = symbols(&library(), "--defined-only");
    assert_eq!(exports, ENTRY_POINTS.map(str::to_owned).into());
}

#[test]
fn the_library_imports_only_declared_functions_that_older_servers_have() {
    let imports = symbols(&library(), "--undefined-only");
    let imports: BTreeSet<_> = imports.into_iter().filter(|name| name.starts_with("TRITON")).collect();
    assert!(imports.contains("TRITONBACKEND_ResponseSend"));
    let declared = declared();
    let undeclared: Vec<_> = imports.difference(&declared).collect();
    assert!(undeclared.is_empty(), "{undeclared:?} are not declared in triton_headers/");
    for name in ["MetricArgsNew", "MetricNewWithArgs", "MetricObserve"] {
        assert!(!imports.contains(&format!("TRITONSERVER_{name}")), "{name} is looked up, not imported");
    }
}
