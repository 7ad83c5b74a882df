//! What a device does beside computing: copies that overlap with it, and recorded work.

use super::{KvLayer, Tensor};
use crate::error::{Error, Result};
use crate::ids::HostBlockId;
use crate::step::TierCopy;

/// Copies between the host and one device, staged so that the host waits for nothing but results.
pub trait Transfers: Send {
    /// Lets `write` give all bytes of a contiguous tensor: in place where the device is the host, else in page-locked
    /// memory, from where their copy is enqueued.
    fn fill(&mut self, dst: &Tensor, write: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()>;

    /// Enqueues a copy of `src` into a contiguous tensor of that size; `src` may be reused at once.
    fn upload(&mut self, dst: &Tensor, src: &[u8]) -> Result<()> {
        if dst.bytes() != src.len() {
            return Err(Error::internal(format!("{} bytes for a tensor of {}", src.len(), dst.bytes())));
        }
        self.fill(dst, &mut |out| {
            out.copy_from_slice(src);
            Ok(())
        })
    }

    /// Enqueues a copy of a contiguous tensor to the host, to be handed out by [`Transfers::collect`].
    fn fetch(&mut self, src: &Tensor) -> Result<()>;

    /// Waits for the oldest fetch that was not collected, and puts its bytes into `dst`.
    fn collect(&mut self, dst: &mut Vec<u8>) -> Result<()>;

    /// Page-locked host memory in use.
    fn pinned_bytes(&self) -> usize;
}

/// Host memory for whole blocks of the KV cache, every layer's keys and values.
pub trait HostTier: Send {
    /// Enqueues copies behind all that was enqueued before, to the host first. Work that is enqueued later may overwrite
    /// what was copied to the host; what comes from the host is left alone, on both sides, until the mark is over.
    ///
    /// # Errors
    /// Nothing is known of the destinations then.
    fn copy(&mut self, layers: &[KvLayer], copies: &[TierCopy]) -> Result<Box<dyn Mark>>;

    /// A block's memory, for another thread. Not to be used while copies from or to the block are under way.
    fn slot(&self, block: HostBlockId) -> Result<Box<dyn HostSlot>>;

    /// Page-locked host memory in use.
    fn pinned_bytes(&self) -> usize;
}

/// The memory of one block of a [`HostTier`].
pub trait HostSlot: Send {
    /// Appends what the block holds.
    fn read(&self, to: &mut Vec<u8>);

    /// Overwrites the block.
    ///
    /// # Errors
    /// `Internal` for another number of bytes than the block has.
    fn write(&self, from: &[u8]) -> Result<()>;
}

/// A point behind enqueued copies.
pub trait Mark: Send {
    /// Whether they have ended.
    fn is_over(&self) -> Result<bool>;

    /// Waits until they have.
    fn wait(&self) -> Result<()>;
}

/// Work that [`super::Device::capture`] recorded. Repeats it on the same addresses, with what they hold then.
pub trait Graph: Send {
    /// Enqueues the work.
    fn launch(&self) -> Result<()>;
}

/// Points in a device's work whose times are told when it has ended.
pub trait Stamps: Send {
    /// Enqueues a point, if there is still room for one; says whether.
    fn mark(&mut self) -> Result<bool>;

    /// Waits for the last point. When each one came, in seconds since the first.
    fn seconds(&self) -> Result<Vec<f64>>;
}
