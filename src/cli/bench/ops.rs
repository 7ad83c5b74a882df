//! Single operations.

use super::OpsArgs;
use crate::device::DType;
use crate::device::bench::OpFigure;
use crate::error::Result;
use serde_json::{Value, json};

/// Measures and prints; a line as soon as it is known, or all as JSON.
pub(super) fn run(args: &OpsArgs) -> Result<()> {
    let dtype = args.dtype.map_or(DType::BF16, super::dtype);
    let mut rows: Vec<Value> = Vec::new();
    super::machine::measure_ops(args.device.device, args.device.threads, dtype, &mut |figure| match args.json {
        true => rows.push(as_json(figure)),
        false => println!("{figure}"),
    })?;
    if args.json {
        println!("{:#}", Value::Array(rows));
    }
    Ok(())
}

fn as_json(figure: &OpFigure) -> Value {
    json!({
        "op": figure.name,
        "microseconds": figure.seconds * 1e6,
        "gb_per_s": figure.bytes / figure.seconds / 1e9,
        "gflop_per_s": figure.flops / figure.seconds / 1e9,
        "limit_gb_per_s": figure.limits.read_bytes_per_s / 1e9,
        "limit_gflop_per_s": figure.limits.flops_per_s / 1e9,
        "share_of_limit": figure.share_of_limit(),
    })
}
