// Work on torch's own threads, in pieces that threads claim, so that none waits for one that was not given the
// processor.
#pragma once

#include <cstdint>

namespace llmquant {

// torch_parallel_for and torch_get_num_threads of torch's stable C interface (torch >= 2.10).
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                                void* context);
using GetNumThreads = int32_t (*)(uint32_t* count);

// Either may be null: then everything runs on the calling thread.
void use_threads(ParallelFor parallel_for, GetNumThreads get_num_threads);

// Threads that torch would use now.
int thread_count();

using Body = void (*)(int64_t begin, int64_t end, void* context);

// Call body on pieces of [0, units) of at most `piece` units, by at most `threads` threads. The split never decides
// what is computed, only who does it. A body does not throw: torch would end the other threads' work in the middle.
void parallel(int64_t units, int64_t piece, int threads, Body body, void* context);

// The same for anything that can be called with (begin, end).
template <class Function>
void parallel(int64_t units, int64_t piece, int threads, const Function& function) {
    parallel(
        units, piece, threads,
        [](int64_t begin, int64_t end, void* context) { (*static_cast<const Function*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&function)));
}

}  // namespace llmquant
