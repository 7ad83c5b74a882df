// What every kernel file shares: types, conversions, vector access, warp and block reductions, tensor-core primitives.
//
// Self-contained on purpose: no CUDA header is included, so the same text compiles at build time and at load time
// wherever a compiler library is found. All of it needs compute capability 8.0.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

// Element types as the host numbers them.
enum DType : int { F32 = 0, F16 = 1, BF16 = 2 };

__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }

// `value`, made of the logit `from`; a number if that was one, for an infinite logit is a fault of the model.
__device__ __forceinline__ float bounded(float value, float from) {
    constexpr float MOST = 3.402823466e38f;
    return value > MOST && from <= MOST ? MOST : value;
}

// ---- conversions ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
__device__ __forceinline__ float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two neighbours of a 16-bit type in one register; `lo` has the lower address.
template <typename T> __device__ __forceinline__ u32 pack2(float lo, float hi);
template <> __device__ __forceinline__ u32 pack2<bf16>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}
template <> __device__ __forceinline__ u32 pack2<f16>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}

template <typename T> __device__ __forceinline__ void unpack2(u32 x, float& lo, float& hi);
template <> __device__ __forceinline__ void unpack2<bf16>(u32 x, float& lo, float& hi) {
    lo = __uint_as_float(x << 16);
    hi = __uint_as_float(x & 0xffff0000u);
}
template <> __device__ __forceinline__ void unpack2<f16>(u32 x, float& lo, float& hi) {
    lo = to_f32(f16{u16(x)});
    hi = to_f32(f16{u16(x >> 16)});
}

// ---- vector access --------------------------------------------------------------------------------------------------

// Elements of one 16-byte access.
template <typename T> struct Vector {
    static constexpr int N = 16 / sizeof(T);
};

// Loads `N` neighbours: 1, or whole 16-byte groups at an aligned address.
template <typename T, int N> __device__ __forceinline__ void load(const T* p, float (&v)[N]) {
    if constexpr (N == 1) {
        v[0] = to_f32(*p);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            float4 x = *reinterpret_cast<const float4*>(p + i);
            v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 8) {
            uint4 x = *reinterpret_cast<const uint4*>(p + i);
            unpack2<T>(x.x, v[i], v[i + 1]);
            unpack2<T>(x.y, v[i + 2], v[i + 3]);
            unpack2<T>(x.z, v[i + 4], v[i + 5]);
            unpack2<T>(x.w, v[i + 6], v[i + 7]);
        }
    }
}

// Stores `N` neighbours: 1, or whole 16-byte groups at an aligned address.
template <typename T, int N> __device__ __forceinline__ void store(T* p, const float (&v)[N]) {
    if constexpr (N == 1) {
        *p = from_f32<T>(v[0]);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            *reinterpret_cast<float4*>(p + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 8) {
            *reinterpret_cast<uint4*>(p + i) = make_uint4(pack2<T>(v[i], v[i + 1]), pack2<T>(v[i + 2], v[i + 3]),
                                                          pack2<T>(v[i + 4], v[i + 5]), pack2<T>(v[i + 6], v[i + 7]));
        }
    }
}

// Loads `N` neighbours of a parameter whose type is known only at run time (the branch is the same for all threads).
template <int N> __device__ __forceinline__ void load_param(const void* p, int dtype, i64 at, float (&v)[N]) {
    if (dtype == BF16) {
        load(static_cast<const bf16*>(p) + at, v);
    } else if (dtype == F16) {
        load(static_cast<const f16*>(p) + at, v);
    } else {
        load(static_cast<const float*>(p) + at, v);
    }
}

// ---- order of kernels -----------------------------------------------------------------------------------------------

// Kernels launched in a chain start while the one before ends. Such a kernel lets the next one in first, and touches nothing
// that others write, or read, before it has waited: all of its threads wait, so that its end means the end of all before.
// Without a chain, and on older GPUs, both do nothing.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void join_chain() {
    let_next_kernel_start();
    wait_for_kernels_before();
}

// ---- reductions -----------------------------------------------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

// Sum over the `blockDim.x` threads of a block, in every thread. `scratch` holds 32 floats.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    int warps = (blockDim.x + 31) / 32;
    return warp_sum(threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : 0.0f);
}

// ---- asynchronous copies and tensor cores ---------------------------------------------------------------------------

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// Copies 16 bytes to shared memory, or writes zeros when `valid` is false (`from` must be a legal address all the same).
__device__ __forceinline__ void copy_async_16(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8×8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// d[16×8] += a[16×16] · b[16×8] in f32. With g = lane / 4 and c = lane % 4:
// a = {(g; 2c, 2c+1), (g+8; 2c, 2c+1), (g; 2c+8, 2c+9), (g+8; 2c+8, 2c+9)} as (row; columns),
// b = {(2c, 2c+1; g), (2c+8, 2c+9; g)} as (rows; column), d = {(g; 2c), (g; 2c+1), (g+8; 2c), (g+8; 2c+1)}.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);
template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Base-2 exponential, flushing to zero far below.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
