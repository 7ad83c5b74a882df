//! A large checkpoint: the host holds pieces of it only, and the log tells how far loading is.

use crate::counting::counted;
use crate::{alone, options};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use triton_trtllm::device::cpu::CpuOptions;
use triton_trtllm::device::{DType, DeviceKind, DeviceOptions, open};
use triton_trtllm::runner::{ModelOptions, load_on};

const HIDDEN: usize = 512;
const FFN: usize = 2048;
const VOCAB: usize = 16_384;
const LAYERS: usize = 6;
/// One piece for each of the two threads as it is read and as it is cast, and everything that is small.
const ALLOWED_BYTES: usize = 32 << 20;

/// Names and shapes of a Llama, and one more tensor.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.nobody.weight".to_owned(), vec![4]),
    ];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: Vec<usize>| tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        ["q", "k", "v", "o"].into_iter().for_each(|part| add(&format!("self_attn.{part}_proj"), vec![HIDDEN, HIDDEN]));
        ["gate", "up"].into_iter().for_each(|part| add(&format!("mlp.{part}_proj"), vec![FFN, HIDDEN]));
        add("mlp.down_proj", vec![HIDDEN, FFN]);
        ["input_layernorm", "post_attention_layernorm"].into_iter().for_each(|name| add(name, vec![HIDDEN]));
    }
    tensors
}

/// Writes the model in bfloat16. Returns the bytes of its weights.
fn write_model(folder: &Path) -> usize {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors() {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 8, "vocab_size": VOCAB, "max_position_embeddings": 64});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    end
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_host_holds_pieces_only_and_the_log_tells_how_far_loading_is() {
    let _alone = alone();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let bytes = write_model(folder.path());
    assert!(bytes > 2 * ALLOWED_BYTES);
    let cpu = CpuOptions { threads: Some(2), ..Default::default() };
    let device = open(DeviceKind::Cpu, &[], &DeviceOptions { cpu, ..Default::default() }).unwrap();
    // As they are, which reads them into place, and widened, which takes memory for every piece. The device's own
    // memory is mapped and not of the heap.
    for dtype in [DType::BF16, DType::F32] {
        let options = ModelOptions { dtype: Some(dtype), ..options(folder.path()) };
        let (model, most) = counted(|| load_on(&device, &options).unwrap());
        assert!(model.report.weight_bytes >= bytes / 2 * dtype.size() - 8, "{}", model.report);
        assert_eq!(model.report.unused, ["model.nobody.weight"]);
        assert!(most > 1 << 10 && most < ALLOWED_BYTES, "{dtype}: {most} bytes of the host beside {bytes} of weights");
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for share in ["10 %", "50 %", "100 %"] {
        assert!(log.contains(&format!("loading weights: {share}")), "{log}");
    }
    assert!(log.contains("1 tensors of the checkpoint are not used: model.nobody.weight"), "{log}");
    assert!(log.contains("format     Hugging Face folder") && log.contains("KV cache"), "{log}");
}
