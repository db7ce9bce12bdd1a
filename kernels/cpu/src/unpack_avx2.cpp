#include "lanes_avx2.h"
#include "unpack_rows.h"

namespace llmquant {

void unpack_rows_avx2(const UnpackJob& job, int64_t begin, int64_t end) { unpack_all<Avx2Lanes>(job, begin, end); }

}  // namespace llmquant
