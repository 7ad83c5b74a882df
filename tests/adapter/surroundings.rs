//! `preprocessing` and `postprocessing` (contract 6.1 and 6.2), row by row.

use std::path::Path;

use serde_json::Value;
use triton_trtllm::config::parse_config;
use triton_trtllm::text::Tokenizer;

use crate::bls::role;
use crate::fake::{LoadedModel, Reply, RequestSpec, Tensor, dtype};
use crate::script::{error, start, tokenizer_dir};

const INVALID_ARG: u32 = 3;
/// What the tokenizer puts before a text.
const BEGIN: i32 = 0;
const VOCAB: usize = 560;

pub fn tokenizer() -> Tokenizer {
    Tokenizer::load(&tokenizer_dir()).unwrap()
}

pub fn ids(text: &str) -> Vec<i32> {
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
pub fn declared(config: &Value, key: &str) -> Vec<(String, String, Vec<i64>, bool)> {
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

pub fn template(model: &str) -> String {
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
