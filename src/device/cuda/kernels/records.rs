//! The parameters of the kernels, as their `.cu` files declare them, and what launches them.

use crate::device::cuda::driver::{Context, Geometry, Kernel};
use crate::error::Result;
use std::ffi::c_void;

/// A kernel's parameters: one record as its `.cu` file declares it.
///
/// # Safety
/// The type is `repr(C)` and has the fields of the kernel's record, in order and type.
pub(in crate::device::cuda) unsafe trait Record: Copy {}

macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(in crate::device::cuda) struct $name {
            $(pub $field: $type),*
        }
        // SAFETY: `repr(C)`, and field for field the struct of the same name in `kernels/`.
        unsafe impl Record for $name {}
    };
}

record!(
    /// `kernels/norm.cu`.
    NormArgs {
        out: u64,
        x: u64,
        residual: u64,
        weight: u64,
        out_stride: i64,
        x_stride: i64,
        residual_stride: i64,
        rows: i32,
        groups: i32,
        cols: i32,
        weight_dtype: i32,
        eps: f32,
    }
);

record!(
    /// `layer_norm` in `kernels/norm.cu`.
    LayerNormArgs {
        out: u64,
        x: u64,
        weight: u64,
        bias: u64,
        out_stride: i64,
        x_stride: i64,
        groups: i32,
        group: i32,
        parameters: i32,
        weight_dtype: i32,
        bias_dtype: i32,
        eps: f32,
    }
);

record!(
    /// `route` in `kernels/experts.cu`.
    RouteArgs {
        ids: u64,
        weights: u64,
        logits: u64,
        bias: u64,
        ids_stride: i64,
        weights_stride: i64,
        logits_stride: i64,
        experts: i32,
        chosen: i32,
        bias_dtype: i32,
        score: i32,
        groups: i32,
        kept_groups: i32,
        group_score: i32,
        renormalize: i32,
        scale: f32,
    }
);

record!(
    /// `expert_rows`, `expert_group` and `expert_gemm` in `kernels/experts.cu`.
    ExpertArgs {
        out: u64,
        x: u64,
        weight: u64,
        bias: u64,
        ids: u64,
        sorted: u64,
        out_stride: i64,
        x_stride: i64,
        weight_stride: i64,
        bias_stride: i64,
        rows: i32,
        in_features: i32,
        out_features: i32,
        experts: i32,
        repeats: i32,
        out_dtype: i32,
        bias_dtype: i32,
    }
);

record!(
    /// `combine` in `kernels/experts.cu`.
    CombineArgs {
        out: u64,
        x: u64,
        weights: u64,
        out_stride: i64,
        x_stride: i64,
        weights_stride: i64,
        cols: i32,
        chosen: i32,
        accumulate: i32,
    }
);

record!(
    /// `kernels/elementwise.cu`.
    RowArgs {
        out: u64,
        x: u64,
        index: u64,
        out_stride: i64,
        x_stride: i64,
        cols: i32,
        x_dtype: i32,
        x_rows: i32,
        scale: f32,
    }
);

record!(
    /// `kernels/rope.cu`.
    RopeArgs {
        q: u64,
        k: u64,
        v: u64,
        positions: u64,
        slots: u64,
        cos_sin: u64,
        cache: u64,
        q_stride: i64,
        k_stride: i64,
        v_stride: i64,
        num_heads: i32,
        kv_heads: i32,
        head_dim: i32,
        rot: i32,
        style: i32,
        block_shift: i32,
        max_positions: i32,
        planes: i32,
        sink_q: u64,
        sink_q_stride: i64,
        window: i32,
        chunk: i32,
        sink_tokens: i32,
    }
);

record!(
    /// `kernels/gemv.cu`.
    LinearArgs {
        out: u64,
        x: u64,
        weight: u64,
        bias: u64,
        out_stride: i64,
        x_stride: i64,
        weight_stride: i64,
        rows: i32,
        in_features: i32,
        out_features: i32,
        out_dtype: i32,
        weight_dtype: i32,
        bias_dtype: i32,
        activation: i32,
    }
);

