// Functions of single elements.
#pragma once
#include "prelude.cuh"

// What the host numbers: activations, then other functions.
enum Function : int {
    SILU = 0,
    GELU_TANH = 1,
    GELU = 2,
    RELU = 3,
    RELU_SQUARED = 4,
    CLAMPED_SWISH = 5,
    SIGMOID = 6,
    SCALE = 7,
    CLAMP = 8,
    SOFTCAP = 9,
};

constexpr float SWISH_BOUND = 7.0f;

// Between minus and plus the bound; what is no number stays so.
__device__ __forceinline__ float clamped(float x, float bound) { return x > bound ? bound : x < -bound ? -bound : x; }

__device__ __forceinline__ float activate(float x, int function) {
    if (function == SILU) return x / (1.0f + expf(-x));
    if (function == GELU_TANH) {
        float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return 0.5f * x * (1.0f + tanhf(inner));
    }
    if (function == GELU) return 0.5f * x * erfcf(-0.7071067811865476f * x);
    if (function == CLAMPED_SWISH) {
        x = x > SWISH_BOUND ? SWISH_BOUND : x;
        return x / (1.0f + expf(-1.702f * x));
    }
    x = x < 0.0f ? 0.0f : x;
    return function == RELU ? x : x * x;
}

// Of a gated feed-forward layer.
__device__ __forceinline__ float gated(float gate, float up, int activation) {
    if (activation == CLAMPED_SWISH) up = clamped(up, SWISH_BOUND) + 1.0f;
    return activate(gate, activation) * up;
}
