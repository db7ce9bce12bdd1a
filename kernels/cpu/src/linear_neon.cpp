// NEON with the dot product of ARMv8.2: sixteen outputs are four registers. sdot sums four products of signed bytes.
#include "lanes_neon.h"
#include "linear_tiles.h"

namespace llmquant {
namespace {

struct NeonSets {
    using Ints = int32x4x4_t;
    using Floats = float32x4x4_t;
    using Bytes = uint8x16x4_t;
    static constexpr int halves(int) { return 1; }
    static constexpr Form exact = Form::planes, fast8 = Form::bytes;
    static constexpr int heights[3] = {4, 2, 0};  // 16 of the 32 registers are sums

    // The four registers of a result, each from its number.
    template <class Four, class Function>
    static Four each(const Function& function) {
        return {{function(0), function(1), function(2), function(3)}};
    }

    // Forced inline: GCC takes a function that only prefetches for one without effect, and drops the call.
    __attribute__((always_inline)) static void prefetch(const uint8_t* from) { __builtin_prefetch(from); }
    static Bytes load(const uint8_t* from) { return vld1q_u8_x4(from); }
    static Bytes low_nibbles(Bytes codes) {
        return each<Bytes>([&](int i) { return vandq_u8(codes.val[i], vdupq_n_u8(15)); });
    }
    static Bytes high_nibbles(Bytes codes) {
        return each<Bytes>([&](int i) { return vshrq_n_u8(codes.val[i], 4); });
    }
    static int8x16_t broadcast(const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(word));
    }
    static Ints ints(int32_t value) {
        return each<Ints>([&](int) { return vdupq_n_s32(value); });
    }
    static Ints add(Ints a, Ints b) {
        return each<Ints>([&](int i) { return vaddq_s32(a.val[i], b.val[i]); });
    }
    static Ints subtract(Ints a, Ints b) {
        return each<Ints>([&](int i) { return vsubq_s32(a.val[i], b.val[i]); });
    }
    static Ints multiply(Ints a, Ints b) {
        return each<Ints>([&](int i) { return vmulq_s32(a.val[i], b.val[i]); });
    }
    static Ints times_256(Ints a) {
        return each<Ints>([&](int i) { return vshlq_n_s32(a.val[i], 8); });
    }
    static Ints zeros(const int8_t* from) {
        const int8x16_t bytes = vld1q_s8(from);
        const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
        return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                 vmovl_s16(vget_high_s16(high))}};
    }
    static Floats zero() { return set(0); }
    static Floats set(float value) {
        return each<Floats>([&](int) { return vdupq_n_f32(value); });
    }
    static Floats floats(Ints a) {
        return each<Floats>([&](int i) { return vcvtq_f32_s32(a.val[i]); });
    }
    static Floats multiply(Floats a, Floats b) {
        return each<Floats>([&](int i) { return vmulq_f32(a.val[i], b.val[i]); });
    }
    static Floats fma(Floats a, Floats b, Floats c) {
        return each<Floats>([&](int i) { return vfmaq_f32(c.val[i], a.val[i], b.val[i]); });
    }
    static void store(float* to, Floats a) {
        for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, a.val[i]);
    }
    static Floats scales(const uint8_t* from, int64_t index, Float type) {
        if (type == Float::f32) {
            const float* numbers = reinterpret_cast<const float*>(from) + index;
            return each<Floats>([&](int i) { return vld1q_f32(numbers + 4 * i); });
        }
        const uint16_t* numbers = reinterpret_cast<const uint16_t*>(from) + index;
        return each<Floats>([&](int i) {
            const uint16x4_t raw = vld1_u16(numbers + 4 * i);
            if (type == Float::f16) return vcvt_f32_f16(vreinterpret_f16_u16(raw));
            return vreinterpretq_f32_u32(vshll_n_u16(raw, 16));
        });
    }

    template <int bits>
    struct Sum {
        static constexpr bool ends = false;
        Ints sum;
        // Codes of 8 bits become signed here, so that what would take out their offset of 128 has to be left out: the
        // start is -128 times the sum of the inputs of all planes.
        void start(Ints value) { sum = bits == 8 ? ints(0) : value; }
        void add(Bytes codes, int8x16_t input) {
            for (int i = 0; i < 4; ++i) {
                uint8x16_t four = codes.val[i];
                if constexpr (bits == 8) four = veorq_u8(four, vdupq_n_u8(128));
                sum.val[i] = vdotq_s32(sum.val[i], vreinterpretq_s8_u8(four), input);
            }
        }
        Ints total() const { return sum; }
    };
};

constexpr LinearKernel kernel = linear_kernel<NeonSets, NeonLanes>();

}  // namespace

const LinearKernel& linear_neon() { return kernel; }

}  // namespace llmquant
