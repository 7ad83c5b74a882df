//! Matrix products: cuBLASLt with descriptors and algorithms kept by shape, and the GEMV kernel for few rows.

use super::driver::{Context, Geometry, Properties};
use super::elementwise::number_of;
use super::kernels::{Kernels, LinearArgs, launch, launch_as, type_index};
use super::libraries::{self, CUBLAS_LT};
use super::{CudaOptions, Memory};
use crate::device::{Activation, DType, Tensor};
use crate::error::{Error, Result};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasStatus_t, cudaDataType,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_void};

/// Rows of `x` up to which the GEMV kernel is faster than the library (`docs/performance.md`).
const GEMV_ROWS: usize = 8;
/// `WARPS` × `STAGES` × `STEP_BYTES`.
const GEMV_SHARED_BYTES: usize = 8 * 3 * 24 * 128;

/// Shared memory that a block of the GEMV kernel asks for: where few blocks go round, so much that no multiprocessor takes more of
/// them than its share. Blocks start while the kernel before ends, and would crowd the multiprocessors that are free first.
fn gemv_shared_bytes(properties: &Properties, blocks: usize) -> usize {
    let share = blocks.div_ceil(properties.multiprocessors);
    let one_more_does_not_fit = (properties.shared_bytes / (share + 1) + 1).next_multiple_of(1024);
    GEMV_SHARED_BYTES.max(one_more_does_not_fit.min(properties.shared_bytes))
}

/// The most that [`gemv_shared_bytes`] asks for.
pub(super) fn most_gemv_shared_bytes(properties: &Properties) -> usize {
    gemv_shared_bytes(properties, 1)
}

/// What NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// The first release of the interface that the declarations are of.
const OLDEST_LIBRARY: usize = 130_000;

/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: parts of a sum are joined in f32, never rounded to the output's type before.
const REDUCE_IN_F32: u32 = 2;
/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    in_features: usize,
    out_features: usize,
    x_stride: usize,
    weight_stride: usize,
    out_stride: usize,
    dtype: DType,
    out_dtype: DType,
    /// Whether the product adds the bias itself.
    bias: bool,
    /// Bytes that the addresses of x, weight and out are multiples of, at most 16.
    alignment: [usize; 3],
}

/// Descriptors and algorithm of one shape; `None` where the library has no algorithm.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: Option<cublasLtMatmulAlgo_t>,
}

/// The library with its workspace and the plans made so far.
pub(super) struct MatrixLibrary {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: the handle may be used from any thread; descriptors are only used under the lock.
unsafe impl Send for MatrixLibrary {}
// SAFETY: as above.
unsafe impl Sync for MatrixLibrary {}

fn check(status: cublasStatus_t, what: &str) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        error => Err(Error::internal(format!("cuBLASLt: {what}: {error:?}"))),
    }
}

fn data_type(dtype: DType) -> Result<cudaDataType> {
    match dtype {
        DType::F32 => Ok(cudaDataType::CUDA_R_32F),
        DType::F16 => Ok(cudaDataType::CUDA_R_16F),
        DType::BF16 => Ok(cudaDataType::CUDA_R_16BF),
        DType::I32 => Err(Error::internal("a matrix product of integers")),
    }
}

/// The library's handle for a GPU, which any thread may use.
struct Handle(sys::cublasLtHandle_t);

// SAFETY: the library allows calls on one handle from several threads.
unsafe impl Send for Handle {}

/// Handles of the process, by the GPU's number.
static HANDLES: Mutex<BTreeMap<i32, Handle>> = Mutex::new(BTreeMap::new());

/// The handle for a context's GPU. It and the context stay until the process ends: to destroy a handle is to wait for all that
/// the process does on the GPU, and crashes in the driver while other models come and go there.
fn handle_of(context: &Context) -> Result<sys::cublasLtHandle_t> {
    let mut handles = HANDLES.lock();
    if let Some(Handle(handle)) = handles.get(&context.ordinal()) {
        return Ok(*handle);
    }
    context.keep()?;
    let mut handle = std::ptr::null_mut();
    // SAFETY: a valid place.
    check(unsafe { sys::cublasLtCreate(&mut handle) }, "no handle")?;
    handles.insert(context.ordinal(), Handle(handle));
    Ok(handle)
}

