// The C interface that llmquant/kernels/cpu/native.py calls through ctypes. Raise LLMQUANT_ABI there and here together.
// Callers have checked all shapes. Status: 0 done; 1 this machine cannot run the instruction set; 2 the thread pool
// failed; 3 not a weight in kernel layout, or weights that cannot share their inputs; 4 no memory; 5 something else was
// thrown. No exception leaves a function: to C that would be the end of the process.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "isa.h"
#include "linear.h"
#include "rounding.h"
#include "threads.h"
#include "unpack.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define LLMQUANT_ABI 5
#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using namespace llmquant;

UnpackRows unpack_variant(Isa isa) {
    if (!supported(isa)) return nullptr;
#if defined(LLMQUANT_X86)
    if (isa == Isa::avx512 || isa == Isa::avx512vnni) return unpack_rows_avx512;
    if (isa == Isa::avx2) return unpack_rows_avx2;
#endif
    return unpack_rows_scalar;
}

RoundOutputs round_variant(Isa isa) {
    if (!supported(isa)) return nullptr;
#if defined(LLMQUANT_X86)
    if (isa == Isa::avx512 || isa == Isa::avx512vnni) return round_outputs_avx512;
    if (isa == Isa::avx2) return round_outputs_avx2;
#endif
    return round_outputs_scalar;
}

const LinearKernel* linear_variant(Isa isa) {
    if (!supported(isa)) return nullptr;
#if defined(LLMQUANT_X86)
    if (isa == Isa::avx512vnni) return &linear_avx512vnni();
    if (isa == Isa::avx512) return &linear_avx512();
    if (isa == Isa::avx2) return &linear_avx2();
#elif defined(LLMQUANT_NEON)
    if (isa == Isa::neon) return &linear_neon();
#endif
    return &linear_scalar();
}

// Whether memory (null for an empty tensor) begins with the header of a weight that the kernels can read.
bool is_weight(const void* memory) {
    const WeightHeader* header = static_cast<const WeightHeader*>(memory);
    if (!header || header->magic != weight_magic) return false;
    const bool block = header->block == 128 || header->block == 64 || header->block == 32;
    const bool bits = header->bits == 8 || (header->bits >= 2 && header->bits <= 4);
    return block && bits && header->scale_type >= Float::f32 && header->scale_type <= Float::f16;
}

bool is_weight(const void* memory, int64_t cols, int64_t rows) {
    const WeightHeader* header = static_cast<const WeightHeader*>(memory);
    return is_weight(memory) && header->cols == cols && header->rows == rows;
}

constexpr int64_t pack_piece = 4;  // tiles

// The status of `work`, whatever it throws.
template <class Work>
int32_t status_of(const Work& work) noexcept {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        return 4;
    } catch (...) {
        return 5;
    }
}

}  // namespace

EXPORT int32_t llmquant_abi() { return LLMQUANT_ABI; }

EXPORT int32_t llmquant_isa_supported(int32_t isa) { return supported(static_cast<Isa>(isa)); }

EXPORT void llmquant_use_threads(void* parallel_for, void* get_num_threads) {
    use_threads(reinterpret_cast<ParallelFor>(parallel_for), reinterpret_cast<GetNumThreads>(get_num_threads));
}

EXPORT int32_t llmquant_unpack_rows(const uint32_t* packed, const void* scales, const int8_t* zeros, void* out,
                                    int64_t rows, int64_t cols, int64_t words, int64_t group, int64_t scale_stride,
                                    int32_t bits, int32_t scale_type, int32_t out_type, int32_t isa) {
    const UnpackRows work = unpack_variant(static_cast<Isa>(isa));
    if (!work) return 1;
    const UnpackJob job{packed,         scales, zeros, out, cols, words, group, scale_stride, bits, Float(scale_type),
                        Float(out_type)};
    const int64_t piece = 65536 / (cols + 1) + 1;  // a thread is worth its start from some 10 us of work on
    return status_of([&] {
        parallel(rows, piece, thread_count(), [&](int64_t begin, int64_t end) { work(job, begin, end); });
        return 0;
    });
}

// Bytes of a weight in kernel layout.
EXPORT int64_t llmquant_weight_bytes(int64_t rows, int64_t cols, int32_t bits, int32_t block, int32_t scale_type,
                                     int32_t has_zeros) {
    WeightHeader header{weight_magic, bits, block, Float(scale_type), rows, cols, 1, 0, has_zeros};
    return Weight(&header).bytes();
}

// Fill `memory` from a checkpoint's tensors.
EXPORT int32_t llmquant_pack_weight(void* memory, uint32_t* packed, void* scales, int8_t* zeros, int64_t rows,
                                    int64_t cols, int64_t groups, int32_t bits, int32_t block, int32_t scale_type,
                                    int32_t per_tensor) {
    std::memset(memory, 0, header_bytes);
    *static_cast<WeightHeader*>(memory) = {weight_magic, bits,   block,      Float(scale_type), rows,
                                           cols,         groups, per_tensor, zeros != nullptr};
    const Weight weight(memory);
    const Stored stored{packed, static_cast<uint8_t*>(scales), zeros};
    return status_of([&] {
        parallel(weight.tiles, pack_piece, thread_count(),
                 [&](int64_t begin, int64_t end) { pack_tiles(weight, stored, begin, end); });
        return 0;
    });
}

