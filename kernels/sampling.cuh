// One row of logits and a block that chooses from it, without a sort: shared by the sampling kernels, which define
// SAMPLING_THREADS.
//
// A pass finds the maximum (greedy ends there). Top-k and top-p are cuts: a threshold that is found by histograms, first of
// the distance to the maximum in 1/64 steps (which spreads a vocabulary over many bins), then of the ordered bits of the
// logits in the one bin that holds the threshold, until a bin is one value. Among equal logits the lowest ids stay. The
// token is drawn in the order of ids. Masses are integers, so that sums do not depend on the order of additions: a row's
// token is the same in every run and every batch.
// Source: the arithmetic of src/decode/sample.rs; Philox4x32-10 of Salmon et al., SC 2011.
#pragma once
#include "prelude.cuh"

constexpr int THREADS = SAMPLING_THREADS, WARPS = THREADS / 32, BINS = 2 * THREADS, BIN_BITS = THREADS == 1024 ? 11 : 10;
static_assert(BINS == 1 << BIN_BITS && WARPS <= 32, "");
constexpr u32 ALL = 0xffffffffu;
// Reads in flight of a thread; with 64 registers the compiler for 10.x spills more than one.
#if __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1200
constexpr int UNROLL = 1, UNROLL_NARROW = 2;
#else
constexpr int UNROLL = 2, UNROLL_NARROW = 8;
#endif
// A weight of 1 as an integer; 2^18 of them still fit.
constexpr float ONE = 17592186044416.0f;

// Rows as src/device/sampling.rs encodes them.
enum Mode : int { SKIP = 0, GREEDY = 1, DRAW = 2, LOG_PROBS = 256, EDITED = 512, NARROWED = 1024 };
enum Status : int { CHOSEN = 0, NOT_NUMBERS = 1, INFINITE = 2, NO_TOKEN = 3 };

struct RowParams {
    int flags;
    float inverse_temperature;
    u32 top_k;
    float top_p;
    u32 seed_low, seed_high, position;
    int slot;
    float min_p, typical_p;
    int unused[2];
};

struct RowResult {
    int number, status;
    float full, candidates;
};

struct SampleArgs {
    const float* logits;
    // Read instead by rows that are edited.
    const float* edited;
    const RowParams* params;
    RowResult* out;
    int* sampled;
    i64 logits_stride, edited_stride;
    int vocab, entries;
};

// ---- one row --------------------------------------------------------------------------------------------------------

struct Row {
    const float* logits;
    int vocab;
    float inverse_temperature, max;

    __device__ __forceinline__ float scaled(float logit) const {
        return bounded(__fmaf_rn(logit, inverse_temperature, 0.0f), logit);  // -0 becomes 0
    }
    __device__ __forceinline__ float weight(float x) const { return expf(x - max); }
    __device__ __forceinline__ u64 mass(float x) const { return __float2ull_rn(weight(x) * ONE); }
};

