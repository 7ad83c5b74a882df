//! The order in which waiting sequences start: priority with ageing within a tenant, shares between tenants.

use std::collections::BTreeSet;

use super::request::Tenant;
use super::sequence::SeqRef;

/// Place in the queue of a tenant: what is smaller starts earlier.
pub(super) type Key = (i64, SeqRef);

/// A token computed for a tenant of weight 1.
const SERVICE_UNIT: u64 = 1 << 20;

struct TenantQueue {
    tenant: Tenant,
    /// Tokens computed, divided by the weight.
    service: u64,
    waiting: BTreeSet<Key>,
    /// Sequences that have not ended.
    members: usize,
}

/// Waiting sequences by tenant. The tenant that was served least, for its weight, is next.
pub(super) struct WaitingQueue {
    /// Waiting for this long raises a request by one priority; `None`: priorities are strict.
    ageing_ns: Option<u64>,
    tenants: Vec<Option<TenantQueue>>,
    len: usize,
}

/// What a walk through the queue has passed, by tenant.
#[derive(Default)]
pub(super) struct Cursor(Vec<Option<Key>>);

impl Cursor {
    pub fn reset(&mut self) {
        self.0.clear();
    }

    pub fn skip(&mut self, tenant: u32, key: Key) {
        let at = tenant as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        self.0[at] = Some(key);
    }
}

impl WaitingQueue {
    pub fn new(ageing_ns: Option<u64>) -> Self {
        Self { ageing_ns, tenants: Vec::new(), len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// A sequence of `tenant` has arrived; it belongs to the returned place until [`WaitingQueue::leave`]. A tenant
    /// that comes back has no claim for the time of its absence.
    pub fn join(&mut self, tenant: Tenant) -> u32 {
        let known = |queue: &Option<TenantQueue>| queue.as_ref().is_some_and(|queue| queue.tenant.id == tenant.id);
        if let Some(at) = self.tenants.iter().position(known) {
            if let Some(queue) = &mut self.tenants[at] {
                queue.members += 1;
                queue.tenant = tenant;
            }
            return at as u32;
        }
        let service = self.tenants.iter().flatten().map(|queue| queue.service).min().unwrap_or(0);
        let at = self.tenants.iter().position(Option::is_none).unwrap_or(self.tenants.len());
        if at == self.tenants.len() {
            self.tenants.push(None);
        }
        self.tenants[at] = Some(TenantQueue { tenant, service, waiting: BTreeSet::new(), members: 1 });
        at as u32
    }

    /// A sequence has ended.
    pub fn leave(&mut self, tenant: u32) {
        let place = &mut self.tenants[tenant as usize];
        if let Some(queue) = place {
            queue.members -= 1;
            if queue.members == 0 {
                *place = None;
            }
        }
    }

    /// Where a sequence belongs. With ageing, order never changes with time: who is one priority lower and came one
    /// ageing time earlier is equal, now and always.
    pub fn key(&self, seq: SeqRef, priority: i32, arrival_ns: u64) -> Key {
        let place = match self.ageing_ns {
            None => -i64::from(priority),
            Some(ageing_ns) => {
                let head_start = i64::from(priority).saturating_mul(i64::try_from(ageing_ns).unwrap_or(i64::MAX));
                i64::try_from(arrival_ns).unwrap_or(i64::MAX).saturating_sub(head_start)
            }
        };
        (place, seq)
    }

    pub fn push(&mut self, tenant: u32, key: Key) {
        if let Some(queue) = &mut self.tenants[tenant as usize] {
            self.len += usize::from(queue.waiting.insert(key));
        }
    }

    pub fn remove(&mut self, tenant: u32, key: Key) {
        if let Some(queue) = &mut self.tenants[tenant as usize] {
            self.len -= usize::from(queue.waiting.remove(&key));
        }
    }

    pub fn contains(&self, tenant: u32, key: Key) -> bool {
        self.tenants[tenant as usize].as_ref().is_some_and(|queue| queue.waiting.contains(&key))
    }

    /// Tokens were computed for a tenant.
    pub fn charge(&mut self, tenant: u32, tokens: usize) {
        if let Some(queue) = &mut self.tenants[tenant as usize] {
            let service = (tokens as u64 * SERVICE_UNIT) / u64::from(queue.tenant.weight.max(1));
            queue.service = queue.service.saturating_add(service);
        }
    }

    /// Whose turn it is, behind the cursor.
    pub fn next(&self, cursor: &Cursor) -> Option<(u32, Key)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let first = |(at, queue): (usize, &Option<TenantQueue>)| {
            let queue = queue.as_ref()?;
            let passed = cursor.0.get(at).copied().flatten();
            let key = match passed {
                None => queue.waiting.first(),
                Some(passed) => queue.waiting.range((Excluded(passed), Unbounded)).next(),
            };
            key.map(|&key| (queue.service, key, at as u32))
        };
        self.tenants.iter().enumerate().filter_map(first).min().map(|(_, key, tenant)| (tenant, key))
    }
}
