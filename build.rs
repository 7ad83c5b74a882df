//! Generates the Rust declarations of the Triton ABI and compiles the CUDA kernels.

#[path = "build/assembler.rs"]
mod assembler;
#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/kernels.rs"]
mod kernels;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    bindings::build();
    // Histogram functions are found with dlsym, which sees those of a test's stand-in server only where the executable
    // exports them. Nothing else defines symbols of this name.
    println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol=TRITONSERVER_Metric*");
    // Dependencies have C interfaces of their own (llguidance): a server that loads several backends shall not see them.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    kernels::build();
}
