//! `preprocessing`, `postprocessing` and the ensemble (contract 6.1 to 6.3), row by row.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use triton_trtllm::config::parse_config;
use triton_trtllm::text::Tokenizer;

use crate::bls::{llm, role};
use crate::fake::{LoadedModel, Reply, RequestSpec, Server, Tensor, dtype};
use crate::script::{ANSWER, error, start, tokenizer_dir};

const INVALID_ARG: u32 = 3;
/// What the tokenizer puts before a text.
const BEGIN: i32 = 0;
const VOCAB: usize = 560;

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&tokenizer_dir()).unwrap()
}

fn ids(text: &str) -> Vec<i32> {
    tokenizer().encode(text, false).unwrap()
}

fn with_begin(text: &str) -> Vec<i32> {
    [vec![BEGIN], ids(text)].concat()
}

/// The token that ends texts and pads them.
fn end() -> i32 {
    ids("~")[0]
}

/// Asks for every output of the model.
fn all_outputs(model: &LoadedModel<'_>, request: RequestSpec) -> RequestSpec {
    let config = model.config();
    config["output"]
        .as_array()
        .unwrap()
        .iter()
        .fold(request, |request, output| request.output(output["name"].as_str().unwrap()))
}

fn query(prompts: &[&str]) -> RequestSpec {
    let rows = prompts.len() as i64;
    RequestSpec::new("").input(Tensor::strings("QUERY", &[rows, 1], prompts)).input(Tensor::int32(
        "REQUEST_OUTPUT_LEN",
        &[rows, 1],
        &vec![7; prompts.len()],
    ))
}

fn infer(model: &LoadedModel<'_>, request: RequestSpec) -> Reply {
    let replies = model.infer(all_outputs(model, request));
    assert_eq!((replies.len(), &replies[0].error, replies[0].is_final), (1, &None, true));
    replies.into_iter().next().unwrap()
}

fn ints(reply: &Reply, name: &str) -> (Vec<i64>, Vec<i32>) {
    let output = reply.output(name).unwrap_or_else(|| panic!("no {name}"));
    (output.shape.clone(), output.to_int32())
}

/// Name, type, dims and whether it is optional, of a completed configuration.
fn declared(config: &Value, key: &str) -> Vec<(String, String, Vec<i64>, bool)> {
    let row = |entry: &Value| {
        let dims = entry["dims"]
            .as_array()
            .unwrap()
            .iter()
            .map(|dim| dim.as_i64().or_else(|| dim.as_str()?.parse().ok()).unwrap());
        let text = |key: &str| entry[key].as_str().unwrap().to_owned();
        (text("name"), text("data_type"), dims.collect(), entry["optional"].as_bool().unwrap_or(false))
    };
    config[key].as_array().unwrap().iter().map(row).collect()
}

fn rows(table: &[(&str, &str, &[i64], bool)]) -> Vec<(String, String, Vec<i64>, bool)> {
    let row = |&(name, data_type, dims, optional): &(&str, &str, &[i64], bool)| {
        (name.to_owned(), format!("TYPE_{data_type}"), dims.to_vec(), optional)
    };
    table.iter().map(row).collect()
}

#[test]
fn s6_1_inputs_and_outputs_have_the_names_types_and_dims_of_the_contract() {
    let server = start();
    let model = server.load(role("preprocessing", &[])).unwrap();
    let inputs: &[(&str, &str, &[i64], bool)] = &[
        ("QUERY", "STRING", &[1], false),
        ("DECODER_QUERY", "STRING", &[1], true),
        ("REQUEST_OUTPUT_LEN", "INT32", &[1], false),
        ("BAD_WORDS_DICT", "STRING", &[-1], true),
        ("STOP_WORDS_DICT", "STRING", &[-1], true),
        ("EMBEDDING_BIAS_WORDS", "STRING", &[-1], true),
        ("EMBEDDING_BIAS_WEIGHTS", "FP32", &[-1], true),
        ("END_ID", "INT32", &[1], true),
        ("PAD_ID", "INT32", &[1], true),
        ("PROMPT_TABLE_EXTRA_ID", "UINT64", &[1], true),
    ];
    let outputs: &[(&str, &str, &[i64], bool)] = &[
        ("INPUT_ID", "INT32", &[-1], false),
        ("DECODER_INPUT_ID", "INT32", &[-1], false),
        ("REQUEST_INPUT_LEN", "INT32", &[1], false),
        ("REQUEST_DECODER_INPUT_LEN", "INT32", &[1], false),
        ("BAD_WORDS_IDS", "INT32", &[2, -1], false),
        ("STOP_WORDS_IDS", "INT32", &[2, -1], false),
        ("EMBEDDING_BIAS", "FP32", &[-1], false),
        ("REQUEST_OUTPUT_LEN", "INT32", &[-1], false),
        ("OUT_END_ID", "INT32", &[1], false),
        ("OUT_PAD_ID", "INT32", &[1], false),
        ("OUT_PROMPT_TABLE_EXTRA_IDS", "UINT64", &[-1], false),
    ];
    let config = model.config();
    assert_eq!((declared(&config, "input"), declared(&config, "output")), (rows(inputs), rows(outputs)));
    let template = parse_config(&template("preprocessing")).unwrap();
    assert_eq!((declared(&template, "input"), declared(&template, "output")), (rows(inputs), rows(outputs)));
}

