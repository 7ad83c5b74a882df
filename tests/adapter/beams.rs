//! Beam search: rows of a response, streams, what it does not go together with.

use triton_trtllm::decode::beam::{BeamParams, BeamSearch, Hypothesis, Outlook};
use triton_trtllm::decode::sample::most_likely_next;
use triton_trtllm::decode::{SamplingParams, StopCriteria};
use triton_trtllm::text::Tokenizer;

use crate::fake::{LoadedModel, Reply, RequestSpec, Server, Tensor};
use crate::script::{EOS, VOCAB, error, flag, int, model, request, start, text_model, tokenizer_dir};

const PROMPT: [i32; 3] = [5, 6, 7];
const INVALID_ARG: u32 = 3;

fn load<'a>(server: &'a Server, decoupled: bool, parameters: &[(&str, &str)]) -> LoadedModel<'a> {
    server.load(model("llm", decoupled, &[parameters, &[("max_beam_width", "4")]].concat())).unwrap()
}

/// Makes an end token likely at some places: the third beam ends early.
fn bias() -> Tensor {
    let mut bias = vec![0.0; VOCAB];
    (bias[7], bias[8], bias[EOS as usize]) = (0.5, 1.5, 4.0);
    Tensor::fp32("embedding_bias", &[1, VOCAB as i64], &bias)
}

fn ask(width: i32, output_len: i32) -> RequestSpec {
    request(&PROMPT, output_len)
        .input(int("beam_width", width))
        .input(int("end_id", EOS))
        .input(bias())
        .input(Tensor::fp32("len_penalty", &[1], &[1.0]))
        .input(int("early_stopping", 2))
}

/// What a search says that has the script's logits for a model.
fn expected(width: usize, num_return: usize, max_tokens: usize) -> Vec<Hypothesis> {
    let params = BeamParams {
        width,
        widths: Vec::new(),
        len_penalty: 1.0,
        early_stopping: 2.into(),
        diversity_rate: 0.0,
        num_return,
        stream: false,
    };
    let bias = bias().to_fp32();
    let sampling =
        SamplingParams { embedding_bias: Some(bias.into()), min_tokens: 1, end_ids: vec![EOS], ..Default::default() };
    let stop = StopCriteria { max_tokens, end_ids: vec![EOS], ..Default::default() };
    let mut search = BeamSearch::new(params, stop, PROMPT.to_vec());
    loop {
        let look = |beam: &Hypothesis| {
            let last = *beam.tokens.last().unwrap_or(&7);
            let mut row = vec![0.0; VOCAB];
            row[last as usize] = last as f32 / 2.0;
            let (tokens, count) = ([&PROMPT[..], &beam.tokens].concat(), search.num_candidates());
            let top = most_likely_next(&mut row, &sampling, &tokens, PROMPT.len(), count).unwrap();
            Outlook { top, logits: None }
        };
        let outlooks: Vec<_> = search.live().iter().map(look).collect();
        if !search.advance(&outlooks).unwrap() {
            return search.best();
        }
    }
}

/// The rows of a tensor, filled up to the longest.
fn padded<T: Copy>(rows: &[Vec<T>], pad: T) -> Vec<T> {
    let longest = rows.iter().map(Vec::len).max().unwrap();
    let row = |row: &Vec<T>| row.iter().copied().chain(std::iter::repeat(pad)).take(longest).collect::<Vec<_>>();
    rows.iter().flat_map(row).collect()
}

fn ints(reply: &Reply, name: &str) -> (Vec<i64>, Vec<i32>) {
    let output = reply.output(name).unwrap_or_else(|| panic!("{name} of {reply:?}"));
    (output.shape.clone(), output.to_int32())
}

fn close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-4), "{got:?} {expected:?}");
}

#[test]
fn all_beams_are_rows_of_one_response() {
    let server = start();
    let model = load(&server, false, &[]);
    for (width, num_return, exclude) in [(2, 2, false), (3, 3, true), (3, 2, false), (4, 1, true)] {
        let mut spec = ask(width, 4).input(flag("return_log_probs")).input(flag("return_num_output_tokens"));
        if exclude {
            spec = spec.input(flag("exclude_input_in_output"));
        }
        if num_return < width {
            spec = spec.input(int("num_return_sequences", num_return));
        }
        let replies = model.infer(spec);
        let beams = expected(width as usize, num_return as usize, 4);
        assert_eq!((replies.len(), replies[0].is_final, beams.len()), (1, true, num_return as usize));
        let prompt = if exclude { &[][..] } else { &PROMPT };
        let rows: Vec<_> = beams.iter().map(|beam| [prompt, &beam.tokens].concat()).collect();
        let longest = rows.iter().map(Vec::len).max().unwrap() as i64;
        let count = i64::from(num_return);
        assert_eq!(ints(&replies[0], "output_ids"), (vec![1, count, longest], padded(&rows, -1)));
        let lengths: Vec<_> = rows.iter().map(|row| row.len() as i32).collect();
        assert_eq!(ints(&replies[0], "sequence_length"), (vec![1, count], lengths.clone()));
        assert_eq!(ints(&replies[0], "num_output_tokens").1, [lengths.iter().sum::<i32>()]);
        let log_probs: Vec<_> = beams.iter().map(|beam| beam.log_probs.clone()).collect();
        let output = replies[0].output("output_log_probs").unwrap();
        assert_eq!(output.shape, [1, count, longest - prompt.len() as i64]);
        close(&output.to_fp32(), &padded(&log_probs, -1.0));
        let sums = replies[0].output("cum_log_probs").unwrap();
        assert_eq!(sums.shape, [1, count]);
        close(&sums.to_fp32(), &beams.iter().map(|beam| beam.cum_log_prob).collect::<Vec<_>>());
        assert_eq!(replies[0].output("sequence_index").is_some(), num_return > 1 && num_return < width);
    }
    let lengths: Vec<_> = expected(3, 3, 4).iter().map(|beam| beam.tokens.len()).collect();
    assert!(lengths.iter().any(|&length| length < 4), "a row is filled: {lengths:?}");
}

