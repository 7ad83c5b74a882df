//! Block ids, who refers to them, and which free one is handed out next.

use crate::ids::BlockId;

const NONE: u32 = u32::MAX;

/// What a free block's content is worth: blocks that are worth less are handed out first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth(u8);

impl Worth {
    /// Nothing that anybody could use.
    pub const NOTHING: Self = Self(0);
    const COUNT: usize = 102;

    /// Reusable content of a priority, 0 to 100.
    pub fn of(priority: u8) -> Self {
        Self(1 + priority.min(100))
    }
}

#[derive(Clone, Copy)]
struct Block {
    refs: u32,
    /// Neighbours in its free list; `NONE` at the ends and outside it.
    prev: u32,
    next: u32,
    worth: Worth,
}

#[derive(Clone, Copy)]
struct Ends {
    head: u32,
    tail: u32,
}

/// Reference counts and a free list for each [`Worth`]: doubly linked through the blocks, least recently used first, so
/// that every operation costs the same at any pool size.
pub(super) struct KvBlocks {
    blocks: Vec<Block>,
    lists: Vec<Ends>,
    /// A bit for each list that is not empty.
    occupied: u128,
    free: usize,
}

impl KvBlocks {
    pub fn new(num_blocks: usize) -> Self {
        let mut pool = Self {
            blocks: vec![Block { refs: 0, prev: NONE, next: NONE, worth: Worth::NOTHING }; num_blocks],
            lists: vec![Ends { head: NONE, tail: NONE }; Worth::COUNT],
            occupied: 0,
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

    /// Whether there is more than one reference.
    pub fn is_shared(&self, id: BlockId) -> bool {
        self.blocks[id.0 as usize].refs > 1
    }

    /// The least recently used of the free blocks that are worth least, now with one reference.
    pub fn take(&mut self) -> Option<BlockId> {
        if self.occupied == 0 {
            return None;
        }
        let id = BlockId(self.lists[self.occupied.trailing_zeros() as usize].head);
        self.retain(id);
        Some(id)
    }

    /// One reference more; a free block leaves its free list.
    pub fn retain(&mut self, id: BlockId) {
        if self.blocks[id.0 as usize].refs == 0 {
            self.unlink(id.0);
        }
        self.blocks[id.0 as usize].refs += 1;
    }

    /// One reference less. Says whether the block is free now: as the last of its worth, or as the very first if it is
    /// worth nothing.
    pub fn release(&mut self, id: BlockId, worth: Worth) -> bool {
        let block = &mut self.blocks[id.0 as usize];
        assert!(block.refs > 0, "block {id} is released more often than it was taken");
        block.refs -= 1;
        if block.refs > 0 {
            return false;
        }
        block.worth = worth;
        self.enlist(id);
        true
    }

    /// Gives a free block another worth and makes it the most recently used of that worth.
    pub fn revalue(&mut self, id: BlockId, worth: Worth) {
        if self.is_free(id) {
            self.unlink(id.0);
            self.blocks[id.0 as usize].worth = worth;
            self.enlist(id);
        }
    }

    /// The worth of a free block.
    pub fn worth(&self, id: BlockId) -> Option<Worth> {
        self.is_free(id).then(|| self.blocks[id.0 as usize].worth)
    }

    /// Free blocks in the order in which they are handed out.
    pub fn order(&self) -> impl Iterator<Item = BlockId> {
        self.lists.iter().flat_map(move |list| {
            let some = |id| (id != NONE).then_some(id);
            std::iter::successors(some(list.head), move |&id: &u32| some(self.blocks[id as usize].next)).map(BlockId)
        })
    }

    /// Compares counts with `expected` (references by block) and the free lists with the counts.
    pub fn check(&self, expected: &[u32]) -> Result<(), String> {
        for (id, block) in self.blocks.iter().enumerate() {
            if block.refs != expected[id] {
                return Err(format!("block {id} has {} references, tables hold {}", block.refs, expected[id]));
            }
        }
        let mut seen = 0;
        for (list, ends) in self.lists.iter().enumerate() {
            let (mut at, mut prev) = (ends.head, NONE);
            if (at != NONE) != (self.occupied >> list & 1 == 1) {
                return Err(format!("free list {list} and its bit disagree"));
            }
            while at != NONE {
                let block = self.blocks[at as usize];
                let is_sound = block.refs == 0 && block.prev == prev && usize::from(block.worth.0) == list;
                if !is_sound || seen == self.free {
                    return Err(format!("free list {list} is broken at block {at}"));
                }
                (seen, prev, at) = (seen + 1, at, block.next);
            }
            if prev != ends.tail {
                return Err(format!("free list {list} ends at block {prev}, not {}", ends.tail));
            }
        }
        let unused = expected.iter().filter(|&&refs| refs == 0).count();
        if seen != self.free || seen != unused {
            return Err(format!("{seen} blocks in the free lists, {} counted, {unused} unused", self.free));
        }
        Ok(())
    }

    fn enlist(&mut self, id: BlockId) {
        if self.blocks[id.0 as usize].worth == Worth::NOTHING { self.push_front(id.0) } else { self.push_back(id.0) }
    }

    fn list(&mut self, of: u32) -> &mut Ends {
        &mut self.lists[usize::from(self.blocks[of as usize].worth.0)]
    }

    fn push_front(&mut self, id: u32) {
        let head = self.list(id).head;
        self.link(id, NONE, head);
    }

    fn push_back(&mut self, id: u32) {
        let tail = self.list(id).tail;
        self.link(id, tail, NONE);
    }

    fn link(&mut self, id: u32, prev: u32, next: u32) {
        let block = &mut self.blocks[id as usize];
        (block.prev, block.next) = (prev, next);
        self.occupied |= 1 << block.worth.0;
        self.join(id, prev, id);
        self.join(id, id, next);
        self.free += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Block { prev, next, worth, .. } = self.blocks[id as usize];
        self.join(id, prev, next);
        let block = &mut self.blocks[id as usize];
        (block.prev, block.next) = (NONE, NONE);
        if (prev, next) == (NONE, NONE) {
            self.occupied &= !(1 << worth.0);
        }
        self.free -= 1;
    }

    /// Makes `left` and `right` neighbours in the list that `of` belongs to; `NONE` is the end of the list.
    fn join(&mut self, of: u32, left: u32, right: u32) {
        match left {
            NONE => self.list(of).head = right,
            id => self.blocks[id as usize].next = right,
        }
        match right {
            NONE => self.list(of).tail = left,
            id => self.blocks[id as usize].prev = left,
        }
    }
}
