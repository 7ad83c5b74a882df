// Sampling of whole batches from f32 logits, without a sort and without the host.
//
// sample: one block a row; rows that min-p or typical-p narrow are left to sampling_narrow.cu. top_tokens: the same cut by
// rank, then the few that are left are put in order; log-probabilities within the vocabulary. resolve_tokens: takes tokens
// that the host does not know from where earlier steps left them; one thread a token.
#define SAMPLING_THREADS 1024
#include "sampling.cuh"

struct TopArgs {
    const float* logits;
    const float* edited;
    // Or none: all rows, as they are.
    const RowParams* params;
    int* ids;
    float* log_probs;
    i64 logits_stride, edited_stride;
    int vocab, count;
};

struct ResolveArgs {
    int* tokens;
    const int* sampled;
    int count, entries;
};

extern "C" __global__ void resolve_tokens(ResolveArgs a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    int token = a.tokens[i];
    if (token >= 0) return;
    int slot = -1 - token;
    a.tokens[i] = slot < a.entries ? a.sampled[slot] : 0;
}

__device__ __noinline__ Drawn draw(const Row& row, const RowParams& p, Scratch& s) {
    Cut cut = {0, 0x7fffffff};
    u64 kept;
    if (p.top_k > 0 && p.top_k < u32(row.vocab)) cut = select<false>(row, cut, p.top_k, kept, s);
    u64 mass = 0;
    each(row, [&](int id, float x) {
        if (cut.keeps(key_of(x), id)) mass += row.mass(x);
    });
    mass = reduce<add>(mass, s);
    if (p.top_p < 1.0f) {
        cut = select<true>(row, cut, share_of(mass, p.top_p), mass, s);
    }
    u64 target = __umul64hi(mass, random_bits(p) << 11);
    int id = locate(row, target, s, [&](int id, float x) { return cut.keeps(key_of(x), id) ? row.mass(x) : 0; });
    return {id, mass};
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(SampleArgs a) {
    __shared__ Scratch s;
    RowParams p = a.params[blockIdx.x];
    if ((p.flags & (LOG_PROBS - 1)) == SKIP || p.flags & NARROWED) return;
    choose(a, p, s, [&](const Row& row) { return draw(row, p, s); });
}

extern "C" __global__ void __launch_bounds__(THREADS) top_tokens(TopArgs a) {
    __shared__ Scratch s;
    RowParams p = {GREEDY, 1.0f, 0, 1.0f};
    if (a.params) p = a.params[blockIdx.x];
    if ((p.flags & (LOG_PROBS - 1)) == SKIP) return;
    Row row = row_of(a, p);
    int* ids = a.ids + i64(blockIdx.x) * a.count;
    float* log_probs = a.log_probs + i64(blockIdx.x) * a.count;
    u64 not_numbers = find_best(row, s).not_numbers;
    bool none = not_numbers || row.max == -negative_infinity() || row.max == negative_infinity();
    int count = none ? 0 : min(a.count, row.vocab);
    for (int i = count + threadIdx.x; i < a.count; i += THREADS) {
        ids[i] = -1;
        log_probs[i] = negative_infinity();
    }
    if (count == 0) return;
    float log_total = logf(total_weight(row, s));
    Cut cut = {0, 0x7fffffff};
    u64 kept;
    if (count < row.vocab) cut = select<false>(row, cut, count, kept, s);
    // The candidates as in find_best, in any order, then each at its rank.
    if (threadIdx.x == 0) s.found[0] = 0;
    __syncthreads();
    each(row, [&](int id, float x) {
        if (cut.keeps(key_of(x), id)) s.bins[atomicAdd(&s.found[0], 1ull)] = u64(key_of(x)) << 32 | u32(~id);
    });
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += THREADS) {
        u64 own = s.bins[i];
        int rank = 0;
        for (int j = 0; j < count; j++) rank += s.bins[j] > own;
        ids[rank] = int(~u32(own));
        log_probs[rank] = number_of(u32(own >> 32)) - row.max - log_total;
    }
}
