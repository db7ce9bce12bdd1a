// The portable variant: four outputs at a time, which SSE2 and NEON have on every processor of their kind.
#include "rounding_outputs.h"

namespace llmquant {

void round_outputs_scalar(const RoundJob& job, int64_t begin, int64_t end) { round_all<4>(job, begin, end); }

}  // namespace llmquant
