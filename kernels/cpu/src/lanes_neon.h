// Four columns at a time: what every 64-bit ARM has.
#pragma once

#include <arm_neon.h>

#include "lanes.h"

namespace llmquant {
namespace {

struct NeonLanes {
    using Values = float32x4_t;
    static constexpr int64_t width = 4;

    static float32x4_t values(const float* in) { return vld1q_f32(in); }

    static void widen_f16(const uint16_t* in, float* out) {
        vst1q_f32(out, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(in))));
    }

    // As `float_to_bf16` has it.
    static uint16x4_t bf16(float32x4_t values) {
        const uint32x4_t raw = vreinterpretq_u32_f32(values);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(raw, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(raw, vaddq_u32(vdupq_n_u32(0x7fff), odd));
        const uint32x4_t number = vceqq_f32(values, values);
        return vshrn_n_u32(vbslq_u32(number, rounded, vdupq_n_u32(0x7fc00000)), 16);
    }

    template <Float type>
    static void store(float32x4_t values, void* out, int64_t index) {
        if constexpr (type == Float::f32) vst1q_f32(static_cast<float*>(out) + index, values);
        if constexpr (type == Float::bf16) vst1_u16(static_cast<uint16_t*>(out) + index, bf16(values));
        if constexpr (type == Float::f16) {
            vst1_u16(static_cast<uint16_t*>(out) + index, vreinterpret_u16_f16(vcvt_f16_f32(values)));
        }
    }
};

}  // namespace
}  // namespace llmquant
