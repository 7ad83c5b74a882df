//! Text in, text out.

use triton_trtllm::text::Tokenizer;

use crate::fake::{ModelSpec, Reply, RequestSpec, Tensor};
use crate::script::{ANSWER, error, flag, int, outputs, start, text_model, tokenizer_dir};

fn prompt(text: &str, max_tokens: i32) -> RequestSpec {
    outputs(RequestSpec::new(""))
        .output("text_output")
        .input(Tensor::strings("text_input", &[1, 1], &[text]))
        .input(int("max_tokens", max_tokens))
}

fn text(replies: &[Reply]) -> String {
    replies.iter().map(|reply| reply.output("text_output").unwrap().to_strings().concat()).collect()
}

fn answer_tokens() -> i32 {
    Tokenizer::load(&tokenizer_dir()).unwrap().encode(ANSWER, false).unwrap().len() as i32
}

#[test]
fn a_text_request_is_answered_with_text_alone() {
    let server = start();
    let model = server.load(text_model("llm", &[])).unwrap();
    let replies = model.infer(prompt("Once", answer_tokens()).input(flag("exclude_input_in_output")));
    assert_eq!(replies.len(), 1);
    let names: Vec<_> = replies[0].outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["text_output"]);
    assert_eq!(replies[0].outputs[0].shape, [1, 1]);
    assert_eq!(text(&replies), ANSWER);
    assert_eq!(text(&model.infer(prompt("Once", answer_tokens()))), format!("Once{ANSWER}"));
}

#[test]
fn the_stream_is_the_whole_text_in_pieces() {
    let server = start();
    let model = server.load(text_model("llm", &[])).unwrap();
    let replies = model.infer(prompt("Once", 3 * answer_tokens()).input(flag("stream")));
    assert!(replies.len() > 20, "{}", replies.len());
    assert_eq!(text(&replies), ANSWER.repeat(3));
}

#[test]
fn listed_outputs_are_obeyed() {
    let server = start();
    let model = server.load(text_model("llm", &[])).unwrap();
    let mut spec = prompt("Once", 4);
    spec.outputs = vec!["text_output".into(), "output_ids".into(), "sequence_length".into()];
    let replies = model.infer(spec);
    let names: Vec<_> = replies[0].outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["output_ids", "sequence_length", "text_output"]);
}

#[test]
fn a_stop_text_ends_the_answer_across_token_borders_and_is_part_of_it() {
    let server = start();
    let model = server.load(text_model("llm", &[])).unwrap();
    let stops = || Tensor::strings("stop_words", &[1, 2], &["nd of th", "zzz"]);
    let streamed = model.infer(prompt("Once", 100_000).input(stops()).input(flag("stream")));
    assert_eq!(text(&streamed), " the end of th");
    let whole = model.infer(prompt("Once", 100_000).input(stops()).input(flag("exclude_input_in_output")));
    assert_eq!(text(&whole), " the end of th");
    let none = model.infer(prompt("Once", 4).input(Tensor::strings("stop_words", &[1, 1], &[""])));
    assert!(none[0].error.is_none());
}

#[test]
fn text_that_is_not_utf8_and_text_without_tokenizer_are_refused() {
    let server = start();
    let model = server.load(text_model("llm", &[])).unwrap();
    let mut bad = prompt("x", 4);
    bad.inputs[0].tensor.bytes = vec![2, 0, 0, 0, 0xFF, 0xFE];
    let (code, message) = error(&model.infer(bad));
    assert_eq!(code, 3);
    assert!(message.contains("text_input is not valid UTF-8"), "{message}");
    drop(model);
    let model = server.load(crate::script::model("llm", true, &[])).unwrap();
    let (_, message) = error(&model.infer(prompt("x", 4)));
    assert!(message.contains("text_input needs a tokenizer"), "{message}");
}

#[test]
fn the_roles_around_the_llm_run_on_their_own_threads() {
    let server = start();
    let folder = tokenizer_dir();
    let load = |role: &str| {
        let parameters = [("model_role", role), ("tokenizer_dir", folder.to_str().unwrap())];
        server.load(ModelSpec::with_parameters(role, &parameters).auto_complete()).unwrap()
    };
    let post = load("postprocessing");
    let ids = Tokenizer::load(&folder).unwrap().encode(ANSWER, false).unwrap();
    let request = |id: &str| {
        RequestSpec::new(id)
            .output("OUTPUT")
            .input(Tensor::int32("TOKENS_BATCH", &[1, 1, ids.len() as i64], &ids))
            .input(Tensor::int32("SEQUENCE_LENGTH", &[1, 1], &[ids.len() as i32]))
    };
    let tickets = post.execute((0..32).map(|id| request(&id.to_string())).collect());
    for ticket in tickets {
        assert_eq!(ticket.wait()[0].output("OUTPUT").unwrap().to_strings(), [ANSWER]);
        assert!(ticket.statistics()[0].success);
    }
    let (code, message) = error(&post.infer(RequestSpec::new("")));
    assert_eq!(code, 3, "{message}");
}
