//! Any values of all knobs: an error that names what is wrong, or a valid answer; and others never notice.

use crate::common::{Answer, answer, ask, demo, int, start};
use crate::fake::{RequestSpec, Tensor, dtype};

const MAX_TOKENS: i32 = 6;
const VOCAB: i32 = 4096;

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn pick<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())].clone()
    }
}

const FLOATS: &[&str] = &[
    "temperature",
    "top_p",
    "runtime_top_p_min",
    "runtime_top_p_decay",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "len_penalty",
    "beam_search_diversity_rate",
    "draft_acceptance_threshold",
];
const INTS: &[&str] = &[
    "top_k",
    "runtime_top_p_reset_ids",
    "min_tokens",
    "prompt_ignore_length",
    "no_repeat_ngram_size",
    "end_id",
    "pad_id",
    "max_tokens",
    "num_return_sequences",
    "stop_token_ids",
    "beam_width",
    "early_stopping",
];
const FLAGS: &[&str] = &[
    "ignore_eos",
    "return_log_probs",
    "include_stop_str_in_output",
    "return_finish_reason",
    "return_seed",
    "stream",
    "exclude_input_in_output",
    "return_num_output_tokens",
];
const GUIDES: &[(&str, &str)] = &[
    ("json", ""),
    ("json", "{}"),
    ("json_schema", "{"),
    ("json_schema", "{}"),
    ("json_schema", "true"),
    ("json_schema", "[]"),
    ("json_schema", r##"{"$ref": "#"}"##),
    ("json_schema", r##"{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}"##),
    ("json_schema", r#"{"type": "string", "minLength": 5, "maxLength": 2}"#),
    ("json_schema", r#"{"allOf": [{"type": "null"}, {"type": "integer"}]}"#),
    ("regex", "(a+)+b"),
    ("regex", ".{1,100000}"),
    ("regex", "["),
    ("regex", ""),
    ("regex", "(?=a)b"),
    ("regex", "\u{FFFD}+"),
    ("ebnf_grammar", "root ::= root"),
    ("ebnf_grammar", "root ::= root \"a\" | \"b\""),
    ("ebnf_grammar", "root ::="),
    ("ebnf_grammar", "x"),
    ("lark", "start: start"),
    ("lark", "start: \"a\"*"),
    ("lark", "%json {"),
    ("choice", "[\"\"]"),
    ("choice", "[1]"),
    ("structural_tag", "{}"),
    ("structural_tag", r#"{"format": {"type": "any_text"}}"#),
    ("xml", "a"),
    ("", "a"),
    ("JSON", ""),
];

fn fuzzed(random: &mut Random) -> Vec<Tensor> {
    let floats =
        [0.0, -0.0, 1.0, 1.0001, -1.0, 1e-30, 1e-45, 1e30, 100.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5];
    let ints = [0, 1, -1, 2, 5, VOCAB - 1, VOCAB, VOCAB + 1, i32::MAX, i32::MIN];
    let one = |name: &str, tensor: Tensor| Tensor { name: name.to_owned(), ..tensor };
    match random.below(14) {
        0..=2 => vec![Tensor::fp32(random.pick(FLOATS), &[1, 1], &[random.pick(&floats)])],
        3..=4 => vec![Tensor::int32(random.pick(INTS), &[1, 1], &[random.pick(&ints)])],
        5 => vec![Tensor::bools(random.pick(FLAGS), &[1, 1], &[random.below(2) == 0])],
        6 => {
            let (kind, guide) = random.pick(GUIDES);
            let text = |name: &str, text: &str| Tensor::strings(name, &[1, 1], &[text]);
            vec![text("guided_decoding_guide_type", kind), text("guided_decoding_guide", guide)]
        }
        7 => {
            let bias = match random.below(4) {
                0 => vec![f32::NEG_INFINITY; VOCAB as usize],
                1 => vec![f32::NAN],
                2 => vec![f32::INFINITY; 3],
                _ => (0..VOCAB).map(|id| if id == 1 { 0.0 } else { f32::NEG_INFINITY }).collect(),
            };
            vec![Tensor::fp32("embedding_bias", &[1, bias.len() as i64], &bias)]
        }
        8 => {
            let name = random.pick(&["stop_words_list", "bad_words_list"]);
            let values = random.pick(&[
                vec![5, 6, 1, 2],
                vec![5, 6, 2, 1],
                vec![5, 6, 3, -1],
                vec![-1, -1, -1, -1],
                vec![5, 6, -1, 2],
                vec![VOCAB, 0, 1, -1],
                vec![5, 6, 0, -1],
            ]);
            vec![Tensor::int32(name, &[1, 2, 2], &values)]
        }
        9 => {
            let name = random.pick(&["stop_words", "bad_words"]);
            let many: Vec<String> = (0..10_000).map(|number| format!("w{number}")).collect();
            let texts = random.pick(&[
                vec![String::new()],
                vec!["e".into()],
                vec!["a".into(), "ab".into()],
                vec!["x".repeat(1 << 20)],
                many,
                vec!["(a|b)*".into()],
                vec!["\0".into(), "é".into()],
            ]);
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            vec![Tensor::strings(name, &[1, texts.len() as i64], &texts)]
        }
        10 => {
            // Another shape, type or no contents.
            let name = random.pick(FLOATS);
            vec![random.pick(&[
                one(name, Tensor::fp32(name, &[1, 2], &[0.5, 0.5])),
                one(name, Tensor::fp32(name, &[1, 0], &[])),
                one(name, Tensor::strings(name, &[1, 1], &["1"])),
                one(name, Tensor::int32(name, &[1, 1], &[1])),
                Tensor { name: name.to_owned(), dtype: dtype::FP32, shape: vec![1, 1], bytes: vec![0; 3] },
            ])]
        }
        11 => {
            let widths =
                random.pick(&[vec![1], vec![2, 3], vec![3, 1, 2], vec![0], vec![4], vec![-1, 2], vec![i32::MAX]]);
            let array = Tensor::int32("beam_width_array", &[1, widths.len() as i64], &widths);
            let width = Tensor::int32("beam_width", &[1, 1], &[random.pick(&[1, 2, 3])]);
            if random.below(2) == 0 { vec![width] } else { vec![width, array] }
        }
        12 => {
            let ids = random.pick(&[vec![5], vec![5, 6, 7], vec![-1], vec![VOCAB], vec![1; 100], vec![]]);
            let rows = random.pick(&[ids.len(), 1, 0]);
            let value = random.pick(&[0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY]);
            let logits = vec![value; rows * VOCAB as usize];
            let ids = Tensor::int32("draft_input_ids", &[1, ids.len() as i64], &ids);
            let logits = Tensor::fp32("draft_logits", &[1, rows as i64, i64::from(VOCAB)], &logits);
            if random.below(2) == 0 { vec![ids] } else { vec![ids, logits] }
        }
        _ => vec![
            Tensor::uint64("seed", &[1, 1], &[random.pick(&[0, 1, u64::MAX])]),
            Tensor::fp32("top_p", &[1, 1], &[0.9]),
        ],
    }
}

fn prompt(random: &mut Random) -> RequestSpec {
    let text = random.pick(&[
        "Once",
        "\0",
        "\u{FEFF}x",
        "\u{202E}rtl",
        "e\u{301}\u{301}\u{301}",
        " ",
        "<|im_start|>system",
        "",
        "日本",
    ]);
    let outputs = RequestSpec::new("").output("text_output").output("output_ids").output("sequence_length");
    match random.below(8) {
        0 => {
            let ids = random.pick(&[vec![0], vec![1], vec![1, 1], vec![-1], vec![VOCAB], vec![i32::MAX, 3], vec![]]);
            outputs.input(Tensor::int32("input_ids", &[1, ids.len() as i64], &ids))
        }
        1 => outputs.input(Tensor {
            name: "text_input".into(),
            dtype: dtype::BYTES,
            shape: vec![1, 1],
            bytes: vec![9, 0, 0, 0, b'a'],
        }),
        2 => outputs.input(Tensor {
            name: "text_input".into(),
            dtype: dtype::BYTES,
            shape: vec![1, 1],
            bytes: vec![2, 0, 0, 0, 0xC3, 0x28],
        }),
        _ => outputs.input(Tensor::strings("text_input", &[1, 1], &[text])),
    }
}

/// What a message may say instead of a name: the passes together have left nothing.
const JOINT: [&str; 3] = ["leave no token", "guided decoding", "prompt"];

#[test]
fn any_values_give_an_error_with_a_name_or_a_valid_answer_and_canaries_live() {
    let server = start();
    let model = demo(&server, &[("max_seq_len", "64"), ("max_beam_width", "3")]);
    let canary = || ask("Once upon a time", MAX_TOKENS);
    let expected = answer(&model.infer(canary()));
    let mut random = Random(0x5EED);
    let (mut errors, mut answers) = (0, 0);
    for _ in 0..25 {
        let mut batch = vec![canary()];
        for _ in 0..12 {
            let mut request = prompt(&mut random);
            let mut tensors = vec![int("max_tokens", MAX_TOKENS)];
            for _ in 0..=random.below(3) {
                tensors.extend(fuzzed(&mut random));
            }
            // The last one of a name counts.
            for (index, tensor) in tensors.iter().enumerate() {
                if tensors[index + 1..].iter().all(|later| later.name != tensor.name) {
                    request = request.input(tensor.clone());
                }
            }
            batch.push(request);
        }
        let names: Vec<Vec<String>> = batch
            .iter()
            .map(|request| request.inputs.iter().map(|input| input.tensor.name.clone()).collect())
            .collect();
        let mut outcomes: Vec<_> = model.execute(batch).into_iter().map(|ticket| ticket.wait()).collect();
        assert_eq!(answer(&outcomes.remove(0)), expected, "the canary");
        for (replies, names) in outcomes.iter().zip(&names[1..]) {
            assert!(replies.last().is_some_and(|reply| reply.is_final), "{names:?}");
            let failures: Vec<_> = replies.iter().filter_map(|reply| reply.error.as_ref()).collect();
            for failure in &failures {
                let message = &failure.message;
                let named = names.iter().map(String::as_str).chain(JOINT).any(|name| message.contains(name));
                let alias =
                    [("max_tokens", "request_output_len"), ("top_p", "runtime_top_p"), ("top_k", "runtime_top_k")];
                let aliased =
                    alias.iter().any(|(given, name)| names.iter().any(|n| n == given) && message.contains(name));
                assert!(named || aliased, "{names:?}: {message}");
            }
            errors += usize::from(!failures.is_empty());
            if failures.is_empty() {
                let Answer { tokens, .. } = answer(replies);
                // Beams of other lengths are padded.
                let least = if names.iter().any(|name| name == "beam_width") { -1 } else { 0 };
                assert!(tokens.iter().all(|id| (least..VOCAB).contains(id)), "{names:?}: {tokens:?}");
                answers += 1;
            }
        }
    }
    assert!(errors > 60 && answers > 60, "{errors} errors and {answers} answers");
    assert_eq!(answer(&model.infer(canary())), expected);
}
