#include "isa.h"

#if defined(LLMQUANT_X86)
#include <cpuid.h>
#elif defined(LLMQUANT_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace llmquant {

#if defined(LLMQUANT_X86)
namespace {

// The registers that the operating system saves: bits 1, 2 are SSE and AVX, 5 to 7 the AVX-512 ones.
uint32_t saved_registers() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

Isa best() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::scalar;
    const uint32_t fma_osxsave_avx_f16c = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;
    if ((c & fma_osxsave_avx_f16c) != fma_osxsave_avx_f16c || (saved_registers() & 0x06) != 0x06) return Isa::scalar;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 5)) return Isa::scalar;
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const bool wide = (b & f_dq_bw_vl) == f_dq_bw_vl && (saved_registers() & 0xe6) == 0xe6;
    if (!wide) return Isa::avx2;
    return c & 1u << 11 ? Isa::avx512vnni : Isa::avx512;
}

}  // namespace

bool supported(Isa isa) {
    static const Isa widest = best();
    return isa >= Isa::scalar && isa <= widest;
}
#elif defined(LLMQUANT_NEON)
bool supported(Isa isa) {
#if defined(__linux__)
    // The dot product: ARMv8.4, and most of 8.2. Cortex-A72 and older run the scalar variant.
    if (isa == Isa::neon) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    return isa == Isa::scalar;
#else
    return isa == Isa::scalar || isa == Isa::neon;  // every Apple processor for the desktop has it
#endif
}
#else
bool supported(Isa isa) { return isa == Isa::scalar; }
#endif

}  // namespace llmquant
