// Shared by the attention kernels: arguments, where a sequence's tokens lie, tile loads.
//
// Query rows of a key/value head are packed: row r of a sequence is query r / G under query head kv_head * G + r % G,
// G = H / K, so that all heads of a group share one read of the keys and values.
// Cache of one layer: [num_blocks, 2, K, B, D], keys then values in each block.
#pragma once
#include "prelude.cuh"

struct AttentionArgs {
    void* out;
    const void* q;
    const void* cache;
    // [S + 1]: query rows of sequence s are cu_seqlens[s] .. cu_seqlens[s + 1].
    const int* cu_seqlens;
    // [S]: tokens in the cache, this step's included.
    const int* context_lens;
    const int* block_tables;
    // Decode only, where `splits` > 1: [S * K, splits, 16, D] sums of weighted values, then
    // [S * K, splits, 16, 2] maxima and sums of weights.
    float* partial_values;
    float* partial_weights;
    i64 out_stride, q_stride, table_stride;
    int num_heads, kv_heads, head_dim, block_shift;
    // Scores in units of log2: scale * log2(e); with a cap, `scale` alone.
    float scale;
    // cap * log2(e), and 1 / cap; 0: no cap.
    float cap_log2, inverse_cap;
    // A token sees itself and the window - 1 before it; 0: everything before.
    int window;
    int splits;
    // A token sees those of its own chunk of so many positions; 0: no chunks.
    int chunk;
    // 2: keys and values; 1: the keys are the values, too.
    int planes;
    // Tokens at the beginning that are seen beside the window: attention_any only.
    int sink_tokens;
    // [H], or null: one more score of each head in the softmax, without a value.
    const float* sinks;
    // [H], or null: slope * (key position - query position), among the tokens in sight, is added to every score.
    const float* alibi;
    // As q, or null: takes its place for the tokens of sink_tokens that lie before the window: attention_any only.
    const void* sink_q;
    i64 sink_q_stride;
};

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ int head_of_row(const AttentionArgs& a, int kv_head, int row) {
    int group = a.num_heads / a.kv_heads;
    return kv_head * group + row % group;
}

// What a head's sink adds to a sum of weights relative to `base` (log2).
__device__ __forceinline__ float sink_weight(const AttentionArgs& a, int head, float base) {
    return a.sinks ? exp2_fast(a.sinks[head] * LOG2_E - base) : 0.0f;
}

// A head's slope in units of the score before the cap.
__device__ __forceinline__ float slope_of(const AttentionArgs& a, int head) {
    return a.alibi ? a.alibi[head] * (a.cap_log2 == 0.0f ? LOG2_E : 1.0f) : 0.0f;
}

// Rows of one sequence that the decode kernel takes; longer chunks are the prefill kernel's.
constexpr int DECODE_ROWS = 16;

struct SequenceRows {
    int first_query, queries, context, group, rows;
};

__device__ __forceinline__ SequenceRows sequence_rows(const AttentionArgs& a, int s) {
    SequenceRows r;
    r.first_query = a.cu_seqlens[s];
    r.queries = a.cu_seqlens[s + 1] - r.first_query;
    r.context = a.context_lens[s];
    r.group = a.num_heads / a.kv_heads;
    r.rows = r.queries * r.group;
    return r;
}

// First token that a query at `position` sees.
__device__ __forceinline__ int first_visible(const AttentionArgs& a, int position) {
    int first = a.window > 0 ? max(0, position - a.window + 1) : 0;
    return a.chunk > 0 ? max(first, position / a.chunk * a.chunk) : first;
}

// The score in units of log2, capped where the model asks for it. `bias`: of linear biases.
__device__ __forceinline__ float scaled_score(const AttentionArgs& a, float dot, float bias = 0.0f) {
    if (a.cap_log2 == 0.0f) return dot * a.scale + bias;
    return a.cap_log2 * tanhf((dot * a.scale + bias) * a.inverse_cap);
}

// Elements of a shared-memory row: one 16-byte access of padding moves each row to other banks.
template <int D> constexpr int ROW = D + 8;

