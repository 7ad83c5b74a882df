// Row gathers, embedding, gated activation, functions of single elements, sums.
//
// Launch: blockIdx.x is the row; the threads of blockIdx.y walk its vectors, one vector (16 bytes, or one element where
// the shape does not allow vectors) a thread.
#include "activation.cuh"

struct RowArgs {
    void* out;
    const void* x;
    // Row of `x` for each row of `out`; null: the same row.
    const int* index;
    i64 out_stride, x_stride;
    int cols, x_dtype;
    // Rows of `x`: an index outside gives a row of zeros, never a stray read.
    int x_rows;
    float scale;
};

// out[r] = x[index[r]] * scale
template <typename T, int N> __device__ __forceinline__ void take_row(const RowArgs& a) {
    join_chain();
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= a.cols) return;
    i64 r = blockIdx.x;
    int from = a.index[r];
    float v[N] = {};
    if (from >= 0 && from < a.x_rows) load_param(a.x, a.x_dtype, i64(from) * a.x_stride + i, v);
#pragma unroll
    for (int e = 0; e < N; e++) v[e] *= a.scale;
    store(static_cast<T*>(a.out) + r * a.out_stride + i, v);
}

#define TAKE_ROWS(T)                                                                                                   \
    extern "C" __global__ void take_rows_##T(RowArgs args, int vectors) {                                              \
        if (vectors) {                                                                                                 \
            take_row<T, 8>(args);                                                                                      \
        } else {                                                                                                       \
            take_row<T, 1>(args);                                                                                      \
        }                                                                                                              \
    }
TAKE_ROWS(float)
TAKE_ROWS(f16)
TAKE_ROWS(bf16)

__device__ __forceinline__ float apply(float x, int function, float parameter) {
    if (function == SIGMOID) return 1.0f / (1.0f + expf(-x));
    if (function == SCALE) return x * parameter;
    if (function == CLAMP) return clamped(x, parameter);
    if (function == SOFTCAP) return parameter * tanhf(x / parameter);
    return activate(x, function);
}

// out = act(gate) * up; a row of x holds gate, then up.
template <typename T, int N> __device__ __forceinline__ void gated_row(const RowArgs& a, int activation) {
    join_chain();
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= a.cols) return;
    i64 r = blockIdx.x;
    const T* gate = static_cast<const T*>(a.x) + r * a.x_stride + i;
    float g[N], u[N];
    load(gate, g);
    load(gate + a.cols, u);
#pragma unroll
    for (int e = 0; e < N; e++) g[e] = gated(g[e], u[e], activation);
    store(static_cast<T*>(a.out) + r * a.out_stride + i, g);
}

#define GATED_ACTIVATION(T)                                                                                            \
    extern "C" __global__ void gated_activation_##T(RowArgs args, int vectors, int activation) {                       \
        if (vectors) {                                                                                                 \
            gated_row<T, Vector<T>::N>(args, activation);                                                              \
        } else {                                                                                                       \
            gated_row<T, 1>(args, activation);                                                                         \
        }                                                                                                              \
    }
GATED_ACTIVATION(float)
GATED_ACTIVATION(f16)
GATED_ACTIVATION(bf16)

// out = function(x); `scale` of the arguments is the function's parameter. Both may be the same.
template <typename T, int N> __device__ __forceinline__ void apply_row(const RowArgs& a, int function) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= a.cols) return;
    i64 r = blockIdx.x;
    float x[N];
    load(static_cast<const T*>(a.x) + r * a.x_stride + i, x);
#pragma unroll
    for (int e = 0; e < N; e++) x[e] = apply(x[e], function, a.scale);
    store(static_cast<T*>(a.out) + r * a.out_stride + i, x);
}

// out += x
template <typename T, int N> __device__ __forceinline__ void add_row(const RowArgs& a) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= a.cols) return;
    i64 r = blockIdx.x;
    T* out = static_cast<T*>(a.out) + r * a.out_stride + i;
    float x[N], y[N];
    load(static_cast<const T*>(a.x) + r * a.x_stride + i, x);
    load(out, y);
#pragma unroll
    for (int e = 0; e < N; e++) y[e] += x[e];
    store(out, y);
}

#define FUNCTIONS(T)                                                                                                   \
    extern "C" __global__ void elementwise_##T(RowArgs args, int vectors, int function) {                              \
        if (vectors) {                                                                                                 \
            apply_row<T, Vector<T>::N>(args, function);                                                                \
        } else {                                                                                                       \
            apply_row<T, 1>(args, function);                                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void add_##T(RowArgs args, int vectors) {                                                    \
        if (vectors) {                                                                                                 \
            add_row<T, Vector<T>::N>(args);                                                                            \
        } else {                                                                                                       \
            add_row<T, 1>(args);                                                                                       \
        }                                                                                                              \
    }
FUNCTIONS(float)
FUNCTIONS(f16)
FUNCTIONS(bf16)
