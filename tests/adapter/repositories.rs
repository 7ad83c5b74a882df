//! Repositories as the versions of upstream's backend declared them, `tests/fixtures/repositories` (contract, appendix A).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use triton_trtllm::config::parse_config;
use triton_trtllm::text::Tokenizer;

use crate::bls;
use crate::fake::{LoadedModel, ModelSpec, Reply, RequestSpec, Server, Tensor, dtype};
use crate::script::{ANSWER, model, start, tokenizer_dir};

const VERSIONS: [&str; 9] = ["0.5", "0.6", "0.7", "0.8", "0.11", "0.13", "0.18", "0.20", "1.2"];
const PROMPT: &str = "Once";

fn folder(version: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/repositories").join(version)
}

/// The configuration as it is run here: what `fill_template.py` fills, and the models in Python on this backend.
fn config(version: &str, name: &str) -> Value {
    let text = std::fs::read_to_string(folder(version).join(name).join("config.pbtxt")).unwrap();
    let mut config = parse_config(&text).unwrap();
    let given = |config: &mut Value, key: &str, value: &str| {
        config["parameters"][key] = json!({ "string_value": value });
    };
    let filled =
        |spec: &ModelSpec, key: &str| spec.config["parameters"][key]["string_value"].as_str().unwrap().to_owned();
    match name {
        "tensorrt_llm" => {
            given(&mut config, "gpt_model_path", &filled(&model(name, false, &[]), "gpt_model_path"));
            // The script's own way to choose what is said.
            given(&mut config, "tokenizer_dir", tokenizer_dir().to_str().unwrap());
        }
        "tensorrt_llm_bls" => given(&mut config, "model_role", "bls"),
        "preprocessing" | "postprocessing" => {
            given(&mut config, "model_role", name);
            given(&mut config, "tokenizer_dir", &filled(&bls::role(name, &[]), "tokenizer_dir"));
        }
        _ => {}
    }
    config
}

/// The models of a version that have a backend.
fn load<'a>(server: &'a Server, version: &str) -> BTreeMap<&'static str, LoadedModel<'a>> {
    let names = ["preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"];
    let there = names.into_iter().filter(|name| folder(version).join(name).exists());
    let loaded = there.map(|name| {
        let spec = ModelSpec::new(name, config(version, name), "/nonexistent");
        (name, server.load(spec).unwrap_or_else(|failure| panic!("{version} {name}: {failure:?}")))
    });
    loaded.collect()
}

fn entries(config: &Value, key: &str) -> Vec<Value> {
    config[key].as_array().cloned().unwrap_or_default()
}

fn declared_type(tensor: &Tensor) -> String {
    format!("TYPE_{}", dtype::config_name(tensor.dtype))
}

/// The request that the server makes of these tensors, after its checks; none where a mandatory one is missing.
fn admit(config: &Value, tensors: &[Tensor]) -> Option<RequestSpec> {
    let declared = entries(config, "input");
    let mut request = RequestSpec::new("7");
    for tensor in tensors {
        let name = (&config["name"], &tensor.name);
        let entry = declared.iter().find(|entry| entry["name"] == tensor.name.as_str());
        let entry = entry.unwrap_or_else(|| panic!("unexpected inference input {name:?}"));
        assert_eq!(entry["data_type"], declared_type(tensor), "{name:?}");
        assert_eq!(tensor.shape[0], 1, "{name:?} has another batch size: {:?}", tensor.shape);
        let mut tensor = tensor.clone();
        if entry.get("reshape").is_some() {
            tensor.shape.truncate(1);
        }
        request = request.input(tensor);
    }
    let mandatory = declared.iter().filter(|entry| entry["optional"] != true);
    let missing = mandatory.filter(|entry| !tensors.iter().any(|tensor| entry["name"] == tensor.name.as_str()));
    missing.map(|entry| eprintln!("{} lacks {}", config["name"], entry["name"])).next().is_none().then_some(request)
}

