// The loop of rounding.h over the inputs of a block, shared by the instruction sets, which differ in how many outputs
// are one vector. The compilers' own vectors: the file that includes this is compiled for its instruction set.
//
// Everything here has internal linkage on purpose. With external linkage the linker would keep one copy of each
// template for all files, perhaps the one compiled for AVX-512, and run it on a machine that has none.
#pragma once

#include <cstring>

#include "rounding.h"

namespace llmquant {
namespace {

// GCC forgets the size of a vector type that depends on a template's parameter: one struct for each.
template <int width>
struct Types;

template <>
struct Types<4> {
    typedef float Values __attribute__((vector_size(16)));
    typedef uint32_t Bits __attribute__((vector_size(16)));
    typedef int8_t Bytes __attribute__((vector_size(4)));
};

template <>
struct Types<8> {
    typedef float Values __attribute__((vector_size(32)));
    typedef uint32_t Bits __attribute__((vector_size(32)));
    typedef int8_t Bytes __attribute__((vector_size(8)));
};

template <>
struct Types<16> {
    typedef float Values __attribute__((vector_size(64)));
    typedef uint32_t Bits __attribute__((vector_size(64)));
    typedef int8_t Bytes __attribute__((vector_size(16)));
};

template <int width>
struct Vector {
    using Values = typename Types<width>::Values;
    using Bits = typename Types<width>::Bits;
    using Bytes = typename Types<width>::Bytes;

    static Bits bits_of(Values values) {
        Bits bits;
        std::memcpy(&bits, &values, sizeof bits);
        return bits;
    }

    static Values values_of(Bits bits) {
        Values values;
        std::memcpy(&values, &bits, sizeof values);
        return values;
    }

    // The first `lanes` of a vector; the others are 0.
    static Values load(const float* from, int64_t lanes = width) {
        Values values{};
        std::memcpy(&values, from, static_cast<size_t>(lanes) * sizeof(float));
        return values;
    }

    static void store(Values values, float* to, int64_t lanes) {
        std::memcpy(to, &values, static_cast<size_t>(lanes) * sizeof(float));
    }

    static void store_bytes(Values values, int8_t* to, int64_t lanes) {
        const Bytes bytes = __builtin_convertvector(values, Bytes);
        std::memcpy(to, &bytes, static_cast<size_t>(lanes));
    }

    static Values clamp(Values values, float low, float high) {
        const Values lows = Values{} + low, highs = Values{} + high;
        values = values < lows ? lows : values;
        return values > highs ? highs : values;
    }

    // To the nearest integer, ties to even, of numbers below 2^22: behind this sum a float has no bits for a fraction.
    static Values nearest(Values values) { return (values + 0x1.8p23f) - 0x1.8p23f; }

    // To the nearest number of a type, ties to even. No number here is NaN.
    template <Float type>
    static Values round(Values values) {
        if constexpr (type == Float::f32) return values;
        const Bits bits = bits_of(values);
        if constexpr (type == Float::bf16) {
            return values_of((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
        }
        const Bits sign = bits & 0x80000000u, rest = bits & 0x7fffffffu;
        Bits rounded = (rest + 0xfffu + ((rest >> 13) & 1u)) & 0xffffe000u;
        rounded = rounded >= (Bits{} + 0x47800000u) ? Bits{} + 0x7f800000u : rounded;  // 65520 and more
        // Below 2^-14 there are multiples of 2^-24 only, which is what a sum with 0.5 can hold.
        const Bits small = bits_of((values_of(rest) + 0.5f) - 0.5f);
        rounded = rest < (Bits{} + 0x38800000u) ? small : rounded;
        return values_of(rounded | sign);
    }
};

// `count` vectors of outputs from `first` on, enough sums at once to hide how long an addition takes; or `lanes`
// outputs, where they do not fill one.
template <int width, int count, Float type>
inline void round_tile(const RoundJob& job, int64_t first, int64_t lanes = width) {
    using V = Vector<width>;
    using Values = typename V::Values;
    const float low = static_cast<float>(job.code_min), high = static_cast<float>(job.code_max);
    for (int64_t input = job.inputs - 1; input >= 0; --input) {
        const float* inner = job.inner + input * job.inputs;
        const int64_t row = input * job.outputs + first, grid = job.groups[input] * job.outputs + first;
        Values targets[count];
        for (int i = 0; i < count; ++i) targets[i] = V::load(job.targets + row + i * width, lanes);
        for (int64_t later = job.inputs - 1; later > input; --later) {
            const float* errors = job.errors + later * job.outputs + first;
            for (int i = 0; i < count; ++i) targets[i] += V::load(errors + i * width, lanes) * inner[later];
        }
        for (int i = 0; i < count; ++i) {
            const int64_t at = row + i * width;
            const Values scale = V::load(job.scales + grid + i * width, lanes);
            const Values zero = job.zeros ? V::load(job.zeros + grid + i * width, lanes) : Values{};
            // 2^16 is far outside the codes already, and small enough for `nearest`.
            const Values steps = V::nearest(V::clamp(targets[i] / scale, -0x1p16f, 0x1p16f));
            const Values codes = V::clamp(steps + zero, low, high);
            const Values values = V::template round<type>((codes - zero) * scale);
            V::store_bytes(codes, job.codes + at, lanes);
            V::store(V::load(job.errors + at, lanes) - values, job.errors + at, lanes);
            V::store(targets[i] - values, job.targets + at, lanes);
        }
    }
}

template <int width, Float type>
void round_typed(const RoundJob& job, int64_t begin, int64_t end) {
    for (; begin + 4 * width <= end; begin += 4 * width) round_tile<width, 4, type>(job, begin);
    for (; begin + width <= end; begin += width) round_tile<width, 1, type>(job, begin);
    if (begin < end) round_tile<width, 1, type>(job, begin, end - begin);
}

template <int width>
void round_all(const RoundJob& job, int64_t begin, int64_t end) {
    switch (job.scale_type) {
        case Float::f32:
            return round_typed<width, Float::f32>(job, begin, end);
        case Float::bf16:
            return round_typed<width, Float::bf16>(job, begin, end);
        case Float::f16:
            return round_typed<width, Float::f16>(job, begin, end);
    }
}

}  // namespace
}  // namespace llmquant
