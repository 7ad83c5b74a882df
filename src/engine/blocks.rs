//! Block ids, who refers to them, and which free one is handed out next.

use crate::ids::BlockId;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Block {
    refs: u32,
    /// Neighbours in the free list; `NONE` at the ends and outside it.
    prev: u32,
    next: u32,
}

/// Reference counts and the free list: a doubly linked list through the blocks, least recently used first, so that
/// every operation costs the same at any pool size.
pub(super) struct KvBlocks {
    blocks: Vec<Block>,
    head: u32,
    tail: u32,
    free: usize,
}

impl KvBlocks {
    pub fn new(num_blocks: usize) -> Self {
        let mut pool = Self {
            blocks: vec![Block { refs: 0, prev: NONE, next: NONE }; num_blocks],
            head: NONE,
            tail: NONE,
            free: 0,
        };
        (0..num_blocks as u32).for_each(|id| pool.push_back(id));
        pool
    }

    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn free(&self) -> usize {
        self.free
    }

    pub fn is_free(&self, id: BlockId) -> bool {
        self.blocks[id.0 as usize].refs == 0
    }

    /// The least recently used free block, now with one reference.
    pub fn take(&mut self) -> Option<BlockId> {
        if self.head == NONE {
            return None;
        }
        let id = BlockId(self.head);
        self.retain(id);
        Some(id)
    }

    /// One reference more; a free block leaves the free list.
    pub fn retain(&mut self, id: BlockId) {
        if self.blocks[id.0 as usize].refs == 0 {
            self.unlink(id.0);
        }
        self.blocks[id.0 as usize].refs += 1;
    }

    /// One reference less. At zero the block is free: the next to be handed out, or with `keep` the last.
    pub fn release(&mut self, id: BlockId, keep: bool) {
        let block = &mut self.blocks[id.0 as usize];
        assert!(block.refs > 0, "block {id} is released more often than it was taken");
        block.refs -= 1;
        if block.refs > 0 {
            return;
        }
        if keep {
            self.push_back(id.0);
        } else {
            self.push_front(id.0);
        }
    }

    /// A free block whose content is worth nothing any more is handed out first.
    pub fn demote(&mut self, id: BlockId) {
        if self.is_free(id) {
            self.unlink(id.0);
            self.push_front(id.0);
        }
    }

    /// Compares counts with `expected` (references by block) and the free list with the counts.
    pub fn check(&self, expected: &[u32]) -> Result<(), String> {
        for (id, block) in self.blocks.iter().enumerate() {
            if block.refs != expected[id] {
                return Err(format!("block {id} has {} references, tables hold {}", block.refs, expected[id]));
            }
        }
        let (mut seen, mut at, mut prev) = (0, self.head, NONE);
        while at != NONE {
            let block = self.blocks[at as usize];
            if block.refs != 0 || block.prev != prev || seen == self.free {
                return Err(format!("the free list is broken at block {at}"));
            }
            (seen, prev, at) = (seen + 1, at, block.next);
        }
        let unused = expected.iter().filter(|&&refs| refs == 0).count();
        if seen != self.free || seen != unused || prev != self.tail {
            return Err(format!("{seen} blocks in the free list, {} counted, {unused} unused", self.free));
        }
        Ok(())
    }

    fn push_front(&mut self, id: u32) {
        self.link(id, NONE, self.head);
    }

    fn push_back(&mut self, id: u32) {
        self.link(id, self.tail, NONE);
    }

    fn link(&mut self, id: u32, prev: u32, next: u32) {
        let block = &mut self.blocks[id as usize];
        (block.prev, block.next) = (prev, next);
        self.set_next(prev, id);
        self.set_prev(next, id);
        self.free += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Block { prev, next, .. } = self.blocks[id as usize];
        self.set_next(prev, next);
        self.set_prev(next, prev);
        let block = &mut self.blocks[id as usize];
        (block.prev, block.next) = (NONE, NONE);
        self.free -= 1;
    }

    fn set_next(&mut self, of: u32, next: u32) {
        match of {
            NONE => self.head = next,
            id => self.blocks[id as usize].next = next,
        }
    }

    fn set_prev(&mut self, of: u32, prev: u32) {
        match of {
            NONE => self.tail = prev,
            id => self.blocks[id as usize].prev = prev,
        }
    }
}
