// Conversions between 32-bit floats and the 16-bit types, one number at a time: the portable lanes, and the ends of
// rows.
//
// Everything here has internal linkage on purpose. With external linkage the linker would keep one copy of each
// function for all files, perhaps the one compiled for AVX-512, and run it on a machine that has none.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

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
    // Subnormal numbers by way of an integer: floats as small as their bits would make may be flushed to zero.
    if (rest < 0x400u) return from_bits(sign | to_bits(static_cast<float>(rest) * 0x1p-24f));
    return from_bits(sign | ((rest << 13) + 0x38000000u));
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

    static float values(const float* in) { return *in; }

    static void widen_f16(const uint16_t* in, float* out) { *out = f16_to_float(*in); }

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

}  // namespace
}  // namespace llmquant
