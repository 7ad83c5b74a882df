//! Guided decoding: which tokens may follow, by a grammar.
//!
//! [`Guides`] compiles the grammars of one vocabulary; a [`Guide`] belongs to a request, a [`GuideMatcher`] to one
//! sequence of it. The matcher is advanced by the sequence's own tokens, so its state follows from them alone.

mod ebnf;
mod grammar;
mod matcher;
mod tags;

use std::fmt;
use std::sync::Arc;

use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use parking_lot::Mutex;

pub use matcher::{GuideMatcher, TokenMask};

use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Longest text of a guide, in bytes.
pub const MAX_GUIDE_BYTES: usize = 1 << 20;

/// How the text of a guide is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuideKind {
    /// Any JSON object; the guide has no text.
    Json,
    /// The text is a JSON schema.
    JsonSchema,
    /// The text is a regular expression for the whole answer.
    Regex,
    /// The text is a grammar of `rule ::= …` lines that starts with `root`.
    EbnfGrammar,
    /// The text is a JSON list of answers.
    Choice,
    /// The text is a grammar in Lark's notation that starts with `start`.
    Lark,
    /// The text is a JSON description of free text with tags whose contents are guided.
    StructuralTag,
}

impl GuideKind {
    /// The names of all kinds, as requests give them.
    pub const WORDS: [&'static str; 7] =
        ["json", "json_schema", "regex", "ebnf_grammar", "choice", "lark", "structural_tag"];

    /// # Errors
    /// `InvalidArg` that lists the kinds.
    pub fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "json" => Self::Json,
            "json_schema" => Self::JsonSchema,
            "regex" => Self::Regex,
            "ebnf_grammar" => Self::EbnfGrammar,
            "choice" => Self::Choice,
            "lark" => Self::Lark,
            "structural_tag" => Self::StructuralTag,
            other => return Err(Error::invalid(format!("{other:?} is none of {}", Self::WORDS.join(", ")))),
        })
    }

    /// The name of the kind.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

/// What a request says about its guide.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuideSource {
    pub kind: GuideKind,
    pub text: String,
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuideToken {
    /// These bytes of the answer; an empty one is never allowed.
    Text(Vec<u8>),
    /// A special token: only grammars that name it allow it.
    Special(String),
}

/// Compiles the guides of one vocabulary.
pub struct Guides {
    factory: ParserFactory,
    vocab_size: usize,
}

impl Guides {
    /// `tokens`: one for each column of the logits, V of them.
    ///
    /// # Errors
    /// `InvalidArg` for a vocabulary without any text.
    pub fn new(tokens: &[GuideToken]) -> Result<Self> {
        if !tokens.iter().any(|token| matches!(token, GuideToken::Text(bytes) if !bytes.is_empty())) {
            return Err(Error::invalid("the vocabulary for guided decoding has no token with text"));
        }
        let words: Vec<Vec<u8>> = tokens.iter().map(word).collect();
        // End tokens differ from request to request: the matcher adds them itself.
        let info = TokRxInfo::new(words.len() as u32, INVALID_TOKEN);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| Error::internal(format!("the vocabulary for guided decoding: {error}")))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, vocab_size: words.len() })
    }

    /// Compiles a guide. Bounded in size, states and, by counted work, in time; deep recursion needs a stack of
    /// [`COMPILE_STACK_BYTES`].
    ///
    /// # Errors
    /// `InvalidArg` that says what is wrong with the text, or that it is too large.
    pub fn compile(&self, source: &GuideSource) -> Result<Guide> {
        let word = source.kind.word();
        let refuse =
            |reason: &str| Error::invalid(format!("the {word} guide cannot be compiled: {}", shortened(reason)));
        let grammar = grammar::build(source).map_err(|error| refuse(error.message()))?;
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(refuse(&error));
        }
        // A grammar that no token can begin is found here and not in the middle of a batch.
        let mut probe = GuideMatcher::new(matcher.deep_clone(), 0, &[], self.vocab_size);
        let allows_empty = probe.mask().map_err(|error| refuse(error.message()))?.only_end();
        let (mut matcher, work) = probe.into_start().unwrap_or((matcher, 0));
        let warnings = matcher.grammar_warnings();
        if !warnings.is_empty() {
            tracing::debug!(word, ?warnings, "guide");
        }
        let bytes = source.text.len();
        Ok(Guide(Arc::new(Compiled {
            source: source.clone(),
            start: Mutex::new(Start { matcher, work }),
            allows_empty,
            vocab_size: self.vocab_size,
            bytes,
        })))
    }
}

/// Stack that [`Guides::compile`] needs for the deepest grammars that it takes.
pub const COMPILE_STACK_BYTES: usize = 64 << 20;

fn word(token: &GuideToken) -> Vec<u8> {
    match token {
        GuideToken::Text(bytes) => bytes.clone(),
        GuideToken::Special(text) => [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat(),
    }
}

/// A mask costs at most some 15 ms of work, a grammar some 50 ms and 100 MiB.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 2_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 100_000,
        max_lexer_states: 50_000,
        max_grammar_size: 500_000,
        precompute_large_lexemes: true,
        // They would carry what was generated into the log.
        verbose_errors: false,
    }
}

/// The first part of a message, on one line: some messages repeat the whole grammar.
fn shortened(text: &str) -> String {
    const LENGTH: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

/// A compiled guide. Cheap to clone; equal to its clones only.
#[derive(Clone)]
pub struct Guide(Arc<Compiled>);

struct Compiled {
    source: GuideSource,
    start: Mutex<Start>,
    allows_empty: bool,
    vocab_size: usize,
    bytes: usize,
}

/// Where matchers begin.
struct Start {
    matcher: Matcher,
    /// Of all that it knows about the states of its grammar.
    work: u64,
}

/// Most work whose results a guide keeps for its next matchers: it bounds their memory, and leaves a matcher that begins
/// with all of them most of the states that the limits allow.
const MAX_KEPT_WORK: u64 = 20_000;

impl Guide {
    /// What it was compiled from.
    pub fn source(&self) -> &GuideSource {
        &self.0.source
    }

    /// Whether nothing but the empty answer fits.
    pub fn is_empty(&self) -> bool {
        self.0.allows_empty
    }

    /// A matcher at the beginning of an answer that `end_ids` end.
    pub fn matcher(&self, end_ids: &[TokenId]) -> GuideMatcher {
        let start = self.0.start.lock();
        GuideMatcher::new(start.matcher.deep_clone(), start.work, end_ids, self.0.vocab_size)
    }

    /// Takes a matcher back that is no more needed: what it has found out about the grammar's states need not be worked out
    /// again by those that come.
    pub fn take_back(&self, matcher: GuideMatcher) {
        let is_of_use = |work: u64, known: u64| known < work && work <= MAX_KEPT_WORK;
        if !is_of_use(matcher.work(), self.0.start.lock().work) {
            return;
        }
        let Some((matcher, work)) = matcher.into_start() else { return };
        let mut start = self.0.start.lock();
        if is_of_use(work, start.work) {
            *start = Start { matcher, work };
        }
    }

    /// Bytes of its text.
    pub fn source_bytes(&self) -> usize {
        self.0.bytes
    }
}

impl PartialEq for Guide {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guide({}, {} bytes)", self.0.source.kind.word(), self.0.bytes)
    }
}

#[cfg(test)]
mod tests;
