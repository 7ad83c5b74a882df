//! Generates the Rust declarations of the Triton ABI.

#[path = "build/bindings.rs"]
mod bindings;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    bindings::build();
}
