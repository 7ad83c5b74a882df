//! Recorded work, copies through page-locked memory, and the times of work.

use super::driver::Context;
use super::{CudaDevice, contiguous};
use crate::device::{Graph, Stamps, Tensor, Transfers};
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::sync::Arc;

/// Events that only order, and that a thread waits for without spinning.
const EVENT_FLAGS: u32 =
    sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;

struct CudaGraph {
    executable: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: a handle that any thread may use after making the context current.
unsafe impl Send for CudaGraph {}

impl Graph for CudaGraph {
    fn launch(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: instantiated and not destroyed; the memory it uses is kept by whoever recorded it.
        let launched = unsafe { sys::cuGraphLaunch(self.executable, self.context.stream()) };
        self.context.check(launched, "a recorded step")
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: not used afterwards; the driver lets a running one end.
            self.context.log_failure(
                self.context.check(unsafe { sys::cuGraphExecDestroy(self.executable) }, "a recorded step"),
            );
        }
    }
}

impl CudaDevice {
    pub(super) fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        let context = &self.context;
        context.bind()?;
        // Other threads of the process, of other libraries, go on using the driver meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is the device's own.
        context.check(unsafe { sys::cuStreamBeginCapture_v2(context.stream(), mode) }, "recording a step")?;
        let worked = work();
        let mut graph = std::ptr::null_mut();
        // SAFETY: the capture was begun above, in this thread; a valid place.
        let ended = context.check(unsafe { sys::cuStreamEndCapture(context.stream(), &mut graph) }, "recording a step");
        let instantiated = worked.and(ended).and_then(|()| {
            let mut executable = std::ptr::null_mut();
            // SAFETY: a captured graph; a valid place.
            let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
            context.check(made, "a recorded step").map(|()| executable)
        });
        if !graph.is_null() {
            // SAFETY: the executable does not need it.
            context.log_failure(context.check(unsafe { sys::cuGraphDestroy(graph) }, "a recording"));
        }
        Ok(Box::new(CudaGraph { executable: instantiated?, context: context.clone() }))
    }
}

/// Page-locked memory and the point in the stream where its last copy ends.
struct Slot {
    pointer: *mut u8,
    bytes: usize,
    event: sys::CUevent,
    /// Bytes of the last copy.
    used: usize,
    context: Arc<Context>,
}

// SAFETY: the memory is this slot's own, and the event a handle that any thread may use.
unsafe impl Send for Slot {}

impl Slot {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.bind()?;
        let (mut pointer, mut event) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context is current; valid places. Freed in `drop`.
        context.check(unsafe { sys::cuMemHostAlloc(&mut pointer, bytes.max(1), 0) }, "page-locked memory")?;
        // SAFETY: just made, of that many bytes.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes) };
        let mut slot = Self { pointer: pointer.cast(), bytes, event, used: 0, context: context.clone() };
        // SAFETY: as above.
        context.check(unsafe { sys::cuEventCreate(&mut event, EVENT_FLAGS) }, "an event")?;
        slot.event = event;
        Ok(slot)
    }

    fn check_size(&self, bytes: usize) -> Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        Err(Error::internal(format!("a copy of {bytes} bytes through page-locked memory of {}", self.bytes)))
    }

    fn record(&self) -> Result<()> {
        // SAFETY: a live event and the device's stream.
        let recorded = unsafe { sys::cuEventRecord(self.event, self.context.stream()) };
        self.context.check(recorded, "an event")
    }

    /// Waits for the last copy.
    fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: a live event; one that was never recorded is over.
        self.context.check(unsafe { sys::cuEventSynchronize(self.event) }, "a step on the GPU")
    }

    fn fill(&mut self, dst: u64, bytes: usize, write: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        self.check_size(bytes)?;
        self.wait()?;
        // SAFETY: the memory has that many bytes, zeroed when it was made, is this slot's own, and no copy uses it any
        // more.
        write(unsafe { std::slice::from_raw_parts_mut(self.pointer, bytes) })?;
        // SAFETY: the destination has as many bytes; the source is not written before the event has passed.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(dst, self.pointer.cast(), bytes, self.context.stream()) };
        self.context.check(copied, "an upload")?;
        self.record()
    }

    fn fetch(&mut self, src: u64, bytes: usize) -> Result<()> {
        self.check_size(bytes)?;
        self.context.bind()?;
        self.used = bytes;
        // SAFETY: the memory has that many bytes, and is not read before the event has passed.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(self.pointer.cast(), src, bytes, self.context.stream()) };
        self.context.check(copied, "a download")?;
        self.record()
    }

    fn collect(&self, dst: &mut Vec<u8>) -> Result<()> {
        self.wait()?;
        dst.clear();
        // SAFETY: `used` bytes were written by the copy that was waited for.
        dst.extend_from_slice(unsafe { std::slice::from_raw_parts(self.pointer, self.used) });
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        self.context.log_failure(self.context.synchronize());
        // SAFETY: made in `new`, and no copy is under way.
        let freed = unsafe { sys::cuMemFreeHost(self.pointer.cast()) };
        self.context.log_failure(self.context.check(freed, "page-locked memory"));
        if !self.event.is_null() {
            // SAFETY: as above.
            self.context.log_failure(self.context.check(unsafe { sys::cuEventDestroy_v2(self.event) }, "an event"));
        }
    }
}

