use std::cell::RefCell;

use super::super::flow::{Flow, Inner, Models, Responses, Settings};
use super::*;

/// The target counts up to 30 and then ends; the draft is wrong at every fifth number. Texts are the numbers.
#[derive(Default)]
struct Counting {
    calls: RefCell<Vec<Inner>>,
}

const LAST: i32 = 30;

struct One(std::vec::IntoIter<Result<Vec<NamedTensor>>>);

impl Iterator for One {
    type Item = Result<Vec<NamedTensor>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl Responses for One {
    fn cancel(&mut self) {}
}

fn of(inputs: &[NamedTensor], name: &str) -> Vec<i32> {
    present(inputs, name).map(|tensor| tensor.to_i32().unwrap()).unwrap_or_default()
}

impl Counting {
    fn target(inputs: &[NamedTensor]) -> Vec<i32> {
        let (ids, drafts) = (of(inputs, "input_ids"), of(inputs, "draft_input_ids"));
        assert_eq!(of(inputs, "request_output_len"), [drafts.len() as i32 + 1]);
        let (mut at, mut new) = (*ids.last().unwrap(), Vec::new());
        for draft in drafts.iter().map(Some).chain([None]) {
            at += 1;
            if at > LAST {
                break;
            }
            new.push(at);
            if draft.is_some_and(|&draft| draft != at) {
                break;
            }
        }
        new
    }

    fn draft(inputs: &[NamedTensor]) -> Vec<i32> {
        let (ids, count) = (of(inputs, "input_ids"), of(inputs, "request_output_len")[0]);
        assert_eq!(of(inputs, "min_tokens"), [count]);
        let right = |id: i32| if id % 5 == 0 { 99 } else { id };
        (1..=count).map(|ahead| right(ids.last().unwrap() + ahead)).collect()
    }
}

impl Models for Counting {
    fn call(&self, inner: Inner) -> Result<Box<dyn Responses + '_>> {
        let row = |new: Vec<i32>| {
            vec![
                NamedTensor::new("sequence_length", [1, 1], TensorData::I32(vec![new.len() as i32])),
                NamedTensor::new("output_ids", [1, 1, new.len() as i64], TensorData::I32(new)),
            ]
        };
        let answer = match inner.model.as_str() {
            "preprocessing" => vec![
                ints("INPUT_ID", vec![1, 2]),
                ints("REQUEST_INPUT_LEN", vec![2]),
                ints("REQUEST_OUTPUT_LEN", of(&inner.inputs, "REQUEST_OUTPUT_LEN")),
                NamedTensor::new("STOP_WORDS_IDS", [1, 2, 2], TensorData::I32(vec![19, 20, 2, -1])),
            ],
            "postprocessing" => {
                let text = of(&inner.inputs, "TOKENS_BATCH").iter().map(|id| format!("{id} ")).collect::<String>();
                vec![NamedTensor::new("OUTPUT", [1], TensorData::Bytes(vec![text.into_bytes()]))]
            }
            "target" => row(Self::target(&inner.inputs)),
            "draft" => {
                let new = Self::draft(&inner.inputs);
                let logits = present(&inner.inputs, "return_generation_logits").unwrap().to_bool().unwrap()[0];
                let shape = [1, 1, new.len() as i64, 3];
                let data = TensorData::F32(vec![0.5; new.len() * 3]);
                let mut answer = row(new);
                answer.extend(logits.then(|| NamedTensor::new("generation_logits", shape, data)));
                answer
            }
            other => return Err(Error::invalid(format!("no model {other}"))),
        };
        self.calls.borrow_mut().push(inner);
        Ok(Box::new(One(vec![Ok(answer)].into_iter())))
    }
}

fn settings(draft: Option<&str>) -> Settings {
    Settings {
        preprocessing: "preprocessing".to_owned(),
        llm: "target".to_owned(),
        postprocessing: "postprocessing".to_owned(),
        draft: draft.map(str::to_owned),
        decoupled: false,
        accumulate: false,
        before_logits: false,
    }
}

fn request(max_tokens: i32, drafts: i32, more: Vec<NamedTensor>) -> Vec<NamedTensor> {
    let text = NamedTensor::new("text_input", [1, 1], TensorData::Bytes(vec![b"1 2 ".to_vec()]));
    [vec![text, ints("max_tokens", vec![max_tokens]), ints("num_draft_tokens", vec![drafts])], more].concat()
}

