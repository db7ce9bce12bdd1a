// Between the layout of a checkpoint and that of the kernels; exact in both directions.
#include "weight.h"

#include <algorithm>
#include <cstring>

namespace llmquant {
namespace {

// `count` codes (at most 32) of a row from input `col` on, as bytes; the rest of `out` is left alone.
void read_codes(const uint32_t* row, int bits, int64_t col, int64_t count, uint8_t* out) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(row) + col * bits / 8;  // col is a multiple of 32
    if (bits == 8) {
        std::memcpy(out, bytes, static_cast<size_t>(count));
    } else if (bits == 4 && count == span_cols) {
        for (int i = 0; i < 16; ++i) {
            out[2 * i] = bytes[i] & 15;
            out[2 * i + 1] = bytes[i] >> 4;
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = (col + i) * bits, word = at / 32, shift = at % 32;
            uint64_t window = row[word];
            if (shift + bits > 32) window |= static_cast<uint64_t>(row[word + 1]) << 32;
            out[i] = static_cast<uint8_t>((window >> shift) & ((1u << bits) - 1));
        }
    }
}

// The inverse; words must be zero before.
void write_codes(uint32_t* row, int bits, int64_t col, int64_t count, const uint8_t* in) {
    uint8_t* bytes = reinterpret_cast<uint8_t*>(row) + col * bits / 8;
    if (bits == 8) {
        std::memcpy(bytes, in, static_cast<size_t>(count));
    } else if (bits == 4 && count == span_cols) {
        for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(in[2 * i] | in[2 * i + 1] << 4);
    } else {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = (col + i) * bits, word = at / 32, shift = at % 32;
            const uint64_t window = static_cast<uint64_t>(in[i]) << shift;
            row[word] |= static_cast<uint32_t>(window);
            if (shift + bits > 32) row[word + 1] |= static_cast<uint32_t>(window >> 32);
        }
    }
}

// The 32-bit lane of an output within vector `vector` of a block.
uint8_t* lane(const Weight& weight, int64_t tile, int64_t block, int64_t vector, int64_t row) {
    return weight.codes + tile * weight.tile_bytes + block * weight.block_bytes + (vector * tile_rows + row) * 4;
}

uint32_t load(const uint8_t* bytes) {
    uint32_t word;
    std::memcpy(&word, bytes, 4);
    return word;
}

void store(uint8_t* bytes, uint32_t word) { std::memcpy(bytes, &word, 4); }

void put_span(const Weight& weight, int64_t tile, int64_t block, int64_t span, int64_t row, const uint8_t* codes) {
    if (weight.code_bits == 8) {
        for (int64_t v = 0; v < 8; ++v) store(lane(weight, tile, block, span * 8 + v, row), load(codes + 4 * v));
    } else {
        for (int64_t v = 0; v < 4; ++v) {
            store(lane(weight, tile, block, span * 4 + v, row), load(codes + 4 * v) | load(codes + 16 + 4 * v) << 4);
        }
    }
}

void get_span(const Weight& weight, int64_t tile, int64_t block, int64_t span, int64_t row, uint8_t* codes) {
    if (weight.code_bits == 8) {
        for (int64_t v = 0; v < 8; ++v) store(codes + 4 * v, load(lane(weight, tile, block, span * 8 + v, row)));
    } else {
        for (int64_t v = 0; v < 4; ++v) {
            const uint32_t both = load(lane(weight, tile, block, span * 4 + v, row));
            store(codes + 4 * v, both & 0x0f0f0f0fu);
            store(codes + 16 + 4 * v, both >> 4 & 0x0f0f0f0fu);
        }
    }
}

int64_t words_of(const WeightHeader& header) { return (header.cols * header.bits + 31) / 32; }

// Index of the checkpoint's scale for an output and a block.
int64_t group_of(const WeightHeader& header, int64_t row, int64_t block) {
    const int64_t group = header.groups == 1 ? 0 : block * header.block / (header.cols / header.groups);
    return (header.per_tensor ? 0 : row * header.groups) + group;
}

