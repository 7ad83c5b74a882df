// Linear layers of few rows: out[t][n] = sum_k x[t][k] * weight[n][k] + bias[n], accumulated in f32.
//
// gemv_*: up to 8 rows of x, 16-bit types. A block computes 16 output features; its 8 warps share the columns (k), 64 at a
// time each. Weights are read once, in whole 128-byte lines, by asynchronous copies into a pipeline of STAGES steps that
// only the warp itself uses: the loop has no block barrier. The tensor cores do the arithmetic: weights are the 16×16
// operand, x the 16×8 one. A thread reads 8 neighbours of a row at once and spreads them over the operand's slots; x is
// spread the same way, so the sum over k is only reordered.
// Needs K % 8 == 0 and 16-byte aligned rows. blockDim = 256, GEMV_SHARED_BYTES or more of dynamic shared memory.
//
// gemv_gated_*: out[t][n] = act(gate) * up, where gate and up are the products with rows n and out_features + n, each rounded
// to the type as a separate pass would. A block computes 8 features: their gates are the operand's upper rows.
//
// linear_any_*: every type and shape, one warp an output element; for shapes that nothing else takes.
#include "activation.cuh"

struct LinearArgs {
    void* out;
    const void* x;
    const void* weight;
    // Null: none.
    const void* bias;
    i64 out_stride, x_stride, weight_stride;
    int rows, in_features, out_features;
    int out_dtype, weight_dtype, bias_dtype;
    // Of `gemv_gated`: a `Function`.
    int activation;
};

constexpr int WARPS = 8, FEATURES = 16, MAX_ROWS = 8;
// Of a warp: columns of a step, steps in its pipeline, bytes of a step.
constexpr int COLUMNS = 64, STAGES = 3, STEP_BYTES = (FEATURES + MAX_ROWS) * COLUMNS * 2;

__device__ __forceinline__ void store_output(const LinearArgs& a, int t, int n, float y) {
    if (a.bias) {
        float b[1];
        load_param(a.bias, a.bias_dtype, n, b);
        y += b[0];
    }
    i64 at = i64(t) * a.out_stride + n;
    if (a.out_dtype == F32) {
        static_cast<float*>(a.out)[at] = y;
    } else if (a.out_dtype == BF16) {
        static_cast<bf16*>(a.out)[at] = from_f32<bf16>(y);
    } else {
        static_cast<f16*>(a.out)[at] = from_f32<f16>(y);
    }
}

// A read that will not be repeated: not kept in the first-level cache.
__device__ __forceinline__ uint4 load_once(const void* p) {
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(p));
    return x;
}

// Where the 16-byte chunk of a row of 128 bytes lies: odd rows have their halves swapped, so that two rows of four chunks
// each, which eight threads read together, fall into different banks.
__device__ __forceinline__ int chunk_offset(int row, int chunk) { return row * 128 + (chunk ^ (row % 2 * 4)) * 16; }

// Rows `row_of(0 .. ROWS)` of a matrix, the 64 columns at `column`, to shared memory; zeros behind the last column.
template <int ROWS, typename T, typename RowOf>
__device__ __forceinline__ void start_rows(const T* matrix, i64 stride, RowOf row_of, int column, int columns, u32 to,
                                           int lane) {
    int chunk = lane % 8, at = column + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / 4; i++) {
        int row = i * 4 + lane / 8;
        const T* from = matrix + row_of(row) * stride + (at < columns ? at : 0);
        copy_async_16(to + chunk_offset(row, chunk), from, at < columns);
    }
}

