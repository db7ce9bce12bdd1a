// AVX-512 with VNNI: vpdpbusd multiplies unsigned codes with signed inputs and sums four of them, without saturation.
#include "linear_tiles.h"
#include "sets_avx512.h"

namespace llmquant {
namespace {

struct VnniSets : Avx512Sets {
    static constexpr Form exact = Form::planes, fast8 = Form::bytes;
    static constexpr int heights[3] = {8, 6, 0};

    template <int bits>
    struct Sum {
        static constexpr bool ends = false;
        __m512i sum;
        void start(__m512i value) { sum = value; }
        void add(__m512i codes, __m512i input) { sum = _mm512_dpbusd_epi32(sum, codes, input); }
        __m512i total() const { return sum; }
    };
};

constexpr LinearKernel kernel = linear_kernel<VnniSets, Avx512Lanes>();

}  // namespace

const LinearKernel& linear_avx512vnni() { return kernel; }

}  // namespace llmquant
