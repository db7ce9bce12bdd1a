// Which instruction sets this machine (processor and operating system) can run.
#pragma once

#include <cstdint>

namespace llmquant {

enum class Isa : int32_t { scalar = 0, avx2 = 1, avx512 = 2, avx512vnni = 3, neon = 4 };

bool supported(Isa isa);

}  // namespace llmquant
