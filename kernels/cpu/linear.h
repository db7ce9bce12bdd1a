// x @ weight.T with a weight in kernel layout: what one call computes, and the pieces each instruction set provides.
//
// Inputs are quantized per row and block. `fast` has one plane of 8 bits; `exact` has two, x = scale * (256 * high +
// low), of 16 bits together. Products are summed as integers, exactly, and scaled once per block; so a result depends
// neither on the instruction set, nor on the number of threads or rows.
#pragma once

#include <cstdint>

#include "weight.h"

namespace llmquant {

constexpr int most_parts = 4;

struct Inputs {
    const void* x;  // (rows, cols) of `type`
    int64_t rows, cols;
    Float type;
    int32_t planes;     // 1 fast, 2 exact
    int32_t per_token;  // W8A8: 8 bits with one scale per row
    const void* norm;   // RMSNorm weight (cols,) of `type`, or null
    float norm_eps;
    float input_scale;  // of W8A8, the same for all rows; 0 if each row has its own
};

// Quantized rows. Panels of `height` rows: values [panel][block][plane][col / 4][row in panel][4], scales and sums
// [panel][block][row in panel]. `sums` are of the quantized numbers, to take out the offset of the codes.
struct Quantized {
    int8_t* values;
    float* scales;
    int32_t* sums;
    int64_t block, blocks;
    int planes, height;

    int64_t value_stride() const { return blocks * block * planes * height; }
    int64_t scale_stride() const { return blocks * height; }
};

struct Part {
    Weight weight;
    const void* bias;  // (rows,) of the type of x, or null
    void* out;         // (rows of x, rows of the weight)
};

struct Outputs {
    const Part* parts;
    int count;
    Float type;
    const void* residual;  // like out, added to it; or null
    bool silu;             // parts are gate and up; out of the first gets silu(gate) * up
};

struct LinearKernel {
    // Largest height of a panel, for `fast` and `exact`.
    int heights[2];
    // Quantize rows [row, row + count) into panel 0 of `to`, whose height may be larger: the rest becomes zero.
    void (*quantize)(const Inputs& inputs, int64_t row, int64_t count, const Quantized& to);
    // Compute tile `tile` of part `part` (both parts if silu) for the panels that hold rows [row, row + count).
    void (*tile)(const Quantized& x, const Outputs& outputs, int part, int64_t tile, int64_t row, int64_t count);
};

const LinearKernel& linear_scalar();
const LinearKernel& linear_avx2();
const LinearKernel& linear_avx512();
const LinearKernel& linear_avx512vnni();
const LinearKernel& linear_neon();

// Everything: quantize, multiply, store, on torch's threads.
void linear(const LinearKernel& kernel, const Inputs& inputs, const Outputs& outputs);

}  // namespace llmquant
