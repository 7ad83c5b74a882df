//! The driver's calls that the device needs, each checked: context, stream, memory, modules, launches, events.

use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// The oldest driver that takes what a CUDA 13 compiler makes.
const OLDEST_DRIVER: c_int = 13_000;

/// What the driver says of one GPU.
#[derive(Clone, Debug)]
pub(super) struct Properties {
    pub name: String,
    pub compute_capability: (i32, i32),
    pub multiprocessors: usize,
    /// Most shared memory of one block.
    pub shared_bytes: usize,
}

/// One GPU's primary context with a stream of its own, and the first failure that made it useless.
pub(super) struct Context {
    ordinal: i32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    failure: OnceLock<String>,
}

// SAFETY: a context and its stream may be used from any thread that has made the context current, which every method
// does first; `CUcontext` and `CUstream` are handles, not memory of one thread.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it shares between threads.
unsafe impl Sync for Context {}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub grid: (usize, usize, usize),
    pub block: (usize, usize),
    pub shared_bytes: usize,
}

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel(sys::CUfunction);

// SAFETY: a handle that the driver resolves; the module it belongs to lives as long as the device.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// Whether the GPU cannot be used any more in this process after `result`.
fn is_sticky(result: CUresult) -> bool {
    use CUresult::*;
    matches!(
        result,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_UNKNOWN
    )
}

fn describe(result: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the pointer is valid for the write; the driver gives a static string or none.
    let found = unsafe { sys::cuGetErrorString(result, &mut text) };
    if found != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("{result:?}");
    }
    // SAFETY: the driver's strings are NUL-terminated and static.
    let text = unsafe { CStr::from_ptr(text) };
    format!("{} ({result:?})", text.to_string_lossy())
}

fn check_plain(result: CUresult, what: &str) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        error => Err(Error::unavailable(format!("{what}: {}", describe(error)))),
    }
}

/// Starts the driver and counts the GPUs it shows.
///
/// # Errors
/// A sentence on why no GPU can be used.
pub(super) fn count_gpus() -> Result<usize> {
    // SAFETY: only opens the library by its name; its initializers are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::unavailable("no NVIDIA driver: libcuda.so.1 was not found"));
    }
    // SAFETY: the library is there, and takes no flags.
    let started = unsafe { sys::cuInit(0) };
    if started == CUresult::CUDA_ERROR_STUB_LIBRARY {
        return Err(Error::unavailable(
            "the libcuda found first is a stub for linking: take the toolkit's folder `stubs` out of LD_LIBRARY_PATH",
        ));
    }
    check_plain(started, "the NVIDIA driver does not start")?;
    let (mut version, mut count) = (0, 0);
    // SAFETY: valid places for two integers.
    check_plain(unsafe { sys::cuDriverGetVersion(&mut version) }, "the driver's version")?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(Error::unavailable(format!(
            "the NVIDIA driver supports CUDA {major}.{minor}, 13.0 is needed (driver 580 or newer)"
        )));
    }
    // SAFETY: as above.
    check_plain(unsafe { sys::cuDeviceGetCount(&mut count) }, "the number of GPUs")?;
    if count == 0 {
        return Err(Error::unavailable("the NVIDIA driver shows no GPU"));
    }
    Ok(count as usize)
}

/// The UUID of a GPU or of a slice of one, without its prefix. [`count_gpus`] has succeeded before.
pub(super) fn uuid(ordinal: i32) -> Result<String> {
    let mut device = 0;
    // SAFETY: the driver is started and the place is valid.
    check_plain(unsafe { sys::cuDeviceGet(&mut device, ordinal) }, &format!("GPU {ordinal}"))?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: as above.
    check_plain(unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, device) }, &format!("the UUID of GPU {ordinal}"))?;
    let hex: String = uuid.bytes.iter().map(|&byte| format!("{:02x}", byte as u8)).collect();
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(format!("{a}-{b}-{c}-{d}-{e}"))
}

/// Copies memory of GPU `ordinal` that others in this process have allocated.
///
/// # Safety
/// From `address` on there are as many bytes of that GPU as `to` has, and nobody writes to them.
pub(super) unsafe fn read_foreign(ordinal: i32, address: u64, to: &mut [u8]) -> Result<()> {
    let what = format!("memory of GPU {ordinal}");
    count_gpus()?;
    let (mut device, mut context, mut popped) = (0, std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: valid places; what is retained and pushed is popped and released below, whatever the copy says; the ranges are
    // as long as is said, by the slice and by the caller's premise.
    unsafe {
        check_plain(sys::cuDeviceGet(&mut device, ordinal), &what)?;
        check_plain(sys::cuDevicePrimaryCtxRetain(&mut context, device), &what)?;
        let copied = check_plain(sys::cuCtxPushCurrent_v2(context), &what).and_then(|()| {
            let copied = check_plain(sys::cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), address, to.len()), &what);
            copied.and(check_plain(sys::cuCtxPopCurrent_v2(&mut popped), &what))
        });
        let released = check_plain(sys::cuDevicePrimaryCtxRelease_v2(device), &what);
        copied.and(released)
    }
}

