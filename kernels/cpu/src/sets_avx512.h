// Sixteen outputs per register, 64 codes per load: what AVX-512 with and without VNNI share.
#pragma once

#include <immintrin.h>

#include "lanes_avx512.h"
#include "linear.h"

namespace llmquant {
namespace {

struct Avx512Sets {
    using Ints = __m512i;
    using Floats = __m512;
    using Bytes = __m512i;
    static constexpr int halves(int) { return 2; }

    // Forced inline: GCC takes a function that only prefetches for one without effect, and drops the call.
    __attribute__((always_inline)) static void prefetch(const uint8_t* from) {
        _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
    }
    static Bytes load(const uint8_t* from) {
        Bytes codes = _mm512_loadu_si512(from);
        // Else GCC reads the same bytes twice, once for each half, which costs a fifth of the speed.
        __asm__("" : "+v"(codes));
        return codes;
    }
    static Bytes low_nibbles(Bytes codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
    static Bytes high_nibbles(Bytes codes) { return low_nibbles(_mm512_srli_epi16(codes, 4)); }
    static __m512i broadcast(const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, 4);
        return _mm512_set1_epi32(word);
    }
    static Ints ints(int32_t value) { return _mm512_set1_epi32(value); }
    static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
    static Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
    static Ints times_256(Ints a) { return _mm512_slli_epi32(a, 8); }
    static Ints zeros(const int8_t* from) {
        return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats set(float value) { return _mm512_set1_ps(value); }
    static Floats floats(Ints a) { return _mm512_cvtepi32_ps(a); }
    static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }
    static Floats scales(const uint8_t* from, int64_t index, Float type) {
        if (type == Float::f32) return _mm512_loadu_ps(reinterpret_cast<const float*>(from) + index);
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * index));
        if (type == Float::f16) return _mm512_cvtph_ps(raw);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    }
};

}  // namespace
}  // namespace llmquant
