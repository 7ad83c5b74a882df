//! The kernels by name, looked up once at load, and the records they take.

mod records;

pub(super) use records::*;

use super::driver::{Context, Kernel};
use super::images::Image;
use super::jit;
use super::{CudaOptions, images};
use crate::device::DType;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// A kernel for each activation type: F32, F16, BF16.
#[derive(Clone, Copy)]
pub(super) struct PerType([Kernel; 3]);

impl PerType {
    pub fn of(&self, dtype: DType) -> Result<Kernel> {
        type_index(dtype).map(|index| self.0[index as usize])
    }
}

/// The number by which kernels know a type (`DType` in `prelude.cuh`).
pub(super) fn type_index(dtype: DType) -> Result<i32> {
    match dtype {
        DType::F32 => Ok(0),
        DType::F16 => Ok(1),
        DType::BF16 => Ok(2),
        DType::I32 => Err(Error::internal("integers where a CUDA kernel expects real numbers")),
    }
}

/// Head sizes that the tensor-core attention kernels are built for; smaller heads are padded.
pub(super) const HEAD_DIMS: [usize; 3] = [64, 128, 256];

pub(super) struct Kernels {
    /// Held for the kernels.
    _modules: Modules,
    /// What the code was made for: `sm_90a`.
    pub target: String,
    /// Whether it was made for 100 KB of shared memory.
    pub small_shared: bool,
    /// Whether kernels may be launched in a chain.
    pub chains: bool,
    pub rms_norm: PerType,
    pub take_rows: PerType,
    pub gated_activation: PerType,
    pub rope_kv_write: PerType,
    pub linear_any: PerType,
    pub attention_any: PerType,
    /// Heads of up to 1,024, and keys that are values, too.
    pub attention_wide: PerType,
    pub layer_norm: PerType,
    pub elementwise: PerType,
    pub add: PerType,
    pub expert_rows: PerType,
    pub combine: PerType,
    pub route: Kernel,
    pub expert_group: Kernel,
    /// F16, BF16.
    pub expert_gemm: [Kernel; 2],
    /// By [`type_index`] − 1: F16, BF16.
    pub gemv: [Kernel; 2],
    pub gemv_gated: [Kernel; 2],
    pub attention_combine: [Kernel; 2],
    /// By type and by the position in [`HEAD_DIMS`].
    pub attention_prefill: [[Kernel; 3]; 2],
    pub attention_decode: [[Kernel; 3]; 2],
    /// Hopper only, for the first two of [`HEAD_DIMS`].
    pub attention_prefill_wgmma: Option<[[Kernel; 2]; 2]>,
    pub add_bias: Kernel,
    pub read_bandwidth: Kernel,
    pub resolve_tokens: Kernel,
    pub sample: Kernel,
    pub sample_narrowed: Kernel,
    pub top_tokens: Kernel,
    pub edit_dense: Kernel,
    pub edit_sparse: Kernel,
}

impl Kernels {
    /// Loads what is embedded for this GPU, or compiles.
    pub fn load(context: &Arc<Context>, capability: (i32, i32), options: &CudaOptions) -> Result<Self> {
        if capability < (8, 0) {
            return Err(Error::unsupported(format!(
                "the GPU has compute capability {}.{}, 8.0 is the least that is supported",
                capability.0, capability.1
            )));
        }
        let (target, found) = match images::embedded(capability) {
            Some(embedded) => embedded.map(|(target, images)| (target.to_string(), images))?,
            None => (format!("sm_{}{}", capability.0, capability.1), jit::compile(capability, options)?),
        };
        Modules::new(context, found)?.table(target)
    }
}

/// The kernels' code on the GPU. It is unloaded at the end: where other parts of the process use the GPU, its context and
/// all that was loaded into it stays.
struct Modules {
    loaded: HashMap<String, cudarc::driver::sys::CUmodule>,
    context: Arc<Context>,
}

// SAFETY: modules are handles that any thread may use after making the context current.
unsafe impl Send for Modules {}
// SAFETY: as above; nothing changes after loading.
unsafe impl Sync for Modules {}

impl Drop for Modules {
    fn drop(&mut self) {
        for (_, module) in self.loaded.drain() {
            self.context.unload_module(module);
        }
    }
}

