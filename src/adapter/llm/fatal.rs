//! `fatal_action: exit`: a process that cannot serve any more ends, for whoever runs it to start it anew.

use std::thread;
use std::time::Duration;

use crate::engine::HealthProbe;
use crate::triton::exit_process;

/// How long the frontends have to pass on the last answers.
const GRACE: Duration = Duration::from_secs(1);

/// Ends the process when the engine has failed.
pub struct FatalExit(HealthProbe);

impl FatalExit {
    pub fn new(engine: HealthProbe) -> Self {
        Self(engine)
    }

    /// Whether the engine has failed for good, not only a request.
    pub fn is_due(&self) -> bool {
        self.0.health().is_err()
    }

    /// Ends the process soon, whatever else hangs.
    pub fn start(self) {
        tracing::error!("the engine has failed and fatal_action is exit: the server ends in {GRACE:?}");
        let end = || {
            thread::sleep(GRACE);
            exit_process(1);
        };
        if thread::Builder::new().name("fatal-exit".into()).spawn(end).is_err() {
            exit_process(1);
        }
    }
}
