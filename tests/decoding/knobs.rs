//! One effect of every knob, alone and in one batch of all of them.

use std::collections::HashSet;

use triton_trtllm::text::Tokenizer;

use crate::common::{Answer, answer, ask, demo, demo_dir, device, float, int, start};
use crate::fake::{LoadedModel, Reply, RequestSpec, Tensor};

const PROMPT: &str = "Once upon a time there was a little girl. Once upon a time there was a";
const TOKENS: i32 = 20;
const VOCAB: usize = 4096;
const EOS: i32 = 1;
const FULL_STOP: i32 = 16;

fn plain() -> RequestSpec {
    ask(PROMPT, TOKENS)
}

fn drawn(seed: u64) -> RequestSpec {
    plain().input(float("top_p", 1.0)).input(float("temperature", 1.5)).input(seed_of(seed))
}

fn seed_of(seed: u64) -> Tensor {
    Tensor::uint64("seed", &[1, 1], &[seed])
}

fn flag(name: &str, value: bool) -> Tensor {
    Tensor::bools(name, &[1, 1], &[value])
}

fn ids(name: &str, ids: &[i32]) -> Tensor {
    Tensor::int32(name, &[1, ids.len() as i64], ids)
}

/// One word as a word list.
fn words(name: &str, word: &[i32]) -> Tensor {
    let mut values = word.to_vec();
    values.push(word.len() as i32);
    values.extend(std::iter::repeat_n(-1, word.len() - 1));
    Tensor::int32(name, &[1, 2, word.len() as i64], &values)
}

fn bias(changes: &[(usize, f32)]) -> Tensor {
    let mut values = vec![0.0; VOCAB];
    changes.iter().for_each(|&(id, value)| values[id] = value);
    Tensor::fp32("embedding_bias", &[1, VOCAB as i64], &values)
}

fn are_distinct(tokens: &[i32]) -> bool {
    tokens.iter().collect::<HashSet<_>>().len() == tokens.len()
}

type Effect<'a> = Box<dyn Fn(&Answer) -> bool + 'a>;

/// Name, request, and what the answer shows.
#[rustfmt::skip]
fn knobs<'a>(greedy: &'a Answer, sampled: &'a Answer, decayed: &'a Answer, prompt: &'a [i32]) -> Vec<(&'static str, RequestSpec, Effect<'a>)> {
    let (t, first) = (&greedy.tokens, greedy.tokens[0]);
    let is_greedy = move |a: &Answer| a == greedy;
    let changed = move |a: &Answer| a.tokens.len() == TOKENS as usize && a != sampled;
    let end = t.iter().position(|&token| token == t[5]).unwrap();
    vec![
        ("temperature", drawn(7).input(float("min_p", 0.0)), Box::new(move |a| a == sampled && a != greedy)),
        ("temperature 0", plain().input(float("top_p", 1.0)).input(float("temperature", 0.0)), Box::new(is_greedy)),
        ("top_k", drawn(7).input(int("top_k", 1)), Box::new(is_greedy)),
        ("top_k 5", drawn(7).input(int("top_k", 5)), Box::new(changed)),
        ("top_p", plain().input(float("top_p", 1e-6)).input(float("temperature", 1.5)), Box::new(is_greedy)),
        ("top_p_decay", drawn(7).input(float("runtime_top_p_decay", 0.3)), Box::new(changed)),
        ("top_p_min", drawn(7).input(float("runtime_top_p_decay", 0.3)).input(float("runtime_top_p_min", 1.0)), Box::new(move |a| a == sampled)),
        ("top_p_reset_ids", drawn(7).input(float("runtime_top_p_decay", 0.3)).input(int("runtime_top_p_reset_ids", decayed.tokens[2])), Box::new(move |a| a.tokens[..3] == decayed.tokens[..3] && a != decayed)),
        ("min_p", drawn(7).input(float("min_p", 1.0)), Box::new(is_greedy)),
        ("typical_p", drawn(7).input(float("typical_p", 0.2)), Box::new(changed)),
        ("seed", drawn(8), Box::new(changed)),
        ("presence_penalty", plain().input(float("presence_penalty", 1e4)), Box::new(move |a| are_distinct(&a.tokens) && a.tokens.iter().all(|token| !prompt.contains(token)))),
        ("prompt_ignore_length", plain().input(float("presence_penalty", 1e4)).input(int("prompt_ignore_length", 1000)), Box::new(move |a| a.tokens[0] == first && are_distinct(&a.tokens))),
        ("frequency_penalty", plain().input(float("frequency_penalty", 1e4)), Box::new(move |a| are_distinct(&a.tokens))),
        ("repetition_penalty", plain().input(float("repetition_penalty", 1e4)), Box::new(move |a| a != greedy && are_distinct(&a.tokens))),
        ("no_repeat_ngram_size", plain().input(int("no_repeat_ngram_size", 1)), Box::new(move |a| are_distinct(&a.tokens) && a.tokens.iter().all(|token| !prompt.contains(token)))),
        ("embedding_bias", plain().input(bias(&[(77, 1e4)])), Box::new(|a| a.tokens == [77; TOKENS as usize])),
        ("min_tokens", plain().input(bias(&[(EOS as usize, 1e4)])).input(int("min_tokens", 5)), Box::new(|a| a.tokens.len() == 5)),
        ("ignore_eos", plain().input(bias(&[(EOS as usize, 1e4)])).input(flag("ignore_eos", true)), Box::new(|a| a.tokens == [EOS; TOKENS as usize])),
        ("bad_words_list", plain().input(words("bad_words_list", &t[..2])), Box::new(move |a| a.tokens[0] == t[0] && a.tokens[1] != t[1])),
        ("stop_words_list", plain().input(words("stop_words_list", &t[4..6])), Box::new(move |a| a.tokens == t[..6])),
        ("end_id", plain().input(int("end_id", t[5])), Box::new(move |a| a.tokens == t[..end])),
        ("stop_token_ids", plain().input(ids("stop_token_ids", &[t[5], 9])).input(flag("ignore_eos", true)), Box::new(move |a| a.tokens == t[..end])),
        ("max_tokens", ask(PROMPT, 3), Box::new(move |a| a.tokens == t[..3])),
    ]
}

