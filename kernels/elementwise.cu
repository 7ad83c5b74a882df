// Row gathers, embedding and gated activation.
//
// Launch: blockIdx.x is the row; the threads of blockIdx.y walk its vectors, one vector (16 bytes, or one element where
// the shape does not allow vectors) a thread.
#include "prelude.cuh"

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

enum Activation : int { SILU = 0, GELU_TANH = 1 };

__device__ __forceinline__ float activate(float x, int activation) {
    if (activation == SILU) return x / (1.0f + expf(-x));
    float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
}

// out = act(gate) * up; a row of x holds gate, then up.
template <typename T, int N> __device__ __forceinline__ void gated_row(const RowArgs& a, int activation) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= a.cols) return;
    i64 r = blockIdx.x;
    const T* gate = static_cast<const T*>(a.x) + r * a.x_stride + i;
    float g[N], u[N];
    load(gate, g);
    load(gate + a.cols, u);
#pragma unroll
    for (int e = 0; e < N; e++) g[e] = activate(g[e], activation) * u[e];
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
