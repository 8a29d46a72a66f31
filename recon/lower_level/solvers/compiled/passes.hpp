// Passes over images, and sums that are the same for all numbers of threads, all batches and all instruction sets.
//
// An image is cut into chunks of CHUNK pixels. What is added up in a chunk does not depend on who computes it, and
// chunks are added in their order. Sums have LANES partial sums, so that they are vectors on every machine; without
// contraction to fused operations (-ffp-contract=off) all instruction sets compute the same bits.

#pragma once

#include <cstdint>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#if defined(_MSC_VER)
#define EXPORT extern "C" __declspec(dllexport)
#define INLINE __forceinline
#define BODY
#define RESTRICT __restrict
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#define BODY __attribute__((always_inline))  // of a lambda, which is compiled for the instructions of its caller then
#define RESTRICT __restrict__
#endif

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t CHUNK = 32768;  // pixels, a multiple of both blocks
constexpr int64_t LONG = 1024;    // terms of products with the history in the precision of the images

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Terms of sums in double precision before their sum goes on in other variables. Of numbers in double precision, where
// this matters, the relative error of sums of squares is at most 14 units then, however large images are: the product,
// 7 sums in a lane, 4 of lanes, and 2 of blocks. That of norms is half of it, and 1 for the root.
template <typename T>
constexpr int64_t BLOCK = sizeof(T) == 4 ? 512 : 128;

// Sums of terms in double precision: of blocks, and what was lost when blocks were added (Neumaier 1974).
template <int64_t SUMS>
struct Sums {
    double block[SUMS][LANES];
    double total[SUMS] = {}, lost[SUMS] = {};

    INLINE void begin() {
        for (int64_t k = 0; k < SUMS; ++k) {
            for (int64_t l = 0; l < LANES; ++l) block[k][l] = 0;
        }
    }
    INLINE void end() {
        for (int64_t k = 0; k < SUMS; ++k) {
            for (int64_t half = LANES / 2; half > 0; half /= 2) {
                for (int64_t l = 0; l < half; ++l) block[k][l] += block[k][l + half];
            }
            add(k, block[k][0]);
        }
    }
    INLINE void add(int64_t k, double term) {
        const double sum = total[k] + term;
        const bool larger = (total[k] < 0 ? -total[k] : total[k]) >= (term < 0 ? -term : term);
        lost[k] += larger ? (total[k] - sum) + term : (term - sum) + total[k];
        total[k] = sum;
    }
    // the sum; infinite sums have lost nothing
    INLINE double value(int64_t k) const {
        const double sum = total[k] + lost[k];
        return sum == sum ? sum : total[k];
    }
};

// body(pixel, lane) for all pixels of a range, in blocks of sums
template <typename T, int64_t SUMS, typename Body>
INLINE void summed(int64_t from, int64_t to, Sums<SUMS> &sums, const Body &body) {
    for (int64_t begin = from; begin < to; begin += BLOCK<T>) {
        const int64_t end = least(begin + BLOCK<T>, to);
        sums.begin();
        int64_t j = begin;
        for (; j + LANES <= end; j += LANES) {
            for (int64_t l = 0; l < LANES; ++l) body(j + l, l);
        }
        for (int64_t l = 0; j < end; ++j, ++l) body(j, l);
        sums.end();
    }
}

// Images of a type of so many bytes, in one piece of memory, and the threads that may work on them.
struct Shape {
    int64_t precision, images, pixels, threads;

    // units of work: chunks of all images
    int64_t per_image() const { return (pixels + CHUNK - 1) / CHUNK; }
    int64_t units() const { return images * per_image(); }
    int64_t image(int64_t unit) const { return unit / per_image(); }
    int64_t from(int64_t unit) const { return unit % per_image() * CHUNK; }
    int64_t to(int64_t unit) const { return least(from(unit) + CHUNK, pixels); }

    // the sums of an image, from those of its units, SUMS each
    template <int64_t SUMS>
    Sums<SUMS> total(int64_t image, const std::vector<double> &units) const {
        Sums<SUMS> all;
        for (int64_t c = 0; c < per_image(); ++c) {
            for (int64_t k = 0; k < SUMS; ++k) all.add(k, units[(image * per_image() + c) * SUMS + k]);
        }
        return all;
    }
};

template <typename T>
INLINE const T *at(const void *vectors, int64_t offset) {
    return static_cast<const T *>(vectors) + offset;
}

template <typename T>
INLINE T *at(void *vectors, int64_t offset) {
    return static_cast<T *>(vectors) + offset;
}

// run(task, first unit, last unit) on so many threads, each with its share
template <typename Task>
void share(const Task &task, int64_t units, int64_t threads, void (*run)(const Task &, int64_t, int64_t)) {
    const int64_t parts = threads < units ? threads : units;
    if (parts < 2) return run(task, 0, units);
    std::vector<std::thread> others;
    int64_t begun = 1;
    try {
        for (; begun < parts; ++begun) {
            others.emplace_back(run, std::cref(task), units * begun / parts, units * (begun + 1) / parts);
        }
    } catch (const std::system_error &) {  // there are no more threads: this one does the rest
    }
    run(task, 0, units / parts);
    run(task, units * begun / parts, units);
    for (std::thread &other : others) other.join();
}

// <a, a>, <b, b> and <a, b> per unit
enum Inner : int64_t { OWN, OTHER, BOTH, INNERS };

struct Two {
    const Shape &shape;
    const void *a, *b;
    double *sums;
};

template <typename T>
INLINE void inner_units(const Two &two, int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t offset = two.shape.image(unit) * two.shape.pixels;
        const T *RESTRICT a = at<T>(two.a, offset), *RESTRICT b = at<T>(two.b, offset);
        Sums<INNERS> sums;
        summed<T, INNERS>(two.shape.from(unit), two.shape.to(unit), sums, [&](int64_t j, int64_t l) BODY {
            const double v = double(a[j]), w = double(b[j]);
            sums.block[OWN][l] += v * v;
            sums.block[OTHER][l] += w * w;
            sums.block[BOTH][l] += v * w;
        });
        for (int64_t k = 0; k < INNERS; ++k) two.sums[unit * INNERS + k] = sums.value(k);
    }
}

CLONES void inner_part(const Two &two, int64_t first, int64_t last) {
    if (two.shape.precision == 4) return inner_units<float>(two, first, last);
    return inner_units<double>(two, first, last);
}

// INNERS of every unit
inline std::vector<double> inner_products(const Shape &shape, const void *a, const void *b) {
    std::vector<double> sums(shape.units() * INNERS);
    share(Two{shape, a, b, sums.data()}, shape.units(), shape.threads, inner_part);
    return sums;
}

}  // namespace
