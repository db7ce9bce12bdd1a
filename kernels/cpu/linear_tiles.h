// The arithmetic of linear.h, shared by the instruction sets. Each includes this file and gives
//
//     Lanes         conversions of floats, see lanes.h
//     Sets          Ints, Floats (16 lanes each), Bytes (64 of them), Input (one 32-bit lane of x, broadcast), and
//                     Sum<bits>          sums of products: start(Ints), add(Bytes, Input), span_end(), total()
//                     loads, low/high halves of bytes, and a few operations on lanes
//                     halves             1 or 2: how many vectors of 16 outputs are worked on at once
//                     heights            rows of x at once, for one and for two planes
//
// Everything has internal linkage on purpose, as in lanes.h.
#pragma once

#include <algorithm>
#include <cmath>

#include "lanes.h"
#include "linear.h"

namespace llmquant {
namespace {

constexpr int tallest = 12;
// How far ahead memory is asked for: bytes of codes, blocks of scales. The hardware alone reaches 4/5 of the bandwidth.
constexpr int64_t codes_ahead = 3072;
constexpr int64_t scales_ahead = 4;
constexpr float quiet_nan = __builtin_nanf(""), infinity = __builtin_inff();

// --- activations -----------------------------------------------------------------------------------------------------

template <class Lanes>
void widen(const void* data, int64_t first, int64_t count, Float type, float* out) {
    if (type == Float::f32) {
        std::memcpy(out, static_cast<const float*>(data) + first, static_cast<size_t>(count) * 4);
    } else if (type == Float::bf16) {
        const uint16_t* in = static_cast<const uint16_t*>(data) + first;
        for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(in[i]);
    } else {
        const uint16_t* in = static_cast<const uint16_t*>(data) + first;
        int64_t i = 0;
        for (; i + Lanes::width <= count; i += Lanes::width) Lanes::widen_f16(in + i, out + i);
        for (; i < count; ++i) out[i] = f16_to_float(in[i]);
    }
}

template <class Lanes>
void narrow(const float* values, int64_t count, void* out, int64_t first, Float type) {
    int64_t i = 0;
    for (; i + Lanes::width <= count; i += Lanes::width) {
        const auto lanes = Lanes::values(values + i);
        if (type == Float::f32) Lanes::template store<Float::f32>(lanes, out, first + i);
        if (type == Float::bf16) Lanes::template store<Float::bf16>(lanes, out, first + i);
        if (type == Float::f16) Lanes::template store<Float::f16>(lanes, out, first + i);
    }
    for (; i < count; ++i) {
        if (type == Float::f32) ScalarLanes::store<Float::f32>(values[i], out, first + i);
        if (type == Float::bf16) ScalarLanes::store<Float::bf16>(values[i], out, first + i);
        if (type == Float::f16) ScalarLanes::store<Float::f16>(values[i], out, first + i);
    }
}

// Bits of the largest magnitude: ordered like the magnitudes, and larger than any number for infinity and NaN.
inline uint32_t largest(const float* values, int64_t count) {
    int32_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t magnitude = static_cast<int32_t>(to_bits(values[i]) & 0x7fffffffu);
        most = magnitude > most ? magnitude : most;
    }
    return static_cast<uint32_t>(most);
}

// To the nearest integer, ties to even, for |value| < 2^22.
inline int32_t nearest(float value) { return static_cast<int32_t>(to_bits(value + 0x1.8p23f)) - 0x4b400000; }

// Factor of RMSNorm for a row (Zhang and Sennrich 2019, eq. 4). Sixteen partial sums: the same bits at any vector
// width.
template <class Lanes>
float inverse_rms(const Inputs& inputs, int64_t row) {
    float sums[16] = {}, values[128];
    for (int64_t col = 0; col < inputs.cols; col += 128) {
        const int64_t count = std::min<int64_t>(128, inputs.cols - col);
        std::fill(values, values + 128, 0.0f);
        widen<Lanes>(inputs.x, row * inputs.cols + col, count, inputs.type, values);
        for (int i = 0; i < 128; i += 16) {
            for (int j = 0; j < 16; ++j) sums[j] += values[i + j] * values[i + j];
        }
    }
    float sum = 0;
    for (float part : sums) sum += part;
    return 1.0f / std::sqrt(sum / static_cast<float>(inputs.cols) + inputs.norm_eps);
}

struct Step {
    float scale;     // of a quantized number
    float prescale;  // a power of two that keeps tiny inputs out of the subnormal numbers
    float inverse;   // quantized numbers per (prescaled) input
    bool finite;
};

// Symmetric, the largest input on the largest code. For `exact` that is 127 * 256 + 127: both bytes are in range.
inline Step step_for(uint32_t largest_bits, int planes) {
    if (largest_bits >= 0x7f800000u) return {quiet_nan, 0, 0, false};
    if (largest_bits == 0) return {0, 1, 0, true};
    const float most = from_bits(largest_bits), codes = planes == 2 ? 32639.0f : 127.0f;
    const float prescale = most < 0x1p-96f ? 0x1p96f : 1.0f;
    return {most / codes, prescale, codes / (most * prescale), true};
}

template <class Lanes>
void divide(float* values, int64_t count, float by, float most, Float type) {
    alignas(4) uint8_t rounded[4 * 128] = {};
    for (int64_t i = 0; i < count; ++i) values[i] /= by;
    narrow<Lanes>(values, count, rounded, 0, type);
    widen<Lanes>(rounded, 0, count, type, values);
    for (int64_t i = 0; i < count; ++i) values[i] = std::min(std::max(values[i], -1 - most), most);
}

// W8A8 as compressed-tensors 0.20 has it, in the type of x: 127.5 codes for the largest input of a row.
template <class Lanes>
Step token_step(uint32_t largest_bits, const Inputs& inputs) {
    constexpr float epsilons[] = {0x1p-23f, 0x1p-7f, 0x1p-10f};  // of the types, where nothing is left of a scale
    float scale = largest_bits < 0x7f800000u ? from_bits(largest_bits) : quiet_nan;
    divide<Lanes>(&scale, 1, 127.5f, 0x1p127f, inputs.type);
    if (scale == 0) scale = epsilons[static_cast<int>(inputs.type)];
    if (scale == scale && inputs.input_scale != 0) scale = inputs.input_scale;
    return scale > 0 && to_bits(scale) < 0x7f800000u ? Step{scale, 1, 1, true} : Step{quiet_nan, 0, 0, false};
}

template <class Lanes>
void read_block(const Inputs& inputs, int64_t row, int64_t col, int64_t block, float factor, float* values) {
    const int64_t count = std::min(block, inputs.cols - col);
    std::fill(values + count, values + block, 0.0f);
    widen<Lanes>(inputs.x, row * inputs.cols + col, count, inputs.type, values);
    if (!inputs.norm) return;
    float weights[128] = {};
    widen<Lanes>(inputs.norm, col, count, inputs.type, weights);
    for (int64_t i = 0; i < block; ++i) values[i] = values[i] * factor * weights[i];
}

template <class Lanes>
void quantize_row(const Inputs& inputs, int64_t row, int64_t in_panel, const Quantized& to) {
    const float factor = inputs.norm ? inverse_rms<Lanes>(inputs, row) : 1.0f;
    float values[128];
    Step step{};
    if (inputs.per_token) {
        uint32_t most = 0;
        for (int64_t b = 0; b < to.blocks; ++b) {
            read_block<Lanes>(inputs, row, b * to.block, to.block, factor, values);
            most = std::max(most, largest(values, to.block));
        }
        step = token_step<Lanes>(most, inputs);
    }
    for (int64_t b = 0; b < to.blocks; ++b) {
        read_block<Lanes>(inputs, row, b * to.block, to.block, factor, values);
        if (inputs.per_token) divide<Lanes>(values, to.block, step.scale, 127.0f, inputs.type);
        if (!inputs.per_token) step = step_for(largest(values, to.block), to.planes);
        int32_t codes[128], sum = 0;
        uint8_t low[128], high[128];
        // A block that is not finite is all zeros with a scale of NaN: the outputs become NaN, and stay visible.
        const float prescale = step.finite ? step.prescale : 0.0f;
        for (int64_t i = 0; i < to.block; ++i) {
            codes[i] = step.finite ? nearest(values[i] * prescale * step.inverse) : 0;
        }
        for (int64_t i = 0; i < to.block; ++i) {
            sum += codes[i];
            high[i] = static_cast<uint8_t>((codes[i] + 128) >> 8);
            low[i] = static_cast<uint8_t>(codes[i]);
        }
        const int64_t plane_stride = to.block * to.height;
        int8_t* out = to.values + b * to.planes * plane_stride + in_panel * 4;
        for (int64_t i = 0; i < to.block; i += 4, out += to.height * 4) {
            if (to.planes == 2) {
                std::memcpy(out, high + i, 4);
                std::memcpy(out + plane_stride, low + i, 4);
            } else {
                std::memcpy(out, low + i, 4);
            }
        }
        to.scales[b * to.height + in_panel] = step.scale;
        to.sums[b * to.height + in_panel] = sum;
    }
}

template <class Lanes>
void quantize_rows(const Inputs& inputs, int64_t row, int64_t count, const Quantized& to) {
    for (int64_t i = 0; i < count; ++i) quantize_row<Lanes>(inputs, row + i, i, to);
    for (int64_t i = count; i < to.height; ++i) {
        for (int64_t b = 0; b < to.blocks * to.planes; ++b) {
            int8_t* out = to.values + b * to.block * to.height + i * 4;
            for (int64_t k = 0; k < to.block; k += 4, out += to.height * 4) std::memset(out, 0, 4);
        }
        for (int64_t b = 0; b < to.blocks; ++b) {
            to.scales[b * to.height + i] = 0;
            to.sums[b * to.height + i] = 0;
        }
    }
}

// --- products --------------------------------------------------------------------------------------------------------

// One block: every half of every vector against `height` rows and all planes.
template <class Sets, int bits, int planes, int height>
inline __attribute__((always_inline)) void multiply_block(
    const uint8_t* codes, const int8_t* x, int64_t block,
    typename Sets::template Sum<bits> (&sums)[Sets::halves][height][planes]) {
    using Sum = typename Sets::template Sum<bits>;
    constexpr int vectors = bits == 4 ? 4 : 8;  // of a span
    const int64_t plane_stride = block * height;
    for (int64_t span = 0; span < block; span += span_cols) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            typename Sets::Bytes low[Sets::halves], high[Sets::halves];
#pragma GCC unroll 2
            for (int h = 0; h < Sets::halves; ++h) {
                const uint8_t* from = codes + v * 128 + h * 64;
                Sets::prefetch(from + codes_ahead);
                low[h] = Sets::load(from);
                if constexpr (bits == 4) {
                    high[h] = Sets::high_nibbles(low[h]);
                    low[h] = Sets::low_nibbles(low[h]);
                }
            }
            const int8_t* row = x + (span + v * 4) * height;
#pragma GCC unroll 12
            for (int m = 0; m < height; ++m) {
#pragma GCC unroll 2
                for (int p = 0; p < planes; ++p) {
                    const auto input = Sets::broadcast(row + m * 4 + p * plane_stride);
#pragma GCC unroll 2
                    for (int h = 0; h < Sets::halves; ++h) sums[h][m][p].add(low[h], input);
                    if constexpr (bits == 4) {
                        const auto other = Sets::broadcast(row + (16 * height + m * 4) + p * plane_stride);
#pragma GCC unroll 2
                        for (int h = 0; h < Sets::halves; ++h) sums[h][m][p].add(high[h], other);
                    }
                }
            }
        }
        codes += vectors * 128;
        if constexpr (Sum::ends) {
#pragma GCC unroll 2
            for (int h = 0; h < Sets::halves; ++h) {
#pragma GCC unroll 12
                for (int m = 0; m < height; ++m) {
#pragma GCC unroll 2
                    for (int p = 0; p < planes; ++p) sums[h][m][p].span_end();
                }
            }
        }
    }
}

