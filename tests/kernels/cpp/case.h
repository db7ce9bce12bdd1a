// One random weight and one random call, in buffers of exactly the size that is needed, so that a sanitizer sees every
// byte too far; and what a loop over doubles makes of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "../../../kernels/cpu/src/lanes.h"

namespace check {

using llmquant::Float;
using llmquant::float_size;

class Random {
  public:
    explicit Random(uint64_t seed) : engine_(seed) {}
    int64_t below(int64_t limit) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(limit)); }
    int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
    bool one_in(int64_t n) { return below(n) == 0; }
    double normal() { return normal_(engine_); }
    template <class T>
    T of(std::initializer_list<T> choices) {
        return choices.begin()[below(static_cast<int64_t>(choices.size()))];
    }

  private:
    std::mt19937_64 engine_;
    std::normal_distribution<double> normal_;
};

// Exactly `bytes` on the heap. Numbers may begin anywhere that their type allows, as in a slice of a tensor.
class Buffer {
  public:
    explicit Buffer(int64_t bytes = 0, int64_t skip = 0)
        : memory_(new uint8_t[bytes + skip]()), skip_(skip), size(bytes) {}
    template <class T = uint8_t>
    T* as() const {
        return reinterpret_cast<T*>(memory_.get() + skip_);
    }
    bool operator==(const Buffer& other) const {
        return size == other.size && std::memcmp(as(), other.as(), static_cast<size_t>(size)) == 0;
    }

  private:
    std::unique_ptr<uint8_t[]> memory_;
    int64_t skip_;

  public:
    int64_t size;
};

inline double get(const void* data, int64_t i, Float type) {
    if (type == Float::f32) return static_cast<const float*>(data)[i];
    const uint16_t half = static_cast<const uint16_t*>(data)[i];
    if (type == Float::bf16) return llmquant::from_bits(static_cast<uint32_t>(half) << 16);
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    double value = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    if (exponent == 31) value = fraction ? std::nan("") : std::numeric_limits<double>::infinity();
    return half & 0x8000 ? -value : value;
}

inline void put(void* data, int64_t i, Float type, double value) {
    const float single = static_cast<float>(value);
    if (type == Float::f32) static_cast<float*>(data)[i] = single;
    if (type == Float::bf16) static_cast<uint16_t*>(data)[i] = llmquant::float_to_bf16(single);
    if (type == Float::f16) static_cast<uint16_t*>(data)[i] = llmquant::float_to_f16(single);
}

inline Buffer floats(Random& random, int64_t count, Float type, double size) {
    Buffer buffer(count * float_size(type), random.of<int64_t>({0, 1, 3}) * float_size(type));
    for (int64_t i = 0; i < count; ++i) put(buffer.as(), i, type, random.normal() * size);
    return buffer;
}

struct Stored {  // a weight as in a checkpoint
    int64_t rows, cols, groups, words;
    int32_t bits, block;
    bool per_tensor, asymmetric;
    Float type;
    Buffer packed, scales, zeros;
    std::vector<int> codes;  // stored - 2^(bits-1)

    Stored(Random& random, int64_t rows, int64_t cols, int64_t groups, int32_t block)
        : rows(rows), cols(cols), groups(groups), bits(random.of({2, 3, 4, 4, 8, 8})), block(block) {
        words = (cols * bits + 31) / 32;
        per_tensor = groups == 1 && random.one_in(3);
        asymmetric = random.one_in(2);
        type = random.of({Float::f32, Float::bf16, Float::f16});
        const int64_t count = per_tensor ? 1 : rows * groups;
        scales = floats(random, count, type, 0.05);
        packed = Buffer(rows * words * 4);
        const int middle = 1 << (bits - 1);
        for (int64_t i = 0; i < rows * cols; ++i) {
            codes.push_back(static_cast<int>(random.between(-middle, middle - 1)));
            const int64_t at = (i % cols) * bits;
            for (int b = 0; b < bits; ++b) {
                const uint32_t bit = static_cast<uint32_t>(codes.back() + middle) >> b & 1;
                packed.as<uint32_t>()[i / cols * words + (at + b) / 32] |= bit << ((at + b) % 32);
            }
        }
        if (!asymmetric) return;
        zeros = Buffer(count);
        for (int64_t i = 0; i < count; ++i)
            zeros.as<int8_t>()[i] = static_cast<int8_t>(random.between(-middle, middle - 1));
    }

