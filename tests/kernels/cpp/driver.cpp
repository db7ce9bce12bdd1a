// The library against loops over doubles, on random weights and calls: every instruction set gives the same bits, on
// any number of threads, and reads and writes nothing outside its buffers (run it under a sanitizer: `make sanitize`).
//
//     driver [calls [seed]]
#include <atomic>
#include <cstdio>
#include <string>
#include <thread>

#include "case.h"
#include "round_case.h"

using namespace check;

extern "C" {
struct LinearCall {  // of api.cpp
    const void* x;
    int64_t rows;
    const void* norm;
    const void* residual;
    void* weights[4];
    const void* biases[4];
    void* outs[4];
    int64_t out_features[4];
    int64_t cols;
    int32_t count, type, planes, per_token, silu, isa;
    float norm_eps, input_scale;
};
int32_t llmquant_abi();
int32_t llmquant_isa_supported(int32_t isa);
void llmquant_use_threads(void* parallel_for, void* get_num_threads);
int32_t llmquant_unpack_rows(const uint32_t*, const void*, const int8_t*, void*, int64_t rows, int64_t cols,
                             int64_t words, int64_t group, int64_t scale_stride, int32_t bits, int32_t scale_type,
                             int32_t out_type, int32_t isa);
int64_t llmquant_weight_bytes(int64_t rows, int64_t cols, int32_t bits, int32_t block, int32_t scale_type,
                              int32_t has_zeros);
int32_t llmquant_pack_weight(void* memory, uint32_t*, void*, int8_t*, int64_t rows, int64_t cols, int64_t groups,
                             int32_t bits, int32_t block, int32_t scale_type, int32_t per_tensor);
int32_t llmquant_unpack_weight(void* memory, uint32_t*, void*, int8_t*);
int32_t llmquant_unpack_selected(void* memory, const int64_t* rows, int64_t count, uint32_t*, uint8_t*, int8_t*);
int32_t llmquant_linear(const LinearCall*);
int32_t llmquant_linear_one(const void* x, void* weight, const void* bias, void* out, int64_t rows, int64_t cols,
                            int64_t out_features, int32_t type, int32_t planes, int32_t per_token, int32_t isa,
                            float input_scale);
int32_t llmquant_round_block(const llmquant::RoundJob*);
void llmquant_advise_huge(void*, int64_t);
uint64_t llmquant_stream_read(const uint64_t*, int64_t);
}

namespace {

const char* const names[] = {"scalar", "avx2", "avx512", "avx512vnni", "neon"};
std::string at_work;  // for messages

void require(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "FAILED: %s, in %s\n", what.c_str(), at_work.c_str());
    std::exit(1);
}

// --- threads ---------------------------------------------------------------------------------------------------------

std::atomic<uint32_t> threads{1};
std::atomic<int64_t> regions{0};

int32_t get_num_threads(uint32_t* count) {
    *count = threads;
    return 0;
}

int32_t parallel_for(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
    ++regions;
    std::vector<std::thread> others;
    for (int64_t i = begin + 1; i < end; ++i) others.emplace_back(body, i, i + 1, context);
    body(begin, begin + 1, context);
    for (std::thread& other : others) other.join();
    return 0;
}

// --- weights ---------------------------------------------------------------------------------------------------------

Buffer prepare(const Stored& stored) {
    const int32_t type = static_cast<int32_t>(stored.type);
    Buffer weight(llmquant_weight_bytes(stored.rows, stored.cols, stored.bits, stored.block, type, stored.asymmetric));
    const int32_t status = llmquant_pack_weight(weight.as(), stored.packed.as<uint32_t>(), stored.scales.as(),
                                                stored.zero_data(), stored.rows, stored.cols, stored.groups,
                                                stored.bits, stored.block, type, stored.per_tensor);
    require(status == 0, "pack");
    return weight;
}