// One tile, or half of it, against a panel: acc[row][16 * half].
template <class Sets, int bits, int planes, int height>
void multiply_panel(const Weight& weight, int64_t tile, int first_half, const int8_t* values, const float* scales,
                    const int32_t* sums, float (*acc)[tile_rows]) {
    using Sum = typename Sets::template Sum<bits>;
    const int64_t block = weight.header->block;
    constexpr int32_t middle = bits == 4 ? -8 : -128;
    const Float type = weight.header->scale_type;
    const uint8_t* codes = weight.codes + tile * weight.tile_bytes + first_half * 64;
    typename Sets::Floats totals[Sets::halves][height];
    for (int h = 0; h < Sets::halves; ++h) {
        for (int m = 0; m < height; ++m) totals[h][m] = Sets::zero();
    }
    for (int64_t b = 0; b < weight.blocks; ++b) {
        Sum products[Sets::halves][height][planes];
#pragma GCC unroll 2
        for (int h = 0; h < Sets::halves; ++h) {
#pragma GCC unroll 12
            for (int m = 0; m < height; ++m) {
                if constexpr (planes == 2) products[h][m][0].start(Sets::ints(0));
                products[h][m][planes - 1].start(Sets::ints(middle * sums[b * height + m]));
            }
        }
        multiply_block<Sets, bits, planes, height>(codes + b * weight.block_bytes, values + b * block * planes * height,
                                                   block, products);
        const int64_t first = (tile * weight.blocks + b) * tile_rows + first_half * 16;
        Sets::prefetch(weight.scales + (first + scales_ahead * tile_rows) * float_size(type));
#pragma GCC unroll 2
        for (int h = 0; h < Sets::halves; ++h) {
            const auto scale = Sets::scales(weight.scales, first + h * 16, type);
#pragma GCC unroll 12
            for (int m = 0; m < height; ++m) {
                auto sum = products[h][m][planes - 1].total();
                if constexpr (planes == 2) sum = Sets::add(Sets::times_256(products[h][m][0].total()), sum);
                if (weight.zeros) {
                    const auto zeros = Sets::zeros(weight.zeros + first + h * 16);
                    sum = Sets::subtract(sum, Sets::multiply(zeros, Sets::ints(sums[b * height + m])));
                }
                totals[h][m] = Sets::fma(Sets::floats(sum), Sets::multiply(scale, Sets::set(scales[b * height + m])),
                                         totals[h][m]);
            }
        }
    }
    for (int h = 0; h < Sets::halves; ++h) {
        for (int m = 0; m < height; ++m) Sets::store(acc[m] + (first_half + h) * 16, totals[h][m]);
    }
}

