// AVX-512 without VNNI. 4-bit codes and bytes: vpmaddubsw adds pairs in 16 bits, at most 2 * 15 * 128, so the eight of
// a span fit before they are widened. 8-bit codes would saturate there: they, and all 16-bit inputs, go through
// vpmaddwd.
#include "linear_tiles.h"
#include "sets_avx512.h"

namespace llmquant {
namespace {

struct WideSets : Avx512Sets {
    static constexpr Form exact = Form::words, fast8 = Form::words;
    static constexpr int heights[3] = {8, 0, 8};

    // Else GCC multiplies far ahead of the additions, and keeps the products on the stack.
    static __m512i in_order(__m512i sum) {
        __asm__("" : "+v"(sum));
        return sum;
    }

    template <int bits, int part>
    static Ints words(const uint8_t* from) {
        const __m512i codes = load(from), mask = _mm512_set1_epi16(bits == 4 ? 15 : 255);
        if constexpr (part == 0) return _mm512_and_si512(codes, mask);
        if constexpr (part == 16 / bits - 1) return _mm512_srli_epi16(codes, 16 - bits);
        return _mm512_and_si512(_mm512_srli_epi16(codes, part == 1 ? 8 : 4), mask);
    }

    struct WordSum {
        __m512i sum;
        void start(__m512i value) { sum = value; }
        void add(__m512i codes, __m512i input) {
            sum = in_order(_mm512_add_epi32(sum, _mm512_madd_epi16(codes, input)));
        }
        __m512i total() const { return sum; }
    };

    template <int bits>
    struct Sum {
        static_assert(bits == 4, "8-bit codes take words: in bytes the products would saturate");
        static constexpr bool ends = true;
        __m512i sum, pairs;
        void start(__m512i value) {
            sum = value;
            pairs = _mm512_setzero_si512();
        }
        void add(__m512i codes, __m512i input) {
            pairs = in_order(_mm512_add_epi16(pairs, _mm512_maddubs_epi16(codes, input)));
        }
        void span_end() {
            sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
            pairs = _mm512_setzero_si512();
        }
        __m512i total() const { return sum; }
    };
};

constexpr LinearKernel kernel = linear_kernel<WideSets, Avx512Lanes>();

}  // namespace

const LinearKernel& linear_avx512() { return kernel; }

}  // namespace llmquant
