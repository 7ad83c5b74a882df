//! Compiles `kernels/*.cu` with NVRTC and embeds the machine code.
//!
//! NVRTC is a library of the CUDA toolkit (or of the Python package `nvidia-cuda-nvrtc`) and needs no GPU. Where there is
//! none, only the sources are embedded and the library compiles them at load. `KERNELS_STRICT=1` makes a missing
//! compiler, a kernel that spills registers and a serialized wgmma pipeline errors, as a kernel that does not compile
//! always is. `KERNELS_CACHE` names a folder that keeps compiled kernels by content, so that profiles and checkouts share
//! them; without it each profile has its own.

use super::assembler::{Problem, complaints};
use libloading::Library;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, ptr};

/// Machine code for what exists, and one PTX that newer GPUs' drivers compile.
const TARGETS: &[&str] = &["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120", "compute_80"];

/// The first release that knows every target.
const OLDEST_COMPILER: (c_int, c_int) = (12, 8);

/// Compiles and embeds; writes `kernels.rs` into cargo's output folder.
pub fn build() {
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=build/kernels.rs");
    for name in ["KERNELS_STRICT", "KERNELS_CACHE", "CUDA_HOME", "CUDA_PATH", "PYTHON"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let strict = env::var_os("KERNELS_STRICT").is_some_and(|value| value != "0");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = Sources::read(Path::new("kernels"));
    let cache = env::var_os("KERNELS_CACHE").filter(|folder| !folder.is_empty()).map_or(out.clone(), PathBuf::from);
    fs::create_dir_all(&cache).unwrap_or_else(|error| panic!("KERNELS_CACHE {}: {error}", cache.display()));
    let archives = match Compiler::find() {
        Some(compiler) => compile_all(&compiler, &sources, &out, &cache, strict),
        None if strict => panic!(
            "KERNELS_STRICT is set, but no libnvrtc.so of CUDA {}.{} or newer was found through CUDA_HOME, CUDA_PATH, \
             /usr/local/cuda or python3; `pip install nvidia-cuda-nvrtc` is enough",
            OLDEST_COMPILER.0, OLDEST_COMPILER.1
        ),
        None => {
            println!("cargo:warning=no NVRTC at build time: CUDA kernels will be compiled where they are loaded");
            Vec::new()
        }
    };
    fs::write(out.join("kernels.rs"), index(&sources, &archives)).expect("the output folder is writable");
}

struct Sources {
    /// (name, text) of the files that others include.
    headers: Vec<(String, String)>,
    /// (name without extension, text) of what is compiled.
    modules: Vec<(String, String)>,
}

impl Sources {
    fn read(folder: &Path) -> Self {
        let mut paths: Vec<_> = fs::read_dir(folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("a readable folder").path())
            .collect();
        paths.sort();
        let named = |extension: &str, with_extension: bool| {
            let of_kind = paths.iter().filter(|path| path.extension().is_some_and(|e| e == extension));
            of_kind
                .map(|path| {
                    let name = if with_extension { path.file_name() } else { path.file_stem() };
                    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    (name.expect("a file").to_string_lossy().into_owned(), text)
                })
                .collect::<Vec<_>>()
        };
        Self { headers: named("cuh", true), modules: named("cu", false) }
    }
}

/// The images of all modules for one target, compressed together.
struct Archive {
    target: &'static str,
    /// (module, bytes), in the order of the raw data.
    modules: Vec<(String, usize)>,
    file: String,
}

fn compile_all(compiler: &Compiler, sources: &Sources, out: &Path, cache: &Path, strict: bool) -> Vec<Archive> {
    let jobs: Vec<(usize, usize)> =
        (0..TARGETS.len()).flat_map(|target| (0..sources.modules.len()).map(move |module| (target, module))).collect();
    let queue = Mutex::new(jobs.into_iter());
    let images = Mutex::new(vec![vec![Vec::new(); sources.modules.len()]; TARGETS.len()]);
    let problems = Mutex::new(Vec::new());
    let threads = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).clamp(1, 16);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((target, module)) = queue.lock().unwrap().next() else { return };
                    let compiled = compiler.compile_cached(sources, module, TARGETS[target], cache);
                    problems.lock().unwrap().extend(compiled.problems);
                    images.lock().unwrap()[target][module] = compiled.image;
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    for problem in &problems {
        println!("cargo:warning={}", problem.text);
    }
    assert!(!problems.iter().any(|p| p.fatal || strict), "CUDA kernels: see the warnings above");

    let images = images.into_inner().unwrap();
    let archives = TARGETS.iter().zip(images).map(|(target, images)| {
        let file = format!("kernels-{target}.bin");
        let raw = images.concat();
        fs::write(out.join(&file), miniz_oxide::deflate::compress_to_vec(&raw, 8)).expect("a writable output folder");
        let names = sources.modules.iter().map(|(name, _)| name.clone());
        Archive { target, modules: names.zip(images.iter().map(Vec::len)).collect(), file }
    });
    archives.collect()
}

