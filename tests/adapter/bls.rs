//! `tensorrt_llm_bls` (contract 6.4) with the models that it calls, all of them behind the stand-in server.

use std::sync::LazyLock;

use tempfile::TempDir;
use triton_trtllm::text::Tokenizer;

use crate::fake::{LoadedModel, ModelSpec, Reply, RequestSpec, Server, Tensor};
use crate::operation::until;
use crate::script::{ANSWER, DRAFT, DRAFT_PERIOD, error, flag, start, text_model, tokenizer_dir, with_id};

const INVALID_ARG: u32 = 3;
const PROMPT: &str = "Once";

/// The script's tokenizer with a token for the end, which the script never says.
static TOKENIZER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tokenizer_dir().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{ "eos_token": "~" }"#).unwrap();
    folder
});

pub fn role(name: &str, parameters: &[(&str, &str)]) -> ModelSpec {
    let mut given = vec![("model_role", name), ("tokenizer_dir", TOKENIZER.path().to_str().unwrap())];
    given.extend_from_slice(parameters);
    ModelSpec::with_parameters(name, &given).auto_complete()
}

fn bls(decoupled: bool, parameters: &[(&str, &str)]) -> ModelSpec {
    let mut spec = role("bls", parameters);
    spec.config["parameters"].as_object_mut().unwrap().remove("tokenizer_dir");
    spec.config["model_transaction_policy"] = serde_json::json!({ "decoupled": decoupled });
    spec
}

/// The LLM with the script's tokenizer.
pub fn llm(name: &str, decoupled: bool) -> ModelSpec {
    let mut spec = text_model(name, &[]);
    spec.config["model_transaction_policy"] = serde_json::json!({ "decoupled": decoupled });
    spec
}

/// The models that the role calls.
fn surroundings(server: &Server, decoupled: bool) -> [LoadedModel<'_>; 3] {
    [role("preprocessing", &[]), role("postprocessing", &[]), llm("tensorrt_llm", decoupled)]
        .map(|spec| server.load(spec).unwrap())
}

fn ask(max_tokens: i32) -> RequestSpec {
    let spec = RequestSpec::new("mine").input(Tensor::strings("text_input", &[1, 1], &[PROMPT])).input(Tensor::int32(
        "max_tokens",
        &[1, 1],
        &[max_tokens],
    ));
    ["text_output", "cum_log_probs", "output_log_probs", "sequence_index", "batch_index"]
        .into_iter()
        .fold(spec, RequestSpec::output)
}

fn drafted(max_tokens: i32, drafts: i32) -> RequestSpec {
    ask(max_tokens).input(Tensor::int32("num_draft_tokens", &[1, 1], &[drafts]))
}

fn text(reply: &Reply) -> String {
    assert_eq!(reply.error, None);
    let text = reply.output("text_output").expect("a text");
    assert_eq!(text.shape, [1], "no batch dimension");
    text.to_strings().remove(0)
}

/// The first tokens of the script as text.
fn said(tokens: usize) -> String {
    let tokenizer = Tokenizer::load(&tokenizer_dir()).unwrap();
    let answer = tokenizer.encode(ANSWER, false).unwrap();
    let ids: Vec<_> = answer.iter().cycle().take(tokens).copied().collect();
    tokenizer.decode(&ids, true)
}

#[test]
fn s6_4_not_decoupled_it_answers_once_with_prompt_and_answer() {
    let server = start();
    let _models = surroundings(&server, false);
    let bls = server.load(bls(false, &[])).unwrap();
    let ticket = bls.execute(vec![ask(12)])[0];
    let replies = ticket.wait();
    assert_eq!((replies.len(), replies[0].is_final), (1, true));
    assert_eq!(text(&replies[0]), format!("{PROMPT}{}", said(12)));
    assert!(ticket.statistics()[0].success && ticket.statistics().len() == 1);
    let excluded = bls.infer(ask(12).input(flag("exclude_input_in_output")));
    assert_eq!(text(&excluded[0]), said(12));
    let log_probs = bls.infer(ask(3).input(flag("return_log_probs")));
    assert_eq!(log_probs[0].output("output_log_probs").unwrap().to_fp32(), [-0.5; 3]);
    assert_eq!(log_probs[0].output("batch_index"), None);
}

#[test]
fn s6_4_decoupled_it_streams_and_ends_with_the_flag_alone() {
    let server = start();
    let _models = surroundings(&server, true);
    let pieces = server.load(bls(true, &[])).unwrap();
    let replies = pieces.infer(ask(9).input(flag("stream")));
    assert_eq!(replies.len(), 9);
    assert!(replies.iter().all(|reply| !reply.is_final), "FINAL comes behind the data");
    assert_eq!(replies.iter().map(text).collect::<String>(), said(9));
    drop(pieces);
    let growing = server.load(bls(true, &[("accumulate_tokens", "true")])).unwrap();
    let texts: Vec<_> = growing.infer(ask(9).input(flag("stream"))).iter().map(text).collect();
    assert_eq!(texts.last().unwrap(), &said(9));
    assert!(texts.windows(2).all(|pair| pair[1].starts_with(pair[0].trim_end_matches('\u{fffd}'))), "{texts:?}");
}

