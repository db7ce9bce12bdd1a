// Inputs as the products want them: widened to float, normed, and quantized into panels. Shared by the instruction sets
// like linear_tiles.h; Lanes are those of lanes.h.
//
// Everything has internal linkage on purpose, as in lanes.h.
#pragma once

#include <algorithm>
#include <cmath>

#include "lanes.h"
#include "linear.h"

namespace llmquant {
namespace {

constexpr float quiet_nan = __builtin_nanf(""), infinity = __builtin_inff();

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
inline Step step_for(uint32_t largest_bits, bool exact) {
    if (largest_bits >= 0x7f800000u) return {quiet_nan, 0, 0, false};
    if (largest_bits == 0) return {0, 1, 0, true};
    const float most = from_bits(largest_bits), codes = exact ? 32639.0f : 127.0f;
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

inline void put_bytes(const int32_t* codes, const Quantized& to, int8_t* out) {
    uint8_t low[128], high[128];
    for (int64_t i = 0; i < to.block; ++i) {
        high[i] = static_cast<uint8_t>((codes[i] + 128) >> 8);
        low[i] = static_cast<uint8_t>(codes[i]);
    }
    for (int64_t i = 0; i < to.block; i += 4, out += to.height * 4) {
        if (to.form == Form::planes) {
            std::memcpy(out, high + i, 4);
            std::memcpy(out + to.plane_stride(), low + i, 4);
        } else {
            std::memcpy(out, low + i, 4);
        }
    }
}

inline void put_words(const int32_t* codes, const Quantized& to, int8_t* out) {
    int16_t words[128];
    for (int64_t i = 0; i < to.block; ++i) words[i] = static_cast<int16_t>(codes[i]);
    for (int64_t i = 0; i < to.block; i += 4, out += to.height * 8) {
        const int16_t four[4] = {words[i], words[i + 2], words[i + 1], words[i + 3]};
        std::memcpy(out, four, 8);
    }
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
        if (!inputs.per_token) step = step_for(largest(values, to.block), inputs.exact);
        int32_t codes[128], sum = 0;
        // A block that is not finite is all zeros with a scale of NaN: the outputs become NaN, and stay visible.
        const float prescale = step.finite ? step.prescale : 0.0f;
        for (int64_t i = 0; i < to.block; ++i) {
            codes[i] = step.finite ? nearest(values[i] * prescale * step.inverse) : 0;
        }
        for (int64_t i = 0; i < to.block; ++i) sum += codes[i];
        int8_t* out = to.values + b * planes_of(to.form) * to.plane_stride();
        if (to.form == Form::words) {
            put_words(codes, to, out + in_panel * 8);
        } else {
            put_bytes(codes, to, out + in_panel * 4);
        }
        to.scales[b * to.height + in_panel] = step.scale;
        to.sums[b * to.height + in_panel] = sum;
    }
}

template <class Lanes>
void quantize_rows(const Inputs& inputs, int64_t row, int64_t count, const Quantized& to) {
    for (int64_t i = 0; i < count; ++i) quantize_row<Lanes>(inputs, row + i, i, to);
    const int64_t four = 4 * bytes_of(to.form);
    for (int64_t i = count; i < to.height; ++i) {
        int8_t *out = to.values + i * four, *end = to.values + to.value_stride();
        for (; out < end; out += to.height * four) std::memset(out, 0, static_cast<size_t>(four));
        for (int64_t b = 0; b < to.blocks; ++b) {
            to.scales[b * to.height + i] = 0;
            to.sums[b * to.height + i] = 0;
        }
    }
}

}  // namespace
}  // namespace llmquant