impl Context {
    /// Takes GPU `ordinal` of those the driver shows. [`count_gpus`] has succeeded before.
    pub fn new(ordinal: i32) -> Result<Self> {
        let mut device = 0;
        // SAFETY: the driver is started and the place is valid.
        let got = unsafe { sys::cuDeviceGet(&mut device, ordinal) };
        check_plain(got, &format!("GPU {ordinal}"))?;
        let mut context = std::ptr::null_mut();
        // SAFETY: as above; released in `drop`.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        check_plain(retained, &format!("GPU {ordinal} gives no context"))?;
        let mut this = Self { ordinal, device, context, stream: std::ptr::null_mut(), failure: OnceLock::new() };
        this.bind()?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the context is current and the place is valid.
        this.check(unsafe { sys::cuStreamCreate(&mut stream, flags) }, "a stream")?;
        this.stream = stream;
        Ok(this)
    }

    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// Lets the GPU's context stay until the process ends, and makes it current.
    pub fn keep(&self) -> Result<()> {
        let mut context = std::ptr::null_mut();
        // SAFETY: a valid place; never released.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, self.device) };
        self.check(retained, "the context")?;
        self.bind()
    }

    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context current in this thread.
    ///
    /// # Errors
    /// When the GPU has failed for good.
    pub fn bind(&self) -> Result<()> {
        if let Some(failure) = self.failure.get() {
            return Err(Error::unavailable(failure.clone()));
        }
        // SAFETY: retained until `drop`.
        self.check(unsafe { sys::cuCtxSetCurrent(self.context) }, "the context")
    }

    pub fn check(&self, result: CUresult, what: &str) -> Result<()> {
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let message = format!("GPU {}: {what}: {}", self.ordinal, describe(result));
        if is_sticky(result) {
            let failure =
                self.failure.get_or_init(|| format!("{message}; the GPU cannot be used again in this process"));
            return Err(Error::unavailable(failure.clone()));
        }
        Err(Error::internal(message))
    }

