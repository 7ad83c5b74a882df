//! Publishes what happens to the prefix cache, so that a router can send a request to where its beginning is cached.

mod lines;
mod router;
mod zmtp;

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::config::{Parameters, Source};
use crate::engine::{Engine, KvEventBatch};
use crate::error::{Error, Result};

/// Events that are kept where a sink is named and nothing is said of the buffer.
const DEFAULT_BUFFER: usize = 65_536;

/// How long an event waits at most before it is published.
const PERIOD: Duration = Duration::from_millis(10);

/// Where events go.
trait EventSink: Send {
    /// Looks after readers that come and go.
    fn tend(&mut self) {}

    fn publish(&mut self, batch: &KvEventBatch);
}

/// Events that the engine keeps for its reader.
///
/// # Errors
/// `InvalidArg` for a sink beside a buffer of 0.
pub fn buffer_size(parameters: &Parameters) -> Result<usize> {
    let size = parameters.kv_event_buffer_max_size.value as usize;
    if parameters.kv_event_sink.value.is_none() || size > 0 {
        return Ok(size);
    }
    if parameters.kv_event_buffer_max_size.source == Source::Given {
        return Err(Error::invalid("kv_event_buffer_max_size is 0: there is nothing to publish to kv_event_sink"));
    }
    Ok(DEFAULT_BUFFER)
}

/// The thread that publishes; ends when dropped, with what there is then.
pub struct EventPublisher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EventPublisher {
    /// Publishes the events of instance `rank` of a model to the sinks that `kv_event_sink` names; none: `None`.
    ///
    /// # Errors
    /// `InvalidArg` for a text that names no sink; `Unavailable` for one that cannot be opened.
    pub fn start(parameters: &Parameters, engine: &Engine, block_size: usize, rank: usize) -> Result<Option<Self>> {
        let Some(text) = &parameters.kv_event_sink.value else { return Ok(None) };
        let topic = parameters.kv_event_topic.value.as_deref().unwrap_or_default();
        let open = |name: &str| open(name.trim(), topic, block_size, rank);
        let sinks = text.split(',').map(open).collect::<Result<Vec<_>>>()?;
        let (stop, stopped) = channel();
        let engine = engine.clone();
        let work = move || {
            let mut sinks = sinks;
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                publish(&engine, &mut sinks);
            }
            publish(&engine, &mut sinks);
        };
        let thread = thread::Builder::new()
            .name("kv-events".into())
            .spawn(work)
            .map_err(|error| Error::internal(format!("cannot start the thread that publishes events: {error}")))?;
        Ok(Some(Self { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for EventPublisher {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that publishes events panicked");
        }
    }
}

fn publish(engine: &Engine, sinks: &mut [Box<dyn EventSink>]) {
    sinks.iter_mut().for_each(|sink| sink.tend());
    let batch = engine.drain_kv_events();
    if batch.lost > 0 {
        tracing::warn!("{} KV cache events were lost: kv_event_buffer_max_size is too small", batch.lost);
    }
    if !batch.events.is_empty() || batch.lost > 0 {
        sinks.iter_mut().for_each(|sink| sink.publish(&batch));
    }
}

/// `file:PATH`, `unix:PATH` or `zmq:tcp://ADDRESS:PORT`.
fn open(name: &str, topic: &str, block_size: usize, rank: usize) -> Result<Box<dyn EventSink>> {
    let numbered = |path: &str| if rank == 0 { path.to_owned() } else { format!("{path}.{rank}") };
    match name.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Box::new(lines::FileLines::open(&numbered(path))?)),
        Some(("unix", path)) if !path.is_empty() => Ok(Box::new(lines::SocketLines::bind(&numbered(path))?)),
        Some(("zmq", endpoint)) => {
            let publisher = zmtp::Publisher::bind(endpoint, rank)?;
            Ok(Box::new(router::RouterEvents::new(publisher, topic, block_size, rank)))
        }
        _ => Err(Error::invalid(format!(
            "kv_event_sink has {name:?}, expected file:PATH, unix:PATH or zmq:tcp://ADDRESS:PORT"
        ))),
    }
}
