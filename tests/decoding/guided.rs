//! Answers that follow a guide.

use serde_json::Value;
use triton_trtllm::text::Tokenizer;

use crate::common::{Answer, answer, ask, demo, demo_dir, error, float, guided, int, start, word};
use crate::fake::{RequestSpec, Tensor};

const MAX_TOKENS: i32 = 120;

fn sampled(request: RequestSpec, seed: u64) -> RequestSpec {
    request.input(float("top_p", 0.95)).input(Tensor::uint64("seed", &[1, 1], &[seed]))
}

fn is_complete(answer: &Answer) -> bool {
    answer.tokens.len() < MAX_TOKENS as usize
}

/// Schemas, and what every answer must be: written by hand, not by the engine that guides.
#[expect(clippy::type_complexity, reason = "a table")]
const CORPUS: &[(&str, fn(&Value) -> bool)] = &[
    (r#"{"type": "integer", "minimum": -5, "maximum": 17}"#, |v| (-5..=17).contains(&v.as_i64().unwrap())),
    (r#"{"type": "boolean"}"#, |v| v.is_boolean()),
    (r#"{"enum": ["red", 7, null, {"a": [1]}]}"#, |v| {
        ["\"red\"", "7", "null", "{\"a\":[1]}"].contains(&&*v.to_string())
    }),
    (r#"{"const": "fixed — é"}"#, |v| v == "fixed — é"),
    (r#"{"type": "string", "minLength": 2, "maxLength": 6}"#, |v| {
        (2..=6).contains(&v.as_str().unwrap().chars().count())
    }),
    (r#"{"type": "string", "pattern": "^[a-c]{3}-[0-9]{2}$"}"#, |v| {
        let text = v.as_str().unwrap().as_bytes();
        text.len() == 6 && text[..3].iter().all(|b| b"abc".contains(b)) && text[3] == b'-' && text[4..].is_ascii()
    }),
    (
        r#"{"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 4}"#,
        |v| {
            let items = v.as_array().unwrap();
            (2..=4).contains(&items.len()) && items.iter().all(|item| (0..10).contains(&item.as_i64().unwrap()))
        },
    ),
    (
        r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer",
            "minimum": 0, "maximum": 120}}, "required": ["name", "age"], "additionalProperties": false}"#,
        |v| {
            v.as_object().unwrap().len() == 2
                && v["name"].is_string()
                && (0..=120).contains(&v["age"].as_i64().unwrap())
        },
    ),
    (
        r##"{"$defs": {"leaf": {"enum": [1, 2]}, "tree": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "array",
            "items": {"$ref": "#/$defs/tree"}, "minItems": 1, "maxItems": 2}]}}, "$ref": "#/$defs/tree"}"##,
        |v| {
            fn tree(v: &Value) -> bool {
                v == 1
                    || v == 2
                    || v.as_array().is_some_and(|items| (1..3).contains(&items.len()) && items.iter().all(tree))
            }
            tree(v)
        },
    ),
    (
        r#"{"type": "object", "properties": {"on": {"type": "boolean"}, "at": {"type": "string", "format": "date"}},
            "required": ["on"], "additionalProperties": false}"#,
        |v| v["on"].is_boolean() && v.as_object().unwrap().keys().all(|key| key == "on" || key == "at"),
    ),
];

#[test]
fn every_completed_answer_fits_its_schema() {
    let server = start();
    let model = demo(&server, &[]);
    let requests = |seed| {
        let request = move |(schema, _): &(&str, _)| {
            sampled(guided(ask("Once upon a time", MAX_TOKENS), "json_schema", schema), seed)
        };
        CORPUS.iter().map(request).collect::<Vec<_>>()
    };
    let mut completed = 0;
    for seed in 0..3 {
        let tickets = model.execute(requests(seed));
        for (ticket, (schema, fits)) in tickets.into_iter().zip(CORPUS) {
            let answer = answer(&ticket.wait());
            if is_complete(&answer) {
                let value: Value =
                    serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{schema}: {answer:?}: {e}"));
                assert!(fits(&value), "{schema}: {}", answer.text);
                completed += 1;
            }
        }
    }
    assert!(completed >= 2 * CORPUS.len(), "{completed} of {} answers are complete", 3 * CORPUS.len());
}

