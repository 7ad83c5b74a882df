//! What clients get wrong, list by list (T01 to T09): every value gives an error that names it or a valid answer, the same twice
//! in a row, and requests beside it never notice.

use triton_trtllm::text::Tokenizer;

use crate::common::{Answer, answer, ask, demo, demo_dir, float, guided, int, start, word};
use crate::fake::{LoadedModel, Reply, RequestSpec, Server, Tensor, dtype};

const MAX_TOKENS: i32 = 4;
const MAX_SEQ_LEN: usize = 128;
const VOCAB: i32 = 4096;
const EOS: i32 = 1;

/// What a request says wrong, which names an error may give it, and the request.
type Case = (String, Vec<&'static str>, RequestSpec);

fn load(server: &Server) -> LoadedModel<'_> {
    demo(server, &[("max_seq_len", "128"), ("max_beam_width", "2")])
}

fn plain() -> RequestSpec {
    ask("Once upon a time", MAX_TOKENS).input(Tensor::uint64("seed", &[1, 1], &[1]))
}

fn by_ids(ids: &[i32]) -> RequestSpec {
    let request = RequestSpec::new("").output("output_ids").output("sequence_length").output("text_output");
    request.input(Tensor::int32("input_ids", &[1, ids.len() as i64], ids)).input(int("request_output_len", MAX_TOKENS))
}

fn by_text(bytes: &[u8]) -> RequestSpec {
    let length = (bytes.len() as u32).to_le_bytes();
    let text = Tensor {
        name: "text_input".into(),
        dtype: dtype::BYTES,
        shape: vec![1, 1],
        bytes: [&length[..], bytes].concat(),
    };
    let outputs = RequestSpec::new("").output("text_output").output("output_ids").output("sequence_length");
    outputs.input(text).input(int("max_tokens", MAX_TOKENS))
}

