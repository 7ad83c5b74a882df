//! Requests and their answers.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use serde_json::json;
use triton_trtllm::error::{Error, ErrorKind};
use triton_trtllm::triton::{
    CorrelationId, DataType, OutputTensor, ParameterValue as Value, Request, Response, Timings, monotonic_ns,
};

use crate::fake::{InputSpec, MemoryKind, ModelSpec, ParameterValue, Reply, RequestSpec, Tensor};
use crate::loader::{Behaviour, serve};

const INTERNAL: u32 = 1;
const UNSUPPORTED: u32 = 5;

fn spec(name: &str) -> ModelSpec {
    ModelSpec::with_parameters(name, &[])
}

fn timings(request: &Request) -> Option<Timings> {
    let now = monotonic_ns();
    Some(Timings { exec_start_ns: request.received_ns(), compute_start_ns: now, compute_end_ns: now })
}

fn text(value: &str) -> Response {
    Response { outputs: vec![OutputTensor::strings("text", &[1], &[value])], ..Response::default() }
}

fn texts(replies: &[Reply]) -> Vec<Option<String>> {
    replies.iter().map(|reply| reply.output("text").map(|tensor| tensor.to_strings().concat())).collect()
}

fn flags(replies: &[Reply]) -> Vec<bool> {
    replies.iter().map(|reply| reply.is_final).collect()
}

fn error(reply: &Reply) -> (u32, &str) {
    let error = reply.error.as_ref().expect("the reply is an error");
    (error.code, &error.message)
}

/// One response with every input as an output of its name and every parameter.
fn echo(request: Request) {
    let outputs = request.inputs().unwrap().into_iter().map(|input| OutputTensor {
        name: input.name.to_owned().into(),
        dtype: input.dtype,
        shape: input.shape.to_vec(),
        bytes: input.bytes.into_owned(),
    });
    let outputs = outputs.collect();
    let parameters = request.parameters().unwrap().into_iter().collect();
    let timings = timings(&request);
    request.into_sink().finish(Ok(Response { outputs, parameters }), timings);
}

#[test]
fn tensors_and_parameters_come_back_as_they_went_in() {
    let server = serve("echo", Behaviour::each(echo));
    let model = server.load(spec("echo")).unwrap();
    let tensors = [
        Tensor::int32("ids", &[1, 3], &[1, -2, 3]),
        Tensor::fp32("scale", &[1], &[0.5]),
        Tensor::strings("text", &[2], &["hi", ""]),
        Tensor::bools("flag", &[1, 1], &[true]),
        Tensor::uint64("seed", &[1], &[u64::MAX]),
        Tensor::int32("none", &[0], &[]),
        Tensor::int32("scalar", &[], &[5]),
    ];
    let parameters = [
        ("a", ParameterValue::Text("x".into())),
        ("b", ParameterValue::Int(-7)),
        ("c", ParameterValue::Bool(true)),
        ("d", ParameterValue::Double(0.25)),
    ];
    let request = tensors.iter().cloned().fold(RequestSpec::new("r"), RequestSpec::input);
    let request = parameters.iter().fold(request, |request, (name, value)| request.parameter(name, value.clone()));
    let replies = model.infer(request);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].outputs, tensors);
    assert_eq!(replies[0].parameters, parameters.map(|(name, value)| (name.to_owned(), value)));
    assert!(replies[0].is_final && replies[0].error.is_none());
}