fn template(model: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("model_repo").join(model).join("config.pbtxt");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn s6_1_parameters_have_the_words_and_consequences_of_the_contract() {
    let server = start();
    let begins = |word: Option<&str>| {
        let given: Vec<_> = word.map(|word| ("add_special_tokens", word)).into_iter().collect();
        let model = server.load(role("preprocessing", &given)).unwrap();
        ints(&infer(&model, query(&["Once"])), "INPUT_ID").1 == with_begin("Once")
    };
    assert!(begins(None));
    for word in ["true", "1", "T", "y", "Yes", "${add_special_tokens}", "perhaps"] {
        assert!(begins(Some(word)), "{word}");
    }
    for word in ["false", "0", "F", "n", "No"] {
        assert!(!begins(Some(word)), "{word}");
    }
    for (key, value) in [
        ("multimodal_model_path", "${multimodal_model_path}"),
        ("multimodal_model_path", ""),
        ("visual_model_path", "${visual_model_path}"),
        ("max_num_images", "many"),
        ("tokenizer_type", "llama"),
        ("gpt_model_path", "/nowhere"),
    ] {
        server
            .load(role("preprocessing", &[(key, value)]))
            .unwrap_or_else(|failure| panic!("{key} {value:?}: {failure:?}"));
    }
    for (key, value, fragment) in [
        ("tokenizer_dir", "/no/such/tokenizer", "/no/such/tokenizer"),
        ("tokenizer_dir", "${tokenizer_dir}", "tokenizer_dir"),
        ("multimodal_model_path", "/models/llava", "only text prompts"),
    ] {
        for name in if key == "tokenizer_dir" { &["preprocessing", "postprocessing"][..] } else { &["preprocessing"] } {
            let failure = server.load(role(name, &[(key, value)])).err().unwrap();
            assert!(failure.message.contains(fragment), "{name}: {failure:?}");
        }
    }
    let bare = tokenizer_dir();
    let failure = server.load(role("preprocessing", &[("tokenizer_dir", bare.to_str().unwrap())])).err().unwrap();
    assert!(failure.message.contains("no end-of-sequence token"), "{failure:?}");
}

#[test]
fn s6_1_rows_are_padded_on_the_right_with_the_tokenizers_padding() {
    let server = start();
    let model = server.load(role("preprocessing", &[])).unwrap();
    let prompts = ["Once upon a time", "the"];
    let client = query(&prompts).input(Tensor::int32("END_ID", &[2, 1], &[50256, 50256])).input(Tensor::int32(
        "PAD_ID",
        &[2, 1],
        &[3, 4],
    ));
    let reply = infer(&model, client);
    let (long, mut short) = (with_begin(prompts[0]), with_begin(prompts[1]));
    let (width, length) = (long.len(), short.len() as i32);
    short.resize(width, end());
    assert_eq!(ints(&reply, "INPUT_ID"), (vec![2, width as i64], [long, short].concat()));
    assert_eq!(ints(&reply, "REQUEST_INPUT_LEN"), (vec![2, 1], vec![width as i32, length]));
    assert_eq!(ints(&reply, "DECODER_INPUT_ID"), (vec![2, 1], vec![end(); 2]), "one padding token");
    assert_eq!(ints(&reply, "REQUEST_DECODER_INPUT_LEN"), (vec![2, 1], vec![1, 1]));
    assert_eq!(ints(&reply, "OUT_END_ID"), (vec![2, 1], vec![50256, 50256]), "of the client, unchanged");
    assert_eq!(ints(&reply, "OUT_PAD_ID"), (vec![2, 1], vec![3, 4]));
    assert_eq!(ints(&reply, "REQUEST_OUTPUT_LEN"), (vec![2, 1], vec![7, 7]));
    assert!(reply.output("OUT_PROMPT_TABLE_EXTRA_IDS").is_none(), "only with an id");
    let defaults = infer(&model, query(&["x"]));
    assert_eq!((ints(&defaults, "OUT_END_ID").1, ints(&defaults, "OUT_PAD_ID").1), (vec![end()], vec![end()]));
    let decoder = query(&["x"]).input(Tensor::strings("DECODER_QUERY", &[1, 1], &["the end"]));
    assert_eq!(ints(&infer(&model, decoder), "DECODER_INPUT_ID").1, with_begin("the end"));
}

#[test]
fn s6_1_word_lists_are_without_special_tokens_and_padded() {
    let server = start();
    let model = server.load(role("preprocessing", &[])).unwrap();
    let none = infer(&model, query(&["a", "b"]));
    assert_eq!(ints(&none, "STOP_WORDS_IDS"), (vec![2, 2, 0], vec![]), "an input that is absent");
    let empty = query(&["a"]).input(Tensor::strings("BAD_WORDS_DICT", &[1, 1], &[""]));
    assert_eq!(ints(&infer(&model, empty), "BAD_WORDS_IDS"), (vec![1, 2, 1], vec![0, -1]), "the empty text of curl");
    let words = query(&["a", "b"]).input(Tensor::strings("STOP_WORDS_DICT", &[2, 2], &["the end", "no", "of", ""]));
    let (shape, values) = ints(&infer(&model, words), "STOP_WORDS_IDS");
    let (first, second, third) = (ids("the end"), ids("no"), ids("of"));
    let width = first.len() + second.len();
    assert_eq!(shape, [2, 2, width as i64]);
    let padded = |values: Vec<i32>, padding: i32| [values.clone(), vec![padding; width - values.len()]].concat();
    let expected = [
        padded([&first[..], &second].concat(), 0),
        padded(vec![first.len() as i32, width as i32], -1),
        padded(third.clone(), 0),
        padded(vec![third.len() as i32], -1),
    ];
    assert_eq!(values, expected.concat());
}

#[test]
fn s6_1_bias_words_add_up_and_bias_the_begin_token_too() {
    let server = start();
    let model = server.load(role("preprocessing", &[])).unwrap();
    let none = infer(&model, query(&["a"]));
    assert_eq!(none.output("EMBEDDING_BIAS").unwrap().shape, [1, 0]);
    let words = || query(&["a"]).input(Tensor::strings("EMBEDDING_BIAS_WORDS", &[1, 2], &["the", "no"]));
    let lonely = infer(&model, words());
    assert_eq!(lonely.output("EMBEDDING_BIAS").unwrap().shape, [1, 0], "words without weights");
    let both = infer(&model, words().input(Tensor::fp32("EMBEDDING_BIAS_WEIGHTS", &[1, 2], &[2.0, 0.5])));
    let bias = both.output("EMBEDDING_BIAS").unwrap();
    assert_eq!(bias.shape, [1, VOCAB as i64], "the tokenizer's vocabulary");
    let mut expected = vec![0.0; VOCAB];
    with_begin("the").iter().for_each(|&id| expected[id as usize] += 2.0);
    with_begin("no").iter().for_each(|&id| expected[id as usize] += 0.5);
    assert_eq!(bias.to_fp32(), expected);
    assert_eq!(expected[BEGIN as usize], 2.5);
    let (code, text) = error(&model.infer(words().input(Tensor::fp32("EMBEDDING_BIAS_WEIGHTS", &[1, 1], &[2.0]))));
    assert!(code == INVALID_ARG && text.contains("2 words but 1 weights"), "{text}");
}

#[test]
fn s6_1_extra_ids_are_those_of_tokens_behind_the_vocabulary() {
    let server = start();
    let model = server.load(role("preprocessing", &[])).unwrap();
    let reply =
        infer(&model, query(&["a", "the end"]).input(Tensor::uint64("PROMPT_TABLE_EXTRA_ID", &[2, 1], &[5, 6])));
    let extra = reply.output("OUT_PROMPT_TABLE_EXTRA_IDS").unwrap();
    assert_eq!((extra.dtype, &extra.shape), (dtype::UINT64, &ints(&reply, "INPUT_ID").0));
    assert!(extra.bytes.iter().all(|&byte| byte == 0), "ordinary tokens");
    for (shape, values) in [(vec![1, 1], vec![5]), (vec![2, 2], vec![5, 6, 7, 8])] {
        let spec = query(&["a", "b"]).input(Tensor::uint64("PROMPT_TABLE_EXTRA_ID", &shape, &values));
        assert!(error(&model.infer(spec)).1.contains("one id per batch item"));
    }
    let (_, text) = error(&model.infer(query(&["a"]).input(Tensor::strings("IMAGE_URL", &[1, 1], &["http://x"]))));
    assert!(text.contains("IMAGE_URL") && text.contains("only text prompts"), "{text}");
}

fn postprocess(tokens: &[i32], shape: [i64; 3], lengths: &[i32]) -> RequestSpec {
    RequestSpec::new("").input(Tensor::int32("TOKENS_BATCH", &shape, tokens)).input(Tensor::int32(
        "SEQUENCE_LENGTH",
        &shape[..2],
        lengths,
    ))
}

#[test]
fn s6_2_tensors_have_the_names_types_and_dims_of_the_contract() {
    let server = start();
    let model = server.load(role("postprocessing", &[])).unwrap();
    let inputs: &[(&str, &str, &[i64], bool)] =
        &[("TOKENS_BATCH", "INT32", &[-1, -1], false), ("SEQUENCE_LENGTH", "INT32", &[-1], false)];
    let outputs: &[(&str, &str, &[i64], bool)] = &[("OUTPUT", "STRING", &[-1], false)];
    for config in [model.config(), parse_config(&template("postprocessing")).unwrap()] {
        assert_eq!((declared(&config, "input"), declared(&config, "output")), (rows(inputs), rows(outputs)));
    }
}

#[test]
fn s6_2_the_texts_are_a_flat_array_of_the_first_tokens_of_each_row() {
    let server = start();
    let model = server.load(role("postprocessing", &[])).unwrap();
    let (the, no) = (ids("the")[0], ids("no")[0]);
    let reply = infer(&model, postprocess(&[the, no, no, -1, no, the, 9, 9], [2, 2, 2], &[2, 1, 2, 0]));
    let output = reply.output("OUTPUT").unwrap();
    let expected = [vec![the, no], vec![no], vec![no, the], vec![]].map(|ids| tokenizer().decode(&ids, true));
    assert_eq!((&output.shape[..], output.to_strings()), (&[4][..], expected.to_vec()));
    let nothing = infer(&model, postprocess(&[], [1, 1, 0], &[0]));
    assert_eq!(nothing.output("OUTPUT").unwrap().to_strings(), [""]);
    let unknown = postprocess(&[the], [1, 1, 1], &[1]).input(Tensor::int32("SURPRISE", &[1, 1], &[1]));
    let (code, text) = error(&model.infer(unknown));
    assert!(code == INVALID_ARG && text.contains("`SURPRISE` is unknown"), "{text}");
}

#[test]
fn s6_2_special_tokens_are_skipped_by_the_words_of_the_parameter() {
    let server = start();
    let the = ids("the")[0];
    for (word, skipped) in
        [(None, true), (Some("yes"), true), (Some("${skip_special_tokens}"), true), (Some("n"), false)]
    {
        let given: Vec<_> = word.map(|word| ("skip_special_tokens", word)).into_iter().collect();
        let model = server.load(role("postprocessing", &given)).unwrap();
        let reply = infer(&model, postprocess(&[BEGIN, the], [1, 1, 2], &[2]));
        let begin = if skipped { "" } else { "<|begin_of_text|>" };
        let expected = format!("{begin}{}", tokenizer().decode(&[the], true));
        assert_eq!(reply.output("OUTPUT").unwrap().to_strings(), [expected], "{word:?}");
    }
}

#[test]
fn s6_2_what_version_0_13_handed_on_is_handed_on() {
    let server = start();
    let mut spec = role("postprocessing", &[]);
    let tensor =
        |name: &str| serde_json::json!({ "name": name, "data_type": "TYPE_FP32", "dims": [-1], "optional": true });
    let mut config = server.load(spec.clone()).unwrap().config();
    config["input"].as_array_mut().unwrap().push(tensor("CUM_LOG_PROBS"));
    config["output"].as_array_mut().unwrap().push(tensor("OUT_CUM_LOG_PROBS"));
    spec.config = config;
    let model = server.load(spec).unwrap();
    let the = ids("the")[0];
    let reply =
        infer(&model, postprocess(&[the], [1, 1, 1], &[1]).input(Tensor::fp32("CUM_LOG_PROBS", &[1, 1], &[-2.5])));
    assert_eq!(reply.output("OUT_CUM_LOG_PROBS").unwrap().to_fp32(), [-2.5]);
    let nothing = infer(&model, postprocess(&[the], [1, 1, 1], &[1]));
    let zero = nothing.output("OUT_CUM_LOG_PROBS").expect("7.4: there even when not asked for");
    assert_eq!((&zero.shape[..], zero.to_fp32()), (&[1, 1][..], vec![0.0]));
}

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
