//! Files mapped into memory for reading.

use crate::error::{Error, Result};
use memmap2::{Advice, Mmap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that are asked for at once: of longer pieces, Linux reads only as much ahead as the disk takes in one request.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// A file's bytes, read on demand and shared with the page cache.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    file: File,
    path: PathBuf,
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
        Ok(Self { map, file, path: path.to_owned() })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Copies `bytes`, which are some of [`MappedFile::bytes`], to `out` of the same length. The system reads them from
    /// the file into place: cheaper than to touch every page of the map for the first time.
    ///
    /// # Errors
    /// Names the file and why it cannot be read.
    pub fn read(&self, bytes: &[u8], out: &mut [u8]) -> Result<()> {
        let offset = self.offset(bytes).filter(|_| bytes.len() == out.len());
        let Some(offset) = offset else {
            return Err(Error::internal(format!("{}: a copy of bytes that are not of the file", self.path.display())));
        };
        let read = self.file.read_exact_at(out, offset as u64);
        read.map_err(|error| Error::invalid(format!("cannot read {}: {error}", self.path.display())))
    }

    /// Lets the system read `bytes`, which are some of [`MappedFile::bytes`], while others are worked on. A hint:
    /// nothing happens where it cannot be done.
    pub fn will_need(&self, bytes: &[u8]) {
        let Some(offset) = self.offset(bytes) else { return };
        let end = offset + bytes.len();
        for start in (offset..end).step_by(READ_AHEAD_BYTES) {
            if let Err(error) = self.map.advise_range(Advice::WillNeed, start, READ_AHEAD_BYTES.min(end - start)) {
                tracing::debug!("no read-ahead of {}: {error}", self.path.display());
                return;
            }
        }
    }

    /// Where `bytes` are in the file; `None`: elsewhere.
    fn offset(&self, bytes: &[u8]) -> Option<usize> {
        let offset = (bytes.as_ptr() as usize).wrapping_sub(self.map.as_ptr() as usize);
        offset.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len()).then_some(offset)
    }
}
