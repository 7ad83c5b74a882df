//! Identifiers. Each is a newtype, so that one cannot stand for another.

use std::fmt;

/// A token of the vocabulary. Signed, as on Triton's wire (INT32); valid ids are `0..V`.
pub type TokenId = i32;

/// One request inside the engine; never reused. Not the Triton request id, which is a client's string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One sequence of tokens: a request has one, or one per return sequence or beam. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// One block of the paged KV cache, `0..num_blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// One block of the host tier behind the KV cache, `0..host_blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostBlockId(pub u32);

macro_rules! display_inner {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_inner!(RequestId, SeqId, BlockId, HostBlockId);
