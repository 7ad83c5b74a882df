//! The ensemble (contract 6.3): what it declares, where everything goes, and what comes out.

use std::collections::BTreeMap;

use serde_json::Value;
use triton_trtllm::config::parse_config;

use crate::bls::{llm, role};
use crate::fake::{LoadedModel, Reply, RequestSpec, Server, Tensor};
use crate::script::{ANSWER, start};
use crate::surroundings::{declared, ids, template, tokenizer};

/// Ensemble input, type, dims, optional, model, its input.
type EnsembleRow = (&'static str, &'static str, &'static [i64], bool, &'static str, &'static str);

/// The rows of the contract's table.
#[rustfmt::skip]
const ENSEMBLE: &[EnsembleRow] = &[
    ("text_input", "STRING", &[1], false, "preprocessing", "QUERY"),
    ("decoder_text_input", "STRING", &[1], true, "preprocessing", "DECODER_QUERY"),
    ("max_tokens", "INT32", &[1], false, "preprocessing", "REQUEST_OUTPUT_LEN"),
    ("num_return_sequences", "INT32", &[1], true, "tensorrt_llm", "num_return_sequences"),
    ("bad_words", "STRING", &[-1], true, "preprocessing", "BAD_WORDS_DICT"),
    ("stop_words", "STRING", &[-1], true, "preprocessing", "STOP_WORDS_DICT"),
    ("exclude_input_in_output", "BOOL", &[1], true, "tensorrt_llm", "exclude_input_in_output"),
    ("end_id", "INT32", &[1], true, "preprocessing", "END_ID"),
    ("pad_id", "INT32", &[1], true, "preprocessing", "PAD_ID"),
    ("top_k", "INT32", &[1], true, "tensorrt_llm", "runtime_top_k"),
    ("top_p", "FP32", &[1], true, "tensorrt_llm", "runtime_top_p"),
    ("temperature", "FP32", &[1], true, "tensorrt_llm", "temperature"),
    ("length_penalty", "FP32", &[1], true, "tensorrt_llm", "len_penalty"),
    ("repetition_penalty", "FP32", &[1], true, "tensorrt_llm", "repetition_penalty"),
    ("presence_penalty", "FP32", &[1], true, "tensorrt_llm", "presence_penalty"),
    ("frequency_penalty", "FP32", &[1], true, "tensorrt_llm", "frequency_penalty"),
    ("min_tokens", "INT32", &[1], true, "tensorrt_llm", "min_tokens"),
    ("seed", "UINT64", &[1], true, "tensorrt_llm", "seed"),
    ("return_log_probs", "BOOL", &[1], true, "tensorrt_llm", "return_log_probs"),
    ("return_context_logits", "BOOL", &[1], true, "tensorrt_llm", "return_context_logits"),
    ("return_generation_logits", "BOOL", &[1], true, "tensorrt_llm", "return_generation_logits"),
    ("return_perf_metrics", "BOOL", &[1], true, "tensorrt_llm", "return_perf_metrics"),
    ("return_num_input_tokens", "BOOL", &[1], true, "tensorrt_llm", "return_num_input_tokens"),
    ("return_num_output_tokens", "BOOL", &[1], true, "tensorrt_llm", "return_num_output_tokens"),
    ("beam_width", "INT32", &[1], true, "tensorrt_llm", "beam_width"),
    ("stream", "BOOL", &[1], true, "tensorrt_llm", "streaming"),
    ("prompt_embedding_table", "FP16", &[-1, -1], true, "tensorrt_llm", "prompt_embedding_table"),
    ("prompt_table_extra_id", "UINT64", &[1], true, "preprocessing", "PROMPT_TABLE_EXTRA_ID"),
    ("prompt_vocab_size", "INT32", &[1], true, "tensorrt_llm", "prompt_vocab_size"),
    ("embedding_bias_words", "STRING", &[-1], true, "preprocessing", "EMBEDDING_BIAS_WORDS"),
    ("embedding_bias_weights", "FP32", &[-1], true, "preprocessing", "EMBEDDING_BIAS_WEIGHTS"),
    ("lora_task_id", "UINT64", &[1], true, "tensorrt_llm", "lora_task_id"),
    ("lora_weights", "FP16", &[-1, -1], true, "tensorrt_llm", "lora_weights"),
    ("lora_config", "INT32", &[-1, 3], true, "tensorrt_llm", "lora_config"),
    ("guided_decoding_guide_type", "STRING", &[1], true, "tensorrt_llm", "guided_decoding_guide_type"),
    ("guided_decoding_guide", "STRING", &[1], true, "tensorrt_llm", "guided_decoding_guide"),
];

/// Tensors between the models: of which, by which name, to which, by which name.
const BETWEEN: &[(&str, &str, &str, &str)] = &[
    ("preprocessing", "INPUT_ID", "tensorrt_llm", "input_ids"),
    ("preprocessing", "DECODER_INPUT_ID", "tensorrt_llm", "decoder_input_ids"),
    ("preprocessing", "REQUEST_INPUT_LEN", "tensorrt_llm", "input_lengths"),
    ("preprocessing", "REQUEST_DECODER_INPUT_LEN", "tensorrt_llm", "decoder_input_lengths"),
    ("preprocessing", "REQUEST_OUTPUT_LEN", "tensorrt_llm", "request_output_len"),
    ("preprocessing", "STOP_WORDS_IDS", "tensorrt_llm", "stop_words_list"),
    ("preprocessing", "BAD_WORDS_IDS", "tensorrt_llm", "bad_words_list"),
    ("preprocessing", "EMBEDDING_BIAS", "tensorrt_llm", "embedding_bias"),
    ("preprocessing", "OUT_END_ID", "tensorrt_llm", "end_id"),
    ("preprocessing", "OUT_PAD_ID", "tensorrt_llm", "pad_id"),
    ("preprocessing", "OUT_PROMPT_TABLE_EXTRA_IDS", "tensorrt_llm", "prompt_table_extra_ids"),
    ("tensorrt_llm", "output_ids", "postprocessing", "TOKENS_BATCH"),
    ("tensorrt_llm", "sequence_length", "postprocessing", "SEQUENCE_LENGTH"),
];

/// The steps of the shipped ensemble with the models that they name, run as the server runs them.
struct Ensemble<'a> {
    config: Value,
    models: BTreeMap<String, LoadedModel<'a>>,
}

