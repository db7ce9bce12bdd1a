#include "rounding_outputs.h"

namespace llmquant {

void round_outputs_avx512(const RoundJob& job, int64_t begin, int64_t end) { round_all<16>(job, begin, end); }

}  // namespace llmquant
