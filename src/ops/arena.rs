//! The memory of one step.

use crate::device::{Buffer, DType, SharedDevice, Tensor};
use crate::error::{Error, Result};
use std::cell::Cell;
use std::sync::Arc;

/// Every tensor starts at a multiple of this.
const ALIGNMENT_BYTES: usize = 256;

/// One buffer that a step's activations are taken from in order. Empty between steps, so the same sequence of requests
/// gives the same addresses.
#[derive(Debug)]
pub struct Arena {
    buffer: Arc<Buffer>,
    used_bytes: Cell<usize>,
    high_water_bytes: Cell<usize>,
}

impl Arena {
    /// Reserves `bytes` on the device.
    pub fn new(device: &SharedDevice, bytes: usize) -> Result<Self> {
        let buffer = Buffer::new(device, bytes, "the workspace of a step")?;
        Ok(Self { buffer, used_bytes: Cell::new(0), high_water_bytes: Cell::new(0) })
    }

    /// A tensor of unspecified content, valid until its scope ends.
    ///
    /// # Errors
    /// Internal, when the plan made at load was too small for this step.
    pub fn allocate(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        let start = self.used_bytes.get();
        let end = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(dtype.size()))
            .and_then(|n| n.checked_next_multiple_of(ALIGNMENT_BYTES))
            .and_then(|n| n.checked_add(start))
            .filter(|&end| end <= self.buffer.raw().bytes)
            .ok_or_else(|| {
                Error::internal(format!(
                    "a {dtype} tensor [{rows}, {cols}] does not fit into the workspace of a step: {start} of {} bytes \
                     are in use",
                    self.buffer.raw().bytes
                ))
            })?;
        let tensor = Tensor::new(self.buffer.clone(), start, rows, cols, dtype)?;
        self.used_bytes.set(end);
        self.high_water_bytes.set(self.high_water_bytes.get().max(end));
        Ok(tensor)
    }

    /// What is allocated from now on is given back when the scope is dropped.
    pub fn scope(&self) -> Scope<'_> {
        Scope { arena: self, start: self.used_bytes.get() }
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.get()
    }

    /// Most bytes that were ever in use.
    pub fn high_water_bytes(&self) -> usize {
        self.high_water_bytes.get()
    }

    /// Bytes reserved.
    pub fn capacity_bytes(&self) -> usize {
        self.buffer.raw().bytes
    }
}

/// Gives back what was allocated during its life.
#[must_use = "the scope ends where it is dropped"]
#[derive(Debug)]
pub struct Scope<'a> {
    arena: &'a Arena,
    start: usize,
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.arena.used_bytes.set(self.start);
    }
}
