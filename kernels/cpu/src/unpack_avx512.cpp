#include "lanes_avx512.h"
#include "unpack_rows.h"

namespace llmquant {

void unpack_rows_avx512(const UnpackJob& job, int64_t begin, int64_t end) { unpack_all<Avx512Lanes>(job, begin, end); }

}  // namespace llmquant
