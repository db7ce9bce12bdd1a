// AVX2: sixteen outputs are two registers. The arithmetic is that of linear_avx512.cpp.
#include "lanes_avx2.h"
#include "linear_tiles.h"

namespace llmquant {
namespace {

struct Avx2Sets {
    struct Ints {
        __m256i a, b;
    };
    struct Floats {
        __m256 a, b;
    };
    using Bytes = Ints;
    // Few rows wait for memory, which is fastest read in order; more need the registers.
    static constexpr int halves(int height) { return height <= 2 ? 2 : 1; }
    static constexpr Form exact = Form::words, fast8 = Form::words;
    static constexpr int heights[3] = {4, 0, 4};

    // Forced inline: GCC takes a function that only prefetches for one without effect, and drops the call.
    __attribute__((always_inline)) static void prefetch(const uint8_t* from) {
        _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
    }
    static Bytes load(const uint8_t* from) {
        const __m256i* both = reinterpret_cast<const __m256i*>(from);
        Bytes codes = {_mm256_loadu_si256(both), _mm256_loadu_si256(both + 1)};
        // Else GCC reads the same bytes twice, once for each half.
        __asm__("" : "+x"(codes.a), "+x"(codes.b));
        return codes;
    }
    static Bytes low_nibbles(Bytes codes) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(codes.a, mask), _mm256_and_si256(codes.b, mask)};
    }
    static Bytes high_nibbles(Bytes codes) {
        return low_nibbles({_mm256_srli_epi16(codes.a, 4), _mm256_srli_epi16(codes.b, 4)});
    }
    // Else GCC multiplies far ahead of the additions, and keeps the products on the stack.
    static __m256i in_order(__m256i sum) {
        __asm__("" : "+x"(sum));
        return sum;
    }
    static __m256i broadcast(const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, 4);
        return _mm256_set1_epi32(word);
    }
    static Ints ints(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
    static Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
    static Ints subtract(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
    static Ints multiply(Ints x, Ints y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
    static Ints times_256(Ints x) { return {_mm256_slli_epi32(x.a, 8), _mm256_slli_epi32(x.b, 8)}; }
    static Ints zeros(const int8_t* from) {
        const __m128i* both = reinterpret_cast<const __m128i*>(from);
        return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(both)),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8)))};
    }
    static Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Floats set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static Floats floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static Floats multiply(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static Floats fma(Floats x, Floats y, Floats z) {
        return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
    }
    static void store(float* to, Floats x) {
        _mm256_storeu_ps(to, x.a);
        _mm256_storeu_ps(to + 8, x.b);
    }
    static __m256 eight_scales(const uint8_t* from, int64_t index, Float type) {
        if (type == Float::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(from) + index);
        const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * index));
        if (type == Float::f16) return _mm256_cvtph_ps(raw);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
    }
    static Floats scales(const uint8_t* from, int64_t index, Float type) {
        return {eight_scales(from, index, type), eight_scales(from, index + 8, type)};
    }

    template <int bits, int part>
    static __m256i eight_lanes(const uint8_t* from) {
        // Read again for each part: no register is left to keep it in.
        __asm__("" : "+r"(from));
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        const __m256i mask = _mm256_set1_epi16(bits == 4 ? 15 : 255);
        if constexpr (part == 0) return _mm256_and_si256(codes, mask);
        if constexpr (part == 16 / bits - 1) return _mm256_srli_epi16(codes, 16 - bits);
        return _mm256_and_si256(_mm256_srli_epi16(codes, part == 1 ? 8 : 4), mask);
    }
    template <int bits, int part>
    static Ints words(const uint8_t* from) {
        return {eight_lanes<bits, part>(from), eight_lanes<bits, part>(from + 32)};
    }

    struct WordSum {
        Ints sum;
        void start(Ints value) { sum = value; }
        void add(Ints codes, __m256i input) {
            sum = {in_order(_mm256_add_epi32(sum.a, _mm256_madd_epi16(codes.a, input))),
                   in_order(_mm256_add_epi32(sum.b, _mm256_madd_epi16(codes.b, input)))};
        }
        Ints total() const { return sum; }
    };

    // Pairs of products of a 4-bit code and a byte, at most 2 * 15 * 128, add in 16 bits; the eight of a span fit.
    template <int bits>
    struct Sum {
        static_assert(bits == 4, "8-bit codes take words: in bytes the products would saturate");
        static constexpr bool ends = true;
        Ints sum, pairs;
        void start(Ints value) {
            sum = value;
            pairs = ints(0);
        }
        void add(Bytes codes, __m256i input) {
            pairs = {in_order(_mm256_add_epi16(pairs.a, _mm256_maddubs_epi16(codes.a, input))),
                     in_order(_mm256_add_epi16(pairs.b, _mm256_maddubs_epi16(codes.b, input)))};
        }
        void span_end() {
            const __m256i ones = _mm256_set1_epi16(1);
            sum = Avx2Sets::add(sum, {_mm256_madd_epi16(pairs.a, ones), _mm256_madd_epi16(pairs.b, ones)});
            pairs = ints(0);
        }
        Ints total() const { return sum; }
    };
};

constexpr LinearKernel kernel = linear_kernel<Avx2Sets, Avx2Lanes>();

}  // namespace

const LinearKernel& linear_avx2() { return kernel; }

}  // namespace llmquant