#[test]
fn s6_4_a_batch_is_answered_item_by_item() {
    let server = start();
    let _models = surroundings(&server, true);
    let bls = server.load(bls(true, &[])).unwrap();
    let batch = RequestSpec::new("")
        .input(Tensor::strings("text_input", &[2, 1], &[PROMPT, "the story"]))
        .input(Tensor::int32("max_tokens", &[2, 1], &[4, 4]))
        .output("text_output")
        .output("batch_index");
    let replies = bls.infer(batch);
    let mut texts: Vec<_> =
        replies.iter().map(|reply| (reply.output("batch_index").unwrap().to_int32()[0], text(reply))).collect();
    texts.sort();
    assert_eq!(texts, [(0, format!("{PROMPT}{}", said(4))), (1, format!("the story{}", said(4)))]);
}

#[test]
fn s6_4_a_stop_word_in_the_text_frees_the_llm() {
    let server = start();
    let models = surroundings(&server, true);
    let bls = server.load(bls(true, &[])).unwrap();
    let stop = "end of";
    let endless = ask(1_000_000).input(flag("stream")).input(Tensor::strings("stop_words", &[1, 1], &[stop]));
    let told: String = bls.infer(endless).iter().map(text).collect();
    assert_eq!(told, ANSWER[..ANSWER.find(stop).unwrap() + stop.len()]);
    until(|| active(&server) == 0.0);
    drop((bls, models));
}

fn active(server: &Server) -> f64 {
    let labels = [("model", "tensorrt_llm"), ("request_type", "active")];
    server.metric("nv_trt_llm_request_metrics", &labels).unwrap().value
}

#[test]
fn s6_4_a_client_that_goes_away_frees_the_llm() {
    let server = start();
    let _models = surroundings(&server, true);
    let bls = server.load(bls(true, &[])).unwrap();
    let ticket = bls.execute(vec![ask(1_000_000).input(flag("stream"))])[0];
    ticket.wait_for(2);
    until(|| active(&server) == 1.0);
    ticket.cancel();
    ticket.wait();
    until(|| active(&server) == 0.0);
}

#[test]
fn s6_4_requests_run_side_by_side_with_ids_of_their_own() {
    let server = start();
    let _models = surroundings(&server, true);
    let bls = server.load(bls(true, &[])).unwrap();
    let tickets = bls.execute((0..24).map(|_| with_id(ask(30), "same")).collect());
    for ticket in tickets {
        assert_eq!(text(&ticket.wait()[0]), format!("{PROMPT}{}", said(30)));
    }
}

#[test]
fn s6_4_errors_say_which_model_said_what() {
    let server = start();
    let [pre, post, llm] = surroundings(&server, false);
    let bls = server.load(bls(false, &[("tensorrt_llm_model_name", "another")])).unwrap();
    let (_, message) = error(&bls.infer(ask(3)));
    assert!(message.contains("\"another\"") && message.contains("Request for unknown model"), "{message}");
    drop(bls);
    let bls = server.load(self::bls(false, &[])).unwrap();
    let (code, message) = error(&bls.infer(ask(3).input(Tensor::int32("beam_width", &[1, 1], &[0]))));
    assert!(code == INVALID_ARG || message.contains("tensorrt_llm"), "{code} {message}");
    for (spec, fragment) in [
        (ask(0), "max_tokens must be a single value > 0"),
        (drafted(3, 2), "which needs the parameter tensorrt_llm_draft_model_name"),
        (ask(3).input(Tensor::int32("surprise", &[1, 1], &[0])), "input `surprise` is unknown"),
    ] {
        let (code, message) = error(&bls.infer(spec));
        assert!(code == INVALID_ARG && message.contains(fragment), "{message}");
    }
    drop(post);
    let (_, message) = error(&bls.infer(ask(3)));
    assert!(message.contains("model \"postprocessing\""), "{message}");
    drop((bls, llm, pre));
}

#[test]
fn s6_4_both_models_must_have_the_same_policy() {
    let server = start();
    let _models = surroundings(&server, true);
    let bls = server.load(bls(false, &[])).unwrap();
    let (code, message) = error(&bls.infer(ask(3).input(flag("stream"))));
    assert!(code == INVALID_ARG && message.contains("both must have the same policy"), "{message}");
}

/// Requests that a model has ended.
fn completed(server: &Server, model: &str) -> f64 {
    server.metric("nv_llm_requests", &[("model", model), ("outcome", "completed")]).unwrap().value
}

#[test]
fn s6_4_a_draft_model_changes_the_number_of_calls_and_not_the_answer() {
    let server = start();
    let _models = surroundings(&server, false);
    let _draft = server.load(llm(DRAFT, false)).unwrap();
    let bls = server.load(bls(false, &[("tensorrt_llm_draft_model_name", DRAFT)])).unwrap();
    for (drafts, tokens) in [(1, 7), (4, 13), (20, 30)] {
        let (before, drafted_before) = (completed(&server, "tensorrt_llm"), completed(&server, DRAFT));
        let replies = bls.infer(drafted(tokens, drafts));
        assert_eq!(text(&replies[0]), format!("{PROMPT}{}", said(tokens as usize)), "{drafts} drafts");
        until(|| completed(&server, DRAFT) > drafted_before);
        let calls = completed(&server, "tensorrt_llm") - before;
        assert!(calls < f64::from(tokens), "{drafts} drafts took {calls} calls for {tokens} tokens");
        if drafts >= DRAFT_PERIOD as i32 {
            assert!(calls <= f64::from(tokens) / DRAFT_PERIOD as f64 + 2.0, "{calls}");
        }
    }
    let excluded = bls.infer(drafted(9, 3).input(flag("exclude_input_in_output")));
    assert_eq!(text(&excluded[0]), said(9));
    let plain = bls.infer(ask(9));
    assert_eq!(text(&plain[0]), format!("{PROMPT}{}", said(9)), "without drafts the LLM is asked alone");
}