void check_round_trip(Random& random, const Stored& stored, const Buffer& weight) {
    Buffer packed(stored.packed.size), scales(stored.scales.size), zeros(stored.zeros.size);
    require(llmquant_unpack_weight(weight.as(), packed.as<uint32_t>(), scales.as(), zeros.as<int8_t>()) == 0, "unpack");
    require(packed == stored.packed && scales == stored.scales && zeros == stored.zeros, "weights come back");

    const int64_t count = random.below(6), size = float_size(stored.type) * stored.groups;
    Buffer rows(count * 8), words(count * stored.words * 4), some(count * size),
        few(stored.asymmetric ? count * stored.groups : 0);
    for (int64_t i = 0; i < count; ++i) rows.as<int64_t>()[i] = random.below(stored.rows);
    require(llmquant_unpack_selected(weight.as(), rows.as<int64_t>(), count, words.as<uint32_t>(), some.as(),
                                     stored.asymmetric ? few.as<int8_t>() : nullptr) == 0,
            "unpack rows");
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = rows.as<int64_t>()[i], group = stored.per_tensor ? 0 : row * stored.groups;
        const bool same =
            !std::memcmp(words.as() + i * stored.words * 4, stored.packed.as() + row * stored.words * 4,
                         stored.words * 4) &&
            !std::memcmp(some.as() + i * size, stored.scales.as() + group * float_size(stored.type), size) &&
            (!stored.asymmetric ||
             !std::memcmp(few.as() + i * stored.groups, stored.zeros.as() + group, stored.groups));
        require(same, "a row comes back");
    }
}

// The other kernel, from packed codes to floats.
void check_dense(Random& random, const Stored& stored) {
    const Float type = random.of({Float::f32, Float::bf16, Float::f16});
    Buffer first;
    for (int isa = 0; isa < 5; ++isa) {
        if (!llmquant_isa_supported(isa)) continue;
        Buffer out(stored.rows * stored.cols * float_size(type));
        const int status = llmquant_unpack_rows(
            stored.packed.as<uint32_t>(), stored.scales.as(), stored.zero_data(), out.as(), stored.rows, stored.cols,
            stored.words, stored.cols / stored.groups, stored.per_tensor ? 0 : stored.groups, stored.bits,
            static_cast<int32_t>(stored.type), static_cast<int32_t>(type), isa);
        require(status == 0, "unpack_rows");
        for (int64_t i = 0; isa == 0 && i < stored.rows * stored.cols; ++i) {
            const double weight = stored.weight(i / stored.cols, i % stored.cols);
            require(std::fabs(get(out.as(), i, type) - weight) <= std::fabs(weight) / 100 + 1e-7, "a dense weight");
        }
        if (isa == 0)
            first = std::move(out);
        else
            require(out == first, std::string("dense weights have the same bits on ") + names[isa]);
    }
}

// --- calls -----------------------------------------------------------------------------------------------------------

struct Call {
    LinearCall call{};
    std::vector<Stored> stored;
    std::vector<Buffer> weights, biases, outs;
    Buffer x, norm, residual;
    Float type;
    std::vector<bool> bad;  // rows with a number that is not finite

    explicit Call(Random& random) : type(random.of({Float::f32, Float::bf16, Float::f16})) {
        const bool large = random.one_in(12);  // enough for several threads
        const int64_t rows = random.one_in(3) ? 1 : large ? random.of<int64_t>({2, 5}) : random.below(27);
        call.count = static_cast<int32_t>(random.of({1, 1, 2, 3, 4}));
        call.silu = call.count == 2 && random.one_in(2);
        const int64_t groups = random.one_in(2) ? 1 : random.between(2, large ? 12 : 5),
                      size = random.of({32, 64, 96, 128, 256});
        const int32_t block = groups == 1 ? 128 : size % 128 == 0 ? 128 : size % 64 == 0 ? 64 : 32;
        call.cols = groups > 1 ? groups * size : random.between(1, large ? 900 : 300);
        for (int i = 0; i < call.count; ++i) {
            const int64_t wide = large ? random.between(300, 700) : random.between(1, 100);
            call.out_features[i] = call.silu && i ? call.out_features[0] : wide;
            stored.emplace_back(random, call.out_features[i], call.cols, groups, block);
        }
        call.rows = rows;
        call.type = static_cast<int32_t>(type);
        call.planes = static_cast<int32_t>(random.between(1, 2));
        call.per_token = call.planes == 1 && random.one_in(4);
        if (call.per_token && random.one_in(2)) call.input_scale = 0.017f;  // of 127 codes, the largest 2.2: some clip
        call.norm_eps = 1e-5f;
        x = floats(random, rows * call.cols, type, 1);
        bad.resize(static_cast<size_t>(rows));
        if (random.one_in(3)) spoil(random);
        if (random.one_in(3)) norm = floats(random, call.cols, type, 1);
        if (random.one_in(3) && (call.count == 1 || call.silu))
            residual = floats(random, rows * call.out_features[0], type, 1);
        const bool biased = random.one_in(2);
        for (int i = 0; i < call.count; ++i) {
            biases.push_back(floats(random, biased ? call.out_features[i] : 0, type, 1));
            outs.emplace_back(rows * call.out_features[i] * float_size(type), float_size(type));
            weights.push_back(prepare(stored[i]));
            call.weights[i] = weights[i].as();
            call.biases[i] = biased ? biases[i].as() : nullptr;
            call.outs[i] = call.silu && i ? nullptr : outs[i].as();
        }
        call.x = x.as();
        call.norm = norm.size ? norm.as() : nullptr;
        call.residual = residual.size ? residual.as() : nullptr;
    }

