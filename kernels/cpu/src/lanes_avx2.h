// Eight columns at a time: AVX2 and F16C.
#pragma once

#include <immintrin.h>

#include "lanes.h"

namespace llmquant {
namespace {

struct Avx2Lanes {
    using Values = __m256;
    static constexpr int64_t width = 8;

    // The `bits` bytes that hold eight codes, in every lane; each lane then shifts its own code down.
    template <int bits>
    static __m256 load(const uint32_t* row, int64_t column, int32_t bias) {
        const char* bytes = reinterpret_cast<const char*>(row) + column / 8 * bits;
        __m256i codes;
        if constexpr (bits == 8) {
            codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
        } else {
            int32_t eight = 0;
            std::memcpy(&eight, bytes, bits);
            const __m256i shifts =
                _mm256_setr_epi32(0, bits, 2 * bits, 3 * bits, 4 * bits, 5 * bits, 6 * bits, 7 * bits);
            codes = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(eight), shifts),
                                     _mm256_set1_epi32((1 << bits) - 1));
        }
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(bias)));
    }

    static __m256 values(const float* in) { return _mm256_loadu_ps(in); }

    static void widen_f16(const uint16_t* in, float* out) {
        _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
    }

    static __m256 multiply(__m256 values, float scale) { return _mm256_mul_ps(values, _mm256_set1_ps(scale)); }

    // The rounded number in the high half of each lane, as `float_to_bf16` has it in 16 bits.
    static __m256i bf16_lanes(__m256 values) {
        const __m256i raw = _mm256_castps_si256(values);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(raw, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(raw, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
        const __m256i picked = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
        return _mm256_and_si256(picked, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u)));
    }

    template <Float type>
    static __m256 round(__m256 values) {
        if constexpr (type == Float::bf16) return _mm256_castsi256_ps(bf16_lanes(values));
        if constexpr (type == Float::f16) return _mm256_cvtph_ps(_mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
        return values;
    }

    template <Float type>
    static void store(__m256 values, void* out, int64_t index) {
        if constexpr (type == Float::f32) {
            _mm256_storeu_ps(static_cast<float*>(out) + index, values);
            return;
        }
        __m128i halves;
        if constexpr (type == Float::f16) {
            halves = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
        } else {
            const __m256i lanes = _mm256_srli_epi32(bf16_lanes(values), 16);
            halves = _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(out) + index), halves);
    }
};

}  // namespace
}  // namespace llmquant
