//! The LLM with the tensors of other backends' models (contract §9): recognised by the files of the version folder.

use serde_json::{Value, json};
use tempfile::TempDir;
use triton_trtllm::text::Tokenizer;

use crate::fake::{Failure, LoadedModel, ModelSpec, ParameterValue, Reply, RequestSpec, Server, Tensor, dtype};
use crate::script::{ANSWER, error, int, start, tokenizer_dir, with_id};

const INVALID_ARG: u32 = 3;
const CANCELLED: u32 = 7;

/// A model with this file in its version folder; the answer is [`ANSWER`], over and over.
struct Repository {
    folder: TempDir,
    config: Value,
}

impl Repository {
    fn new(file: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("1/weights");
        std::fs::create_dir_all(&weights).unwrap();
        std::fs::write(weights.join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("1").join(file), text).unwrap();
        Self {
            folder,
            config: json!({ "name": "m", "backend": "trtllm", "max_batch_size": 0, "input": [], "output": [] }),
        }
    }

    fn load<'a>(&self, server: &'a Server) -> Result<LoadedModel<'a>, Failure> {
        server.load(ModelSpec::new("m", self.config.clone(), self.folder.path()).auto_complete())
    }
}

fn vllm() -> Repository {
    Repository::new("model.json", &json!({ "model": "weights", "tokenizer": tokenizer_dir() }).to_string())
}

fn llmapi(decoupled: bool) -> Repository {
    let tokenizer = tokenizer_dir();
    let text = format!(
        "model: weights\ntokenizer: {}\ntriton_config:\n  max_batch_size: 0\n  decoupled: {decoupled}\n",
        tokenizer.display()
    );
    Repository::new("model.yaml", &text)
}

fn flag(name: &str) -> Tensor {
    Tensor::bools(name, &[1], &[true])
}

fn ask(prompt: &str) -> RequestSpec {
    let outputs = [
        "text_output",
        "finish_reason",
        "stop_reason",
        "cumulative_logprob",
        "logprobs",
        "num_input_tokens",
        "num_output_tokens",
        "kv_cache_reused_block",
        "kv_cache_missed_block",
        "kv_cache_hit_rate",
        "first_token_time_ns",
        "acceptance_rate",
        "total_draft_tokens",
    ];
    let request = RequestSpec::new("").input(Tensor::strings("text_input", &[1], &[prompt]));
    outputs.iter().fold(request, |request, name| request.output(name))
}

fn sampling(request: RequestSpec, json: Value) -> RequestSpec {
    request.input(Tensor::strings("sampling_parameters", &[1], &[&json.to_string()]))
}

fn texts(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.error, None);
    assert_eq!(reply.outputs[0].name, "text_output");
    let texts = reply.outputs[0].to_strings();
    assert_eq!(reply.outputs[0].shape, [texts.len() as i64], "no batch dimension");
    texts
}

fn names(reply: &Reply) -> Vec<&str> {
    reply.outputs.iter().map(|output| output.name.as_str()).collect()
}

fn first_text(reply: &Reply, name: &str) -> String {
    reply.output(name).unwrap().to_strings()[0].clone()
}

fn answer_tokens() -> usize {
    Tokenizer::load(&tokenizer_dir()).unwrap().encode(ANSWER, false).unwrap().len()
}

#[test]
fn s9_1_the_files_of_the_version_folder_give_the_role_and_complete_the_configuration() {
    let server = start();
    let loaded = vllm().load(&server).unwrap();
    let config = loaded.config();
    assert_eq!(config["model_transaction_policy"], json!({ "decoupled": true }));
    assert_eq!(config["max_batch_size"], 0);
    assert!(config["input"].as_array().unwrap().iter().any(|input| input["name"] == "sampling_parameters"));
    assert_eq!(config["output"][4]["data_type"], "TYPE_UINT32");
    drop(loaded);
    let loaded = llmapi(false).load(&server).unwrap();
    let config = loaded.config();
    assert_eq!(config["model_transaction_policy"], json!({ "decoupled": false }));
    let input = |name: &str| config["input"].as_array().unwrap().iter().find(|input| input["name"] == name).cloned();
    assert_eq!(input("text_input").unwrap()["dims"], json!([-1]));
    assert_eq!(input("sampling_param_seed").unwrap()["data_type"], "TYPE_UINT64");
}

