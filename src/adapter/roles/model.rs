//! Serves the pure roles: a thread takes requests, computes and answers, so that the server's caller never waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Postprocessor, Preprocessor};
use crate::adapter::tensor::NamedTensor;
use crate::config::{ModelRole, PARAMETERS, Parameters, Source};
use crate::error::{Error, Result};
use crate::tensors::Row;
use crate::tensors::text::{
    POSTPROCESSING_INPUTS, POSTPROCESSING_OUTPUTS, PREPROCESSING_INPUTS, PREPROCESSING_OUTPUTS,
};
use crate::triton::{Instance, InstanceHandler, ModelHandler, Request, Response, Timings, monotonic_ns};

/// A loaded model of a pure role.
pub struct RoleModel {
    role: Arc<Role>,
}

struct Role {
    kind: Kind,
    /// Outputs that the configuration declares UINT32, as it did up to version 0.6.
    unsigned: Vec<String>,
}

enum Kind {
    Preprocessing(Preprocessor),
    Postprocessing(Postprocessor),
}

impl RoleModel {
    /// Loads the tokenizer.
    ///
    /// # Errors
    /// Says what is wrong with `tokenizer_dir` or its files.
    pub fn load(role: ModelRole, config: &Value, parameters: &Parameters) -> Result<Self> {
        let texts = texts(parameters);
        let kind = match role {
            ModelRole::Preprocessing => Kind::Preprocessing(Preprocessor::new(&texts)?.configured(config)),
            ModelRole::Postprocessing => Kind::Postprocessing(Postprocessor::new(&texts)?.configured(config)),
            _ => return Err(Error::internal(format!("{role:?} is no pure role"))),
        };
        let outputs = config["output"].as_array().into_iter().flatten();
        let unsigned = outputs.filter(|output| output["data_type"] == "TYPE_UINT32");
        let unsigned = unsigned.filter_map(|output| Some(output["name"].as_str()?.to_owned())).collect();
        Ok(Self { role: Arc::new(Role { kind, unsigned }) })
    }
}

impl ModelHandler for RoleModel {
    fn instance(self: Arc<Self>, _instance: Instance) -> Result<Arc<dyn InstanceHandler>> {
        Ok(Arc::new(RoleInstance::start(&self.role)?))
    }
}

impl Role {
    fn run(&self, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>> {
        let mut outputs = match &self.kind {
            Kind::Preprocessing(preprocessor) => preprocessor.run(inputs),
            Kind::Postprocessing(postprocessor) => postprocessor.run(inputs),
        }?;
        for output in outputs.iter_mut().filter(|output| self.unsigned.contains(&output.name)) {
            output.make_unsigned();
        }
        Ok(outputs)
    }

    fn answer(&self, request: &Request) -> Result<Response> {
        let inputs = request.inputs()?;
        let inputs = inputs.iter().map(NamedTensor::try_from).collect::<Result<Vec<_>>>()?;
        let requested = request.requested_outputs()?;
        let outputs = self.run(&inputs)?.into_iter().filter(|output| requested.contains(&output.name.as_str()));
        Ok(Response { outputs: outputs.map(Into::into).collect(), parameters: Vec::new() })
    }

    fn serve(&self, request: Request) {
        let (exec_start_ns, compute_start_ns) = (request.received_ns(), monotonic_ns());
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(&request)))
            .unwrap_or_else(|_| Err(Error::internal("computing the answer panicked")));
        let timings = Timings { exec_start_ns, compute_start_ns, compute_end_ns: monotonic_ns() };
        request.into_sink().finish(answer, Some(timings));
    }
}

/// One worker behind a queue: an ensemble sends the pieces of a stream as requests of their own and passes the answers
/// on as they come, so they have to come in order.
struct RoleInstance {
    queue: Mutex<Option<Sender<Request>>>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl RoleInstance {
    fn start(role: &Arc<Role>) -> Result<Self> {
        let (queue, inbox) = channel();
        let role = role.clone();
        let worker = thread::Builder::new()
            .name("text".into())
            .spawn(move || work(&role, &inbox))
            .map_err(|error| Error::internal(format!("cannot start a worker thread: {error}")))?;
        Ok(Self { queue: Mutex::new(Some(queue)), worker: Mutex::new(Some(worker)) })
    }
}

fn work(role: &Role, inbox: &Receiver<Request>) {
    while let Ok(request) = inbox.recv() {
        role.serve(request);
    }
}

impl InstanceHandler for RoleInstance {
    fn execute(&self, requests: Vec<Request>) {
        let queue = self.queue.lock();
        for request in requests {
            match &*queue {
                // A request that the worker takes no more answers when it is dropped.
                Some(queue) => drop(queue.send(request)),
                None => request.fail(Error::unavailable("the model is being unloaded"), None),
            }
        }
    }

    fn ready(&self) -> Result<()> {
        Ok(())
    }

    fn shutdown(&self) {
        drop(self.queue.lock().take());
        if let Some(worker) = self.worker.lock().take()
            && worker.join().is_err()
        {
            tracing::error!("the worker thread panicked");
        }
    }
}

/// The given texts by key, as the pure functions take them.
fn texts(parameters: &Parameters) -> super::Parameters {
    let given = PARAMETERS.iter().filter(|row| (row.source)(parameters) != Source::Default);
    given.filter_map(|row| Some((row.key.to_owned(), (row.text)(parameters)?.to_owned()))).collect()
}

/// Client batches of up to this many prompts, where the configuration says nothing.
const MAX_BATCH_SIZE: i64 = 128;

/// Adds inputs, outputs and the batch size where they are missing. `None` where nothing is missing.
pub fn complete(config: &Value, role: ModelRole) -> Option<Value> {
    let (inputs, outputs) = match role {
        ModelRole::Preprocessing => (PREPROCESSING_INPUTS, PREPROCESSING_OUTPUTS),
        ModelRole::Postprocessing => (POSTPROCESSING_INPUTS, POSTPROCESSING_OUTPUTS),
        _ => return None,
    };
    let mut completed = config.clone();
    let object = completed.as_object_mut()?;
    for (key, tensors) in [("input", inputs), ("output", outputs)] {
        if object.get(key).and_then(Value::as_array).is_none_or(Vec::is_empty) {
            object.insert(key.to_owned(), tensors.iter().map(config_entry).collect());
            if object.get("max_batch_size").and_then(Value::as_i64).unwrap_or(0) == 0 {
                object.insert("max_batch_size".to_owned(), json!(MAX_BATCH_SIZE));
            }
        }
    }
    (completed != *config).then_some(completed)
}

/// As an entry of a model configuration.
pub(super) fn config_entry(&(name, data_type, dims, optional): &Row) -> Value {
    let mut entry = json!({ "name": name, "data_type": data_type, "dims": dims });
    if optional {
        entry["optional"] = json!(true);
    }
    entry
}
