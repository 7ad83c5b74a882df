//! Choosing a device by name.

use super::SharedDevice;
use super::cpu::{CpuDevice, CpuOptions};
use crate::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    Cpu,
    Cuda,
    /// A GPU where one can be used, else the CPU.
    #[default]
    Auto,
}

impl FromStr for DeviceKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "auto" => Ok(Self::Auto),
            other => Err(Error::invalid(format!("device \"{other}\": must be cpu, cuda or auto"))),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Auto => "auto",
        })
    }
}

/// Where CUDA's run-time libraries are looked for beside the loader's own search, and where kernels that had to be
/// compiled are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Folders that are searched first.
    pub library_dirs: Vec<PathBuf>,
    /// Roots of CUDA toolkits.
    pub toolkit_dirs: Vec<PathBuf>,
    /// Roots of Python installations or virtual environments.
    pub python_dirs: Vec<PathBuf>,
    /// Kernels compiled at load are kept here; `None`: nowhere.
    pub cache_dir: Option<PathBuf>,
}

/// Which GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuId {
    /// As the driver counts them.
    Number(usize),
    /// `GPU-…` or, for a slice of a GPU, `MIG-…`; the beginning is enough.
    Uuid(String),
}

/// How each kind of device is made.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    pub cpu: CpuOptions,
    pub cuda: CudaOptions,
}

/// Opens the device of one rank. No `gpu_ids`: the first GPU.
///
/// # Errors
/// When the kind that was asked for cannot be used here. `Auto` always finds one, unless `gpu_ids` names a GPU: then
/// that GPU is meant.
pub fn open(kind: DeviceKind, gpu_ids: &[GpuId], options: &DeviceOptions) -> Result<SharedDevice> {
    if gpu_ids.len() > 1 && kind != DeviceKind::Cpu {
        return Err(Error::unsupported(format!("{} GPUs were asked for, a model runs on one", gpu_ids.len())));
    }
    match kind {
        DeviceKind::Cpu => Ok(CpuDevice::new(options.cpu)?),
        DeviceKind::Cuda => open_gpu(gpu_ids, &options.cuda),
        DeviceKind::Auto => match open_gpu(gpu_ids, &options.cuda) {
            Err(why) if gpu_ids.is_empty() => {
                tracing::info!("running on the CPU: {why}");
                Ok(CpuDevice::new(options.cpu)?)
            }
            opened => opened,
        },
    }
}

#[cfg(feature = "cuda")]
fn open_gpu(gpu_ids: &[GpuId], options: &CudaOptions) -> Result<SharedDevice> {
    let number = match gpu_ids.first() {
        None => 0,
        Some(GpuId::Number(number)) => *number,
        Some(GpuId::Uuid(uuid)) => super::cuda::find_gpu(uuid)?,
    };
    let device = super::cuda::CudaDevice::open(number, options)?;
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_gpu_ids: &[GpuId], _options: &CudaOptions) -> Result<SharedDevice> {
    Err(Error::unsupported("this library was built without CUDA"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_the_command_line_names_them() {
        for name in ["cpu", "cuda", "auto"] {
            assert_eq!(name.parse::<DeviceKind>().unwrap().to_string(), name);
        }
        let error = "gpu".parse::<DeviceKind>().unwrap_err();
        assert_eq!(error.message(), "device \"gpu\": must be cpu, cuda or auto");
    }

    #[test]
    fn auto_always_finds_a_device() {
        let device = open(DeviceKind::Auto, &[], &DeviceOptions::default()).unwrap();
        assert!(device.info().total_bytes > 0);
    }

    /// With a GPU this opens it; without one the error must be a sentence and no panic.
    #[test]
    fn cuda_opens_or_says_why_not() {
        match open(DeviceKind::Cuda, &[], &DeviceOptions::default()) {
            Ok(device) => assert!(!device.info().host_accessible),
            Err(error) => assert!(error.message().contains(' '), "{error}"),
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_even_with_auto() {
        let opened = |kind, ids: &[GpuId]| open(kind, ids, &DeviceOptions::default());
        assert!(opened(DeviceKind::Auto, &[GpuId::Number(1_000_000)]).is_err());
        assert!(opened(DeviceKind::Auto, &[GpuId::Uuid("MIG-0".into())]).is_err());
        assert!(opened(DeviceKind::Cuda, &[GpuId::Number(0), GpuId::Number(1)]).is_err());
    }
}
