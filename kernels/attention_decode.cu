// Paged attention of short chunks (at most 16 packed query rows): the tokens of a sequence are shared out.
//
// Launch: grid (splits, K, S), 4 warps. A split takes a range of the sequence's tokens; its warps take slices of 16
// tokens in turn, each with a pipeline and a running softmax of its own, so that nothing but the end synchronizes the
// block. Sequences with more rows end at once. With several splits, combine_* joins them: grid (S * K, rows).
// attention_any_* and attention_wide_*: every type, head sizes up to 256 and 1,024, keys that are values, too; one warp a
// query head; grid (longest chunk, H, S).
// Source: flash-decoding (Dao et al.).
#include "attention.cuh"

constexpr int WARPS = 4, SLICE = 16;

// Slices of a warp in flight: with 228 KB of shared memory two blocks fit a multiprocessor (one at D = 256), with 100 KB
// one does.
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
template <int D> constexpr int STAGES = D <= 64 ? 4 : 2;
#else
template <int D> constexpr int STAGES = D <= 64 ? 4 : 3;
#endif
template <int D> constexpr int SLICE_BYTES = SLICE* ROW<D> * 2;

struct TokenRange {
    int begin, end;
};

// Tokens of one split: ranges are whole multiples of what the block's warps take at once.
__device__ __forceinline__ TokenRange split_range(const AttentionArgs& a, const SequenceRows& s, int split) {
    int first = first_visible(a, s.context - s.queries) / SLICE * SLICE;
    int share = (s.context - first + a.splits - 1) / a.splits;
    share = (share + WARPS * SLICE - 1) / (WARPS * SLICE) * (WARPS * SLICE);
    int begin = first + split * share;
    return {begin, min(begin + share, s.context)};
}

// Starts copying the slice of 16 tokens at `first`. Lane l < 16 holds the block of token first + l.
template <typename T, int D>
__device__ __forceinline__ void load_slice(const AttentionArgs& a, int kv_head, int first, int end, int lane_block,
                                           u32 keys, int lane) {
    constexpr int CHUNKS = D / 8;
    int block_mask = (1 << a.block_shift) - 1;
    i64 head_elements = i64(a.head_dim) << a.block_shift;
    u32 values = keys + SLICE_BYTES<D>;
#pragma unroll
    for (int p = 0; p < SLICE * CHUNKS / 32; p++) {
        int i = lane + p * 32, row = i / CHUNKS, column = i % CHUNKS * 8;
        int token = first + row;
        i64 block = __shfl_sync(0xffffffffu, lane_block, row);
        bool valid = token < end && column < a.head_dim;
        const T* from = static_cast<const T*>(a.cache) + (block * 2 * a.kv_heads + kv_head) * head_elements +
                        (token & block_mask) * a.head_dim + (valid ? column : 0);
        u32 at = (row * ROW<D> + column) * 2;
        copy_async_16(keys + at, from, valid);
        copy_async_16(values + at, from + a.kv_heads * head_elements, valid);
    }
}

