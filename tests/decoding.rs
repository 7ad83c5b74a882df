//! Every way to choose tokens, through the entry points and a real model: whole requests on the demo model.

#[path = "decoding/common.rs"]
mod common;
#[path = "decoding/corpus.rs"]
mod corpus;
#[path = "decoding/draws.rs"]
mod draws;
#[path = "abi/fake.rs"]
mod fake;
#[path = "decoding/fuzz.rs"]
mod fuzz;
#[path = "decoding/guided.rs"]
mod guided;
#[path = "decoding/knobs.rs"]
mod knobs;