impl<'a> Ensemble<'a> {
    fn load(server: &'a Server, decoupled: bool) -> Self {
        let specs = [role("preprocessing", &[]), llm("tensorrt_llm", decoupled), role("postprocessing", &[])];
        let load = |spec: crate::fake::ModelSpec| (spec.name.clone(), server.load(spec).unwrap());
        Self { config: parse_config(&template("ensemble")).unwrap(), models: specs.map(load).into_iter().collect() }
    }

    fn step(&self, model: &str) -> &Value {
        let steps = self.config["ensemble_scheduling"]["step"].as_array().unwrap();
        steps.iter().find(|step| step["model_name"] == model).unwrap()
    }

    /// The tensor of the ensemble that an input or output of a model is.
    fn tensor_of(&self, model: &str, map: &str, name: &str) -> Option<&str> {
        self.step(model)[map][name].as_str()
    }

    /// What a model answers to the tensors that there are; those are then the ensemble's.
    fn run_step(
        &self,
        model: &str,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Vec<Result<BTreeMap<String, Tensor>, String>> {
        let step = self.step(model);
        let mut request = RequestSpec::new("mine");
        for (name, tensor) in step["input_map"].as_object().unwrap() {
            if let Some(tensor) = tensors.get(tensor.as_str().unwrap()) {
                request = request.input(Tensor { name: name.clone(), ..tensor.clone() });
            }
        }
        let outputs = step["output_map"].as_object().unwrap();
        let replies = self.models[model].infer(outputs.keys().fold(request, |request, name| request.output(name)));
        let answer = |reply: Reply| match reply.error {
            Some(failure) => Err(failure.message),
            None => Ok(reply
                .outputs
                .into_iter()
                .filter_map(|output| Some((outputs.get(&output.name)?.as_str()?.to_owned(), output)))
                .collect()),
        };
        replies.into_iter().map(answer).collect()
    }

    fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<BTreeMap<String, Tensor>>, String> {
        let mut tensors: BTreeMap<String, Tensor> =
            inputs.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        for made in self.run_step("preprocessing", &tensors).remove(0)?.into_iter() {
            tensors.insert(made.0, made.1);
        }
        let mut responses = Vec::new();
        for answer in self.run_step("tensorrt_llm", &tensors) {
            let mut response = answer?;
            response.extend(self.run_step("postprocessing", &response).remove(0)?);
            responses.push(response);
        }
        Ok(responses)
    }
}

fn ask(max_tokens: i32) -> Vec<Tensor> {
    vec![Tensor::strings("text_input", &[1, 1], &["Once"]), Tensor::int32("max_tokens", &[1, 1], &[max_tokens])]
}

fn yes(name: &str) -> Tensor {
    Tensor::bools(name, &[1, 1], &[true])
}

fn texts(responses: &[BTreeMap<String, Tensor>]) -> Vec<String> {
    let text = |response: &BTreeMap<String, Tensor>| {
        let text = &response["text_output"];
        assert_eq!(text.shape, [1], "no batch dimension");
        text.to_strings().remove(0)
    };
    responses.iter().map(text).collect()
}

#[test]
fn s6_3_every_input_is_declared_and_goes_where_the_contract_says() {
    let server = start();
    let ensemble = Ensemble::load(&server, true);
    let inputs = declared(&ensemble.config, "input");
    for &(name, data_type, dims, optional, model, input) in ENSEMBLE {
        let expected = (name.to_owned(), format!("TYPE_{data_type}"), dims.to_vec(), optional);
        assert!(inputs.contains(&expected), "{expected:?}");
        assert_eq!(ensemble.tensor_of(model, "input_map", input), Some(name));
    }
    assert_eq!(inputs.len(), ENSEMBLE.len(), "and no others");
    for &(from, output, to, input) in BETWEEN {
        let tensor = ensemble.tensor_of(from, "output_map", output);
        assert!(tensor.is_some() && tensor == ensemble.tensor_of(to, "input_map", input), "{output} to {input}");
    }
    assert_eq!(ensemble.tensor_of("postprocessing", "output_map", "OUTPUT"), Some("text_output"));
    for hidden in ["stop", "early_stopping", "draft_input_ids", "retention_token_range_starts", "lookahead_window_size"]
    {
        assert_eq!(ensemble.tensor_of("tensorrt_llm", "input_map", hidden), None, "{hidden} cannot be reached");
    }
}

#[test]
fn s6_3_outputs_are_those_of_the_contract() {
    let server = start();
    let ensemble = Ensemble::load(&server, true);
    let outputs = declared(&ensemble.config, "output");
    let expected: &[(&str, &str, &[i64])] = &[
        ("text_output", "STRING", &[-1]),
        ("cum_log_probs", "FP32", &[-1]),
        ("output_log_probs", "FP32", &[-1, -1]),
        ("context_logits", "FP32", &[-1, -1]),
        ("generation_logits", "FP32", &[-1, -1, -1]),
        ("batch_index", "INT32", &[1]),
        ("sequence_index", "INT32", &[1]),
        ("kv_cache_alloc_new_blocks", "INT32", &[1]),
        ("kv_cache_reused_blocks", "INT32", &[1]),
        ("kv_cache_alloc_total_blocks", "INT32", &[1]),
        ("arrival_time_ns", "INT64", &[1]),
        ("first_scheduled_time_ns", "INT64", &[1]),
        ("first_token_time_ns", "INT64", &[1]),
        ("last_token_time_ns", "INT64", &[1]),
        ("acceptance_rate", "FP32", &[1]),
        ("total_accepted_draft_tokens", "INT32", &[1]),
        ("total_draft_tokens", "INT32", &[1]),
        ("num_input_tokens", "INT32", &[1]),
        ("num_output_tokens", "INT32", &[1]),
    ];
    for &(name, data_type, dims) in expected {
        let row = (name.to_owned(), format!("TYPE_{data_type}"), dims.to_vec(), false);
        assert!(outputs.contains(&row), "{row:?}");
        let step = if name == "text_output" { "postprocessing" } else { "tensorrt_llm" };
        let of =
            |model: &str| ensemble.step(model)["output_map"].as_object().unwrap().values().any(|tensor| tensor == name);
        assert!(of(step), "{name}");
    }
}

#[test]
fn s6_3_text_goes_in_and_text_comes_out() {
    let server = start();
    let ensemble = Ensemble::load(&server, true);
    let count = ids(ANSWER).len();
    assert_eq!(texts(&ensemble.infer(ask(count as i32)).unwrap()), [format!("Once{ANSWER}")]);
    let excluded = [ask(count as i32), vec![yes("exclude_input_in_output")]].concat();
    assert_eq!(texts(&ensemble.infer(excluded).unwrap()), [ANSWER]);
    // Nobody gave words or biases: they reach the LLM without elements, and mean nothing.
    let curl =
        [ask(3), vec![Tensor::strings("bad_words", &[1, 1], &[""]), Tensor::strings("stop_words", &[1, 1], &[""])]];
    assert_eq!(texts(&ensemble.infer(curl.concat()).unwrap()), texts(&ensemble.infer(ask(3)).unwrap()));
}

#[test]
fn s6_3_each_piece_of_a_stream_is_a_text_of_its_own() {
    let server = start();
    let ensemble = Ensemble::load(&server, true);
    let pieces = texts(&ensemble.infer([ask(6), vec![yes("stream")]].concat()).unwrap());
    let expected: Vec<_> = ids(ANSWER)[..6].iter().map(|&id| tokenizer().decode(&[id], true)).collect();
    assert_eq!(pieces, expected);
    // A stream that ends by the end token ends with an empty text.
    let second = ids(ANSWER)[1];
    let ended = [ask(6), vec![yes("stream"), Tensor::int32("end_id", &[1, 1], &[second])]].concat();
    assert_eq!(texts(&ensemble.infer(ended).unwrap()), [&expected[0], ""]);
}

#[test]
fn s6_3_optional_outputs_come_when_they_were_asked_for() {
    let server = start();
    let ensemble = Ensemble::load(&server, true);
    let names = |inputs: Vec<Tensor>| {
        let mut response = ensemble.infer(inputs).unwrap().remove(0);
        response.retain(|name, _| !name.starts_with('_'));
        response.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(names(ask(3)), ["text_output"]);
    assert_eq!(
        names([ask(3), vec![yes("return_log_probs")]].concat()),
        ["cum_log_probs", "output_log_probs", "text_output"]
    );
    assert_eq!(names([ask(3), vec![yes("return_perf_metrics")]].concat()).len(), 11);
    let counts = [yes("return_num_input_tokens"), yes("return_num_output_tokens")].to_vec();
    assert_eq!(names([ask(3), counts].concat()), ["num_input_tokens", "num_output_tokens", "text_output"]);
}

#[test]
fn s6_3_stop_and_bias_words_reach_the_llm_as_tokens() {
    let server = start();
    let ensemble = Ensemble::load(&server, true);
    let excluded = || [ask(20), vec![yes("exclude_input_in_output")]].concat();
    // A word that is cut into tokens as the answer is.
    let prefix = |len: usize| (tokenizer().decode(&ids(ANSWER)[..len], true), ids(ANSWER)[..len].to_vec());
    let (word, _) = (2..20).map(prefix).find(|(word, tokens)| ids(word) == *tokens).unwrap();
    let stopped = [excluded(), vec![Tensor::strings("stop_words", &[1, 1], &[&word])]].concat();
    assert_eq!(texts(&ensemble.infer(stopped).unwrap()), [word]);
    let bias = vec![
        Tensor::strings("embedding_bias_words", &[1, 1], &["no"]),
        Tensor::fp32("embedding_bias_weights", &[1, 1], &[50.0]),
    ];
    let biased = texts(&ensemble.infer([excluded(), bias].concat()).unwrap()).remove(0);
    assert!(!biased.starts_with(&ANSWER[..4]), "{biased:?}");
}

#[test]
fn s6_3_errors_of_a_model_are_those_of_the_ensemble() {
    let server = start();
    let ensemble = Ensemble::load(&server, false);
    let failed = |more: Tensor| ensemble.infer([ask(3), vec![more]].concat()).unwrap_err();
    assert!(failed(yes("stream")).contains("Streaming is only supported"));
    assert!(failed(Tensor::int32("beam_width", &[1, 1], &[0])).contains("beam_width is 0"));
    assert!(ensemble.infer(ask(0)).unwrap_err().contains("request_output_len is 0"));
}