    int8_t* zero_data() const { return asymmetric ? zeros.as<int8_t>() : nullptr; }
    int64_t scale_of(int64_t row, int64_t col) const { return per_tensor ? 0 : row * groups + col / (cols / groups); }
    double code_minus_zero(int64_t row, int64_t col) const {
        return codes[row * cols + col] - (asymmetric ? zeros.as<int8_t>()[scale_of(row, col)] : 0);
    }
    double weight(int64_t row, int64_t col) const {
        return code_minus_zero(row, col) * get(scales.as(), scale_of(row, col), type);
    }
};

struct Result {
    double value, error;  // what it should be, and how far off it may be

    Result operator*(const Result& other) const {
        return {value * other.value,
                std::fabs(value) * other.error + error * std::fabs(other.value) + error * other.error};
    }
    Result silu() const { return {value / (1 + std::exp(-value)), 1.1 * error + 1e-6 * std::fabs(value)}; }
};

inline double rounded(double value, Float type) {
    uint32_t memory = 0;
    put(&memory, 0, type, value);
    return get(&memory, 0, type);
}

// Inputs as the weights meet them.
struct Activations {
    std::vector<double> values;
    std::vector<double> steps;  // by how much W8A8 may have rounded an input otherwise than we do; negative: no W8A8

    Activations(const Buffer& x, const Buffer* norm, int64_t rows, int64_t cols, Float type, double eps)
        : steps(static_cast<size_t>(rows), -1) {
        for (int64_t m = 0; m < rows; ++m) {
            double squares = 0;
            for (int64_t k = 0; k < cols; ++k) squares += std::pow(get(x.as(), m * cols + k, type), 2);
            const double factor = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
            for (int64_t k = 0; k < cols; ++k) {
                const double value = get(x.as(), m * cols + k, type);
                values.push_back(norm ? value * factor * get(norm->as(), k, type) : value);
            }
        }
    }

    // As compressed-tensors does, in the type of x. Behind a norm in float32 a number may lie on the other side of a
    // tie.
    void quantize(int64_t cols, Float type, float given, bool normed) {
        for (size_t m = 0; m < steps.size(); ++m) {
            double* row = values.data() + static_cast<int64_t>(m) * cols;
            double most = 0;
            for (int64_t k = 0; k < cols; ++k) most = std::fmax(most, std::fabs(row[k]));
            double scale = given > 0 ? given : rounded(static_cast<float>(most / 127.5), type);
            if (scale == 0) scale = 1;
            for (int64_t k = 0; k < cols; ++k) {
                const double code = std::nearbyint(rounded(row[k] / scale, type));
                row[k] = scale * std::fmax(-128, std::fmin(127, code));
            }
            steps[m] = normed ? 1.01 * scale * (type == Float::f32 ? 1 : 2) : 0;
        }
    }
};

// The dot product, and half a step of quantization times every weight, plus rounding of float32 sums.
inline Result dot(const Stored& weight, int64_t row, const double* x, int planes, double step) {
    Result sum{0, 1e-7};
    for (int64_t first = 0; first < weight.cols; first += weight.block) {
        const int64_t last = std::min(weight.cols, first + weight.block);
        double most = 0, weights = 0;
        for (int64_t k = first; k < last; ++k) {
            const double w = weight.weight(row, k);
            sum.value += w * x[k];
            most = std::fmax(most, std::fabs(x[k]));
            weights += std::fabs(w);
        }
        sum.error += weights * ((step < 0 ? most * 0.501 / (planes == 2 ? 32639 : 127) : step) + 4e-6 * most);
    }
    return sum;
}

}  // namespace check
