use serde_json::json;

use super::*;
use crate::config::BatchSchedulerPolicy;

fn config(pairs: &[(&str, &str)]) -> Value {
    let parameters: serde_json::Map<_, _> =
        pairs.iter().map(|(key, text)| ((*key).to_owned(), json!({ "string_value": text }))).collect();
    json!({ "parameters": parameters })
}

fn load(pairs: &[(&str, &str)]) -> Loaded {
    Parameters::load(&config(pairs)).unwrap()
}

#[test]
fn every_key_is_a_row_once() {
    let mut keys: Vec<_> = PARAMETERS.iter().map(|row| row.key).collect();
    keys.sort_unstable();
    let count = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), count);
}

#[test]
fn a_configuration_full_of_placeholders_loads_with_the_defaults() {
    let pairs: Vec<_> = PARAMETERS.iter().map(|row| (row.key, "${anything}")).collect();
    let loaded = load(&pairs);
    let defaults = Parameters::default();
    for row in PARAMETERS {
        assert_eq!((row.show)(&loaded.parameters), (row.show)(&defaults), "{}", row.key);
        assert_eq!((row.source)(&loaded.parameters), Source::Placeholder, "{}", row.key);
    }
    assert_eq!(loaded.notes.len(), 1, "{:?}", loaded.notes);
}

#[test]
fn no_parameters_section_means_all_defaults() {
    let loaded = Parameters::load(&json!({ "name": "tensorrt_llm" })).unwrap();
    assert!(loaded.notes.is_empty());
    assert!(PARAMETERS.iter().all(|row| (row.source)(&loaded.parameters) == Source::Default));
}

#[test]
fn given_values_are_parsed_and_marked_as_given() {
    let loaded = load(&[
        ("batch_scheduler_policy", "max_utilization"),
        ("kv_cache_free_gpu_mem_fraction", "0.5"),
        ("max_tokens_in_paged_kv_cache", "2560 tokens"),
        ("enable_kv_cache_reuse", "False"),
    ]);
    let parameters = &loaded.parameters;
    assert_eq!(parameters.batch_scheduler_policy.value, BatchSchedulerPolicy::MaxUtilization);
    assert_eq!(parameters.kv_cache_free_gpu_mem_fraction.value, Some(0.5));
    assert_eq!(parameters.max_tokens_in_paged_kv_cache.value, Some(2560));
    assert!(!parameters.enable_kv_cache_reuse.value);
    assert_eq!(parameters.enable_kv_cache_reuse.source, Source::Given);
    let block = parameters.effective_values(ModelRole::Llm);
    for line in
        ["kv_cache_free_gpu_mem_fraction = 0.5 (given)", "max_batch_size = the engine folder's, else 64 (default)"]
    {
        assert!(block.contains(line), "{block}");
    }
}

#[test]
fn an_unparsable_value_is_the_default_with_a_warning_that_names_it() {
    let loaded = load(&[("enable_kv_cache_reuse", "yes"), ("batch_scheduler_policy", "MAX_UTILIZATION")]);
    assert!(loaded.parameters.enable_kv_cache_reuse.value);
    assert_eq!(loaded.parameters.batch_scheduler_policy.value, BatchSchedulerPolicy::Balanced);
    let warnings: Vec<_> = loaded.notes.iter().filter(|note| note.level == Level::Warning).collect();
    assert_eq!(warnings.len(), 2);
    for part in [
        "enable_kv_cache_reuse is \"yes\", expected a value of type bool: ",
        "batch_scheduler_policy is \"MAX_UTILIZATION\", expected one of balanced, guaranteed_no_evict",
    ] {
        assert!(warnings.iter().any(|note| note.text.contains(part)), "{part}: {warnings:?}");
    }
}

