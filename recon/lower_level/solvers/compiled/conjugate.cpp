// Steps of conjugate gradients: see cg.py for the formulas.

#include "passes.hpp"

#include <cmath>

namespace {

// What cg.py passes, field by field. Vectors are (images, pixels), all else (images).
struct Task {
    Shape shape;
    const void *product, *z;  // Bp; the preconditioned residual, null for the residual itself
    void *w, *r, *p;
    double *rz, *square, *gaps;  // <r, z> of p, <r, r>, bounds of how far r is from the true residual
    double rounding;
    const double *goal;
    int64_t *spent;
    const int64_t *budget;
    unsigned char *done;
};

// Steps per image, and where squares of w and of r go, per unit.
struct Move {
    const Task &task;
    const double *steps;
    double *sums;
};

constexpr int64_t SQUARES = 2;

// w + step p, r - step Bp
template <typename T>
INLINE void move_units(const Move &move, int64_t first, int64_t last) {
    const Task &task = move.task;
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t image = task.shape.image(unit), offset = image * task.shape.pixels;
        const T step = T(move.steps[image]);
        const T *RESTRICT product = at<T>(task.product, offset), *RESTRICT p = at<T>(task.p, offset);
        T *RESTRICT w = at<T>(task.w, offset), *RESTRICT r = at<T>(task.r, offset);
        Sums<SQUARES> sums;
        summed<T, SQUARES>(task.shape.from(unit), task.shape.to(unit), sums, [&](int64_t j, int64_t l) BODY {
            const T next = w[j] + step * p[j], left = r[j] - step * product[j];
            w[j] = next;
            r[j] = left;
            sums.block[0][l] += double(next) * double(next);
            sums.block[1][l] += double(left) * double(left);
        });
        for (int64_t k = 0; k < SQUARES; ++k) move.sums[unit * SQUARES + k] = sums.value(k);
    }
}

CLONES void move_part(const Move &move, int64_t first, int64_t last) {
    if (move.task.shape.precision == 4) return move_units<float>(move, first, last);
    return move_units<double>(move, first, last);
}

struct Turn {
    const Task &task;
    const double *factors;
};

// z + factor p
template <typename T>
INLINE void turn_units(const Turn &turn, int64_t first, int64_t last) {
    const Task &task = turn.task;
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t image = task.shape.image(unit), offset = image * task.shape.pixels;
        const T factor = T(turn.factors[image]);
        const T *RESTRICT z = at<T>(task.z ? task.z : task.r, offset);
        T *RESTRICT p = at<T>(task.p, offset);
        for (int64_t j = task.shape.from(unit); j < task.shape.to(unit); ++j) p[j] = z[j] + factor * p[j];
    }
}

CLONES void turn_part(const Turn &turn, int64_t first, int64_t last) {
    if (turn.task.shape.precision == 4) return turn_units<float>(turn, first, last);
    return turn_units<double>(turn, first, last);
}

}  // namespace

// A step along p; returns how many images are done.
EXPORT int64_t solvers_cg_advance(const Task *given) {
    const Task &task = *given;
    const Shape &shape = task.shape;
    std::vector<double> steps(shape.images), sums(shape.units() * SQUARES);
    const std::vector<double> inner = inner_products(shape, task.p, task.product);
    for (int64_t i = 0; i < shape.images; ++i) {
        const double curvature = shape.total<INNERS>(i, inner).value(BOTH);
        steps[i] = curvature > 0 ? task.rz[i] / curvature : 0;
        task.done[i] = !(curvature > 0);
    }
    share(Move{task, steps.data(), sums.data()}, shape.units(), shape.threads, move_part);
    int64_t ended = 0;
    for (int64_t i = 0; i < shape.images; ++i) {
        const double length = std::sqrt(shape.total<INNERS>(i, inner).value(OWN));
        const Sums<SQUARES> squares = shape.total<SQUARES>(i, sums);
        task.gaps[i] += task.rounding * (std::sqrt(squares.value(0)) + 2 * std::fabs(steps[i]) * length);
        task.square[i] = squares.value(1);
        ++task.spent[i];
        // 0.9 leaves room for the gap, and for a recomputed residual that is a little larger
        const bool small = std::sqrt(task.square[i]) <= 0.9 * task.goal[i];
        task.done[i] = task.done[i] || small || task.spent[i] + 1 >= task.budget[i];
        ended += task.done[i];
    }
    return ended;
}

// The next p.
EXPORT void solvers_cg_turn(const Task *given) {
    const Task &task = *given;
    const Shape &shape = task.shape;
    std::vector<double> factors(shape.images), inner;
    if (task.z) inner = inner_products(shape, task.r, task.z);
    for (int64_t i = 0; i < shape.images; ++i) {
        const double next = task.z ? shape.total<INNERS>(i, inner).value(BOTH) : task.square[i];
        factors[i] = next / task.rz[i];
        task.rz[i] = next;
    }
    share(Turn{task, factors.data()}, shape.units(), shape.threads, turn_part);
}
