// Mixture of experts: the choice of experts, their matrices, their weighted sum. E experts, k for each token.
//
// route: one warp a token, scores in shared memory. expert_rows_*: every type and shape, for few rows: one warp an output
// element. expert_group and expert_gemm_*: many rows of 16-bit types: rows are sorted by expert (one block), then each block
// computes 64 rows of one expert by 64 output features with the tensor cores; tiles are found in the table of the first
// kernel, so that the grid needs only the upper bound of ceil(rows / 64) + E tiles. combine_*: one row a blockIdx.x.
// Source: Shazeer et al., "Outrageously large neural networks", 2017; group-limited choice as in DeepSeek-V2.
#include "prelude.cuh"

constexpr u32 ALL = 0xffffffffu;

struct RouteArgs {
    int* ids;
    float* weights;
    const float* logits;
    // Null: none. Counts for the choice only.
    const void* bias;
    i64 ids_stride, weights_stride, logits_stride;
    int experts, chosen, bias_dtype;
    // 0: softmax, 1: sigmoid.
    int score;
    // 0 groups: no groups. Group score 0: the largest, 1: the sum of the two largest.
    int groups, kept_groups, group_score, renormalize;
    float scale;
};

// The lane's best value and its number: the greatest of the warp, the lowest number of equals.
__device__ __forceinline__ void warp_best(float& value, int& number) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        float other = __shfl_xor_sync(ALL, value, d);
        int other_number = __shfl_xor_sync(ALL, number, d);
        if (other > value || (other == value && other_number < number)) value = other, number = other_number;
    }
}

// Number of the largest of `count` values.
__device__ __forceinline__ int largest(const float* values, int count, int lane) {
    float best = negative_infinity();
    int number = lane < count ? lane : 0x7fffffff;
    for (int i = lane; i < count; i += 32) {
        if (values[i] > best) best = values[i], number = i;
    }
    warp_best(best, number);
    return number < count ? number : 0;
}

extern "C" __global__ void __launch_bounds__(32) route(RouteArgs a) {
    // [E] scores, [E] what is chosen by, [groups] of these.
    extern __shared__ float shared[];
    float *scores = shared, *choices = shared + a.experts, *of_groups = shared + 2 * a.experts;
    i64 t = blockIdx.x;
    int lane = threadIdx.x;
    const float* logits = a.logits + t * a.logits_stride;
    float most = negative_infinity(), sum = 0.0f;
    for (int i = lane; i < a.experts; i += 32) most = fmaxf(most, logits[i]);
    most = warp_max(most);
    for (int i = lane; i < a.experts; i += 32) {
        scores[i] = a.score == 0 ? expf(logits[i] - most) : 1.0f / (1.0f + expf(-logits[i]));
        sum += scores[i];
    }
    sum = a.score == 0 ? warp_sum(sum) : 1.0f;
    for (int i = lane; i < a.experts; i += 32) {
        scores[i] /= sum;
        float bias[1] = {0.0f};
        if (a.bias) load_param(a.bias, a.bias_dtype, i, bias);
        choices[i] = scores[i] + bias[0];
    }
    __syncwarp();
    if (a.groups > 0) {
        int size = a.experts / a.groups;
        for (int g = lane; g < a.groups; g += 32) {
            float first = negative_infinity(), second = negative_infinity();
            for (int i = g * size; i < (g + 1) * size; i++) {
                float x = choices[i];
                if (x > first) second = first, first = x;
                else if (x > second) second = x;
            }
            of_groups[g] = a.group_score == 0 ? first : first + second;
        }
        __syncwarp();
        // What is kept is marked with not-a-number, which is never the largest.
        for (int i = 0; i < a.kept_groups; i++) {
            int best = largest(of_groups, a.groups, lane);
            __syncwarp();
            if (lane == 0) of_groups[best] = __int_as_float(0x7fc00000);
            __syncwarp();
        }
        for (int i = lane; i < a.experts; i += 32) {
            float group = of_groups[i / size];
            if (group == group) choices[i] = negative_infinity();
        }
        __syncwarp();
    }
    int* ids = a.ids + t * a.ids_stride;
    float* weights = a.weights + t * a.weights_stride;
    float total = 0.0f;
    for (int j = 0; j < a.chosen; j++) {
        int best = largest(choices, a.experts, lane);
        __syncwarp();
        if (lane == 0) ids[j] = best, choices[best] = negative_infinity();
        total += scores[best];
        __syncwarp();
    }
    float factor = a.renormalize ? a.scale / total : a.scale;
    for (int j = lane; j < a.chosen; j += 32) weights[j] = scores[ids[j]] * factor;
}

