// Sixteen columns at a time: AVX-512 F, BW, DQ and VL. A group that is no multiple of 16 ends with scalar columns.
#pragma once

#include <immintrin.h>

#include "lanes.h"

namespace llmquant {
namespace {

struct Avx512Lanes {
    using Values = __m512;
    static constexpr int64_t width = 16;

    // Lanes 0..7 get the `bits` bytes of the first eight codes, lanes 8..15 those of the next eight.
    template <int bits>
    static __m512 load(const uint32_t* row, int64_t column, int32_t bias) {
        const char* bytes = reinterpret_cast<const char*>(row) + column / 8 * bits;
        __m512i codes;
        if constexpr (bits == 8) {
            codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
        } else {
            int32_t low = 0, high = 0;
            std::memcpy(&low, bytes, bits);
            std::memcpy(&high, bytes + bits, bits);
            const __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
            const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
            const __m512i shifts = _mm512_mullo_epi32(lane, _mm512_set1_epi32(bits));
            codes = _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi32((1 << bits) - 1));
        }
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(bias)));
    }

    static __m512 values(const float* in) { return _mm512_loadu_ps(in); }

    static void widen_f16(const uint16_t* in, float* out) {
        _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in))));
    }

    static __m512 multiply(__m512 values, float scale) { return _mm512_mul_ps(values, _mm512_set1_ps(scale)); }

    // The rounded number in the high half of each lane, as `float_to_bf16` has it in 16 bits.
    static __m512i bf16_lanes(__m512 values) {
        const __m512i raw = _mm512_castps_si512(values);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(raw, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(raw, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
        const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        const __m512i picked = _mm512_mask_set1_epi32(rounded, nan, 0x7fc00000);
        return _mm512_and_si512(picked, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u)));
    }

    template <Float type>
    static __m512 round(__m512 values) {
        if constexpr (type == Float::bf16) return _mm512_castsi512_ps(bf16_lanes(values));
        if constexpr (type == Float::f16) return _mm512_cvtph_ps(_mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
        return values;
    }

    template <Float type>
    static void store(__m512 values, void* out, int64_t index) {
        if constexpr (type == Float::f32) {
            _mm512_storeu_ps(static_cast<float*>(out) + index, values);
            return;
        }
        __m256i halves;
        if constexpr (type == Float::f16) {
            halves = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
        } else {
            halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_lanes(values), 16));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(out) + index), halves);
    }
};

}  // namespace
}  // namespace llmquant
