// The loop over rows and groups, shared by the instruction sets: each includes this file and gives a `Lanes` type with
//
//     width                                  columns at a time, a multiple of 8 (or 1 for the scalar one)
//     load<bits>(row, column, bias)          stored codes minus bias, as floats
//     round<Float>(values)                   to the nearest of that type, ties to even, still as 32-bit floats
//     store<Float>(values, out, index)
//
// Everything here has internal linkage on purpose. With external linkage the linker would keep one copy of each
// template for all files, perhaps the one compiled for AVX-512, and run it on a machine that has none.
#pragma once

#include <cstring>

#include "unpack.h"

namespace llmquant {
namespace {

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float bf16_to_float(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // 2^112 moves the exponent from the bias of 15 to that of 127, and makes subnormal numbers normal.
    return from_bits(sign | to_bits(from_bits(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_f16(float value) {
    const uint32_t bits = to_bits(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return sign | 0x7e00;
    if (rest >= 0x477ff000u) return sign | 0x7c00;  // 65520 and more round to infinity
    if (rest < 0x38800000u) {                       // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits
        return sign | static_cast<uint16_t>(to_bits(from_bits(rest) + 0.5f) - 0x3f000000u);
    }
    return sign | static_cast<uint16_t>((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13);
}

struct ScalarLanes {
    using Values = float;
    static constexpr int64_t width = 1;

    template <int bits>
    static float load(const uint32_t* row, int64_t column, int32_t bias) {
        const int64_t at = column * bits;
        const int shift = static_cast<int>(at & 31);
        uint64_t window = row[at >> 5];
        if (32 % bits != 0 && shift + bits > 32) window |= static_cast<uint64_t>(row[(at >> 5) + 1]) << 32;
        return static_cast<float>(static_cast<int32_t>((window >> shift) & ((1u << bits) - 1u)) - bias);
    }

    static float multiply(float values, float scale) { return values * scale; }

    template <Float type>
    static float round(float value) {
        if constexpr (type == Float::bf16) return bf16_to_float(float_to_bf16(value));
        if constexpr (type == Float::f16) return f16_to_float(float_to_f16(value));
        return value;
    }

    template <Float type>
    static void store(float value, void* out, int64_t index) {
        if constexpr (type == Float::f32) static_cast<float*>(out)[index] = value;
        if constexpr (type == Float::bf16) static_cast<uint16_t*>(out)[index] = float_to_bf16(value);
        if constexpr (type == Float::f16) static_cast<uint16_t*>(out)[index] = float_to_f16(value);
    }
};

inline float read_scale(const UnpackJob& job, int64_t index) {
    if (job.scale_type == Float::bf16) return bf16_to_float(static_cast<const uint16_t*>(job.scales)[index]);
    if (job.scale_type == Float::f16) return f16_to_float(static_cast<const uint16_t*>(job.scales)[index]);
    return static_cast<const float*>(job.scales)[index];
}

template <class Lanes, int bits, Float scale_type, Float out_type>
void unpack_span(const UnpackJob& job, int64_t row, int64_t begin, int64_t end, float scale, int32_t bias) {
    const uint32_t* words = job.packed + row * job.words;
    const int64_t first = row * job.cols;
    for (int64_t column = begin; column < end; column += Lanes::width) {
        const auto values = Lanes::multiply(Lanes::template load<bits>(words, column, bias), scale);
        Lanes::template store<out_type>(Lanes::template round<scale_type>(values), job.out, first + column);
    }
}

template <class Lanes, int bits, Float scale_type, Float out_type>
void unpack_typed(const UnpackJob& job, int64_t begin, int64_t end) {
    // Eight codes fill whole bytes at every width, so a vector may start at any multiple of eight columns.
    const bool aligned = job.group % 8 == 0 || job.group == job.cols;
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t column = 0, index = row * job.scale_stride; column < job.cols; column += job.group, ++index) {
            const float scale = read_scale(job, index);
            const int32_t bias = (1 << (bits - 1)) + (job.zeros ? job.zeros[index] : 0);
            const int64_t last = column + job.group;
            const int64_t whole = aligned ? last - job.group % Lanes::width : column;
            unpack_span<Lanes, bits, scale_type, out_type>(job, row, column, whole, scale, bias);
            unpack_span<ScalarLanes, bits, scale_type, out_type>(job, row, whole, last, scale, bias);
        }
    }
}

template <class Lanes, int bits, Float scale_type>
void unpack_scaled(const UnpackJob& job, int64_t begin, int64_t end) {
    switch (job.out_type) {
        case Float::f32:
            return unpack_typed<Lanes, bits, scale_type, Float::f32>(job, begin, end);
        case Float::bf16:
            return unpack_typed<Lanes, bits, scale_type, Float::bf16>(job, begin, end);
        case Float::f16:
            return unpack_typed<Lanes, bits, scale_type, Float::f16>(job, begin, end);
    }
}

template <class Lanes, int bits>
void unpack_bits(const UnpackJob& job, int64_t begin, int64_t end) {
    switch (job.scale_type) {
        case Float::f32:
            return unpack_scaled<Lanes, bits, Float::f32>(job, begin, end);
        case Float::bf16:
            return unpack_scaled<Lanes, bits, Float::bf16>(job, begin, end);
        case Float::f16:
            return unpack_scaled<Lanes, bits, Float::f16>(job, begin, end);
    }
}

template <class Lanes>
void unpack_all(const UnpackJob& job, int64_t begin, int64_t end) {
    switch (job.bits) {
        case 2:
            return unpack_bits<Lanes, 2>(job, begin, end);
        case 3:
            return unpack_bits<Lanes, 3>(job, begin, end);
        case 4:
            return unpack_bits<Lanes, 4>(job, begin, end);
        case 8:
            return unpack_bits<Lanes, 8>(job, begin, end);
    }
}

}  // namespace
}  // namespace llmquant