template <typename T, bool GATED> __device__ __forceinline__ void gemv(const LinearArgs& a) {
    extern __shared__ __align__(128) char shared[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    constexpr int OUT = GATED ? FEATURES / 2 : FEATURES;
    int feature = blockIdx.x * OUT;
    const T *w = static_cast<const T*>(a.weight), *x = static_cast<const T*>(a.x);
    char* pipeline = shared + warp * STAGES * STEP_BYTES;

    // Rows past the last repeat it: their results are not stored.
    auto weight_row = [&](int row) -> i64 {
        int up = GATED && row >= OUT ? 1 : 0;
        return i64(up) * a.out_features + min(feature + row - up * OUT, a.out_features - 1);
    };
    auto x_row_of = [&](int row) -> i64 { return min(row, a.rows - 1); };
    auto start_weights = [&](int stage, int column) {
        if (column >= a.in_features) return;
        u32 to = shared_address(pipeline + stage * STEP_BYTES);
        start_rows<FEATURES>(w, a.weight_stride, weight_row, column, a.in_features, to, lane);
    };
    auto start_x = [&](int stage, int column) {
        if (column >= a.in_features) return;
        u32 to = shared_address(pipeline + stage * STEP_BYTES) + FEATURES * 128;
        if (a.rows <= 4) {
            start_rows<4>(x, a.x_stride, x_row_of, column, a.in_features, to, lane);
        } else {
            start_rows<MAX_ROWS>(x, a.x_stride, x_row_of, column, a.in_features, to, lane);
        }
    };
    constexpr int STRIDE = WARPS * COLUMNS;
    int ahead = warp * COLUMNS;
    // Nobody writes weights: their way begins while the kernel before, whose results are x, still runs.
    let_next_kernel_start();
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) start_weights(i, ahead + i * STRIDE);
    wait_for_kernels_before();
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++, ahead += STRIDE) {
        start_x(i, ahead);
        copy_async_commit();
    }
    float acc[4] = {};
    int stage = 0;
    // With four rows of x at most, tokens 4 to 7 repeat 0 to 3.
    int x_row = a.rows <= 4 ? g % 4 : g;
    for (int column = warp * COLUMNS; column < a.in_features; column += STRIDE, ahead += STRIDE) {
        copy_async_wait<STAGES - 2>();
        __syncwarp();
        int next = stage == 0 ? STAGES - 1 : stage - 1;
        start_weights(next, ahead);
        start_x(next, ahead);
        copy_async_commit();
        const char* step = pipeline + stage * STEP_BYTES;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int chunk = half * 4 + c;
            uint4 wu = *reinterpret_cast<const uint4*>(step + chunk_offset(g, chunk));
            uint4 wl = *reinterpret_cast<const uint4*>(step + chunk_offset(g + 8, chunk));
            uint4 xs = *reinterpret_cast<const uint4*>(step + FEATURES * 128 + chunk_offset(x_row, chunk));
            mma_16x8x16<T>(acc, wu.x, wl.x, wu.y, wl.y, xs.x, xs.y);
            mma_16x8x16<T>(acc, wu.z, wl.z, wu.w, wl.w, xs.z, xs.w);
        }
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }

    // The warps' sums meet where the pipelines were.
    copy_async_wait<0>();
    __syncthreads();
    auto partial = reinterpret_cast<float(*)[FEATURES][MAX_ROWS]>(shared);
    partial[warp][g][2 * c] = acc[0];
    partial[warp][g][2 * c + 1] = acc[1];
    partial[warp][g + 8][2 * c] = acc[2];
    partial[warp][g + 8][2 * c + 1] = acc[3];
    __syncthreads();
    int t = threadIdx.x / OUT, n = threadIdx.x % OUT;
    if (t >= a.rows || feature + n >= a.out_features) return;
    auto sum = [&](int row) {
        float y = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) y += partial[i][row][t];
        return y;
    };
    if constexpr (GATED) {
        float gate = to_f32(from_f32<T>(sum(n))), up = to_f32(from_f32<T>(sum(OUT + n)));
        store_output(a, t, feature + n, gated(gate, up, a.activation));
    } else {
        store_output(a, t, feature + n, sum(n));
    }
}

#define GEMV(T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) gemv_##T(LinearArgs args) { gemv<T, false>(args); }              \
    extern "C" __global__ void __launch_bounds__(256) gemv_gated_##T(LinearArgs args) { gemv<T, true>(args); }
GEMV(f16)
GEMV(bf16)

template <typename T> __device__ __forceinline__ void linear_any(const LinearArgs& a) {
    int n = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (n >= a.out_features) return;
    for (int t = blockIdx.y; t < a.rows; t += gridDim.y) {
        const T* x = static_cast<const T*>(a.x) + i64(t) * a.x_stride;
        float y = 0.0f;
        for (int k = lane; k < a.in_features; k += 32) {
            float w[1];
            load_param(a.weight, a.weight_dtype, i64(n) * a.weight_stride + k, w);
            y += to_f32(x[k]) * w[0];
        }
        y = warp_sum(y);
        if (lane == 0) store_output(a, t, n, y);
    }
}

extern "C" __global__ void linear_any_float(LinearArgs args) { linear_any<float>(args); }
extern "C" __global__ void linear_any_f16(LinearArgs args) { linear_any<f16>(args); }
extern "C" __global__ void linear_any_bf16(LinearArgs args) { linear_any<bf16>(args); }

// Adds a bias row to every row of `out`, where the matrix product could not.
extern "C" __global__ void add_bias(LinearArgs a) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= a.out_features) return;
    for (int t = blockIdx.y; t < a.rows; t += gridDim.y) {
        float y[1];
        load_param(a.out, a.out_dtype, i64(t) * a.out_stride + n, y);
        store_output(a, t, n, y[0]);
    }
}

struct ReadArgs {
    const uint4* from;
    i64 vectors;
    u32* sink;
};

// Reads everything and keeps next to nothing: the read bandwidth that other kernels are measured against.
extern "C" __global__ void __launch_bounds__(1024) read_bandwidth(ReadArgs args) {
    const uint4* from = args.from;
    i64 vectors = args.vectors;
    u32 seen = 0;
    i64 step = i64(gridDim.x) * blockDim.x;
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * step < vectors; i += 4 * step) {
        uint4 a = load_once(from + i), b = load_once(from + i + step);
        uint4 c = load_once(from + i + 2 * step), d = load_once(from + i + 3 * step);
        seen ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < vectors; i += step) {
        uint4 a = load_once(from + i);
        seen ^= a.x ^ a.y ^ a.z ^ a.w;
    }
    if (seen == 0x9e3779b9u) *args.sink = seen;
}
