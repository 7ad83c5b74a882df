//! The host tier: page-locked memory and copies that the host does not wait for.
//!
//! Offloads go into the stream of the steps, so that they read a block before the next step may overwrite it. Onboards
//! have a stream of their own and run beside the steps; they begin when everything that was enqueued before them is
//! over, and their blocks are used by nobody until their mark is over.

use super::driver::Context;
use crate::device::{HostSlot, HostTier, KvLayer, Mark};
use crate::error::{Error, Result};
use crate::ids::HostBlockId;
use crate::step::TierCopy;
use cudarc::driver::sys;
use std::sync::Arc;

/// A point in a stream.
struct Point {
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: a handle that any thread may use after making the context current.
unsafe impl Send for Point {}

impl Point {
    fn record(context: &Arc<Context>, stream: sys::CUstream) -> Result<Self> {
        let flags =
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let mut event = std::ptr::null_mut();
        // SAFETY: the context is current; a valid place. Destroyed in `drop`.
        context.check(unsafe { sys::cuEventCreate(&mut event, flags) }, "an event")?;
        let point = Self { event, context: context.clone() };
        // SAFETY: a live event and a live stream.
        context.check(unsafe { sys::cuEventRecord(event, stream) }, "an event")?;
        Ok(point)
    }
}

impl Mark for Point {
    fn is_over(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: a live event that was recorded.
        match unsafe { sys::cuEventQuery(self.event) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => self.context.check(result, "a copy between tiers").map(|()| true),
        }
    }

    fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: as above.
        self.context.check(unsafe { sys::cuEventSynchronize(self.event) }, "a copy between tiers")
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: not used afterwards; the driver lets work that waits for it go on.
            self.context.log_failure(self.context.check(unsafe { sys::cuEventDestroy_v2(self.event) }, "an event"));
        }
    }
}

/// Page-locked memory.
struct Pinned {
    start: *mut u8,
    context: Arc<Context>,
}

// SAFETY: plain memory; who may use which part of it when is the host tier's contract.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated by the tier, which has waited for all copies when it went; nobody has it any more.
            let freed = unsafe { sys::cuMemFreeHost(self.start.cast()) };
            self.context.log_failure(self.context.check(freed, "page-locked memory"));
        }
    }
}

/// Blocks one after another, and in each of them the layers.
pub(super) struct CudaHostTier {
    memory: Arc<Pinned>,
    block_bytes: usize,
    num_blocks: usize,
    /// Of the onboards.
    stream: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: the stream is a handle that any thread may use.
unsafe impl Send for CudaHostTier {}

impl CudaHostTier {
    pub(super) fn new(context: &Arc<Context>, block_bytes: usize, num_blocks: usize) -> Result<Self> {
        let bytes = block_bytes.checked_mul(num_blocks).filter(|&bytes| bytes > 0);
        let bytes = bytes.ok_or_else(|| Error::internal("a host tier without a size"))?;
        context.bind()?;
        let (mut memory, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context is current; a valid place. Freed in `drop`.
        let allocated = unsafe { sys::cuMemHostAlloc(&mut memory, bytes, 0) };
        context.check(allocated, &format!("{bytes} bytes of page-locked memory for the host tier of the KV cache"))?;
        let memory = Arc::new(Pinned { start: memory.cast(), context: context.clone() });
        let mut tier = Self { memory, block_bytes, num_blocks, stream, context: context.clone() };
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: as above. Destroyed in `drop`.
        context.check(unsafe { sys::cuStreamCreate(&mut stream, flags) }, "a stream")?;
        tier.stream = stream;
        Ok(tier)
    }

    /// Each layer's piece of a block, on the host and on the device, and its size.
    fn pieces<'a>(
        &self,
        layers: &'a [KvLayer],
        block: crate::ids::BlockId,
        host: HostBlockId,
    ) -> Result<impl Iterator<Item = (*mut u8, u64, usize)> + 'a> {
        let sum: usize = layers.iter().map(|layer| layer.block(block).bytes()).sum();
        if sum != self.block_bytes || host.0 as usize >= self.num_blocks {
            return Err(Error::internal(format!(
                "a copy of {sum} bytes and block {host} of a host tier of {} blocks of {}",
                self.num_blocks, self.block_bytes
            )));
        }
        // SAFETY: the block is one of the allocation's, which was just checked.
        let start = unsafe { self.memory.start.add(host.0 as usize * self.block_bytes) };
        let mut at = 0;
        Ok(layers.iter().map(move |layer| {
            let piece = layer.block(block);
            // SAFETY: the pieces add up to one block.
            let place = unsafe { start.add(at) };
            at += piece.bytes();
            (place, piece.addr(), piece.bytes())
        }))
    }
}

