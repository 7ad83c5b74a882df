//! Compiling the kernels where they are loaded, for builds that had no compiler. Results are kept on disk.

use super::CudaOptions;
use super::images::{HEADERS, Image, SOURCES};
use super::libraries::{self, NVRTC};
use crate::error::{Error, Result};
use cudarc::nvrtc::sys::{self, nvrtcResult};
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Compiles every module for a GPU, or takes it from the cache.
///
/// # Errors
/// When there is no compiler, or it refuses a kernel.
pub(super) fn compile(capability: (i32, i32), options: &CudaOptions) -> Result<Vec<Image>> {
    compile_modules(SOURCES, capability, options)
}

fn compile_modules(sources: &[(&str, &str)], capability: (i32, i32), options: &CudaOptions) -> Result<Vec<Image>> {
    let missing = || {
        Error::unavailable(
            "this build holds no compiled kernels, and libnvrtc.so.13, which could compile them, was not found: \
             install the Python package nvidia-cuda-nvrtc or a CUDA 13 toolkit",
        )
    };
    if !libraries::open(&NVRTC, options) {
        return Err(missing());
    }
    // SAFETY: only opens the library by name.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing());
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: valid places for two integers.
    check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) }, "its version")?;
    let suffix = if matches!(capability.0, 9 | 10) { "a" } else { "" };
    let target = format!("sm_{}{}{suffix}", capability.0, capability.1);
    tracing::info!("compiling {} groups of CUDA kernels for {target}", sources.len());
    let cache = options.cache_dir.as_deref().map(Cache::new);
    sources
        .iter()
        .map(|&(module, text)| {
            let key = cache_key(text, &target, (major, minor));
            let cached = cache.as_ref().and_then(|cache| cache.read(module, &target, &key));
            let code = match cached {
                Some(code) => code,
                None => {
                    let code = compile_one(module, text, &target)?;
                    if let Some(cache) = &cache {
                        cache.write(module, &target, &key, &code);
                    }
                    code
                }
            };
            Ok(Image { module: module.into(), code })
        })
        .collect()
}

fn check(result: nvrtcResult, what: &str) -> Result<()> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        error => Err(Error::internal(format!("the CUDA compiler: {what}: {error:?}"))),
    }
}

fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::internal("a kernel source with a NUL"))
}

fn compile_one(module: &str, text: &str, target: &str) -> Result<Vec<u8>> {
    let source = c_text(text)?;
    let file = c_text(&format!("{module}.cu"))?;
    let texts = HEADERS.iter().map(|(_, text)| c_text(text)).collect::<Result<Vec<_>>>()?;
    let names = HEADERS.iter().map(|(name, _)| c_text(name)).collect::<Result<Vec<_>>>()?;
    let text_pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
    let name_pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let options = [c_text(&format!("-arch={target}"))?, c_text("-std=c++17")?];
    let option_pointers = options.each_ref().map(|option| option.as_ptr());

    let mut program = std::ptr::null_mut();
    // SAFETY: NUL-terminated strings and arrays of `HEADERS.len()` of them, all alive until the program is destroyed.
    let created = unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            file.as_ptr(),
            HEADERS.len() as c_int,
            text_pointers.as_ptr(),
            name_pointers.as_ptr(),
        )
    };
    check(created, module)?;
    // SAFETY: a live program and as many options as said.
    let compiled = unsafe { sys::nvrtcCompileProgram(program, options.len() as c_int, option_pointers.as_ptr()) };
    let result = if compiled == nvrtcResult::NVRTC_SUCCESS {
        read_out(program, sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)
    } else {
        let log = read_out(program, sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog)?;
        let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        Err(Error::internal(format!("the CUDA compiler refuses {module}.cu for {target}: {log}")))
    };
    // SAFETY: not used afterwards.
    check(unsafe { sys::nvrtcDestroyProgram(&mut program) }, module)?;
    result
}

type SizeOf = unsafe fn(sys::nvrtcProgram, *mut usize) -> nvrtcResult;
type CopyOf = unsafe fn(sys::nvrtcProgram, *mut c_char) -> nvrtcResult;

