//! `triton_headers/` → `$OUT_DIR/bindings.rs`: by bindgen where a libclang is found, else the committed output of the
//! same run, `src/triton/bindings.rs`. A missing or broken libclang, or a missing C compiler, never fails the build.
//!
//! `TRITON_BINDINGS=check` fails when one of the two is missing, the headers are no valid C or the committed file differs;
//! `=write` refreshes it.

use std::env;
use std::fs;
use std::panic;
use std::path::PathBuf;

const HEADERS: &str = "triton_headers";
const COMMITTED: &str = "src/triton/bindings.rs";
const ENTRY_POINTS: &str = "TRITONBACKEND_(Initialize|Finalize|GetBackendAttribute|Model(Initialize|Finalize)|\
                            ModelInstance(Initialize|Finalize|Execute|Ready))";

/// Writes `$OUT_DIR/bindings.rs` and lets a C compiler, where there is one, check the headers.
pub fn build() {
    for path in ["build/bindings.rs", HEADERS, COMMITTED] {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in ["TRITON_BINDINGS", "LIBCLANG_PATH", "CC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let mode = env::var("TRITON_BINDINGS").unwrap_or_default();
    let committed = fs::read_to_string(COMMITTED).unwrap_or_default();
    let bindings = match (generate(), mode.as_str()) {
        (Ok(generated), "write") => {
            fs::write(COMMITTED, &generated).unwrap_or_else(|error| panic!("cannot write {COMMITTED}: {error}"));
            generated
        }
        (Ok(generated), "check") if generated != committed => {
            panic!("{COMMITTED} is not what bindgen makes of {HEADERS}/: refresh it with TRITON_BINDINGS=write")
        }
        (Ok(generated), _) => generated,
        (Err(reason), "check" | "write") => panic!("TRITON_BINDINGS={mode}, but bindgen did not run: {reason}"),
        (Err(_), _) => committed,
    };
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    fs::write(&output, bindings).unwrap_or_else(|error| panic!("cannot write {}: {error}", output.display()));
    check_headers(&mode);
}

/// bindgen's output. A libclang that cannot be loaded panics inside of bindgen.
fn generate() -> Result<String, String> {
    let bindings = panic::catch_unwind(|| {
        bindgen::builder()
            .header(format!("{HEADERS}/tritonbackend.h"))
            .clang_args(["-nostdinc", "-DTRITON_TYPES_FROM_COMPILER", "--target=x86_64-unknown-linux-gnu"])
            .allowlist_function("TRITON(SERVER|BACKEND)_.*")
            .allowlist_type("TRITON(SERVER|BACKEND)_.*")
            .allowlist_var("TRITON(SERVER|BACKEND)_.*")
            .blocklist_function(ENTRY_POINTS)
            .blocklist_type("u?int(32|64)_t|size_t")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .translate_enum_integer_types(true)
            .prepend_enum_name(false)
            .layout_tests(false)
            .derive_debug(false)
            .derive_copy(false)
            .generate_comments(false)
            .merge_extern_blocks(true)
            .disable_header_comment()
            .raw_line("// Made by bindgen from triton_headers/ (see build/bindings.rs). Do not edit.")
            .formatter(bindgen::Formatter::Prettyplease)
            .generate()
    });
    match bindings {
        Ok(Ok(bindings)) => Ok(bindings.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("libclang could not be loaded".into()),
    }
}

/// Compiles `check.c`. Without a C compiler there is only a warning, unless this is a check.
fn check_headers(mode: &str) {
    let result = cc::Build::new()
        .file(format!("{HEADERS}/check.c"))
        .cargo_metadata(false)
        .flag_if_supported("-std=c11")
        .try_compile("triton_headers_check");
    match result {
        Ok(()) => {}
        Err(error) if mode == "check" => panic!("{HEADERS}/check.c does not compile: {error}"),
        Err(error) => println!("cargo:warning={HEADERS}/check.c was not compiled: {error}"),
    }
}
