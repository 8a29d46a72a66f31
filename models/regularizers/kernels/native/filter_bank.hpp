// What is computed of R(x) = sum_k sum_p psi_k((c_k * x)_p), or of an input convex network, and in which pieces.
//
// The filtered images, of networks those of the last layer, are cut into units of some rows, the work of one thread,
// and into strips of columns, whose filtered rows stay in the second-level cache; strips are cut into tiles of
// TILE_BYTES. All cuts depend on the sizes of images and filters alone, and all sums are in the order of the cuts:
// results have the same bits with any number of threads and in any batch.
#pragma once

#include <algorithm>
#include <cstdint>

#define RECON_KERNELS_ABI 5

namespace recon {

constexpr int64_t ROWS = 32;                    // filtered rows of a unit
constexpr int64_t NETWORK_ROWS = 16;            // that of networks, which hold a unit's layers in the cache
constexpr int64_t NETWORK_TILES = 2;            // of a strip of networks
constexpr int64_t TILE_BYTES = 256;             // of one row of one filtered image
constexpr int64_t STRIP_BYTES = 400 * 1024;     // of the filtered rows that a row of the gradient needs
constexpr int64_t ALIGNMENT = 64;
constexpr int64_t GROUP = 4;                    // filters that share a profile of the kinds from SOFT_MAXIMUM on

enum Operation : int64_t { GRADIENT = 0, CURVATURE = 1, PRODUCT = 2, MAXIMUM = 3, DERIVATIVE = 4 };
enum Kind : int64_t { SMOOTHED_L1 = 0, LOG_COSH = 1, STUDENT_T = 2, SPLINE = 3, SOFT_MAXIMUM = 4 };
enum Activation : int64_t { HUBER = 0, SMOOTH = 1 };

// The same fields, in the same order, as `Task` in library.py.
struct Task {
    int64_t operation, precision, level;  // precision: bytes of a number; level: of instructions, see filter_bank.cpp
    int64_t images, height, width, filters, size;
    int64_t channels;         // of an image, which filters couple; 1 for networks
    int64_t kind, columns;    // of the profiles; columns of each table
    double spacing;           // of the knots of splines
    const void *kernels;      // (filters, channels, size, size)
    const void *tables[3];    // (filters, columns) each; a null pointer where there is none
    // Networks alone: hidden layers, side of their filters; kind is an Activation, tables are the filters of the hidden
    // layers, (layers, filters, filters, inner, inner), the biases, (layers + 1, filters), and a, (filters)
    int64_t layers, inner;
    double slope, softness;   // of the activation: s and w
    const void *x, *w;        // images (images, channels, height, width); w: of DERIVATIVE alone
    const int64_t *order;     // PRODUCT: which stored image belongs to every image; null: its own
    void *weights;            // CURVATURE writes, PRODUCT reads psi''(c_k * x), see `weights_size`
    void *out;                // GRADIENT, PRODUCT: images like x
    void *overhang;           // GRADIENT, PRODUCT: (units, channels, size - 1, width), what units add to the next one
    double *results;          // (units, results per unit)
};

struct Layout {
    int64_t reach;               // side of what a number of the (last) filtered images depends on
    int64_t rows, cols;          // of these
    int64_t height;              // rows of a unit
    int64_t blocks, units;       // units of an image, and of all
    int64_t tile, tiles, strip;  // pixels of a tile; tiles of a row, and of a strip
    int64_t per_unit;            // results of a unit: 1 value, maxima of all filters, or derivatives

    explicit Layout(const Task &task)
        : reach(task.size + task.layers * (task.inner - 1)),
          rows(task.height - reach + 1),
          cols(task.width - reach + 1),
          height(task.layers ? NETWORK_ROWS : ROWS),
          blocks((rows + height - 1) / height),
          units(blocks * task.images),
          tile(TILE_BYTES / task.precision),
          tiles((cols + tile - 1) / tile),
          strip(STRIP_BYTES / (TILE_BYTES * task.size * task.filters)),
          per_unit(1) {
        strip = strip < 1 ? 1 : strip;
        if (task.operation == MAXIMUM) per_unit = task.filters;
        if (task.operation == DERIVATIVE) per_unit = task.filters * taps(task) + 3 * task.columns * profiles(task);
        if (task.layers) network(task);
    }

    // numbers of a filter
    static int64_t taps(const Task &task) { return task.channels * task.size * task.size; }
    static bool grouped(const Task &task) { return !task.layers && task.kind >= SOFT_MAXIMUM; }
    static int64_t profiles(const Task &task) { return grouped(task) ? task.filters / GROUP : task.filters; }
    // numbers of psi''(c_k * x), k = 1, ..., K, at a pixel: symmetric matrices of groups
    static int64_t stored(const Task &task) { return grouped(task) ? task.filters * (GROUP + 1) / 2 : task.filters; }

    // numbers that CURVATURE stores, (images, rows, tiles, `stored`, tile), of networks (units, strips, one strip)
    int64_t weights_size(const Task &task) const {
        return task.layers ? units * strips() * strip_size(task) : task.images * rows * tiles * stored(task) * tile;
    }

    // Of networks. A strip of all layers is `strip` tiles wide at the first layer, and narrower at the others.
    int64_t lost(const Task &task) const { return task.layers * (task.inner - 1); }
    int64_t strip_columns(const Task &task) const { return strip * tile - lost(task); }
    int64_t strips() const { return tiles; }
    int64_t strip_rows(const Task &task) const { return height + lost(task); }
    // sigma' of the hidden layers, and sigma'' times the derivative of R of all, (row, filter, column) each
    int64_t strip_size(const Task &task) const {
        return (2 * task.layers + 1) * strip_rows(task) * task.filters * strip * tile;
    }

  private:
    void network(const Task &task) {
        const int64_t lost_columns = lost(task), most = (lost_columns / tile + NETWORK_TILES) * tile;
        strip = std::min(most, (cols + lost_columns + tile - 1) / tile * tile) / tile;
        tiles = (cols + strip_columns(task) - 1) / strip_columns(task);  // strips
        if (task.operation == DERIVATIVE)
            per_unit = task.filters * (task.size * task.size + 2 +
                                       task.layers * (task.filters * task.inner * task.inner + 1));
    }
};

}  // namespace recon
