//! The host tier where the device is the host: plain copies, over when they return.

use super::{copy_in, copy_out, memory};
use crate::device::{HostSlot, HostTier, KvLayer, Mark};
use crate::error::{Error, Result};
use crate::ids::HostBlockId;
use crate::step::TierCopy;
use parking_lot::Mutex;
use std::sync::Arc;

type Slot = Arc<Mutex<Box<[u8]>>>;

/// The bytes of each block. Pages are the system's only when they are written.
pub(super) struct CpuHostTier {
    blocks: Vec<Slot>,
}

impl CpuHostTier {
    pub(super) fn new(block_bytes: usize, num_blocks: usize) -> Result<Self> {
        let bytes = block_bytes.saturating_mul(num_blocks) as u64;
        let available = memory::host_memory().available_bytes;
        if bytes > available {
            return Err(Error::unavailable(format!(
                "the host tier of the KV cache needs {bytes} bytes of memory, {available} are available"
            )));
        }
        let slot = |_| Arc::new(Mutex::new(vec![0; block_bytes].into_boxed_slice()));
        Ok(Self { blocks: (0..num_blocks).map(slot).collect() })
    }
}

/// Nothing is under way.
struct Over;

impl Mark for Over {
    fn is_over(&self) -> Result<bool> {
        Ok(true)
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

impl HostTier for CpuHostTier {
    fn copy(&mut self, layers: &[KvLayer], copies: &[TierCopy]) -> Result<Box<dyn Mark>> {
        for copy in copies {
            let mut at = 0;
            for layer in layers {
                match *copy {
                    TierCopy::Offload { from, to } => {
                        let piece = layer.block(from);
                        let end = at + piece.bytes();
                        copy_out(&piece, &mut self.blocks[to.0 as usize].lock()[at..end])?;
                        at = end;
                    }
                    TierCopy::Onboard { from, to } => {
                        let piece = layer.block(to);
                        let end = at + piece.bytes();
                        copy_in(&piece, &self.blocks[from.0 as usize].lock()[at..end])?;
                        at = end;
                    }
                }
            }
        }
        Ok(Box::new(Over))
    }

    fn slot(&self, block: HostBlockId) -> Result<Box<dyn HostSlot>> {
        let slot = self.blocks.get(block.0 as usize).cloned();
        let slot = slot.ok_or_else(|| Error::internal(format!("a host tier has no block {block}")))?;
        Ok(Box::new(CpuSlot(slot)))
    }

    fn pinned_bytes(&self) -> usize {
        0
    }
}

struct CpuSlot(Slot);

impl HostSlot for CpuSlot {
    fn read(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0.lock());
    }

    fn write(&self, from: &[u8]) -> Result<()> {
        let mut slot = self.0.lock();
        if from.len() != slot.len() {
            return Err(Error::internal(format!("{} bytes for a block of {}", from.len(), slot.len())));
        }
        slot.copy_from_slice(from);
        Ok(())
    }
}
