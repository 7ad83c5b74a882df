//! Copies between steps where the device is the host.

use super::{contiguous, copy_out};
use crate::device::{Tensor, Transfers};
use crate::error::{Error, Result};
use std::collections::VecDeque;

/// Fetched bytes, oldest first.
#[derive(Default)]
pub(super) struct HostTransfers {
    fetched: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Transfers for HostTransfers {
    fn fill(&mut self, dst: &Tensor, write: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        let pointer = contiguous(dst)?;
        // SAFETY: the tensor has that many initialised bytes and outlives the slice; calls on a device are ordered:
        // nobody else uses them now.
        write(unsafe { std::slice::from_raw_parts_mut(pointer, dst.bytes()) })
    }

    fn fetch(&mut self, src: &Tensor) -> Result<()> {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.resize(src.bytes(), 0);
        copy_out(src, &mut bytes)?;
        self.fetched.push_back(bytes);
        Ok(())
    }

    fn collect(&mut self, dst: &mut Vec<u8>) -> Result<()> {
        let bytes = self.fetched.pop_front().ok_or_else(|| Error::internal("nothing was fetched"))?;
        self.spare.push(std::mem::replace(dst, bytes));
        Ok(())
    }

    fn pinned_bytes(&self) -> usize {
        0
    }
}