impl MatrixLibrary {
    /// Opens the library. The context is current.
    pub fn open(context: &std::sync::Arc<Context>, options: &CudaOptions) -> Result<Self> {
        let missing = || {
            Error::unavailable(
                "libcublasLt.so.13 was not found: install the Python package nvidia-cublas or CUDA 13's run-time libraries",
            )
        };
        // SAFETY: only opens the library by name.
        if !libraries::open(&CUBLAS_LT, options) || !unsafe { sys::is_culib_present() } {
            return Err(missing());
        }
        // SAFETY: the library is there; every release has this function.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < OLDEST_LIBRARY {
            return Err(Error::unavailable(format!(
                "the cuBLASLt found first is {version}, {OLDEST_LIBRARY} or newer is needed: take the other CUDA release \
                 out of LD_LIBRARY_PATH"
            )));
        }
        let workspace = Memory::new(context, WORKSPACE_BYTES, "the workspace of matrix products")?;
        Ok(Self { handle: handle_of(context)?, workspace, plans: Mutex::default() })
    }

    /// `out = x · weightᵀ (+ bias)`. Says whether the library has an algorithm for it.
    fn multiply(&self, context: &Context, shape: Shape, product: &Product<'_>) -> Result<bool> {
        let mut plans = self.plans.lock();
        let plan = match plans.entry(shape) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(self.plan(&shape)?),
        };
        let Some(algorithm) = &plan.algorithm else { return Ok(false) };
        if let Some(bias) = product.bias.filter(|_| shape.bias) {
            set_operation(plan.operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.addr())?;
        }
        context.bind()?;
        let (one, zero) = (1.0f32, 0.0f32);
        let out = product.out.addr() as *mut c_void;
        // SAFETY: descriptors of this shape; the tensors were checked against it by the caller of the device, and their
        // memory lives at least as long as the stream's work on it (freeing waits).
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.operation,
                std::ptr::from_ref(&one).cast(),
                product.weight.addr() as *const c_void,
                plan.weight,
                product.x.addr() as *const c_void,
                plan.x,
                std::ptr::from_ref(&zero).cast(),
                out,
                plan.out,
                out,
                plan.out,
                algorithm,
                self.workspace.addr as *mut c_void,
                WORKSPACE_BYTES,
                context.stream().cast(),
            )
        };
        check(status, &format!("the product {shape:?}")).map(|()| true)
    }

    /// The library counts columns first: a row-major `[R, C]` is its `[C, R]`, so `outᵀ = weight · xᵀ`.
    fn plan(&self, shape: &Shape) -> Result<Plan> {
        let mut operation = std::ptr::null_mut();
        // SAFETY: a valid place; kept until `drop`.
        let made = unsafe {
            sys::cublasLtMatmulDescCreate(
                &mut operation,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cudaDataType::CUDA_R_32F,
            )
        };
        check(made, "an operation")?;
        set_operation(operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if shape.bias {
            let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set_operation(operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let dtype = data_type(shape.dtype)?;
        let mut plan = Plan {
            operation,
            weight: layout(dtype, shape.in_features, shape.out_features, shape.weight_stride)?,
            x: layout(dtype, shape.in_features, shape.rows, shape.x_stride)?,
            out: layout(data_type(shape.out_dtype)?, shape.out_features, shape.rows, shape.out_stride)?,
            algorithm: None,
        };
        plan.algorithm = self.choose(shape, &plan)?;
        Ok(plan)
    }

    /// The library's first choice within the workspace and the alignment.
    fn choose(&self, shape: &Shape, plan: &Plan) -> Result<Option<cublasLtMatmulAlgo_t>> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: a valid place; destroyed below.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&mut preference) }, "a preference")?;
        let set = |which, value: &[u8]| {
            // SAFETY: a live preference and a value of the size that is said.
            let set = unsafe {
                sys::cublasLtMatmulPreferenceSetAttribute(preference, which, value.as_ptr().cast(), value.len())
            };
            check(set, "a preference")
        };
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES.to_ne_bytes())?;
        set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCE_IN_F32.to_ne_bytes())?;
        let [x, weight, out] = shape.alignment.map(|bytes| (bytes as u32).to_ne_bytes());
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &weight)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out)?;
        let mut found = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        let mut count: c_int = 0;
        // SAFETY: live descriptors; room for the one result that is asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.operation,
                plan.weight,
                plan.x,
                plan.out,
                plan.out,
                preference,
                1,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        // SAFETY: created above, not used afterwards.
        check(unsafe { sys::cublasLtMatmulPreferenceDestroy(preference) }, "a preference")?;
        if status == cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED || count == 0 {
            return Ok(None);
        }
        check(status, &format!("an algorithm for {shape:?}"))?;
        // SAFETY: `count` says that one result was written.
        let found = unsafe { found.assume_init() };
        Ok((found.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(found.algo))
    }
}

fn set_operation<V>(operation: sys::cublasLtMatmulDesc_t, which: Attribute, value: &V) -> Result<()> {
    let value_at = std::ptr::from_ref(value).cast();
    // SAFETY: a live descriptor and a value of the size that is said.
    let set = unsafe { sys::cublasLtMatmulDescSetAttribute(operation, which, value_at, size_of::<V>()) };
    check(set, "an attribute of an operation")
}

fn layout(dtype: cudaDataType, rows: usize, cols: usize, stride: usize) -> Result<sys::cublasLtMatrixLayout_t> {
    let mut layout = std::ptr::null_mut();
    // SAFETY: a valid place; kept until `drop`.
    let made = unsafe {
        sys::cublasLtMatrixLayoutCreate(&mut layout, dtype, rows as u64, cols as u64, stride.max(rows) as i64)
    };
    check(made, "a matrix layout")?;
    Ok(layout)
}

