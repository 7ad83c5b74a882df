//! The demo model behind the fake server, and requests for it.

use std::path::PathBuf;
use std::sync::LazyLock;

use tempfile::TempDir;
use triton_trtllm::adapter;
use triton_trtllm::error::Result;
use triton_trtllm::triton::{Model, ModelHandler, ModelLoader, set_loader};

use crate::fake::{LoadedModel, ModelSpec, Reply, RequestSpec, Server, Tensor};

struct Loader;

impl ModelLoader for Loader {
    fn auto_complete(&self, model: &Model) -> Result<Option<serde_json::Value>> {
        adapter::auto_complete(model)
    }

    fn load(&self, model: &Model) -> Result<std::sync::Arc<dyn ModelHandler>> {
        adapter::load_model(model)
    }
}

/// In the project, or where `TRTLLM_ROOT` says that its files lie. On a GPU a copy in float32: products of a row have other last
/// bits there in another batch, which in bfloat16 drawn texts would show.
pub fn demo_dir() -> PathBuf {
    static IN_FLOAT32: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        for entry in project_demo_dir().read_dir().unwrap() {
            let entry = entry.unwrap();
            std::os::unix::fs::symlink(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let config = folder.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap().replace("\"bfloat16\"", "\"float32\"");
        std::fs::remove_file(&config).unwrap();
        std::fs::write(&config, text).unwrap();
        folder
    });
    if device() == "cpu" { project_demo_dir() } else { IN_FLOAT32.path().to_owned() }
}

fn project_demo_dir() -> PathBuf {
    let root = std::env::var_os("TRTLLM_ROOT");
    root.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
        .join("ci/demo_model/hf")
        .canonicalize()
        .unwrap()
}

/// What `DECODING_DEVICE` names, or the CPU.
pub fn device() -> String {
    std::env::var("DECODING_DEVICE").unwrap_or("cpu".into())
}

pub fn start() -> Server {
    let server = Server::start();
    set_loader(&Loader);
    server
}

/// The demo model with further parameters: on the CPU, or on what `DECODING_DEVICE` names.
pub fn demo<'a>(server: &'a Server, parameters: &[(&str, &str)]) -> LoadedModel<'a> {
    let folder = demo_dir();
    let folder = folder.to_str().unwrap();
    let device = device();
    let mut given = vec![
        ("gpt_model_path", folder),
        ("device", &*device),
        ("max_batch_size", "32"),
        ("max_seq_len", "512"),
        ("max_tokens_in_paged_kv_cache", "16384"),
        ("exclude_input_in_output", "true"),
    ];
    given.extend_from_slice(parameters);
    server.load(ModelSpec::with_parameters("llm", &given).auto_complete()).unwrap()
}

/// A text request that gets its answer as text and as tokens.
pub fn ask(prompt: &str, max_tokens: i32) -> RequestSpec {
    RequestSpec::new("")
        .output("text_output")
        .output("output_ids")
        .output("sequence_length")
        .input(Tensor::strings("text_input", &[1, 1], &[prompt]))
        .input(int("max_tokens", max_tokens))
}

pub fn int(name: &str, value: i32) -> Tensor {
    Tensor::int32(name, &[1, 1], &[value])
}

pub fn float(name: &str, value: f32) -> Tensor {
    Tensor::fp32(name, &[1, 1], &[value])
}

pub fn word(name: &str, value: &str) -> Tensor {
    Tensor::strings(name, &[1, 1], &[value])
}

pub fn guided(request: RequestSpec, kind: &str, guide: &str) -> RequestSpec {
    let request = request.input(word("guided_decoding_guide_type", kind));
    if guide.is_empty() { request } else { request.input(word("guided_decoding_guide", guide)) }
}

/// Text and tokens of an answer without an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub text: String,
    pub tokens: Vec<i32>,
}

pub fn answer(replies: &[Reply]) -> Answer {
    let failed = replies.iter().find_map(|reply| reply.error.clone());
    assert!(failed.is_none(), "{failed:?}");
    Answer {
        text: replies.iter().map(|reply| reply.output("text_output").unwrap().to_strings().concat()).collect(),
        tokens: replies.iter().flat_map(|reply| reply.output("output_ids").unwrap().to_int32()).collect(),
    }
}

/// Code and text of the only response, an error.
pub fn error(replies: &[Reply]) -> (u32, String) {
    assert_eq!(replies.len(), 1, "{replies:?}");
    let failure = replies[0].error.clone().expect("an error");
    (failure.code, failure.message)
}
