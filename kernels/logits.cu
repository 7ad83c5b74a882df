// What a request changes in its logits before a token is chosen, for whole batches with a record for each row.
//
// edit_dense: a block takes 4096 logits of one row: bias, temperature, guided mask, into a copy; the counts of tokens are
// cleared, and the step's own token is appended to the sequence's history. edit_sparse, one block a row: what depends on the
// tokens so far. Occurrences are counted with atomics into a row of counts as wide as the vocabulary; the first who takes a
// token's count out of it applies the penalties. Masks come before: what they take stays away under any penalty. Rows that
// nobody edits end at once. Every operation rounds as on the host, so that both choose the same tokens.
// Source: the arithmetic of src/decode/logits.rs and src/decode/params.rs.
#include "prelude.cuh"

constexpr int DENSE_THREADS = 256, DENSE_LOGITS = 4096, SPARSE_THREADS = 512;
constexpr u32 SEEN = 0x80000000u;

// Rows as src/device/edits.rs encodes them.
enum Flags : int { EDITED = 1, PENALTIES = 2, FOLLOWS_TOKENS = 4 };

struct RowEdits {
    int flags;
    float inverse_temperature, repetition, presence, frequency;
    // Tokens at the start that neither presence nor frequency penalty counts.
    int ignored;
    int ngram, prompt_len, len;
    // Places in the tables; negative: none.
    int history, words, num_words, end_ids, num_end_ids, bias, bias_len;
    // Row of the masks; negative: none.
    int mask;
    float top_p, top_p_decay, top_p_min;
    int top_p_reset;
    // The token that is appended.
    int token;
    int unused[2];
};

struct EditArgs {
    const float* logits;
    float* out;
    u32* counts;
    const RowEdits* rows;
    int* tables;
    const int* tokens;
    const u32* masks;
    // Rows of 12 words, as src/device/sampling.rs encodes them.
    float* sampling;
    i64 logits_stride, out_stride, counts_stride, mask_stride;
    int vocab, table_words, num_tokens;
};

constexpr int SAMPLING_WORDS = 12, SAMPLING_TOP_P = 3;

extern "C" __global__ void __launch_bounds__(DENSE_THREADS) edit_dense(EditArgs a) {
    const RowEdits& row = a.rows[blockIdx.x];
    if (!(row.flags & EDITED)) return;
    if (blockIdx.y == 0 && threadIdx.x == 0 && row.history >= 0 && row.token >= 0 && row.token < a.num_tokens) {
        a.tables[row.history + row.len - 1] = a.tokens[row.token];
    }
    const float* from = a.logits + blockIdx.x * a.logits_stride;
    float* to = a.out + blockIdx.x * a.out_stride;
    u32* counts = a.counts + blockIdx.x * a.counts_stride;
    const float* bias = reinterpret_cast<const float*>(a.tables + (row.bias < 0 ? 0 : row.bias));
    const u32* mask = row.mask < 0 || !a.masks ? nullptr : a.masks + row.mask * a.mask_stride;
    int biased = row.bias < 0 ? 0 : row.bias_len;
    bool clear = row.flags & PENALTIES;
    float factor = row.inverse_temperature;
    int begin = blockIdx.y * DENSE_LOGITS + threadIdx.x, end = min(begin + DENSE_LOGITS, a.vocab);
#pragma unroll 4
    for (int i = begin; i < end; i += DENSE_THREADS) {
        float x = from[i];
        if (i < biased) x = __fadd_rn(x, bias[i]);
        if (factor != 1.0f) x = bounded(__fmul_rn(x, factor), x);
        if (mask && !(mask[i >> 5] >> (i & 31) & 1)) x = negative_infinity();
        to[i] = x;
        if (clear) counts[i] = 0;
    }
}

// Rust's powi.
__device__ __forceinline__ float power(float x, int n) {
    float result = 1.0f;
    while (true) {
        if (n & 1) result = __fmul_rn(result, x);
        n /= 2;
        if (n == 0) return result;
        x = __fmul_rn(x, x);
    }
}

struct SparseRow {
    const RowEdits& row;
    const int* tokens;
    float* logits;
    u32* counts;
    int vocab;

