//! Events as vLLM publishes them, for the routers that take them from there (llm-d, Dynamo): a message of three parts,
//! the topic, a sequence number (8 bytes, big-endian) and a batch in MessagePack.
//!
//! A batch is an array `[seconds, [event…], rank]`, an event an array that begins with its name:
//! `["BlockStored", hashes, parent hash, tokens, block size, LoRA id, medium]`, `["BlockRemoved", hashes, medium]` or
//! `["AllBlocksCleared"]`. Blocks that only change their tier stay reusable here, so nothing is said of it. A sequence
//! number that is left out tells of events that were lost.
//! Source: vLLM, `vllm/distributed/kv_events.py`, in the layout of its releases up to 0.11.

use std::time::{SystemTime, UNIX_EPOCH};

use rmp::encode::{self, ByteBuf};

use super::EventSink;
use super::zmtp::Publisher;
use crate::engine::{KvEventBatch, KvEventData, StoredBlock};

/// vLLM's word for the memory that a worker computes in.
const MEDIUM: &str = "GPU";

/// Publishes batches over ZeroMQ.
pub(super) struct RouterEvents {
    publisher: Publisher,
    topic: String,
    block_size: usize,
    rank: usize,
    sequence: u64,
}

impl RouterEvents {
    pub fn new(publisher: Publisher, topic: &str, block_size: usize, rank: usize) -> Self {
        Self { publisher, topic: topic.to_owned(), block_size, rank, sequence: 0 }
    }
}

impl EventSink for RouterEvents {
    fn tend(&mut self) {
        self.publisher.accept();
    }

    fn publish(&mut self, batch: &KvEventBatch) {
        self.sequence += u64::from(batch.lost > 0);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let Some(payload) = encode_batch(batch, seconds, self.block_size, self.rank) else { return };
        self.publisher.send(&[self.topic.as_bytes(), &self.sequence.to_be_bytes(), &payload]);
        self.sequence += 1;
    }
}

/// `None`: nothing that a router is told of.
fn encode_batch(batch: &KvEventBatch, seconds: f64, block_size: usize, rank: usize) -> Option<Vec<u8>> {
    let mut events = ByteBuf::new();
    let mut count = 0;
    for event in &batch.events {
        match &event.data {
            KvEventData::Created { .. } => put(&mut events, |out| {
                array(out, 1);
                string(out, "AllBlocksCleared");
            }),
            KvEventData::Stored { parent_hash, blocks } => {
                put(&mut events, |out| stored(out, *parent_hash, blocks, block_size));
            }
            KvEventData::Removed { block_hashes } => put(&mut events, |out| {
                array(out, 3);
                string(out, "BlockRemoved");
                array(out, block_hashes.len());
                block_hashes.iter().for_each(|&hash| unsigned(out, hash));
                string(out, MEDIUM);
            }),
            KvEventData::Updated { .. } => continue,
        }
        count += 1;
    }
    if count == 0 {
        return None;
    }
    let mut out = ByteBuf::new();
    array(&mut out, 3);
    let _ = encode::write_f64(&mut out, seconds);
    array(&mut out, count);
    let mut bytes = out.into_vec();
    bytes.extend_from_slice(events.as_slice());
    let mut end = ByteBuf::new();
    unsigned(&mut end, rank as u64);
    bytes.extend_from_slice(end.as_slice());
    Some(bytes)
}

fn stored(out: &mut ByteBuf, parent_hash: Option<u64>, blocks: &[StoredBlock], block_size: usize) {
    array(out, 7);
    string(out, "BlockStored");
    array(out, blocks.len());
    blocks.iter().for_each(|block| unsigned(out, block.block_hash));
    optional(out, parent_hash);
    let tokens = blocks.iter().flat_map(|block| &block.tokens);
    array(out, tokens.clone().count());
    tokens.for_each(|token| unsigned(out, token.token_id as u64));
    unsigned(out, block_size as u64);
    optional(out, blocks.first().and_then(|block| block.lora_id));
    string(out, MEDIUM);
}

fn put(out: &mut ByteBuf, write: impl FnOnce(&mut ByteBuf)) {
    write(out);
}

// Writing to memory cannot fail.

fn array(out: &mut ByteBuf, len: usize) {
    let _ = encode::write_array_len(out, len as u32);
}

fn string(out: &mut ByteBuf, text: &str) {
    let _ = encode::write_str(out, text);
}

fn unsigned(out: &mut ByteBuf, value: u64) {
    let _ = encode::write_uint(out, value);
}

fn optional(out: &mut ByteBuf, value: Option<u64>) {
    match value {
        Some(value) => unsigned(out, value),
        None => {
            let _ = encode::write_nil(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EventDiff, KvEvent, UniqueToken};

    #[test]
    fn a_batch_has_the_layout_that_routers_know() {
        let token = |token_id| UniqueToken { token_id, token_extra_id: 0 };
        let block = StoredBlock {
            block_hash: 7,
            tokens: vec![token(1), token(300)],
            lora_id: None,
            cache_level: 0,
            priority: 35,
        };
        let diff = Some(EventDiff { new_value: 1, old_value: 0 });
        let data = [
            KvEventData::Created { num_blocks_per_cache_level: vec![4] },
            KvEventData::Stored { parent_hash: Some(u64::MAX), blocks: vec![block] },
            KvEventData::Updated { block_hash: 7, cache_level: diff, priority: None },
            KvEventData::Removed { block_hashes: vec![7] },
        ];
        let events = data.into_iter().enumerate().map(|(at, data)| KvEvent { event_id: at as u64, data });
        let batch = KvEventBatch { events: events.collect(), lost: 0 };
        let bytes = encode_batch(&batch, 0.5, 2, 3).unwrap();
        let mut expected = vec![0x93, 0xcb];
        expected.extend(0.5f64.to_be_bytes());
        expected.extend([0x93, 0x91, 0xb0]);
        expected.extend(b"AllBlocksCleared");
        expected.extend([0x97, 0xab]);
        expected.extend(b"BlockStored");
        expected.extend([0x91, 7, 0xcf, 255, 255, 255, 255, 255, 255, 255, 255, 0x92, 1, 0xcd, 1, 44, 2, 0xc0, 0xa3]);
        expected.extend(b"GPU");
        expected.extend([0x93, 0xac]);
        expected.extend(b"BlockRemoved");
        expected.extend([0x91, 7, 0xa3]);
        expected.extend(b"GPU");
        expected.push(3);
        assert_eq!(bytes, expected);
        let only_moves = KvEventBatch { events: batch.events[2..3].to_vec(), lost: 0 };
        assert_eq!(encode_batch(&only_moves, 0.5, 2, 3), None);
    }
}