    // Outliers, zeros, and numbers that are none.
    void spoil(Random& random) {
        for (int64_t m = 0; m < call.rows; ++m) {
            const int64_t at = m * call.cols + random.below(call.cols);
            const double infinity = std::numeric_limits<double>::infinity();
            const double value = random.of({30.0, 0.0, 1e-4, std::nan(""), infinity, -infinity});
            put(x.as(), at, type, value);
            bad[static_cast<size_t>(m)] = !std::isfinite(value);
            if (value == 0) std::memset(x.as() + m * call.cols * float_size(type), 0, call.cols * float_size(type));
        }
    }

    std::string describe() const {
        std::string text = std::to_string(call.rows) + "x" + std::to_string(call.cols);
        for (const Stored& weight : stored) {
            text += " " + std::to_string(weight.rows) + "@int" + std::to_string(weight.bits) + "-g" +
                    std::to_string(weight.cols / weight.groups) + (weight.asymmetric ? " asym" : "") +
                    (weight.per_tensor ? " per tensor" : "") + " s" + std::to_string(int(weight.type));
        }
        return text + " type " + std::to_string(call.type) + " planes " + std::to_string(call.planes) +
               (call.per_token ? " W8A8" : "") + (call.input_scale > 0 ? " static" : "") + (call.silu ? " silu" : "") +
               (call.norm ? " norm" : "") + (call.residual ? " residual" : "") + (call.biases[0] ? " bias" : "");
    }

    Result wanted(int part, int64_t m, int64_t n, const Activations& inputs) const {
        Result result = dot(stored[part], n, inputs.values.data() + m * call.cols, call.planes, inputs.steps[m]);
        if (call.biases[part]) result.value += get(call.biases[part], n, type);
        if (call.silu && part == 0) result = result.silu() * wanted(1, m, n, inputs);
        if (call.residual && part == 0) result.value += get(call.residual, m * call.out_features[0] + n, type);
        return result;
    }

    void check_values() const {
        const double rounding = type == Float::f32 ? 1e-6 : type == Float::bf16 ? 0.005 : 0.0006;
        Activations inputs(x, norm.size ? &norm : nullptr, call.rows, call.cols, type, call.norm_eps);
        if (call.per_token) inputs.quantize(call.cols, type, call.input_scale, norm.size > 0);
        for (int part = 0; part < (call.silu ? 1 : call.count); ++part) {
            for (int64_t i = 0; i < call.rows * call.out_features[part]; ++i) {
                const int64_t m = i / call.out_features[part], n = i % call.out_features[part];
                const double got = get(call.outs[part], i, type);
                const std::string place = " at " + std::to_string(m) + ", " + std::to_string(n);
                if (bad[static_cast<size_t>(m)]) {
                    require(!std::isfinite(got), "what is no number shows" + place);
                    continue;
                }
                const Result result = wanted(part, m, n, inputs);
                const bool near =
                    std::fabs(got - result.value) <= result.error + rounding * (std::fabs(result.value) + 1);
                require(near, std::to_string(got) + " is " + std::to_string(result.value) + place);
            }
        }
    }

    bool same(const std::vector<Buffer>& others) const {
        for (int part = 0; part < (call.silu ? 1 : call.count); ++part) {
            for (int64_t i = 0; i < call.rows * call.out_features[part]; ++i) {
                const double a = get(outs[part].as(), i, type), b = get(others[part].as(), i, type);
                if (!(a == b && std::signbit(a) == std::signbit(b)) && !(a != a && b != b)) return false;
            }
        }
        return true;
    }

    // Into other buffers, by one call per weight where nothing is fused.
    std::vector<Buffer> run(int isa) const {
        std::vector<Buffer> results;
        LinearCall copy = call;
        copy.isa = isa;
        for (int i = 0; i < call.count; ++i) {
            results.emplace_back(outs[i].size);
            if (copy.outs[i]) copy.outs[i] = results[i].as();
        }
        require(llmquant_linear(&copy) == 0, "linear");
        return results;
    }