/// Rings of page-locked memory.
pub(super) struct CudaTransfers {
    uploads: Vec<Slot>,
    results: Vec<Slot>,
    uploaded: usize,
    fetched: usize,
    collected: usize,
}

impl CudaTransfers {
    pub fn new(context: &Arc<Context>, upload_bytes: usize, result_bytes: usize, depth: usize) -> Result<Self> {
        let ring = |bytes| (0..depth.max(1)).map(|_| Slot::new(context, bytes)).collect::<Result<Vec<_>>>();
        let (uploads, results) = (ring(upload_bytes)?, ring(result_bytes)?);
        Ok(Self { uploads, results, uploaded: 0, fetched: 0, collected: 0 })
    }
}

impl Transfers for CudaTransfers {
    fn fill(&mut self, dst: &Tensor, write: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        let to = contiguous(dst, dst.bytes())?;
        let at = self.uploaded % self.uploads.len();
        self.uploaded += 1;
        self.uploads[at].fill(to, dst.bytes(), write)
    }

    fn fetch(&mut self, src: &Tensor) -> Result<()> {
        if self.fetched - self.collected == self.results.len() {
            return Err(Error::internal(format!("{} fetches were not collected", self.results.len())));
        }
        let at = self.fetched % self.results.len();
        self.fetched += 1;
        self.results[at].fetch(contiguous(src, src.bytes())?, src.bytes())
    }

    fn collect(&mut self, dst: &mut Vec<u8>) -> Result<()> {
        if self.fetched == self.collected {
            return Err(Error::internal("nothing was fetched"));
        }
        let at = self.collected % self.results.len();
        self.collected += 1;
        self.results[at].collect(dst)
    }

    fn pinned_bytes(&self) -> usize {
        self.uploads.iter().chain(&self.results).map(|slot| slot.bytes).sum()
    }
}

/// Events that keep their times.
pub(super) struct CudaStamps {
    events: Vec<sys::CUevent>,
    marked: usize,
    context: Arc<Context>,
}

// SAFETY: handles that any thread may use after making the context current.
unsafe impl Send for CudaStamps {}

impl CudaStamps {
    pub fn new(context: &Arc<Context>, room: usize) -> Result<Self> {
        context.bind()?;
        let mut stamps = Self { events: Vec::with_capacity(room), marked: 0, context: context.clone() };
        for _ in 0..room {
            let mut event = std::ptr::null_mut();
            // SAFETY: the context is current; a valid place. Freed in `drop`.
            context.check(unsafe { sys::cuEventCreate(&mut event, 0) }, "an event")?;
            stamps.events.push(event);
        }
        Ok(stamps)
    }
}

impl Stamps for CudaStamps {
    fn mark(&mut self) -> Result<bool> {
        let Some(&event) = self.events.get(self.marked) else { return Ok(false) };
        self.context.bind()?;
        // SAFETY: a live event and the device's stream.
        self.context.check(unsafe { sys::cuEventRecord(event, self.context.stream()) }, "an event")?;
        self.marked += 1;
        Ok(true)
    }

    fn seconds(&self) -> Result<Vec<f64>> {
        let events = &self.events[..self.marked];
        let (Some(&first), Some(&last)) = (events.first(), events.last()) else { return Ok(Vec::new()) };
        self.context.bind()?;
        // SAFETY: a recorded event.
        self.context.check(unsafe { sys::cuEventSynchronize(last) }, "timed work")?;
        let since_first = |&event| {
            let mut milliseconds = 0.0f32;
            // SAFETY: both events were recorded and have passed; a valid place.
            let read = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, first, event) };
            self.context.check(read, "a time").map(|()| f64::from(milliseconds) / 1e3)
        };
        events.iter().map(since_first).collect()
    }
}

impl Drop for CudaStamps {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            for &event in &self.events {
                // SAFETY: created in `new`, destroyed once.
                self.context.log_failure(self.context.check(unsafe { sys::cuEventDestroy_v2(event) }, "an event"));
            }
        }
    }
}