template <typename T, int D> __device__ __forceinline__ void decode(const AttentionArgs& a) {
    constexpr int COLUMN_TILES = D / 8, STEPS = D / 16, DEPTH = STAGES<D>;
    constexpr bool KEEP_QUERIES = D <= 128;
    constexpr int PIPELINE_BYTES = WARPS * DEPTH * 2 * SLICE_BYTES<D>;
    extern __shared__ __align__(16) char shared[];

    join_chain();
    int split = blockIdx.x, kv_head = blockIdx.y, s_index = blockIdx.z;
    SequenceRows s = sequence_rows(a, s_index);
    if (s.rows > DECODE_ROWS || s.rows <= 0) return;
    TokenRange range = split_range(a, s, split);

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    u32 pipeline = shared_address(shared) + warp * DEPTH * 2 * SLICE_BYTES<D>;
    u32 queries = shared_address(shared) + PIPELINE_BYTES;
    load_queries<T, D, DECODE_ROWS>(a, s, kv_head, 0, queries, threadIdx.x, WARPS * 32);
    copy_async_commit();

    // A warp's slices lie WARPS * SLICE tokens apart. Block numbers are read one slice ahead of their use.
    const int* table = a.block_tables + s_index * a.table_stride;
    int mine = range.begin + warp * SLICE;
    int slices = mine < range.end ? (range.end - mine + WARPS * SLICE - 1) / (WARPS * SLICE) : 0;
    auto slice_token = [&](int i) { return mine + i * WARPS * SLICE; };
    auto block_of = [&](int i) {
        int token = min(slice_token(i) + lane % 16, s.context - 1);
        return i < slices ? table[token >> a.block_shift] : 0;
    };
    int lane_block = block_of(0);
#pragma unroll
    for (int i = 0; i < DEPTH - 1; i++) {
        if (i < slices) {
            u32 stage = pipeline + i * 2 * SLICE_BYTES<D>;
            load_slice<T, D>(a, kv_head, slice_token(i), range.end, lane_block, stage, lane);
        }
        lane_block = block_of(i + 1);
        copy_async_commit();
    }
    copy_async_wait<DEPTH - 1>();
    __syncthreads();
    u32 q[KEEP_QUERIES ? STEPS : 1][4];
    if constexpr (KEEP_QUERIES) {
#pragma unroll
        for (int k = 0; k < STEPS; k++) left_operand<D>(q[k], queries, k, lane);
    }
    int position[2];
#pragma unroll
    for (int h = 0; h < 2; h++) position[h] = s.context - s.queries + min(g + 8 * h, s.rows - 1) / s.group;
    float slope[2] = {slope_of(a, head_of_row(a, kv_head, g)), slope_of(a, head_of_row(a, kv_head, g + 8))};

    RunningSoftmax softmax;
    softmax.init();
    float value[COLUMN_TILES][4] = {};
    for (int i = 0; i < slices; i++) {
        copy_async_wait<DEPTH - 2>();
        __syncwarp();
        int ahead = i + DEPTH - 1;
        if (ahead < slices) {
            u32 stage = pipeline + ahead % DEPTH * 2 * SLICE_BYTES<D>;
            load_slice<T, D>(a, kv_head, slice_token(ahead), range.end, lane_block, stage, lane);
        }
        lane_block = block_of(ahead + 1);
        copy_async_commit();

        u32 keys = pipeline + i % DEPTH * 2 * SLICE_BYTES<D>, values = keys + SLICE_BYTES<D>;
        float score[2][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            u32 loaded[4], right[4];
            if constexpr (!KEEP_QUERIES) left_operand<D>(loaded, queries, k, lane);
            u32(&left)[4] = KEEP_QUERIES ? q[KEEP_QUERIES ? k : 0] : loaded;
            key_operand<D>(right, keys, 0, k, lane);
            mma_16x8x16<T>(score[0], left[0], left[1], left[2], left[3], right[0], right[1]);
            mma_16x8x16<T>(score[1], left[0], left[1], left[2], left[3], right[2], right[3]);
        }
#pragma unroll
        for (int t = 0; t < 2; t++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int token = slice_token(i) + t * 8 + c * 2 + e % 2, seen_from = position[e / 2];
                bool visible = token <= seen_from && token >= first_visible(a, seen_from) && token < range.end;
                float there = scaled_score(a, score[t][e], slope[e / 2] * (token - seen_from));
                score[t][e] = visible ? there : negative_infinity();
            }
        }
        softmax.update(score, value);
        u32 p0 = pack2<T>(score[0][0], score[0][1]), p1 = pack2<T>(score[0][2], score[0][3]);
        u32 p2 = pack2<T>(score[1][0], score[1][1]), p3 = pack2<T>(score[1][2], score[1][3]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 right[4];
            value_operand<D>(right, values, 0, n, lane);
            mma_16x8x16<T>(value[2 * n], p0, p1, p2, p3, right[0], right[1]);
            mma_16x8x16<T>(value[2 * n + 1], p0, p1, p2, p3, right[2], right[3]);
        }
    }

    // Joins the warps through the shared memory of the pipelines: [WARPS][16][D] values, [WARPS][16] maxima and sums.
    copy_async_wait<0>();
    __syncthreads();
    float* values = reinterpret_cast<float*>(shared);
    float* maxima = values + WARPS * DECODE_ROWS * D;
    float* sums = maxima + WARPS * DECODE_ROWS;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = warp * DECODE_ROWS + g + 8 * h;
        float total = softmax.total(h);
        if (c == 0) maxima[row] = softmax.maximum[h], sums[row] = total;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            *reinterpret_cast<float2*>(values + row * D + n * 8 + c * 2) =
                make_float2(value[n][2 * h], value[n][2 * h + 1]);
        }
    }
    __syncthreads();
    i64 slot = (i64(s_index) * a.kv_heads + kv_head) * a.splits + split;
    for (int row = warp; row < s.rows; row += WARPS) {
        float maximum = negative_infinity(), sum = 0.0f, weight[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++) maximum = fmaxf(maximum, maxima[w * DECODE_ROWS + row]);
        float base = maximum == negative_infinity() ? 0.0f : maximum;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            weight[w] = exp2_fast(maxima[w * DECODE_ROWS + row] - base);
            sum += weight[w] * sums[w * DECODE_ROWS + row];
        }
        if (a.splits == 1) sum += sink_weight(a, head_of_row(a, kv_head, row), base);
        float factor = a.splits > 1 ? 1.0f : (sum > 0.0f ? 1.0f / sum : 0.0f);
        for (int column = lane; column < a.head_dim; column += 32) {
            float y = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) y += weight[w] * values[(w * DECODE_ROWS + row) * D + column];
            if (a.splits > 1) {
                a.partial_values[(slot * DECODE_ROWS + row) * a.head_dim + column] = y;
            } else {
                output_row<T>(a, s, kv_head, row)[column] = from_f32<T>(y * factor);
            }
        }
        if (a.splits > 1 && lane == 0) {
            a.partial_weights[(slot * DECODE_ROWS + row) * 2] = maximum;
            a.partial_weights[(slot * DECODE_ROWS + row) * 2 + 1] = sum;
        }
    }
}