#[test]
fn a_request_tells_all_about_itself() {
    let (sender, receiver) = mpsc::channel();
    let behaviour = Behaviour::each(move |request| {
        let seen = (
            request.id().unwrap().to_owned(),
            request.correlation_id().unwrap(),
            request.sequence_flags().unwrap(),
            request.timeout_us().unwrap(),
            request.requested_outputs().unwrap().join(","),
        );
        sender.send(seen).unwrap();
        request.into_sink().finish(Ok(Response::default()), None);
    });
    let server = serve("told", behaviour);
    let model = server.load(spec("told")).unwrap();
    let mut request = RequestSpec::new("the id").output("x").output("y");
    (request.correlation_number, request.flags, request.timeout_us) = (9, 2, 1500);
    model.infer(request);
    let expected = ("the id".to_owned(), CorrelationId::Number(9), (false, true), 1500, "x,y".to_owned());
    assert_eq!(receiver.recv().unwrap(), expected);
    model.infer(RequestSpec { correlation_text: Some("chat".into()), ..RequestSpec::default() });
    assert_eq!(receiver.recv().unwrap().1, CorrelationId::Text("chat".into()));
}

#[test]
fn an_input_in_several_buffers_is_joined() {
    let server = serve("pieces", Behaviour::each(echo));
    let model = server.load(spec("pieces")).unwrap();
    let tensor = Tensor::int32("ids", &[4], &[1, 2, 3, 4]);
    for memory in [MemoryKind::Cpu, MemoryKind::Pinned] {
        let input = InputSpec { tensor: tensor.clone(), pieces: vec![3, 0, 9], memory };
        let replies = model.infer(RequestSpec { inputs: vec![input], ..RequestSpec::default() });
        assert_eq!(replies[0].outputs, std::slice::from_ref(&tensor), "{memory:?}");
    }
}

/// The stand-in has no memory of a GPU. A driver that reads any address copies what it calls so; any other one refuses.
#[test]
fn s2_2_an_input_on_a_gpu_that_cannot_be_read_is_an_error_that_names_it() {
    let behaviour = Behaviour::each(|request| match request.inputs().map(drop) {
        Ok(()) => echo(request),
        Err(error) => request.fail(error, None),
    });
    let server = serve("gpu", behaviour);
    let model = server.load(spec("gpu")).unwrap();
    let tensor = Tensor::int32("ids", &[1], &[1]);
    let input = InputSpec { tensor: tensor.clone(), pieces: vec![], memory: MemoryKind::Gpu };
    let replies = model.infer(RequestSpec { inputs: vec![input], ..RequestSpec::default() });
    if replies[0].error.is_none() {
        return assert_eq!(replies[0].outputs, [tensor]);
    }
    let (code, message) = error(&replies[0]);
    assert_eq!(code, UNSUPPORTED);
    assert!(message.contains("`ids`") && message.contains("GPU 0") && message.contains("host memory ("), "{message}");
}

#[test]
fn a_stream_from_another_thread_ends_in_one_final() {
    let behaviour = Behaviour::each(|request| {
        let timings = timings(&request);
        let mut sink = request.into_sink();
        thread::spawn(move || {
            for chunk in ["a", "b", "c"] {
                sink.send(&text(chunk)).unwrap();
            }
            sink.finish(Ok(text("")), timings);
        });
    });
    let server = serve("stream", behaviour);
    let model = server.load(spec("stream")).unwrap();
    let tickets = model.execute((0..64).map(|index| RequestSpec::new(&index.to_string())).collect());
    for ticket in tickets {
        let replies = ticket.wait();
        assert_eq!(texts(&replies), ["a", "b", "c", ""].map(|chunk| Some(chunk.to_owned())));
        assert_eq!(flags(&replies), [false, false, false, true]);
        let statistics = ticket.statistics();
        assert_eq!(statistics.len(), 1);
        assert!(statistics[0].success);
    }
    assert_eq!(model.execution_count(), 64);
}

#[test]
fn an_error_for_one_sequence_leaves_the_request_open() {
    let behaviour = Behaviour::each(|request| {
        let mut sink = request.into_sink();
        sink.send_error(&Error::internal("sequence 0 failed")).unwrap();
        sink.finish(Ok(text("sequence 1")), None);
    });
    let server = serve("half", behaviour);
    let replies = server.load(spec("half")).unwrap().infer(RequestSpec::default());
    assert_eq!(error(&replies[0]), (INTERNAL, "sequence 0 failed"));
    assert_eq!((texts(&replies), flags(&replies)), (vec![None, Some("sequence 1".into())], vec![false, true]));
}