impl HostTier for CudaHostTier {
    fn copy(&mut self, layers: &[KvLayer], copies: &[TierCopy]) -> Result<Box<dyn Mark>> {
        self.context.bind()?;
        let steps = self.context.stream();
        for copy in copies {
            let TierCopy::Offload { from, to } = *copy else { continue };
            for (host, device, bytes) in self.pieces(layers, from, to)? {
                // SAFETY: both ranges have that many bytes; the host's is neither read nor freed before the stream is there.
                let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(host.cast(), device, bytes, steps) };
                self.context.check(copied, "a copy to the host tier")?;
            }
        }
        let before = Point::record(&self.context, steps)?;
        if !copies.iter().any(|copy| matches!(copy, TierCopy::Onboard { .. })) {
            return Ok(Box::new(before));
        }
        // SAFETY: a live stream and a recorded event.
        self.context.check(unsafe { sys::cuStreamWaitEvent(self.stream, before.event, 0) }, "an event")?;
        for copy in copies {
            let TierCopy::Onboard { from, to } = *copy else { continue };
            for (host, device, bytes) in self.pieces(layers, to, from)? {
                // SAFETY: both ranges have that many bytes; the host's is not written before the mark is over.
                let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(device, host.cast(), bytes, self.stream) };
                self.context.check(copied, "a copy from the host tier")?;
            }
        }
        Ok(Box::new(Point::record(&self.context, self.stream)?))
    }

    fn slot(&self, block: HostBlockId) -> Result<Box<dyn HostSlot>> {
        if block.0 as usize >= self.num_blocks {
            return Err(Error::internal(format!("a host tier of {} blocks has no block {block}", self.num_blocks)));
        }
        let (memory, bytes) = (self.memory.clone(), self.block_bytes);
        Ok(Box::new(CudaSlot { memory, at: block.0 as usize * bytes, bytes }))
    }

    fn pinned_bytes(&self) -> usize {
        self.block_bytes * self.num_blocks
    }
}

/// One block of a [`CudaHostTier`].
struct CudaSlot {
    memory: Arc<Pinned>,
    at: usize,
    bytes: usize,
}

impl HostSlot for CudaSlot {
    fn read(&self, to: &mut Vec<u8>) {
        // SAFETY: the block lies within the memory, which lives as long as this; by the contract of slots nobody writes to
        // it meanwhile.
        to.extend_from_slice(unsafe { std::slice::from_raw_parts(self.memory.start.add(self.at), self.bytes) });
    }

    fn write(&self, from: &[u8]) -> Result<()> {
        if from.len() != self.bytes {
            return Err(Error::internal(format!("{} bytes for a block of {}", from.len(), self.bytes)));
        }
        // SAFETY: as above; and nobody reads it meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.memory.start.add(self.at), self.bytes) };
        Ok(())
    }
}

impl Drop for CudaHostTier {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        self.context.log_failure(self.context.synchronize());
        if !self.stream.is_null() {
            // SAFETY: a live stream.
            let ended = unsafe { sys::cuStreamSynchronize(self.stream) };
            self.context.log_failure(self.context.check(ended, "copies from the host tier"));
            // SAFETY: nothing runs in it any more.
            let closed = unsafe { sys::cuStreamDestroy_v2(self.stream) };
            self.context.log_failure(self.context.check(closed, "closing a stream"));
        }
    }
}
