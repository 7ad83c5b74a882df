//! Which computed blocks hold which tokens, so that a later sequence with the same beginning can use them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::ids::{BlockId, TokenId};

const NONE: u32 = u32::MAX;

/// Siblings that are looked at for a partial match, most recently stored first: bounds the cost of a lookup.
const PARTIAL_CANDIDATES: usize = 64;

/// What must be equal besides tokens for a block to be shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Space {
    pub salt: u64,
    pub lora_id: Option<u64>,
    /// The search that the blocks serve where requests share none; 0: they may be shared.
    pub private: u64,
}

/// What identifies the slots of a block behind its parent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<'a> {
    pub tokens: &'a [TokenId],
    /// Extra ids of the tokens; without trailing zeros, so that equal contents are equal slices.
    pub extra_ids: &'a [u64],
}

impl PartialEq for Content<'_> {
    /// Comparing two empty slices can cost more than comparing two blocks: a vector load from nowhere.
    fn eq(&self, other: &Self) -> bool {
        self.tokens == other.tokens
            && self.extra_ids.len() == other.extra_ids.len()
            && (self.extra_ids.is_empty() || self.extra_ids == other.extra_ids)
    }
}

impl<'a> Content<'a> {
    /// The content of the slots `from..to` of a sequence; `extra_ids` may end early.
    pub fn of(tokens: &'a [TokenId], extra_ids: &'a [u64], from: usize, to: usize) -> Self {
        let extra = extra_ids.get(from..to.min(extra_ids.len())).unwrap_or_default();
        let len = extra.iter().rposition(|&id| id != 0).map_or(0, |at| at + 1);
        Self { tokens: &tokens[from..to], extra_ids: &extra[..len] }
    }

    /// How many slots from the first on are equal.
    fn shared(&self, other: &Content<'_>) -> usize {
        let extra = |content: &Content<'_>, at: usize| content.extra_ids.get(at).copied().unwrap_or(0);
        let tokens = self.tokens.iter().zip(other.tokens).take_while(|(a, b)| a == b).count();
        if self.extra_ids.is_empty() && other.extra_ids.is_empty() {
            return tokens;
        }
        (0..tokens).take_while(|&at| extra(self, at) == extra(other, at)).count()
    }
}

#[derive(Clone)]
struct Node {
    key: u64,
    space: Space,
    parent: u32,
    first_child: u32,
    prev_sibling: u32,
    next_sibling: u32,
    /// Slots held: a block, or fewer for the tail of a sequence that ended; 0: the block is not in the cache.
    len: u32,
    priority: u8,
    /// At least the value of every child.
    floor: u8,
}

const EMPTY: Node = Node {
    key: 0,
    space: Space { salt: 0, lora_id: None, private: 0 },
    parent: NONE,
    first_child: NONE,
    prev_sibling: NONE,
    next_sibling: NONE,
    len: 0,
    priority: 0,
    floor: 0,
};

/// A tree of blocks keyed by parent, space and content, found through a chained hash and confirmed by comparison.
///
/// A block is worth what its priority says, or what the most valuable block behind it is worth: without its parents a
/// block cannot be found.
pub(super) struct PrefixCache {
    block_size: usize,
    /// Nodes from here on are not on the device.
    device_blocks: usize,
    nodes: Vec<Node>,
    /// Those of block `b` from `b * block_size` on.
    tokens: Vec<TokenId>,
    extra_ids: HashMap<u32, Box<[u64]>>,
    index: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    /// Cached blocks that are not on the device.
    far: usize,
    /// First of the blocks without a parent.
    roots: HashMap<Space, u32>,
}

impl PrefixCache {
    /// `host_blocks` more nodes, behind those of the device.
    pub fn new(device_blocks: usize, host_blocks: usize, block_size: usize) -> Self {
        let num_blocks = device_blocks + host_blocks;
        Self {
            block_size,
            device_blocks,
            nodes: vec![EMPTY; num_blocks],
            tokens: vec![0; num_blocks * block_size],
            extra_ids: HashMap::new(),
            index: HashMap::with_capacity_and_hasher(num_blocks, BuildHasherDefault::default()),
            far: 0,
            roots: HashMap::new(),
        }
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.node(block).len > 0
    }

    /// Cached blocks.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Those of them that are not on the device.
    pub fn far(&self) -> usize {
        self.far
    }

    /// The chained hash of a cached block: its name outside of the engine.
    pub fn hash(&self, block: BlockId) -> u64 {
        self.node(block).key
    }