#[test]
fn every_kind_of_guide_guides() {
    let server = start();
    let model = demo(&server, &[]);
    let run = |kind: &str, guide: &str| {
        let answer = answer(&model.infer(sampled(guided(ask("Once", MAX_TOKENS), kind, guide), 3)));
        assert!(is_complete(&answer), "{kind}: {answer:?}");
        answer.text
    };
    let number = run("regex", "[0-9]{3}");
    assert!(number.len() == 3 && number.bytes().all(|byte| byte.is_ascii_digit()), "{number}");
    assert!(["left", "right, of course"].contains(&&*run("choice", r#"["left", "right, of course"]"#)));
    let nested = run("ebnf_grammar", "root ::= \"(\" root \")\" | \"x\" | \"y\"");
    assert_eq!(nested.matches('(').count(), nested.matches(')').count(), "{nested}");
    assert_eq!(run("lark", "start: \"a\" \"b\"~3"), "abbb");
    let tag = r#"{"type": "structural_tag", "format": {"type": "tag", "begin": "<n>", "content": {"type": "json_schema",
        "json_schema": {"type": "integer", "minimum": 1, "maximum": 3}}, "end": "</n>"}}"#;
    assert!(["<n>1</n>", "<n>2</n>", "<n>3</n>"].contains(&&*run("structural_tag", tag)));
    let object = answer(&model.infer(guided(ask("Once", 40), "json", "")));
    assert!(object.text.trim_start().starts_with('{'), "{object:?}");
}

#[test]
fn a_guided_request_in_a_batch_is_its_solo_run_and_leaves_others_alone() {
    let server = start();
    let model = demo(&server, &[]);
    let plain = || ask("Once upon a time", 24);
    let with_guide = |seed| sampled(guided(ask("The end", 24), "regex", "[a-z ]{5,40}\\."), seed);
    let alone = answer(&model.infer(plain()));
    let guided_alone: Vec<_> = (0..4).map(|seed| answer(&model.infer(with_guide(seed)))).collect();
    assert_ne!(guided_alone[0], guided_alone[1]);
    let mut batch: Vec<_> = (0..4).map(with_guide).collect();
    batch.insert(2, plain());
    let mut together: Vec<_> = model.execute(batch).into_iter().map(|ticket| answer(&ticket.wait())).collect();
    assert_eq!(together.remove(2), alone);
    assert_eq!(together, guided_alone);
}

#[test]
fn many_guided_streams_at_once_each_follow_their_own_guide() {
    let server = start();
    let model = demo(&server, &[]);
    let stream = |number: u64| {
        let guide = format!("{number}: [a-f]{{{}}}\\.", 3 + number % 9);
        sampled(guided(ask("Once", MAX_TOKENS), "regex", &guide), number).input(Tensor::bools(
            "streaming",
            &[1, 1],
            &[true],
        ))
    };
    let tickets = model.execute((0..64).map(stream).collect());
    for (number, ticket) in (0..64_u64).zip(tickets) {
        let text = answer(&ticket.wait()).text;
        let letters = text.strip_prefix(&format!("{number}: ")).and_then(|rest| rest.strip_suffix('.'));
        let letters = letters.unwrap_or_else(|| panic!("{number}: {text}"));
        assert!(letters.len() as u64 == 3 + number % 9 && letters.bytes().all(|b| b"abcdef".contains(&b)), "{text}");
    }
}

#[test]
fn drafts_change_no_guided_answer() {
    let server = start();
    let model = demo(&server, &[]);
    let base = || sampled(guided(ask("The end", 40), "regex", "[a-z ]{25}\\."), 5);
    let alone = answer(&model.infer(base()));
    assert!(alone.tokens.len() > 6);
    // A draft that comes true, one that goes wrong on the way, and one that the guide forbids.
    let (mut half, forbidden) = (alone.tokens.clone(), alone.tokens.iter().map(|_| 7).collect());
    half[3] += 1;
    for (draft, least) in [(alone.tokens.clone(), 4), (half, 3), (forbidden, 0)] {
        let draft = Tensor::int32("draft_input_ids", &[1, draft.len() as i64], &draft);
        let replies = model.infer(base().input(draft).input(Tensor::bools("return_perf_metrics", &[1, 1], &[true])));
        assert_eq!(answer(&replies), alone);
        let accepted = replies[0].output("total_accepted_draft_tokens").unwrap().to_int32()[0];
        assert!(accepted >= least, "{accepted} drafts were accepted");
    }
}

#[test]
fn streamed_or_cut_off_the_text_is_the_same() {
    let server = start();
    let model = demo(&server, &[]);
    let request = |max| sampled(guided(ask("Once", max), "regex", "[a-z]{30}"), 5);
    let whole = answer(&model.infer(request(MAX_TOKENS)));
    let streamed = model.infer(request(MAX_TOKENS).input(Tensor::bools("stream", &[1, 1], &[true])));
    assert!(streamed.len() > 3);
    assert_eq!(answer(&streamed), whole);
    let cut = answer(&model.infer(request(1)));
    assert_eq!(cut.tokens, whole.tokens[..1]);
}

