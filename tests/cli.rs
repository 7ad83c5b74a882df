//! The command line tool as a user meets it.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn trtllm(args: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new(env!("CARGO_BIN_EXE_trtllm")).args(args).current_dir(root).output().unwrap()
}

const MODEL: [&str; 6] = ["--model", "tests/fixtures/models/qwen3", "--device", "cpu", "--threads", "2"];

#[test]
fn throughput_is_reported_beside_its_limit() {
    let load = ["--isl", "20", "--osl", "10", "--requests", "6", "--concurrency", "3", "--json"];
    let output = trtllm(&[&["bench", "throughput"], &MODEL[..], &load].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["engine"]["family"], "qwen3");
    assert_eq!(report["engine"]["max_batch_size"], 3);
    assert_eq!(report["request_info"]["num_requests"], 6);
    let speed = &report["performance"];
    for rate in ["request_throughput_req_s", "output_throughput_tok_s", "total_token_throughput_tok_s"] {
        for field in ["value", "limit", "share"] {
            assert!(speed[rate][field].as_f64().unwrap() > 0.0, "{rate} {field}: {speed}");
        }
    }
    let ratio = speed["output_throughput_tok_s"]["value"].as_f64().unwrap()
        / speed["request_throughput_req_s"]["value"].as_f64().unwrap();
    assert!((ratio - 10.0).abs() < 1e-6, "{speed}");
    for time in ["ttft_ms", "tpot_ms", "itl_ms", "request_latency_ms"] {
        let of = |field: &str| speed[time][field].as_f64().unwrap();
        assert!(
            of("min") > 0.0 && of("min") <= of("p50") && of("p50") <= of("p99") && of("p99") <= of("max"),
            "{speed}"
        );
        assert!(of("limit") > 0.0 && of("share") > 0.0, "{speed}");
    }
    let of = |time: &str, field: &str| speed[time][field].as_f64().unwrap();
    assert!(of("ttft_ms", "avg") < of("request_latency_ms", "avg"));
}

