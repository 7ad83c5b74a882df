//! Stop strings: found in the text, wherever the borders of tokens and chunks fall.

use std::collections::VecDeque;
use std::sync::Arc;

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;

/// A set of stop strings, compiled (Aho-Corasick over bytes). Immutable; sequences of a request share it.
#[derive(Debug)]
pub struct StopStrings {
    nodes: Vec<Node>,
    /// Children of the root, by byte.
    first: Box<[u32; 256]>,
    /// Lengths of the stop strings, as given.
    lens: Vec<usize>,
}

/// A prefix of a stop string.
#[derive(Debug)]
struct Node {
    byte: u8,
    depth: u32,
    child: u32,
    sibling: u32,
    /// The longest proper suffix that is a node.
    fail: u32,
    /// The longest stop string that ends here, as an index, or `NONE`.
    stop: u32,
}

impl StopStrings {
    /// Empty strings are left out: they would match before the first character.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Arc<Self> {
        let mut set = Self {
            nodes: vec![Node { byte: 0, depth: 0, child: NONE, sibling: NONE, fail: ROOT, stop: NONE }],
            first: Box::new([NONE; 256]),
            lens: stops.iter().map(|stop| stop.as_ref().len()).collect(),
        };
        for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.as_ref().is_empty()) {
            let end = stop.as_ref().bytes().fold(ROOT, |node, byte| set.child_or_insert(node, byte));
            let node = &mut set.nodes[end as usize];
            node.stop = node.stop.min(index as u32);
        }
        set.link();
        Arc::new(set)
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }

    fn child(&self, node: u32, byte: u8) -> u32 {
        if node == ROOT {
            return self.first[byte as usize];
        }
        let mut child = self.nodes[node as usize].child;
        while child != NONE && self.nodes[child as usize].byte != byte {
            child = self.nodes[child as usize].sibling;
        }
        child
    }

    fn child_or_insert(&mut self, parent: u32, byte: u8) -> u32 {
        let found = self.child(parent, byte);
        if found != NONE {
            return found;
        }
        let new = self.nodes.len() as u32;
        let Node { depth, child: sibling, .. } = self.nodes[parent as usize];
        self.nodes.push(Node { byte, depth: depth + 1, child: NONE, sibling, fail: ROOT, stop: NONE });
        self.nodes[parent as usize].child = new;
        if parent == ROOT {
            self.first[byte as usize] = new;
        }
        new
    }

    fn link(&mut self) {
        let mut queue = VecDeque::from([ROOT]);
        while let Some(parent) = queue.pop_front() {
            let mut child = self.nodes[parent as usize].child;
            while child != NONE {
                let Node { byte, sibling, .. } = self.nodes[child as usize];
                if parent != ROOT {
                    let fail = self.next(self.nodes[parent as usize].fail, byte);
                    let inherited = self.nodes[fail as usize].stop;
                    let node = &mut self.nodes[child as usize];
                    node.fail = fail;
                    node.stop = if node.stop == NONE { inherited } else { node.stop };
                }
                queue.push_back(child);
                child = sibling;
            }
        }
    }

    /// The longest prefix of a stop string that the text ends with after `byte`.
    fn next(&self, mut node: u32, byte: u8) -> u32 {
        loop {
            let child = self.child(node, byte);
            match child {
                NONE if node == ROOT => return ROOT,
                NONE => node = self.nodes[node as usize].fail,
                child => return child,
            }
        }
    }
}

/// What a chunk released.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopChunk {
    /// Text that is safe to send.
    pub text: String,
    /// Index of the stop string that ended the text. Nothing follows it.
    pub stop: Option<usize>,
}