#[test]
fn the_kind_of_an_error_is_the_clients_code() {
    let kinds = [
        (ErrorKind::Internal, 1),
        (ErrorKind::NotFound, 2),
        (ErrorKind::InvalidArg, 3),
        (ErrorKind::Unavailable, 4),
        (ErrorKind::Unsupported, 5),
        (ErrorKind::Cancelled, 7),
    ];
    let behaviour = Behaviour::execute(move |requests| {
        for (request, (kind, _)) in requests.into_iter().zip(kinds) {
            let timings = timings(&request);
            request.fail(Error::new(kind, format!("{kind:?} \0")), timings);
        }
    });
    let server = serve("kinds", behaviour);
    let model = server.load(spec("kinds")).unwrap();
    let tickets = model.execute(vec![RequestSpec::default(); kinds.len()]);
    for (ticket, (kind, code)) in tickets.into_iter().zip(kinds) {
        assert_eq!(error(&ticket.wait()[0]), (code, format!("{kind:?} \u{fffd}").as_str()));
        assert_eq!(ticket.statistics().iter().map(|s| s.success).collect::<Vec<_>>(), [false]);
    }
}

#[test]
fn a_request_that_is_dropped_is_answered_and_counted_as_failed() {
    let server = serve("dropped", Behaviour::execute(drop));
    let model = server.load(spec("dropped")).unwrap();
    for ticket in model.execute(vec![RequestSpec::default(); 3]) {
        let replies = ticket.wait();
        assert_eq!(replies.len(), 1);
        assert_eq!(error(&replies[0]).0, INTERNAL);
        assert_eq!(ticket.statistics().iter().map(|s| s.success).collect::<Vec<_>>(), [false]);
    }
}

#[test]
fn a_panic_in_execute_answers_every_request_and_the_next_is_served() {
    let behaviour = Behaviour::execute(|requests| {
        for request in requests {
            if request.id().unwrap() == "bad" {
                panic!("bad request");
            }
            request.into_sink().finish(Ok(text("ok")), None);
        }
    });
    let server = serve("panics", behaviour);
    let model = server.load(spec("panics")).unwrap();
    let tickets = model.execute(["a", "bad", "c"].map(RequestSpec::new).to_vec());
    let replies: Vec<_> = tickets.into_iter().map(|ticket| ticket.wait()).collect();
    assert_eq!(texts(&replies[0]), [Some("ok".to_owned())]);
    assert_eq!(error(&replies[1][0]).0, INTERNAL);
    assert_eq!(error(&replies[2][0]).0, INTERNAL);
    assert_eq!(texts(&model.infer(RequestSpec::new("d"))), [Some("ok".to_owned())]);
    assert!(server.log().iter().any(|(_, _, text)| text.contains("bad request")));
}

#[test]
fn a_panic_in_a_worker_thread_answers_its_request() {
    let behaviour = Behaviour::each(|request| {
        let mut sink = request.into_sink();
        let worker = thread::spawn(move || {
            sink.send(&text("a")).unwrap();
            panic!("worker");
        });
        assert!(worker.join().is_err());
    });
    let server = serve("worker", behaviour);
    let replies = server.load(spec("worker")).unwrap().infer(RequestSpec::default());
    assert_eq!(flags(&replies), [false, true]);
    assert_eq!(error(&replies[1]).0, INTERNAL);
}

#[test]
fn an_output_that_the_server_refuses_becomes_an_error() {
    let behaviour = Behaviour::each(|request| {
        let mut sink = request.into_sink();
        let undeclared = Response { outputs: vec![OutputTensor::int32("other", &[1], &[1])], ..text("x") };
        let refused = sink.send(&undeclared).unwrap_err();
        assert!(refused.message().contains("`other`"), "{refused}");
        sink.send(&text("fine")).unwrap();
        sink.finish(Ok(undeclared), None);
    });
    let server = serve("refused", behaviour);
    let config = json!({ "output": [{ "name": "text" }] });
    let replies = server.load(ModelSpec::new("refused", config, "/")).unwrap().infer(RequestSpec::default());
    assert_eq!((texts(&replies), flags(&replies)), (vec![Some("fine".into()), None], vec![false, true]));
    assert!(error(&replies[1]).1.starts_with("Error encountered while populating response: output `other`"));
}

