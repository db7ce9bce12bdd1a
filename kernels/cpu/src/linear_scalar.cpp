// The portable variant, and what the others must equal bit for bit.
#include <array>

#include "linear_tiles.h"

namespace llmquant {
namespace {

struct ScalarSets {
    using Ints = std::array<int32_t, 16>;
    using Floats = std::array<float, 16>;
    using Bytes = std::array<uint8_t, 64>;
    using Input = std::array<int8_t, 4>;
    static constexpr int halves(int) { return 1; }
    static constexpr Form exact = Form::planes, fast8 = Form::bytes;
    static constexpr int heights[3] = {4, 2, 0};

    template <class Array, class Function>
    static Array each(const Function& function) {
        Array result;
        for (size_t i = 0; i < result.size(); ++i) result[i] = function(i);
        return result;
    }

    static void prefetch(const uint8_t*) {}
    static Bytes load(const uint8_t* from) {
        Bytes result;
        std::memcpy(result.data(), from, result.size());
        return result;
    }
    static Bytes low_nibbles(const Bytes& codes) {
        return each<Bytes>([&](size_t i) { return static_cast<uint8_t>(codes[i] & 15); });
    }
    static Bytes high_nibbles(const Bytes& codes) {
        return each<Bytes>([&](size_t i) { return static_cast<uint8_t>(codes[i] >> 4); });
    }
    static Input broadcast(const int8_t* four) { return {four[0], four[1], four[2], four[3]}; }
    static Ints ints(int32_t value) {
        return each<Ints>([&](size_t) { return value; });
    }
    static Ints add(const Ints& a, const Ints& b) {
        return each<Ints>([&](size_t i) { return a[i] + b[i]; });
    }
    static Ints subtract(const Ints& a, const Ints& b) {
        return each<Ints>([&](size_t i) { return a[i] - b[i]; });
    }
    static Ints multiply(const Ints& a, const Ints& b) {
        return each<Ints>([&](size_t i) { return a[i] * b[i]; });
    }
    static Ints times_256(const Ints& a) {
        return each<Ints>([&](size_t i) { return a[i] * 256; });
    }
    static Ints zeros(const int8_t* from) {
        return each<Ints>([&](size_t i) { return from[i]; });
    }
    static Floats zero() { return set(0); }
    static Floats set(float value) {
        return each<Floats>([&](size_t) { return value; });
    }
    static Floats floats(const Ints& a) {
        return each<Floats>([&](size_t i) { return static_cast<float>(a[i]); });
    }
    static Floats multiply(const Floats& a, const Floats& b) {
        return each<Floats>([&](size_t i) { return a[i] * b[i]; });
    }
    static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
        return each<Floats>([&](size_t i) { return std::fma(a[i], b[i], c[i]); });
    }
    static void store(float* to, const Floats& a) { std::memcpy(to, a.data(), sizeof a); }
    static Floats scales(const uint8_t* from, int64_t index, Float type) {
        Floats result;
        widen<ScalarLanes>(from, index, 16, type, result.data());
        return result;
    }

    template <int bits>
    struct Sum {
        static constexpr bool ends = false;
        Ints sum;
        void start(const Ints& value) { sum = value; }
        void add(const Bytes& codes, const Input& input) {
            for (size_t i = 0; i < 16; ++i) {
                for (size_t j = 0; j < 4; ++j) sum[i] += codes[4 * i + j] * input[j];
            }
        }
        void span_end() {}
        Ints total() const { return sum; }
    };
};

constexpr LinearKernel kernel = linear_kernel<ScalarSets, ScalarLanes>();

}  // namespace

const LinearKernel& linear_scalar() { return kernel; }

}  // namespace llmquant
