//! An instance of a model.

use std::ptr;
use std::sync::Arc;

use super::ffi::{check, read, utf8};
use super::sink::Timings;
use super::sys;
use crate::error::{Error, Result};

/// What the instance group asks to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceKind {
    Auto,
    Cpu,
    Gpu,
    /// The backend chooses.
    Model,
}

/// An instance of a model.
#[derive(Clone, Debug)]
pub struct Instance {
    name: Arc<str>,
    kind: InstanceKind,
    device_id: i32,
    raw: *mut sys::TRITONBACKEND_ModelInstance,
}

// SAFETY: name, kind and id are plain data. `raw` is used only to report statistics, which the server allows from any
// thread, and only by the sink of an open request, which keeps the instance alive.
unsafe impl Send for Instance {}
// SAFETY: as for Send; no method changes the handle.
unsafe impl Sync for Instance {}

impl Instance {
    /// The name that the server gives the instance, `{model}_{group}_{index}`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind of the instance group.
    pub fn kind(&self) -> InstanceKind {
        self.kind
    }

    /// The GPU of a [`InstanceKind::Gpu`] instance; without meaning for other kinds.
    pub fn device_id(&self) -> i32 {
        self.device_id
    }

    /// # Safety
    /// `raw` is an instance; it lives as long as requests of it are open.
    pub(super) unsafe fn read(raw: *mut sys::TRITONBACKEND_ModelInstance) -> Result<Self> {
        // SAFETY: `raw` is alive, and so is the name borrowed from it and copied here.
        unsafe {
            let name = read(ptr::null(), |out| sys::TRITONBACKEND_ModelInstanceName(raw, out))?;
            let kind = match read(0, |out| sys::TRITONBACKEND_ModelInstanceKind(raw, out))? {
                sys::TRITONSERVER_INSTANCEGROUPKIND_AUTO => InstanceKind::Auto,
                sys::TRITONSERVER_INSTANCEGROUPKIND_CPU => InstanceKind::Cpu,
                sys::TRITONSERVER_INSTANCEGROUPKIND_GPU => InstanceKind::Gpu,
                sys::TRITONSERVER_INSTANCEGROUPKIND_MODEL => InstanceKind::Model,
                kind => return Err(Error::unsupported(format!("instance group kind {kind} is unknown"))),
            };
            Ok(Self {
                name: utf8(name, "the instance name")?.into(),
                kind,
                device_id: read(0, |out| sys::TRITONBACKEND_ModelInstanceDeviceId(raw, out))?,
                raw,
            })
        }
    }

    /// Reports one request: its own statistics, and an execution of batch size 1.
    ///
    /// # Safety
    /// `request` is an unreleased request of this instance.
    pub(super) unsafe fn report(
        &self,
        request: *mut sys::TRITONBACKEND_Request,
        success: bool,
        timings: Timings,
        end_ns: u64,
    ) -> Result<()> {
        let Timings { exec_start_ns: start, compute_start_ns, compute_end_ns } = timings;
        // SAFETY: an open request keeps its instance alive.
        unsafe {
            check(sys::TRITONBACKEND_ModelInstanceReportStatistics(
                self.raw,
                request,
                success,
                start,
                compute_start_ns,
                compute_end_ns,
                end_ns,
            ))?;
            check(sys::TRITONBACKEND_ModelInstanceReportBatchStatistics(
                self.raw,
                1,
                start,
                compute_start_ns,
                compute_end_ns,
                end_ns,
            ))
        }
    }
}
