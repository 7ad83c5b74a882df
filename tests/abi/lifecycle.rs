//! Load, unload, and everything that may fail on the way.

use std::sync::Arc;

use serde_json::json;
use triton_trtllm::error::Error;

use crate::fake::{Group, ModelSpec, RequestSpec, Server};
use crate::loader::{Behaviour, serve};

const INTERNAL: u32 = 1;
const UNAVAILABLE: u32 = 4;
const UNSUPPORTED: u32 = 5;
const KIND_MODEL: u32 = 3;

fn spec(name: &str) -> ModelSpec {
    ModelSpec::with_parameters(name, &[])
}

#[test]
fn models_without_an_instance_group_get_one_of_kind_model() {
    let server = Server::start();
    assert_eq!(server.preferred_groups(), [Group { kind: KIND_MODEL, count: 1, devices: vec![] }]);
}

#[test]
fn a_server_of_another_major_version_is_refused() {
    let failure = Server::try_start((2, 0)).err().expect("version 2 is not ours");
    assert_eq!(failure.code, UNSUPPORTED);
    assert!(failure.message.contains("2.0"), "{failure:?}");
}

#[test]
fn a_model_sees_what_the_server_knows_about_it() {
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let behaviour = Behaviour {
        load: Arc::new({
            let seen = seen.clone();
            move |model| {
                *seen.lock() = Some(model);
                Ok(())
            }
        }),
        instance: Arc::new(|instance| {
            assert_eq!(instance.kind(), triton_trtllm::triton::InstanceKind::Model);
            assert!(instance.name().starts_with("described_0_"));
            Ok(())
        }),
        ..Behaviour::default()
    };
    let server = serve("described", behaviour);
    let config = json!({ "max_batch_size": 8, "parameters": { "a": { "string_value": "b" } } });
    let mut spec = ModelSpec::new("described", config.clone(), "/models/described").instances(2);
    spec.version = 7;
    let _model = server.load(spec).unwrap();
    let model = seen.lock().take().unwrap();
    assert_eq!((model.name.as_str(), model.version), ("described", 7));
    assert_eq!(model.repository.to_str(), Some("/models/described"));
    assert_eq!(model.config, config);
    assert_eq!(model.backend.name, "trtllm");
    assert_eq!(model.backend.config["cmdline"]["default-max-batch-size"], "4");
}

#[test]
fn unloading_shuts_every_instance_down_and_frees_the_handlers() {
    let behaviour = Behaviour::default();
    let server = serve("unloaded", behaviour.clone());
    for _ in 0..3 {
        let model = server.load(spec("unloaded").instances(2)).unwrap();
        assert_eq!(*behaviour.alive.lock(), 3);
        model.ready().unwrap();
        drop(model);
        assert_eq!(*behaviour.alive.lock(), 0);
    }
    assert_eq!(*behaviour.shutdowns.lock(), 6);
}

#[test]
fn the_config_is_completed_only_where_the_server_wants_it() {
    let behaviour = Behaviour {
        auto_complete: Arc::new(|model| {
            let mut config = model.config.clone();
            config["max_batch_size"] = json!(64);
            Ok(Some(config))
        }),
        load: Arc::new(|model| match model.config["max_batch_size"].as_u64() {
            Some(64) => Ok(()),
            other => Err(Error::invalid(format!("max_batch_size is {other:?}"))),
        }),
        ..Behaviour::default()
    };
    let server = serve("completed", behaviour);
    let model = server.load(spec("completed").auto_complete()).unwrap();
    assert_eq!(model.config()["max_batch_size"], 64);
    drop(model);
    let failure = server.load(spec("completed")).err().expect("nothing was completed");
    assert!(failure.message.ends_with("max_batch_size is None"), "{failure:?}");
}