fn run(model: &LoadedModel<'_>, request: RequestSpec) -> Answer {
    answer(&model.infer(request))
}

#[test]
fn every_knob_has_its_effect_alone_and_in_a_batch_of_all() {
    let server = start();
    let model = demo(&server, &[]);
    let prompt = Tokenizer::load(&demo_dir()).unwrap().encode(PROMPT, true).unwrap();
    let (greedy, sampled) = (run(&model, plain()), run(&model, drawn(7)));
    let decayed = run(&model, drawn(7).input(float("runtime_top_p_decay", 0.3)));
    assert!(greedy.tokens.iter().any(|token| prompt.contains(token)), "the prompt does not suggest its own words");
    assert_eq!(greedy.tokens.len(), TOKENS as usize, "{greedy:?}");
    let knobs = knobs(&greedy, &sampled, &decayed, &prompt);
    let alone: Vec<_> = knobs.iter().map(|(_, request, _)| run(&model, request.clone())).collect();
    for ((name, _, effect), answer) in knobs.iter().zip(&alone) {
        assert!(effect(answer), "{name}: {answer:?}; greedy {greedy:?}, sampled {sampled:?}");
    }
    let tickets = model.execute(knobs.iter().map(|(_, request, _)| request.clone()).collect());
    for ((ticket, alone), (name, ..)) in tickets.into_iter().zip(&alone).zip(&knobs) {
        assert_eq!(answer(&ticket.wait()), *alone, "{name} in a batch");
    }
}