fn run(models: &Counting, inputs: Vec<NamedTensor>) -> Result<String> {
    let settings = settings(Some("draft"));
    let mut sent = Vec::new();
    Flow::new(&settings, models, &inputs)?.run(inputs, |outputs| {
        sent.extend(outputs[0].to_strings()?.into_iter().map(str::to_owned));
        Ok(())
    })?;
    assert_eq!(sent.len(), 1, "one response");
    Ok(sent.remove(0))
}

fn numbers(range: std::ops::RangeInclusive<i32>) -> String {
    range.map(|id| format!("{id} ")).collect()
}

#[test]
fn s6_4_drafts_change_the_number_of_calls_and_not_the_answer() {
    for (drafts, most_calls) in [(1, 7), (3, 5), (8, 4)] {
        let models = Counting::default();
        assert_eq!(run(&models, request(10, drafts, vec![])).unwrap(), numbers(1..=12), "{drafts}");
        let calls = models.calls.borrow().iter().filter(|call| call.model == "target").count();
        assert!(calls <= most_calls, "{drafts}: {calls} calls for 10 tokens");
    }
}

#[test]
fn s6_4_speculation_ends_where_the_target_ends_and_at_stop_words() {
    let models = Counting::default();
    let excluded = vec![flag("exclude_input_in_output", true)];
    assert_eq!(run(&models, request(15, 4, excluded.clone())).unwrap(), numbers(3..=17));
    assert_eq!(run(&models, request(99, 4, excluded)).unwrap(), numbers(3..=20), "19 20 is a stop word");
}

#[test]
fn s6_4_the_end_of_the_target_needs_no_further_call() {
    for drafts in 1..7 {
        let mut state = Loop::new(vec![ints("input_ids", vec![27]), ints("request_output_len", vec![50])]).unwrap();
        let drafted: Vec<i32> = (28..28 + drafts).collect();
        let new = Counting::target(&state.target_call(&drafted, None));
        assert_eq!(state.take(&new, &drafted), drafts >= 3, "{drafts}");
    }
}

#[test]
fn s6_4_draft_logits_go_from_the_draft_to_the_target() {
    let models = Counting::default();
    run(&models, request(6, 3, vec![flag("use_draft_logits", true)])).unwrap();
    let calls = models.calls.borrow();
    let target = calls.iter().find(|call| call.model == "target").unwrap();
    let logits = present(&target.inputs, "draft_logits").unwrap();
    assert_eq!((&logits.shape[..], of(&target.inputs, "draft_input_ids").len()), (&[1, 3, 3][..], 3));
    let draft = calls.iter().find(|call| call.model == "draft").unwrap();
    assert!(present(&draft.inputs, "return_generation_logits").unwrap().to_bool().unwrap()[0]);
    let last = calls.iter().rfind(|call| call.model == "target").unwrap();
    assert!(of(&last.inputs, "request_output_len")[0] <= 4);
}

#[test]
fn s6_4_what_does_not_go_with_drafts_is_refused_by_name() {
    let refused =
        |more: Vec<NamedTensor>| run(&Counting::default(), request(5, 2, more)).unwrap_err().message().to_owned();
    assert!(refused(vec![flag("stream", true)]).contains("stream to be false"));
    assert!(refused(vec![flag("return_context_logits", true)]).contains("return_context_logits to be false"));
    assert!(refused(vec![ints("beam_width", vec![2])]).contains("a beam width of 1"));
    let inputs = request(5, 2, vec![]);
    let (settings, models) = (settings(None), Counting::default());
    let error = Flow::new(&settings, &models, &inputs).err().unwrap();
    assert!(error.message().contains("tensorrt_llm_draft_model_name"), "{error}");
    let error = run(&models, request(5, -1, vec![])).unwrap_err();
    assert!(error.message().contains("num_draft_tokens is -1"), "{error}");
}

#[test]
fn s6_4_both_models_get_the_prompt_table_and_an_id_for_every_token_so_far() {
    let table = NamedTensor::new("prompt_embedding_table", [1, 1, 2], TensorData::F32(vec![0.5, 1.5]));
    let prompt = vec![ints("input_ids", vec![1000, 2]), ints("request_output_len", vec![9]), table.clone()];
    let extra = NamedTensor::new("prompt_table_extra_ids", [1, 2], TensorData::U64(vec![7, 0]));
    let mut state = Loop::new([prompt, vec![extra]].concat()).unwrap();
    state.take(&[3, 4, 5], &[]);
    for call in [state.draft_call(2, false), state.target_call(&[6, 7], None)] {
        assert!(call.contains(&table));
        let ids = present(&call, "prompt_table_extra_ids").unwrap();
        assert_eq!((&ids.shape[..], &ids.data), (&[1, 5][..], &TensorData::U64(vec![7, 0, 0, 0, 0])));
    }
}