#[test]
fn s9_4_one_answer_of_the_llm_api_has_the_prompt_unless_it_is_excluded() {
    let server = start();
    let model = llmapi(false).load(&server).unwrap();
    let length = int("sampling_param_max_tokens", answer_tokens() as i32);
    let replies = model.infer(ask("Once").input(length.clone()));
    assert_eq!((replies.len(), replies[0].is_final), (1, true));
    assert_eq!(texts(&replies[0]), [format!("Once{ANSWER}")]);
    assert_eq!(names(&replies[0]), ["text_output"]);
    let excluded = ask("Once").input(length).input(flag("sampling_param_exclude_input_from_output"));
    assert_eq!(texts(&model.infer(excluded)[0]), [ANSWER]);
}

#[test]
fn s9_4_a_stream_of_the_llm_api_has_the_whole_text_in_every_response() {
    let server = start();
    let model = llmapi(true).load(&server).unwrap();
    let length = int("sampling_param_max_tokens", answer_tokens() as i32);
    let replies = model.infer(ask("Once").input(length).input(flag("streaming")).input(flag("return_finish_reason")));
    assert!(replies.len() > 5);
    let growing: Vec<_> = replies.iter().map(|reply| texts(reply).remove(0)).collect();
    assert!(growing.windows(2).all(|pair| pair[1].starts_with(&pair[0])), "{growing:?}");
    assert_eq!(growing.last().unwrap(), ANSWER);
    assert_eq!(first_text(&replies[0], "finish_reason"), "None");
    assert_eq!(first_text(replies.last().unwrap(), "finish_reason"), "length");
    assert_eq!(replies.iter().filter(|reply| reply.is_final).count(), 1);
}

#[test]
fn s9_3_outputs_of_the_llm_api_are_of_their_declared_types() {
    let server = start();
    let model = llmapi(false).load(&server).unwrap();
    let request = ask("Once")
        .input(Tensor::strings("sampling_param_stop", &[2], &["nd of", "never"]))
        .input(flag("sampling_param_exclude_input_from_output"))
        .input(flag("sampling_param_return_perf_metrics"))
        .input(flag("return_finish_reason"))
        .input(flag("return_stop_reason"))
        .input(flag("return_cumulative_logprob"));
    let reply = model.infer(request).remove(0);
    assert_eq!(texts(&reply), [" the e"], "the stop text is left out");
    assert_eq!(
        (first_text(&reply, "finish_reason"), first_text(&reply, "stop_reason")),
        ("stop".into(), "nd of".into())
    );
    assert!(reply.output("cumulative_logprob").unwrap().to_fp32()[0] < -0.4);
    assert_eq!(reply.output("kv_cache_reused_block").unwrap().to_int32(), [0]);
    assert_eq!(reply.output("kv_cache_missed_block").unwrap().to_int32(), [1]);
    assert_eq!(reply.output("kv_cache_hit_rate").unwrap().to_fp32(), [0.0]);
    assert_eq!(reply.output("first_token_time_ns").unwrap().dtype, dtype::INT64);
    assert_eq!(reply.output("acceptance_rate").unwrap().to_fp32(), [0.0]);
    assert_eq!(reply.output("total_draft_tokens").unwrap().to_int32(), [0]);
}

#[test]
fn s9_2_best_of_gives_as_many_texts_in_one_response() {
    let server = start();
    let model = llmapi(false).load(&server).unwrap();
    let reply =
        model.infer(ask("x").input(int("sampling_param_best_of", 3)).input(flag("return_finish_reason"))).remove(0);
    assert_eq!(texts(&reply).len(), 3);
    assert_eq!(reply.output("finish_reason").unwrap().to_strings(), ["length"; 3]);
    assert!(reply.is_final);
}