#[test]
fn no_seed_is_another_answer_each_time_for_text_and_seed_0_for_tokens() {
    let server = start();
    let model = demo(&server, &[]);
    let unseeded =
        || plain().input(float("top_p", 1.0)).input(float("temperature", 1.5)).input(flag("return_seed", true));
    let seed =
        |request| u64::from_le_bytes(model.infer(request)[0].output("seed").unwrap().bytes[..8].try_into().unwrap());
    assert_ne!(run(&model, unseeded()), run(&model, unseeded()));
    let replies = model.infer(unseeded());
    let used = u64::from_le_bytes(replies[0].output("seed").unwrap().bytes[..8].try_into().unwrap());
    assert_eq!(
        answer(&replies),
        run(&model, unseeded().input(seed_of(used))),
        "the seed that was used gives the answer again"
    );
    assert_eq!(seed(drawn(u64::MAX).input(flag("return_seed", true))), u64::MAX);
    let by_tokens = |more: &[Tensor]| {
        let request = RequestSpec::new("").output("output_ids").output("sequence_length").output("text_output");
        let request =
            request.input(ids("input_ids", &[5, 6, 7])).input(int("request_output_len", 10)).input(float("top_p", 1.0));
        answer(&model.infer(more.iter().cloned().fold(request, RequestSpec::input)))
    };
    assert_eq!(by_tokens(&[]), by_tokens(&[seed_of(0)]));
    assert_ne!(by_tokens(&[]), by_tokens(&[seed_of(1)]));
}