/// The generated Rust file: see `src/device/cuda/images.rs` for the types.
fn index(sources: &Sources, archives: &[Archive]) -> String {
    let mut text = String::new();
    for (name, files) in [("HEADERS", &sources.headers), ("SOURCES", &sources.modules)] {
        writeln!(text, "pub const {name}: &[(&str, &str)] = &[").unwrap();
        for (file, content) in files {
            writeln!(text, "    ({file:?}, {content:?}),").unwrap();
        }
        text += "];\n";
    }
    text += "pub const ARCHIVES: &[Archive] = &[\n";
    for archive in archives {
        writeln!(
            text,
            "    Archive {{ target: {:?}, modules: &{:?}, data: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{}\")) }},",
            archive.target, archive.modules, archive.file
        )
        .unwrap();
    }
    text + "];\n"
}

#[derive(Default)]
struct Compiled {
    image: Vec<u8>,
    problems: Vec<Problem>,
}

type Program = *mut c_void;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type CopyOf = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// NVRTC, opened at build time.
struct Compiler {
    library: Library,
    version: (c_int, c_int),
}

impl Compiler {
    fn find() -> Option<Self> {
        Self::folders().iter().find_map(|folder| Self::open(folder))
    }

    fn folders() -> Vec<PathBuf> {
        let roots = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
        let roots = roots.chain([PathBuf::from("/usr/local/cuda")]);
        let mut folders: Vec<_> =
            roots.flat_map(|root| ["lib64", "lib", "targets/x86_64-linux/lib"].map(|lib| root.join(lib))).collect();
        let python = env::var("PYTHON").unwrap_or_else(|_| "python3".into());
        let script = "import nvidia; print('\\n'.join(nvidia.__path__))";
        if let Ok(output) = Command::new(python).args(["-c", script]).output() {
            let listed = String::from_utf8_lossy(&output.stdout).into_owned();
            folders.extend(listed.lines().map(|path| Path::new(path).join("cu13/lib")));
        }
        folders
    }

    fn open(folder: &Path) -> Option<Self> {
        let files: Vec<PathBuf> = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        let named = |prefix: &str| {
            let name_of = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut found: Vec<_> = files
                .iter()
                .filter(|path| name_of(path).starts_with(prefix) && !name_of(path).contains(".alt."))
                .collect();
            found.sort();
            found.pop().cloned()
        };
        // The compiler looks for its built-in declarations by bare name: they must be loaded before it.
        if let Some(builtins) = named("libnvrtc-builtins.so") {
            // SAFETY: a library of NVIDIA's whose initializers only set up its own tables; it stays open for good.
            std::mem::forget(unsafe { Library::new(builtins) }.ok()?);
        }
        // SAFETY: as above.
        let library = unsafe { Library::new(named("libnvrtc.so")?) }.ok()?;
        let mut version = (0, 0);
        {
            // SAFETY: nvrtcVersion has had this signature since CUDA 7.
            let read: libloading::Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> =
                unsafe { library.get(b"nvrtcVersion\0") }.ok()?;
            // SAFETY: both pointers are valid for writes.
            unsafe { read(&mut version.0, &mut version.1) };
        }
        if version < OLDEST_COMPILER {
            println!("cargo:warning=NVRTC {}.{} in {} is too old", version.0, version.1, folder.display());
            return None;
        }
        Some(Self { library, version })
    }