// Bits that are ordered as the numbers are.
__device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float number_of(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// The candidates that are left: greater than `key`, or equal with an id up to `last`.
struct Cut {
    u32 key;
    int last;
    __device__ __forceinline__ bool keeps(u32 k, int id) const { return k > key || (k == key && id <= last); }
};

template <typename ARGS> __device__ __forceinline__ Row row_of(const ARGS& a, const RowParams& p) {
    const float* logits =
        p.flags & EDITED ? a.edited + blockIdx.x * a.edited_stride : a.logits + blockIdx.x * a.logits_stride;
    return {logits, a.vocab, p.inverse_temperature, 0.0f};
}

// Calls f(id, scaled logit) for the row's elements, shared out over the block.
template <typename F> __device__ __forceinline__ void each(const Row& row, F f) {
    int vectors = (reinterpret_cast<u64>(row.logits) & 15) == 0 ? row.vocab / 4 : 0;
    const float4* four = reinterpret_cast<const float4*>(row.logits);
#pragma unroll UNROLL
    for (int i = threadIdx.x; i < vectors; i += THREADS) {
        float4 x = four[i];
        f(4 * i, row.scaled(x.x));
        f(4 * i + 1, row.scaled(x.y));
        f(4 * i + 2, row.scaled(x.z));
        f(4 * i + 3, row.scaled(x.w));
    }
    for (int i = 4 * vectors + threadIdx.x; i < row.vocab; i += THREADS) f(i, row.scaled(row.logits[i]));
}

// ---- the block ------------------------------------------------------------------------------------------------------

struct Scratch {
    u64 bins[BINS];
    u64 warps[32];
    // Bin or place, what lies before it, what lies in it.
    u64 found[3];
};

__device__ __forceinline__ u64 add(u64 a, u64 b) { return a + b; }
__device__ __forceinline__ u64 greater(u64 a, u64 b) { return a > b ? a : b; }

// What the warp of this lane's number left.
__device__ __forceinline__ u64 warp_value(const Scratch& s) {
    return threadIdx.x % 32 < WARPS ? s.warps[threadIdx.x % 32] : 0;
}

// Joins a value of each thread, in every thread.
template <u64 (*JOIN)(u64, u64)> __device__ __forceinline__ u64 reduce(u64 x, Scratch& s) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x = JOIN(x, __shfl_xor_sync(ALL, x, d));
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_value(s);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x = JOIN(x, __shfl_xor_sync(ALL, x, d));
    __syncthreads();
    return x;
}

__device__ __forceinline__ u64 warp_scan(u64 x) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        u64 y = __shfl_up_sync(ALL, x, d);
        if (lane >= d) x += y;
    }
    return x;
}

// Sum over the threads before this one.
__device__ __forceinline__ u64 sum_before(u64 x, Scratch& s) {
    u64 through = warp_scan(x);
    if (threadIdx.x % 32 == 31) s.warps[threadIdx.x / 32] = through;
    __syncthreads();
    u64 warp = warp_value(s);
    u64 warps_before = __shfl_sync(ALL, warp_scan(warp) - warp, threadIdx.x / 32);
    __syncthreads();
    return warps_before + through - x;
}

// The bin in which the sum from bin 0 on reaches `wanted` (1 or more, and no more than all bins hold).
__device__ __forceinline__ void find_bin(u64 wanted, Scratch& s) {
    __syncthreads();
    u64 first = s.bins[2 * threadIdx.x], second = s.bins[2 * threadIdx.x + 1];
    u64 before = sum_before(first + second, s);
    if (before < wanted && wanted <= before + first + second) {
        bool in_second = wanted > before + first;
        s.found[0] = 2 * threadIdx.x + in_second;
        s.found[1] = in_second ? before + first : before;
        s.found[2] = in_second ? second : first;
    }
    __syncthreads();
}

__device__ __forceinline__ void clear_bins(Scratch& s) {
    __syncthreads();
    s.bins[threadIdx.x] = 0;
    s.bins[threadIdx.x + THREADS] = 0;
    __syncthreads();
}

// The first id, in the order of ids, at which the sum of value(id, x) exceeds `target`.
template <typename F> __device__ __noinline__ int locate(const Row& row, u64 target, Scratch& s, F value) {
    int begin = 0, end = row.vocab, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    while (end - begin > THREADS) {
        int share = (end - begin + WARPS - 1) / WARPS;
        int from = min(begin + warp * share, end), to = min(from + share, end);
        u64 sum = 0;
#pragma unroll UNROLL_NARROW
        for (int i = from + lane; i < to; i += 32) sum += value(i, row.scaled(row.logits[i]));
        sum = warp_scan(sum);
        if (lane == 31) s.warps[warp] = sum;
        __syncthreads();
        u64 part = warp_value(s), through = warp_scan(part);
        u32 past = __ballot_sync(ALL, through > target);
        int chosen = past ? __ffs(past) - 1 : WARPS - 1;
        target -= __shfl_sync(ALL, through - part, chosen);
        begin = min(begin + chosen * share, end);
        end = min(begin + share, end);
        __syncthreads();
    }
    int id = begin + threadIdx.x;
    u64 own = id < end ? value(id, row.scaled(row.logits[id])) : 0;
    if (threadIdx.x == 0) s.found[0] = max(end - 1, 0);
    u64 before = sum_before(own, s);
    if (before <= target && target < before + own) s.found[0] = id;
    __syncthreads();
    int found = s.found[0];
    __syncthreads();
    return found;
}