#[test]
fn s9_4_errors_of_the_llm_api_begin_as_its_model_begins_them() {
    let server = start();
    let model = llmapi(false).load(&server).unwrap();
    let two = Tensor::int32("sampling_param_max_tokens", &[2], &[1, 2]);
    let lora = Tensor::strings("lora_name", &[1], &["a"]);
    let word = |name: &str, text: &str| ask("x").input(Tensor::strings(name, &[1], &[text]));
    let square = RequestSpec::new("").output("text_output").input(Tensor::strings("text_input", &[1, 1], &["x"]));
    for (request, fragment) in [
        (ask("x").input(flag("streaming")), "Streaming is only supported in decoupled mode"),
        (ask("x").input(two), "Expected a scalar tensor for tensor sampling_param_max_tokens"),
        (ask("x").input(int("sampling_param_max_tokens", 0)), "sampling_param_max_tokens is 0"),
        (ask("x").input(int("sampling_param_best_of", 0)), "sampling_param_best_of is 0, expected 1 to 256"),
        (ask("x").input(Tensor::fp32("sampling_param_temperature", &[1], &[-1.0])), "temperature is -1"),
        (ask("x").input(lora), "lora_id, lora_name, and lora_path must all be provided together"),
        (ask("x").input(int("sampling_param_beams", 1)), "input \"sampling_param_beams\" is unknown"),
        (RequestSpec::new("").output("text_output"), "text_input is missing"),
        (square, "text_input has shape [1, 1], expected a 1D tensor"),
        (word("sampling_param_logits_post_processor_name", "p"), "Unknown logits post-processor \"p\""),
        (word("lora_ckpt_source", "ftp"), "lora_ckpt_source is \"ftp\", expected hf or nemo"),
    ] {
        let (code, text) = error(&model.infer(request));
        assert_eq!(code, INVALID_ARG, "{text}");
        assert!(text.starts_with("Error generating request: ") && text.contains(fragment), "{text} lacks {fragment}");
    }
    assert_eq!(texts(&model.infer(ask("x"))[0]).len(), 1, "the next request is answered");
}

#[test]
fn s9_4_the_stop_command_of_the_llm_api_ends_both_requests_as_cancelled() {
    let server = start();
    let model = llmapi(true).load(&server).unwrap();
    let endless = ask("x").input(int("sampling_param_max_tokens", 1_000_000)).input(flag("streaming"));
    let running = model.execute(vec![with_id(endless, "a")])[0];
    running.wait_for(2);
    let stop = || with_id(RequestSpec::new("").output("text_output"), "a").input(flag("stop"));
    assert_eq!(error(&model.infer(stop())), (CANCELLED, "Request cancelled by client".to_owned()));
    let replies = running.wait();
    let last = replies.last().unwrap();
    assert!(last.is_final);
    assert_eq!(last.error.as_ref().map(|error| error.code), Some(CANCELLED));
    assert_eq!(error(&model.infer(stop())).0, CANCELLED, "an id that is gone is no error of its own");
    let mut nameless = stop();
    nameless.id.clear();
    let (code, text) = error(&model.infer(nameless));
    assert_eq!(code, INVALID_ARG);
    assert!(text.starts_with("Error generating request: ") && text.ends_with("request ID is not provided"), "{text}");
}