    pub fn content(&self, block: BlockId) -> Content<'_> {
        let start = block.0 as usize * self.block_size;
        let tokens = &self.tokens[start..start + self.node(block).len as usize];
        Content { tokens, extra_ids: self.extra_ids.get(&block.0).map_or(&[], |ids| ids) }
    }

    pub fn space(&self, block: BlockId) -> Space {
        self.node(block).space
    }

    pub fn parent(&self, block: BlockId) -> Option<BlockId> {
        to_option(self.node(block).parent)
    }

    pub fn is_leaf(&self, block: BlockId) -> bool {
        self.node(block).first_child == NONE
    }

    pub fn priority(&self, block: BlockId) -> u8 {
        self.node(block).priority
    }

    pub fn set_priority(&mut self, block: BlockId, priority: u8) {
        self.nodes[block.0 as usize].priority = priority;
    }

    /// The priority of the block, or of the most valuable one behind it.
    pub fn value(&self, block: BlockId) -> u8 {
        let node = self.node(block);
        node.priority.max(node.floor)
    }

    /// A child is worth `value` now and was worth `before`: brings its parent up to date.
    pub fn child_changed(&mut self, parent: BlockId, before: u8, value: u8) {
        let node = self.node(parent);
        let floor = if value >= node.floor {
            value
        } else if node.first_child == NONE {
            0
        } else if before == node.floor && before > node.priority {
            self.siblings(node.first_child).map(|child| self.value(child)).max().unwrap_or(0)
        } else {
            node.floor
        };
        self.nodes[parent.0 as usize].floor = floor;
    }

    /// The child of `parent` that holds exactly `content`.
    pub fn child(&self, parent: Option<BlockId>, space: Space, content: &Content<'_>) -> Option<BlockId> {
        let block = BlockId(*self.index.get(&self.key(parent, space, content))?);
        let node = self.node(block);
        let is_equal = node.parent == to_raw(parent) && node.space == space && self.content(block) == *content;
        is_equal.then_some(block)
    }

    /// All that could be cached.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The child of `parent`, on the device, that shares most leading slots with `content`, and how many.
    pub fn closest_child(
        &self,
        parent: Option<BlockId>,
        space: Space,
        content: &Content<'_>,
    ) -> Option<(BlockId, usize)> {
        let first = match parent {
            Some(parent) => self.node(parent).first_child,
            None => *self.roots.get(&space)?,
        };
        let shared = |block: BlockId| (block, self.content(block).shared(content));
        let near = self.siblings(first).take(PARTIAL_CANDIDATES).filter(|&block| !self.is_far(block));
        let candidates = near.map(shared);
        candidates.filter(|(_, shared)| *shared > 0).max_by_key(|(_, shared)| *shared)
    }

    /// Declares what `block` holds. False when the same content is known in another block (or its hash is taken):
    /// then nothing changes, and nothing can be declared behind it.
    pub fn insert(
        &mut self,
        parent: Option<BlockId>,
        space: Space,
        content: &Content<'_>,
        block: BlockId,
        priority: u8,
    ) -> bool {
        let key = self.key(parent, space, content);
        if self.index.contains_key(&key) || self.contains(block) {
            return false;
        }
        self.index.insert(key, block.0);
        let start = block.0 as usize * self.block_size;
        self.tokens[start..start + content.tokens.len()].copy_from_slice(content.tokens);
        if !content.extra_ids.is_empty() {
            self.extra_ids.insert(block.0, content.extra_ids.into());
        }
        let first = self.first(parent, space);
        let next_sibling = std::mem::replace(first, block.0);
        if next_sibling != NONE {
            self.nodes[next_sibling as usize].prev_sibling = block.0;
        }
        let len = content.tokens.len() as u32;
        let parent = to_raw(parent);
        self.nodes[block.0 as usize] = Node { key, space, parent, next_sibling, len, priority, ..EMPTY };
        true
    }

    /// Gives what `from` holds, and its place in the tree, to `to`, which holds nothing.
    pub fn rename(&mut self, from: BlockId, to: BlockId) {
        let node = std::mem::replace(&mut self.nodes[from.0 as usize], EMPTY);
        self.index.insert(node.key, to.0);
        self.far = self.far + usize::from(self.is_far(to)) - usize::from(self.is_far(from));
        let (start, target) = (from.0 as usize * self.block_size, to.0 as usize * self.block_size);
        self.tokens.copy_within(start..start + node.len as usize, target);
        if let Some(extra_ids) = self.extra_ids.remove(&from.0) {
            self.extra_ids.insert(to.0, extra_ids);
        }
        match node.prev_sibling {
            NONE => *self.first(to_option(node.parent), node.space) = to.0,
            prev => self.nodes[prev as usize].next_sibling = to.0,
        }
        if node.next_sibling != NONE {
            self.nodes[node.next_sibling as usize].prev_sibling = to.0;
        }
        let mut child = node.first_child;
        while child != NONE {
            self.nodes[child as usize].parent = to.0;
            child = self.nodes[child as usize].next_sibling;
        }
        self.nodes[to.0 as usize] = node;
    }

    /// A block and all behind it.
    pub fn subtree(&self, block: BlockId) -> Vec<BlockId> {
        let (mut all, mut next) = (vec![block], 0);
        while let Some(&block) = all.get(next) {
            all.extend(self.siblings(self.node(block).first_child));
            next += 1;
        }
        all
    }

    /// Forgets a block and all behind it; names them in `removed`.
    pub fn remove(&mut self, block: BlockId, removed: &mut Vec<BlockId>) {
        if !self.contains(block) {
            return;
        }
        self.unlink(block);
        let mut next = removed.len();
        removed.push(block);
        while let Some(&block) = removed.get(next) {
            let node = std::mem::replace(&mut self.nodes[block.0 as usize], EMPTY);
            self.index.remove(&node.key);
            self.far -= usize::from(self.is_far(block));
            self.extra_ids.remove(&block.0);
            removed.extend(self.siblings(node.first_child));
            next += 1;
        }
    }

    /// Parents, children, values, index and roots agree.
    pub fn check(&self) -> Result<(), String> {
        let mut linked = 0;
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.len > 0) {
            let block = BlockId(id as u32);
            if self.index.get(&node.key) != Some(&block.0) {
                return Err(format!("the index does not lead to block {block}"));
            }
            if node.parent == NONE && node.prev_sibling == NONE && self.roots.get(&node.space) != Some(&block.0) {
                return Err(format!("the root does not lead to block {block}"));
            }
            let mut prev = NONE;
            for child in self.siblings(node.first_child) {
                let held = self.node(child);
                if held.len == 0 || held.parent != block.0 || held.prev_sibling != prev || held.space != node.space {
                    return Err(format!("block {child} is no sound child of block {block}"));
                }
                if self.value(child) > node.floor && self.value(child) > node.priority {
                    return Err(format!("block {child} is worth more than its parent {block}"));
                }
                (prev, linked) = (child.0, linked + 1);
            }
        }
        let nodes = self.nodes.iter().filter(|node| node.len > 0).count();
        let far = self.nodes[self.device_blocks..].iter().filter(|node| node.len > 0).count();
        if far != self.far {
            return Err(format!("{far} cached blocks are not on the device, {} counted", self.far));
        }
        let roots: usize = self.roots.values().map(|&first| self.siblings(first).count()).sum();
        if nodes != self.index.len() || nodes != linked + roots {
            return Err(format!(
                "{nodes} cached blocks, {} indexed, {linked} children, {roots} roots",
                self.index.len()
            ));
        }
        Ok(())
    }

    fn node(&self, block: BlockId) -> &Node {
        &self.nodes[block.0 as usize]
    }

    fn is_far(&self, block: BlockId) -> bool {
        block.0 as usize >= self.device_blocks
    }

    fn siblings(&self, first: u32) -> impl Iterator<Item = BlockId> {
        std::iter::successors(to_option(first), |&block| to_option(self.node(block).next_sibling))
    }

    fn first(&mut self, parent: Option<BlockId>, space: Space) -> &mut u32 {
        match parent {
            Some(parent) => &mut self.nodes[parent.0 as usize].first_child,
            None => self.roots.entry(space).or_insert(NONE),
        }
    }

    fn unlink(&mut self, block: BlockId) {
        let &Node { parent, space, prev_sibling, next_sibling, .. } = self.node(block);
        if next_sibling != NONE {
            self.nodes[next_sibling as usize].prev_sibling = prev_sibling;
        }
        if prev_sibling != NONE {
            self.nodes[prev_sibling as usize].next_sibling = next_sibling;
        } else if parent == NONE && next_sibling == NONE {
            self.roots.remove(&space);
        } else {
            *self.first(to_option(parent), space) = next_sibling;
        }
    }

    fn key(&self, parent: Option<BlockId>, space: Space, content: &Content<'_>) -> u64 {
        self.key_behind(parent.map(|parent| self.node(parent).key), space, content)
    }

    /// The chained hash of `content` behind the block of hash `parent`.
    pub fn key_behind(&self, parent: Option<u64>, space: Space, content: &Content<'_>) -> u64 {
        let seed = match parent {
            Some(parent) => parent,
            None => {
                let shared = mix(mix(space.salt, u64::from(space.lora_id.is_some())), space.lora_id.unwrap_or(0));
                if space.private == 0 { shared } else { mix(shared, space.private) }
            }
        };
        let word = |[high, low]: [TokenId; 2]| u64::from(high as u32) << 32 | u64::from(low as u32);
        let (pairs, rest) = content.tokens.as_chunks();
        let seed = mix(seed, content.tokens.len() as u64);
        let hash = pairs.iter().fold(seed, |hash, &pair| mix(hash, word(pair)));
        let hash = rest.iter().fold(hash, |hash, &token| mix(hash, word([0, token])));
        content.extra_ids.iter().fold(hash, |hash, &id| mix(hash, id))
    }
}

fn to_option(raw: u32) -> Option<BlockId> {
    (raw != NONE).then_some(BlockId(raw))
}

fn to_raw(block: Option<BlockId>) -> u32 {
    block.map_or(NONE, |block| block.0)
}

/// Folded multiplication: cheap, and good enough since a hit is confirmed by comparison.
fn mix(a: u64, b: u64) -> u64 {
    let wide = u128::from(a ^ 0xA076_1D64_78BD_642F) * u128::from(b ^ 0xE703_7ED1_A0B4_28DB);
    (wide >> 64) as u64 ^ wide as u64
}

/// Keys of the index are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0 << 8 | u64::from(byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