#define DECODE(T, D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) attention_decode_##T##_##D(AttentionArgs args) {          \
        decode<T, D>(args);                                                                                            \
    }
DECODE(f16, 64)
DECODE(f16, 128)
DECODE(f16, 256)
DECODE(bf16, 64)
DECODE(bf16, 128)
DECODE(bf16, 256)

// Most splits of a sequence.
constexpr int MAX_SPLITS = 128;

template <typename T> __device__ __forceinline__ void combine(const AttentionArgs& a) {
    __shared__ float weight[MAX_SPLITS];
    join_chain();
    int s_index = blockIdx.x / a.kv_heads, kv_head = blockIdx.x % a.kv_heads, row = blockIdx.y;
    SequenceRows s = sequence_rows(a, s_index);
    if (s.rows > DECODE_ROWS || row >= s.rows) return;
    i64 first = i64(blockIdx.x) * a.splits * DECODE_ROWS + row;
    if (threadIdx.x < 32) {
        float maxima[MAX_SPLITS / 32], sums[MAX_SPLITS / 32], maximum = negative_infinity(), sum = 0.0f;
#pragma unroll
        for (int j = 0; j < MAX_SPLITS / 32; j++) {
            int i = threadIdx.x + 32 * j;
            bool there = i < a.splits;
            const float* from = a.partial_weights + (first + i64(there ? i : 0) * DECODE_ROWS) * 2;
            maxima[j] = there ? from[0] : negative_infinity();
            sums[j] = there ? from[1] : 0.0f;
            maximum = fmaxf(maximum, maxima[j]);
        }
        maximum = warp_max(maximum);
        float base = maximum == negative_infinity() ? 0.0f : maximum;
#pragma unroll
        for (int j = 0; j < MAX_SPLITS / 32; j++) {
            maxima[j] = exp2_fast(maxima[j] - base);
            sum += maxima[j] * sums[j];
        }
        sum = warp_sum(sum) + sink_weight(a, head_of_row(a, kv_head, row), base);
        float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
        for (int j = 0; j < MAX_SPLITS / 32; j++) weight[threadIdx.x + 32 * j] = maxima[j] * factor;
    }
    __syncthreads();
    T* out = output_row<T>(a, s, kv_head, row);
    for (int column = threadIdx.x; column < a.head_dim; column += blockDim.x) {
        const float* from = a.partial_values + first * a.head_dim + column;
        i64 step = i64(DECODE_ROWS) * a.head_dim;
        float y = 0.0f;
#pragma unroll 8
        for (int i = 0; i < a.splits; i++) y += weight[i] * from[i * step];
        out[column] = from_f32<T>(y);
    }
}