template <class Sets, int bits, int planes, int height>
void multiply_tile(const Weight& weight, int64_t tile, const Quantized& x, int64_t panel, float (*acc)[tile_rows]) {
    for (int half = 0; half < 2; half += Sets::halves) {
        multiply_panel<Sets, bits, planes, height>(weight, tile, half, x.values + panel * x.value_stride(),
                                                   x.scales + panel * x.scale_stride(),
                                                   x.sums + panel * x.scale_stride(), acc);
    }
}

template <class Sets, int bits, int planes>
void multiply_height(const Weight& weight, int64_t tile, const Quantized& x, int64_t panel, float (*acc)[tile_rows]) {
    constexpr int most = Sets::heights[planes - 1];
    switch (x.height) {
#define LLMQUANT_HEIGHT(n)                                                                          \
    case n:                                                                                         \
        if constexpr (n <= most) multiply_tile<Sets, bits, planes, n>(weight, tile, x, panel, acc); \
        break;
        LLMQUANT_HEIGHT(1)
        LLMQUANT_HEIGHT(2)
        LLMQUANT_HEIGHT(3)
        LLMQUANT_HEIGHT(4)
        LLMQUANT_HEIGHT(6)
        LLMQUANT_HEIGHT(8)
        LLMQUANT_HEIGHT(12)
#undef LLMQUANT_HEIGHT
    }
}

