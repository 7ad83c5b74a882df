//! Files mapped into memory for reading.

use crate::error::{Error, Result};
use memmap2::{Advice, Mmap};
use std::fs::File;
use std::path::Path;

/// A file's bytes, read on demand and shared with the page cache.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// Names the file and why it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |error: std::io::Error| Error::invalid(format!("cannot read {}: {error}", path.display()));
        let file = File::open(path).map_err(fail)?;
        // SAFETY: the map is private to this process and only read. Its bytes are plain data for every reader (no
        // reference to a type with invalid values is made), so a writer could change numbers but not break them. A
        // file that is cut while it is mapped ends the process with SIGBUS, as for every program that maps its model:
        // checkpoints are replaced by renaming, never by truncation.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        // A hint: without it the kernel reads ahead less.
        map.advise(Advice::Sequential).map_err(fail)?;
        Ok(Self { map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