    void check_all() {
        call.isa = 0;
        threads = 1;
        require(llmquant_linear(&call) == 0, "linear");
        check_values();
        for (int isa = 0; isa < 5; ++isa) {
            if (!llmquant_isa_supported(isa)) continue;
            for (uint32_t count : {1, 3}) {
                threads = count;
                require(same(run(isa)),
                        std::string("the bits on ") + names[isa] + ", threads " + std::to_string(count));
            }
            if (call.silu || call.norm || call.residual) continue;
            std::vector<Buffer> single;
            for (int i = 0; i < call.count; ++i) {
                single.emplace_back(outs[i].size);
                require(llmquant_linear_one(call.x, call.weights[i], call.biases[i], single[i].as(), call.rows,
                                            call.cols, call.out_features[i], call.type, call.planes, call.per_token,
                                            isa, call.input_scale) == 0,
                        "linear_one");
            }
            require(same(single), std::string("one weight at a time on ") + names[isa]);
        }
    }
};

// Several callers at once, each with threads of its own.
void check_callers(const Call& call) {
    std::vector<std::thread> callers;
    std::atomic<int> agree{0};
    for (int i = 0; i < 3; ++i) {
        callers.emplace_back([&] {
            for (int isa = 0; isa < 5; ++isa) agree += !llmquant_isa_supported(isa) || call.same(call.run(isa));
        });
    }
    for (std::thread& caller : callers) caller.join();
    require(agree == 15, "callers do not disturb each other");
}

void check_rounding(Random& random) {
    const RoundCase made(random);
    Buffer targets(made.targets.size), errors(made.errors.size), codes(made.codes.size);
    RoundCase::loop(made, made.on(targets, errors, codes));
    for (int isa = 0; isa < 5; ++isa) {
        if (!llmquant_isa_supported(isa)) continue;
        for (uint32_t count : {1, 3}) {
            threads = count;
            Buffer missed(targets.size), taken(errors.size), found(codes.size);
            llmquant::RoundJob job = made.on(missed, taken, found);
            job.isa = isa;
            require(llmquant_round_block(&job) == 0, "round_block");
            require(missed == targets && taken == errors && found == codes,
                    std::string("a block rounded on ") + names[isa] + ", threads " + std::to_string(count));
        }
    }
}

void check_stream() {
    const int64_t words = 16 * 8192;
    Buffer memory(words * 8);
    for (int64_t i = 0; i < words; ++i) memory.as<uint64_t>()[i] = static_cast<uint64_t>(i) << 40;
    llmquant_advise_huge(memory.as(), memory.size);
    uint64_t sum = 0;
    for (int64_t i = 0; i < words; ++i) sum += memory.as<uint64_t>()[i];
    require(llmquant_stream_read(memory.as<uint64_t>(), memory.size) == sum, "stream_read");
}

}  // namespace

int main(int count, char** arguments) {
    const int64_t calls = count > 1 ? std::atoll(arguments[1]) : 300;
    const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
    require(llmquant_abi() == 5, "LinearCall of this file is that of the library");
    llmquant_use_threads(reinterpret_cast<void*>(parallel_for), reinterpret_cast<void*>(get_num_threads));
    for (int64_t i = 0; i < calls; ++i) {
        Random random(seed * 1000003 + static_cast<uint64_t>(i));
        threads = random.of<uint32_t>({1, 3});
        Call call(random);
        at_work = "call " + std::to_string(i) + ": " + call.describe();
        for (size_t part = 0; part < call.stored.size(); ++part) {
            check_round_trip(random, call.stored[part], call.weights[part]);
            check_dense(random, call.stored[part]);
        }
        call.check_all();
        if (i % 8 == 0) check_callers(call);
        check_rounding(random);
    }
    at_work = "the stream";
    check_stream();
    // How often depends on the machine: after a late thread the library stays on one for a while.
    require(regions > 0, "work was split over threads");
    std::printf("%lld calls agree on", static_cast<long long>(calls));
    for (int isa = 0; isa < 5; ++isa) {
        if (llmquant_isa_supported(isa)) std::printf(" %s", names[isa]);
    }
    std::printf("; %lld regions of several threads\n", static_cast<long long>(regions.load()));
}
