//! Every way to choose tokens, through the entry points and a real model: whole requests on the demo model.

#[path = "decoding/common.rs"]
mod common;
#[path = "abi/fake.rs"]
mod fake;
#[path = "decoding/guided.rs"]
mod guided;