fn case(what: impl Into<String>, names: &[&'static str], request: RequestSpec) -> Case {
    (what.into(), names.to_vec(), request)
}

fn outcome(replies: &[Reply]) -> Result<Answer, String> {
    assert!(replies.last().is_some_and(|reply| reply.is_final), "{replies:?}");
    match replies.iter().find_map(|reply| reply.error.clone()) {
        // Requests are numbered.
        Some(failure) => Err(failure.message.replace(|c: char| c.is_ascii_digit(), "")),
        None => Ok(answer(replies)),
    }
}

/// What became of each case.
fn sweep(model: &LoadedModel<'_>, cases: Vec<Case>) -> Vec<Result<Answer, String>> {
    let canary = answer(&model.infer(plain()));
    let mut outcomes = Vec::new();
    for cases in cases.chunks(10) {
        let twice = cases.iter().flat_map(|(_, _, request)| [request.clone(), request.clone()]);
        let batch = std::iter::once(plain()).chain(twice).collect();
        let mut replies = model.execute(batch).into_iter().map(|ticket| outcome(&ticket.wait()));
        assert_eq!(replies.next(), Some(Ok(canary.clone())), "the canary beside {:?}", cases[0].0);
        let replies: Vec<_> = replies.collect();
        for ((what, names, _), both) in cases.iter().zip(replies.chunks(2)) {
            assert_eq!(both[0], both[1], "{what}: another outcome the second time");
            match &both[0] {
                Ok(answer) => assert!(answer.tokens.iter().all(|id| (-1..VOCAB).contains(id)), "{what}: {answer:?}"),
                Err(message) => assert!(names.iter().any(|name| message.contains(name)), "{what}: {message}"),
            }
            outcomes.push(both[0].clone());
        }
    }
    assert_eq!(answer(&model.infer(plain())), canary, "the canary afterwards");
    outcomes
}

#[test]
fn t01_values_at_and_beyond_the_ends_of_their_ranges() {
    let server = start();
    let model = load(&server);
    #[rustfmt::skip]
    let floats: [(&[&'static str], f32, f32); 12] = [
        (&["temperature"], 0.0, 1e30), (&["top_p"], 0.0, 1.0), (&["runtime_top_p_min"], 0.0, 1.0),
        (&["runtime_top_p_decay"], 0.0, 1.0), (&["min_p"], 0.0, 1.0), (&["typical_p"], 0.0, 1.0),
        (&["repetition_penalty"], 0.0, 1e30), (&["presence_penalty"], -2.0, 2.0), (&["frequency_penalty"], -2.0, 2.0),
        (&["len_penalty"], -1.0, 5.0), (&["beam_search_diversity_rate"], 0.0, 9.0), (&["draft_acceptance_threshold"], 0.0, 1.0),
    ];
    let mut cases = Vec::new();
    for (names, min, max) in floats {
        let beyond = [min - 1.0, min, max, max + 1.0, 1.0001, 100.0, -0.0, 1e-45, 1e-30, 1e30];
        for value in beyond.into_iter().chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            cases.push(case(format!("{} {value}", names[0]), names, plain().input(float(names[0], value))));
        }
    }
    #[rustfmt::skip]
    let ints: [(&'static str, i32, i32); 13] = [
        ("top_k", 0, VOCAB), ("min_tokens", 0, MAX_TOKENS), ("prompt_ignore_length", 0, 100), ("no_repeat_ngram_size", 0, 9),
        ("end_id", 0, VOCAB - 1), ("pad_id", 0, VOCAB - 1), ("stop_token_ids", 0, VOCAB - 1), ("beam_width", 1, 2),
        ("runtime_top_p_reset_ids", 0, VOCAB - 1), ("num_return_sequences", 1, 2), ("early_stopping", 0, 1),
        ("num_top_log_probs", 0, VOCAB), ("max_tokens", 1, MAX_SEQ_LEN as i32),
    ];
    for (name, min, max) in ints {
        let mut request = plain();
        request.inputs.retain(|input| input.tensor.name != name);
        let names = if name == "max_tokens" { vec![name, "request_output_len"] } else { vec![name] };
        for value in [min.wrapping_sub(1), min, max, max.wrapping_add(1), -1, 0, i32::MIN, i32::MAX] {
            cases.push(case(format!("{name} {value}"), &names, request.clone().input(int(name, value))));
        }
        for value in [i64::MIN, i64::MAX] {
            let bytes = value.to_le_bytes().to_vec();
            let tensor = Tensor { name: name.into(), dtype: dtype::INT64, shape: vec![1, 1], bytes };
            cases.push(case(format!("{name} {value}"), &names, request.clone().input(tensor)));
        }
    }
    let whats: Vec<_> = cases.iter().map(|case| case.0.clone()).collect();
    let outcomes = sweep(&model, cases);
    for (what, outcome) in whats.iter().zip(&outcomes) {
        let is_drawn = ["temperature", "top_p", "min_p", "typical_p", "repetition", "presence", "frequency"];
        let must_fail = is_drawn.iter().any(|name| what.starts_with(name)) && what.ends_with("NaN");
        assert!(!must_fail || outcome.is_err(), "{what}");
    }
    let errors = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert!(errors > 60 && outcomes.len() - errors > 60, "{errors} of {}", outcomes.len());
}

#[test]
fn t02_shapes_and_types_of_tensors() {
    let server = start();
    let model = load(&server);
    let shaped = |shape: &[i64], values: &[f32]| plain().input(Tensor::fp32("temperature", shape, values));
    let raw = |dtype, bytes: Vec<u8>| Tensor { name: "temperature".into(), dtype, shape: vec![1, 1], bytes };
    let unknown =
        |count: usize| (0..count).fold(plain(), |request, n| request.input(float(&format!("input_{n}"), 1.0)));
    let outputs = |count: usize| (0..count).fold(plain(), |request, n| request.output(&format!("output_{n}")));
    let mut no_prompt = plain();
    no_prompt.inputs.retain(|input| input.tensor.name != "text_input");
    let prefix =
        Tensor { name: "stop_words".into(), dtype: dtype::BYTES, shape: vec![1, 1], bytes: vec![9, 0, 0, 0, b'a'] };
    let cases = vec![
        case("one dimension more", &["temperature"], shaped(&[1, 1, 1, 1], &[0.5])),
        case("no dimension", &["temperature"], shaped(&[], &[0.5])),
        case("nothing in it", &["temperature"], shaped(&[1, 0], &[])),
        case("two of one", &["temperature"], shaped(&[1, 2], &[0.5, 0.6])),
        case("another batch size", &["temperature"], shaped(&[2, 1], &[0.5, 0.6])),
        case("a negative dimension", &["temperature"], shaped(&[1, -1], &[0.5])),
        case("FP16 for FP32", &["temperature"], plain().input(raw(dtype::FP16, vec![0, 0x38]))),
        case("text for a number", &["temperature"], plain().input(word("temperature", "0.5"))),
        case("too few bytes", &["temperature"], plain().input(raw(dtype::FP32, vec![0; 3]))),
        case("too many bytes", &["temperature"], plain().input(raw(dtype::FP32, vec![0; 8]))),
        case("a text longer than its tensor", &["stop_words"], plain().input(prefix)),
        case("no prompt", &["text_input", "input_ids"], no_prompt),
        case("a tensor twice", &["temperature"], shaped(&[1, 1], &[0.5]).input(float("temperature", 0.6))),
        case("an unknown tensor", &["input_"], unknown(1)),
        case("10,000 tensors", &["input_"], unknown(10_000)),
        case("10,000 outputs", &["output_"], outputs(10_000)),
    ];
    let outcomes = sweep(&model, cases);
    for at in [3, 4, 7, 8, 10, 11] {
        assert!(outcomes[at].is_err(), "case {at}: {:?}", outcomes[at]);
    }
}

#[test]
fn t03_t04_t05_prompts() {
    let server = start();
    let model = load(&server);
    let long = ["prompt", "input", "tokens", "max_seq_len"];
    let mut cases = Vec::new();
    for len in [0, 1, MAX_SEQ_LEN - 1, MAX_SEQ_LEN, MAX_SEQ_LEN + 1, 500_000] {
        cases.push(case(format!("{len} tokens"), &long, by_ids(&vec![7; len])));
    }
    for ids in [vec![-1], vec![VOCAB], vec![i32::MAX, 3], vec![i32::MIN], vec![0], vec![2], vec![EOS], vec![EOS; 9]] {
        cases.push(case(format!("ids {ids:?}"), &["input_ids"], by_ids(&ids)));
    }
    let words =
        ["\0", "\u{FEFF}x", "\u{202E}rtl", " ", "", "日本", "<|im_start|>system\n", "</s><s>[INST]", "\u{1}\u{2}\u{3}"];
    let texts: Vec<Vec<u8>> = words.iter().map(|text| text.as_bytes().to_vec()).collect();
    let wrong = [vec![0xC3, 0x28], vec![0xED, 0xA0, 0x80], vec![0xFF], vec![b'a', 0xF0, 0x9F]];
    let large = ["x".repeat(1 << 20), "e".to_owned() + &"\u{301}".repeat(100_000), "a b ".repeat(1 << 18)];
    let large: Vec<Vec<u8>> = large.into_iter().map(String::into_bytes).collect();
    for (number, text) in texts.into_iter().chain(wrong).chain(large).enumerate() {
        cases.push(case(format!("text {number}"), &["text_input", "Prompt length"], by_text(&text)));
    }
    let outcomes = sweep(&model, cases);
    let errors: Vec<_> = (0..6).map(|at| outcomes[at].is_err()).collect();
    assert_eq!(errors, [true, false, false, true, true, true], "{:?}", &outcomes[..6]);
    assert!(outcomes[6..10].iter().all(Result::is_err), "ids outside of the vocabulary");
    assert!(outcomes[outcomes.len() - 2..].iter().all(Result::is_err), "texts that are too long");
}

#[test]
fn t06_t07_stop_lists_and_what_forbids_everything() {
    let server = start();
    let model = load(&server);
    let first = answer(&model.infer(plain()));
    let tokenizer = Tokenizer::load(&demo_dir()).unwrap();
    let first_text = tokenizer.decode(&first.tokens[..1], true);
    let many: Vec<String> = (0..10_000).map(|number| format!("w{number}")).collect();
    let lists: Vec<Vec<String>> = vec![
        vec![String::new()],
        many,
        vec!["x".repeat(1 << 20)],
        vec!["a".into(), "ab".into(), "abc".into()],
        vec![first.text.clone()],
        vec![first_text],
        vec!["(a|b)*[".into()],
        vec!["\u{FFFD}".into()],
    ];
    let mut cases = Vec::new();
    for name in ["stop_words", "bad_words"] {
        for (number, list) in lists.iter().enumerate() {
            let texts: Vec<&str> = list.iter().map(String::as_str).collect();
            let tensor = Tensor::strings(name, &[1, texts.len() as i64], &texts);
            cases.push(case(format!("{name} {number}"), &[name, "leave no token"], plain().input(tensor)));
        }
        // In the middle of a character of several bytes.
        let bytes = vec![1, 0, 0, 0, 0xC3];
        let tensor = Tensor { name: name.into(), dtype: dtype::BYTES, shape: vec![1, 1], bytes };
        cases.push(case(format!("{name} half a character"), &[name], plain().input(tensor)));
    }
    let forbidding = cases.len();
    let bias = |value: f32, eos: f32| {
        let values: Vec<f32> = (0..VOCAB).map(|id| if id == EOS { eos } else { value }).collect();
        let bias = Tensor::fp32("embedding_bias", &[1, i64::from(VOCAB)], &values);
        plain().input(bias).input(int("min_tokens", 0))
    };
    let inf = f32::INFINITY;
    let names = ["embedding_bias", "leave no token"];
    cases.push(case("everything forbidden", &names, bias(-inf, -inf)));
    cases.push(case("all but the end forbidden", &names, bias(-inf, 0.0)));
    cases.push(case("an infinite bias", &names, bias(inf, 0.0)));
    cases.push(case("no number", &names, bias(f32::NAN, 0.0)));
    cases.push(case("the end id forbidden", &names, bias(0.0, -inf).input(int("end_id", EOS))));
    let outcomes = sweep(&model, cases);
    assert!(outcomes[forbidding].is_err() && outcomes[forbidding + 2].is_err() && outcomes[forbidding + 3].is_err());
    assert_eq!(outcomes[forbidding + 1].as_ref().unwrap().tokens, [0; 0], "the end is all that is left");
    assert_eq!(outcomes[4].as_ref().unwrap().text, first.text, "a stop text that spans all tokens");
}

#[test]
fn t08_t09_grammars() {
    let server = start();
    let model = load(&server);
    let names = ["guided_decoding_guide", "guided decoding", "the guide leave no token"];
    let deep = format!("{}{}", "{\"items\":".repeat(10_000), "{}".to_owned() + &"}".repeat(10_000));
    let large = format!("{{\"enum\": [{}1]}}", "\"aaaaaaaaaaaaaaaa\", ".repeat(53_000));
    let grammars: Vec<(&str, String)> = vec![
        ("json_schema", "{".into()),
        ("json_schema", r##"{"$ref": "#"}"##.into()),
        ("json_schema", r##"{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}"##.into()),
        ("json_schema", large),
        ("json_schema", deep),
        ("regex", "(a+)+b".into()),
        ("regex", ".{1,100000}".into()),
        ("json_schema", r#"{"type": "string", "minLength": 5, "maxLength": 2}"#.into()),
        ("json_schema", r#"{"allOf": [{"type": "null"}, {"type": "integer"}]}"#.into()),
        ("json_schema", "".into()),
        ("json_schema", "false".into()),
        ("json_schema", "{}".into()),
        ("json", "false".into()),
        ("lark", "start: \"x\" start".into()),
    ];
    let mut cases = Vec::new();
    for (number, (kind, guide)) in grammars.iter().enumerate() {
        cases.push(case(format!("guide {number}"), &names, guided(plain(), kind, guide)));
    }
    let stopped = guided(plain(), "regex", "abc").input(Tensor::strings("stop_words", &[1, 1], &["b"]));
    cases.push(case("a stop text within the guide", &names, stopped));
    let banned = guided(plain(), "regex", "[ab]").input(Tensor::strings("bad_words", &[1, 2], &["a", "b"]));
    cases.push(case("a dead end", &names, banned));
    cases.push(case("one token", &names, guided(ask("Once", 1), "json", "")));
    let outcomes = sweep(&model, cases);
    assert!([0, 4, 9, 10].iter().all(|&at: &usize| outcomes[at].is_err()), "{outcomes:?}");
    assert!(outcomes[14].as_ref().unwrap().text.starts_with('a'));
    // Many, then a known one.
    let known = || guided(plain(), "regex", "known");
    let before = answer(&model.infer(known()));
    let many =
        (0..200).map(|number| case("another", &names, guided(plain(), "regex", &format!("x{number}y")))).collect();
    assert!(sweep(&model, many).iter().all(Result::is_ok));
    assert_eq!(answer(&model.infer(known())), before);
}
