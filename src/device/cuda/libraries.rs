//! Finding CUDA's run-time libraries on a machine nobody prepared.
//!
//! A library opened here by its path is found again by `cudarc`, which opens bare names only, because the loader knows
//! it by its SONAME from then on.

use super::CudaOptions;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::fs;
use std::path::{Path, PathBuf};

/// Does not load, only finds what is loaded. Linux's value.
const RTLD_NOLOAD: i32 = 4;

/// A library and what must be loaded before it.
pub(super) struct Wanted {
    pub soname: &'static str,
    /// File name up to the version, looked for in the same folder.
    pub before: Option<&'static str>,
}

pub(super) const CUBLAS_LT: Wanted = Wanted { soname: "libcublasLt.so.13", before: None };
pub(super) const NVRTC: Wanted = Wanted { soname: "libnvrtc.so.13", before: Some("libnvrtc-builtins.so.13") };

/// Opens the library for the rest of the process's life: the one that is already there if another part of the process
/// has it, else from the folders of the options, by the loader's own search, from a toolkit, from a Python package.
pub(super) fn open(wanted: &Wanted, options: &CudaOptions) -> bool {
    if open_file(Path::new(wanted.soname), RTLD_NOLOAD) || open_in(wanted, &options.library_dirs) {
        return true;
    }
    if open_file(Path::new(wanted.soname), 0) {
        return true;
    }
    let toolkits = options.toolkit_dirs.iter().cloned().chain([PathBuf::from("/usr/local/cuda")]);
    let folders: Vec<_> =
        toolkits.flat_map(|root| ["lib64", "targets/x86_64-linux/lib", "lib"].map(|lib| root.join(lib))).collect();
    open_in(wanted, &folders) || open_in(wanted, &python_folders(options))
}

fn open_in(wanted: &Wanted, folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| {
        let file = folder.join(wanted.soname);
        if !file.exists() {
            return false;
        }
        if let Some(prefix) = wanted.before {
            for path in children(folder).filter(|path| file_name(path).starts_with(prefix)) {
                open_file(&path, 0);
            }
        }
        open_file(&file, 0)
    })
}

fn open_file(path: &Path, flags: i32) -> bool {
    // SAFETY: libraries of NVIDIA's whose initializers only set up their own tables; never closed.
    let opened = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL | flags) };
    opened.map(std::mem::forget).is_ok()
}

/// `nvidia/cu13/lib` of every Python installation that is likely to hold the packages.
fn python_folders(options: &CudaOptions) -> Vec<PathBuf> {
    let mut roots = options.python_dirs.clone();
    for folder in children(Path::new("/opt")) {
        roots.push(folder.join(".venv"));
        roots.push(folder);
    }
    roots.push("/usr/local".into());
    let interpreters = roots.iter().flat_map(|root| children(&root.join("lib")));
    let pythons = interpreters.filter(|path| file_name(path).starts_with("python3"));
    pythons
        .flat_map(|python| {
            ["site-packages", "dist-packages"].map(|packages| python.join(packages).join("nvidia/cu13/lib"))
        })
        .collect()
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.into_iter()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_no_panic() {
        let wanted = Wanted { soname: "libno_such_library.so.13", before: None };
        assert!(!open(&wanted, &CudaOptions::default()));
    }

    #[test]
    fn packages_of_a_virtual_environment_are_searched() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        fs::create_dir_all(&lib).unwrap();
        let options = CudaOptions { python_dirs: vec![root.path().into()], ..CudaOptions::default() };
        assert!(python_folders(&options).contains(&lib));
    }
}