#[test]
fn a_number_outside_its_range_does_not_load() {
    let error = Parameters::load(&config(&[("kv_cache_free_gpu_mem_fraction", "90")])).unwrap_err();
    assert!(error.message().contains("kv_cache_free_gpu_mem_fraction is 90, expected 0 to 1"), "{error}");
    let error = Parameters::load(&config(&[("max_seq_len", "0")])).unwrap_err();
    assert!(error.message().contains("max_seq_len is 0"), "{error}");
    let both = [("kv_cache_free_gpu_mem_fraction", "90"), ("max_seq_len", "0")];
    let error = Parameters::load(&config(&both)).unwrap_err();
    for part in ["kv_cache_free_gpu_mem_fraction is 90, expected 0 to 1", "max_seq_len is 0, expected 1 to "] {
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn an_unknown_key_names_the_one_that_was_meant() {
    let notes = load(&[("kv_cache_free_gpu_memory_fraction", "0.5"), ("zzz", "1")]).notes;
    assert!(
        notes.iter().any(|note| note.text.contains("did you mean \"kv_cache_free_gpu_mem_fraction\"")),
        "{notes:?}"
    );
    assert!(notes.iter().any(|note| note.text.contains("\"zzz\" is unknown and ignored")), "{notes:?}");
}

#[test]
fn the_report_is_one_block_and_a_warning_for_each_mistake() {
    let loaded = load(&[
        ("max_beam_widht", "2"),
        ("num_nodes", "1"),
        ("accumulate_tokens", "true"),
        ("max_queue_tokens", "lots"),
        ("gpt_model_path", "${engine_dir}"),
        ("device", "${device}"),
    ]);
    let report = loaded.report(ModelRole::Llm);
    for (line, level, part) in [
        (0, Level::Info, "parameters in effect:\n  model_role = "),
        (0, Level::Info, "\n  max_queue_tokens = no limit (default: the given text is not a value)"),
        (0, Level::Info, "\n  device = auto (default: not filled)"),
        (0, Level::Info, "\naccepted without effect:\n  num_nodes = 1: "),
        (0, Level::Info, "\nplaceholders not filled, will use the defaults: device, gpt_model_path (${engine_dir})"),
        (0, Level::Info, "did you mean \"max_beam_width\"?"),
        (1, Level::Warning, "max_queue_tokens is \"lots\", expected a value of type int32: "),
        (2, Level::Warning, "placeholders not filled, will use the defaults: device, gpt_model_path (${engine_dir})"),
        (3, Level::Warning, "did you mean \"max_beam_width\"?"),
        (4, Level::Warning, "not read by the role llm: accumulate_tokens (read by bls)"),
    ] {
        assert_eq!(report[line].level, level, "{report:?}");
        assert!(report[line].text.contains(part), "{part:?}: {report:?}");
    }
    assert_eq!((report.len(), load(&[]).report(ModelRole::Llm).len()), (5, 1));
}

#[test]
fn keys_without_effect_are_named_once() {
    let notes = load(&[("participant_ids", "0"), ("num_nodes", "1")]).notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    for part in ["accepted without effect:\n  participant_ids = ", "\n  num_nodes = 1: "] {
        assert!(notes[0].text.contains(part), "{notes:?}");
    }
}

#[test]
fn gpt_model_type_has_four_words() {
    let batching = |text| load(&[("gpt_model_type", text)]).parameters.batching();
    assert_eq!(batching("V1"), Ok(BatchingType::Static));
    assert_eq!(batching("inflight_fused_batching"), Ok(BatchingType::Inflight));
    for text in ["${batching_strategy}", "Inflight_batching", ""] {
        assert!(batching(text).unwrap_err().message().contains("Invalid gpt_model_type"), "{text:?}");
    }
    assert_eq!(Parameters::default().batching(), Ok(BatchingType::Inflight));
}

#[test]
fn a_wrong_model_path_names_the_path_and_says_that_both_are_empty() {
    let error =
        load(&[("gpt_model_path", "/no/such/engine")]).parameters.model_dir(Path::new("/nowhere/1")).unwrap_err();
    assert!(error.message().contains("Both encoder and decoder model paths are empty"), "{error}");
    assert!(error.message().contains("/no/such/engine"), "{error}");
    let error = load(&[("gpt_model_path", "${engine_dir}")]).parameters.model_dir(Path::new("/nowhere/1")).unwrap_err();
    assert!(error.message().contains("${engine_dir}"), "{error}");
}

#[test]
fn a_missing_model_path_is_the_version_folder_with_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "x").unwrap();
    let error = Parameters::default().model_dir(folder.path()).unwrap_err();
    assert!(error.message().contains("no config.json and no GGUF file"), "{error}");
    std::fs::write(folder.path().join("model-q4.GGUF"), "x").unwrap();
    assert_eq!(Parameters::default().model_dir(folder.path()).unwrap(), folder.path().to_string_lossy());
}

#[test]
fn a_missing_model_path_is_the_version_folder_with_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let found = Parameters::default().model_dir(folder.path()).unwrap();
    assert_eq!(Path::new(&found), folder.path());
}

#[test]
fn lookahead_needs_its_three_keys() {
    let parameters = load(&[("decoding_mode", "lookahead"), ("lookahead_window_size", "4")]).parameters;
    assert!(parameters.check().unwrap_err().message().contains("lookahead_ngram_size"));
    assert!(Parameters::default().check().is_ok());
}

#[test]
fn an_unknown_role_lists_the_roles() {
    let error = load(&[("model_role", "multimodal")]).parameters.role().unwrap_err();
    assert!(error.message().contains("llm, preprocessing, postprocessing, bls"), "{error}");
}
