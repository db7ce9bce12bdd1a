// GPTQ inside one block of inputs: each input is rounded after those behind it, with what their errors ask of it.
//
//     target[j] = targets[j] + sum over k > j, from the last down, of errors[k] * inner[j][k]
//     codes[j] = clamp(round(target[j] / scale) + zero),   value = round_scale((codes[j] - zero) * scale)
//     errors[j] -= value,   targets[j] = target[j] - value
//
// Every product and every sum is rounded on its own and in this order, so all variants, and torch, give the same bits.
#pragma once

#include <cstdint>

#include "types.h"

namespace llmquant {

// RoundJob in rounding.py. Matrices are (inputs, outputs) with the outputs of an input one after the other.
struct RoundJob {
    float* targets;         // the weight and what earlier blocks ask of it; becomes what rounding missed of that
    float* errors;          // the weight; becomes what rounding took from it
    const float* inner;     // (inputs, inputs)
    const int64_t* groups;  // (inputs): the row of scales
    const float* scales;    // (groups, outputs)
    const float* zeros;     // (groups, outputs), or null: all zero
    int8_t* codes;
    int64_t inputs, outputs;
    int32_t code_min, code_max;
    Float scale_type;  // of which all scales are
    int32_t isa;
};

using RoundOutputs = void (*)(const RoundJob& job, int64_t begin, int64_t end);

void round_outputs_scalar(const RoundJob& job, int64_t begin, int64_t end);
void round_outputs_avx2(const RoundJob& job, int64_t begin, int64_t end);
void round_outputs_avx512(const RoundJob& job, int64_t begin, int64_t end);

}  // namespace llmquant
