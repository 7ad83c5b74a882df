// Paged causal attention of long chunks: any chunk over any cached prefix.
//
// Launch: grid (tiles of 128 packed query rows, K, S), 8 warps of 16 rows each; tiles are counted from the end, so that
// the longest start first. Tiles beyond a sequence's rows, and sequences short enough for the decode kernel, end at
// once: the grid needs only upper bounds. Keys and values pass through two shared-memory stages.
// Source: Dao, FlashAttention-2; GQA packing as in FlashAttention-3.
#include "attention.cuh"

constexpr int WARPS = 8, TILE_ROWS = WARPS * 16;

// Tokens of a key/value tile: the widest for which registers and two stages suffice.
template <int D> constexpr int TOKENS = D <= 128 ? 64 : 32;

template <int D> constexpr int QUERY_BYTES = TILE_ROWS* ROW<D> * 2;
template <int D> constexpr int TILE_BYTES = TOKENS<D>* ROW<D> * 2;

template <typename T, int D>
__device__ __forceinline__ void load_tokens(const AttentionArgs& a, const int* table, int kv_head, int first, int end,
                                            u32 keys, u32 values) {
    constexpr int CHUNKS = D / 8;
    int block_mask = (1 << a.block_shift) - 1;
    i64 head_elements = i64(a.head_dim) << a.block_shift;
#pragma unroll
    for (int i = threadIdx.x; i < TOKENS<D> * CHUNKS; i += WARPS * 32) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        int token = min(first + row, end - 1);
        bool valid = first + row < end && column < a.head_dim;
        i64 block = table[token >> a.block_shift];
        const T* from = static_cast<const T*>(a.cache) + (block * 2 * a.kv_heads + kv_head) * head_elements +
                        (token & block_mask) * a.head_dim + (valid ? column : 0);
        u32 at = (row * ROW<D> + column) * 2;
        copy_async_16(keys + at, from, valid);
        copy_async_16(values + at, from + a.kv_heads * head_elements, valid);
    }
}

template <typename T, int D> __device__ __forceinline__ void prefill(const AttentionArgs& a) {
    constexpr int N = TOKENS<D>, SCORE_TILES = N / 8, COLUMN_TILES = D / 8, STEPS = D / 16;
    // Up to 128 columns the queries stay in registers and their shared memory is used again.
    constexpr bool KEEP_QUERIES = D <= 128;
    extern __shared__ __align__(16) char shared[];

    int kv_head = blockIdx.y, s_index = blockIdx.z;
    SequenceRows s = sequence_rows(a, s_index);
    int first_row = (gridDim.x - 1 - blockIdx.x) * TILE_ROWS;
    if (s.rows <= DECODE_ROWS || first_row >= s.rows) return;

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    u32 base = shared_address(shared);
    u32 tiles = KEEP_QUERIES ? base : base + QUERY_BYTES<D>;
    u32 my_queries = base + warp * 16 * ROW<D> * 2;

    load_queries<T, D, TILE_ROWS>(a, s, kv_head, first_row, base, threadIdx.x, WARPS * 32);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    u32 q[KEEP_QUERIES ? STEPS : 1][4];
    if constexpr (KEEP_QUERIES) {
#pragma unroll
        for (int k = 0; k < STEPS; k++) left_operand<D>(q[k], my_queries, k, lane);
        __syncthreads();
    }

    int prefix = s.context - s.queries;
    int last_row = min(first_row + TILE_ROWS, s.rows) - 1;
    int begin = first_visible(a, prefix + first_row / s.group) / N * N;
    int end = prefix + last_row / s.group + 1;
    // Positions of this thread's two rows; rows past the end repeat the last and are not written.
    int position[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        position[h] = prefix + min(first_row + warp * 16 + g + 8 * h, s.rows - 1) / s.group;
    }
    int warp_first = prefix + min(first_row + warp * 16, s.rows - 1) / s.group;
    int warp_last = prefix + min(first_row + warp * 16 + 15, s.rows - 1) / s.group;

    const int* table = a.block_tables + s_index * a.table_stride;
    float slope[2];
#pragma unroll
    for (int h = 0; h < 2; h++) slope[h] = slope_of(a, head_of_row(a, kv_head, first_row + warp * 16 + g + 8 * h));
    RunningSoftmax softmax;
    softmax.init();
    float value[COLUMN_TILES][4] = {};

    // Padding may give a sequence more queries than its context has tokens: the first of them see nothing.
    if (begin < end) load_tokens<T, D>(a, table, kv_head, begin, end, tiles, tiles + TILE_BYTES<D>);
    copy_async_commit();
    int stage = 0;
    for (int first = begin; first < end; first += N, stage ^= 1) {
        u32 keys = tiles + stage * 2 * TILE_BYTES<D>, values = keys + TILE_BYTES<D>;
        if (first + N < end) {
            u32 next = tiles + (stage ^ 1) * 2 * TILE_BYTES<D>;
            load_tokens<T, D>(a, table, kv_head, first + N, end, next, next + TILE_BYTES<D>);
        }
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();

        // Skips tiles that no row of this warp sees.
        if (first <= warp_last && first + N > first_visible(a, warp_first)) {
            float score[SCORE_TILES][4] = {};
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                u32 loaded[4];
                if constexpr (!KEEP_QUERIES) left_operand<D>(loaded, my_queries, k, lane);
                u32(&left)[4] = KEEP_QUERIES ? q[KEEP_QUERIES ? k : 0] : loaded;
#pragma unroll
                for (int t = 0; t < N / 16; t++) {
                    u32 right[4];
                    key_operand<D>(right, keys, t, k, lane);
                    mma_16x8x16<T>(score[2 * t], left[0], left[1], left[2], left[3], right[0], right[1]);
                    mma_16x8x16<T>(score[2 * t + 1], left[0], left[1], left[2], left[3], right[2], right[3]);
                }
            }
#pragma unroll
            for (int t = 0; t < SCORE_TILES; t++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int distance = first + t * 8 + c * 2 + e % 2 - position[e / 2];
                    score[t][e] = scaled_score(a, score[t][e], slope[e / 2] * distance);
                }
            }
            if (first + N - 1 > warp_first || first < first_visible(a, warp_last)) {
#pragma unroll
                for (int t = 0; t < SCORE_TILES; t++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int token = first + t * 8 + c * 2 + e % 2, seen_from = position[e / 2];
                        bool visible = token <= seen_from && token >= first_visible(a, seen_from);
                        if (!visible) score[t][e] = negative_infinity();
                    }
                }
            }
            softmax.update(score, value);