    pub fn properties(&self) -> Result<Properties> {
        use sys::CUdevice_attribute::*;
        let mut name = [0 as std::ffi::c_char; 256];
        // SAFETY: the buffer has the size that is said.
        self.check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 256, self.device) }, "the GPU's name")?;
        // SAFETY: the driver ends the name with a NUL.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: a valid place for an integer.
            let got = unsafe { sys::cuDeviceGetAttribute(&mut value, which, self.device) };
            self.check(got, "an attribute of the GPU").map(|()| value)
        };
        Ok(Properties {
            name,
            compute_capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        })
    }

    /// Free and total bytes of the GPU's memory.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; valid places.
        self.check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "the memory in use")?;
        Ok((free as u64, total as u64))
    }

    /// Allocates zeroed memory.
    ///
    /// # Errors
    /// Says what was asked for and what was there.
    pub fn allocate(&self, bytes: usize, purpose: &str) -> Result<u64> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: the context is current; a valid place. The driver refuses a size of 0.
        let got = unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) };
        if got == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.memory()?;
            return Err(Error::unavailable(format!(
                "GPU {}: no room for {purpose}: {bytes} bytes were asked for, {free} of {total} are free",
                self.ordinal
            )));
        }
        self.check(got, purpose)?;
        // SAFETY: the range was just allocated.
        self.check(unsafe { sys::cuMemsetD8Async(address, 0, bytes, self.stream) }, purpose)?;
        Ok(address)
    }

    /// Waits for what runs, then returns what [`Context::allocate`] gave.
    pub fn free(&self, address: u64) {
        if self.bind().is_err() {
            return;
        }
        self.log_failure(self.synchronize());
        // SAFETY: allocated by this context, and nothing that runs uses it any more.
        self.log_failure(self.check(unsafe { sys::cuMemFree_v2(address) }, "freeing memory"));
    }

    pub fn log_failure(&self, result: Result<()>) {
        if let Err(error) = result {
            tracing::error!("{error}");
        }
    }

    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives until `drop`.
        self.check(unsafe { sys::cuStreamSynchronize(self.stream) }, "a step on the GPU")
    }

    /// Copies host bytes to the GPU. They may be reused at once: the driver has staged them.
    pub fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the source is a live slice; the caller's destination has as many bytes.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream) };
        self.check(copied, "an upload")
    }

    /// Waits for everything before, then copies to the host.
    pub fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the destination is a live slice and the stream is waited for before it is given back.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.stream) };
        self.check(copied, "a download")?;
        self.synchronize()
    }

    /// Copies `rows` pieces of `bytes` each that lie `pitch` bytes apart.
    pub fn copy_rows(&self, to: u64, from: u64, pitch: usize, bytes: usize, rows: usize) -> Result<()> {
        self.bind()?;
        let copy = sys::CUDA_MEMCPY2D {
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcDevice: from,
            srcPitch: pitch,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstDevice: to,
            dstPitch: pitch,
            WidthInBytes: bytes,
            Height: rows,
            // SAFETY: a plain C record, all of whose fields may be zero.
            ..unsafe { MaybeUninit::zeroed().assume_init() }
        };
        // SAFETY: the caller's ranges are allocations of this device that hold `rows` pitches.
        self.check(unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream) }, "a copy of blocks")
    }

    pub fn load_module(&self, image: &[u8]) -> Result<sys::CUmodule> {
        self.bind()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: `image` is a cubin or a NUL-terminated PTX, as the compiler made it.
        self.check(unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) }, "loading kernels")?;
        Ok(module)
    }

    /// Returns what [`Context::load_module`] gave, when nothing of it runs any more.
    pub fn unload_module(&self, module: sys::CUmodule) {
        if self.bind().is_ok() {
            self.log_failure(self.synchronize());
            // SAFETY: loaded by this context; its kernels are not launched any more.
            self.log_failure(self.check(unsafe { sys::cuModuleUnload(module) }, "unloading kernels"));
        }
    }

    pub fn kernel(&self, module: sys::CUmodule, name: &str) -> Result<Kernel> {
        let c_name = std::ffi::CString::new(name).map_err(|_| Error::internal("a kernel name with a NUL"))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name NUL-terminated.
        let found = unsafe { sys::cuModuleGetFunction(&mut function, module, c_name.as_ptr()) };
        self.check(found, &format!("the kernel {name}"))?;
        Ok(Kernel(function))
    }

    /// Lets blocks of `kernel` use `bytes` of dynamic shared memory.
    pub fn allow_shared(&self, kernel: Kernel, bytes: usize) -> Result<()> {
        let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a kernel of a loaded module.
        self.check(unsafe { sys::cuFuncSetAttribute(kernel.0, which, bytes as c_int) }, "shared memory of a kernel")
    }

    /// Enqueues a kernel. `arguments` point to one value for each of its parameters. `chained`: it may start while the
    /// one before it ends (programmatic dependent launch).
    ///
    /// # Safety
    /// The values have the types and the order that the kernel declares, and the addresses in them are right for it. A
    /// chained kernel waits itself for the kernels before.
    pub unsafe fn launch(
        &self,
        kernel: Kernel,
        geometry: Geometry,
        arguments: &mut [*mut c_void],
        chained: bool,
    ) -> Result<()> {
        self.bind()?;
        let Geometry { grid, block, shared_bytes } = geometry;
        // SAFETY: a plain C record, all of whose fields may be zero.
        let mut attribute: sys::CUlaunchAttribute = unsafe { MaybeUninit::zeroed().assume_init() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: grid.0 as u32,
            gridDimY: grid.1 as u32,
            gridDimZ: grid.2 as u32,
            blockDimX: block.0 as u32,
            blockDimY: block.1 as u32,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes as u32,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(chained),
        };
        // SAFETY: the caller vouches for the arguments; the driver checks the geometry.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&config, kernel.0, arguments.as_mut_ptr(), std::ptr::null_mut()) };
        self.check(launched, "a kernel launch")
    }

    /// A point in the stream.
    pub fn record_event(&self) -> Result<Event<'_>> {
        self.bind()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the context is current; a valid place.
        self.check(unsafe { sys::cuEventCreate(&mut event, 0) }, "an event")?;
        let event = Event { context: self, event };
        // SAFETY: both handles are live.
        self.check(unsafe { sys::cuEventRecord(event.event, self.stream) }, "an event")?;
        Ok(event)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_ok() && !self.stream.is_null() {
            self.log_failure(self.synchronize());
            // SAFETY: nothing uses the stream any more.
            self.log_failure(self.check(unsafe { sys::cuStreamDestroy_v2(self.stream) }, "closing the stream"));
        }
        // SAFETY: retained in `new`.
        self.log_failure(self.check(unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) }, "closing the GPU"));
    }
}

/// A recorded point of a stream.
pub(super) struct Event<'a> {
    context: &'a Context,
    event: sys::CUevent,
}

impl Event<'_> {
    /// Waits for `later`, then says how much time lies between the two.
    pub fn seconds_until(&self, later: &Self) -> Result<f64> {
        let mut milliseconds = 0.0f32;
        // SAFETY: both events were recorded.
        self.context.check(unsafe { sys::cuEventSynchronize(later.event) }, "timed work")?;
        // SAFETY: as above; a valid place.
        let read = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, self.event, later.event) };
        self.context.check(read, "a time")?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `record_event`, destroyed once.
        self.context.log_failure(self.context.check(unsafe { sys::cuEventDestroy_v2(self.event) }, "an event"));
    }
}
