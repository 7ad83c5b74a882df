//! The host tier where the device is the host: plain copies, over when they return.

use super::{copy_in, copy_out, memory};
use crate::device::{HostTier, KvLayer, Mark};
use crate::error::{Error, Result};
use crate::step::TierCopy;

/// The bytes of each block. Pages are the system's only when they are written.
pub(super) struct CpuHostTier {
    blocks: Vec<Box<[u8]>>,
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
        Ok(Self { blocks: (0..num_blocks).map(|_| vec![0; block_bytes].into_boxed_slice()).collect() })
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
                        copy_out(&piece, &mut self.blocks[to.0 as usize][at..end])?;
                        at = end;
                    }
                    TierCopy::Onboard { from, to } => {
                        let piece = layer.block(to);
                        let end = at + piece.bytes();
                        copy_in(&piece, &self.blocks[from.0 as usize][at..end])?;
                        at = end;
                    }
                }
            }
        }
        Ok(Box::new(Over))
    }

    fn pinned_bytes(&self) -> usize {
        0
    }
}