#[test]
fn a_failed_load_says_which_state_failed_and_leaves_nothing() {
    const MODEL: &str = "unexpected error when creating modelState: ";
    const INSTANCE: &str = "unexpected error when creating modelInstanceState: ";
    let cases: [(&str, Behaviour, String); 5] = [
        ("load", failing(|b| b.load = Arc::new(|_| Err(Error::invalid("no")))), format!("{MODEL}no")),
        ("load_panic", failing(|b| b.load = Arc::new(|_| panic!("ouch"))), format!("{MODEL}panic in loading: ouch")),
        (
            "complete",
            failing(|b| b.auto_complete = Arc::new(|_| Err(Error::not_found("no file")))),
            format!("{MODEL}no file"),
        ),
        ("instance", failing(|b| b.instance = Arc::new(|_| Err(Error::invalid("no")))), format!("{INSTANCE}no")),
        (
            "instance_panic",
            failing(|b| b.instance = Arc::new(|_| panic!("ouch {}", 1))),
            format!("{INSTANCE}panic in loading: ouch 1"),
        ),
    ];
    for (name, behaviour, expected) in cases {
        let server = serve(name, behaviour.clone());
        let failure = server.load(spec(name).auto_complete()).err().expect("the load fails");
        assert_eq!((failure.code, failure.message), (INTERNAL, expected));
        assert_eq!(*behaviour.alive.lock(), 0);
    }
}

#[test]
fn a_state_that_the_server_does_not_keep_is_freed() {
    let behaviour = Behaviour::default();
    let server = serve("unkept", behaviour.clone());
    for function in ["TRITONBACKEND_ModelSetState", "TRITONBACKEND_ModelInstanceSetState"] {
        server.fail_next(function, "no room");
        let failure = server.load(spec("unkept")).err().expect("the load fails");
        assert!(failure.message.ends_with("no room"), "{failure:?}");
        assert_eq!(*behaviour.alive.lock(), 0);
    }
}

#[test]
fn every_server_call_of_a_load_may_fail() {
    let server = serve("calls", Behaviour::default());
    for function in [
        "TRITONBACKEND_ModelName",
        "TRITONBACKEND_ModelVersion",
        "TRITONBACKEND_ModelRepository",
        "TRITONBACKEND_ModelBackend",
        "TRITONBACKEND_BackendConfig",
        "TRITONBACKEND_ModelConfig",
        "TRITONSERVER_MessageSerializeToJson",
        "TRITONBACKEND_ModelAutoCompleteConfig",
        "TRITONBACKEND_ModelInstanceModel",
        "TRITONBACKEND_ModelInstanceName",
        "TRITONBACKEND_ModelInstanceKind",
    ] {
        server.fail_next(function, "broken");
        let failure = server.load(spec("calls")).err().unwrap_or_else(|| panic!("{function} failed unseen"));
        assert!(failure.message.ends_with("broken"), "{function}: {failure:?}");
    }
    server.load(spec("calls")).unwrap();
}

#[test]
fn an_instance_that_was_not_initialized_refuses_without_touching_requests() {
    let server = serve("absent", Behaviour::default());
    let model = server.load(spec("absent")).unwrap();
    server.fail_next("TRITONBACKEND_ModelInstanceState", "no state");
    let replies = model.infer(RequestSpec::default());
    assert_eq!(replies[0].error.as_ref().unwrap().message, "no state");
    model.without_state(|model| {
        assert_eq!(model.ready().unwrap_err().code, UNAVAILABLE);
        let replies = model.infer(RequestSpec::default());
        assert_eq!(replies[0].error.as_ref().unwrap().code, UNAVAILABLE);
    });
}

#[test]
fn readiness_is_the_handlers_even_when_it_panics() {
    let behaviour = Behaviour { ready: Arc::new(|()| Err(Error::unavailable("draining"))), ..Behaviour::default() };
    let server = serve("unready", behaviour);
    let failure = server.load(spec("unready")).unwrap().ready().unwrap_err();
    assert_eq!((failure.code, failure.message.as_str()), (UNAVAILABLE, "draining"));
    drop(server);

    let server = serve("unready", Behaviour { ready: Arc::new(|()| panic!("oops")), ..Behaviour::default() });
    let failure = server.load(spec("unready")).unwrap().ready().unwrap_err();
    assert_eq!(failure.code, INTERNAL);
    assert!(failure.message.contains("oops"), "{failure:?}");
}

fn failing(change: impl FnOnce(&mut Behaviour)) -> Behaviour {
    let mut behaviour = Behaviour::default();
    change(&mut behaviour);
    behaviour
}
