//! The C ABI: the library's entry points driven by a stand-in server that counts every handle.

#[path = "abi/fake.rs"]
mod fake;
#[path = "abi/lifecycle.rs"]
mod lifecycle;
#[path = "abi/loader.rs"]
mod loader;
#[path = "abi/requests.rs"]
mod requests;
#[path = "abi/sinks.rs"]
mod sinks;
#[path = "abi/symbols.rs"]
mod symbols;