extern "C" __global__ void __launch_bounds__(128) attention_combine_f16(AttentionArgs args) { combine<f16>(args); }
extern "C" __global__ void __launch_bounds__(128) attention_combine_bf16(AttentionArgs args) { combine<bf16>(args); }

template <typename T, int ANY_COLUMNS> __device__ __forceinline__ void attention_any(const AttentionArgs& a) {
    int query = blockIdx.x, head = blockIdx.y, s_index = blockIdx.z, lane = threadIdx.x;
    SequenceRows s = sequence_rows(a, s_index);
    if (query >= s.queries) return;
    int kv_head = head / s.group, position = s.context - s.queries + query;
    i64 row = s.first_query + query;
    const T* q = static_cast<const T*>(a.q) + row * a.q_stride + i64(head) * a.head_dim;
    const T* sink_q = q;
    if (a.sink_q) sink_q = static_cast<const T*>(a.sink_q) + row * a.sink_q_stride + i64(head) * a.head_dim;
    const int* table = a.block_tables + s_index * a.table_stride;
    i64 head_elements = i64(a.head_dim) << a.block_shift;
    int block_mask = (1 << a.block_shift) - 1;
    auto keys_of = [&](int token) {
        i64 block = table[token >> a.block_shift];
        return static_cast<const T*>(a.cache) + (block * a.planes * a.kv_heads + kv_head) * head_elements +
               i64(token & block_mask) * a.head_dim;
    };
    i64 values_after = i64(a.planes - 1) * a.kv_heads * head_elements;

    float maximum = negative_infinity(), sum = 0.0f, value[ANY_COLUMNS] = {}, slope = slope_of(a, head);
    // Sinks first, then the window.
    int visible = first_visible(a, position), sinks = min(a.sink_tokens, visible);
    int end = sinks > 0 ? sinks : position + 1;
    for (int first = sinks > 0 ? 0 : visible; first < end;) {
        int token = first + lane;
        float score = negative_infinity();
        if (token < end) {
            // To a sink, the tokens between it and the window count for nothing.
            const T *k = keys_of(token), *from = token < sinks ? sink_q : q;
            int seen_from = token < sinks ? position - visible + sinks : position;
            float dot = 0.0f;
            for (int d = 0; d < a.head_dim; d++) dot += to_f32(from[d]) * to_f32(k[d]);
            score = scaled_score(a, dot, slope * (token - seen_from));
        }
        float raised = fmaxf(maximum, warp_max(score));
        float factor = exp2_fast(maximum - raised), weight = exp2_fast(score - raised);
        maximum = raised;
        sum = sum * factor + warp_sum(weight);
#pragma unroll
        for (int i = 0; i < ANY_COLUMNS; i++) value[i] *= factor;
        int tokens = min(32, end - first);
        for (int t = 0; t < tokens; t++) {
            const T* v = keys_of(first + t) + values_after;
            float w = __shfl_sync(0xffffffffu, weight, t);
#pragma unroll
            for (int i = 0; i < ANY_COLUMNS; i++) {
                int d = lane + 32 * i;
                if (d < a.head_dim) value[i] += w * to_f32(v[d]);
            }
        }
        first += 32;
        if (first >= end && end <= position) {
            first = visible;
            end = position + 1;
        }
    }
    T* out = static_cast<T*>(a.out) + i64(s.first_query + query) * a.out_stride + i64(head) * a.head_dim;
    sum += sink_weight(a, head, maximum == negative_infinity() ? 0.0f : maximum);
    float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int i = 0; i < ANY_COLUMNS; i++) {
        int d = lane + 32 * i;
        if (d < a.head_dim) out[d] = from_f32<T>(value[i] * factor);
    }
}

#define ANY(T)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(32) attention_any_##T(AttentionArgs args) {                           \
        attention_any<T, 256 / 32>(args);                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(32) attention_wide_##T(AttentionArgs args) {                          \
        attention_any<T, 1024 / 32>(args);                                                                             \
    }
ANY(float)
ANY(f16)
ANY(bf16)
