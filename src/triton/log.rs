//! `tracing` events in the server's log.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::ffi::{c_string, check};
use super::sys;

/// The layer that writes events to the server's log: error, warn and info at their levels, debug and trace as verbose.
#[derive(Clone, Copy, Debug, Default)]
pub struct TritonLog;

/// Makes [`TritonLog`] the process's subscriber, unless there is one.
pub(super) fn install() {
    let subscriber = tracing_subscriber::registry().with(TritonLog);
    // A second load of the library finds the first one's subscriber, which does the same.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

impl<S: Subscriber> Layer<S> for TritonLog {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The operator changes levels at run time.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // SAFETY: no premises.
        unsafe { sys::TRITONSERVER_LogIsEnabled(level(*metadata.level())) }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        let file = c_string(metadata.file().unwrap_or("trtllm"));
        let line = metadata.line().unwrap_or(0) as i32;
        // The server escapes line breaks, which makes a block of lines unreadable: one record for each line.
        for text in format!("{}{}", text.message, text.fields).lines() {
            let text = c_string(text);
            // SAFETY: both strings live through the call. A log that fails has nowhere to say so.
            let _ = unsafe {
                check(sys::TRITONSERVER_LogMessage(level(*metadata.level()), file.as_ptr(), line, text.as_ptr()))
            };
        }
    }
}

fn level(level: Level) -> sys::TRITONSERVER_LogLevel {
    match level {
        Level::ERROR => sys::TRITONSERVER_LOG_ERROR,
        Level::WARN => sys::TRITONSERVER_LOG_WARN,
        Level::INFO => sys::TRITONSERVER_LOG_INFO,
        Level::DEBUG | Level::TRACE => sys::TRITONSERVER_LOG_VERBOSE,
    }
}

/// `message key=value …`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        debug_assert!(written.is_ok(), "a String takes any text");
    }
}
