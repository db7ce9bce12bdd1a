// One random block of inputs for GPTQ, and one plain loop that rounds it; see rounding.h.
#pragma once

#include "../../../kernels/cpu/src/rounding.h"
#include "case.h"

namespace check {

struct RoundCase {
    llmquant::RoundJob job{};
    Buffer targets, errors, inner, groups, scales, zeros, codes;

    explicit RoundCase(Random& random) {
        const int bits = random.of({2, 3, 4, 8});
        job.inputs = random.between(1, 40);
        job.outputs = random.one_in(4) ? random.between(100, 300) : random.between(1, 90);
        job.code_min = -(1 << (bits - 1));
        job.code_max = -job.code_min - 1;
        job.scale_type = random.of({Float::f32, Float::bf16, Float::f16});
        const int64_t grids = random.between(1, 4), elements = job.inputs * job.outputs;
        errors = floats(random, elements, Float::f32, 1);
        targets = floats(random, elements, Float::f32, random.one_in(8) ? 1e30 : 1);  // far outside all codes
        inner = floats(random, job.inputs * job.inputs, Float::f32, 0.2);
        scales = floats(random, grids * job.outputs, Float::f32, random.of({0.3, 1e-5}));
        groups = Buffer(job.inputs * 8);
        zeros = Buffer(random.one_in(2) ? grids * job.outputs * 4 : 0);
        codes = Buffer(elements);
        for (int64_t i = 0; i < job.inputs; ++i) groups.as<int64_t>()[i] = random.below(grids);
        for (int64_t i = 0; i < grids * job.outputs; ++i) {
            float& scale = scales.as<float>()[i];
            scale = rounded(scale == 0 ? 1.0f : scale);
            if (scale == 0) scale = 0x1p-24f;
            if (zeros.size) zeros.as<float>()[i] = static_cast<float>(random.between(job.code_min, job.code_max));
        }
    }

    float rounded(float value) const {
        if (job.scale_type == Float::bf16) return llmquant::bf16_to_float(llmquant::float_to_bf16(value));
        if (job.scale_type == Float::f16) return llmquant::f16_to_float(llmquant::float_to_f16(value));
        return value;
    }

    // Work on copies of the buffers that a job changes.
    llmquant::RoundJob on(const Buffer& new_targets, const Buffer& new_errors, const Buffer& new_codes) const {
        llmquant::RoundJob copy = job;
        std::memcpy(new_targets.as(), targets.as(), targets.size);
        std::memcpy(new_errors.as(), errors.as(), errors.size);
        copy.targets = new_targets.as<float>();
        copy.errors = new_errors.as<float>();
        copy.codes = new_codes.as<int8_t>();
        copy.inner = inner.as<float>();
        copy.groups = groups.as<int64_t>();
        copy.scales = scales.as<float>();
        copy.zeros = zeros.size ? zeros.as<float>() : nullptr;
        return copy;
    }

    // What rounding.h says, an output at a time.
    static void loop(const RoundCase& from, const llmquant::RoundJob& to) {
        for (int64_t o = 0; o < to.outputs; ++o) {
            for (int64_t j = to.inputs - 1; j >= 0; --j) {
                float& target = to.targets[j * to.outputs + o];
                for (int64_t k = to.inputs - 1; k > j; --k) {
                    // volatile: a compiler may not make one fused operation of the two.
                    volatile float product = to.errors[k * to.outputs + o] * to.inner[j * to.inputs + k];
                    target += product;
                }
                const int64_t grid = to.groups[j] * to.outputs + o;
                const float zero = to.zeros ? to.zeros[grid] : 0;
                const double steps = std::nearbyint(static_cast<double>(target / to.scales[grid]));
                const double code = std::min(std::max(steps + zero, double(to.code_min)), double(to.code_max));
                const float value = from.rounded(static_cast<float>(code - zero) * to.scales[grid]);
                to.codes[j * to.outputs + o] = static_cast<int8_t>(code);
                to.errors[j * to.outputs + o] -= value;
                target -= value;
            }
        }
    }
};

}  // namespace check
