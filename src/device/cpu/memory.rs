//! Memory of the CPU device: aligned, zeroed, on huge pages where it is large.

use crate::device::RawBuffer;
use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Alignment of every allocation.
pub(super) const ALIGNMENT: usize = 256;
/// Allocations from this size on are mapped on their own, aligned to a huge page.
const MAP_FROM_BYTES: usize = 1 << 20;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes that devices of this process have given out. Pages are the system's only when they are touched: until then
/// they still count as available there.
static GIVEN_OUT_BYTES: AtomicU64 = AtomicU64::new(0);

/// Memory of the machine, or of the container if that has less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostMemory {
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
}

/// What there is and what is left of it.
pub(super) fn host_memory() -> HostMemory {
    let meminfo = read("/proc/meminfo");
    let kib = |key: &str| field(&meminfo, key).map(|kib| kib * 1024);
    let mut total_bytes = kib("MemTotal:").unwrap_or(u64::MAX);
    let mut available_bytes = kib("MemAvailable:").unwrap_or(total_bytes);
    if let Some((limit, used)) = container_limit() {
        total_bytes = total_bytes.min(limit);
        available_bytes = available_bytes.min(limit.saturating_sub(used));
    }
    let resident = field(&read("/proc/self/status"), "RssAnon:").unwrap_or(0) * 1024;
    let given_out = GIVEN_OUT_BYTES.load(Ordering::Relaxed);
    available_bytes = available_bytes.saturating_sub(given_out.saturating_sub(resident));
    HostMemory { total_bytes, available_bytes }
}

/// Zeroed memory for `purpose`, aligned to [`ALIGNMENT`] bytes.
///
/// # Errors
/// Says what was asked for and what was available.
pub(super) fn allocate(bytes: usize, purpose: &str) -> Result<RawBuffer> {
    if bytes == 0 {
        return Ok(RawBuffer { addr: ALIGNMENT as u64, bytes });
    }
    let available = host_memory().available_bytes;
    let refused = |reason: &str| {
        Error::unavailable(format!("{purpose} needs {bytes} bytes of memory, {available} are available{reason}"))
    };
    if bytes as u64 > available {
        return Err(refused(""));
    }
    let address = if bytes >= MAP_FROM_BYTES { map(bytes) } else { allocate_small(bytes) };
    let address = address.ok_or_else(|| refused("; the system refused them"))?;
    GIVEN_OUT_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    Ok(RawBuffer { addr: address as u64, bytes })
}

/// Returns what [`allocate`] gave.
///
/// # Safety
/// `buffer` came from [`allocate`] and nobody uses it any more.
pub(super) unsafe fn free(buffer: RawBuffer) {
    if buffer.bytes == 0 {
        return;
    }
    GIVEN_OUT_BYTES.fetch_sub(buffer.bytes as u64, Ordering::Relaxed);
    if buffer.bytes >= MAP_FROM_BYTES {
        // SAFETY: `map` made exactly this mapping, and by the contract nobody uses it.
        unsafe { libc::munmap(buffer.addr as *mut libc::c_void, round_up(buffer.bytes, HUGE_PAGE_BYTES)) };
    } else if let Ok(layout) = Layout::from_size_align(buffer.bytes, ALIGNMENT) {
        // SAFETY: `allocate_small` used the same layout, and by the contract nobody uses the memory.
        unsafe { dealloc(buffer.addr as *mut u8, layout) };
    }
}

fn allocate_small(bytes: usize) -> Option<usize> {
    let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
    // SAFETY: the layout's size is not zero.
    let pointer = unsafe { alloc_zeroed(layout) };
    (!pointer.is_null()).then_some(pointer as usize)
}

/// An anonymous mapping that begins on a huge page and asks for huge pages.
fn map(bytes: usize) -> Option<usize> {
    let bytes = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES)?;
    let reserved = bytes.checked_add(HUGE_PAGE_BYTES)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the system's choice touches no existing memory.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), reserved, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    let base = base as usize;
    let start = round_up(base, HUGE_PAGE_BYTES);
    unmap(base, start - base);
    unmap(start + bytes, base + reserved - (start + bytes));
    // SAFETY: the range is the mapping made above. A refusal costs speed only.
    unsafe { libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE) };
    Some(start)
}

/// Gives back a part of a mapping of [`map`] that was reserved for alignment only.
fn unmap(start: usize, bytes: usize) {
    if bytes > 0 {
        // SAFETY: `map` calls this with the ends of a mapping that nobody else knows yet.
        unsafe { libc::munmap(start as *mut libc::c_void, bytes) };
    }
}

fn round_up(value: usize, multiple: usize) -> usize {
    value.div_ceil(multiple) * multiple
}

/// Limit and use, in bytes, of the smallest container (cgroup v2 or v1) around this process.
fn container_limit() -> Option<(u64, u64)> {
    let groups = read("/proc/self/cgroup");
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, limit, used, cache) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
            "memory" => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
            _ => continue,
        };
        // Inside a container the path may be the host's, and the group itself is mounted at the root.
        let ancestors = Path::new(path.trim_start_matches('/')).ancestors();
        limits.extend(ancestors.filter_map(|group| {
            let folder = Path::new(root).join(group);
            let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
            let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            Some((number(limit)?, number(used)?.saturating_sub(field(&stat, cache).unwrap_or(0))))
        }));
    }
    limits.into_iter().min_by_key(|&(limit, used)| limit.saturating_sub(used))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after `key` at the start of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_aligned_whatever_its_size() {
        for bytes in [1, 255, 4096, MAP_FROM_BYTES - 1, MAP_FROM_BYTES, 5 * HUGE_PAGE_BYTES / 2] {
            let buffer = allocate(bytes, "a test").unwrap();
            assert_eq!(buffer.addr as usize % ALIGNMENT, 0);
            // SAFETY: the buffer is `bytes` long and only this test knows it.
            let memory = unsafe { std::slice::from_raw_parts_mut(buffer.addr as *mut u8, bytes) };
            assert!(memory.iter().all(|&byte| byte == 0));
            memory.fill(7);
            // SAFETY: allocated above, not used below.
            unsafe { free(buffer) };
        }
    }

    #[test]
    fn asking_for_more_than_there_is_names_both_amounts() {
        let error = allocate(1 << 60, "the KV cache").unwrap_err();
        assert!(error.message().contains("the KV cache needs 1152921504606846976 bytes"), "{error}");
        assert!(error.message().contains("are available"), "{error}");
    }

    #[test]
    fn the_machine_has_memory() {
        let memory = host_memory();
        assert!(memory.total_bytes >= memory.available_bytes);
        assert!(memory.available_bytes > 0);
    }
}
