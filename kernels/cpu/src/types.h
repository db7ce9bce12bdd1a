// The float types of tensors; `FLOATS` in native.py.
#pragma once

#include <cstdint>

namespace llmquant {

enum class Float : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

inline constexpr int64_t float_size(Float type) { return type == Float::f32 ? 4 : 2; }

}  // namespace llmquant
