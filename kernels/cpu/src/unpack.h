// Packed integer weights to floats: the job, and one function per instruction set that does a range of its rows.
//
// Layout of `packed` (compressed-tensors 0.20): a row is one dense stream of bits, lowest bit first, in little-endian
// 32-bit words; code c of a row, stored as code + 2^(bits-1), fills bits [c * bits, (c + 1) * bits) of the row.
//
//     bits = 4, one word:  | code 7 | code 6 | ... | code 1 | code 0 |     bits 31..28 ... 3..0
//
// out[r][c] = round_out(round_scale((code - zero) * scale)): the product is rounded to the type of the scale and then
// to the type of the result, which are the bits that torch gives for `((codes - zeros) * scales).to(dtype)`.
#pragma once

#include <cstdint>

#include "types.h"

namespace llmquant {

struct UnpackJob {
    const uint32_t* packed;  // (rows, words)
    const void* scales;      // (rows, groups) of scale_type
    const int8_t* zeros;     // (rows, groups), or null: all zero
    void* out;               // (rows, cols) of out_type
    int64_t cols;
    int64_t words;         // 32-bit words of a row
    int64_t group;         // columns that share a scale; divides cols
    int64_t scale_stride;  // scales from one row to the next: groups, or 0 where one scale serves all rows
    int32_t bits;          // 2, 3, 4 or 8
    Float scale_type;
    Float out_type;
};

using UnpackRows = void (*)(const UnpackJob& job, int64_t begin, int64_t end);

void unpack_rows_scalar(const UnpackJob& job, int64_t begin, int64_t end);
void unpack_rows_avx2(const UnpackJob& job, int64_t begin, int64_t end);
void unpack_rows_avx512(const UnpackJob& job, int64_t begin, int64_t end);

}  // namespace llmquant
