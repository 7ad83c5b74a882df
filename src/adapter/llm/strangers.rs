//! Request parameters that nobody reads: the generate endpoints make one of every key that is no tensor of the model.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::terms::TERMS;
use crate::config::closest;
use crate::tensors::llm::INPUTS;
use crate::triton::ParameterValue;

/// Most names that are told of: clients choose them.
const MOST: usize = 32;

/// The endpoints read it as the id of the request, and leave it among the parameters.
const ID: &str = "id";

/// The names that the log has told of.
#[derive(Default)]
pub struct Strangers(Mutex<BTreeSet<String>>);

impl Strangers {
    /// Tells once of each parameter that has no effect.
    pub fn tell(&self, parameters: &BTreeMap<String, ParameterValue>) {
        for name in parameters.keys().filter(|name| !TERMS.contains(&name.as_str()) && *name != ID) {
            let mut told = self.0.lock();
            if told.len() < MOST && told.insert(name.clone()) {
                let inputs = INPUTS.iter().flat_map(|row| row.aliases.iter().copied().chain([row.name]));
                let meant = closest(name, inputs).map_or(String::new(), |meant| format!("; is {meant} meant?"));
                tracing::warn!("requests have a parameter {name:?}, which is no input and has no effect{meant}");
            }
        }
    }
}