/// What the ensemble of a version answers: the server's own work, done here.
fn through_ensemble(
    models: &BTreeMap<&str, LoadedModel<'_>>,
    version: &str,
    inputs: Vec<Tensor>,
) -> BTreeMap<String, Tensor> {
    let ensemble = config(version, "ensemble");
    admit(&ensemble, &inputs).expect("all inputs of the ensemble");
    let mut pool: BTreeMap<String, Tensor> = inputs.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    for step in entries(&ensemble["ensemble_scheduling"], "step") {
        let name = step["model_name"].as_str().unwrap();
        let mapped = step["input_map"].as_object().unwrap().iter();
        let taken = mapped.filter_map(|(input, tensor)| {
            Some(Tensor { name: input.clone(), ..pool.get(tensor.as_str().unwrap())?.clone() })
        });
        let request = admit(&config(version, name), &taken.collect::<Vec<_>>());
        let request = request.unwrap_or_else(|| panic!("{version}: the ensemble stands still at {name}"));
        let outputs = step["output_map"].as_object().unwrap();
        let replies = models[name].infer(outputs.keys().fold(request, |request, output| request.output(output)));
        assert_eq!((replies.len(), &replies[0].error), (1, &None), "{version} {name}");
        for output in &replies[0].outputs {
            let declared = entries(&config(version, name), "output");
            let entry = declared.iter().find(|entry| entry["name"] == output.name.as_str()).unwrap();
            assert_eq!(entry["data_type"], declared_type(output), "{version} {name} {}", output.name);
            pool.insert(outputs[&output.name].as_str().unwrap().to_owned(), output.clone());
        }
    }
    pool
}

/// A whole number in the type that a version's ensemble declares for the input.
fn number(version: &str, name: &str, value: i32) -> Tensor {
    let declared = entries(&config(version, "ensemble"), "input");
    let entry =
        declared.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("{version} has no {name}"));
    let unsigned = entry["data_type"] == "TYPE_UINT32";
    let dtype = if unsigned { dtype::UINT32 } else { dtype::INT32 };
    Tensor::new(name, dtype, &[1, 1], value.to_le_bytes().to_vec())
}

fn ask(version: &str, max_tokens: i32) -> Vec<Tensor> {
    let mut inputs = vec![
        Tensor::strings("text_input", &[1, 1], &[PROMPT]),
        number(version, "max_tokens", max_tokens),
        number(version, "end_id", 2),
        number(version, "top_k", 1),
        Tensor::fp32("temperature", &[1, 1], &[1.0]),
        Tensor::bools("stream", &[1, 1], &[false]),
    ];
    if version == "0.5" {
        inputs.extend(["bad_words", "stop_words"].map(|name| Tensor::strings(name, &[1, 1], &[""])));
    }
    inputs
}

fn with(mut inputs: Vec<Tensor>, tensor: Tensor) -> Vec<Tensor> {
    inputs.retain(|input| input.name != tensor.name);
    inputs.push(tensor);
    inputs
}

/// What the script says in this many tokens.
fn said(tokens: usize) -> String {
    let tokenizer = Tokenizer::load(&tokenizer_dir()).unwrap();
    let ids: Vec<_> = tokenizer.encode(ANSWER, false).unwrap().into_iter().cycle().take(tokens).collect();
    tokenizer.decode(&ids, true)
}

fn text(tensors: &BTreeMap<String, Tensor>) -> String {
    tensors["text_output"].to_strings().concat()
}

#[test]
fn appendix_a_the_ensemble_of_every_version_answers() {
    for version in VERSIONS {
        let server = start();
        let models = load(&server, version);
        let answer = through_ensemble(&models, version, ask(version, 6));
        assert_eq!(text(&answer), format!("{PROMPT}{}", said(6)), "{version}");
    }
}

