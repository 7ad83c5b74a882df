use super::*;
use std::cell::RefCell;

/// Models whose text is the decimal tokens; the LLM sends the responses that the test wrote down.
#[derive(Default)]
struct Scripted {
    llm: RefCell<Vec<Result<Vec<NamedTensor>>>>,
    calls: RefCell<Vec<(String, Vec<NamedTensor>)>>,
    cancelled: RefCell<bool>,
}

struct Answers<'a>(&'a Scripted, std::vec::IntoIter<Result<Vec<NamedTensor>>>);

impl Iterator for Answers<'_> {
    type Item = Result<Vec<NamedTensor>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.1.next()
    }
}

impl Responses for Answers<'_> {
    fn cancel(&mut self) {
        *self.0.cancelled.borrow_mut() = true;
    }
}

impl Models for Scripted {
    fn call(&self, inner: Inner) -> Result<Box<dyn Responses + '_>> {
        self.calls.borrow_mut().push((inner.model.clone(), inner.inputs.clone()));
        let answers = match inner.model.as_str() {
            "preprocessing" => vec![Ok(vec![
                ints("INPUT_ID", &[1, 2], &[1, 2]),
                ints("REQUEST_INPUT_LEN", &[1, 1], &[2]),
                ints("REQUEST_DECODER_INPUT_LEN", &[1, 1], &[1]),
                ints("REQUEST_OUTPUT_LEN", &[1, 1], &[9]),
                ints("OUT_END_ID", &[1, 1], &[0]),
            ])],
            "postprocessing" => vec![Ok(vec![detokenize(&inner.inputs)])],
            "llm2" => self.llm.take(),
            other => return Err(Error::invalid(format!("no model {other}"))),
        };
        Ok(Box::new(Answers(self, answers.into_iter())))
    }
}

fn ints(name: &str, shape: &[i64], values: &[i32]) -> NamedTensor {
    NamedTensor::new(name, shape, TensorData::I32(values.to_vec()))
}

fn texts(name: &str, values: &[&str]) -> NamedTensor {
    let data = TensorData::Bytes(values.iter().map(|value| value.as_bytes().to_vec()).collect());
    NamedTensor::new(name, [1, values.len() as i64], data)
}

fn detokenize(inputs: &[NamedTensor]) -> NamedTensor {
    let lengths = present(inputs, "SEQUENCE_LENGTH").unwrap().to_i32().unwrap();
    let ids = inputs.iter().find(|input| input.name == "TOKENS_BATCH").unwrap();
    let (width, ids) = (*ids.shape.last().unwrap() as usize, ids.to_i32().unwrap());
    let row = |(row, &length): (usize, &i32)| {
        ids[row * width..][..length as usize].iter().map(|id| format!("{id} ")).collect::<String>().into_bytes()
    };
    let rows: Vec<_> = lengths.iter().enumerate().map(row).collect();
    NamedTensor::new("OUTPUT", [rows.len() as i64], TensorData::Bytes(rows))
}

fn piece(ids: &[i32]) -> Result<Vec<NamedTensor>> {
    let length = ids.len() as i32;
    Ok(vec![ints("output_ids", &[1, 1, ids.len() as i64], ids), ints("sequence_length", &[1, 1], &[length])])
}

fn settings(decoupled: bool, accumulate: bool) -> Settings {
    Settings {
        preprocessing: "preprocessing".to_owned(),
        llm: "llm2".to_owned(),
        postprocessing: "postprocessing".to_owned(),
        draft: None,
        decoupled,
        accumulate,
        before_logits: false,
    }
}

fn request(more: Vec<NamedTensor>) -> Vec<NamedTensor> {
    [vec![texts("text_input", &["1 2 "]), ints("max_tokens", &[1, 1], &[9])], more].concat()
}

fn streaming(more: Vec<NamedTensor>) -> Vec<NamedTensor> {
    request([vec![NamedTensor::new("stream", [1, 1], TensorData::Bool(vec![true]))], more].concat())
}

/// The texts that are sent, and how the request ends.
fn run(models: &Scripted, settings: &Settings, inputs: Vec<NamedTensor>) -> (Vec<String>, Result<()>) {
    let mut sent = Vec::new();
    let outcome = Flow::new(settings, models, &inputs).and_then(|mut flow| {
        flow.run(inputs, |outputs| {
            assert_eq!(outputs[0].name, "text_output");
            sent.extend(outputs[0].to_strings()?.into_iter().map(str::to_owned));
            Ok(())
        })
    });
    (sent, outcome)
}

fn llm(responses: Vec<Result<Vec<NamedTensor>>>) -> Scripted {
    Scripted { llm: RefCell::new(responses), ..Default::default() }
}