#[test]
fn latency_is_printed_as_a_table() {
    let output =
        trtllm(&[&["bench", "latency"], &MODEL[..], &["--isl", "4", "--osl", "3", "--requests", "2"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in ["PERFORMANCE OVERVIEW (latency)", "TTFT", "TPOT", "ITL", "P99", "Read bandwidth", "REACHED"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn loading_is_measured_beside_reading_the_files() {
    let args = ["bench", "load", "--model", "tests/fixtures/models/qwen3", "--device", "cpu", "--runs", "2"];
    let text = String::from_utf8(trtllm(&args).stdout).unwrap();
    for expected in
        ["files      0 MiB in 1", "run 2 ", "the host held", "into new memory", "of that weights", "ratio  "]
    {
        assert!(text.contains(expected), "{text}");
    }
    let report: Value = serde_json::from_slice(&trtllm(&[&args[..], &["--cold", "--json"]].concat()).stdout).unwrap();
    let seconds = |key: &str| report[key].as_f64().unwrap();
    assert!(
        seconds("read_into_device_seconds") > 0.0 && seconds("weight_seconds") < seconds("load_seconds"),
        "{report}"
    );
}

#[test]
fn mistakes_end_in_one_sentence() {
    let fails = |args: &[&str], expected: &str| {
        let output = trtllm(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(text.lines().last().unwrap().starts_with("error: ") && text.contains(expected), "{text}");
    };
    fails(&["bench", "throughput", "--dummy", "llama-9000b", "--device", "cpu"], "no dummy model llama-9000b");
    fails(&[&["bench", "latency"], &MODEL[..], &["--isl", "0"]].concat(), "--isl is 0; it must be at least 1");
    fails(&[&["bench", "latency"], &MODEL[..], &["--isl", "5000"]].concat(), "max_seq_len is 5128");
}

/// A repository of the shipped templates with the demo model; `edit` changes the text of a configuration.
fn check(edit: impl Fn(&str, String) -> String) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let repository = tempfile::tempdir().unwrap();
    for model in ["tensorrt_llm", "preprocessing", "postprocessing", "ensemble", "tensorrt_llm_bls"] {
        let folder = repository.path().join(model);
        std::fs::create_dir_all(folder.join("1")).unwrap();
        let text = std::fs::read_to_string(root.join("model_repo").join(model).join("config.pbtxt")).unwrap();
        let text =
            text.replace("${engine_dir}", &demo()).replace("${tokenizer_dir}", &demo()).replace("${device}", "cpu");
        std::fs::write(folder.join("config.pbtxt"), edit(model, text)).unwrap();
    }
    let output = trtllm(&["check", repository.path().to_str().unwrap()]);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn a_good_repository_passes_and_its_memory_plan_is_printed() {
    let (good, text) = check(|_, text| text);
    assert!(good, "{text}");
    for expected in [
        "parameters in effect:",
        "KV cache",
        "tokens",
        "tensorrt_llm_bls",
        "placeholders not filled, will use the defaults: ",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("is unknown") && !text.contains("instance_group says"), "{text}");
    assert!(text.contains("checked: 5 models, no errors, 4 warnings"), "{text}");
}

#[test]
fn each_mistake_in_a_repository_is_one_sentence() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("tensorrt_llm", "max_batch_size: 128", "max_batch_size: ${x}", "the unquoted placeholder ${x} must be filled"),
        ("tensorrt_llm", "\"trtllm\"", "\"${triton_backend}\"", "backend is still ${triton_backend}"),
        ("tensorrt_llm", "inflight_fused_batching", "fast", "Invalid gpt_model_type"),
        ("tensorrt_llm", "demo_model/hf", "demo_model/none", "Both encoder and decoder model paths are empty"),
        ("preprocessing", "demo_model/hf", "demo_model/none", "which does not exist: correct the path"),
        ("postprocessing", "name: \"postprocessing\"", "name: \"post\"", "name is \"post\", but the folder is"),
        ("tensorrt_llm_bls", "decoupled: true", "decoupled: false", "decoupled is false here and true in"),
        (
            "ensemble",
            "model_name: \"tensorrt_llm\"",
            "model_name: \"llama\"",
            "model \"llama\" is used here but is not",
        ),
        ("ensemble", "key: \"runtime_top_k\"", "key: \"top_kk\"", "input_map names \"top_kk\", which is no input of"),
        ("ensemble", "key: \"OUTPUT\"", "key: \"TEXT\"", "output_map names \"TEXT\", which is no output of"),
    ];
    for (model, from, to, expected) in cases {
        let edit = |name: &str, text: String| if name == *model { text.replacen(from, to, 1) } else { text };
        let (good, text) = check(edit);
        assert!(!good && text.contains(expected), "{expected}: {text}");
        assert!(text.contains("the repository would not load as it is"), "{text}");
    }
    let (good, text) = check(|name, text| match name {
        "tensorrt_llm" => text.replace("key: \"exclude_input_in_output\"", "key: \"exclude_input_in_ouput\""),
        _ => text,
    });
    assert!(good && text.contains("did you mean \"exclude_input_in_output\"?"), "{text}");
}

#[test]
fn tensors_that_the_role_does_not_have_are_warnings() {
    let cases: &[(&str, &str, &str, &str)] = &[
        (
            "tensorrt_llm",
            "\"temperature\"",
            "\"temprature\"",
            "input \"temprature\" is unknown: requests with it are refused; did you mean \"temperature\"?",
        ),
        ("tensorrt_llm", "\"batch_index\"", "\"something\"", "output \"something\" is unknown: it is never filled"),
        (
            "tensorrt_llm",
            "\"input_ids\"\n    data_type: TYPE_INT32",
            "\"input_ids\"\n    data_type: TYPE_FP32",
            "input \"input_ids\" is declared TYPE_FP32, but must be TYPE_INT32",
        ),
        (
            "tensorrt_llm",
            "\"sequence_length\"\n    data_type: TYPE_INT32",
            "\"sequence_length\"\n    data_type: TYPE_INT64",
            "output \"sequence_length\" is declared TYPE_INT64, but is TYPE_INT32",
        ),
        (
            "tensorrt_llm",
            "\"input_ids\"\n    data_type: TYPE_INT32\n    dims: [ -1 ]",
            "\"input_ids\"\n    data_type: TYPE_INT32\n    dims: [ 3, 4 ]",
            "input \"input_ids\" is declared with dims [3, 4], expected [-1]: requests of other shapes are refused",
        ),
        ("postprocessing", "\"SEQUENCE_LENGTH\"", "\"LENGTHS\"", "no input SEQUENCE_LENGTH is declared"),
        ("tensorrt_llm_bls", "\"top_k\"", "\"runtime_top_k\"", "input \"runtime_top_k\" is unknown"),
    ];
    for (model, from, to, expected) in cases {
        let edit = |name: &str, text: String| {
            if name != *model {
                // The ensemble would name what is not there any more.
                return if name == "ensemble" { "platform: \"ensemble\"\n".to_owned() } else { text };
            }
            assert!(text.contains(from), "{model} has no {from}");
            text.replacen(from, to, 1)
        };
        let (good, text) = check(edit);
        assert!(good && text.contains(expected), "{expected}: {text}");
    }
    let logits = |name: &str, text: String| match name {
        "tensorrt_llm" => {
            text.replace("\"context_logits\"\n    data_type: TYPE_FP32", "\"context_logits\"\n    data_type: TYPE_FP16")
        }
        _ => text,
    };
    let (good, text) = check(logits);
    assert!(good && !text.contains("context_logits"), "both types are served: {text}");
}

#[test]
fn instances_on_a_gpu_are_told_what_becomes_of_them() {
    let (good, text) = check(|_, text| text.replace("KIND_MODEL", "KIND_GPU"));
    assert!(good && text.contains("instance_group says KIND_GPU") && text.contains("refuses the model"), "{text}");
}

/// What `trtllm check` says about a repository of these files.
fn check_files(files: &[(&str, String)], options: &[&str]) -> (bool, String) {
    let repository = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = repository.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let output = trtllm(&[&["check", repository.path().to_str().unwrap()], options].concat());
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn demo() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/demo_model/hf").to_str().unwrap().to_owned()
}

#[test]
fn unquoted_placeholders_are_listed_all_at_once() {
    let config = "backend: \"trtllm\"\nmax_batch_size: ${a}\ninput [ { name: \"x\" data_type: ${b} dims: [ 1 ] } ]\n";
    let (good, text) = check_files(&[("llm/config.pbtxt", config.into()), ("llm/1/.gitkeep", String::new())], &[]);
    assert!(!good && text.contains("2 unquoted placeholders must be filled: line 2: ${a}, line 3: ${b}"), "{text}");
}

#[test]
fn a_model_shows_the_parameters_of_its_own_role_only() {
    let parameter =
        |key: &str, value: &str| format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n");
    let config = [
        "backend: \"trtllm\"\n".to_owned(),
        parameter("model_role", "postprocessing"),
        parameter("tokenizer_dir", &demo()),
        parameter("accumulate_tokens", "true"),
    ];
    let (good, text) = check_files(&[("post/config.pbtxt", config.concat()), ("post/1/.gitkeep", String::new())], &[]);
    assert!(good && text.contains("skip_special_tokens = true"), "{text}");
    assert!(!text.contains("kv_cache") && !text.contains("accumulate_tokens = "), "{text}");
    assert!(text.contains("not read by the role postprocessing: accumulate_tokens (read by bls)"), "{text}");
}

#[test]
fn what_is_opened_after_the_weights_is_checked_too() {
    let parameter =
        |key: &str, value: &str| format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n");
    let checked = |backend: &str, key: &str, value: &str| {
        let tokenizer = if key == "tokenizer_dir" { String::new() } else { parameter("tokenizer_dir", &demo()) };
        let model = [parameter("gpt_model_path", &demo()), parameter("device", "cpu")].concat();
        let config = [backend, "\n", &model, &tokenizer, &parameter(key, value)].concat();
        check_files(&[("llm/config.pbtxt", config), ("llm/1/.gitkeep", String::new())], &[])
    };
    let ours = "backend: \"trtllm\"";
    for (backend, key, value, expected) in [
        ("backend: \"tensorrt_llm\"", "max_beam_width", "1", "did you mean \"tensorrtllm\"?"),
        ("max_batch_size: 4", "max_beam_width", "1", "backend is not given: add backend: \"trtllm\""),
        (
            ours,
            "kv_cache_warm_up_file",
            "/no/such.json",
            "kv_cache_warm_up_file is \"/no/such.json\", which is no file",
        ),
        (ours, "kv_cache_disk_path", "/proc/kv", "kv_cache_disk_path is \"/proc/kv\", where no file can be written"),
        (ours, "kv_cache_host_memory_bytes", "900000000000000", "kv_cache_host_memory_bytes is 900000000000000, but"),
    ] {
        let (good, text) = checked(backend, key, value);
        assert!(!good && text.contains(expected), "{expected}: {text}");
    }
    for (key, value, expected) in [
        ("tokenizer_dir", "/no/such/folder", "the model would take tokens only, correct the path"),
        ("decoding_mode", "medusa", "decoding_mode is medusa, whose drafts this version does not make"),
    ] {
        let (good, text) = checked(ours, key, value);
        assert!(good && text.contains(expected), "{expected}: {text}");
    }
    let python = [("llm/config.pbtxt", "backend: \"python\"\n".to_owned()), ("llm/1/model.yaml", String::new())];
    let (good, text) = check_files(&python, &[]);
    assert!(good && text.contains("with backend: \"trtllm\" its model.yaml is read here"), "{text}");
}

#[test]
fn samples_of_the_warm_up_are_looked_at() {
    let checked = |platform: &str, batch_size: &str, input: &str| {
        let sample = format!("name: \"first\" {batch_size} inputs {{ key: \"max_tokens\" value {{ {input} }} }}");
        let parameters = [("gpt_model_path", demo()), ("tokenizer_dir", demo()), ("device", "cpu".to_owned())]
            .map(|(key, value)| format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n"));
        let config = format!("{platform}\n{}model_warmup {{ {sample} }}\n", parameters.concat());
        let files = [("llm/config.pbtxt", config), ("llm/1/x", String::new()), ("llm/warmup/four", "four".to_owned())];
        check_files(&files, &[])
    };
    let (ours, one) = ("backend: \"trtllm\"", "batch_size: 1");
    let typed = |given: &str| format!("data_type: TYPE_INT32 dims: [1] {given}");
    for (platform, input, expected) in [
        (ours, typed("zero_data: true"), "input \"max_tokens\" is zero, which is no length"),
        (ours, typed(""), "has no data: give it zero_data, random_data or input_data_file"),
        (ours, typed("input_data_file: \"five\""), "is from warmup/five (No such file"),
        (
            ours,
            "data_type: TYPE_INT64 dims: [1] input_data_file: \"four\"".to_owned(),
            "takes 8 bytes, but warmup/four",
        ),
        (ours, "data_type: TYPE_INT32 dims: [-1] random_data: true".to_owned(), "has a size of -1"),
        ("platform: \"ensemble\"", typed("random_data: true"), "the server takes none for an ensemble"),
    ] {
        let (good, text) = checked(platform, one, &input);
        assert!(!good && text.contains(expected) && text.contains("model_warmup \"first\""), "{expected}: {text}");
    }
    let file = typed("input_data_file: \"four\"");
    let (good, text) = checked(ours, one, &file);
    assert!(good && !text.contains("model_warmup"), "{text}");
    let (good, text) = checked(ours, "", &file);
    assert!(good && text.contains("has no batch_size: the server skips it"), "{text}");
}

#[test]
fn a_folder_that_is_no_repository_is_told_what_one_is() {
    let (good, text) = check_files(&[("config.pbtxt", "backend: \"trtllm\"".into()), ("1/x", String::new())], &[]);
    assert!(!good && text.contains("is one model, it has a config.pbtxt: give the repository"), "{text}");
    let (good, text) = check_files(&[("config.json", "{}".into())], &[]);
    assert!(!good && text.contains("has no model folders: a repository has one for each model"), "{text}");
}

#[test]
fn engine_arguments_of_another_backend_are_checked_with_the_memory_plan() {
    let arguments = serde_json::json!({ "model": demo(), "max_model_length": 5, "device": "cpu" }).to_string();
    let files =
        |arguments: String| [("llm/config.pbtxt", "backend: \"vllm\"\n".to_owned()), ("llm/1/model.json", arguments)];
    let (good, text) = check_files(&files(arguments.clone()), &["--gpu-memory-gib", "8"]);
    assert!(good && text.contains("did you mean \"max_model_len\"?"), "{text}");
    assert!(
        text.contains("model_role = \"vllm\"") && text.contains("on a GPU with 8 GiB free: KV cache of "),
        "{text}"
    );
    let (good, text) = check_files(&files(arguments), &["--gpu-memory-gib", "0.02"]);
    assert!(!good && text.contains("on a GPU with 0.02 GiB free: the model needs"), "{text}");
    let (good, text) = check_files(&files("{\"tensor_parallel_size\": 2}".into()), &[]);
    assert!(!good && text.contains("tensor_parallel_size is 2, this version supports 1 only"), "{text}");
}

#[test]
fn guides_are_measured_without_a_model() {
    let args = ["bench", "guides", "--sequences", "3", "--steps", "4", "--vocab-size", "1000"];
    let output = trtllm(&[&args[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 5);
    assert!(rows[0]["microseconds"]["p50"].as_f64().unwrap() > 0.0, "{rows}");
    assert!(String::from_utf8(trtllm(&args).stdout).unwrap().contains("any JSON object"));
}

#[test]
fn windows_leave_room_for_more_tokens_on_a_gpu() {
    let model = tempfile::tempdir().unwrap();
    let shape = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-gqa/config.json"),
    );
    let shape = shape.unwrap().replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 65536");
    std::fs::write(model.path().join("config.json"), shape).unwrap();
    let tokens = |windows: &str| {
        let parameter =
            |key: &str, value: &str| format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n");
        let config = [
            "backend: \"trtllm\"\n".to_owned(),
            parameter("gpt_model_path", model.path().to_str().unwrap()),
            parameter("load_format", "dummy"),
            parameter("max_attention_window_size", windows),
        ];
        let files = [("llm/config.pbtxt", config.concat()), ("llm/1/.gitkeep", String::new())];
        let (good, text) = check_files(&files, &["--gpu-memory-gib", "0.5"]);
        assert!(good, "{text}");
        let (_, rest) = text.split_once("GiB free: KV cache of ").unwrap();
        (rest.split(' ').next().unwrap().parse::<usize>().unwrap(), text)
    };
    let ((plain, _), (windowed, text)) = (tokens("65536"), tokens("128,65536"));
    assert!(windowed > 2 * plain, "{windowed} {plain}");
    assert!(text.contains("2 of its layers see the last 128 tokens"), "{text}");
}

#[test]
fn the_scheduler_is_measured_without_a_model() {
    let args = ["bench", "scheduler", "--sequences", "4", "--steps", "3", "--prompt", "1000", "--json"];
    let rows: serde_json::Value = serde_json::from_slice(&trtllm(&args).stdout).unwrap();
    let what: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap()).collect();
    assert_eq!(what.len(), 7);
    assert!(what.contains(&"balanced, 4 sequences generate") && what.contains(&"prefix match of 1000 tokens"));
    assert!(rows[0]["microseconds"]["p50"].as_f64().unwrap() > 0.0);
    let none = trtllm(&["bench", "scheduler", "--sequences", "0"]);
    let error = String::from_utf8(none.stderr).unwrap();
    assert!(!none.status.success() && error.contains("--sequences is 0; it must be at least 1"), "{error}");
}

#[test]
fn a_repository_for_measuring_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let shape = ["--dummy", "llama-160m", "--model", "measured", "--device", "cpu", "--max-seq-len", "128"];
    let output = trtllm(&[&["bench", "repository", path], &shape[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = trtllm(&["check", path]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for expected in ["measured\n", "load_format = dummy (given)", "made-up weights", "sequences of up to 128 tokens"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn repositories_of_every_version_have_no_mistakes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let versions = std::fs::read_dir(root.join("tests/fixtures/repositories")).unwrap();
    let mut count = 0;
    for version in versions.map(|version| version.unwrap().path()) {
        let repository = tempfile::tempdir().unwrap();
        for model in std::fs::read_dir(&version).unwrap().map(|model| model.unwrap().path()) {
            let name = model.file_name().unwrap().to_str().unwrap().to_owned();
            let folder = repository.path().join(&name);
            std::fs::create_dir_all(folder.join("1")).unwrap();
            let role = match name.as_str() {
                "tensorrt_llm_bls" => "bls",
                other => other,
            };
            let role = format!(
                "backend: \"trtllm\"\nparameters: {{ key: \"model_role\" value: {{ string_value: \"{role}\" }} }}"
            );
            let text = std::fs::read_to_string(model.join("config.pbtxt")).unwrap();
            let text = text
                .replace("backend: \"python\"", &role)
                .replace("${engine_dir}", &demo())
                .replace("${tokenizer_dir}", &demo());
            std::fs::write(folder.join("config.pbtxt"), text).unwrap();
        }
        let output = trtllm(&["check", repository.path().to_str().unwrap()]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{}: {text}", version.display());
        for mistake in ["is declared TYPE", "no input ", "error:", "not read by"] {
            assert!(!text.contains(mistake), "{}: {mistake}: {text}", version.display());
        }
        let oldest = version.ends_with("0.5");
        assert_eq!(text.contains("as in version 0.5"), oldest, "{text}");
        count += 1;
    }
    assert_eq!(count, 9);
}
