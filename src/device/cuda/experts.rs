//! Launches of the kernels of a mixture of experts.

use super::CudaDevice;
use super::driver::Geometry;
use super::elementwise::{row_geometry, vector_of, vectors};
use super::kernels::{CombineArgs, ExpertArgs, RouteArgs, launch, type_index};
use crate::device::{ExpertLinear, GroupScore, Route, Score, Tensor, Weight};
use crate::error::{Error, Result};

/// Rows up to which each has a warp for each of its features; more are sorted by expert first.
const SINGLE_ROWS: usize = 8;
/// Rows and features of a block of `expert_gemm` (`TILE_ROWS`, `TILE_FEATURES`).
const TILE: usize = 64;
/// Experts of a layer, at most (`MAX_EXPERTS`).
const MAX_EXPERTS: usize = 1024;
/// Warps of a block of `expert_rows` (`ROWS_WARPS`).
const ROWS_WARPS: usize = 8;

impl CudaDevice {
    pub(super) fn choose_experts(&self, a: &Route<'_>) -> Result<()> {
        let (tokens, experts) = (a.logits.rows(), a.logits.cols());
        let groups = a.rule.groups;
        check_experts(experts)?;
        let args = RouteArgs {
            ids: a.ids.addr(),
            weights: a.weights.addr(),
            logits: a.logits.addr(),
            bias: a.choice_bias.map_or(0, Tensor::addr),
            ids_stride: a.ids.stride() as i64,
            weights_stride: a.weights.stride() as i64,
            logits_stride: a.logits.stride() as i64,
            experts: experts as i32,
            chosen: a.ids.cols() as i32,
            bias_dtype: a.choice_bias.map_or(Ok(0), |bias| type_index(bias.dtype()))?,
            score: match a.rule.score {
                Score::Softmax => 0,
                Score::Sigmoid => 1,
            },
            groups: groups.map_or(0, |groups| groups.count as i32),
            kept_groups: groups.map_or(0, |groups| groups.kept as i32),
            group_score: match groups.map(|groups| groups.score) {
                Some(GroupScore::TopTwo) => 1,
                Some(GroupScore::Largest) | None => 0,
            },
            renormalize: i32::from(a.rule.renormalize),
            scale: a.rule.scale,
        };
        let shared_bytes = (2 * experts + groups.map_or(0, |groups| groups.count)) * size_of::<f32>();
        let geometry = Geometry { grid: (tokens, 1, 1), block: (32, 1), shared_bytes };
        // SAFETY: the kernel takes these arguments; shapes were checked by the caller of the device.
        unsafe { launch(&self.context, self.kernels.route, geometry, &args, []) }
    }

    pub(super) fn multiply_by_experts(&self, a: &ExpertLinear<'_>) -> Result<()> {
        let Weight::Dense(weight) = a.weight;
        let (rows, in_features, out_features) = (a.out.rows(), a.x.cols(), weight.rows() / a.num_experts);
        check_experts(a.num_experts)?;
        if a.x.dtype() != weight.dtype() {
            return Err(Error::unsupported(format!("{} experts with {} activations", weight.dtype(), a.x.dtype())));
        }
        let sorted_bytes = (2 * (a.num_experts + 1) + rows) * size_of::<i32>();
        let args = ExpertArgs {
            out: a.out.addr(),
            x: a.x.addr(),
            weight: weight.addr(),
            bias: a.bias.map_or(0, Tensor::addr),
            ids: a.ids.addr(),
            sorted: self.partials.addr,
            out_stride: a.out.stride() as i64,
            x_stride: a.x.stride() as i64,
            weight_stride: weight.stride() as i64,
            bias_stride: a.bias.map_or(0, |bias| bias.stride() as i64),
            rows: rows as i32,
            in_features: in_features as i32,
            out_features: out_features as i32,
            experts: a.num_experts as i32,
            repeats: (rows / a.x.rows()) as i32,
            out_dtype: type_index(a.out.dtype())?,
            bias_dtype: a.bias.map_or(Ok(0), |bias| type_index(bias.dtype()))?,
        };
        let half = a.x.dtype().size() == 2;
        let tiled = half && rows > SINGLE_ROWS && sorted_bytes <= super::attention::PARTIAL_BYTES;
        if tiled && vectors(&[a.x, weight], in_features, 8) {
            let kernel = self.kernels.expert_gemm[type_index(a.x.dtype())? as usize - 1];
            let group = Geometry { grid: (1, 1, 1), block: (1024, 1), shared_bytes: 0 };
            // Each expert may leave one tile unfilled.
            let tiles = rows.div_ceil(TILE) + a.num_experts.min(rows);
            let grid = (out_features.div_ceil(TILE), tiles, 1);
            let geometry = Geometry { grid, block: (128, 1), shared_bytes: 0 };
            // SAFETY: as above; ids are contiguous, as `Forward` allocates them, and the buffer of partial results, which
            // nobody uses between attention's launches, has room for the sorted rows.
            return unsafe {
                launch(&self.context, self.kernels.expert_group, group, &args, [])?;
                launch(&self.context, kernel, geometry, &args, [])
            };
        }
        let vectors = vectors(&[a.x, weight], in_features, vector_of(a.x.dtype()));
        let grid = (out_features.div_ceil(ROWS_WARPS), rows.min(4096), 1);
        let geometry = Geometry { grid, block: (32, ROWS_WARPS), shared_bytes: 0 };
        let kernel = self.kernels.expert_rows.of(a.x.dtype())?;
        // SAFETY: as above.
        unsafe { launch(&self.context, kernel, geometry, &args, [i32::from(vectors)]) }
    }

    pub(super) fn combine_experts(&self, out: &Tensor, x: &Tensor, weights: &Tensor, accumulate: bool) -> Result<()> {
        let vector = vector_of(out.dtype());
        let vectors = vectors(&[out, x], out.cols(), vector);
        let args = CombineArgs {
            out: out.addr(),
            x: x.addr(),
            weights: weights.addr(),
            out_stride: out.stride() as i64,
            x_stride: x.stride() as i64,
            weights_stride: weights.stride() as i64,
            cols: out.cols() as i32,
            chosen: weights.cols() as i32,
            accumulate: i32::from(accumulate),
        };
        let geometry = row_geometry(out.rows(), out.cols(), if vectors { vector } else { 1 });
        let kernel = self.kernels.combine.of(out.dtype())?;
        // SAFETY: as above.
        unsafe { launch(&self.context, kernel, geometry, &args, [i32::from(vectors)]) }
    }
}

fn check_experts(experts: usize) -> Result<()> {
    match experts {
        1..=MAX_EXPERTS => Ok(()),
        _ => Err(Error::unsupported(format!("{experts} experts of a layer on a GPU; {MAX_EXPERTS} are the most"))),
    }
}
