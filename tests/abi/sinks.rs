//! Metrics and the log.

use std::collections::BTreeMap;

use triton_trtllm::error::ErrorKind;
use triton_trtllm::triton::{MetricFamily, MetricKind};

use crate::fake::Server;

const INFO: u32 = 0;
const VERBOSE: u32 = 3;

fn gauge(name: &str) -> MetricFamily {
    MetricFamily::shared(MetricKind::Gauge, name, "help").unwrap()
}

#[test]
fn models_share_a_family_which_goes_with_its_last_metric() {
    let server = Server::start();
    let first = gauge("shared").metric(&[("model", "a"), ("version", "1")]).unwrap();
    let second = gauge("shared").metric(&[("model", "b"), ("version", "1")]).unwrap();
    assert_eq!(server.family_count(), 1);
    first.set(3.0).unwrap();
    second.increment(2.0).unwrap();
    second.increment(-0.5).unwrap();
    assert_eq!(server.metric("shared", &[("model", "a")]).unwrap().value, 3.0);
    let series = server.metric("shared", &[("model", "b")]).unwrap();
    let labels = [("model", "b"), ("version", "1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!((series.value, series.help.as_str()), (1.5, "help"));
    assert_eq!(series.labels, BTreeMap::from(labels));
    drop(first);
    assert_eq!((server.family_count(), server.metrics().len()), (1, 1));
    drop(second);
    assert_eq!(server.family_count(), 0);
    let again = gauge("shared").metric(&[]).unwrap();
    assert_eq!(server.family_count(), 1);
    drop(again);
}

#[test]
fn a_histogram_has_its_bounds_and_observations() {
    let server = Server::start();
    let family = MetricFamily::shared(MetricKind::Histogram, "lengths", "help").unwrap();
    let metric = family.histogram(&[("model", "m")], &[10.0, 100.0]).unwrap();
    metric.observe(7.0).unwrap();
    metric.observe(400.0).unwrap();
    let series = server.metric("lengths", &[("model", "m")]).unwrap();
    assert_eq!((series.bounds, series.observations), (vec![10.0, 100.0], vec![7.0, 400.0]));
}

#[test]
fn a_metric_refuses_what_its_kind_cannot_do() {
    let _server = Server::start();
    let counter = MetricFamily::shared(MetricKind::Counter, "kinds", "help").unwrap();
    let metric = counter.metric(&[]).unwrap();
    metric.increment(1.0).unwrap();
    assert!(metric.increment(-1.0).is_err());
    assert!(metric.set(1.0).is_err());
    assert!(metric.observe(1.0).is_err());
    assert!(counter.histogram(&[], &[1.0]).is_err());
    let conflict = MetricFamily::shared(MetricKind::Gauge, "kinds", "help").unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::InvalidArg);
    assert!(conflict.message().contains("`kinds`"), "{conflict}");
    let bad_name = MetricFamily::shared(MetricKind::Gauge, "a name", "help").unwrap_err();
    assert!(bad_name.message().contains("a name"), "{bad_name}");
}

#[test]
fn a_metric_that_the_server_refuses_leaves_no_family() {
    let server = Server::start();
    server.fail_next("TRITONSERVER_MetricNew", "full");
    let refused = gauge("refused").metric(&[("a", "b")]).unwrap_err();
    assert_eq!(refused.message(), "metric family `refused`: full");
    server.fail_next("TRITONSERVER_MetricArgsSetHistogram", "bounds");
    let family = MetricFamily::shared(MetricKind::Histogram, "refused", "help").unwrap();
    assert_eq!(family.histogram(&[], &[1.0]).unwrap_err().message(), "metric family `refused`: bounds");
}

#[test]
fn events_reach_the_log_at_the_level_that_the_operator_set() {
    let server = Server::start();
    let lines =
        |marker: &str| server.log().into_iter().filter(|(_, _, text)| text.contains(marker)).collect::<Vec<_>>();
    tracing::info!(model = "m", blocks = 7, "loaded \0 {}", "all");
    let (level, file, text) = lines("loaded").pop().unwrap();
    assert_eq!((level, text.as_str()), (INFO, "loaded \u{fffd} all model=m blocks=7"));
    assert!(file.ends_with("sinks.rs"), "{file}");
    for (verbose, count) in [(false, 0), (true, 1), (false, 1)] {
        server.set_verbose(verbose);
        tracing::debug!("a detail");
        assert_eq!(lines("a detail").len(), count);
    }
    assert_eq!(lines("a detail")[0].0, VERBOSE);
}

#[test]
fn a_block_of_lines_becomes_one_record_for_each() {
    let server = Server::start();
    tracing::info!("parameters in effect:\n  block one\n  block two");
    let texts: Vec<_> = server.log().into_iter().map(|(_, _, text)| text).collect();
    for line in ["parameters in effect:", "  block one", "  block two"] {
        assert!(texts.iter().any(|text| text == line), "{texts:?}");
    }
}