#pragma unroll
            for (int t = 0; t < N / 16; t++) {
                u32 p0 = pack2<T>(score[2 * t][0], score[2 * t][1]), p1 = pack2<T>(score[2 * t][2], score[2 * t][3]);
                u32 p2 = pack2<T>(score[2 * t + 1][0], score[2 * t + 1][1]);
                u32 p3 = pack2<T>(score[2 * t + 1][2], score[2 * t + 1][3]);
#pragma unroll
                for (int n = 0; n < D / 16; n++) {
                    u32 right[4];
                    value_operand<D>(right, values, t, n, lane);
                    mma_16x8x16<T>(value[2 * n], p0, p1, p2, p3, right[0], right[1]);
                    mma_16x8x16<T>(value[2 * n + 1], p0, p1, p2, p3, right[2], right[3]);
                }
            }
        }
        __syncthreads();
    }

    bool pairs = reinterpret_cast<u64>(a.out) % 4 == 0 && a.out_stride % 2 == 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = first_row + warp * 16 + g + 8 * h;
        float base = softmax.maximum[h] == negative_infinity() ? 0.0f : softmax.maximum[h];
        float total = softmax.total(h) + sink_weight(a, head_of_row(a, kv_head, row), base);
        float factor = total > 0.0f ? 1.0f / total : 0.0f;
        if (row >= s.rows) continue;
        T* out = output_row<T>(a, s, kv_head, row);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            int column = n * 8 + c * 2;
            if (column >= a.head_dim) continue;
            float lo = value[n][2 * h] * factor, hi = value[n][2 * h + 1] * factor;
            if (pairs) {
                *reinterpret_cast<u32*>(out + column) = pack2<T>(lo, hi);
            } else {
                out[column] = from_f32<T>(lo);
                out[column + 1] = from_f32<T>(hi);
            }
        }
    }
}

#define PREFILL(T, D)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) attention_prefill_##T##_##D(AttentionArgs args) {      \
        prefill<T, D>(args);                                                                                           \
    }
PREFILL(f16, 64)
PREFILL(f16, 128)
PREFILL(f16, 256)
PREFILL(bf16, 64)
PREFILL(bf16, 128)
PREFILL(bf16, 256)