impl Drop for MatrixLibrary {
    fn drop(&mut self) {
        for (_, plan) in self.plans.get_mut().drain() {
            // SAFETY: created in `plan`, destroyed once; calls that used them have returned.
            let statuses = unsafe {
                [
                    sys::cublasLtMatmulDescDestroy(plan.operation),
                    sys::cublasLtMatrixLayoutDestroy(plan.weight),
                    sys::cublasLtMatrixLayoutDestroy(plan.x),
                    sys::cublasLtMatrixLayoutDestroy(plan.out),
                ]
            };
            debug_assert!(statuses.iter().all(|&status| status == cublasStatus_t::CUBLAS_STATUS_SUCCESS));
        }
    }
}

/// Whether the GEMV kernel takes the product, with accesses of 16 bytes.
pub(super) fn suits_gemv(x: &Tensor, weight: &Tensor) -> bool {
    let aligned = |tensor: &Tensor| tensor.addr().is_multiple_of(16) && tensor.stride().is_multiple_of(8);
    x.rows() <= GEMV_ROWS
        && x.dtype().size() == 2
        && x.dtype() == weight.dtype()
        && x.cols().is_multiple_of(8)
        && aligned(x)
        && aligned(weight)
}

/// One call of [`crate::device::Device::linear`].
pub(super) struct Product<'a> {
    pub out: &'a Tensor,
    pub x: &'a Tensor,
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    /// `weight` holds gates, then as many others: `out` is the activation of the ones times the others.
    pub gated: Option<Activation>,
}

impl Product<'_> {
    fn shape(&self) -> Shape {
        let alignment = |tensor: &Tensor| 1 << tensor.addr().trailing_zeros().min(4);
        Shape {
            rows: self.x.rows(),
            in_features: self.x.cols(),
            out_features: self.weight.rows(),
            x_stride: self.x.stride(),
            weight_stride: self.weight.stride(),
            out_stride: self.out.stride(),
            dtype: self.x.dtype(),
            out_dtype: self.out.dtype(),
            bias: self.bias.is_some_and(|bias| bias.dtype() == self.out.dtype()),
            alignment: [alignment(self.x), alignment(self.weight), alignment(self.out)],
        }
    }

    fn args(&self) -> Result<LinearArgs> {
        Ok(LinearArgs {
            out: self.out.addr(),
            x: self.x.addr(),
            weight: self.weight.addr(),
            bias: self.bias.map_or(0, Tensor::addr),
            out_stride: self.out.stride() as i64,
            x_stride: self.x.stride() as i64,
            weight_stride: self.weight.stride() as i64,
            rows: self.x.rows() as i32,
            in_features: self.x.cols() as i32,
            out_features: self.out.cols() as i32,
            out_dtype: type_index(self.out.dtype())?,
            weight_dtype: type_index(self.weight.dtype())?,
            bias_dtype: self.bias.map_or(Ok(0), |bias| type_index(bias.dtype()))?,
            activation: self.gated.map_or(0, number_of),
        })
    }

    /// Enqueues the product of [`suits_gemv`].
    pub fn multiply_few_rows(&self, context: &Context, kernels: &Kernels, properties: &Properties) -> Result<()> {
        let which = type_index(self.x.dtype())? as usize - 1;
        let (kernel, features) = match self.gated {
            Some(_) => (kernels.gemv_gated[which], 8),
            None => (kernels.gemv[which], 16),
        };
        let blocks = self.out.cols().div_ceil(features);
        let shared_bytes = gemv_shared_bytes(properties, blocks);
        let geometry = Geometry { grid: (blocks, 1, 1), block: (256, 1), shared_bytes };
        // SAFETY: the kernel of this type takes these arguments; shapes were checked by the caller of the device.
        unsafe { launch_as(context, kernels.chains, kernel, geometry, &self.args()?, []) }
    }

    /// Enqueues the product by the fastest way that its shape allows.
    pub fn enqueue(
        &self,
        context: &Context,
        kernels: &Kernels,
        library: &MatrixLibrary,
        properties: &Properties,
    ) -> Result<()> {
        let (rows, out_features) = (self.x.rows(), self.weight.rows());
        let args = self.args()?;
        if suits_gemv(self.x, self.weight) {
            return self.multiply_few_rows(context, kernels, properties);
        }
        let shape = self.shape();
        let multiplied = self.x.dtype() == self.weight.dtype() && library.multiply(context, shape, self)?;
        let rows_at_once = rows.min(1024);
        if !multiplied {
            let grid = (out_features.div_ceil(8), rows_at_once, 1);
            let geometry = Geometry { grid, block: (32, 8), shared_bytes: 0 };
            // SAFETY: as above.
            return unsafe { launch(context, kernels.linear_any.of(self.x.dtype())?, geometry, &args, []) };
        }
        if self.bias.is_some() && !shape.bias {
            let grid = (out_features.div_ceil(256), rows_at_once, 1);
            let geometry = Geometry { grid, block: (256, 1), shared_bytes: 0 };
            // SAFETY: as above; out holds the product.
            return unsafe { launch(context, kernels.add_bias, geometry, &args, []) };
        }
        Ok(())
    }
}
