//! Buffers of a thread that outlive a call, so that a kernel allocates once in its life.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

const LINE: usize = 16;

/// A cache line of f32.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _values: [f32; LINE],
}

thread_local! {
    static SPARE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// f32 memory on a cache line's border, given back to its thread when dropped. Its contents are unspecified.
pub(super) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    pub(super) fn take(len: usize) -> Self {
        let mut lines = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        let needed = len.div_ceil(LINE);
        if lines.len() < needed {
            lines.resize(needed, Line { _values: [0.0; LINE] });
        }
        Self { lines, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that is ending has no place for it any more: then it is freed.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().push(lines));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is `LINE` adjacent f32, and there are enough lines for `len`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
