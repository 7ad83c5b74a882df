// RMS norm, alone and fused with the residual addition; layer norm.
//
// layer_norm_*: out = (x - mean) / sqrt(variance + eps) * weight + bias over groups; a block a group, which it reads three
// times, the second and third time from the cache. Parameters are of one group or of the whole row.
// out = x / sqrt(mean(x²) + eps) * weight over groups of `cols` columns: the row, or each head of it.
// Launch: groups of more than 1,024 columns get a block each (blockDim = (threads, 1)); smaller ones get a warp each
// (blockDim = (32, 8)). Several vectors a thread keep more reads in flight than more threads would. A thread keeps its first KEEP vectors in registers, so rows of up to
// KEEP * blockDim.x vectors are read once. Accumulation in f32.
#include "prelude.cuh"

constexpr int KEEP = 4;

struct NormArgs {
    void* out;
    const void* x;
    // Null: no addition.
    void* residual;
    const void* weight;
    i64 out_stride, x_stride, residual_stride;
    int rows, groups, cols, weight_dtype;
    float eps;
};

// x, plus the residual, which takes the sum; what is normalized is the sum as the residual holds it.
template <typename T, int N> __device__ __forceinline__ void read_sum(const T* x, T* residual, float (&v)[N]) {
    load(x, v);
    if (residual == nullptr) return;
    float r[N];
    load(residual, r);
#pragma unroll
    for (int e = 0; e < N; e++) v[e] = to_f32(from_f32<T>(v[e] + r[e]));
    store(residual, v);
}

template <typename T, int N> __device__ __forceinline__ void norm_rows(const NormArgs& a) {
    __shared__ float scratch[32];
    join_chain();
    i64 group = i64(blockIdx.x) * blockDim.y + threadIdx.y;
    if (group >= i64(a.rows) * a.groups) return;
    i64 row = group / a.groups, first = (group % a.groups) * a.cols;
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride + first;
    T* out = static_cast<T*>(a.out) + row * a.out_stride + first;
    T* residual = a.residual ? static_cast<T*>(a.residual) + row * a.residual_stride + first : nullptr;
    int step = blockDim.x * N;

    float kept[KEEP][N];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        int i = threadIdx.x * N + k * step;
        if (i >= a.cols) continue;
        read_sum<T, N>(x + i, residual ? residual + i : nullptr, kept[k]);
#pragma unroll
        for (int e = 0; e < N; e++) sum += kept[k][e] * kept[k][e];
    }
    for (int i = threadIdx.x * N + KEEP * step; i < a.cols; i += step) {
        float v[N];
        read_sum<T, N>(x + i, residual ? residual + i : nullptr, v);
#pragma unroll
        for (int e = 0; e < N; e++) sum += v[e] * v[e];
    }
    sum = blockDim.x == 32 ? warp_sum(sum) : block_sum(sum, scratch);
    float factor = rsqrtf(sum / a.cols + a.eps);

#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        int i = threadIdx.x * N + k * step;
        if (i >= a.cols) continue;
        float w[N];
        load_param(a.weight, a.weight_dtype, i, w);
#pragma unroll
        for (int e = 0; e < N; e++) w[e] *= kept[k][e] * factor;
        store(out + i, w);
    }
    const T* source = residual ? residual : x;
    for (int i = threadIdx.x * N + KEEP * step; i < a.cols; i += step) {
        float v[N], w[N];
        load(source + i, v);
        load_param(a.weight, a.weight_dtype, i, w);
#pragma unroll
        for (int e = 0; e < N; e++) w[e] *= v[e] * factor;
        store(out + i, w);
    }
}

#define RMS_NORM(T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(512) rms_norm_##T(NormArgs args, int vectors) {                      \
        if (vectors) {                                                                                                 \
            norm_rows<T, Vector<T>::N>(args);                                                                          \
        } else {                                                                                                       \
            norm_rows<T, 1>(args);                                                                                     \
        }                                                                                                              \
    }
RMS_NORM(float)
RMS_NORM(f16)
RMS_NORM(bf16)

struct LayerNormArgs {
    void* out;
    const void* x;
    const void* weight;
    // Null: none.
    const void* bias;
    i64 out_stride, x_stride;
    int groups, group, parameters, weight_dtype, bias_dtype;
    float eps;
};

template <typename T, int N> __device__ __forceinline__ void layer_norm_group(const LayerNormArgs& a) {
    __shared__ float scratch[2][32];
    i64 row = blockIdx.x / a.groups;
    int first = blockIdx.x % a.groups * a.group, parameter = first % a.parameters;
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride + first;
    T* out = static_cast<T*>(a.out) + row * a.out_stride + first;
    int step = blockDim.x * N, begin = threadIdx.x * N;
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 1
    for (int i = begin; i < a.group; i += step) {
        float v[N];
        load(x + i, v);
#pragma unroll
        for (int e = 0; e < N; e++) sum += v[e];
    }
    float mean = block_sum(sum, scratch[0]) / a.group;
#pragma unroll 1
    for (int i = begin; i < a.group; i += step) {
        float v[N];
        load(x + i, v);
#pragma unroll
        for (int e = 0; e < N; e++) squares += (v[e] - mean) * (v[e] - mean);
    }
    float factor = rsqrtf(block_sum(squares, scratch[1]) / a.group + a.eps);
#pragma unroll 1
    for (int i = begin; i < a.group; i += step) {
        float v[N], w[N], b[N] = {};
        load(x + i, v);
        load_param(a.weight, a.weight_dtype, parameter + i, w);
        if (a.bias) load_param(a.bias, a.bias_dtype, parameter + i, b);
#pragma unroll
        for (int e = 0; e < N; e++) v[e] = (v[e] - mean) * factor * w[e] + b[e];
        store(out + i, v);
    }
}

#define LAYER_NORM(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) layer_norm_##T(LayerNormArgs args, int vectors) {                \
        if (vectors) {                                                                                                 \
            layer_norm_group<T, Vector<T>::N>(args);                                                                   \
        } else {                                                                                                       \
            layer_norm_group<T, 1>(args);                                                                              \
        }                                                                                                              \
    }
LAYER_NORM(float)
LAYER_NORM(f16)
LAYER_NORM(bf16)
