// The order of the work: rows of x in passes that stay in the second-level cache; in each pass the inputs are quantized
// once, then every tile of the weights is read once.
#include "linear.h"

#include <algorithm>
#include <memory>
#include <new>

#include "threads.h"

namespace llmquant {
namespace {

constexpr int64_t pass_bytes = 512 * 1024;  // of quantized inputs
constexpr int64_t piece_bytes = 64 * 1024;  // of codes, claimed by a thread at once
// A second thread costs some microseconds: worth it from this many bytes of codes (times rows of x) on.
constexpr int64_t thread_bytes = 160 * 1024;

// Memory for quantized inputs, kept by each calling thread.
class Scratch {
  public:
    void* get(size_t bytes) {
        if (bytes > size_) {
            memory_.reset(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{64})));
            size_ = bytes;
        }
        return memory_.get();
    }

  private:
    struct Free {
        void operator()(uint8_t* memory) const { ::operator delete(memory, std::align_val_t{64}); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
    size_t size_ = 0;
};

// Rows of a panel: as many as the kernel takes, evenly over the panels that are needed anyway.
int panel_height(int64_t rows, int most) {
    const int64_t panels = (rows + most - 1) / most, even = (rows + panels - 1) / panels;
    for (int height : {1, 2, 3, 4, 6, 8, 12}) {
        if (height >= even && height <= most) return height;
    }
    return most;
}

Form form_of(const LinearKernel& kernel, const Inputs& inputs, const Outputs& outputs) {
    if (inputs.exact) return kernel.exact;
    const auto wide = [](const Part& part) { return part.weight.code_bits == 8; };
    return std::any_of(outputs.parts, outputs.parts + outputs.count, wide) ? kernel.fast8 : Form::bytes;
}

struct Pass {
    const LinearKernel& kernel;
    const Inputs& inputs;
    const Outputs& outputs;
    const Quantized& x;
    int64_t row, rows;

    void quantize(int64_t begin, int64_t end) const {
        for (int64_t panel = begin; panel < end; ++panel) {
            Quantized to = x;
            to.values += panel * x.value_stride();
            to.scales += panel * x.scale_stride();
            to.sums += panel * x.scale_stride();
            const int64_t first = panel * x.height;
            kernel.quantize(inputs, row + first, std::min<int64_t>(x.height, rows - first), to);
        }
    }

    // Tiles of all parts, one after the other.
    void multiply(int64_t begin, int64_t end) const {
        int part = 0;
        int64_t first = 0;
        for (int64_t tile = begin; tile < end; ++tile) {
            while (tile - first >= outputs.parts[part].weight.tiles) first += outputs.parts[part++].weight.tiles;
            kernel.tile(x, outputs, part, tile - first, row, rows);
        }
    }
};

}  // namespace

void linear(const LinearKernel& kernel, const Inputs& inputs, const Outputs& outputs) {
    const Weight& weight = outputs.parts[0].weight;
    const int worked = outputs.silu ? 1 : outputs.count;
    int64_t tiles = 0;
    for (int i = 0; i < worked; ++i) tiles += outputs.parts[i].weight.tiles;
    if (inputs.rows == 0 || tiles == 0) return;
    const Form form = form_of(kernel, inputs, outputs);
    const int height = panel_height(inputs.rows, kernel.heights[static_cast<int>(form)]);
    Quantized x{nullptr, nullptr, nullptr, weight.header->block, weight.blocks, form, height};
    const int64_t panel_bytes = std::max<int64_t>(1, x.value_stride());
    const int64_t all = (inputs.rows + height - 1) / height;
    const int64_t panels = std::clamp<int64_t>(pass_bytes / panel_bytes, 1, all);
    static thread_local Scratch scratch;
    const int64_t floats = panels * x.scale_stride();
    uint8_t* memory = static_cast<uint8_t*>(scratch.get(static_cast<size_t>(panels * panel_bytes + 8 * floats)));
    x.values = reinterpret_cast<int8_t*>(memory);
    x.scales = reinterpret_cast<float*>(memory + panels * panel_bytes);
    x.sums = reinterpret_cast<int32_t*>(x.scales + floats);

    for (int64_t row = 0; row < inputs.rows; row += panels * height) {
        const int64_t rows = std::min(panels * height, inputs.rows - row);
        const Pass pass{kernel, inputs, outputs, x, row, rows};
        const int64_t tile_bytes = weight.tile_bytes * (outputs.silu ? 2 : 1);
        const int64_t work = tiles * tile_bytes * (1 + rows / 8);
        const int threads = static_cast<int>(std::min<int64_t>(thread_count(), 1 + work / thread_bytes));
        const int64_t used = (rows + height - 1) / height;
        parallel(used, 1, rows * inputs.cols > 65536 ? threads : 1,
                 [&](int64_t begin, int64_t end) { pass.quantize(begin, end); });
        const int64_t piece = std::max<int64_t>(1, piece_bytes / std::max<int64_t>(1, tile_bytes));
        parallel(tiles, piece, threads, [&](int64_t begin, int64_t end) { pass.multiply(begin, end); });
    }
}

}  // namespace llmquant