#[test]
fn s9_4_errors_begin_as_upstreams_wherever_they_come_from() {
    let server = start();
    for (model, prefix) in [(llmapi(false), "Error generating request: "), (vllm(), "Error generating stream: ")] {
        let model = model.load(&server).unwrap();
        let tenant = ask("x").parameter("tenant", ParameterValue::Bool(true));
        let half = ask("x").parameter("request_type", ParameterValue::Text("context_only".into()));
        for (request, fragment) in [(tenant, "tenant"), (half, "request_type context_only")] {
            let (_, text) = error(&model.infer(request));
            assert!(text.starts_with(prefix) && text.contains(fragment), "{text}");
        }
        for function in ["TRITONBACKEND_RequestId", "TRITONBACKEND_RequestInputByIndex"] {
            server.fail_next(function, "broken");
            let (_, text) = error(&model.infer(ask("x")));
            assert!(text.starts_with(prefix) && text.contains("broken"), "{function}: {text}");
        }
        let mut gone = ask("x");
        gone.cancelled = true;
        let (code, text) = error(&model.infer(gone));
        assert!(
            code == CANCELLED && ["Request cancelled by client", "Request was cancelled"].contains(&&*text),
            "{text}"
        );
    }
}

#[test]
fn s9_2_images_and_adapters_are_refused_by_name() {
    let server = start();
    let model = llmapi(false).load(&server).unwrap();
    let image = ask("x").input(Tensor::strings("image_url", &[1], &["http://host/image"]));
    let lora = ask("x")
        .input(Tensor::new("lora_id", dtype::UINT64, &[1], 1u64.to_le_bytes().to_vec()))
        .input(Tensor::strings("lora_name", &[1], &["a"]))
        .input(Tensor::strings("lora_path", &[1], &["a"]));
    for (request, fragment) in [(image, "image_url is"), (lora, "LoRA adapters are not supported")] {
        let (_, text) = error(&model.infer(request));
        assert!(text.starts_with("Error generating request: ") && text.contains(fragment), "{text}");
    }
}

#[test]
fn s9_2_only_the_first_text_of_the_llm_api_is_a_prompt() {
    let server = start();
    let model = llmapi(false).load(&server).unwrap();
    let two = Tensor::strings("text_input", &[2], &["Once", "never"]);
    let reply = model.infer(RequestSpec::new("").output("text_output").input(two)).remove(0);
    assert_eq!(texts(&reply).len(), 1);
    assert!(texts(&reply)[0].starts_with("Once"));
}

#[test]
fn s9_4_a_client_of_the_llm_api_that_goes_away_ends_its_request_as_cancelled() {
    let server = start();
    let model = llmapi(true).load(&server).unwrap();
    let endless = ask("x").input(int("sampling_param_max_tokens", 1_000_000)).input(flag("streaming"));
    let running = model.execute(vec![endless])[0];
    running.wait_for(2);
    running.cancel();
    let last = running.wait().pop().unwrap();
    assert!(last.is_final);
    assert_eq!(error(&[last]), (CANCELLED, "Request cancelled by client".to_owned()));
}

#[test]
fn s9_1_a_named_role_without_its_file_says_which_file_is_missing() {
    let server = start();
    for (role, file) in [("llmapi", "model.yaml"), ("vllm", "model.json")] {
        let mut repository = Repository::new("other.txt", "");
        repository.config["parameters"] = json!({ "model_role": { "string_value": role } });
        let message = repository.load(&server).err().unwrap().message;
        assert!(message.contains(&format!("{file} is not in the version folder")), "{message}");
    }
}

#[test]
fn s9_vllm_answers_with_the_prompt_and_streams_what_is_new() {
    let server = start();
    let model = vllm().load(&server).unwrap();
    let greedy = json!({ "temperature": 0, "max_tokens": answer_tokens() });
    let replies = model.infer(sampling(ask("Once"), greedy.clone()));
    assert_eq!(texts(&replies[0]), [format!("Once{ANSWER}")]);
    let excluded = sampling(ask("Once"), greedy.clone()).input(flag("exclude_input_in_output"));
    assert_eq!(texts(&model.infer(excluded)[0]), [ANSWER]);
    let request = sampling(ask("Once"), greedy)
        .input(flag("stream"))
        .input(flag("return_finish_reason"))
        .input(flag("return_num_input_tokens"))
        .input(flag("return_num_output_tokens"));
    let replies = model.infer(request);
    let pieces: String = replies.iter().map(|reply| texts(reply).remove(0)).collect();
    assert_eq!(pieces, ANSWER);
    let counts: u32 = replies.iter().map(|reply| u32_of(reply, "num_output_tokens")).sum();
    assert_eq!(counts as usize, answer_tokens());
    let prompt_tokens = Tokenizer::load(&tokenizer_dir()).unwrap().encode("Once", true).unwrap().len() as u32;
    let last = replies.last().unwrap();
    assert_eq!(
        (first_text(last, "finish_reason").as_str(), u32_of(last, "num_input_tokens")),
        ("length", prompt_tokens)
    );
    assert_eq!(first_text(&replies[0], "finish_reason"), "None");
}

