// The functions that Python calls, see library.py. None of them throws, and none keeps what it is given.
#include "filter_bank.hpp"

#include "headers.hpp"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace recon {
namespace baseline {
int run(const Task &, int64_t, int64_t);
}
namespace avx2 {
int run(const Task &, int64_t, int64_t);
}
namespace avx512 {
int run(const Task &, int64_t, int64_t);
}

// What units add to the rows of the next one of the same image, in their order.
template <typename T>
void add_overhangs(const Task &task) {
    const Layout cut(task);
    const int64_t rows = cut.reach - 1;
    for (int64_t unit = 0; unit < cut.units; ++unit) {
        if (unit % cut.blocks == cut.blocks - 1) continue;
        for (int64_t channel = 0; channel < task.channels; ++channel) {
            const int64_t plane = unit / cut.blocks * task.channels + channel, own = unit * task.channels + channel;
            const int64_t row = plane * task.height + (unit % cut.blocks + 1) * cut.height;
            const T *from = static_cast<const T *>(task.overhang) + own * rows * task.width;
            T *to = static_cast<T *>(task.out) + row * task.width;
            for (int64_t i = 0; i < rows * task.width; ++i) to[i] += from[i];
        }
    }
}

}  // namespace recon

using recon::Layout;
using recon::Task;

// Of this interface; library.py refuses another one.
EXPORT int64_t recon_kernels_abi() { return RECON_KERNELS_ABI * 1000 + int64_t(sizeof(Task)); }

// The best level that this machine has: 2 AVX-512, 1 AVX2 and FMA, 0 what every machine has.
EXPORT int64_t recon_kernels_level() {
#ifdef RECON_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// Units, results of each, numbers of all stored weights, numbers of what units add to the next ones.
EXPORT void recon_kernels_layout(const Task *task, int64_t *sizes) {
    const Layout cut(*task);
    sizes[0] = cut.units;
    sizes[1] = cut.per_unit;
    sizes[2] = cut.weights_size(*task);
    sizes[3] = cut.units * task->channels * (cut.reach - 1) * task->width;
}

// Compute the units begin, ..., end - 1. Not 0: there is no memory.
EXPORT int64_t recon_kernels_run(const Task *task, int64_t begin, int64_t end) {
#ifdef RECON_X86
    if (task->level == 2) return recon::avx512::run(*task, begin, end);
    if (task->level == 1) return recon::avx2::run(*task, begin, end);
#endif
    return recon::baseline::run(*task, begin, end);
}

// After all units: the sums of neighbouring ones, and of the results of all units of each image, (images, per unit).
EXPORT void recon_kernels_finish(const Task *task, double *results) {
    const Layout cut(*task);
    if (task->operation == recon::GRADIENT || task->operation == recon::PRODUCT) {
        if (task->precision == 4)
            recon::add_overhangs<float>(*task);
        else
            recon::add_overhangs<double>(*task);
    }
    if (!task->results) return;
    for (int64_t unit = 0; unit < cut.units; ++unit)
        for (int64_t i = 0; i < cut.per_unit; ++i) {
            double &to = results[unit / cut.blocks * cut.per_unit + i];
            const double part = task->results[unit * cut.per_unit + i];
            if (task->operation != recon::MAXIMUM)
                to = unit % cut.blocks ? to + part : part;
            else if (unit % cut.blocks == 0 || part > to || part != part)
                to = part;
        }
}
