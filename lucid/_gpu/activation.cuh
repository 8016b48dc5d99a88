// Activations and their derivatives; the numbers are those of `ACTIVATIONS` in lucid/ops/activation.py.
#pragma once
#include "common.cuh"

enum Activation { NONE, GELU, GELU_TANH, RELU, SILU, TANH, EXP, ERF };

__device__ __forceinline__ float activate(float x, int activation) {
  const float half = 0.5f * x;
  switch (activation) {
    case GELU:  // x Phi(x): Hendrycks & Gimpel 2016, eq. 2
      return fmaf(half, erff(x * 0.70710678f), half);
    case GELU_TANH:  // their tanh form; in transformers "gelu_new"
      return fmaf(half, tanhf(0.79788456f * fmaf(0.044715f * x, x * x, x)), half);
    case RELU:
      return x < 0.0f ? 0.0f : x;  // a NaN stays one
    case SILU:
      return x / (1.0f + expf(-x));
    case TANH:
      return tanhf(x);
    case EXP:
      return expf(x);
    case ERF:
      return erff(x);
  }
  return x;
}

// sigmoid(x) + factor * sigmoid'(x), where sigmoid' = s (1 - s) comes without a difference of near numbers.
__device__ __forceinline__ float sigmoid_slope(float x, float factor) {
  const float e = expf(-fabsf(x)), s = 1.0f / (1.0f + e);  // sigmoid(|x|), and e s = sigmoid(-|x|)
  return fmaf(factor * e * s, s, x < 0.0f ? e * s : s);
}

// The derivative of `activate` at x.
__device__ __forceinline__ float slope(float x, int activation) {
  switch (activation) {
    case GELU:  // Phi(x) + x phi(x)
      return fmaf(x, 0.39894228f * expf(-0.5f * x * x), fmaf(0.5f, erff(x * 0.70710678f), 0.5f));
    case GELU_TANH: {  // x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
      x = fminf(fmaxf(x, -10.0f), 10.0f);  // 0 or 1 from there on; and x^2 does not overflow
      const float square = x * x;
      return sigmoid_slope(1.5957691f * fmaf(0.044715f * x, square, x), x * 1.5957691f * fmaf(0.134145f, square, 1.0f));
    }
    case RELU:
      return x > 0.0f ? 1.0f : 0.0f;
    case SILU:
      return sigmoid_slope(x, x);
    case TANH: {
      const float t = tanhf(x);
      return 1.0f - t * t;
    }
  }
  return 1.0f;
}
