// The portable variant, and what the others must equal bit for bit.
#include "unpack_rows.h"

namespace llmquant {

void unpack_rows_scalar(const UnpackJob& job, int64_t begin, int64_t end) { unpack_all<ScalarLanes>(job, begin, end); }

}  // namespace llmquant