#[test]
fn the_reason_for_the_end_is_told_in_the_last_response() {
    let server = start();
    let model = demo(&server, &[]);
    let reasons = |request: RequestSpec| {
        let replies = model.infer(request.input(flag("return_finish_reason", true)));
        let reason = |reply: &Reply| reply.output("finish_reason").unwrap().to_strings().concat();
        replies.iter().map(reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(plain()), ["length"]);
    assert_eq!(reasons(plain().input(bias(&[(EOS as usize, 1e4)]))), ["stop"]);
    assert_eq!(reasons(plain().input(Tensor::strings("stop_words", &[1, 1], &["e"]))), ["stop"]);
    let streamed = reasons(plain().input(flag("stream", true)));
    assert!(streamed.len() > 3 && streamed.split_last().unwrap().1.iter().all(String::is_empty), "{streamed:?}");
    assert_eq!(streamed.last().unwrap(), "length");
}

#[test]
fn a_stop_text_is_part_of_the_answer_unless_it_is_left_out() {
    let server = start();
    let model = demo(&server, &[]);
    let whole = run(&model, plain()).text;
    let middle: String = whole.chars().skip(7).take(5).collect();
    let before = &whole[..whole.find(&middle).unwrap()];
    let request = || plain().input(Tensor::strings("stop_words", &[1, 1], &[&middle]));
    assert_eq!(run(&model, request()).text, format!("{before}{middle}"));
    let without = || request().input(flag("include_stop_str_in_output", false));
    assert_eq!(run(&model, without()).text, before);
    assert_eq!(run(&model, without().input(flag("stream", true))).text, before, "nothing of it is streamed");
}

#[test]
fn a_decoding_mode_narrows_what_requests_choose() {
    let server = start();
    let request =
        || plain().input(int("top_k", 1)).input(float("top_p", 1.0)).input(float("temperature", 1.5)).input(seed_of(3));
    let with = |mode: &str| run(&demo(&server, &[("decoding_mode", mode)]), request());
    let greedy = with("top_k");
    assert_eq!(with("top_k_top_p"), greedy);
    assert_ne!(with("top_p"), greedy, "top-k counts although the mode is top_p");
}

#[test]
fn every_word_of_decoding_mode_is_taken() {
    let server = start();
    let expected = run(&demo(&server, &[]), plain());
    for mode in ["auto", "top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "eagle", "no_such_mode"]
    {
        assert_eq!(run(&demo(&server, &[("decoding_mode", mode)]), plain()), expected, "{mode}");
    }
    let sizes = ["lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"];
    let lookahead = sizes.map(|name| (name, "2"));
    let parameters = [&[("decoding_mode", "lookahead")], &lookahead[..]].concat();
    assert_eq!(run(&demo(&server, &parameters), plain()), expected, "lookahead");
}

#[test]
fn penalties_act_before_the_temperature_where_openai_is_the_order() {
    let server = start();
    let [tensorrt_llm, openai] = ["tensorrt_llm", "openai"].map(|order| demo(&server, &[("sampling_order", order)]));
    let request = || drawn(5).input(float("frequency_penalty", 1.5));
    assert_ne!(run(&tensorrt_llm, request()), run(&openai, request()), "the temperature divides the penalty");
    // What was in the prompt is no repetition.
    let forbidding = || plain().input(float("presence_penalty", 1e4));
    let prompt = Tokenizer::load(&demo_dir()).unwrap().encode(PROMPT, true).unwrap();
    assert!(run(&openai, forbidding()).tokens.iter().any(|token| prompt.contains(token)));
    assert!(run(&tensorrt_llm, forbidding()).tokens.iter().all(|token| !prompt.contains(token)));
    assert_eq!(run(&tensorrt_llm, drawn(5)), run(&openai, drawn(5)), "without penalties they agree");
}

#[test]
fn a_seed_gives_the_same_answer_after_a_restart() {
    let server = start();
    let first = {
        let model = demo(&server, &[]);
        [drawn(3), drawn(3).input(int("top_k", 9)), drawn(4)].map(|request| run(&model, request))
    };
    let model = demo(&server, &[("tokens_per_block", "16"), ("max_num_tokens", "40")]);
    let second = [drawn(3), drawn(3).input(int("top_k", 9)), drawn(4)].map(|request| run(&model, request));
    assert!(first == second && first[0] != first[2]);
}

/// The rows of a beam search and their scores, without the length. Answers end with their first sentence.
fn beams(model: &LoadedModel<'_>, more: Vec<Tensor>) -> (Vec<Vec<i32>>, Vec<f32>) {
    let request = plain().output("cum_log_probs").input(flag("return_log_probs", true)).input(int("beam_width", 3));
    let request = request.input(int("end_id", FULL_STOP)).input(bias(&[(FULL_STOP as usize, 2.0)]));
    let replies = model.infer(more.into_iter().fold(request, RequestSpec::input));
    assert_eq!(replies[0].error, None);
    let rows = replies[0].output("output_ids").unwrap();
    let width = *rows.shape.last().unwrap() as usize;
    let rows = rows.to_int32().chunks(width).map(|row| row.iter().copied().filter(|&id| id >= 0).collect()).collect();
    (rows, floats(&replies[0], "cum_log_probs"))
}

#[test]
fn every_knob_of_a_beam_search_has_its_effect() {
    let server = start();
    let model = demo(&server, &[("max_beam_width", "3")]);
    let (rows, scores) = beams(&model, Vec::new());
    assert!(rows.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{rows:?} {scores:?}");
    assert!(rows[0] != rows[1] && rows[1] != rows[2]);
    let longest = |rows: &[Vec<i32>]| rows.iter().map(Vec::len).max().unwrap();
    let never = || int("early_stopping", 2);
    let [short, long] = [0.0, 3.0].map(|power| beams(&model, vec![never(), float("len_penalty", power)]).0);
    assert!(longest(&long[..1]) > longest(&short[..1]), "the power of the length: {short:?} {long:?}");
    let stopped = beams(&model, vec![int("early_stopping", 1), float("len_penalty", 3.0)]).0;
    assert!(longest(&stopped) < longest(&long), "the first three that are complete: {stopped:?} {long:?}");
    let diverse = beams(&model, vec![never(), float("beam_search_diversity_rate", 4.0)]).0;
    assert_ne!(diverse, beams(&model, vec![never()]).0);
    let narrow = beams(&model, vec![never(), Tensor::int32("beam_width_array", &[1, 1], &[1])]).0;
    assert_ne!(narrow, beams(&model, vec![never()]).0);
    let penalized = beams(&model, vec![never(), float("presence_penalty", 1e4)]).0;
    assert!(penalized.iter().all(|row| are_distinct(row)), "{penalized:?}");
    assert_eq!(beams(&model, vec![int("num_return_sequences", 2)]).0, rows[..2]);
}

/// The floats of an output.
fn floats(reply: &Reply, name: &str) -> Vec<f32> {
    reply.output(name).unwrap().bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn s3_2_a_greedy_request_that_runs_alone_repeats_to_the_last_bit() {
    let server = start();
    // On a GPU the product of a prompt's rest has other last bits than that of the whole.
    let reuses: &[&str] = if device() == "cpu" { &["true", "false"] } else { &["false"] };
    for &reuse in reuses {
        let model = demo(&server, &[("enable_kv_cache_reuse", reuse)]);
        let prompt: Vec<_> = Tokenizer::load(&demo_dir()).unwrap().encode(&PROMPT.repeat(12), true).unwrap();
        assert!(prompt.len() > 64, "there is a block to find");
        let names = ["output_ids", "sequence_length", "output_log_probs", "cum_log_probs"];
        let bytes = || {
            let request = names.iter().fold(RequestSpec::new(""), |request, name| request.output(name));
            let request = request.input(ids("input_ids", &prompt)).input(int("request_output_len", 12));
            let replies = model.infer(request.input(flag("return_log_probs", true)));
            names.map(|name| replies[0].output(name).unwrap().bytes.clone())
        };
        let first = bytes();
        (0..4).for_each(|_| assert!(bytes() == first, "reuse {reuse}, {} prompt tokens", prompt.len()));
    }
}

#[test]
fn log_probs_of_tokens_of_their_rivals_and_of_the_prompt_agree() {
    let server = start();
    let model = demo(&server, &[]);
    let mut prompt = Tokenizer::load(&demo_dir()).unwrap().encode(PROMPT, true).unwrap();
    let names = ["output_ids", "sequence_length", "output_log_probs", "cum_log_probs"];
    let request = |prompt: &[i32], more: Vec<Tensor>| {
        let request = names.iter().fold(RequestSpec::new(""), |request, name| request.output(name));
        let request = request.input(ids("input_ids", prompt)).input(int("request_output_len", 4));
        more.into_iter().fold(request, RequestSpec::input)
    };
    let wanted = || vec![flag("return_log_probs", true), int("num_top_log_probs", 5)];
    let replies = model.infer(request(&prompt, wanted()));
    let (tokens, log_probs) =
        (replies[0].output("output_ids").unwrap().to_int32(), floats(&replies[0], "output_log_probs"));
    let (top_ids, top) = (replies[0].output("top_log_prob_ids").unwrap(), floats(&replies[0], "top_log_probs"));
    assert_eq!(top_ids.shape, [1, 1, 4, 5]);
    let best: Vec<_> = top_ids.to_int32().iter().step_by(5).copied().collect();
    assert_eq!(best, tokens, "greedy takes the best");
    assert!(top.chunks(5).all(|top| top.is_sorted_by(|a, b| a >= b)));
    for (log_prob, top) in log_probs.iter().zip(top.chunks(5)) {
        assert!((log_prob - top[0]).abs() < 1e-3, "{log_probs:?} {top:?}");
    }
    assert!((floats(&replies[0], "cum_log_probs")[0] - log_probs.iter().sum::<f32>()).abs() < 1e-3);

    let known = prompt.len();
    prompt.extend(&tokens);
    let replies = model.infer(request(&prompt, vec![flag("return_prompt_log_probs", true)]));
    let of_prompt = floats(&replies[0], "prompt_log_probs");
    assert_eq!(of_prompt.len(), prompt.len() - 1);
    for (as_prompt, as_answer) in of_prompt[known - 1..].iter().zip(&log_probs) {
        assert!((as_prompt - as_answer).abs() < 1e-3, "{of_prompt:?} {log_probs:?}");
    }

    let mut streamed = wanted();
    streamed.push(flag("streaming", true));
    let replies = model.infer(request(&prompt[..known], streamed));
    let pieces: Vec<f32> = replies.iter().flat_map(|reply| floats(reply, "top_log_probs")).collect();
    assert_eq!(pieces.len(), top.len(), "a stream has the new ones only");
    // The prompt is known by now: what is left of it is computed in other sums.
    assert!(pieces.iter().zip(&top).all(|(a, b)| (a - b).abs() < 1e-3), "{pieces:?} {top:?}");
}

#[test]
fn normalised_log_probs_are_those_within_the_candidates() {
    let server = start();
    let sum = |normalize: &str| {
        let model = demo(&server, &[("normalize_log_probs", normalize)]);
        let request = plain().output("output_log_probs").input(flag("return_log_probs", true));
        let replies = model.infer(request.input(int("top_k", 2)).input(float("temperature", 3.0)).input(seed_of(1)));
        floats(&replies[0], "output_log_probs").iter().sum::<f32>()
    };
    let (candidates, full) = (sum("true"), sum("false"));
    assert!(full < candidates - 5.0, "{full} {candidates}");
    assert!(candidates < -1.0, "of two candidates each has some share: {candidates}");
}