#[test]
fn token_requests_are_guided_with_their_own_end_id_or_the_tokenizers() {
    let server = start();
    let model = demo(&server, &[]);
    let prompt = Tokenizer::load(&demo_dir()).unwrap().encode("Once", true).unwrap();
    let request = || {
        let request = RequestSpec::new("").output("output_ids").output("sequence_length").output("text_output");
        let request = request.input(Tensor::int32("input_ids", &[1, prompt.len() as i64], &prompt));
        guided(request.input(int("request_output_len", MAX_TOKENS)), "choice", r#"["one", "two"]"#)
    };
    let by_default = answer(&model.infer(request()));
    assert!(["one", "two"].contains(&&*by_default.text), "{by_default:?}");
    assert_eq!(answer(&model.infer(request().input(int("end_id", 1)))), by_default);
}

#[test]
fn a_complete_answer_ends_even_where_more_tokens_were_asked_for() {
    let server = start();
    let model = demo(&server, &[]);
    let request = guided(ask("Once", MAX_TOKENS), "regex", "ab").input(int("min_tokens", 50));
    assert_eq!(answer(&model.infer(request)).text, "ab");
}

#[test]
fn a_dead_end_ends_its_request_only() {
    let server = start();
    let model = demo(&server, &[]);
    let blocked = guided(ask("Once", 8), "regex", "x+").input(Tensor::strings("bad_words", &[1, 1], &["x"]));
    let batch = vec![ask("Once", 8), blocked];
    let replies: Vec<_> = model.execute(batch).into_iter().map(|ticket| ticket.wait()).collect();
    assert_eq!(answer(&replies[0]), answer(&model.infer(ask("Once", 8))));
    let outcome = &replies[1][0];
    match &outcome.error {
        Some(failure) => assert!(failure.message.contains("guide"), "{failure:?}"),
        // The vocabulary may spell it with longer tokens.
        None => assert!(answer(&replies[1]).text.bytes().all(|byte| byte == b'x')),
    }
}

#[test]
fn what_cannot_be_guided_is_an_error_and_never_free_text() {
    let server = start();
    let model = demo(&server, &[]);
    let message = |request| error(&model.infer(request)).1;
    assert!(message(guided(ask("a", 5), "xml", "x")).contains("guided_decoding_guide_type: \"xml\" is none of json"));
    assert!(message(guided(ask("a", 5), "json_schema", "{")).contains("guided_decoding_guide: the json_schema guide"));
    assert!(message(guided(ask("a", 5), "lark", "")).contains("guided_decoding_guide is missing"));
    assert!(
        message(ask("a", 5).input(word("guided_decoding_guide", "{}"))).contains("without guided_decoding_guide_type")
    );
    assert_eq!(answer(&model.infer(guided(ask("a", 5), "regex", "b"))).text, "b", "the model goes on");
}

#[test]
fn guides_are_refused_where_there_is_no_vocabulary_or_they_are_off() {
    let server = start();
    let off = demo(&server, &[("guided_decoding_backend", "off")]);
    let (code, message) = error(&off.infer(guided(ask("a", 5), "regex", "b")));
    assert!(code == 5 && message.contains("guided_decoding_backend is off"), "{code} {message}");
}

#[test]
fn the_vocabulary_can_come_from_upstreams_file() {
    let folder = tempfile::tempdir().unwrap();
    let weights = ["config.json", "model.safetensors", "generation_config.json"];
    for name in weights {
        std::fs::copy(demo_dir().join(name), folder.path().join(name)).unwrap();
    }
    let tokenizer = std::fs::read_to_string(demo_dir().join("tokenizer.json")).unwrap();
    let info = serde_json::json!({ "encoded_vocab": [], "tokenizer_str": tokenizer, "stop_token_ids": [1] });
    let path = folder.path().join("info.json");
    std::fs::write(&path, info.to_string()).unwrap();
    let server = start();
    let model = demo(
        &server,
        &[
            ("gpt_model_path", folder.path().to_str().unwrap()),
            ("guided_decoding_backend", "xgrammar"),
            ("xgrammar_tokenizer_info_path", path.to_str().unwrap()),
        ],
    );
    let request = RequestSpec::new("").output("output_ids").output("sequence_length");
    let request = request.input(Tensor::int32("input_ids", &[1, 2], &[5, 6])).input(int("request_output_len", 30));
    let replies = model.infer(guided(request, "regex", "(yes|no)"));
    assert_eq!(replies[0].error, None);
    let text = Tokenizer::load(&demo_dir()).unwrap().decode(&replies[0].output("output_ids").unwrap().to_int32(), true);
    assert!(["yes", "no"].contains(&text.trim()), "{text}");
}
