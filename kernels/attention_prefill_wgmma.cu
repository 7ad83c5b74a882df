// Paged causal attention of long chunks on Hopper: the tensor cores' warpgroup instructions.
//
// Without linear biases. Launch: as attention_prefill.cu: grid (tiles of 128 packed query rows, K, S), two warpgroups of 64 rows each. Queries
// stay in registers. Keys and values pass through three shared-memory stages of 64 tokens, filled by asynchronous copies;
// one barrier a tile. Within a warpgroup the scores of tile j are computed while the values of tile j - 1 are added, and
// the softmax of tile j runs while the latter goes on.
// Tile layout: columns in groups of 64, a group's row of 128 bytes a token, 16-byte chunks exchanged by the token's low
// three bits (the 128-byte swizzle of the matrix descriptors).
// Source: Shah et al., FlashAttention-3, section 3.2; PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
#include "attention.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int THREADS = 256, TILE_ROWS = 128, TOKENS = 64, STAGES = 3;

template <int D> constexpr int TILE_BYTES = TOKENS* D * 2;
constexpr int GROUP_BYTES = TOKENS * 128;

#define ACCUMULATORS(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])

// d += a · b, or d = a · b without `add`: a [64, 16] in registers, b in shared memory as its descriptor says.
#define WGMMA_64(T, NAME)                                                                                             \
    template <int TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void wgmma(T, float (&d)[8][4], const u32 (&a)[4], u64 b, int add) {                   \
        asm volatile("{.reg .pred p;\n setp.ne.b32 p, %37, 0;\n"                                                      \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {"                                 \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                 \
                     "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;}\n"                                                 \
                     : ACCUMULATORS(d, 0), ACCUMULATORS(d, 1), ACCUMULATORS(d, 2), ACCUMULATORS(d, 3),                \
                     ACCUMULATORS(d, 4), ACCUMULATORS(d, 5), ACCUMULATORS(d, 6), ACCUMULATORS(d, 7)                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));                \
    }
#define WGMMA_128(T, NAME)                                                                                            \
    template <int TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void wgmma(T, float (&d)[16][4], const u32 (&a)[4], u64 b, int add) {                  \
        asm volatile("{.reg .pred p;\n setp.ne.b32 p, %69, 0;\n"                                                      \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {"                                \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                 \
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;}\n"                                                 \
                     : ACCUMULATORS(d, 0), ACCUMULATORS(d, 1), ACCUMULATORS(d, 2), ACCUMULATORS(d, 3),                \
                     ACCUMULATORS(d, 4), ACCUMULATORS(d, 5), ACCUMULATORS(d, 6), ACCUMULATORS(d, 7),                  \
                     ACCUMULATORS(d, 8), ACCUMULATORS(d, 9), ACCUMULATORS(d, 10), ACCUMULATORS(d, 11),                \
                     ACCUMULATORS(d, 12), ACCUMULATORS(d, 13), ACCUMULATORS(d, 14), ACCUMULATORS(d, 15)               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));                \
    }
WGMMA_64(f16, "f16")
WGMMA_64(bf16, "bf16")
WGMMA_128(f16, "f16")
WGMMA_128(bf16, "bf16")

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Describes a tile with the 128-byte swizzle. `next_group`: bytes from a group of 64 columns to the next, where columns
// are the operand's N; eight tokens are 1,024 bytes.
__device__ __forceinline__ u64 descriptor(u32 address, int next_group) {
    return u64((address & 0x3ffff) >> 4) | u64(next_group >> 4) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

// What a thread copies of each tile: one 16-byte chunk of the keys and one of the values of every `PASS`th token.
template <typename T, int D> struct TileLoader {
    static constexpr int CHUNKS = D / 8, PASS = THREADS / CHUNKS;
    // The thread's column in the first token of block 0.
    const T* column;
    const int* table;
    i64 value_plane;
    u32 block_elements, to;
    int row, end, block_shift, head_dim;
    bool valid_column;

    __device__ __forceinline__ TileLoader(const AttentionArgs& a, int s_index, int kv_head, int end, u32 base)
        : end(end), block_shift(a.block_shift), head_dim(a.head_dim) {
        int chunk = threadIdx.x % CHUNKS;
        row = threadIdx.x / CHUNKS;
        valid_column = chunk * 8 < a.head_dim;
        u32 head_elements = u32(a.head_dim) << a.block_shift;
        block_elements = 2 * a.kv_heads * head_elements;
        value_plane = i64(a.kv_heads) * head_elements;
        column = static_cast<const T*>(a.cache) + i64(kv_head) * head_elements + (valid_column ? chunk * 8 : 0);
        table = a.block_tables + s_index * a.table_stride;
        to = base + chunk / 8 * GROUP_BYTES + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
    }

    // Starts copying the tokens from `first` on to the stage `offset` bytes behind the base; zeros past the end.
    __device__ __forceinline__ void start(int first, u32 offset) const {
        int mask = (1 << block_shift) - 1;
#pragma unroll
        for (int i = 0; i < TOKENS / PASS; i++) {
            int wanted = first + row + i * PASS, token = min(wanted, end - 1);
            bool valid = wanted < end && valid_column;
            const T* from = column + u64(u32(table[token >> block_shift])) * block_elements + (token & mask) * head_dim;
            u32 at = to + offset + i * PASS * 128;
            copy_async_16(at, from, valid);
            copy_async_16(at + TILE_BYTES<D>, from + value_plane, valid);
        }
    }
};

template <typename T, int D> __device__ __forceinline__ void prefill_wgmma(const AttentionArgs& a) {
    constexpr int SCORE_TILES = TOKENS / 8, COLUMN_TILES = D / 8, STEPS = D / 16;
    extern __shared__ __align__(1024) char shared[];

    int kv_head = blockIdx.y, s_index = blockIdx.z;
    SequenceRows s = sequence_rows(a, s_index);
    int first_row = (gridDim.x - 1 - blockIdx.x) * TILE_ROWS;
    if (s.rows <= DECODE_ROWS || first_row >= s.rows) return;

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    u32 base = shared_address(shared);
    load_queries<T, D, TILE_ROWS>(a, s, kv_head, first_row, base, threadIdx.x, THREADS);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    u32 q[STEPS][4];
#pragma unroll
    for (int k = 0; k < STEPS; k++) left_operand<D>(q[k], base + warp * 16 * ROW<D> * 2, k, lane);
    __syncthreads();

    int prefix = s.context - s.queries;
    int last_row = min(first_row + TILE_ROWS, s.rows) - 1;
    int begin = first_visible(a, prefix + first_row / s.group) / TOKENS * TOKENS;
    int end = prefix + last_row / s.group + 1;
    int position[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        position[h] = prefix + min(first_row + warp * 16 + g + 8 * h, s.rows - 1) / s.group;
    }
    int warp_first = prefix + min(first_row + warp * 16, s.rows - 1) / s.group;
    int warp_last = prefix + min(first_row + warp * 16 + 15, s.rows - 1) / s.group;

    TileLoader<T, D> loader(a, s_index, kv_head, end, base);
    float scale = a.cap_log2 == 0.0f ? a.scale : 1.0f;
    float maximum[2] = {negative_infinity(), negative_infinity()}, sum[2] = {};
    float score[SCORE_TILES][4], value[COLUMN_TILES][4] = {};
    u32 weight[TOKENS / 16][4] = {};

    int tiles = begin < end ? (end - begin + TOKENS - 1) / TOKENS : 0;
    if (tiles > 0) loader.start(begin, 0);
    copy_async_commit();
    int stage = 0;
    u32 last_values = 0;
    for (int j = 0; j < tiles; j++) {
        int first = begin + j * TOKENS;
        u32 keys = base + stage * 2 * TILE_BYTES<D>, values = keys + TILE_BYTES<D>;
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        copy_async_wait<0>();
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        // This tile is there for all, and the stage after it is no longer read by anybody.
        __syncthreads();

        wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            u64 b = descriptor(keys + k / 4 * GROUP_BYTES + k % 4 * 32, 16);
            wgmma<0>(T{}, score, q[k], b, k > 0);
        }
        wgmma_commit();
        if (j > 0) {
#pragma unroll
            for (int t = 0; t < TOKENS / 16; t++) {
                wgmma<1>(T{}, value, weight[t], descriptor(last_values + t * 2048, GROUP_BYTES), 1);
            }
        }
        wgmma_commit();
        // While the tensor cores work.
        if (first + TOKENS < end) loader.start(first + TOKENS, stage * 2 * TILE_BYTES<D>);
        copy_async_commit();
        wgmma_wait<1>();
        last_values = values;

        if (a.cap_log2 != 0.0f) {
#pragma unroll
            for (int t = 0; t < SCORE_TILES; t++) {
#pragma unroll
                for (int e = 0; e < 4; e++) score[t][e] = scaled_score(a, score[t][e]);
            }
        }
        if (first + TOKENS - 1 > warp_first || first < first_visible(a, warp_last)) {
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
        float factor[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = maximum[h];
#pragma unroll
            for (int t = 0; t < SCORE_TILES; t++) m = fmaxf(m, fmaxf(score[t][2 * h], score[t][2 * h + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            float base_score = m == negative_infinity() ? 0.0f : m * scale;
            factor[h] = exp2_fast(maximum[h] * scale - base_score);
            maximum[h] = m;
            float added = 0.0f;
#pragma unroll
            for (int t = 0; t < SCORE_TILES; t++) {
                score[t][2 * h] = exp2_fast(score[t][2 * h] * scale - base_score);
                score[t][2 * h + 1] = exp2_fast(score[t][2 * h + 1] * scale - base_score);
                added += score[t][2 * h] + score[t][2 * h + 1];
            }
            sum[h] = sum[h] * factor[h] + added;
        }
        wgmma_wait<0>();
        // Maxima seldom change behind the first tiles.
        if (__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) value[n][e] *= factor[e / 2];
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS / 16; t++) {
            weight[t][0] = pack2<T>(score[2 * t][0], score[2 * t][1]);
            weight[t][1] = pack2<T>(score[2 * t][2], score[2 * t][3]);
            weight[t][2] = pack2<T>(score[2 * t + 1][0], score[2 * t + 1][1]);
            weight[t][3] = pack2<T>(score[2 * t + 1][2], score[2 * t + 1][3]);
        }
    }
    if (tiles > 0) {
        wgmma_fence();
#pragma unroll
        for (int t = 0; t < TOKENS / 16; t++) {
            wgmma<1>(T{}, value, weight[t], descriptor(last_values + t * 2048, GROUP_BYTES), 1);
        }
        wgmma_commit();
        wgmma_wait<0>();
    }

    bool pairs = reinterpret_cast<u64>(a.out) % 4 == 0 && a.out_stride % 2 == 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = sum[h] + __shfl_xor_sync(0xffffffffu, sum[h], 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        int row = first_row + warp * 16 + g + 8 * h;
        float base_score = maximum[h] == negative_infinity() ? 0.0f : maximum[h] * scale;
        total += sink_weight(a, head_of_row(a, kv_head, row), base_score);
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

#define PREFILL_WGMMA(T, D)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_prefill_wgmma_##T##_##D(AttentionArgs args) {   \
        prefill_wgmma<T, D>(args);                                                                                     \
    }
PREFILL_WGMMA(f16, 64)
PREFILL_WGMMA(f16, 128)
PREFILL_WGMMA(bf16, 64)
PREFILL_WGMMA(bf16, 128)

#endif
