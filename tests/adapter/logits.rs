//! Logits and performance figures as outputs.

use half::f16;

use crate::fake::{ModelSpec, Reply, RequestSpec, Tensor, dtype};
use crate::script::{EOS, VOCAB, error, flag, int, model, request, start, text_model};

const PROMPT: [i32; 3] = [5, 6, 7];

/// Shape, and for each row the token that the script gives a logit to.
fn rows(reply: &Reply, name: &str) -> (Vec<i64>, Vec<i32>) {
    let output = reply.output(name).unwrap_or_else(|| panic!("{name}"));
    let logits = output.to_fp32();
    let token = |row: &[f32]| {
        let token = row.iter().position(|&logit| logit != 0.0).unwrap();
        assert_eq!(row[token], token as f32 / 2.0);
        token as i32
    };
    (output.shape.clone(), logits.chunks(VOCAB).map(token).collect())
}

fn asks(spec: RequestSpec) -> RequestSpec {
    spec.input(flag("return_context_logits")).input(flag("return_generation_logits"))
}

#[test]
fn s3_1_logits_come_with_their_shapes_behind_the_tokens() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let replies = model.infer(asks(request(&PROMPT, 2)).input(flag("return_log_probs")));
    let vocab = VOCAB as i64;
    assert_eq!(rows(&replies[0], "context_logits"), (vec![1, 3, vocab], vec![5, 6, 7]));
    assert_eq!(rows(&replies[0], "generation_logits"), (vec![1, 1, 2, vocab], vec![7, 20]));
    let names: Vec<_> = replies[0].outputs.iter().map(|output| output.name.as_str()).collect();
    let order =
        ["output_ids", "sequence_length", "context_logits", "generation_logits", "output_log_probs", "cum_log_probs"];
    assert_eq!(names, order);
    let again = model.infer(asks(request(&PROMPT, 2)));
    assert_eq!(rows(&again[0], "context_logits").1, [5, 6, 7], "what is cached is computed again");
}

#[test]
fn s3_3_streams_repeat_context_logits_and_have_those_of_their_own_tokens() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let replies = model.infer(asks(request(&PROMPT, 9)).input(flag("streaming")).input(int("end_id", EOS)));
    let vocab = VOCAB as i64;
    assert_eq!(replies.len(), 3);
    assert!(replies.iter().all(|reply| rows(reply, "context_logits") == (vec![1, 3, vocab], vec![5, 6, 7])));
    let generation: Vec<_> = replies.iter().map(|reply| rows(reply, "generation_logits")).collect();
    let expected = [(vec![1, 1, 1, vocab], vec![7]), (vec![1, 1, 1, vocab], vec![20]), (vec![1, 0, 1, vocab], vec![])];
    assert_eq!(generation, expected);
}

#[test]
fn s3_2_logits_that_are_not_listed_or_not_asked_for_are_absent() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let mut unlisted = asks(request(&PROMPT, 2));
    unlisted.outputs.retain(|name| name != "context_logits");
    let reply = &model.infer(unlisted)[0];
    assert!(reply.output("context_logits").is_none() && reply.output("generation_logits").is_some());
    let reply = &model.infer(request(&PROMPT, 2).input(flag("return_context_logits")))[0];
    assert!(reply.output("context_logits").is_some() && reply.output("generation_logits").is_none());
}

#[test]
fn s3_logits_of_a_long_prompt_and_of_several_sequences() {
    let server = start();
    let model = server.load(model("llm", true, &[("max_batch_size", "4")])).unwrap();
    let long: Vec<i32> = (0..1300).map(|at| 100 + at % 150).collect();
    let replies = model.infer(asks(request(&long, 2)).input(int("num_return_sequences", 2)));
    assert_eq!(replies.len(), 2);
    for reply in &replies {
        assert!(rows(reply, "context_logits").1 == long);
        assert_eq!(rows(reply, "generation_logits").0, [1, 1, 2, VOCAB as i64]);
    }
}

fn with_logits_type(mut spec: ModelSpec, name: &str) -> ModelSpec {
    let output =
        |name: &str, data_type: &str| serde_json::json!({ "name": name, "data_type": data_type, "dims": [-1] });
    let given = [
        output("output_ids", "TYPE_INT32"),
        output("sequence_length", "TYPE_INT32"),
        output("generation_logits", name),
        output("context_logits", "TYPE_FP32"),
    ];
    spec.config["output"] = given.into();
    spec
}

#[test]
fn s3_5_the_first_declared_type_is_that_of_logits() {
    let server = start();
    let half = server.load(with_logits_type(model("llm", false, &[]), "TYPE_FP16")).unwrap();
    let mut spec = asks(request(&PROMPT, 2));
    spec.outputs.truncate(4);
    let replies = half.infer(spec.clone());
    for name in ["context_logits", "generation_logits"] {
        let output = replies[0].output(name).unwrap();
        assert_eq!(output.dtype, dtype::FP16);
        let logit = |at: usize| f16::from_le_bytes(output.bytes[2 * at..][..2].try_into().unwrap()).to_f32();
        let first = if name == "context_logits" { 5 } else { 7 };
        assert_eq!(logit(first), first as f32 / 2.0);
    }
    let other = server.load(with_logits_type(model("bf16", false, &[]), "TYPE_BF16")).unwrap();
    let (_, text) = error(&other.infer(spec));
    assert!(text.contains("Error encountered while populating response: logits are declared as TYPE_BF16"), "{text}");
    let mut plain = request(&PROMPT, 2);
    plain.outputs.truncate(4);
    assert_eq!(other.infer(plain)[0].error, None);
}

#[test]
fn a_text_that_stops_a_sequence_ends_its_logits_too() {
    let server = start();
    let model = server.load(text_model("llm", &[])).unwrap();
    let spec = request(&PROMPT, 50).input(flag("return_generation_logits"));
    let replies = model.infer(spec.input(Tensor::strings("stop_words", &[1, 1], &["story"])));
    let length = replies[0].output("sequence_length").unwrap().to_int32()[0] - 3;
    assert!(length < 50);
    assert_eq!(replies[0].output("generation_logits").unwrap().shape[2], i64::from(length));
}

#[test]
fn s3_4_the_reference_values_of_reused_and_new_blocks() {
    let server = start();
    let model = server.load(model("llm", true, &[("enable_kv_cache_reuse", "true")])).unwrap();
    let prompt: Vec<i32> = (0..230).map(|at| 100 + at % 150).collect();
    for expected in [[4, 0, 4], [1, 4, 1]] {
        let reply = &model.infer(request(&prompt, 50).input(flag("return_perf_metrics")))[0];
        let number = |name: &str| reply.output(name).unwrap().to_int32()[0];
        let blocks = ["kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"];
        assert_eq!(blocks.map(number), expected);
        assert_eq!(reply.output("acceptance_rate").unwrap().to_fp32(), [0.0]);
        assert_eq!([number("total_accepted_draft_tokens"), number("total_draft_tokens")], [0, 0]);
    }
}
