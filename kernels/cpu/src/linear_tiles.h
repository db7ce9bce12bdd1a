// The arithmetic of linear.h, shared by the instruction sets. Each includes this file and gives
//
//     Lanes         conversions of floats, see lanes.h
//     Sets          Ints, Floats (16 lanes each), Bytes (64 of them), Input (one 32-bit lane of x, broadcast), and
//                     exact, fast8       forms of the inputs, see LinearKernel
//                     heights            rows of x at once, by form
//                     halves(height)     1 or 2: how many vectors of 16 outputs are worked on at once
//                     Sum<bits>          sums of products: start(Ints), add(Bytes, Input), span_end(), total()
//                     WordSum            the same of words: start(Ints), add(Ints, Input), total()
//                     words<bits, part>  the codes of a vector that meet one lane of inputs, as words
//                     loads, low/high halves of bytes, and a few operations on lanes
//
// Everything has internal linkage on purpose, as in lanes.h.
#pragma once

#include "linear_inputs.h"

namespace llmquant {
namespace {

constexpr int tallest = 12;
// How far ahead memory is asked for: bytes of codes, blocks of scales. The hardware alone reaches 4/5 of the bandwidth.
constexpr int64_t codes_ahead = 3072;
constexpr int64_t scales_ahead = 4;

// --- products --------------------------------------------------------------------------------------------------------

template <class Sets, int bits, Form form>
struct SumOf {
    using Type = typename Sets::template Sum<bits>;
};

template <class Sets, int bits>
struct SumOf<Sets, bits, Form::words> {
    using Type = typename Sets::WordSum;
};

// One block: every half of every vector against `height` rows and all planes.
template <class Sets, int bits, int height, int planes>
inline __attribute__((always_inline)) void multiply_block(
    const uint8_t* codes, const int8_t* x, int64_t block,
    typename Sets::template Sum<bits> (&sums)[Sets::halves(height)][height][planes]) {
    using Sum = typename Sets::template Sum<bits>;
    constexpr int halves = Sets::halves(height), vectors = bits == 4 ? 4 : 8;  // of a span
    const int64_t plane_stride = block * height;
    for (int64_t span = 0; span < block; span += span_cols) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            typename Sets::Bytes low[halves], high[halves];
#pragma GCC unroll 2
            for (int h = 0; h < halves; ++h) {
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
                    for (int h = 0; h < halves; ++h) sums[h][m][p].add(low[h], input);
                    if constexpr (bits == 4) {
                        const auto other = Sets::broadcast(row + (16 * height + m * 4) + p * plane_stride);
#pragma GCC unroll 2
                        for (int h = 0; h < halves; ++h) sums[h][m][p].add(high[h], other);
                    }
                }
            }
        }
        codes += vectors * 128;
        if constexpr (Sum::ends) {
#pragma GCC unroll 2
            for (int h = 0; h < halves; ++h) {
#pragma GCC unroll 12
                for (int m = 0; m < height; ++m) {
#pragma GCC unroll 2
                    for (int p = 0; p < planes; ++p) sums[h][m][p].span_end();
                }
            }
        }
    }
}

template <class Sets, int bits, int part, int height>
inline __attribute__((always_inline)) void multiply_words(
    const uint8_t* codes, const int8_t* x, typename Sets::WordSum (&sums)[Sets::halves(height)][height][1]) {
    constexpr int halves = Sets::halves(height);
    typename Sets::Ints words[halves];
#pragma GCC unroll 2
    for (int h = 0; h < halves; ++h) {
        if constexpr (part == 0) Sets::prefetch(codes + h * 64 + codes_ahead);
        words[h] = Sets::template words<bits, part>(codes + h * 64);
    }
#pragma GCC unroll 12
    for (int m = 0; m < height; ++m) {
        const auto input = Sets::broadcast(x + m * 8);
#pragma GCC unroll 2
        for (int h = 0; h < halves; ++h) sums[h][m][0].add(words[h], input);
    }
}

// The same with words: a vector of codes has two parts of 16 bits, or four of 4-bit codes.
template <class Sets, int bits, int height>
inline __attribute__((always_inline)) void multiply_block(
    const uint8_t* codes, const int8_t* x, int64_t block,
    typename Sets::WordSum (&sums)[Sets::halves(height)][height][1]) {
    constexpr int vectors = bits == 4 ? 4 : 8;  // of a span
    for (int64_t span = 0; span < block; span += span_cols, codes += vectors * 128) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            const int8_t* row = x + (span + v * 4) * height * 2;
            multiply_words<Sets, bits, 0>(codes + v * 128, row, sums);
            multiply_words<Sets, bits, 1>(codes + v * 128, row + 4, sums);
            if constexpr (bits == 4) {
                multiply_words<Sets, bits, 2>(codes + v * 128, row + 16 * height * 2, sums);
                multiply_words<Sets, bits, 3>(codes + v * 128, row + 16 * height * 2 + 4, sums);
            }
        }
    }
}