fn read_out(program: sys::nvrtcProgram, size: SizeOf, copy: CopyOf) -> Result<Vec<u8>> {
    let mut bytes = 0;
    // SAFETY: a live program and a valid place.
    check(unsafe { size(program, &mut bytes) }, "the size of a result")?;
    let mut out = vec![0u8; bytes];
    // SAFETY: the buffer has the size that was just asked for.
    check(unsafe { copy(program, out.as_mut_ptr().cast()) }, "a result")?;
    Ok(out)
}

/// All that decides what the compiler makes.
fn cache_key(text: &str, target: &str, version: (c_int, c_int)) -> String {
    let headers: String = HEADERS.iter().map(|(_, text)| *text).collect();
    format!("{target} {}.{}\n{headers}{text}", version.0, version.1)
}

/// Compiled modules on disk. An entry repeats its whole key, so that it is never taken for another's, and a checksum.
struct Cache {
    folder: PathBuf,
}

const MAGIC: &[u8; 8] = b"trtllmk1";

impl Cache {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.join("kernels") }
    }

    fn file(&self, module: &str, target: &str, key: &str) -> PathBuf {
        self.folder.join(format!("{module}-{target}-{:016x}", checksum(key.as_bytes())))
    }

    fn read(&self, module: &str, target: &str, key: &str) -> Option<Vec<u8>> {
        let entry = fs::read(self.file(module, target, key)).ok()?;
        let rest = entry.strip_prefix(MAGIC)?.strip_prefix(key.as_bytes())?;
        let (sum, code) = rest.split_at_checked(8)?;
        (sum == checksum(code).to_le_bytes()).then(|| code.to_vec())
    }

    /// Best effort: a folder that cannot be written costs a compilation the next time.
    fn write(&self, module: &str, target: &str, key: &str, code: &[u8]) {
        let attempt = || -> std::io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let unfinished = self.folder.join(format!("{module}-{}.unfinished", std::process::id()));
            let mut file = fs::File::create(&unfinished)?;
            for part in [MAGIC.as_slice(), key.as_bytes(), &checksum(code).to_le_bytes(), code] {
                file.write_all(part)?;
            }
            fs::rename(&unfinished, self.file(module, target, key))
        };
        if let Err(error) = attempt() {
            tracing::warn!("compiled kernels cannot be kept in {}: {error}", self.folder.display());
        }
    }
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_back_what_was_written_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        assert_eq!(cache.read("norm", "sm_90a", "key"), None);
        cache.write("norm", "sm_90a", "key", b"code");
        assert_eq!(cache.read("norm", "sm_90a", "key").as_deref(), Some(b"code".as_slice()));
        assert_eq!(cache.read("norm", "sm_90a", "other key"), None);
    }

    /// Needs no GPU. Without a compiler the sentence must say what to install.
    #[test]
    fn a_module_compiles_at_load_or_the_compiler_is_asked_for() {
        let sources = &SOURCES[SOURCES.len() - 1..];
        let folder = tempfile::tempdir().unwrap();
        let options = CudaOptions { cache_dir: Some(folder.path().into()), ..CudaOptions::default() };
        match compile_modules(sources, (9, 0), &options) {
            Ok(images) => {
                assert_eq!(images.len(), 1);
                assert!(images.iter().all(|image| image.code.starts_with(b"\x7fELF")));
                assert_eq!(fs::read_dir(folder.path().join("kernels")).unwrap().count(), images.len());
                let again = compile_modules(sources, (9, 0), &options).unwrap();
                assert!(images.iter().zip(&again).all(|(first, second)| first.code == second.code));
            }
            Err(error) => assert!(error.message().contains("nvidia-cuda-nvrtc"), "{error}"),
        }
    }

    #[test]
    fn a_truncated_cache_entry_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        cache.write("norm", "sm_90a", "key", b"machine code");
        let file = cache.file("norm", "sm_90a", "key");
        let entry = fs::read(&file).unwrap();
        for length in 0..entry.len() {
            fs::write(&file, &entry[..length]).unwrap();
            assert_eq!(cache.read("norm", "sm_90a", "key"), None, "{length} bytes");
        }
    }
}