#[test]
fn an_output_whose_bytes_are_not_its_shapes_is_never_sent() {
    let behaviour = Behaviour::each(|request| {
        let tensor = OutputTensor { bytes: vec![0; 8], ..OutputTensor::int32("ids", &[1, 3], &[]) };
        assert_eq!(tensor.dtype, DataType::Int32);
        request.into_sink().finish(Ok(Response { outputs: vec![tensor], ..Response::default() }), None);
    });
    let server = serve("misshapen", behaviour);
    let replies = server.load(spec("misshapen")).unwrap().infer(RequestSpec::default());
    let (code, message) = error(&replies[0]);
    assert_eq!(code, INTERNAL);
    assert!(message.contains("`ids`") && message.contains("12 bytes, got 8"), "{message}");
}

#[test]
fn every_server_call_of_an_answer_may_fail_and_the_request_still_ends() {
    let behaviour = Behaviour::each(|request| {
        let timings = timings(&request);
        let parameters = vec![("p".to_owned(), Value::Int(1))];
        request.into_sink().finish(Ok(Response { parameters, ..text("x") }), timings);
    });
    let server = serve("frail", behaviour);
    let model = server.load(spec("frail")).unwrap();
    for function in [
        "TRITONBACKEND_ResponseFactoryNew",
        "TRITONBACKEND_ResponseNewFromFactory",
        "TRITONBACKEND_ResponseSetIntParameter",
        "TRITONBACKEND_ResponseOutput",
        "TRITONBACKEND_OutputBuffer",
    ] {
        server.fail_next(function, "broken");
        let replies = model.infer(RequestSpec::default());
        assert_eq!(flags(&replies), [true], "{function}");
        assert!(error(&replies[0]).1.ends_with("broken"), "{function}: {replies:?}");
    }
    server.fail_next("TRITONBACKEND_ModelInstanceReportStatistics", "broken");
    assert!(model.infer(RequestSpec::default())[0].error.is_none());
}

#[test]
fn without_any_response_the_request_ends_in_flags() {
    let server = serve("mute", Behaviour::each(echo));
    let model = server.load(spec("mute")).unwrap();
    server.fail_next("TRITONBACKEND_ResponseNewFromFactory", "no memory");
    server.fail_next("TRITONBACKEND_ResponseNewFromFactory", "no memory");
    assert_eq!(model.infer(RequestSpec::default()), []);
}

#[test]
fn a_client_that_goes_away_is_noticed() {
    let (to_worker, work) = mpsc::channel::<Request>();
    let worker = thread::spawn(move || {
        for request in work {
            while !request.is_cancelled() {
                thread::yield_now();
            }
            request.fail(Error::new(ErrorKind::Cancelled, "the client went away"), None);
        }
    });
    let to_worker = Arc::new(parking_lot::Mutex::new(Some(to_worker)));
    let sender = to_worker.clone();
    let server =
        serve("cancelled", Behaviour::each(move |request| sender.lock().as_ref().unwrap().send(request).unwrap()));
    let model = server.load(spec("cancelled")).unwrap();
    let ticket = model.execute(vec![RequestSpec::default()])[0];
    assert!(ticket.replies().is_empty());
    ticket.cancel();
    assert_eq!(ticket.wait().len(), 1);
    to_worker.lock().take();
    worker.join().unwrap();
}

#[test]
fn an_empty_execute_is_no_error() {
    let server = serve("empty", Behaviour::each(echo));
    assert!(server.load(spec("empty")).unwrap().execute(vec![]).is_empty());
}