// One tile, or half of it, against a panel: acc[row][16 * half].
template <class Sets, int bits, Form form, int height>
void multiply_panel(const Weight& weight, int64_t tile, int first_half, const int8_t* values, const float* scales,
                    const int32_t* sums, float (*acc)[tile_rows]) {
    using Sum = typename SumOf<Sets, bits, form>::Type;
    constexpr int planes = planes_of(form), halves = Sets::halves(height);
    const int64_t block = weight.header->block;
    constexpr int32_t middle = bits == 4 ? -8 : -128;
    const Float type = weight.header->scale_type;
    const uint8_t* codes = weight.codes + tile * weight.tile_bytes + first_half * 64;
    typename Sets::Floats totals[halves][height];
    for (int h = 0; h < halves; ++h) {
        for (int m = 0; m < height; ++m) totals[h][m] = Sets::zero();
    }
    for (int64_t b = 0; b < weight.blocks; ++b) {
        Sum products[halves][height][planes];
#pragma GCC unroll 2
        for (int h = 0; h < halves; ++h) {
#pragma GCC unroll 12
            for (int m = 0; m < height; ++m) {
                if constexpr (planes == 2) products[h][m][0].start(Sets::ints(0));
                products[h][m][planes - 1].start(Sets::ints(middle * sums[b * height + m]));
            }
        }
        const int8_t* x = values + b * block * height * planes * bytes_of(form);
        multiply_block<Sets, bits, height>(codes + b * weight.block_bytes, x, block, products);
        const int64_t first = (tile * weight.blocks + b) * tile_rows + first_half * 16;
        Sets::prefetch(weight.scales + (first + scales_ahead * tile_rows) * float_size(type));
#pragma GCC unroll 2
        for (int h = 0; h < halves; ++h) {
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
    for (int h = 0; h < halves; ++h) {
        for (int m = 0; m < height; ++m) Sets::store(acc[m] + (first_half + h) * 16, totals[h][m]);
    }
}

template <class Sets, int bits, Form form, int height>
void multiply_tile(const Weight& weight, int64_t tile, const Quantized& x, int64_t panel, float (*acc)[tile_rows]) {
    for (int half = 0; half < 2; half += Sets::halves(height)) {
        multiply_panel<Sets, bits, form, height>(weight, tile, half, x.values + panel * x.value_stride(),
                                                 x.scales + panel * x.scale_stride(), x.sums + panel * x.scale_stride(),
                                                 acc);
    }
}

template <class Sets, int bits, Form form>
void multiply_height(const Weight& weight, int64_t tile, const Quantized& x, int64_t panel, float (*acc)[tile_rows]) {
    constexpr int most = Sets::heights[static_cast<int>(form)];
    switch (x.height) {
#define LLMQUANT_HEIGHT(n)                                                                        \
    case n:                                                                                       \
        if constexpr (n <= most) multiply_tile<Sets, bits, form, n>(weight, tile, x, panel, acc); \
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

// Only the forms that `linear` chooses for these sets.
template <class Sets, int bits>
void multiply_form(const Weight& weight, int64_t tile, const Quantized& x, int64_t panel, float (*acc)[tile_rows]) {
    if (x.form == Form::bytes) {
        if constexpr (bits == 4 || Sets::fast8 == Form::bytes) {
            multiply_height<Sets, bits, Form::bytes>(weight, tile, x, panel, acc);
        }
    } else {
        multiply_height<Sets, bits, Sets::exact>(weight, tile, x, panel, acc);
    }
}

template <class Sets>
void multiply(const Weight& weight, int64_t tile, const Quantized& x, int64_t panel, float (*acc)[tile_rows]) {
    if (weight.code_bits == 4) return multiply_form<Sets, 4>(weight, tile, x, panel, acc);
    multiply_form<Sets, 8>(weight, tile, x, panel, acc);
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
    static_assert(Sets::fast8 == Form::bytes || Sets::fast8 == Sets::exact, "two forms at most");
    return {Sets::exact,
            Sets::fast8,
            {Sets::heights[0], Sets::heights[1], Sets::heights[2]},
            quantize_rows<Lanes>,
            linear_tile<Sets, Lanes>};
}

}  // namespace
}  // namespace llmquant