#[test]
fn the_histogram_counts_the_tokens_of_all_beams() {
    let server = start();
    let model = load(&server, false, &[]);
    model.infer(request(&PROMPT, 4).input(int("beam_width", 2)));
    let labels = [("response_metric_type", "total_output_tokens"), ("model", "llm"), ("version", "1")];
    assert_eq!(server.metric("nv_llm_output_token_len", &labels).unwrap().observations, [8.0]);
}

#[test]
fn a_stream_repeats_all_tokens_of_all_beams() {
    let server = start();
    let model = load(&server, true, &[]);
    let replies = model.infer(ask(2, 4).input(flag("streaming")).input(flag("return_log_probs")));
    assert_eq!(replies.iter().filter(|reply| reply.is_final).count(), 1);
    assert!(replies.len() >= 3 && replies.last().unwrap().is_final);
    for (index, reply) in replies.iter().enumerate().take(replies.len() - 1) {
        let (shape, ids) = ints(reply, "output_ids");
        assert_eq!((shape[1], ids.len()), (2, 2 * shape[2] as usize));
        assert!(shape[2] as usize <= index + 1, "the prompt is never there: {ids:?}");
        assert_eq!(reply.output("cum_log_probs").unwrap().shape, [1, 2]);
    }
    let rows: Vec<_> = expected(2, 2, 4).into_iter().map(|beam| beam.tokens).collect();
    assert_eq!(ints(replies.last().unwrap(), "output_ids").1, padded(&rows, -1));
}

#[test]
fn each_item_of_a_batch_has_its_own_width() {
    let server = start();
    let model = load(&server, true, &[]);
    let batch = crate::script::outputs(RequestSpec::new(""))
        .input(Tensor::int32("input_ids", &[2, 3], &[5, 6, 7, 5, 6, 7]))
        .input(Tensor::int32("input_lengths", &[2], &[3, 3]))
        .input(Tensor::int32("request_output_len", &[2, 1], &[2, 2]))
        .input(Tensor::int32("beam_width", &[2, 1], &[1, 3]));
    let replies = model.infer(batch);
    assert_eq!(replies.len(), 2);
    for reply in &replies {
        let (shape, ids) = ints(reply, "output_ids");
        match ints(reply, "batch_index").1[0] {
            0 => assert_eq!((shape, ids), (vec![1, 1, 5], vec![5, 6, 7, 20, 21]), "sampled as ever"),
            _ => assert_eq!(shape, [1, 3, 5]),
        }
    }
}

#[test]
fn logits_of_each_beam_are_rows_of_their_own() {
    let server = start();
    let model = load(&server, false, &[]);
    let spec = ask(3, 4).input(flag("return_context_logits")).input(flag("return_generation_logits"));
    let replies = model.infer(spec);
    let beams = expected(3, 3, 4);
    let context = replies[0].output("context_logits").unwrap();
    assert_eq!(context.shape, [1, 3, VOCAB as i64]);
    let logits = replies[0].output("generation_logits").unwrap();
    let longest = beams.iter().map(|beam| beam.tokens.len()).max().unwrap();
    assert_eq!(logits.shape, [1, 3, longest as i64, VOCAB as i64]);
    let values = logits.to_fp32();
    for (row, beam) in beams.iter().enumerate() {
        for at in 0..longest {
            let got = &values[(row * longest + at) * VOCAB..][..VOCAB];
            let last = if at == 0 { 7 } else { *beam.tokens.get(at - 1).unwrap_or(&0) };
            let wanted = if at < beam.tokens.len() { last as f32 / 2.0 } else { 0.0 };
            assert_eq!((got[last as usize], got.iter().sum::<f32>()), (wanted, wanted), "beam {row}, token {at}");
        }
    }
}

#[test]
fn the_width_may_change_while_the_search_goes_on() {
    let server = start();
    let model = load(&server, true, &[]);
    let widths = Tensor::int32("beam_width_array", &[1, 3], &[4, 1, 2]);
    let spec = request(&PROMPT, 4).input(int("beam_width", 4)).input(widths).input(flag("streaming"));
    let rows: Vec<_> = model.infer(spec).iter().map(|reply| ints(reply, "output_ids").0[1]).collect();
    assert_eq!(rows, [4, 1, 2, 2]);
}