void pack_row(const Weight& weight, const Stored& stored, int64_t tile, int64_t lane_row) {
    const WeightHeader& header = *weight.header;
    const int64_t row = tile * tile_rows + lane_row, size = float_size(header.scale_type);
    // The stored code of a weight of 2 or 3 bits is moved to the middle of 4 bits.
    const int middle = weight.code_bits == 8 ? 128 : 8, shift = middle - (1 << (header.bits - 1));
    for (int64_t block = 0; block < weight.blocks; ++block) {
        const int64_t at = (tile * weight.blocks + block) * tile_rows + lane_row;
        for (int64_t span = 0; span < header.block / span_cols; ++span) {
            const int64_t col = block * header.block + span * span_cols;
            const int64_t count = row < header.rows ? std::clamp<int64_t>(header.cols - col, 0, span_cols) : 0;
            uint8_t codes[span_cols];
            std::memset(codes, middle - shift, sizeof codes);
            if (count > 0) read_codes(stored.packed + row * words_of(header), header.bits, col, count, codes);
            if (shift) {
                for (uint8_t& code : codes) code = static_cast<uint8_t>(code + shift);
            }
            put_span(weight, tile, block, span, lane_row, codes);
        }
        const int64_t from = row < header.rows ? group_of(header, row, block) : 0;
        if (row < header.rows) {
            std::memcpy(weight.scales + at * size, stored.scales + from * size, static_cast<size_t>(size));
        } else {
            std::memset(weight.scales + at * size, 0, static_cast<size_t>(size));
        }
        if (weight.zeros) weight.zeros[at] = row < header.rows ? stored.zeros[from] : 0;
    }
}

}  // namespace

void pack_tiles(const Weight& weight, const Stored& stored, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
        for (int64_t row = 0; row < tile_rows; ++row) pack_row(weight, stored, tile, row);
    }
}

void unpack_row(const Weight& weight, int64_t row, uint32_t* words, uint8_t* scales, int8_t* zeros) {
    const WeightHeader& header = *weight.header;
    const int64_t tile = row / tile_rows, lane_row = row % tile_rows, size = float_size(header.scale_type);
    const int shift = (weight.code_bits == 8 ? 128 : 8) - (1 << (header.bits - 1));
    std::memset(words, 0, static_cast<size_t>(words_of(header)) * 4);
    for (int64_t block = 0; block < weight.blocks; ++block) {
        for (int64_t span = 0; span < header.block / span_cols; ++span) {
            const int64_t col = block * header.block + span * span_cols;
            const int64_t count = std::clamp<int64_t>(header.cols - col, 0, span_cols);
            uint8_t codes[span_cols];
            get_span(weight, tile, block, span, lane_row, codes);
            for (uint8_t& code : codes) code = static_cast<uint8_t>(code - shift);
            if (count > 0) write_codes(words, header.bits, col, count, codes);
        }
        const int64_t at = (tile * weight.blocks + block) * tile_rows + lane_row;
        const int64_t to = group_of(header, 0, block);
        std::memcpy(scales + to * size, weight.scales + at * size, static_cast<size_t>(size));
        if (weight.zeros) zeros[to] = weight.zeros[at];
    }
}

void unpack_tiles(const Weight& weight, const Stored& stored, int64_t begin, int64_t end) {
    const WeightHeader& header = *weight.header;
    const int64_t size = float_size(header.scale_type), last = std::min(header.rows, end * tile_rows);
    for (int64_t row = begin * tile_rows; row < last; ++row) {
        // With one scale for all outputs every row has it: let only the first write, so that threads do not race.
        const bool own = !header.per_tensor || row == 0;
        uint8_t scale_dump[4];
        int8_t zero_dump[1];
        const int64_t first = header.per_tensor ? 0 : row * header.groups;
        unpack_row(weight, row, stored.packed + row * words_of(header), own ? stored.scales + first * size : scale_dump,
                   !weight.zeros ? nullptr
                   : own         ? stored.zeros + first
                                 : zero_dump);
    }
}

}  // namespace llmquant
