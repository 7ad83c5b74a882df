// Sampling of the rows of a batch that min-p or typical-p narrow; one block a row, with registers for it.
//
// Min-p is a cut at a weight. Typical-p keeps what is closest to the mean logit of the candidates: there a token's information
// equals the entropy. Its threshold is found by histograms of the distance's bits.
#define SAMPLING_THREADS 512
#include "sampling.cuh"

__device__ __noinline__ u64 mass_of(const Row& row, Cut cut, Scratch& s) {
    u64 mass = 0;
    each(row, [&](int id, float x) {
        if (cut.keeps(key_of(x), id)) mass += row.mass(x);
    });
    return reduce<add>(mass, s);
}

// What min-p leaves of a cut: weights of at least `min_p`, the maximum's among them.
__device__ __noinline__ Cut cut_weights(const Row& row, Cut cut, float min_p, Scratch& s) {
    u64 low = 0;
    each(row, [&](int id, float x) {
        u32 key = key_of(x);
        if (cut.keeps(key, id) && row.weight(x) >= min_p) low = greater(low, u64(~key));
    });
    u32 least = ~u32(reduce<greater>(low, s));
    return {least, least == cut.key ? cut.last : 0x7fffffff};
}

// The most typical tokens of a cut: their logits lie closer to `center` than `distance`, or as close with an id up to
// `last`.
struct Typical {
    float center;
    u32 distance;
    int last;
    __device__ __forceinline__ u32 distance_of(float x) const { return __float_as_uint(fabsf(x - center)); }
    __device__ __forceinline__ bool keeps(float x, int id) const {
        u32 d = distance_of(x);
        return d < distance || (d == distance && id <= last);
    }
};

// The mean logit of a cut that holds `mass`.
__device__ __noinline__ float mean_logit(const Row& row, Cut cut, u64 mass, Scratch& s) {
    u64 below = 0;
    each(row, [&](int id, float x) {
        if (cut.keeps(key_of(x), id) && row.mass(x)) below += __float2ull_rn(row.weight(x) * (row.max - x) * ONE);
    });
    return row.max - float(double(reduce<add>(below, s)) / double(mass));
}

// Draws from the smallest set of the most typical tokens with a share of `typical_p` of the mass of a cut.
__device__ __noinline__ Drawn draw_typical(const Row& row, const RowParams& p, Cut cut, u64 mass, Scratch& s) {
    Typical typical = {mean_logit(row, cut, mass, s), 0, 0x7fffffff};
    u64 wanted = share_of(mass, p.typical_p);
    // A few bits of the distance at a time, from the highest on; the sign is 0.
    u64 before = 0, here = mass;
    u32 fixed = 0, above = 0;
    for (int shift = 31 - BIN_BITS; above != ~0u; shift = max(0, shift - BIN_BITS)) {
        u32 bins = shift == 0 ? ~above : BINS - 1;
        clear_bins(s);
        each(row, [&](int id, float x) {
            u32 d = typical.distance_of(x);
            if ((d & above) != fixed || !cut.keeps(key_of(x), id)) return;
            u64 m = row.mass(x);
            if (m) atomicAdd(&s.bins[d >> shift & bins], m);
        });
        find_bin(wanted - before, s);
        fixed |= u32(s.found[0]) << shift;
        before += s.found[1];
        here = s.found[2];
        above = ~0u << shift;
        __syncthreads();
    }
    typical.distance = fixed;
    mass = before + here;
    if (wanted < mass) {
        auto ties = [&](int id, float x) -> u64 {
            return typical.distance_of(x) == fixed && cut.keeps(key_of(x), id) ? row.mass(x) : 0;
        };
        typical.last = locate(row, wanted - before - 1, s, ties);
        u64 kept = 0;
        each(row, [&](int id, float x) { kept += id <= typical.last ? ties(id, x) : 0; });
        mass = before + reduce<add>(kept, s);
    }
    int id = locate(row, __umul64hi(mass, random_bits(p) << 11), s, [&](int id, float x) -> u64 {
        return cut.keeps(key_of(x), id) && typical.keeps(x, id) ? row.mass(x) : 0;
    });
    return {id, mass};
}

__device__ __noinline__ Drawn draw_narrowed(const Row& row, const RowParams& p, Scratch& s) {
    Cut cut = {0, 0x7fffffff};
    u64 mass;
    if (p.top_k > 0 && p.top_k < u32(row.vocab)) cut = select<false>(row, cut, p.top_k, mass, s);
    if (p.min_p > 0.0f) cut = cut_weights(row, cut, p.min_p, s);
    mass = mass_of(row, cut, s);
    if (p.top_p < 1.0f) cut = select<true>(row, cut, share_of(mass, p.top_p), mass, s);
    if (p.typical_p < 1.0f) return draw_typical(row, p, cut, mass, s);
    u64 target = __umul64hi(mass, random_bits(p) << 11);
    int id = locate(row, target, s, [&](int id, float x) { return cut.keeps(key_of(x), id) ? row.mass(x) : 0; });
    return {id, mass};
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_narrowed(SampleArgs a) {
    __shared__ Scratch s;
    RowParams p = a.params[blockIdx.x];
    if (!(p.flags & NARROWED)) return;
    choose(a, p, s, [&](const Row& row) { return draw_narrowed(row, p, s); });
}