#[test]
fn appendix_a_old_names_and_types_mean_what_the_new_ones_do() {
    for version in VERSIONS {
        let server = start();
        let models = load(&server, version);
        let old = ["0.5", "0.6", "0.7", "0.8", "0.11", "0.13", "0.18"].contains(&version);
        let (least, seed) = if old { ("min_length", "random_seed") } else { ("min_tokens", "seed") };
        let inputs = with(ask(version, 6), number(version, least, 2));
        let inputs = with(inputs, Tensor::uint64(seed, &[1, 1], &[1 << 40]));
        let inputs = with(inputs, number(version, "beam_width", 1));
        let answer = through_ensemble(&models, version, inputs);
        assert_eq!(text(&answer), format!("{PROMPT}{}", said(6)), "{version}");
    }
}

/// A word whose tokens, taken alone, are the answer's.
fn word_of_the_answer() -> (String, usize) {
    let tokenizer = Tokenizer::load(&tokenizer_dir()).unwrap();
    let answer = tokenizer.encode(ANSWER, false).unwrap();
    let word = |at: usize| tokenizer.decode(&answer[at..at + 2], true);
    let found = (2..answer.len() - 2).find(|&at| tokenizer.encode(&word(at), false).unwrap() == answer[at..at + 2]);
    let at = found.expect("two tokens that are encoded the same alone");
    (word(at), at + 2)
}

#[test]
fn s6_3_stop_words_reach_the_llm_from_version_0_6_on() {
    let (word, tokens) = word_of_the_answer();
    for version in &VERSIONS[1..] {
        let server = start();
        let models = load(&server, version);
        let words = Tensor::strings("stop_words", &[1, 2], &["no such words", &word]);
        let answer = through_ensemble(&models, version, with(ask(version, 100), words));
        assert_eq!(text(&answer), format!("{PROMPT}{}", said(tokens)), "{version}");
    }
}

#[test]
fn s6_1_version_0_5_takes_a_text_of_words_and_knows_no_words_at_the_llm() {
    let server = start();
    let models = load(&server, "0.5");
    let stops = Tensor::strings("stop_words", &[1, 1], &["the end,\"a, b\""]);
    let answer = through_ensemble(&models, "0.5", with(ask("0.5", 6), stops));
    assert_eq!(text(&answer), format!("{PROMPT}{}", said(6)), "nothing takes the words there");
    let request = RequestSpec::new("")
        .input(Tensor::strings("QUERY", &[2, 1], &[PROMPT, PROMPT]))
        .input(Tensor::strings("BAD_WORDS_DICT", &[2, 1], &["", "no"]))
        .input(Tensor::strings("STOP_WORDS_DICT", &[2, 1], &["the end,\"a, b\"", " of"]))
        .input(Tensor::new("REQUEST_OUTPUT_LEN", dtype::UINT32, &[2, 1], vec![7, 0, 0, 0, 8, 0, 0, 0]));
    let outputs = ["STOP_WORDS_IDS", "BAD_WORDS_IDS", "REQUEST_OUTPUT_LEN"];
    let request = outputs.into_iter().fold(request, RequestSpec::output);
    let reply = models["preprocessing"].infer(request).remove(0);
    let ids = |text: &str| Tokenizer::load(&tokenizer_dir()).unwrap().encode(text, true).unwrap();
    let expected = |lists: [Vec<Vec<i32>>; 2]| {
        let width = lists.iter().map(|words| words.concat().len()).max().unwrap();
        let mut values = Vec::new();
        for words in lists {
            let (mut flat, mut ends) = (words.concat(), Vec::new());
            words.iter().for_each(|word| ends.push(ends.last().unwrap_or(&0) + word.len() as i32));
            flat.resize(width, 0);
            ends.resize(width, -1);
            values.extend([flat, ends].concat());
        }
        (vec![2, 2, width as i64], values)
    };
    let of = |name: &str| reply.output(name).map(|output| (output.shape.clone(), output.to_int32())).unwrap();
    assert_eq!(of("STOP_WORDS_IDS"), expected([vec![ids("the end"), ids("a, b")], vec![ids(" of")]]));
    assert_eq!(of("BAD_WORDS_IDS"), expected([vec![], vec![ids("no")]]), "with the token that begins a text");
    let lengths = reply.output("REQUEST_OUTPUT_LEN").unwrap();
    assert_eq!((lengths.dtype, &lengths.bytes[..]), (dtype::UINT32, &[7, 0, 0, 0, 8, 0, 0, 0][..]));
    assert!(server.log().iter().any(|(_, _, text)| text.contains("as in version 0.5: the words of a prompt")));
}

