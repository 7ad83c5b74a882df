//! What happens to the prefix cache, for routers that send a request to where its beginning is cached.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::ids::TokenId;

/// One change, in TensorRT-LLM's JSON form when serialized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvEvent {
    /// Counts from 0; a gap means that events were lost.
    pub event_id: u64,
    pub data: KvEventData,
}

impl KvEvent {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        // Numbers, texts and lists always have a form in JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What changed. Only full blocks are told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum KvEventData {
    /// The cache was made; the first event.
    Created { num_blocks_per_cache_level: Vec<usize> },
    /// Blocks became reusable, each behind the one before it.
    Stored { parent_hash: Option<u64>, blocks: Vec<StoredBlock> },
    /// Blocks are not reusable any more.
    Removed { block_hashes: Vec<u64> },
    /// A block moved between levels or changed its priority.
    Updated { block_hash: u64, cache_level: Option<EventDiff>, priority: Option<EventDiff> },
}

/// A block that became reusable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "stored_block")]
pub struct StoredBlock {
    /// Of the content and of all before it.
    pub block_hash: u64,
    pub tokens: Vec<UniqueToken>,
    pub lora_id: Option<u64>,
    /// 0: device memory.
    pub cache_level: u32,
    pub priority: u32,
}

/// A token and what else identifies its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "unique_token")]
pub struct UniqueToken {
    pub token_id: TokenId,
    pub token_extra_id: u64,
}

/// A value before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "event_diff")]
pub struct EventDiff {
    pub new_value: u32,
    pub old_value: u32,
}

/// What a reader gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvEventBatch {
    pub events: Vec<KvEvent>,
    /// Older events that were overwritten before anybody read them, since the last batch.
    pub lost: u64,
}

/// The latest events, as many as the capacity says; shared by the engine, which writes, and a reader.
#[derive(Clone)]
pub(super) struct KvEvents(Arc<Mutex<Ring>>);

struct Ring {
    events: VecDeque<KvEvent>,
    capacity: usize,
    next_id: u64,
    lost: u64,
}

impl KvEvents {
    /// Capacity 0: nothing is kept.
    pub fn new(capacity: usize) -> Self {
        let ring = Ring { events: VecDeque::new(), capacity, next_id: 0, lost: 0 };
        Self(Arc::new(Mutex::new(ring)))
    }

    pub fn drain(&self) -> KvEventBatch {
        let mut ring = self.0.lock();
        KvEventBatch { lost: std::mem::take(&mut ring.lost), events: ring.events.drain(..).collect() }
    }

    pub fn push(&self, data: KvEventData) {
        let mut ring = self.0.lock();
        ring.push(data);
    }

    /// Tells of a block; consecutive blocks of one sequence become one event.
    pub fn stored(&self, parent_hash: Option<u64>, block: StoredBlock) {
        let mut ring = self.0.lock();
        if let Some(KvEvent { data: KvEventData::Stored { blocks, .. }, .. }) = ring.events.back_mut()
            && parent_hash.is_some()
            && blocks.last().map(|last| last.block_hash) == parent_hash
        {
            blocks.push(block);
            return;
        }
        ring.push(KvEventData::Stored { parent_hash, blocks: vec![block] });
    }
}

impl Ring {
    fn push(&mut self, data: KvEventData) {
        if self.events.len() >= self.capacity {
            self.lost += u64::from(self.events.pop_front().is_some());
        }
        if self.capacity > 0 {
            self.events.push_back(KvEvent { event_id: self.next_id, data });
            self.next_id += 1;
        }
    }
}
