// AVX-512 without VNNI. 4-bit codes: vpmaddubsw adds pairs in 16 bits, at most 2 * 15 * 128, so the eight of a span fit
// before they are widened. 8-bit codes would saturate there: even and odd bytes go through vpmaddwd.
#include "linear_tiles.h"
#include "sets_avx512.h"

namespace llmquant {
namespace {

struct WideSets : Avx512Sets {
    static constexpr int heights[2] = {8, 6};

    // Else GCC multiplies far ahead of the additions, and keeps the products on the stack.
    static __m512i in_order(__m512i sum) {
        __asm__("" : "+v"(sum));
        return sum;
    }

    template <int bits>
    struct Sum {
        static constexpr bool ends = bits == 4;
        __m512i sum, pairs;
        void start(__m512i value) {
            sum = value;
            pairs = _mm512_setzero_si512();
        }
        void add(__m512i codes, __m512i input) {
            if constexpr (bits == 4) {
                pairs = in_order(_mm512_add_epi16(pairs, _mm512_maddubs_epi16(codes, input)));
            } else {
                const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(input, 8), 8);
                const __m512i odd = _mm512_srai_epi16(input, 8);
                const __m512i even_codes = _mm512_and_si512(codes, _mm512_set1_epi16(255));
                sum = in_order(_mm512_add_epi32(sum, _mm512_madd_epi16(even_codes, even)));
                sum = in_order(_mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16(codes, 8), odd)));
            }
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