record!(
    /// `kernels/attention.cuh`.
    AttentionArgs {
        out: u64,
        q: u64,
        cache: u64,
        cu_seqlens: u64,
        context_lens: u64,
        block_tables: u64,
        partial_values: u64,
        partial_weights: u64,
        out_stride: i64,
        q_stride: i64,
        table_stride: i64,
        num_heads: i32,
        kv_heads: i32,
        head_dim: i32,
        block_shift: i32,
        scale: f32,
        cap_log2: f32,
        inverse_cap: f32,
        window: i32,
        splits: i32,
        chunk: i32,
        planes: i32,
        sink_tokens: i32,
        sinks: u64,
        alibi: u64,
        sink_q: u64,
        sink_q_stride: i64,
    }
);

record!(
    /// `resolve_tokens` in `kernels/sampling.cu`.
    ResolveArgs {
        tokens: u64,
        sampled: u64,
        count: i32,
        entries: i32,
    }
);

record!(
    /// `sample` in `kernels/sampling.cu`, `sample_narrowed` in `kernels/sampling_narrow.cu`.
    SampleArgs {
        logits: u64,
        edited: u64,
        params: u64,
        out: u64,
        sampled: u64,
        logits_stride: i64,
        edited_stride: i64,
        vocab: i32,
        entries: i32,
    }
);

record!(
    /// `top_tokens` in `kernels/sampling.cu`.
    TopArgs {
        logits: u64,
        edited: u64,
        params: u64,
        ids: u64,
        log_probs: u64,
        logits_stride: i64,
        edited_stride: i64,
        vocab: i32,
        count: i32,
    }
);

record!(
    /// `kernels/logits.cu`.
    EditArgs {
        logits: u64,
        out: u64,
        counts: u64,
        rows: u64,
        tables: u64,
        tokens: u64,
        masks: u64,
        sampling: u64,
        logits_stride: i64,
        out_stride: i64,
        counts_stride: i64,
        mask_stride: i64,
        vocab: i32,
        table_words: i32,
        num_tokens: i32,
    }
);

record!(
    /// `read_bandwidth` in `kernels/gemv.cu`.
    ReadArgs {
        from: u64,
        vectors: i64,
        sink: u64,
    }
);

/// Enqueues a kernel that takes a record and then integers.
///
/// # Safety
/// The kernel is one that takes `args` and these integers, and the addresses in `args` are right for it.
pub(in crate::device::cuda) unsafe fn launch<A: Record, const N: usize>(
    context: &Context,
    kernel: Kernel,
    geometry: Geometry,
    args: &A,
    integers: [i32; N],
) -> Result<()> {
    // SAFETY: as the caller says.
    unsafe { launch_as(context, false, kernel, geometry, args, integers) }
}

/// [`launch`]; `chained`: the kernel starts while the one before it ends, and waits itself for what it reads.
///
/// # Safety
/// As for [`launch`]; a chained kernel waits for the kernels before (`join_chain` in `prelude.cuh`).
pub(in crate::device::cuda) unsafe fn launch_as<A: Record, const N: usize>(
    context: &Context,
    chained: bool,
    kernel: Kernel,
    geometry: Geometry,
    args: &A,
    integers: [i32; N],
) -> Result<()> {
    let mut pointers = [std::ptr::null_mut::<c_void>(); 4];
    pointers[0] = std::ptr::from_ref(args).cast_mut().cast();
    for (pointer, integer) in pointers[1..].iter_mut().zip(&integers) {
        *pointer = std::ptr::from_ref(integer).cast_mut().cast();
    }
    // SAFETY: the caller vouches for the types; the values live until the launch has copied them.
    unsafe { context.launch(kernel, geometry, &mut pointers[..=N], chained) }
}
