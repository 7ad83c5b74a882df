// Rotary embedding of queries (in place) and keys, and the write of keys and values into the paged cache.
//
// Cache of one layer: [num_blocks, 2, K, B, D], keys then values in each block.
// Launch: one block a token; threads walk the units of its H + 2K heads. A unit is N elements of the first half of the
// rotated part with their partners of the second (half split), N neighbours (interleaved), or N elements that only pass.
// Source: Su et al., RoFormer, equation 34; the half-split pairing is GPT-NeoX's.
#include "prelude.cuh"

enum RopeStyle : int { HALF_SPLIT = 0, INTERLEAVED = 1 };

struct RopeArgs {
    void* q;
    const void* k;
    const void* v;
    const int* positions;
    const int* slots;
    // [max_positions, rot]: rot/2 cosines, then rot/2 sines. Null: no rotation.
    const float* cos_sin;
    void* cache;
    i64 q_stride, k_stride, v_stride;
    int num_heads, kv_heads, head_dim, rot, style, block_shift, max_positions;
    // 2: keys and values; 1: the keys are the values, too.
    int planes;
    // Null, or where the queries for the first sink_tokens tokens go: rotated by their position among the tokens in sight,
    // which are these and those of the window and chunk (0: none), as in attention.cuh.
    void* sink_q;
    i64 sink_q_stride;
    int window, chunk, sink_tokens;
};

// Position among the sinks and the tokens of the window that a query at `position` sees.
__device__ __forceinline__ int position_in_sight(const RopeArgs& a, int position) {
    int first = a.window > 0 ? max(0, position - a.window + 1) : 0;
    if (a.chunk > 0) first = max(first, position / a.chunk * a.chunk);
    return position - max(0, first - a.sink_tokens);
}

// Rotates one head from `from` to `to` (which may be the same).
template <typename T, int N>
__device__ __forceinline__ void rotate_unit(const RopeArgs& a, const float* table, const T* from, T* to, int unit) {
    int half = a.rot / 2;
    if (a.style == HALF_SPLIT && unit * N < half) {
        int i = unit * N;
        float x[N], y[N], cosine[N], sine[N];
        load(from + i, x);
        load(from + half + i, y);
        load(table + i, cosine);
        load(table + half + i, sine);
#pragma unroll
        for (int e = 0; e < N; e++) {
            float rotated = x[e] * cosine[e] - y[e] * sine[e];
            y[e] = y[e] * cosine[e] + x[e] * sine[e];
            x[e] = rotated;
        }
        store(to + i, x);
        store(to + half + i, y);
    } else if (a.style == INTERLEAVED && unit * 2 < a.rot) {
        int i = unit * 2;
        float cosine = table[unit], sine = table[half + unit];
        float x = to_f32(from[i]), y = to_f32(from[i + 1]);
        to[i] = from_f32<T>(x * cosine - y * sine);
        to[i + 1] = from_f32<T>(y * cosine + x * sine);
    }
}

// Elements `first..head_dim` as they are.
template <typename T, int N>
__device__ __forceinline__ void pass_unit(const RopeArgs& a, const T* from, T* to, int first, int unit) {
    int i = first + unit * N;
    if (from == to || i >= a.head_dim) return;
    float x[N];
    load(from + i, x);
    store(to + i, x);
}

template <typename T, int N> __device__ __forceinline__ void rope_token(const RopeArgs& a) {
    join_chain();
    i64 token = blockIdx.x;
    int slot = a.slots[token];
    int position = a.positions[token];
    bool rotates = a.cos_sin != nullptr && position >= 0 && position < a.max_positions;
    const float* table = rotates ? a.cos_sin + i64(position) * a.rot : nullptr;
    const float* sink_table = rotates ? a.cos_sin + i64(position_in_sight(a, position)) * a.rot : nullptr;
    int rotated = rotates ? a.rot : 0;
    int pair_units = a.style == HALF_SPLIT ? rotated / 2 / N : rotated / 2;
    int pass_units = (a.head_dim - rotated + N - 1) / N;
    int units = pair_units + pass_units;
    int value_units = (a.head_dim + N - 1) / N;

    i64 block_size = i64(1) << a.block_shift;
    i64 block = slot >> a.block_shift, offset = slot & (block_size - 1);
    T* cached_keys = static_cast<T*>(a.cache) + (block * a.planes * a.kv_heads * block_size + offset) * a.head_dim;
    T* cached_values = cached_keys + i64(a.kv_heads) * block_size * a.head_dim;

    for (int u = threadIdx.x; u < a.num_heads * units; u += blockDim.x) {
        int head = u / units, unit = u % units;
        T* q = static_cast<T*>(a.q) + token * a.q_stride + i64(head) * a.head_dim;
        if (a.sink_q) {
            T* to = static_cast<T*>(a.sink_q) + token * a.sink_q_stride + i64(head) * a.head_dim;
            if (unit < pair_units) {
                rotate_unit<T, N>(a, sink_table, q, to, unit);
            } else {
                pass_unit<T, N>(a, q, to, rotated, unit - pair_units);
            }
        }
        if (unit < pair_units) rotate_unit<T, N>(a, table, q, q, unit);
    }
    if (slot < 0) return;
    for (int u = threadIdx.x; u < a.kv_heads * units; u += blockDim.x) {
        int head = u / units, unit = u % units;
        const T* k = static_cast<const T*>(a.k) + token * a.k_stride + i64(head) * a.head_dim;
        T* to = cached_keys + head * block_size * a.head_dim;
        if (unit < pair_units) {
            rotate_unit<T, N>(a, table, k, to, unit);
        } else {
            pass_unit<T, N>(a, k, to, rotated, unit - pair_units);
        }
    }
    if (a.planes == 1) return;
    for (int u = threadIdx.x; u < a.kv_heads * value_units; u += blockDim.x) {
        int head = u / value_units, unit = u % value_units;
        const T* v = static_cast<const T*>(a.v) + token * a.v_stride + i64(head) * a.head_dim;
        pass_unit<T, N>(a, v, cached_values + head * block_size * a.head_dim, 0, unit);
    }
}

#define ROPE_KV_WRITE(T)                                                                                               \
    extern "C" __global__ void rope_kv_write_##T(RopeArgs args, int vectors) {                                         \
        if (vectors) {                                                                                                 \
            rope_token<T, Vector<T>::N>(args);                                                                         \
        } else {                                                                                                       \
            rope_token<T, 1>(args);                                                                                    \
        }                                                                                                              \
    }
ROPE_KV_WRITE(float)
ROPE_KV_WRITE(f16)
ROPE_KV_WRITE(bf16)