fn u32_of(reply: &Reply, name: &str) -> u32 {
    let output = reply.output(name).unwrap();
    assert_eq!((output.dtype, &output.shape[..]), (dtype::UINT32, &[1][..]));
    u32::from_le_bytes(output.bytes[..].try_into().unwrap())
}

#[test]
fn s9_vllm_takes_request_parameters_where_the_tensor_is_absent() {
    let server = start();
    let model = vllm().load(&server).unwrap();
    let request = ask("Once")
        .input(flag("exclude_input_in_output"))
        .input(flag("return_num_output_tokens"))
        .parameter("temperature", ParameterValue::Text("0".into()))
        .parameter("max_tokens", ParameterValue::Int(3))
        .parameter("sequence_id", ParameterValue::Int(0));
    assert_eq!(u32_of(&model.infer(request)[0], "num_output_tokens"), 3);
    let request = ask("Once").parameter("max_token", ParameterValue::Int(3));
    let (code, text) = error(&model.infer(request));
    assert_eq!(code, INVALID_ARG);
    assert!(text.starts_with("Error generating stream: sampling parameter \"max_token\" is unknown"), "{text}");
}

#[test]
fn s9_vllm_tells_the_log_probabilities_of_the_chosen_tokens_as_json() {
    let server = start();
    let model = vllm().load(&server).unwrap();
    let with = |json: Value| {
        sampling(ask("Once"), json).input(flag("return_logprobs")).input(flag("return_cumulative_logprob"))
    };
    let greedy = json!({ "temperature": 0, "max_tokens": 3, "logprobs": 0 });
    let reply = model.infer(with(greedy.clone())).remove(0);
    let told: Value = serde_json::from_str(&first_text(&reply, "logprobs")).unwrap();
    assert_eq!(told.as_array().unwrap().len(), 3);
    let first = told[0].as_object().unwrap().values().next().unwrap();
    assert_eq!(first["logprob"], -0.5);
    assert!(first["decoded_token"].as_str().is_some_and(|text| ANSWER.starts_with(text)), "{first}");
    assert_eq!(reply.output("cumulative_logprob").unwrap().to_fp32(), [-1.5]);
    let streamed = model.infer(with(greedy).input(flag("stream")));
    let counts: Vec<_> = streamed
        .iter()
        .map(|reply| serde_json::from_str::<Value>(&first_text(reply, "logprobs")).unwrap().as_array().unwrap().len())
        .collect();
    assert_eq!(counts, [1, 1, 1], "each response has those of its tokens");
    let none = model.infer(with(json!({ "temperature": 0, "max_tokens": 3 }))).remove(0);
    assert_eq!(first_text(&none, "logprobs"), "null");
}

