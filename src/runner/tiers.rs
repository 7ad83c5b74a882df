//! The memory behind the KV cache of the device.

use crate::device::{HostTier, KvLayer, Mark, SharedDevice};
use crate::error::Result;
use crate::step::{Landed, TierLimits, Transfer};
use std::collections::VecDeque;

/// Host memory, and the copies that are under way.
pub(super) struct Tiers {
    host: Box<dyn HostTier>,
    host_blocks: usize,
    /// `None`: the copies could not be started.
    open: VecDeque<(u64, Option<Box<dyn Mark>>)>,
    failures: u64,
}

impl Tiers {
    /// # Errors
    /// When the host has no room.
    pub(super) fn new(device: &SharedDevice, layers: &[KvLayer], host_blocks: usize) -> Result<Self> {
        let block_bytes = layers.iter().map(KvLayer::block_bytes).sum();
        let host = device.host_tier(block_bytes, host_blocks)?;
        Ok(Self { host, host_blocks, open: VecDeque::new(), failures: 0 })
    }

    pub(super) fn limits(&self) -> TierLimits {
        TierLimits { host_blocks: self.host_blocks }
    }

    pub(super) fn pinned_bytes(&self) -> usize {
        self.host.pinned_bytes()
    }

    pub(super) fn start(&mut self, layers: &[KvLayer], transfers: Vec<Transfer>) {
        for transfer in transfers {
            let mark = self.host.copy(layers, &transfer.copies);
            let mark = self.noted(mark);
            self.open.push_back((transfer.id, mark));
        }
    }

    /// Transfers that are over, in the order of their start; with `wait` one at least.
    pub(super) fn landed(&mut self, wait: bool) -> Vec<Landed> {
        let mut landed = Vec::new();
        while let Some((id, mark)) = self.open.front() {
            let over = match mark {
                None => Ok(false),
                Some(mark) if wait && landed.is_empty() => mark.wait().map(|()| true),
                Some(mark) => match mark.is_over() {
                    Ok(false) => break,
                    over => over,
                },
            };
            let id = *id;
            self.open.pop_front();
            landed.push(Landed { id, ok: self.noted(over).unwrap_or(false) });
        }
        landed
    }

    /// Logs the first failure; they cost computation only.
    fn noted<T>(&mut self, result: Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if self.failures == 0 {
            tracing::warn!(
                "a transfer between the tiers of the KV cache failed, its content is computed again: {error}"
            );
        }
        self.failures += 1;
        None
    }
}