    /// Compiles, or takes what an earlier build made of the same text.
    fn compile_cached(&self, sources: &Sources, module: usize, target: &str, cache: &Path) -> Compiled {
        let (name, text) = &sources.modules[module];
        let mut hasher = DefaultHasher::new();
        (&sources.headers, text, target, self.version, include_str!("kernels.rs")).hash(&mut hasher);
        let cached = cache.join(format!("{name}-{target}-{:016x}", hasher.finish()));
        if let Ok(image) = fs::read(&cached) {
            return Compiled { image, ..Compiled::default() };
        }
        let compiled = self.compile(&sources.headers, name, text, target);
        if compiled.problems.is_empty() {
            // Under its own name at once: other builds may share the folder.
            let part = cached.with_extension(format!("{}", std::process::id()));
            fs::write(&part, &compiled.image).expect("a writable cache folder");
            fs::rename(&part, &cached).expect("a writable cache folder");
        }
        compiled
    }

    fn compile(&self, headers: &[(String, String)], name: &str, text: &str, target: &str) -> Compiled {
        let file = format!("{name}.cu");
        let c_text = |text: &str| CString::new(text).expect("a kernel file holds no NUL");
        let header_texts: Vec<_> = headers.iter().map(|(_, text)| c_text(text)).collect();
        let header_names: Vec<_> = headers.iter().map(|(name, _)| c_text(name)).collect();
        let text_pointers: Vec<_> = header_texts.iter().map(|text| text.as_ptr()).collect();
        let name_pointers: Vec<_> = header_names.iter().map(|name| name.as_ptr()).collect();
        let options = [format!("-arch={target}"), "-std=c++17".into(), "--ptxas-options=-v".into()].map(|o| c_text(&o));
        let option_pointers = options.each_ref().map(|option| option.as_ptr());
        let (source, c_file) = (c_text(text), c_text(&file));

        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let mut program: Program = ptr::null_mut();
        // SAFETY: every pointer refers to a NUL-terminated string, or an array of `headers.len()` of them, that
        // outlives the program.
        let created = unsafe {
            self.function::<Create>(b"nvrtcCreateProgram\0")(
                &mut program,
                source.as_ptr(),
                c_file.as_ptr(),
                headers.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        assert!(created == 0, "NVRTC cannot make a program of {file}: error {created}");
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        // SAFETY: the program was just created; the options are as many as said.
        let status = unsafe {
            self.function::<Compile>(b"nvrtcCompileProgram\0")(
                program,
                option_pointers.len() as c_int,
                option_pointers.as_ptr(),
            )
        };
        let log = self.text_of(program, b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0");
        let log = CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().into_owned()).unwrap_or_default();
        let label = format!("{file} [{target}]");
        if status != 0 {
            let lines = log.lines().filter(|line| line.contains("error"));
            let problems = lines.map(|line| Problem { text: format!("{label}: {line}"), fatal: true });
            let summary = Problem { text: format!("{label} does not compile: NVRTC error {status}"), fatal: true };
            return Compiled { problems: problems.chain([summary]).collect(), image: Vec::new() };
        }
        let image = if target.starts_with("sm_") {
            self.text_of(program, b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0")
        } else {
            self.text_of(program, b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0")
        };
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        // SAFETY: the program is not used afterwards.
        unsafe { self.function::<Destroy>(b"nvrtcDestroyProgram\0")(&mut program) };
        Compiled { image, problems: complaints(&label, &log) }
    }

    fn text_of(&self, program: Program, size: &[u8], copy: &[u8]) -> Vec<u8> {
        let mut bytes = 0;
        // SAFETY: a live program and a place for the size.
        unsafe { self.function::<SizeOf>(size)(program, &mut bytes) };
        let mut text = vec![0u8; bytes];
        // SAFETY: the buffer has the size that was just asked for.
        unsafe { self.function::<CopyOf>(copy)(program, text.as_mut_ptr().cast()) };
        text
    }

    fn function<F: Copy>(&self, name: &[u8]) -> F {
        // SAFETY: the callers name the types of NVRTC's documented interface.
        *unsafe { self.library.get::<F>(name) }.expect("NVRTC has all of its documented functions")
    }
}
