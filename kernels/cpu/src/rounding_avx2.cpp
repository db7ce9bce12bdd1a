#include "rounding_outputs.h"

namespace llmquant {

void round_outputs_avx2(const RoundJob& job, int64_t begin, int64_t end) { round_all<8>(job, begin, end); }

}  // namespace llmquant
