//! What masks of guided rows cost: the host works them out while the device computes the step.

use super::GuidesArgs;
use super::sampling::{EXPRESSION, vocabulary};
use super::statistics::Statistics;
use crate::decode::guided::{GuideKind, GuideSource, Guides, TokenMask};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::runner::GuidedRows;
use serde_json::json;
use std::time::Instant;

const PERSON: &str = r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
    "email": {"type": "string", "format": "email"}, "tags": {"type": "array", "items": {"type": "string"}},
    "address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern":
    "^[0-9]{5}$"}}, "required": ["street", "zip"]}}, "required": ["name", "age", "email", "tags", "address"]}"#;
const SHORT_TEXTS: &str = r#"{"type": "array", "items": {"type": "string", "maxLength": 20}}"#;
const ENUMS: &str = r#"{"type": "array", "items": {"enum": ["north", "south", "east", "west"]}}"#;

const GUIDES: [(&str, GuideKind, &str); 5] = [
    ("an object of many kinds", GuideKind::JsonSchema, PERSON),
    ("any JSON object", GuideKind::Json, ""),
    ("a list of texts of at most 20 characters", GuideKind::JsonSchema, SHORT_TEXTS),
    ("a list of four words", GuideKind::JsonSchema, ENUMS),
    ("the expression of --choice guided", GuideKind::Regex, EXPRESSION),
];

/// Measures on the threads that serve guides and prints, in microseconds.
pub(super) fn run(args: &GuidesArgs) -> Result<()> {
    for (name, value) in [("--sequences", args.sequences), ("--steps", args.steps), ("--vocab-size", args.vocab_size)] {
        if value == 0 {
            return Err(Error::invalid(format!("{name} is 0; it must be at least 1")));
        }
    }
    let guides = Guides::new(&vocabulary(args.vocab_size))?;
    let mut rows = Vec::new();
    for (what, kind, text) in GUIDES {
        let start = Instant::now();
        let guide = guides.compile(&GuideSource { kind, text: text.to_owned() })?;
        let compiled_us = start.elapsed().as_secs_f64() * 1e6;
        rows.push((what, compiled_us, rounds(&mut GuidedRows::new(&guide, args.sequences), args)?));
    }
    if args.json {
        let row = |(what, compiled, us): &(_, _, _)| json!({ "what": what, "compiled": compiled, "microseconds": us });
        println!("{:#}", json!(rows.iter().map(row).collect::<Vec<_>>()));
        return Ok(());
    }
    println!("masks of {} sequences, vocabulary of {}, from token to mask:", args.sequences, args.vocab_size);
    for (what, compiled, us) in rows {
        let Statistics { p50, p99, max, .. } = us;
        println!("{what:<44} p50 {p50:8.1} µs   p99 {p99:8.1} µs   max {max:8.1} µs   compiled in {compiled:.0} µs");
    }
    Ok(())
}

/// From the tokens of a step to the masks of the next one.
fn rounds(rows: &mut GuidedRows, args: &GuidesArgs) -> Result<Statistics> {
    let mut state = 1;
    let mut tokens = choose(&rows.masks()?, &mut state, args.vocab_size);
    let mut took = Vec::with_capacity(args.steps);
    for _ in 0..args.steps {
        let start = Instant::now();
        rows.advance(&tokens);
        let masks = rows.masks()?;
        took.push(start.elapsed().as_secs_f64() * 1e6);
        tokens = choose(&masks, &mut state, args.vocab_size);
    }
    Ok(Statistics::of(took))
}

/// A random one of the tokens that each mask allows.
fn choose(masks: &[&TokenMask], state: &mut u64, vocab_size: usize) -> Vec<Option<TokenId>> {
    let mut one = |mask: &&TokenMask| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let from = (*state >> 33) as usize % vocab_size;
        let mut ids = (from..vocab_size).chain(0..from).map(|id| id as TokenId);
        ids.find(|&id| mask.allows(id))
    };
    masks.iter().map(&mut one).collect()
}
