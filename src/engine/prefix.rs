//! Which computed blocks hold which tokens, so that a later sequence with the same beginning can use them.

use std::collections::HashMap;

use crate::ids::{BlockId, TokenId};

/// What a block holds. The chain of parents spells the whole sequence up to and including `tokens`.
struct Node {
    key: u64,
    salt: u64,
    parent: Option<BlockId>,
    /// A full block, or fewer for the tail of a sequence that ended.
    tokens: Box<[TokenId]>,
    children: Vec<BlockId>,
}

/// A tree of blocks keyed by parent, salt and tokens, found through a chained hash and confirmed by comparison.
///
/// Whoever uses a block also uses its ancestors, and gives its blocks back last first. So in the least-recently-used
/// order of the free blocks children come before their parents, and leaves are evicted first.
pub(super) struct PrefixCache {
    nodes: Vec<Option<Node>>,
    index: HashMap<u64, BlockId>,
    roots: HashMap<u64, Vec<BlockId>>,
}

impl PrefixCache {
    pub fn new(num_blocks: usize) -> Self {
        Self { nodes: (0..num_blocks).map(|_| None).collect(), index: HashMap::new(), roots: HashMap::new() }
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.node(block).is_some()
    }

    /// The child of `parent` that holds exactly `tokens`.
    pub fn child(&self, parent: Option<BlockId>, salt: u64, tokens: &[TokenId]) -> Option<BlockId> {
        let block = *self.index.get(&self.key(parent, salt, tokens))?;
        let node = self.node(block)?;
        (node.parent == parent && node.salt == salt && *node.tokens == *tokens).then_some(block)
    }

    /// The child of `parent` that shares most leading tokens with `tokens`, and how many.
    pub fn closest_child(&self, parent: Option<BlockId>, salt: u64, tokens: &[TokenId]) -> Option<(BlockId, usize)> {
        let children = match parent {
            Some(parent) => &self.node(parent)?.children,
            None => self.roots.get(&salt)?,
        };
        let shared = |block: &BlockId| {
            let held = self.node(*block).map_or(&[][..], |node| &node.tokens);
            (*block, held.iter().zip(tokens).take_while(|(a, b)| a == b).count())
        };
        children.iter().map(shared).filter(|(_, shared)| *shared > 0).max_by_key(|(_, shared)| *shared)
    }

    /// Declares what `block` holds. False when the same content is known in another block (or its hash is taken):
    /// then nothing changes, and nothing can be declared behind it.
    pub fn insert(&mut self, parent: Option<BlockId>, salt: u64, tokens: &[TokenId], block: BlockId) -> bool {
        let key = self.key(parent, salt, tokens);
        if self.index.contains_key(&key) || self.contains(block) {
            return false;
        }
        self.index.insert(key, block);
        self.siblings(parent, salt).push(block);
        self.nodes[block.0 as usize] = Some(Node { key, salt, parent, tokens: tokens.into(), children: Vec::new() });
        true
    }

    /// Forgets a block and all behind it; returns the forgotten ones.
    pub fn remove(&mut self, block: BlockId) -> Vec<BlockId> {
        let mut removed = Vec::new();
        if let Some((parent, salt)) = self.node(block).map(|node| (node.parent, node.salt)) {
            self.siblings(parent, salt).retain(|&sibling| sibling != block);
            if parent.is_none() && self.roots.get(&salt).is_some_and(Vec::is_empty) {
                self.roots.remove(&salt);
            }
            removed.push(block);
        }
        let mut next = 0;
        while let Some(&block) = removed.get(next) {
            if let Some(node) = self.nodes[block.0 as usize].take() {
                self.index.remove(&node.key);
                removed.extend(node.children);
            }
            next += 1;
        }
        removed
    }

    /// Parents, children, index and roots agree.
    pub fn check(&self) -> Result<(), String> {
        let mut linked = 0;
        for (id, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let block = BlockId(id as u32);
            if self.index.get(&node.key) != Some(&block) {
                return Err(format!("the index does not lead to block {block}"));
            }
            let siblings = match node.parent {
                Some(parent) => self.node(parent).map(|parent| &parent.children),
                None => self.roots.get(&node.salt),
            };
            if siblings.is_none_or(|siblings| siblings.iter().filter(|&&sibling| sibling == block).count() != 1) {
                return Err(format!("block {block} is not a child of its parent"));
            }
            linked += node.children.len();
        }
        let (nodes, roots) = (self.nodes.iter().flatten().count(), self.roots.values().map(Vec::len).sum::<usize>());
        if nodes != self.index.len() || nodes != linked + roots {
            return Err(format!(
                "{nodes} cached blocks, {} indexed, {linked} children, {roots} roots",
                self.index.len()
            ));
        }
        Ok(())
    }

    /// The parent, for a check of the blocks' use.
    pub fn parent(&self, block: BlockId) -> Option<BlockId> {
        self.node(block)?.parent
    }

    fn node(&self, block: BlockId) -> Option<&Node> {
        self.nodes[block.0 as usize].as_ref()
    }

    fn siblings(&mut self, parent: Option<BlockId>, salt: u64) -> &mut Vec<BlockId> {
        match parent.and_then(|parent| self.nodes[parent.0 as usize].as_mut()) {
            Some(node) => &mut node.children,
            None => self.roots.entry(salt).or_default(),
        }
    }

    fn key(&self, parent: Option<BlockId>, salt: u64, tokens: &[TokenId]) -> u64 {
        let seed = parent.and_then(|parent| self.node(parent)).map_or(salt ^ 0x9E37_79B9_7F4A_7C15, |node| node.key);
        tokens.iter().fold(mix(seed, tokens.len() as u64), |hash, &token| mix(hash, token as u64))
    }
}

/// Folded multiplication: cheap, and good enough since a hit is confirmed by comparison.
fn mix(a: u64, b: u64) -> u64 {
    let wide = u128::from(a ^ 0xA076_1D64_78BD_642F) * u128::from(b ^ 0xE703_7ED1_A0B4_28DB);
    (wide >> 64) as u64 ^ wide as u64
}
