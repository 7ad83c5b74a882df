//! The kernels' machine code: what the build embedded, chosen for the GPU at hand.

use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The images of all modules for one target, deflated together.
pub struct Archive {
    /// `sm_90a`, or `compute_80` for PTX.
    pub target: &'static str,
    /// (module, bytes), in the order of the raw data.
    pub modules: &'static [(&'static str, usize)],
    pub data: &'static [u8],
}

/// One module ready to be loaded.
pub(super) struct Image {
    pub module: String,
    pub code: Vec<u8>,
}

/// The target of `targets` that a GPU of this compute capability runs best.
///
/// Machine code runs on the same major version from its minor version on; with an `a`, on exactly its version. PTX runs
/// on everything from its version on.
pub(super) fn best_target<'a>(capability: (i32, i32), targets: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (major, minor) = capability;
    let version = major * 10 + minor;
    let rank = |target: &str| {
        if let Some(ptx) = target.strip_prefix("compute_") {
            return ptx.parse::<i32>().ok().filter(|&ptx| ptx <= version).map(|_| 0);
        }
        let code = target.strip_prefix("sm_")?;
        let exact = code.strip_suffix('a');
        let built_for = exact.unwrap_or(code).parse::<i32>().ok()?;
        let runs = match exact {
            Some(_) => built_for == version,
            None => built_for / 10 == major && built_for <= version,
        };
        runs.then_some(built_for * 2 + i32::from(exact.is_some()))
    };
    targets.filter_map(|target| Some((rank(target)?, target))).max().map(|(_, target)| target)
}

/// The embedded images for a GPU; `None` where the build had no compiler.
///
/// # Errors
/// When the embedded data are damaged.
pub(super) fn embedded(capability: (i32, i32)) -> Option<Result<(&'static str, Vec<Image>)>> {
    let target = best_target(capability, ARCHIVES.iter().map(|archive| archive.target))?;
    let archive = ARCHIVES.iter().find(|archive| archive.target == target)?;
    Some(unpack(archive).map(|images| (target, images)))
}

fn unpack(archive: &Archive) -> Result<Vec<Image>> {
    let damaged = || Error::internal(format!("the embedded kernels for {} are damaged", archive.target));
    let raw = miniz_oxide::inflate::decompress_to_vec(archive.data).map_err(|_| damaged())?;
    let mut rest = raw.as_slice();
    let mut images = Vec::with_capacity(archive.modules.len());
    for &(module, bytes) in archive.modules {
        let (code, after) = rest.split_at_checked(bytes).ok_or_else(damaged)?;
        images.push(Image { module: module.into(), code: code.to_vec() });
        rest = after;
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: [&str; 7] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120", "compute_80"];

    fn best(major: i32, minor: i32) -> Option<&'static str> {
        best_target((major, minor), TARGETS.into_iter())
    }

    #[test]
    fn a_gpu_gets_the_code_made_for_it() {
        assert_eq!(best(8, 0), Some("sm_80"));
        assert_eq!(best(8, 7), Some("sm_86"));
        assert_eq!(best(8, 9), Some("sm_89"));
        assert_eq!(best(9, 0), Some("sm_90a"));
        assert_eq!(best(12, 1), Some("sm_120"));
    }

    #[test]
    fn a_gpu_newer_than_the_build_gets_ptx() {
        assert_eq!(best(10, 3), Some("compute_80"));
        assert_eq!(best(13, 0), Some("compute_80"));
    }

    #[test]
    fn a_gpu_too_old_gets_nothing() {
        assert_eq!(best(7, 5), None);
    }

    #[test]
    fn every_embedded_archive_unpacks_to_every_module() {
        for archive in ARCHIVES {
            let images = unpack(archive).unwrap();
            let names: Vec<_> = images.iter().map(|image| image.module.as_str()).collect();
            let expected: Vec<_> = SOURCES.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, expected, "{}", archive.target);
            assert!(images.iter().all(|image| !image.code.is_empty()));
        }
    }

    #[test]
    fn a_damaged_archive_is_an_error() {
        let archive = Archive { target: "sm_80", modules: &[("norm", 100)], data: &[1, 2, 3] };
        assert!(unpack(&archive).is_err());
    }
}
