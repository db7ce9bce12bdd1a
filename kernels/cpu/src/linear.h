// x @ weight.T with a weight in kernel layout: what one call computes, and the pieces each instruction set provides.
//
// Inputs are quantized per row and block, to 8 bits (`fast`) or 16 (`exact`). Products are summed as integers, exactly,
// and scaled once per block; so a result depends neither on the instruction set, nor on the number of threads or rows.
#pragma once

#include <cstdint>

#include "weight.h"

namespace llmquant {

constexpr int most_parts = 4;

struct Inputs {
    const void* x;  // (rows, cols) of `type`
    int64_t rows, cols;
    Float type;
    bool exact;
    bool per_token;    // W8A8: 8 bits with one scale per row
    const void* norm;  // RMSNorm weight (cols,) of `type`, or null
    float norm_eps;
    float input_scale;  // of W8A8, the same for all rows; 0 if each row has its own
};

// How quantized inputs lie in memory, which is up to the instruction set.
enum class Form {
    bytes,   // of `fast`
    planes,  // `exact` as two planes of bytes, 256 * high + low: for products of bytes
    words,  // 16 bits, of either: for products of 16 bits. Four inputs lie in the order 0, 2, 1, 3, as the even and the
            // odd bytes of a weight do where each is widened to 16 bits
};

inline constexpr int planes_of(Form form) { return form == Form::planes ? 2 : 1; }
inline constexpr int bytes_of(Form form) { return form == Form::words ? 2 : 1; }  // of an input in a plane

// Quantized rows. Panels of `height` rows: values [panel][block][plane][col / 4][row in panel][4], scales and sums
// [panel][block][row in panel]. `sums` are of the quantized numbers, to take out the offset of the codes.
struct Quantized {
    int8_t* values;
    float* scales;
    int32_t* sums;
    int64_t block, blocks;
    Form form;
    int height;

    int64_t plane_stride() const { return block * bytes_of(form) * height; }
    int64_t value_stride() const { return blocks * planes_of(form) * plane_stride(); }
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
    Form exact;      // of the inputs of `exact`
    Form fast8;      // of those of `fast` where a weight has 8 bits; with 4 it is bytes
    int heights[3];  // largest height of a panel, by form
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