#[test]
fn s9_vllm_tells_the_most_likely_tokens_in_each_place() {
    let server = start();
    let model = vllm().load(&server).unwrap();
    let ask = |count: u32, stream: bool| {
        let json = json!({ "temperature": 0.7, "top_k": 5, "max_tokens": 4, "logprobs": count });
        let spec = sampling(ask("Once"), json).input(flag("return_logprobs"));
        let replies = model.infer(if stream { spec.input(flag("stream")) } else { spec });
        let told = replies.iter().map(|reply| serde_json::from_str::<Value>(&first_text(reply, "logprobs")).unwrap());
        told.flat_map(|told| told.as_array().unwrap().clone()).collect::<Vec<_>>()
    };
    for stream in [false, true] {
        let told = ask(3, stream);
        assert_eq!(told.len(), 4, "a place for each token");
        for place in &told {
            let mut ranks: Vec<_> = place.as_object().unwrap().values().map(|told| told["rank"].as_u64()).collect();
            ranks.sort_unstable();
            assert_eq!(ranks, [Some(1), Some(2), Some(3)], "{place}");
        }
        // The script's most likely token is another one.
        let place = ask(1, stream).remove(0);
        let ranks: Vec<_> =
            place.as_object().unwrap().values().map(|told| (told["rank"].as_u64(), &told["logprob"])).collect();
        assert!(ranks.contains(&(None, &json!(-0.5))) && ranks.contains(&(Some(1), &json!(-0.25))), "{place}");
        assert_eq!(ask(0, stream)[0].as_object().unwrap().len(), 1);
    }
}

#[test]
fn s9_vllm_sampling_parameters_decide() {
    let server = start();
    let model = vllm().load(&server).unwrap();
    let run = |json: Value| texts(&model.infer(sampling(ask("Once"), json).input(flag("exclude_input_in_output")))[0]);
    let tokens = Tokenizer::load(&tokenizer_dir()).unwrap().encode(ANSWER, false).unwrap();
    assert_eq!(run(json!({ "temperature": 0, "stop": "nd of", "max_tokens": 99 })), [" the e"]);
    let included = json!({ "temperature": 0, "stop": ["nd of"], "include_stop_str_in_output": true, "max_tokens": 99 });
    assert_eq!(run(included), [" the end of"]);
    assert_eq!(run(json!({ "temperature": 0, "n": 2, "max_tokens": 4 })).len(), 2);
    let by_token = run(json!({ "temperature": 0, "stop_token_ids": [tokens[2]], "max_tokens": 99 }));
    assert!(ANSWER.starts_with(&by_token[0]) && by_token[0].len() < 8, "{by_token:?}");
    let biased = run(json!({ "temperature": 0, "max_tokens": 3, "logit_bias": { tokens[1].to_string(): 100 } }));
    let allowed = run(json!({ "temperature": 0, "max_tokens": 3, "allowed_token_ids": [tokens[1]] }));
    assert_eq!(biased, allowed, "only the one token is left");
    assert!(!ANSWER.starts_with(&biased[0]));
    let fail = |json: Value| error(&model.infer(sampling(ask("Once"), json))).1;
    assert!(fail(json!({ "stop_token_ids": [9999] })).contains("stop_token_ids has 9999"));
    assert!(fail(json!([1])).contains("expected a JSON object"));
    assert!(fail(json!({ "top_p": 1.5 })).contains("top_p is 1.5"));
}

#[test]
fn s9_vllm_does_not_stream_the_prompt() {
    let server = start();
    let model = vllm().load(&server).unwrap();
    let included = Tensor::bools("exclude_input_in_output", &[1], &[false]);
    let (_, text) = error(&model.infer(ask("x").input(flag("stream")).input(included)));
    assert!(text.contains("When streaming, `exclude_input_in_output` = False is not allowed."), "{text}");
}

#[test]
fn s9_1_a_missing_model_or_a_broken_file_is_told_at_load() {
    let server = start();
    for (file, text, fragment) in [
        ("model.json", "{}", "Both encoder and decoder model paths are empty"),
        ("model.json", "{\"model\": \"org/name\"}", "models are not downloaded"),
        ("model.json", "{\"model\": \"weights\"}", "tokenizer"),
        ("model.yaml", "model: [", "model.yaml: is not valid YAML"),
    ] {
        let message = Repository::new(file, text).load(&server).err().unwrap().message;
        assert!(message.contains(fragment), "{message} lacks {fragment}");
    }
}