#[test]
fn s6_4_inputs_go_to_the_models_under_their_names_there() {
    let models = llm(vec![piece(&[1, 2, 7])]);
    let more = vec![
        ints("top_k", &[1, 1], &[5]),
        ints("num_return_sequences", &[1], &[4]),
        NamedTensor::new("return_log_probs", [1], TensorData::Bool(vec![true])),
        texts("bad_words", &["x"]),
        ints("end_id", &[1, 1], &[3]),
    ];
    let (sent, outcome) = run(&models, &settings(false, false), request(more));
    outcome.unwrap();
    assert_eq!(sent, ["1 2 7 "]);
    let calls = models.calls.borrow();
    let names = |call: usize| calls[call].1.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>();
    assert_eq!(names(0), ["QUERY", "REQUEST_OUTPUT_LEN", "BAD_WORDS_DICT", "END_ID"]);
    assert_eq!(calls[1].0, "llm2");
    assert_eq!(
        names(1),
        [
            "runtime_top_k",
            "return_log_probs",
            "input_ids",
            "input_lengths",
            "request_output_len",
            "end_id",
            "return_context_logits",
            "return_generation_logits"
        ],
        "num_return_sequences and the decoder's length are not forwarded"
    );
    let reshaped = calls[1].1.iter().find(|tensor| tensor.name == "return_log_probs").unwrap();
    assert_eq!(reshaped.shape, [1, 1]);
    assert_eq!(names(2), ["TOKENS_BATCH", "SEQUENCE_LENGTH"]);
}

#[test]
fn s6_4_pieces_are_detokenized_alone_and_whole_texts_when_accumulating() {
    let responses = || vec![piece(&[7]), piece(&[8, 9]), piece(&[])];
    let (sent, _) = run(&llm(responses()), &settings(true, false), streaming(vec![]));
    assert_eq!(sent, ["7 ", "8 9 ", ""]);
    let (sent, _) = run(&llm(responses()), &settings(true, true), streaming(vec![]));
    assert_eq!(sent, ["7 ", "7 8 9 ", "7 8 9 "]);
    let (sent, _) = run(&llm(vec![piece(&[7])]), &settings(false, true), request(vec![]));
    assert_eq!(sent, ["7 "], "accumulation is for decoupled models");
}

#[test]
fn s6_4_accumulation_needs_one_row() {
    let beams = vec![ints("output_ids", &[1, 2, 1], &[7, 8]), ints("sequence_length", &[1, 2], &[1, 1])];
    let (_, outcome) = run(&llm(vec![Ok(beams)]), &settings(true, true), streaming(vec![]));
    assert!(outcome.unwrap_err().message().contains("beam width of 1"));
}

#[test]
fn s6_4_a_stop_word_in_the_text_ends_the_request_and_the_llm() {
    let models = llm(vec![piece(&[7]), piece(&[8]), piece(&[9]), piece(&[10])]);
    let (sent, outcome) = run(&models, &settings(true, false), streaming(vec![texts("stop_words", &["8 9"])]));
    outcome.unwrap();
    assert_eq!(sent, ["7 ", "8 ", "9"]);
    assert!(*models.cancelled.borrow());
    let models = llm(vec![piece(&[1, 2, 7, 1, 2, 8])]);
    let (sent, _) = run(&models, &settings(false, false), request(vec![texts("stop_words", &["2", ""])]));
    assert_eq!(sent, ["1 2 7 1 2"], "the prompt is not searched");
}

#[test]
fn s6_4_other_outputs_of_the_llm_are_passed_on() {
    let mut response = piece(&[7]).unwrap();
    response.push(NamedTensor::new("cum_log_probs", [1, 1], TensorData::F32(vec![-1.0])));
    response.push(ints("context_phase_params", &[1, 1], &[0]));
    let models = llm(vec![Ok(response)]);
    let settings = settings(false, false);
    let inputs = request(vec![]);
    let mut names = Vec::new();
    let mut flow = Flow::new(&settings, &models, &inputs).unwrap();
    flow.run(inputs, |outputs| {
        names.extend(outputs.into_iter().map(|output| output.name));
        Ok(())
    })
    .unwrap();
    assert_eq!(names, ["text_output", "cum_log_probs"]);
}

#[test]
fn s6_4_bad_requests_are_refused_by_name() {
    let refused = |inputs: Vec<NamedTensor>| {
        let error = run(&Scripted::default(), &settings(true, false), inputs).1.unwrap_err();
        error.message().to_owned()
    };
    assert_eq!(refused(vec![ints("max_tokens", &[1, 1], &[4])]), "text_input is required");
    let text = || texts("text_input", &["a"]);
    assert!(refused(vec![text()]).contains("max_tokens must be a single value > 0"));
    assert!(refused(vec![text(), ints("max_tokens", &[1, 1], &[0])]).contains("max_tokens must be a single value > 0"));
    assert!(refused(request(vec![ints("num_draft_tokens", &[1, 1], &[3])])).contains("tensorrt_llm_draft_model_name"));
    assert!(refused(request(vec![texts("image_url_input", &["http://x"])])).contains("`image_url_input`"));
    assert!(refused(request(vec![texts("stop", &["x"])])).contains("`stop` is unknown"));
}

#[test]
fn s6_4_errors_of_the_models_end_the_request() {
    let models = llm(vec![piece(&[7]), Err(Error::unavailable("full"))]);
    let (sent, outcome) = run(&models, &settings(true, false), streaming(vec![]));
    assert_eq!((sent.len(), outcome.unwrap_err().message()), (1, "full"));
    let (_, outcome) = run(&llm(vec![piece(&[7]), piece(&[8])]), &settings(false, false), request(vec![]));
    assert!(outcome.unwrap_err().message().contains("both must have the same policy"));
    let (_, outcome) = run(&llm(vec![]), &settings(false, false), request(vec![]));
    assert!(outcome.unwrap_err().message().contains("sent no response"));
}