#[test]
fn s6_2_version_0_5_decodes_rows_without_their_lengths() {
    let server = start();
    let models = load(&server, "0.5");
    let tokenizer = Tokenizer::load(&tokenizer_dir()).unwrap();
    let ids = tokenizer.encode(ANSWER, false).unwrap();
    let rows = [ids[0], ids[1], ids[2], ids[3], -1, -1, -1, -1, -1];
    let request = RequestSpec::new("").input(Tensor::int32("TOKENS_BATCH", &[1, 3, 3], &rows)).output("OUTPUT");
    let output = models["postprocessing"].infer(request)[0].output("OUTPUT").unwrap().clone();
    assert_eq!(output.shape, [3]);
    assert_eq!(output.to_strings(), [tokenizer.decode(&ids[..3], true), tokenizer.decode(&ids[3..4], true), "".into()]);
    assert!(
        server.log().iter().any(|(_, _, text)| text.contains("SEQUENCE_LENGTH is not declared, as in version 0.5"))
    );
}

#[test]
fn s7_4_log_probabilities_are_there_unasked_up_to_version_0_13() {
    for version in &VERSIONS[1..] {
        let server = start();
        let models = load(&server, version);
        let plain = through_ensemble(&models, version, ask(version, 4));
        let sum = plain.get("cum_log_probs").map(Tensor::to_fp32);
        let each = plain.get("output_log_probs").map(Tensor::to_fp32);
        match *version {
            "0.6" | "0.7" | "0.8" => assert_eq!((sum, each), (Some(vec![0.0]), Some(vec![0.0; 4])), "{version}"),
            "0.11" | "0.13" => assert_eq!((sum, each), (Some(vec![0.0]), Some(vec![0.0])), "{version}"),
            _ => assert_eq!((sum, each), (None, None), "{version}"),
        }
        let asked = with(ask(version, 4), Tensor::bools("return_log_probs", &[1, 1], &[true]));
        let answer = through_ensemble(&models, version, asked);
        assert_eq!(answer["cum_log_probs"].to_fp32(), [-2.0], "{version}");
        assert_eq!(answer["output_log_probs"].to_fp32().len(), 4, "{version}");
    }
}

#[test]
fn s6_4_the_bls_of_every_version_answers() {
    for version in &VERSIONS[2..] {
        let server = start();
        let models = load(&server, version);
        let (config, name) = (config(version, "tensorrt_llm_bls"), "tensorrt_llm_bls");
        let request = admit(&config, &ask(version, 6)).expect("all inputs of the BLS").output("text_output");
        let replies: Vec<Reply> = models[name].infer(request);
        assert_eq!((replies.len(), &replies[0].error), (1, &None), "{version}");
        assert_eq!(replies[0].output("text_output").unwrap().to_strings(), [format!("{PROMPT}{}", said(6))]);
        let asked = with(ask(version, 6), Tensor::bools("return_log_probs", &[1, 1], &[true]));
        let request = admit(&config, &asked).expect("all inputs of the BLS").output("cum_log_probs");
        let replies = models[name].infer(request);
        assert_eq!(replies[0].error, None, "{version}");
        assert_eq!(replies[0].output("cum_log_probs").unwrap().to_fp32(), [-3.0], "{version}");
    }
}