impl Modules {
    fn new(context: &Arc<Context>, images: Vec<Image>) -> Result<Self> {
        let mut modules = Self { loaded: HashMap::new(), context: context.clone() };
        for image in images {
            let module = context.load_module(&image.code)?;
            modules.loaded.insert(image.module, module);
        }
        Ok(modules)
    }

    fn one(&self, module: &str, name: &str) -> Result<Kernel> {
        let loaded = self.loaded.get(module).ok_or_else(|| Error::internal(format!("no kernel module {module}")))?;
        self.context.kernel(*loaded, name)
    }

    fn per_type(&self, module: &str, name: &str) -> Result<PerType> {
        let of = |suffix| self.one(module, &format!("{name}_{suffix}"));
        Ok(PerType([of("float")?, of("f16")?, of("bf16")?]))
    }

    fn halves(&self, module: &str, name: &str) -> Result<[Kernel; 2]> {
        Ok([self.one(module, &format!("{name}_f16"))?, self.one(module, &format!("{name}_bf16"))?])
    }

    fn per_head_dim(&self, module: &str, name: &str) -> Result<[[Kernel; 3]; 2]> {
        let [a, b, c] = HEAD_DIMS;
        let of = |suffix: &str| -> Result<[Kernel; 3]> {
            let one = |dim| self.one(module, &format!("{name}_{suffix}_{dim}"));
            Ok([one(a)?, one(b)?, one(c)?])
        };
        Ok([of("f16")?, of("bf16")?])
    }

    fn wgmma(&self) -> Result<[[Kernel; 2]; 2]> {
        let [a, b, _] = HEAD_DIMS;
        let one = |suffix: &str, dim: usize| {
            self.one("attention_prefill_wgmma", &format!("attention_prefill_wgmma_{suffix}_{dim}"))
        };
        Ok([[one("f16", a)?, one("f16", b)?], [one("bf16", a)?, one("bf16", b)?]])
    }

    fn table(self, target: String) -> Result<Kernels> {
        let version: String = target.chars().filter(char::is_ascii_digit).collect();
        let version: u32 = version.parse().unwrap_or(80);
        Ok(Kernels {
            attention_prefill_wgmma: target.starts_with("sm_90").then(|| self.wgmma()).transpose()?,
            small_shared: target.starts_with("sm_") && (matches!(version, 86 | 89) || version >= 120),
            target,
            chains: version >= 90,
            rms_norm: self.per_type("norm", "rms_norm")?,
            take_rows: self.per_type("elementwise", "take_rows")?,
            gated_activation: self.per_type("elementwise", "gated_activation")?,
            rope_kv_write: self.per_type("rope", "rope_kv_write")?,
            linear_any: self.per_type("gemv", "linear_any")?,
            attention_any: self.per_type("attention_decode", "attention_any")?,
            attention_wide: self.per_type("attention_decode", "attention_wide")?,
            layer_norm: self.per_type("norm", "layer_norm")?,
            elementwise: self.per_type("elementwise", "elementwise")?,
            add: self.per_type("elementwise", "add")?,
            expert_rows: self.per_type("experts", "expert_rows")?,
            combine: self.per_type("experts", "combine")?,
            route: self.one("experts", "route")?,
            expert_group: self.one("experts", "expert_group")?,
            expert_gemm: self.halves("experts", "expert_gemm")?,
            gemv: self.halves("gemv", "gemv")?,
            gemv_gated: self.halves("gemv", "gemv_gated")?,
            attention_combine: self.halves("attention_decode", "attention_combine")?,
            attention_prefill: self.per_head_dim("attention_prefill", "attention_prefill")?,
            attention_decode: self.per_head_dim("attention_decode", "attention_decode")?,
            add_bias: self.one("gemv", "add_bias")?,
            read_bandwidth: self.one("gemv", "read_bandwidth")?,
            resolve_tokens: self.one("sampling", "resolve_tokens")?,
            sample: self.one("sampling", "sample")?,
            sample_narrowed: self.one("sampling_narrow", "sample_narrowed")?,
            top_tokens: self.one("sampling", "top_tokens")?,
            edit_dense: self.one("logits", "edit_dense")?,
            edit_sparse: self.one("logits", "edit_sparse")?,
            _modules: self,
        })
    }
}
