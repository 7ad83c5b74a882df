//! The memory behind the KV cache of the device.

use crate::device::{HostSlot, HostTier, KvLayer, Mark, SharedDevice};
use crate::error::Result;
use crate::ids::HostBlockId;
use crate::step::{Landed, TierLimits, Transfer};
use std::collections::VecDeque;

/// Host memory for the layers of one pool, where there are some.
struct PoolTier {
    layers: Vec<KvLayer>,
    host: Option<Box<dyn HostTier>>,
    num_blocks: usize,
}

/// Points behind copies in several pools.
pub(super) type Marks = Vec<Box<dyn Mark>>;

/// Host memory, and the copies that are under way.
pub(super) struct Tiers {
    pools: Vec<PoolTier>,
    /// `None`: the copies could not be started.
    open: VecDeque<(u64, Option<Marks>)>,
    failures: u64,
}

impl Tiers {
    /// `pools`: the layers of each, those of full length first. `blocks`: of the host, for each.
    ///
    /// # Errors
    /// When the host has no room.
    pub(super) fn new(device: &SharedDevice, pools: Vec<Vec<KvLayer>>, blocks: &[usize]) -> Result<Self> {
        let pool = |(layers, &num_blocks): (Vec<KvLayer>, &usize)| {
            let block_bytes: usize = layers.iter().map(KvLayer::block_bytes).sum();
            let host = (block_bytes * num_blocks > 0).then(|| device.host_tier(block_bytes, num_blocks)).transpose()?;
            Ok(PoolTier { layers, host, num_blocks })
        };
        let pools = pools.into_iter().zip(blocks).map(pool).collect::<Result<_>>()?;
        Ok(Self { pools, open: VecDeque::new(), failures: 0 })
    }

    pub(super) fn limits(&self) -> TierLimits {
        let blocks = |pool: &PoolTier| pool.num_blocks;
        let (full, windows) = (self.pools.first().map_or(0, blocks), self.pools.iter().skip(1).map(blocks));
        TierLimits { host_blocks: full, window_host_blocks: windows.collect() }
    }

    pub(super) fn pinned_bytes(&self) -> usize {
        self.pools.iter().filter_map(|pool| pool.host.as_ref()).map(|host| host.pinned_bytes()).sum()
    }

    pub(super) fn start(&mut self, transfers: Vec<Transfer>) {
        for transfer in transfers {
            let marks = self.copy(&transfer);
            let marks = self.noted(marks);
            self.open.push_back((transfer.id, marks));
        }
    }

    /// A host block's memory in a pool; `None`: the pool has no layers.
    pub(super) fn slot(&self, pool: usize, block: HostBlockId) -> Result<Option<Box<dyn HostSlot>>> {
        self.pools[pool].host.as_ref().map(|host| host.slot(block)).transpose()
    }

    /// Starts copies; `None`: they could not be started.
    pub(super) fn copy_noted(&mut self, transfer: &Transfer) -> Option<Marks> {
        let marks = self.copy(transfer);
        self.noted(marks)
    }

    /// Whether copies are over; `None`: they have failed.
    pub(super) fn over_noted(&mut self, marks: &[Box<dyn Mark>]) -> Option<bool> {
        self.noted(all_over(marks))
    }

    /// As [`Tiers::over_noted`], when they are.
    pub(super) fn wait_noted(&mut self, marks: &[Box<dyn Mark>]) -> Option<bool> {
        self.noted(marks.iter().try_for_each(|mark| mark.wait()).map(|()| true))
    }

    fn copy(&mut self, transfer: &Transfer) -> Result<Marks> {
        let mut marks = Vec::new();
        for (number, pool) in self.pools.iter_mut().enumerate() {
            let of_pool = transfer.copies.iter().filter(|copy| copy.pool == number);
            let copies: Vec<_> = of_pool.map(|copy| copy.copy).collect();
            if let Some(host) = pool.host.as_mut().filter(|_| !copies.is_empty()) {
                marks.push(host.copy(&pool.layers, &copies)?);
            }
        }
        Ok(marks)
    }

    /// Transfers that are over, in the order of their start; with `wait` one at least.
    pub(super) fn landed(&mut self, wait: bool) -> Vec<Landed> {
        let mut landed = Vec::new();
        while let Some((id, marks)) = self.open.front() {
            let over = match marks {
                None => Ok(false),
                Some(marks) if wait && landed.is_empty() => {
                    marks.iter().try_for_each(|mark| mark.wait()).map(|()| true)
                }
                Some(marks) => match all_over(marks) {
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

fn all_over(marks: &[Box<dyn Mark>]) -> Result<bool> {
    marks.iter().try_fold(true, |over, mark| Ok(over && mark.is_over()?))
}
