use super::*;
use serde_json::json;

fn config(changes: Value) -> Result<ModelConfig> {
    let mut value = json!({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 10,
        "intermediate_size": 64, "max_position_embeddings": 128});
    for (key, change) in changes.as_object().unwrap() {
        value[key] = change.clone();
    }
    ModelConfig::from_section("llama", &Section::from_value("config.json", value)?)
}

fn message(changes: Value) -> String {
    config(changes).unwrap_err().message().to_owned()
}

#[test]
fn defaults_follow_from_the_sizes() {
    let config = config(json!({})).unwrap();
    assert_eq!((config.num_kv_heads, config.head_dim, config.dtype), (4, 8, None));
}

#[test]
fn alternative_keys_are_read_and_the_first_present_wins() {
    let named = config(json!({"hidden_size": null, "n_embd": 64, "head_dim": 16, "torch_dtype": "bfloat16",
        "dtype": "float16"}))
    .unwrap();
    assert_eq!((named.hidden_size, named.head_dim, named.dtype), (64, 16, Some(DType::F16)));
}

#[test]
fn errors_name_key_value_and_bound() {
    assert_eq!(
        message(json!({"num_hidden_layers": 0})),
        "config.json: num_hidden_layers is 0; it must be an integer from 1 to 4096"
    );
    assert!(message(json!({"num_attention_heads": 0})).contains("num_attention_heads is 0"));
    assert!(message(json!({"num_key_value_heads": 3})).contains("multiple of num_key_value_heads, 3"));
    assert!(message(json!({"num_attention_heads": 5})).contains("hidden_size is 32; without head_dim"));
    assert!(message(json!({"vocab_size": 1e30})).contains("vocab_size is 1e+30"));
    assert!(message(json!({"vocab_size": u64::MAX})).contains("vocab_size is 18446744073709551615"));
    assert!(message(json!({"hidden_size": -3})).contains("hidden_size is -3"));
    assert!(message(json!({"hidden_size": null})).contains("has no hidden_size or n_embd or d_model"));
    assert!(message(json!({"hidden_act": "mish"})).contains("hidden_act \"mish\" is not supported"));
    assert!(message(json!({"rms_norm_eps": "small"})).contains("rms_norm_eps is \"small\""));
    assert!(message(json!({"torch_dtype": "float8"})).contains("dtype \"float8\" is not supported"));
    assert!(message(json!({"head_dim": 7})).contains("must be an even number"));
}

#[test]
fn end_ids_are_the_union_of_both_files() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [5, 7]}"#).unwrap();
    let section = |value| Section::from_value("config.json", value).unwrap();
    let config = section(json!({"eos_token_id": 2, "bos_token_id": 1}));
    let tokens = SpecialTokens::read(folder.path(), &config).unwrap();
    assert_eq!(tokens, SpecialTokens { bos: Some(1), eos: vec![5, 7, 2] });
    let bad = SpecialTokens::read(folder.path(), &section(json!({"eos_token_id": "two"}))).unwrap_err();
    assert!(bad.message().contains("eos_token_id is \"two\""));
}