// Address of an element of packed query row `row`.
template <typename T>
__device__ __forceinline__ const T* query_row(const AttentionArgs& a, const SequenceRows& s, int kv_head, int row) {
    i64 token = s.first_query + row / s.group;
    int head = kv_head * s.group + row % s.group;
    return static_cast<const T*>(a.q) + token * a.q_stride + i64(head) * a.head_dim;
}

template <typename T>
__device__ __forceinline__ T* output_row(const AttentionArgs& a, const SequenceRows& s, int kv_head, int row) {
    i64 token = s.first_query + row / s.group;
    int head = kv_head * s.group + row % s.group;
    return static_cast<T*>(a.out) + token * a.out_stride + i64(head) * a.head_dim;
}

// Starts copying `ROWS` packed query rows from `first` on to shared memory, zeros past the end.
template <typename T, int D, int ROWS>
__device__ __forceinline__ void load_queries(const AttentionArgs& a, const SequenceRows& s, int kv_head, int first,
                                             u32 to, int thread, int threads) {
    constexpr int CHUNKS = D / 8;
    for (int i = thread; i < ROWS * CHUNKS; i += threads) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        bool valid = first + row < s.rows && column < a.head_dim;
        const T* from = query_row<T>(a, s, kv_head, valid ? first + row : 0) + (valid ? column : 0);
        copy_async_16(to + (row * ROW<D> + column) * 2, from, valid);
    }
}

// Columns 16 k .. 16 k + 16 of 16 rows as the left operand of the tensor cores.
template <int D> __device__ __forceinline__ void left_operand(u32 (&r)[4], u32 tile, int k, int lane) {
    load_matrix_x4(r, tile + ((lane % 16) * ROW<D> + k * 16 + lane / 16 * 8) * 2);
}

// Keys: tokens 16 t .. 16 t + 16, columns 16 k .. 16 k + 16: right operands of two 8-token tiles.
template <int D> __device__ __forceinline__ void key_operand(u32 (&r)[4], u32 tile, int t, int k, int lane) {
    int token = t * 16 + lane / 16 * 8 + lane % 8;
    load_matrix_x4(r, tile + (token * ROW<D> + k * 16 + lane / 8 % 2 * 8) * 2);
}

// Values: tokens 16 t .. 16 t + 16, columns 16 n .. 16 n + 16: right operands of two 8-column tiles.
template <int D> __device__ __forceinline__ void value_operand(u32 (&r)[4], u32 tile, int t, int n, int lane) {
    int token = t * 16 + lane % 16;
    load_matrix_x4_transposed(r, tile + (token * ROW<D> + n * 16 + lane / 16 * 8) * 2);
}

// Running softmax of the two rows that a thread shares with the other three of its quad: rows g and g + 8.
struct RunningSoftmax {
    float maximum[2];
    // Of this thread's columns only.
    float sum[2];

    __device__ __forceinline__ void init() {
        maximum[0] = maximum[1] = negative_infinity();
        sum[0] = sum[1] = 0.0f;
    }

    // Turns scores (log2) into weights and rescales what was summed before.
    template <int TILES, int COLUMN_TILES>
    __device__ __forceinline__ void update(float (&score)[TILES][4], float (&value)[COLUMN_TILES][4]) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = maximum[h];
#pragma unroll
            for (int t = 0; t < TILES; t++) m = fmaxf(m, fmaxf(score[t][2 * h], score[t][2 * h + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            // A row that has seen nothing yet: any finite base keeps its weights at zero.
            float base = m == negative_infinity() ? 0.0f : m;
            float factor = exp2_fast(maximum[h] - base);
            maximum[h] = m;
            float added = 0.0f;
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                score[t][2 * h] = exp2_fast(score[t][2 * h] - base);
                score[t][2 * h + 1] = exp2_fast(score[t][2 * h + 1] - base);
                added += score[t][2 * h] + score[t][2 * h + 1];
            }
            sum[h] = sum[h] * factor + added;
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++) {
                value[n][2 * h] *= factor;
                value[n][2 * h + 1] *= factor;
            }
        }
    }

    __device__ __forceinline__ float total(int h) const {
        float s = sum[h] + __shfl_xor_sync(0xffffffffu, sum[h], 1);
        return s + __shfl_xor_sync(0xffffffffu, s, 2);
    }
};
