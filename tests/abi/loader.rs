//! Models whose behaviour a test writes down.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use serde_json::Value;
use triton_trtllm::error::{Error, Result};
use triton_trtllm::triton::{Instance, InstanceHandler, Model, ModelHandler, ModelLoader, Request, set_loader};

use crate::fake::Server;

type Action<In, Out = ()> = Arc<dyn Fn(In) -> Result<Out> + Send + Sync>;

/// What a model does at each call. The default answers every call well and every request with an error.
#[derive(Clone)]
pub struct Behaviour {
    pub auto_complete: Action<Model, Option<Value>>,
    pub load: Action<Model>,
    pub instance: Action<Instance>,
    pub execute: Arc<dyn Fn(Vec<Request>) + Send + Sync>,
    pub ready: Action<()>,
    /// Counts the live handlers: the model's and its instances'.
    pub alive: Arc<Mutex<usize>>,
    pub shutdowns: Arc<Mutex<usize>>,
}

static BEHAVIOURS: LazyLock<Mutex<HashMap<String, Behaviour>>> = LazyLock::new(Default::default);

/// Starts a server on which the model `name` does as `behaviour` says.
pub fn serve(name: &str, behaviour: Behaviour) -> Server {
    let server = Server::start();
    set_loader(&TestLoader);
    BEHAVIOURS.lock().insert(name.to_owned(), behaviour);
    server
}

impl Behaviour {
    /// A model that treats requests this way.
    pub fn execute(execute: impl Fn(Vec<Request>) + Send + Sync + 'static) -> Self {
        Self { execute: Arc::new(execute), ..Self::default() }
    }

    /// A model that treats each request this way.
    pub fn each(answer: impl Fn(Request) + Send + Sync + 'static) -> Self {
        Self::execute(move |requests| requests.into_iter().for_each(&answer))
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            auto_complete: Arc::new(|_| Ok(None)),
            load: Arc::new(|_| Ok(())),
            instance: Arc::new(|_| Ok(())),
            execute: Arc::new(|requests| {
                requests.into_iter().for_each(|request| request.fail(Error::internal("nothing to say"), None))
            }),
            ready: Arc::new(|()| Ok(())),
            alive: Arc::default(),
            shutdowns: Arc::default(),
        }
    }
}

struct TestLoader;

struct Handler(Behaviour);

impl Handler {
    fn new(behaviour: Behaviour) -> Arc<Self> {
        *behaviour.alive.lock() += 1;
        Arc::new(Self(behaviour))
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        *self.0.alive.lock() -= 1;
    }
}

impl ModelLoader for TestLoader {
    fn auto_complete(&self, model: &Model) -> Result<Option<Value>> {
        (behaviour(model).auto_complete)(model.clone())
    }

    fn load(&self, model: &Model) -> Result<Arc<dyn ModelHandler>> {
        let behaviour = behaviour(model);
        (behaviour.load)(model.clone())?;
        Ok(Handler::new(behaviour))
    }
}

impl ModelHandler for Handler {
    fn instance(self: Arc<Self>, instance: Instance) -> Result<Arc<dyn InstanceHandler>> {
        (self.0.instance)(instance)?;
        Ok(Handler::new(self.0.clone()))
    }
}

impl InstanceHandler for Handler {
    fn execute(&self, requests: Vec<Request>) {
        (self.0.execute)(requests);
    }

    fn ready(&self) -> Result<()> {
        (self.0.ready)(())
    }

    fn shutdown(&self) {
        *self.0.shutdowns.lock() += 1;
    }
}

fn behaviour(model: &Model) -> Behaviour {
    BEHAVIOURS.lock().get(&model.name).cloned().unwrap_or_default()
}
