#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace llmquant {
namespace {

constexpr int most_threads = 256;

ParallelFor torch_parallel_for = nullptr;
GetNumThreads torch_get_num_threads = nullptr;

// Where torch's barrier made the caller wait for a thread that another process had pushed off its core, until when to
// stay on one thread. A late thread costs a time slice (some ms) for work of 30 us; trying again after 20 times what was
// lost bounds the loss to 5 %.
std::atomic<int64_t> serial_until{0};

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

struct alignas(64) Share {  // each on its own cache line
    std::atomic<int64_t> next{0};
    int64_t end = 0;
};

struct Region {
    Share* shares;
    int threads;
    int64_t piece;
    Body body;
    void* context;
    int64_t first_done = 0;  // when the calling thread had nothing left to claim

    // Own share first, which keeps its memory in one stream, then what the others have not begun.
    void work(int64_t self) {
        for (int i = 0; i < threads; ++i) {
            Share& share = shares[(self + i) % threads];
            for (;;) {
                const int64_t begin = share.next.fetch_add(piece, std::memory_order_relaxed);
                if (begin >= share.end) break;
                body(begin, std::min(begin + piece, share.end), context);
            }
        }
        if (self == 0) first_done = now();
    }
};

}  // namespace

void use_threads(ParallelFor parallel_for, GetNumThreads get_num_threads) {
    torch_parallel_for = parallel_for;
    torch_get_num_threads = get_num_threads;
}

int thread_count() {
    uint32_t count = 1;
    if (!torch_parallel_for || !torch_get_num_threads || torch_get_num_threads(&count) != 0) return 1;
    return std::clamp(static_cast<int>(count), 1, most_threads);
}

void parallel(int64_t units, int64_t piece, int threads, Body body, void* context) {
    threads = static_cast<int>(std::min<int64_t>(threads, (units + piece - 1) / piece));
    const int64_t start = threads > 1 ? now() : 0;
    if (threads <= 1 || start < serial_until.load(std::memory_order_relaxed)) {
        if (units > 0) body(0, units, context);
        return;
    }
    Share shares[most_threads];
    for (int i = 0; i < threads; ++i) {
        shares[i].next.store(units * i / threads, std::memory_order_relaxed);
        shares[i].end = units * (i + 1) / threads;
    }
    Region region{shares, threads, piece, body, context};
    const auto run = [](int64_t begin, int64_t end, void* that) {
        for (int64_t self = begin; self < end; ++self) static_cast<Region*>(that)->work(self);
    };
    if (torch_parallel_for(0, threads, 1, run, &region) != 0) region.work(0);  // claims whatever was not done
    const int64_t end = now(), waited = end - region.first_done;
    if (waited > 1000000 + 2 * (region.first_done - start)) {
        serial_until.store(end + 20 * waited, std::memory_order_relaxed);
    }
}

}  // namespace llmquant
