//! The decoder of a `tokenizer.json`, compiled into a form that takes one token at a time.
//!
//! A Hugging Face decoder maps the list of all tokens to the list of all pieces. [`Program`] splits the chain where
//! it stops being a function of one token: maps before that point are applied to the whole vocabulary at load, and
//! what follows keeps a few bytes of state per stream ([`State`]). One implementation serves whole texts and
//! streams, so both give the same bytes.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::wordpiece::cleanup;
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::tokenizer::Decoder;

use crate::error::{Error, Result};

/// Longest run of byte-fallback tokens (`<0xE2>` …) that is held back until it is known to be valid as a whole.
///
/// Hugging Face turns *every* byte of a run into U+FFFD when any of it is invalid, so nothing of a run is certain
/// before its end. Beyond this many bytes the complete characters are final; it bounds both delay and memory.
const MAX_BYTE_RUN: usize = 32;

const REPLACEMENT: &str = "\u{FFFD}";

/// A map from token text to token text that needs to know at most whether the token is the first.
#[derive(Clone, Debug)]
enum Map {
    /// No decoder at all: tokens are joined with blanks.
    Join,
    Metaspace {
        replacement: char,
        drop_in_first: bool,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Replace {
        from: String,
        to: String,
    },
}

/// A map that is applied to the vocabulary at load.
#[derive(Clone, Debug)]
enum Lead {
    Map(Map),
    Regex(Box<Replace>),
}

/// What combines tokens into text.
#[derive(Clone, Debug)]
enum Core {
    Concat,
    ByteLevel,
    /// The maps see the decoded runs as tokens.
    ByteFallback(Vec<Map>),
}

/// A stage that sees the whole text as one piece, in fragments.
#[derive(Clone, Debug)]
enum Fused {
    Replace { from: char, to: String },
    StripStart { content: char, left: usize },
    StripStop { content: char, max: usize, held: usize },
}

/// What one token contributes, before bytes are combined into characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Bytes of text; valid UTF-8 unless the tokenizer is byte-level.
    Bytes(&'a [u8]),
    /// One byte of a byte-fallback run.
    RunByte(&'a u8),
}

/// A decoder chain, ready for streaming.
#[derive(Clone, Debug)]
pub(super) struct Program {
    lead: Vec<Lead>,
    core: Core,
    fused: Vec<Fused>,
}

impl Program {
    /// # Errors
    /// Unsupported, naming the decoder, if the chain needs to see later tokens before it can give earlier ones.
    pub fn compile(decoder: Option<&DecoderWrapper>) -> Result<Self> {
        let mut program = Self { lead: Vec::new(), core: Core::Concat, fused: Vec::new() };
        let mut is_fused = false;
        match decoder {
            None => program.lead.push(Lead::Map(Map::Join)),
            Some(decoder) => program.add(decoder, &mut is_fused)?,
        }
        Ok(program)
    }

    fn add(&mut self, decoder: &DecoderWrapper, is_fused: &mut bool) -> Result<()> {
        match decoder {
            DecoderWrapper::Sequence(sequence) => {
                return sequence.get_decoders().iter().try_for_each(|decoder| self.add(decoder, is_fused));
            }
            DecoderWrapper::Fuse(_) => *is_fused = true,
            DecoderWrapper::ByteLevel(_) if !*is_fused && matches!(self.core, Core::Concat) => {
                self.core = Core::ByteLevel;
                *is_fused = true;
            }
            DecoderWrapper::ByteFallback(_) if !*is_fused && matches!(self.core, Core::Concat) => {
                self.core = Core::ByteFallback(Vec::new());
            }
            DecoderWrapper::Replace(replace) if replaced_string(replace).is_none() => {
                if *is_fused || !matches!(self.core, Core::Concat) {
                    return Err(unsupported("Replace with a Regex after another decoder"));
                }
                self.lead.push(Lead::Regex(Box::new(replace.clone())));
            }
            _ => match (Map::compile(decoder)?, &mut self.core) {
                (map, _) if *is_fused => self.fused.extend(map.into_fused()?),
                (map, Core::ByteFallback(maps)) => maps.push(map),
                (map, _) => self.lead.push(Lead::Map(map)),
            },
        }
        Ok(())
    }

    /// Whether the first token of a text is decoded differently.
    pub fn first_differs(&self) -> bool {
        self.lead.iter().any(|lead| match lead {
            Lead::Map(Map::Join | Map::WordPiece { .. }) => true,
            Lead::Map(Map::Metaspace { drop_in_first, .. }) => *drop_in_first,
            _ => false,
        })
    }

    /// The bytes of one token and whether they are one byte of a byte-fallback run.
    pub fn piece(&self, token: &str, first: bool) -> Result<(Vec<u8>, bool)> {
        let mut text = token.to_owned();
        for lead in &self.lead {
            text = match lead {
                Lead::Map(map) => map.apply(text, first),
                Lead::Regex(replace) => replace
                    .decode_chain(vec![text])
                    .map_err(|error| Error::invalid(format!("its Replace decoder fails on {token:?}: {error}")))?
                    .concat(),
            };
        }
        Ok(match self.core {
            Core::Concat => (text.into_bytes(), false),
            Core::ByteLevel => (byte_level_bytes(&text), false),
            Core::ByteFallback(_) => match fallback_byte(&text) {
                Some(byte) => (vec![byte], true),
                None => (text.into_bytes(), false),
            },
        })
    }

    pub fn start(&self) -> State {
        State {
            run: Run { bytes: [0; MAX_BYTE_RUN], len: 0, invalid: false, split: false, first: true },
            fused: self.fused.clone(),
            started: false,
        }
    }
}

impl Map {
    fn compile(decoder: &DecoderWrapper) -> Result<Self> {
        Ok(match decoder {
            DecoderWrapper::Metaspace(metaspace) => Self::Metaspace {
                replacement: metaspace.get_replacement(),
                drop_in_first: metaspace.get_prepend_scheme() != PrependScheme::Never,
            },
            DecoderWrapper::WordPiece(wordpiece) => {
                Self::WordPiece { prefix: wordpiece.prefix.clone(), cleanup: wordpiece.cleanup }
            }
            DecoderWrapper::Strip(strip) => {
                Self::Strip { content: strip.content, start: strip.start, stop: strip.stop }
            }
            DecoderWrapper::Replace(replace) => match replaced_string(replace) {
                Some(from) => Self::Replace { from, to: replace.content.clone() },
                None => return Err(unsupported("Replace with an unknown kind of pattern")),
            },
            DecoderWrapper::BPE(_) => return Err(unsupported("BPEDecoder")),
            DecoderWrapper::CTC(_) => return Err(unsupported("CTC")),
            DecoderWrapper::ByteLevel(_) => return Err(unsupported("ByteLevel after Fuse or ByteFallback")),
            DecoderWrapper::ByteFallback(_) => return Err(unsupported("ByteFallback after Fuse or ByteLevel")),
            DecoderWrapper::Fuse(_) | DecoderWrapper::Sequence(_) => return Err(unsupported("a nested sequence")),
        })
    }

    fn apply(&self, text: String, first: bool) -> String {
        match self {
            Self::Join if first => text,
            Self::Join => format!(" {text}"),
            Self::Metaspace { replacement, drop_in_first } => {
                text.replace(*replacement, if first && *drop_in_first { "" } else { " " })
            }
            Self::WordPiece { prefix, cleanup: clean } => {
                let text = match text.strip_prefix(prefix.as_str()) {
                    _ if first => text,
                    Some(rest) => rest.to_owned(),
                    None => format!(" {text}"),
                };
                if *clean { cleanup(&text) } else { text }
            }
            Self::Strip { content, start, stop } => strip(&text, *content, *start, *stop).to_owned(),
            Self::Replace { from, to } => text.replace(from.as_str(), to),
        }
    }

    /// The same map over a text that arrives in fragments.
    fn into_fused(self) -> Result<Vec<Fused>> {
        Ok(match self {
            Self::Metaspace { replacement, drop_in_first } => {
                let to = if drop_in_first { "" } else { " " };
                vec![Fused::Replace { from: replacement, to: to.to_owned() }]
            }
            Self::Strip { content, start, stop } => {
                let start = (start > 0).then_some(Fused::StripStart { content, left: start });
                let stop = (stop > 0).then_some(Fused::StripStop { content, max: stop, held: 0 });
                start.into_iter().chain(stop).collect()
            }
            Self::Replace { from, to } => {
                let mut chars = from.chars();
                match (chars.next(), chars.next()) {
                    (Some(from), None) => vec![Fused::Replace { from, to }],
                    _ => return Err(unsupported("Replace of more than one character after Fuse or ByteLevel")),
                }
            }
            Self::WordPiece { cleanup: false, .. } | Self::Join => Vec::new(),
            Self::WordPiece { .. } => return Err(unsupported("WordPiece after Fuse or ByteLevel")),
        })
    }
}

impl Fused {
    fn push(&mut self, text: &str, out: &mut String) {
        match self {
            Self::Replace { from, to } => text.split(*from).enumerate().for_each(|(i, part)| {
                out.push_str(if i > 0 { to } else { "" });
                out.push_str(part);
            }),
            Self::StripStart { content, left } => {
                let rest = strip(text, *content, *left, 0);
                *left = if rest.is_empty() { *left - text.chars().count().min(*left) } else { 0 };
                out.push_str(rest);
            }
            Self::StripStop { content, max, held } => {
                for c in text.chars() {
                    if c == *content && *held < *max {
                        *held += 1;
                    } else {
                        if c != *content {
                            out.extend(std::iter::repeat_n(*content, std::mem::take(held)));
                        }
                        out.push(c);
                    }
                }
            }
        }
    }
}

/// The decoding state of one stream: what is not yet certain. Small, and bounded whatever the tokens are.
#[derive(Clone, Debug)]
pub(super) struct State {
    run: Run,
    fused: Vec<Fused>,
    started: bool,
}

/// Bytes that do not form characters yet.
#[derive(Clone, Debug)]
struct Run {
    bytes: [u8; MAX_BYTE_RUN],
    len: u8,
    /// Byte fallback: the run is known to be invalid; each further byte of it is a U+FFFD.
    invalid: bool,
    /// Byte fallback: the beginning of the run is out already.
    split: bool,
    /// Byte fallback: no token has been completed yet.
    first: bool,
}

impl State {
    /// Whether a token has been pushed.
    pub fn started(&self) -> bool {
        self.started
    }

    /// Appends to `out` the text that has become certain with this piece.
    pub fn push(&mut self, program: &Program, piece: Piece, out: &mut String) {
        self.started = true;
        match (&program.core, piece) {
            (Core::Concat, Piece::Bytes(bytes)) => self.emit(&String::from_utf8_lossy(bytes), out),
            (Core::ByteLevel, Piece::Bytes(bytes)) => self.push_utf8(bytes, out),
            (Core::ByteFallback(maps), Piece::Bytes(bytes)) => {
                self.end_run(maps, out);
                self.emit_token(maps, &String::from_utf8_lossy(bytes), out);
                self.run.first = false;
            }
            (Core::ByteFallback(maps), Piece::RunByte(byte)) => self.push_run(maps, *byte, out),
            (Core::Concat | Core::ByteLevel, Piece::RunByte(byte)) => self.push_utf8(&[*byte], out),
        }
    }

    /// Appends what was held back; the state must not be used afterwards.
    pub fn finish(&mut self, program: &Program, out: &mut String) {
        match &program.core {
            Core::Concat => {}
            Core::ByteLevel if self.run.len > 0 => self.emit(REPLACEMENT, out),
            Core::ByteLevel => {}
            Core::ByteFallback(maps) => self.end_run(maps, out),
        }
        self.run.len = 0;
    }

    /// Decodes like `String::from_utf8_lossy` over the concatenation of all pieces.
    fn push_utf8(&mut self, bytes: &[u8], out: &mut String) {
        let joined;
        let mut rest = bytes;
        if self.run.len > 0 {
            joined = [&self.run.bytes[..self.run.len as usize], bytes].concat();
            rest = &joined;
            self.run.len = 0;
        }
        for chunk in rest.utf8_chunks() {
            self.emit(chunk.valid(), out);
            let invalid = chunk.invalid();
            let at_end = invalid.as_ptr_range().end == rest.as_ptr_range().end;
            if at_end && is_incomplete(invalid) {
                self.run.bytes[..invalid.len()].copy_from_slice(invalid);
                self.run.len = invalid.len() as u8;
            } else if !invalid.is_empty() {
                self.emit(REPLACEMENT, out);
            }
        }
    }

    fn push_run(&mut self, maps: &[Map], byte: u8, out: &mut String) {
        if self.run.invalid {
            return self.emit_replacements(maps, 1, out);
        }
        self.run.bytes[self.run.len as usize] = byte;
        self.run.len += 1;
        let len = self.run.len as usize;
        let bytes = self.run.bytes;
        let valid = match std::str::from_utf8(&bytes[..len]) {
            Ok(_) => len,
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => {
                self.run.invalid = true;
                self.run.len = 0;
                return self.emit_replacements(maps, len, out);
            }
        };
        if len == MAX_BYTE_RUN {
            self.emit_token(maps, &String::from_utf8_lossy(&bytes[..valid]), out);
            self.run.bytes.copy_within(valid..len, 0);
            self.run.len = (len - valid) as u8;
            self.run.split = true;
        }
    }

    fn end_run(&mut self, maps: &[Map], out: &mut String) {
        let len = self.run.len as usize;
        let bytes = self.run.bytes;
        match std::str::from_utf8(&bytes[..len]) {
            Ok("") => self.run.first &= !self.run.split,
            Ok(text) => {
                self.emit_token(maps, text, out);
                self.run.first = false;
            }
            Err(_) => self.emit_replacements(maps, len, out),
        }
        self.run.split = false;
        self.run.len = 0;
        self.run.invalid = false;
    }

    fn emit_replacements(&mut self, maps: &[Map], count: usize, out: &mut String) {
        for _ in 0..count {
            self.emit_token(maps, REPLACEMENT, out);
            self.run.first = false;
        }
    }

    fn emit_token(&mut self, maps: &[Map], text: &str, out: &mut String) {
        let first = self.run.first;
        let mapped = maps.iter().fold(text.to_owned(), |text, map| map.apply(text, first));
        self.emit(&mapped, out);
    }

    fn emit(&mut self, text: &str, out: &mut String) {
        match self.fused.as_mut_slice() {
            _ if text.is_empty() => {}
            [] => out.push_str(text),
            [stages @ .., last] => {
                let mut text = text.to_owned();
                for stage in stages {
                    let mut next = String::new();
                    stage.push(&text, &mut next);
                    text = next;
                }
                last.push(&text, out);
            }
        }
    }
}

fn unsupported(what: &str) -> Error {
    Error::unsupported(format!("its decoder uses {what}, which is not supported"))
}

/// `text` without up to `start` leading and up to `stop` trailing `content` characters.
fn strip(text: &str, content: char, start: usize, stop: usize) -> &str {
    let mut text = text;
    for _ in 0..start {
        text = text.strip_prefix(content).unwrap_or(text);
    }
    for _ in 0..stop {
        text = text.strip_suffix(content).unwrap_or(text);
    }
    text
}

fn replaced_string(replace: &Replace) -> Option<String> {
    let json = serde_json::to_value(replace).ok()?;
    Some(json.get("pattern")?.get("String")?.as_str()?.to_owned())
}

/// The byte that a byte-fallback token such as `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The bytes of a byte-level token: GPT-2 writes each byte as one printable character. Text that contains any
/// other character (an added token) stands for itself.
fn byte_level_bytes(text: &str) -> Vec<u8> {
    text.chars().map(byte_of_char).collect::<Option<Vec<u8>>>().unwrap_or_else(|| text.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes follow from U+0100 on in order.
fn byte_of_char(c: char) -> Option<u8> {
    match c as u32 {
        c @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(c as u8),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Whether more bytes could make `bytes` a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests;
