//! Matrices of 8-bit floats with scales: what does not fit is named. That what fits gives the reference's numbers is
//! among the golden tests.

use crate::bad_checkpoints::{assert_names, change_config, change_header, copy_of, failure};
use crate::driver::{device, fixtures, options};
use crate::golden::check_folder;
use serde_json::{Value, json};
use std::fs;
use triton_trtllm::device::DType;
use triton_trtllm::error::ErrorKind;
use triton_trtllm::runner::{ModelOptions, load_on};

const WEIGHT: &str = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight";

#[test]
fn the_report_says_that_weights_are_widened() {
    let folder = fixtures().join("models/deepseek-v3-fp8");
    let report = load_on(&device(), &ModelOptions { dtype: None, ..options(&folder, 64) }).unwrap().report;
    assert_eq!(report.format, "Hugging Face folder, FP8 weights widened at load");
    assert_eq!((report.dtype, report.unused.len()), (DType::BF16, 0));
    // Scales of activations are of no use where activations are not quantised.
    let report = load_on(&device(), &options(&fixtures().join("models/phi3-fp8-tensors"), 64)).unwrap().report;
    assert!(!report.unused.is_empty() && report.unused.iter().all(|name| name.ends_with("input_scale")));
}

#[test]
fn scales_that_are_missing_or_do_not_fit() {
    let folder = copy_of("deepseek-v3-fp8");
    change_config(folder.path(), "quantization_config", json!({"quant_method": "fp8", "weight_block_size": [16, 8]}));
    assert_names(&failure(folder.path()), &["model.safetensors", "the scales of ", "blocks of [16, 8]"]);
    change_config(folder.path(), "quantization_config", json!({"quant_method": "fp8", "weight_block_size": [16]}));
    assert_names(&failure(folder.path()), &["quantization_config: weight_block_size is [16]"]);
    let folder = copy_of("deepseek-v3-fp8");
    change_header(folder.path(), |header| {
        let scale = header.as_object_mut().unwrap().remove(&format!("{WEIGHT}_scale_inv")).unwrap();
        header["elsewhere"] = scale;
    });
    let parts = [WEIGHT, "has type F8_E4M3, but there is no", "weight_scale_inv", "weight_scale"];
    assert_names(&failure(folder.path()), &parts);
    let folder = copy_of("deepseek-v3-fp8");
    change_header(folder.path(), |header| header[format!("{WEIGHT}_scale_inv")]["dtype"] = json!("I32"));
    assert_names(&failure(folder.path()), &["I32", "must be F32, F16 or BF16"]);
}

#[test]
fn exports_of_modelopt_are_read_where_they_are_of_8_bit_floats() {
    let folder = copy_of("phi3-fp8-tensors");
    let export = |algorithm: &str| {
        let quantization =
            json!({"quant_algo": algorithm, "kv_cache_quant_algo": null, "exclude_modules": ["lm_head"]});
        let text = json!({"producer": {"name": "modelopt"}, "quantization": quantization}).to_string();
        fs::write(folder.path().join("hf_quant_config.json"), text).unwrap();
    };
    change_config(folder.path(), "quantization_config", Value::Null);
    export("FP8");
    check_folder(folder.path());
    export("NVFP4");
    assert_names(&failure(folder.path()), &["hf_quant_config.json", "quant_algo is NVFP4, which is not supported yet"]);
    fs::remove_file(folder.path().join("hf_quant_config.json")).unwrap();
    change_config(folder.path(), "quantization_config", json!({"quant_method": "modelopt", "quant_algo": "FP8"}));
    check_folder(folder.path());
}

#[test]
fn methods_that_are_not_read_are_named_with_their_format() {
    let folder = copy_of("granite-fp8-rows");
    let pack = json!({"quant_method": "compressed-tensors", "format": "pack-quantized"});
    change_config(folder.path(), "quantization_config", pack);
    let error = failure(folder.path());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_names(&error, &["compressed-tensors (pack-quantized) is not supported yet", "fp8"]);
}