struct ExpertArgs {
    void* out;
    const void* x;
    const void* weight;
    // [E, N], or null.
    const void* bias;
    // Of row i: ids[i].
    const int* ids;
    // Of expert_gemm: [E + 1] first rows, [E + 1] first tiles, [rows] sorted.
    int* sorted;
    i64 out_stride, x_stride, weight_stride, bias_stride;
    int rows, in_features, out_features, experts;
    // Rows of the output for each row of x.
    int repeats;
    int out_dtype, bias_dtype;
};

__device__ __forceinline__ void store_expert_output(const ExpertArgs& a, i64 row, int expert, int n, float y) {
    if (a.bias) {
        float b[1];
        load_param(a.bias, a.bias_dtype, i64(expert) * a.bias_stride + n, b);
        y += b[0];
    }
    i64 at = row * a.out_stride + n;
    if (a.out_dtype == F32) {
        static_cast<float*>(a.out)[at] = y;
    } else if (a.out_dtype == BF16) {
        static_cast<bf16*>(a.out)[at] = from_f32<bf16>(y);
    } else {
        static_cast<f16*>(a.out)[at] = from_f32<f16>(y);
    }
}

constexpr int ROWS_WARPS = 8;

template <typename T, int N> __device__ __forceinline__ void expert_row(const ExpertArgs& a) {
    int n = blockIdx.x * ROWS_WARPS + threadIdx.y, lane = threadIdx.x;
    if (n >= a.out_features) return;
    for (i64 row = blockIdx.y; row < a.rows; row += gridDim.y) {
        int expert = a.ids[row];
        if (expert < 0 || expert >= a.experts) continue;
        const T* x = static_cast<const T*>(a.x) + row / a.repeats * a.x_stride;
        const T* w = static_cast<const T*>(a.weight) + (i64(expert) * a.out_features + n) * a.weight_stride;
        float sum = 0.0f;
#pragma unroll 4
        for (int k = lane * N; k < a.in_features; k += 32 * N) {
            float xs[N], ws[N];
            load(x + k, xs);
            load(w + k, ws);
#pragma unroll
            for (int e = 0; e < N; e++) sum += xs[e] * ws[e];
        }
        sum = warp_sum(sum);
        if (lane == 0) store_expert_output(a, row, expert, n, sum);
    }
}

#define EXPERT_ROWS(T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) expert_rows_##T(ExpertArgs args, int vectors) {                  \
        if (vectors) {                                                                                                 \
            expert_row<T, Vector<T>::N>(args);                                                                         \
        } else {                                                                                                       \
            expert_row<T, 1>(args);                                                                                    \
        }                                                                                                              \
    }
EXPERT_ROWS(float)
EXPERT_ROWS(f16)
EXPERT_ROWS(bf16)

constexpr int MAX_EXPERTS = 1024, GROUP_THREADS = 1024, TILE_ROWS = 64, TILE_FEATURES = 64;

extern "C" __global__ void __launch_bounds__(GROUP_THREADS) expert_group(ExpertArgs a) {
    __shared__ int count[MAX_EXPERTS], next[MAX_EXPERTS];
    int *first_rows = a.sorted, *first_tiles = a.sorted + a.experts + 1, *sorted = a.sorted + 2 * (a.experts + 1);
    for (int e = threadIdx.x; e < a.experts; e += GROUP_THREADS) count[e] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < a.rows; i += GROUP_THREADS) {
        int e = a.ids[i];
        if (e >= 0 && e < a.experts) atomicAdd(&count[e], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int row = 0, tile = 0;
        for (int e = 0; e < a.experts; e++) {
            first_rows[e] = next[e] = row;
            first_tiles[e] = tile;
            row += count[e];
            tile += (count[e] + TILE_ROWS - 1) / TILE_ROWS;
        }
        first_rows[a.experts] = row;
        first_tiles[a.experts] = tile;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.rows; i += GROUP_THREADS) {
        int e = a.ids[i];
        if (e >= 0 && e < a.experts) sorted[atomicAdd(&next[e], 1)] = i;
    }
}

// Columns of a step, and elements of its shared-memory rows: one access of padding moves each row to other banks.
constexpr int STEP = 64, STEP_ROW = STEP + 8, GEMM_STAGES = 2;

// Rows of a matrix, the STEP columns at `column`, to shared memory; zeros behind the last column.
template <typename T, typename F>
__device__ __forceinline__ void load_step(F row_of, int column, int columns, u32 to) {
#pragma unroll
    for (int i = threadIdx.x; i < TILE_ROWS * STEP / 8; i += 128) {
        int row = i / (STEP / 8), at = i % (STEP / 8) * 8;
        bool valid = column + at < columns;
        copy_async_16(to + (row * STEP_ROW + at) * 2, row_of(row) + (valid ? column + at : 0), valid);
    }
}

