// The kernel layout of a packed weight: one block of memory with a header, made from the checkpoint's tensors at load.
//
//     header   64 bytes
//     codes    [tile][block][vector][half][16 rows][4 bytes]
//     scales   [tile][block][32 rows], in the type they had
//     zeros    [tile][block][32 rows] int8, asymmetric weights only
//
// A tile is 32 outputs, a block 128, 64 or 32 inputs that share a scale. A 64-byte vector holds four bytes for each of
// 16 outputs, so that a 32-bit lane is one output and no horizontal sum is ever needed; inputs are broadcast against
// it. Codes are unsigned (code + 2^(bits-1)). Of 8 bits, byte i of vector v is input 4v + i of the block. Of 4 bits, a
// span of 32 inputs takes 4 vectors: byte i of vector v holds input 4v + i in its low half and input 16 + 4v + i in its
// high half. Weights of 2 and 3 bits are widened to 4. Outputs and inputs that fill up the last tile and block have
// code 0.
#pragma once

#include <cstdint>

#include "types.h"

namespace llmquant {

constexpr int64_t tile_rows = 32;
constexpr int64_t span_cols = 32;

struct WeightHeader {
    uint32_t magic;  // weight_magic
    int32_t bits;    // of the checkpoint: 2, 3, 4 or 8
    int32_t block;   // inputs of a block
    Float scale_type;
    int64_t rows;        // outputs
    int64_t cols;        // inputs
    int64_t groups;      // scales of an output in the checkpoint
    int32_t per_tensor;  // the checkpoint has one scale for all outputs
    int32_t has_zeros;
};

constexpr uint32_t weight_magic = 0x31574c51;  // "QLW1"
constexpr int64_t header_bytes = 64;
static_assert(sizeof(WeightHeader) <= header_bytes, "the header has 64 bytes");

// Where everything lies, computed once per call.
struct Weight {
    const WeightHeader* header;
    int64_t tiles, blocks;
    int64_t tile_bytes, block_bytes;  // of codes
    int code_bits;                    // 4 or 8
    uint8_t* codes;
    uint8_t* scales;
    int8_t* zeros;  // null for symmetric weights

    explicit Weight(void* memory) {
        header = static_cast<const WeightHeader*>(memory);
        code_bits = header->bits == 8 ? 8 : 4;
        tiles = (header->rows + tile_rows - 1) / tile_rows;
        blocks = (header->cols + header->block - 1) / header->block;
        block_bytes = header->block * tile_rows * code_bits / 8;
        tile_bytes = blocks * block_bytes;
        codes = static_cast<uint8_t*>(memory) + header_bytes;
        scales = codes + tiles * tile_bytes;
        zeros = header->has_zeros ? reinterpret_cast<int8_t*>(scales) + scale_bytes() : nullptr;
    }

    int64_t scale_bytes() const { return tiles * blocks * tile_rows * float_size(header->scale_type); }
    int64_t bytes() const {
        return header_bytes + tiles * tile_bytes + scale_bytes() + (header->has_zeros ? tiles * blocks * tile_rows : 0);
    }
};

// A checkpoint's tensors: packed (rows, words), scales (rows, groups) or (1, 1), zeros like scales as int8, or null.
struct Stored {
    uint32_t* packed;
    uint8_t* scales;
    int8_t* zeros;
};

// Fill `weight` from a checkpoint's tensors, or the other way round, for tiles [begin, end).
void pack_tiles(const Weight& weight, const Stored& stored, int64_t begin, int64_t end);
void unpack_tiles(const Weight& weight, const Stored& stored, int64_t begin, int64_t end);

// One row as in the checkpoint: `words` of packed codes, groups of scales and zeros.
void unpack_row(const Weight& weight, int64_t row, uint32_t* words, uint8_t* scales, int8_t* zeros);

}  // namespace llmquant
