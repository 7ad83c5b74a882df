//! The metrics of one model: registered at load, set from the engine's statistics, observed per request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::config::BatchingType;
use crate::engine::{Engine, EngineStats, EngineTotals, IterationStats};
use crate::error::{Error, Result};
use crate::metrics::{
    BUCKETS, Family, INPUT_TOKENS, Kind, Series, Snapshot, Totals, Value, WINDOW_LABEL, WindowBlocks, iteration_json,
    totals_json,
};
use crate::triton::{Metric, MetricFamily, MetricKind};

/// The series of one model and version.
pub struct ModelMetrics {
    batching: BatchingType,
    gauges: Vec<(Metric, &'static Series)>,
    counters: Vec<Counter>,
    histograms: Vec<(&'static str, Metric)>,
    /// Those of the first window and of all that turn up later.
    windows: Vec<WindowGauge>,
    /// The last iteration of each instance.
    instances: Mutex<Vec<Snapshot>>,
}

/// A gauge that each pool of windows has.
struct WindowGauge {
    family: MetricFamily,
    label: &'static str,
    series: &'static Series,
    /// Without that of the window.
    labels: [(&'static str, String); 2],
    by_window: Mutex<Vec<(u64, Metric)>>,
}

impl WindowGauge {
    fn set(&self, windows: &[WindowBlocks]) -> Result<()> {
        let Value::Window(read) = self.series.value else { return Ok(()) };
        let mut metrics = self.by_window.lock();
        for window in windows.iter().filter(|window| window.window_tokens > 0) {
            let known = metrics.iter().position(|(tokens, _)| *tokens == window.window_tokens);
            let at = known.map_or_else(|| self.register(&mut metrics, window.window_tokens), Ok)?;
            metrics[at].1.set(read(window) as f64)?;
        }
        Ok(())
    }

    fn register(&self, metrics: &mut Vec<(u64, Metric)>, window_tokens: u64) -> Result<usize> {
        let tokens = window_tokens.to_string();
        let [(model, name), (version, number)] = &self.labels;
        let own = [(WINDOW_LABEL, &*tokens), (self.label, self.series.label_value)];
        let metric = self.family.metric(&[(model, name), (version, number), own[0], own[1]])?;
        metrics.push((window_tokens, metric));
        Ok(metrics.len() - 1)
    }
}

/// A counter, which the server can only add to.
struct Counter {
    metric: Metric,
    series: &'static Series,
    /// What was added so far; changed under the lock of the instances.
    sum: AtomicU64,
}

/// The share of one instance in its model's metrics.
#[derive(Clone)]
pub struct InstanceMetrics {
    model: Arc<ModelMetrics>,
    index: usize,
}

impl ModelMetrics {
    /// Registers every family with its series. New ones are zero; those of the same model that still serves while this
    /// one loads in its place stay as they are.
    ///
    /// # Errors
    /// Those of the server; histograms that an old server does not have are left out.
    pub fn register(model: &str, version: u64, batching: BatchingType) -> Result<Self> {
        let version = version.to_string();
        let mut metrics = Self {
            batching,
            gauges: Vec::new(),
            counters: Vec::new(),
            histograms: Vec::new(),
            windows: Vec::new(),
            instances: Mutex::default(),
        };
        for family in Family::of(batching) {
            metrics.add(family, model, &version)?;
        }
        Ok(metrics)
    }

    /// The metrics of one more instance.
    pub fn instance(self: &Arc<Self>) -> InstanceMetrics {
        let mut instances = self.instances.lock();
        instances.push(Snapshot::default());
        InstanceMetrics { model: self.clone(), index: instances.len() - 1 }
    }

    fn set(&self, snapshot: &Snapshot) {
        for gauge in &self.windows {
            if let Err(error) = gauge.set(&snapshot.windows) {
                tracing::warn!("a metric of windows could not be set: {error}");
            }
        }
        for (metric, series) in &self.gauges {
            if let Some(value) = series.value.read(snapshot)
                && let Err(error) = metric.set(value)
            {
                tracing::warn!("metric {:?} could not be set: {error}", series.json_key);
            }
        }
        for Counter { metric, series, sum } in &self.counters {
            let value = series.value.read(snapshot).unwrap_or_default() as u64;
            let more = value.saturating_sub(sum.swap(value, Ordering::Relaxed));
            if more > 0
                && let Err(error) = metric.increment(more as f64)
            {
                tracing::warn!("metric {:?} could not be incremented: {error}", series.json_key);
            }
        }
    }

    /// Observes the lengths of a request that has ended well.
    fn observe_request(&self, prompt_tokens: usize, generated_tokens: usize) {
        for (name, metric) in &self.histograms {
            let value = if *name == INPUT_TOKENS { prompt_tokens } else { generated_tokens };
            if let Err(error) = metric.observe(value as f64) {
                tracing::warn!("metric {name} could not be observed: {error}");
            }
        }
    }

    fn add(&mut self, family: &'static Family, model: &str, version: &str) -> Result<()> {
        let kind = match family.kind {
            Kind::Counter => MetricKind::Counter,
            Kind::Gauge => MetricKind::Gauge,
            Kind::Histogram => MetricKind::Histogram,
        };
        let handle = MetricFamily::shared(kind, family.name, family.help)?;
        for series in family.series {
            let labels = [("model", model), ("version", version), (family.label, series.label_value)];
            match family.kind {
                Kind::Gauge if matches!(series.value, Value::Window(_)) => self.windows.push(WindowGauge {
                    family: handle.clone(),
                    label: family.label,
                    series,
                    labels: [("model", model.to_owned()), ("version", version.to_owned())],
                    by_window: Mutex::default(),
                }),
                Kind::Gauge => self.gauges.push((handle.metric(&labels)?, series)),
                Kind::Counter => {
                    self.counters.push(Counter { metric: handle.metric(&labels)?, series, sum: AtomicU64::new(0) });
                }
                Kind::Histogram => match handle.histogram(&labels, &BUCKETS) {
                    Ok(metric) => self.histograms.push((family.name, metric)),
                    Err(error) => tracing::warn!("{} is not exported: {error}", family.name),
                },
            }
        }
        Ok(())
    }
}

impl InstanceMetrics {
    /// Sets the gauges to the sum over the model's instances, which is returned.
    pub fn update(&self, snapshot: Snapshot) -> Snapshot {
        let mut instances = self.model.instances.lock();
        instances[self.index] = snapshot;
        let sum = Snapshot::sum(instances.iter().copied());
        self.model.set(&sum);
        sum
    }

    /// Sets the gauges once more: the model that this one has replaced set them last, with its own end.
    fn repeat(&self) {
        let instances = self.model.instances.lock();
        self.model.set(&Snapshot::sum(instances.iter().copied()));
    }

    /// Observes the lengths of a request that has ended well.
    pub fn observe_request(&self, prompt_tokens: usize, generated_tokens: usize) {
        self.model.observe_request(prompt_tokens, generated_tokens);
    }
}

/// The thread that brings the gauges up to date.
pub struct Updater {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Updater {
    /// Looks at the engine every `period`; the last iteration wins. Each change is logged as JSON at verbose level 1.
    ///
    /// # Errors
    /// `Internal` when there is no thread.
    pub fn start(metrics: InstanceMetrics, engine: Engine, period: Duration) -> Result<Self> {
        let (stop, stopped) = channel();
        let work = move || {
            let mut last = (IterationStats::default(), EngineTotals::default());
            loop {
                let ended = stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout);
                let stats = engine.stats();
                if (stats.last_iteration, stats.totals) != last {
                    last = (stats.last_iteration, stats.totals);
                    let sum = metrics.update(snapshot(&stats, now_us()));
                    tracing::debug!("{}", totals_json(&sum, metrics.model.batching));
                    tracing::debug!("{}", iteration_json(&sum, metrics.model.batching));
                } else {
                    metrics.repeat();
                }
                if ended {
                    return;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("metrics".into())
            .spawn(work)
            .map_err(|error| Error::internal(format!("cannot start the metrics thread: {error}")))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Updater {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics thread panicked");
        }
    }
}

/// What an engine that has not run yet looks like.
pub fn idle_snapshot(engine: &Engine) -> Snapshot {
    snapshot(&engine.stats(), now_us())
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

fn snapshot(stats: &EngineStats, timestamp_us: u64) -> Snapshot {
    let step = &stats.last_iteration;
    let count = |value: usize| value as u64;
    Snapshot {
        active_requests: count(step.active_requests),
        max_requests: count(step.max_requests),
        scheduled_requests: count(step.scheduled_requests),
        context_requests: count(step.context_requests),
        generation_requests: count(step.generation_requests),
        waiting_requests: count(step.waiting_requests),
        paused_requests: count(step.paused_requests),
        total_context_tokens: count(step.total_context_tokens),
        total_generation_tokens: count(step.total_generation_tokens),
        empty_generation_slots: count(step.empty_generation_slots),
        micro_batch_id: count(step.micro_batch_id),
        cpu_bytes: step.memory.cpu_bytes,
        gpu_bytes: step.memory.gpu_bytes,
        pinned_bytes: step.memory.pinned_bytes,
        max_blocks: count(step.kv.max_blocks),
        free_blocks: count(step.kv.free_blocks),
        used_blocks: count(step.kv.used_blocks),
        tokens_per_block: count(step.kv.tokens_per_block),
        reused_blocks: step.kv.reused_blocks,
        iteration: step.iteration,
        timestamp_us,
        windows: step.windows.map(|pool| WindowBlocks {
            window_tokens: count(pool.window_tokens),
            max_blocks: count(pool.max_blocks),
            used_blocks: count(pool.used_blocks),
        }),
        totals: totals(&stats.totals, step),
    }
}

fn totals(totals: &EngineTotals, step: &IterationStats) -> Totals {
    let unusual = totals.requests_cancelled + totals.requests_timed_out + totals.requests_failed;
    Totals {
        completed_requests: totals.requests_finished.saturating_sub(unusual),
        cancelled_requests: totals.requests_cancelled,
        timed_out_requests: totals.requests_timed_out,
        failed_requests: totals.requests_failed,
        prompt_tokens: totals.prompt_tokens,
        generated_tokens: totals.generated_tokens,
        cached_tokens: totals.cached_tokens,
        preemptions: totals.preemptions,
        evicted_blocks: step.kv.evicted_blocks,
        failed_checks: totals.failed_checks,
        offloaded_blocks: step.tiers.offloaded_blocks,
        onboarded_blocks: step.tiers.onboarded_blocks,
        dropped_blocks: step.tiers.host_evicted_blocks,
        failed_transfers: step.tiers.failed_transfers,
        stored_blocks: step.tiers.stored_blocks,
        loaded_blocks: step.tiers.loaded_blocks,
    }
}