// ---- cuts -----------------------------------------------------------------------------------------------------------

// Distance to the maximum in 1/64, the last bin for all far away.
__device__ __forceinline__ int distance_bin(const Row& row, float x) {
    return min(__float2int_rz((row.max - x) * 64.0f), BINS - 1);
}

// The smallest cut within `cut` that holds `wanted` candidates, or a mass of `wanted`. `kept`: what it holds.
template <bool MASS> __device__ __noinline__ Cut select(const Row& row, Cut cut, u64 wanted, u64& kept, Scratch& s) {
    auto value = [&](float x) -> u64 { return MASS ? row.mass(x) : 1; };
    auto count = [&](int bin, float x) {
        u64 v = value(x);
        if (v) atomicAdd(&s.bins[bin], v);
    };
    clear_bins(s);
    // What all rows have many of would meet in one bin, an addition after the other: what is far away, and what cannot come.
    u64 near = 0, far = 0, impossible = 0;
    each(row, [&](int id, float x) {
        if (!cut.keeps(key_of(x), id)) return;
        int bin = distance_bin(row, x);
        if (bin < BINS - 1) {
            near++;
            count(bin, x);
        } else if (MASS || x != negative_infinity()) {
            far += value(x);
        } else {
            impossible++;
        }
    });
    far = reduce<add>(far, s);
    if (threadIdx.x == 0) s.bins[BINS - 1] = far;
    if constexpr (!MASS) {
        u64 possible = reduce<add>(near, s) + far;
        impossible = reduce<add>(impossible, s);
        if (wanted > possible) {
            kept = wanted;
            u32 key = key_of(negative_infinity());
            u64 missing = wanted - possible;
            int last = cut.key == key ? cut.last : 0x7fffffff;
            if (missing < impossible) {
                last = locate(row, missing - 1, s, [&](int, float x) -> u64 { return key_of(x) == key; });
            }
            return {key, last};
        }
    }
    find_bin(wanted, s);
    int bin = int(s.found[0]);
    u64 before = s.found[1], here = s.found[2];
    // Smallest (as its complement) and greatest key of the bin.
    u64 low = 0, high = 0;
    each(row, [&](int id, float x) {
        u32 key = key_of(x);
        if (cut.keeps(key, id) && distance_bin(row, x) == bin && (MASS || x != negative_infinity())) {
            low = greater(low, u64(~key));
            high = greater(high, u64(key));
        }
    });
    u32 least = ~u32(reduce<greater>(low, s)), most = u32(reduce<greater>(high, s));
    while (least < most) {
        int shift = max(0, 32 - __clz(most - least) - BIN_BITS);
        clear_bins(s);
        each(row, [&](int id, float x) {
            u32 key = key_of(x);
            if (key >= least && key <= most && cut.keeps(key, id)) count((most - key) >> shift, x);
        });
        find_bin(wanted - before, s);
        most -= u32(s.found[0]) << shift;
        least = max(least, shift ? most - ((1u << shift) - 1) : most);
        before += s.found[1];
        here = s.found[2];
    }
    __syncthreads();
    u64 each_tie = value(number_of(most));
    u64 missing = (wanted - before + each_tie - 1) / each_tie;
    kept = before + missing * each_tie;
    Cut result = {most, cut.key == most ? cut.last : 0x7fffffff};
    if (missing * each_tie < here) {
        result.last = locate(row, missing - 1, s, [&](int, float x) -> u64 { return key_of(x) == most; });
    }
    return result;
}

