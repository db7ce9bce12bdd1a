// The C interface that llmquant/kernels/native.py calls through ctypes. Raise LLMQUANT_ABI there and here together.
#include "isa.h"
#include "unpack.h"

#define LLMQUANT_ABI 1
#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using namespace llmquant;

// torch_parallel_for of torch's stable C interface (torch >= 2.10): its thread pool, without linking torch.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                                void* context);

struct Call {
    const UnpackJob* job;
    UnpackRows rows;
};

void run_rows(int64_t begin, int64_t end, void* context) {
    const Call& call = *static_cast<const Call*>(context);
    call.rows(*call.job, begin, end);
}

UnpackRows variant(Isa isa) {
    if (!supported(isa)) return nullptr;
#if defined(LLMQUANT_X86)
    if (isa == Isa::avx512) return unpack_rows_avx512;
    if (isa == Isa::avx2) return unpack_rows_avx2;
#endif
    return unpack_rows_scalar;
}

}  // namespace

EXPORT int32_t llmquant_abi() { return LLMQUANT_ABI; }

EXPORT int32_t llmquant_isa_supported(int32_t isa) { return supported(static_cast<Isa>(isa)); }

// 0 done; 1 this machine cannot run the instruction set; 2 the thread pool failed. The caller has checked all shapes.
EXPORT int32_t llmquant_unpack_rows(const uint32_t* packed, const void* scales, const int8_t* zeros, void* out,
                                    int64_t rows, int64_t cols, int64_t words, int64_t group, int64_t scale_stride,
                                    int32_t bits, int32_t scale_type, int32_t out_type, int32_t isa,
                                    void* parallel_for) {
    const UnpackRows work = variant(static_cast<Isa>(isa));
    if (!work) return 1;
    const UnpackJob job{packed,         scales, zeros, out, cols, words, group, scale_stride, bits, Float(scale_type),
                        Float(out_type)};
    const int64_t grain = 65536 / (cols + 1) + 1;  // a thread is worth its start from some 10 us of work on
    if (!parallel_for || rows <= grain) {
        work(job, 0, rows);
        return 0;
    }
    Call call{&job, work};
    return reinterpret_cast<ParallelFor>(parallel_for)(0, rows, grain, run_rows, &call) == 0 ? 0 : 2;
}