#[test]
fn beams_are_texts_too() {
    let server = start();
    let model = server.load(text_model("llm", &[("max_beam_width", "3")])).unwrap();
    let spec = RequestSpec::new("")
        .input(Tensor::strings("text_input", &[1, 1], &["hello wor"]))
        .input(int("max_tokens", 3))
        .input(int("beam_width", 3))
        .input(flag("exclude_input_in_output"))
        .output("text_output")
        .output("output_ids")
        .output("sequence_length");
    let replies = model.infer(spec);
    let (shape, ids) = ints(&replies[0], "output_ids");
    let texts = replies[0].output("text_output").unwrap();
    assert_eq!((&shape[..2], &texts.shape[..]), (&[1, 3][..], &[1, 3][..]));
    let tokenizer = Tokenizer::load(&tokenizer_dir()).unwrap();
    let prompt = tokenizer.encode("hello wor", false).unwrap();
    for (text, ids) in texts.to_strings().iter().zip(ids.chunks(shape[2] as usize)) {
        assert_eq!(format!("hello wor{text}"), tokenizer.decode(&[&prompt[..], ids].concat(), true));
    }
    let stops = Tensor::strings("stop_words", &[1, 1], &["x"]);
    let spec = RequestSpec::new("").input(Tensor::strings("text_input", &[1, 1], &["hello"])).output("text_output");
    let (code, text) = error(&model.infer(spec.input(int("max_tokens", 3)).input(int("beam_width", 3)).input(stops)));
    assert_eq!(code, INVALID_ARG);
    assert!(text.contains("stop_words is given and beam_width is 3: give stop_words_list instead"), "{text}");
}

#[test]
fn what_does_not_go_together_is_named() {
    let server = start();
    let base = || request(&PROMPT, 2).input(int("beam_width", 2));
    let words = |name: &str, value: &str| Tensor::strings(name, &[1, 1], &[value]);
    let cases = [
        (request(&PROMPT, 2).input(int("beam_width", 5)), "beam_width is 5, expected 1 to max_beam_width, which is 4"),
        (base().input(int("num_return_sequences", 3)), "num_return_sequences is 3, expected 1 to the beam_width of 2"),
        (
            base().input(Tensor::int32("beam_width_array", &[1, 2], &[2, 3])),
            "beam_width_array is 3, expected 1 to the beam_width of 2",
        ),
        (
            request(&PROMPT, 2).input(Tensor::int32("beam_width_array", &[1, 1], &[2])),
            "beam_width_array is 2, expected 1 to the beam_width of 1",
        ),
        (base().input(int("draft_input_ids", 20)), "beam_width is 2 and draft_input_ids are given"),
        (base().input(int("num_top_log_probs", 2)), "beam_width is 2 and num_top_log_probs is set"),
        (
            base().input(words("guided_decoding_guide_type", "json")),
            "guided_decoding_guide_type is given and beam_width is 2: guided decoding does not support beam search",
        ),
    ];
    let model = load(&server, false, &[("tokenizer_dir", tokenizer_dir().to_str().unwrap())]);
    for (spec, fragment) in cases {
        let (code, text) = error(&model.infer(spec));
        assert!(text.contains(fragment), "{text:?} lacks {fragment:?}");
        assert_eq!(code, INVALID_ARG, "{text}");
    }
    drop(model);
    let model = load(&server, false, &[("decoding_mode", "top_k")]);
    let (_, text) = error(&model.infer(base()));
    assert!(text.contains("beam_width is 2, but decoding_mode is top_k: expected beam_search or auto"), "{text}");
    drop(model);
    let model = load(&server, false, &[("decoding_mode", "beam_search")]);
    assert_eq!(model.infer(base())[0].error, None);
}

#[test]
fn a_cancelled_search_answers_once_with_what_it_has() {
    let server = start();
    let model = load(&server, true, &[]);
    let spec = request(&PROMPT, 100_000).input(int("beam_width", 2)).input(flag("streaming"));
    let ticket = model.execute(vec![spec])[0];
    ticket.wait_for(2);
    ticket.cancel();
    let replies = ticket.wait();
    assert_eq!(replies.iter().filter(|reply| reply.is_final).count(), 1);
}

#[test]
fn early_stopping_is_taken_as_a_flag_and_as_a_number() {
    let server = start();
    let model = load(&server, false, &[]);
    let ask = |early: Tensor| {
        let spec = request(&PROMPT, 12).input(int("beam_width", 2)).input(int("end_id", EOS)).input(bias());
        ints(&model.infer(spec.input(early))[0], "output_ids")
    };
    let full = ask(Tensor::bools("early_stopping", &[1], &[true]));
    assert_eq!(full, ask(int("early_stopping", 1)));
    let heuristic = ask(Tensor::bools("early_stopping", &[1], &[false]));
    assert_eq!(heuristic, ask(int("early_stopping", 0)));
}