template <class Sets>
void multiply(const Weight& weight, int64_t tile, const Quantized& x, int64_t panel, float (*acc)[tile_rows]) {
    if (weight.code_bits == 4) {
        if (x.planes == 2) return multiply_height<Sets, 4, 2>(weight, tile, x, panel, acc);
        return multiply_height<Sets, 4, 1>(weight, tile, x, panel, acc);
    }
    if (x.planes == 2) return multiply_height<Sets, 8, 2>(weight, tile, x, panel, acc);
    return multiply_height<Sets, 8, 1>(weight, tile, x, panel, acc);
}

// --- outputs ---------------------------------------------------------------------------------------------------------

// e^x to some 2 units in the last place: reduction to [-ln 2 / 2, ln 2 / 2], then the Taylor polynomial of degree 7.
inline float exponential(float x) {
    const bool over = x > 88.0f;
    x = x < -87.0f ? -87.0f : over ? 88.0f : x;  // NaN stays
    const float whole = x * 1.44269504f + 0x1.8p23f;
    const float n = whole - 0x1.8p23f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return over ? infinity : p * from_bits((to_bits(whole) - 0x4b400000u + 127u) << 23);
}

template <class Lanes>
void add_to(float* values, const void* data, int64_t first, int64_t count, Float type) {
    float more[tile_rows] = {};
    widen<Lanes>(data, first, count, type, more);
    for (int64_t i = 0; i < tile_rows; ++i) values[i] += more[i];
}