/// Looks for stop strings in one growing text and holds back what could be the beginning of one.
///
/// The match that ends first wins; of several that end together, the longest. So the result depends neither on how
/// the text is cut into chunks nor on what would have come after. Cost is linear in the length of the text.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Arc<StopStrings>,
    include_stop: bool,
    node: u32,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// With `include_stop`, the stop string itself is part of the text.
    pub fn new(stops: Arc<StopStrings>, include_stop: bool) -> Self {
        Self { stops, include_stop, node: ROOT, held: String::new(), stopped: None }
    }

    /// Takes a chunk and gives the text that no stop string can begin in any more. After a stop all text is dropped.
    pub fn push(&mut self, chunk: &str) -> StopChunk {
        if self.stopped.is_some() {
            return StopChunk { text: String::new(), stop: self.stopped };
        }
        if self.stops.is_empty() {
            return StopChunk { text: chunk.to_owned(), stop: None };
        }
        for (i, byte) in chunk.bytes().enumerate() {
            self.node = self.stops.next(self.node, byte);
            let stop = self.stops.nodes[self.node as usize].stop;
            if stop != NONE {
                return self.hit(stop as usize, &chunk[..=i]);
            }
        }
        self.held.push_str(chunk);
        // The held suffix is a prefix of a stop string, so it begins at a character.
        let keep = self.held.len() - self.stops.nodes[self.node as usize].depth as usize;
        let rest = self.held.split_off(keep);
        StopChunk { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The text still held back, at the end of the sequence. Empty after a stop.
    pub fn flush(&mut self) -> String {
        self.node = ROOT;
        std::mem::take(&mut self.held)
    }

    fn hit(&mut self, stop: usize, chunk: &str) -> StopChunk {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(chunk);
        if !self.include_stop {
            text.truncate(text.len() - self.stops.lens[stop]);
        }
        self.stopped = Some(stop);
        StopChunk { text, stop: Some(stop) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{HARD_TEXTS, Random};

    /// What is sent for `text`, cut into `chunks`, and the index of the stop string.
    fn run(stops: &[&str], include_stop: bool, chunks: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(StopStrings::new(stops), include_stop);
        let (mut sent, mut stop) = (String::new(), None);
        for chunk in chunks {
            let out = matcher.push(chunk);
            sent += &out.text;
            stop = stop.or(out.stop);
        }
        (sent + &matcher.flush(), stop)
    }

    /// The definition: the match that ends first, the longest of those that end together.
    fn reference(stops: &[&str], include_stop: bool, text: &str) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let bytes = &text.as_bytes()[..end];
            let hits = stops.iter().enumerate().filter(|(_, s)| !s.is_empty() && bytes.ends_with(s.as_bytes()));
            if let Some((index, stop)) = hits.max_by_key(|(i, stop)| (stop.len(), std::cmp::Reverse(*i))) {
                let keep = if include_stop { end } else { end - stop.len() };
                return (text[..keep].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    fn cut<'a>(random: &mut Random, text: &'a str) -> Vec<&'a str> {
        let mut chunks = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let chars = random.below(4);
            let at = rest.char_indices().nth(chars).map_or(rest.len(), |(i, _)| i);
            let (chunk, tail) = rest.split_at(at);
            chunks.push(chunk);
            rest = tail;
        }
        chunks
    }

    #[test]
    fn random_texts_in_random_chunks_follow_the_definition() {
        let mut random = Random(3);
        let alphabet = ["a", "b", "ab", "é", "好", "😀", " "];
        for _ in 0..20_000 {
            let mut make = |max: usize| (0..random.below(max)).map(|_| alphabet[random.below(7)]).collect::<String>();
            let owned: Vec<String> = (0..4).map(|_| make(5)).collect();
            let text = make(24);
            let stops: Vec<&str> = owned.iter().map(String::as_str).collect();
            let include = random.below(2) == 0;
            let chunks = cut(&mut random, &text);
            assert_eq!(run(&stops, include, &chunks), reference(&stops, include, &text), "{stops:?} in {chunks:?}");
        }
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut matcher = StopMatcher::new(StopStrings::new(&["\n\nHuman:"]), false);
        assert_eq!(matcher.push("Hi.\n").text, "Hi.");
        assert_eq!(matcher.push("\nHum").text, "");
        assert_eq!(matcher.push("bug").text, "\n\nHumbug");
        assert_eq!(matcher.push("\n").text, "");
        assert_eq!(matcher.flush(), "\n");
    }

    #[test]
    fn nothing_follows_a_stop() {
        let mut matcher = StopMatcher::new(StopStrings::new(&["STOP"]), false);
        assert_eq!(matcher.push("a ST"), StopChunk { text: "a ".into(), stop: None });
        assert_eq!(matcher.push("OP b"), StopChunk { text: "".into(), stop: Some(0) });
        assert_eq!(matcher.push("more"), StopChunk { text: "".into(), stop: Some(0) });
        assert_eq!(matcher.flush(), "");
    }

    #[test]
    fn the_stop_is_kept_when_asked() {
        assert_eq!(run(&["好", "x"], true, &["你", "好吗"]), ("你好".into(), Some(0)));
        assert_eq!(run(&["好", "x"], false, &["你", "好吗"]), ("你".into(), Some(0)));
    }

    #[test]
    fn empty_stop_strings_never_match() {
        assert!(StopStrings::new(&[""]).is_empty());
        for text in HARD_TEXTS {
            assert_eq!(run(&["", "not there"], false, &[text]), (text.into(), None));
        }
    }

    #[test]
    fn many_and_long_stop_strings_are_fine() {
        let long = "ab".repeat(500_000);
        let mut stops: Vec<String> = (0..10_000).map(|i| format!("stop {i};")).collect();
        stops.push(format!("{long}c"));
        let set = StopStrings::new(&stops);
        let mut matcher = StopMatcher::new(set, false);
        assert_eq!(matcher.push(&long).text, "");
        assert_eq!(matcher.push("d").text, format!("{long}d"));
        assert_eq!(matcher.push("x stop 9999;"), StopChunk { text: "x ".into(), stop: Some(9999) });
    }
}
