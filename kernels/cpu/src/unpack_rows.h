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

#include "lanes.h"
#include "unpack.h"

namespace llmquant {
namespace {

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