    __device__ __forceinline__ void mask(int token) const {
        if (token >= 0 && token < vocab) logits[token] = negative_infinity();
    }
    __device__ __forceinline__ bool ends_with(const int* suffix, int size) const {
        if (size > row.len) return false;
        for (int i = 0; i < size; i++) {
            if (tokens[row.len - size + i] != suffix[i]) return false;
        }
        return true;
    }
    // Windows of `ngram` tokens whose first ones are the last tokens of the sequence.
    __device__ __forceinline__ void mask_ngrams() const {
        int prefix = row.ngram - 1;
        for (int i = threadIdx.x; i <= row.len - row.ngram; i += SPARSE_THREADS) {
            bool same = true;
            for (int j = 0; same && j < prefix; j++) same = tokens[i + j] == tokens[row.len - prefix + j];
            if (same) mask(tokens[i + prefix]);
        }
    }
    __device__ __forceinline__ void mask_words(const int* words) const {
        const int* word_tokens = words + row.num_words;
        for (int i = threadIdx.x; i < row.num_words; i += SPARSE_THREADS) {
            int begin = i == 0 ? 0 : words[i - 1], end = words[i];
            if (begin < end && ends_with(word_tokens + begin, end - begin - 1)) mask(word_tokens[end - 1]);
        }
    }
    __device__ __forceinline__ void count() const {
        for (int i = threadIdx.x; i < row.len; i += SPARSE_THREADS) {
            int token = tokens[i];
            if (token < 0 || token >= vocab) continue;
            if (i < row.ignored) {
                atomicOr(&counts[token], SEEN);
            } else {
                atomicAdd(&counts[token], 1u);
            }
        }
    }
    __device__ __forceinline__ void penalize() const {
        for (int i = threadIdx.x; i < row.len; i += SPARSE_THREADS) {
            int token = tokens[i];
            if (token < 0 || token >= vocab) continue;
            u32 seen = atomicExch(&counts[token], 0u), counted = seen & ~SEEN;
            if (seen == 0) continue;
            float x = logits[token];
            x = bounded(x > 0.0f ? __fdiv_rn(x, row.repetition) : __fmul_rn(x, row.repetition), x);
            if (counted) {
                x = __fsub_rn(x, __fadd_rn(row.presence, __fmul_rn(row.frequency, __uint2float_rn(counted))));
            }
            logits[token] = x;
        }
    }
    // The top-p in force: it decays with each generated token since the last reset.
    __device__ __forceinline__ float top_p(int* last_reset) const {
        if (threadIdx.x == 0) *last_reset = row.prompt_len - 1;
        __syncthreads();
        for (int i = row.prompt_len + threadIdx.x; i < row.len; i += SPARSE_THREADS) {
            if (tokens[i] == row.top_p_reset) atomicMax(last_reset, i);
        }
        __syncthreads();
        int since = row.len - 1 - *last_reset;
        float p = since == 0 ? row.top_p : fmaxf(__fmul_rn(row.top_p, power(row.top_p_decay, since)), row.top_p_min);
        return fminf(fmaxf(p, 1.17549435e-38f), 1.0f);
    }
};

extern "C" __global__ void __launch_bounds__(SPARSE_THREADS) edit_sparse(EditArgs a) {
    __shared__ int last_reset;
    const RowEdits& row = a.rows[blockIdx.x];
    if (!(row.flags & EDITED)) return;
    SparseRow r = {row, a.tables + max(row.history, 0), a.out + blockIdx.x * a.out_stride,
                   a.counts + blockIdx.x * a.counts_stride, a.vocab};
    for (int i = threadIdx.x; i < row.num_end_ids; i += SPARSE_THREADS) r.mask(a.tables[row.end_ids + i]);
    if (row.num_words > 0) r.mask_words(a.tables + row.words);
    if (row.history < 0) return;
    if (row.ngram > 0) r.mask_ngrams();
    if (row.flags & FOLLOWS_TOKENS) {
        float p = r.top_p(&last_reset);
        if (threadIdx.x == 0) a.sampling[blockIdx.x * SAMPLING_WORDS + SAMPLING_TOP_P] = p;
    }
    if (row.flags & PENALTIES) {
        r.count();
        __syncthreads();
        r.penalize();
    }
}