// ---- drawing --------------------------------------------------------------------------------------------------------

// 53 random bits of the seed and the position.
__device__ __forceinline__ u64 random_bits(const RowParams& p) {
    u32 c0 = p.position, c1 = 0, c2 = 0, c3 = 0, k0 = p.seed_low, k1 = p.seed_high;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        if (round > 0) k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
        u64 first = u64(c0) * 0xd2511f53u, second = u64(c2) * 0xcd9e8d57u;
        c0 = u32(second >> 32) ^ c1 ^ k0;
        c1 = u32(second);
        c2 = u32(first >> 32) ^ c3 ^ k1;
        c3 = u32(first);
    }
    return (u64(c1) << 32 | c0) >> 11;
}

struct Drawn {
    int id;
    u64 mass;
};

__device__ __forceinline__ u64 share_of(u64 mass, float share) {
    u64 wanted = u64(ceil(double(mass) * double(share)));
    return wanted < 1 ? 1 : wanted > mass ? mass : wanted;
}

__device__ __forceinline__ void finish(const SampleArgs& a, const RowParams& p, RowResult result) {
    if (threadIdx.x != 0) return;
    a.out[blockIdx.x] = result;
    if (p.slot >= 0 && p.slot < a.entries) a.sampled[p.slot] = result.status == CHOSEN ? result.number : 0;
}

struct Best {
    int id;
    u64 not_numbers;
};

// Finds the row's maximum, the lowest id among equals, and counts what is no number.
__device__ __forceinline__ Best find_best(Row& row, Scratch& s) {
    // Key in the upper half, complement of the id in the lower: the greatest, and of equals the first.
    u64 best = 0, not_numbers = 0;
    each(row, [&](int id, float x) {
        if (x != x) {
            not_numbers++;
        } else {
            best = greater(best, u64(key_of(x)) << 32 | u32(~id));
        }
    });
    best = reduce<greater>(best, s);
    not_numbers = reduce<add>(not_numbers, s);
    row.max = number_of(u32(best >> 32));
    return {int(~u32(best)), not_numbers};
}

// Sum of the weights of the whole vocabulary.
__device__ __forceinline__ float total_weight(const Row& row, Scratch& s) {
    float total = 0.0f;
    each(row, [&](int, float x) { total += row.weight(x); });
    __syncthreads();
    total = block_sum(total, reinterpret_cast<float*>(s.bins));
    __syncthreads();
    return total;
}

// Chooses a row's token; draw() finds one and the mass of the candidates.
template <typename FIND>
__device__ __forceinline__ void choose(const SampleArgs& a, const RowParams& p, Scratch& s, FIND draw) {
    int mode = p.flags & (LOG_PROBS - 1);
    Row row = row_of(a, p);
    auto [id, not_numbers] = find_best(row, s);
    if (not_numbers) return finish(a, p, {int(not_numbers), NOT_NUMBERS, 0.0f, 0.0f});
    if (row.max == -negative_infinity()) return finish(a, p, {id, INFINITE, 0.0f, 0.0f});
    if (row.max == negative_infinity()) return finish(a, p, {0, NO_TOKEN, 0.0f, 0.0f});
    u64 mass = 0;
    if (mode == DRAW) {
        Drawn drawn = draw(row);
        id = drawn.id;
        mass = drawn.mass;
    }
    float full = 0.0f, candidates = 0.0f;
    if (p.flags & LOG_PROBS) {
        float log_weight = row.scaled(row.logits[id]) - row.max;
        full = log_weight - logf(total_weight(row, s));
        candidates = mode == DRAW ? log_weight - logf(float(mass) / ONE) : full;
    }
    finish(a, p, {id, CHOSEN, full, candidates});
}
