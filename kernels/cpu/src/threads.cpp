#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>

namespace llmquant {
namespace {

constexpr int most_threads = 256;

ParallelFor torch_parallel_for = nullptr;
GetNumThreads torch_get_num_threads = nullptr;

// Until when this caller stays on one thread, because another process wants the cores: it was pushed off its core, or
// waited at torch's barrier for a thread that was. That costs time slices (some ms each) for work of 30 us; the pause
// of up to 20 times what was lost bounds that to 5 %. It is shorter the more threads would stand still in it, and has
// an end where the loss had another reason, such as a stopped machine. Each calling thread has its own, as it has its
// own team of torch's threads: what one of them loses says nothing about the others.
constexpr int64_t longest_pause = 200000000;  // ns
thread_local int64_t serial_until = 0;

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Processor time of the calling thread.
int64_t processor_time() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    timespec time;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) return time.tv_sec * 1000000000 + time.tv_nsec;
#endif
    return now();
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
    int64_t done = 0, used = 0;  // when the calling thread had nothing left to claim, and its processor time then

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
        if (self == 0) {
            done = now();
            used = processor_time();
        }
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
    if (threads <= 1 || start < serial_until) {
        if (units > 0) body(0, units, context);
        return;
    }
    const int64_t used = processor_time();
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
    const int64_t end = now(), worked = region.used - used, lost = end - start - worked;
    if (lost > 1000000 + 2 * worked) {
        serial_until = end + std::min(20 * lost / (threads - 1), longest_pause);
    }
}

}  // namespace llmquant