template <class Sets, class Lanes>
void linear_tile(const Quantized& x, const Outputs& outputs, int part, int64_t tile, int64_t row, int64_t count) {
    const Part& target = outputs.parts[part];
    const int64_t width = target.weight.header->rows, first = tile * tile_rows;
    const int64_t used = std::min(tile_rows, width - first);
    for (int64_t panel = 0; panel * x.height < count; ++panel) {
        alignas(64) float acc[2][tallest][tile_rows];
        multiply<Sets>(target.weight, tile, x, panel, acc[0]);
        if (outputs.silu) multiply<Sets>(outputs.parts[1].weight, tile, x, panel, acc[1]);
        const int64_t rows = std::min<int64_t>(x.height, count - panel * x.height);
        for (int64_t m = 0; m < rows; ++m) {
            float* values = acc[0][m];
            if (target.bias) add_to<Lanes>(values, target.bias, first, used, outputs.type);
            if (outputs.silu) {
                float* up = acc[1][m];
                if (outputs.parts[1].bias) add_to<Lanes>(up, outputs.parts[1].bias, first, used, outputs.type);
                for (int64_t i = 0; i < tile_rows; ++i)
                    values[i] = values[i] / (1.0f + exponential(-values[i])) * up[i];
            }
            const int64_t to = (row + panel * x.height + m) * width + first;
            if (outputs.residual) add_to<Lanes>(values, outputs.residual, to, used, outputs.type);
            narrow<Lanes>(values, used, target.out, to, outputs.type);
        }
    }
}

template <class Sets, class Lanes>
constexpr LinearKernel linear_kernel() {
    return {{Sets::heights[0], Sets::heights[1]}, quantize_rows<Lanes>, linear_tile<Sets, Lanes>};
}

}  // namespace
}  // namespace llmquant