template <typename T> __device__ __forceinline__ void expert_gemm(const ExpertArgs& a) {
    __shared__ __align__(16) u16 tiles[GEMM_STAGES][2][TILE_ROWS * STEP_ROW];
    __shared__ int rows[TILE_ROWS];
    const int *first_rows = a.sorted, *first_tiles = a.sorted + a.experts + 1;
    const int* sorted = a.sorted + 2 * (a.experts + 1);
    int tile = blockIdx.y;
    if (tile >= first_tiles[a.experts]) return;
    int expert = 0, above = a.experts;
    while (above - expert > 1) {
        int middle = (expert + above) / 2;
        if (first_tiles[middle] <= tile) expert = middle;
        else above = middle;
    }
    int first = first_rows[expert] + (tile - first_tiles[expert]) * TILE_ROWS;
    int count = min(TILE_ROWS, first_rows[expert + 1] - first), feature = blockIdx.x * TILE_FEATURES;
    // Rows past the end repeat the last and are not written.
    for (int i = threadIdx.x; i < TILE_ROWS; i += 128) rows[i] = sorted[first + min(i, count - 1)];
    __syncthreads();
    const T* weight = static_cast<const T*>(a.weight) + i64(expert) * a.out_features * a.weight_stride;
    auto x_row = [&](int row) { return static_cast<const T*>(a.x) + i64(rows[row] / a.repeats) * a.x_stride; };
    auto w_row = [&](int row) { return weight + i64(min(feature + row, a.out_features - 1)) * a.weight_stride; };

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    int warp_row = warp / 2 * 32, warp_feature = warp % 2 * 32;
    float acc[2][4][4] = {};
    int steps = (a.in_features + STEP - 1) / STEP;
    auto start = [&](int step) {
        if (step < steps) {
            load_step<T>(x_row, step * STEP, a.in_features, shared_address(tiles[step % GEMM_STAGES][0]));
            load_step<T>(w_row, step * STEP, a.in_features, shared_address(tiles[step % GEMM_STAGES][1]));
        }
        copy_async_commit();
    };
    start(0);
    for (int step = 0; step < steps; step++) {
        start(step + 1);
        copy_async_wait<1>();
        __syncthreads();
        u32 xs = shared_address(tiles[step % GEMM_STAGES][0]), ws = shared_address(tiles[step % GEMM_STAGES][1]);
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            u32 left[2][4], right[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                int row = warp_row + m * 16 + lane % 16;
                load_matrix_x4(left[m], xs + (row * STEP_ROW + k + lane / 16 * 8) * 2);
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                int row = warp_feature + n * 16 + lane / 16 * 8 + lane % 8;
                load_matrix_x4(right[n], ws + (row * STEP_ROW + k + lane / 8 % 2 * 8) * 2);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    u32(&w)[4] = right[n / 2];
                    mma_16x8x16<T>(acc[m][n], left[m][0], left[m][1], left[m][2], left[m][3], w[n % 2 * 2],
                                   w[n % 2 * 2 + 1]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int row = warp_row + m * 16 + g + e / 2 * 8;
            if (row >= count) continue;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int at = feature + warp_feature + n * 8 + c * 2 + e % 2;
                if (at < a.out_features) store_expert_output(a, rows[row], expert, at, acc[m][n][e]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) expert_gemm_f16(ExpertArgs args) { expert_gemm<f16>(args); }
extern "C" __global__ void __launch_bounds__(128) expert_gemm_bf16(ExpertArgs args) { expert_gemm<bf16>(args); }

struct CombineArgs {
    void* out;
    const void* x;
    const float* weights;
    i64 out_stride, x_stride, weights_stride;
    int cols, chosen, accumulate;
};

template <typename T, int N> __device__ __forceinline__ void combine_row(const CombineArgs& a) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= a.cols) return;
    i64 t = blockIdx.x;
    T* out = static_cast<T*>(a.out) + t * a.out_stride + i;
    float sum[N] = {};
    if (a.accumulate) load(out, sum);
    for (int j = 0; j < a.chosen; j++) {
        float x[N], weight = a.weights[t * a.weights_stride + j];
        load(static_cast<const T*>(a.x) + (t * a.chosen + j) * a.x_stride + i, x);
#pragma unroll
        for (int e = 0; e < N; e++) sum[e] += weight * x[e];
    }
    store(out, sum);
}

#define COMBINE(T)                                                                                                     \
    extern "C" __global__ void combine_##T(CombineArgs args, int vectors) {                                            \
        if (vectors) {                                                                                                 \
            combine_row<T, Vector<T>::N>(args);                                                                        \
        } else {                                                                                                       \
            combine_row<T, 1>(args);                                                                                   \
        }                                                                                                              \
    }
COMBINE(float)
COMBINE(f16)
COMBINE(bf16)