// The inverse: the tensors are those of the checkpoint, in the sizes that the header says.
EXPORT int32_t llmquant_unpack_weight(void* memory, uint32_t* packed, void* scales, int8_t* zeros) {
    if (!is_weight(memory)) return 3;
    const Weight weight(memory);
    const Stored stored{packed, static_cast<uint8_t*>(scales), zeros};
    return status_of([&] {
        parallel(weight.tiles, pack_piece, thread_count(),
                 [&](int64_t begin, int64_t end) { unpack_tiles(weight, stored, begin, end); });
        return 0;
    });
}

// `count` rows, as in the checkpoint, one after the other: (count, words), (count, groups), (count, groups).
EXPORT int32_t llmquant_unpack_selected(void* memory, const int64_t* rows, int64_t count, uint32_t* packed,
                                        uint8_t* scales, int8_t* zeros) {
    if (!is_weight(memory)) return 3;
    const Weight weight(memory);
    const WeightHeader& header = *weight.header;
    const int64_t words = (header.cols * header.bits + 31) / 32, size = float_size(header.scale_type);
    const auto unpack = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            unpack_row(weight, rows[i], packed + i * words, scales + i * header.groups * size,
                       zeros ? zeros + i * header.groups : nullptr);
        }
    };
    return status_of([&] {
        parallel(count, 4, thread_count(), unpack);
        return 0;
    });
}

// LinearCall in native.py.
struct LinearCall {
    const void* x;
    int64_t rows;
    const void* norm;
    const void* residual;
    void* weights[most_parts];
    const void* biases[most_parts];
    void* outs[most_parts];
    int64_t out_features[most_parts];
    int64_t cols;
    int32_t count, type, planes, per_token, silu, isa;
    float norm_eps, input_scale;
};

EXPORT int32_t llmquant_linear(const LinearCall* call) {
    const LinearKernel* kernel = linear_variant(static_cast<Isa>(call->isa));
    if (!kernel) return 1;
    if (call->count < 1 || call->count > most_parts) return 3;
    for (int i = 0; i < call->count; ++i) {
        if (!is_weight(call->weights[i], call->cols, call->out_features[i])) return 3;
        if (Weight(call->weights[i]).header->block != Weight(call->weights[0]).header->block) return 3;
    }
    Part parts[most_parts] = {{Weight(call->weights[0]), call->biases[0], call->outs[0]},
                              {Weight(call->weights[0]), nullptr, nullptr},
                              {Weight(call->weights[0]), nullptr, nullptr},
                              {Weight(call->weights[0]), nullptr, nullptr}};
    for (int i = 1; i < call->count; ++i) parts[i] = {Weight(call->weights[i]), call->biases[i], call->outs[i]};
    if (call->silu && (call->count != 2 || call->out_features[0] != call->out_features[1])) return 3;
    const Float type = Float(call->type);
    return status_of([&] {
        linear(*kernel,
               {call->x, call->rows, call->cols, type, call->planes == 2, call->per_token != 0, call->norm,
                call->norm_eps, call->input_scale},
               {parts, call->count, type, call->residual, call->silu != 0});
        return 0;
    });
}

// The common case without a struct to fill: one weight, nothing fused.
EXPORT int32_t llmquant_linear_one(const void* x, void* weight, const void* bias, void* out, int64_t rows, int64_t cols,
                                   int64_t out_features, int32_t type, int32_t planes, int32_t per_token, int32_t isa,
                                   float input_scale) {
    const LinearKernel* kernel = linear_variant(static_cast<Isa>(isa));
    if (!kernel) return 1;
    if (!is_weight(weight, cols, out_features)) return 3;
    const Part part{Weight(weight), bias, out};
    return status_of([&] {
        linear(*kernel, {x, rows, cols, Float(type), planes == 2, per_token != 0, nullptr, 0, input_scale},
               {&part, 1, Float(type), nullptr, false});
        return 0;
    });
}

EXPORT int32_t llmquant_round_block(const RoundJob* job) {
    const RoundOutputs work = round_variant(static_cast<Isa>(job->isa));
    if (!work) return 1;
    constexpr int64_t unit = 64;  // outputs: four of the widest vectors
    return status_of([&] {
        parallel((job->outputs + unit - 1) / unit, 1, thread_count(),
                 [&](int64_t begin, int64_t end) { work(*job, begin * unit, std::min(end * unit, job->outputs)); });
        return 0;
    });
}

// Ask for 2 MB pages: with 4 KB pages a sequential read reaches some 3/4 of the bandwidth. A wish, so no status.
EXPORT void llmquant_advise_huge(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = uintptr_t{1} << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

// Read memory once, on all threads, and return the sum of its 64-bit words: how fast memory can be read at all.
EXPORT uint64_t llmquant_stream_read(const uint64_t* memory, int64_t bytes) {
    std::atomic<uint64_t> total{0};
    constexpr int64_t piece = 8192;  // words
    parallel(bytes / 8 / piece, 4, thread_count(), [&](int64_t begin, int64_t end) {
        uint64_t sums[32] = {};
        for (const uint64_t *at = memory + begin * piece, *last = memory + end * piece; at < last; at += 32) {
            for (int i = 0; i < 32; ++i) sums[i] += at[i];
#if defined(__GNUC__)
            for (int i = 0; i < 32; i += 8) __builtin_prefetch(at + i + 384);
#endif
        }
        uint64_t sum = 0;
        for (uint64_t part : sums) sum += part;
        total.fetch_add(sum, std::memory_order_relaxed);
    });
    return total.load();
}
