// The two loops of L-BFGS over pairs that are restricted to some pixels: see Pairs in quasi_newton.py for the formulas.

#include "passes.hpp"

#include <cmath>

namespace {

// What lbfgs.py passes, field by field. Pairs are (images, memory, pixels), numbers of pairs (images, memory).
struct Task {
    Shape shape;
    int64_t memory;
    const void *s, *y;
    const int64_t *count;
    const unsigned char *free;
    void *q;         // zero outside of the pixels that are free
    double *rho, *a;  // of pairs from the newest to the oldest; rho is 0 of those that are left out
    int64_t *newest;  // slot of the newest pair that is not, or -1
    double *sy, *yy;  // of that
    double curvature;
};

// q + factor times a row, and sums with the pair of a slot; slots are -1 where there is nothing to do.
struct Pass {
    const Task &task;
    const void *rows;  // s or y
    const std::vector<int64_t> &added, &slots;
    const std::vector<double> &factors;
    std::vector<double> &sums;
};

enum Sum : int64_t { SY, SS, YY, SQ, YQ, SUMS };

template <typename T>
INLINE void pass_units(const Pass &pass, int64_t first, int64_t last) {
    const Task &task = pass.task;
    const int64_t n = task.shape.pixels;
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t image = task.shape.image(unit), from = task.shape.from(unit), to = task.shape.to(unit);
        const int64_t added = pass.added[image], slot = pass.slots[image], base = image * task.memory;
        const unsigned char *RESTRICT free = task.free + image * n;
        T *RESTRICT q = at<T>(task.q, image * n);
        if (added >= 0) {
            const T *RESTRICT row = at<T>(pass.rows, (base + added) * n);
            const T factor = T(pass.factors[image]);
            for (int64_t j = from; j < to; ++j) q[j] += factor * (row[j] * T(free[j]));
        }
        if (slot < 0) continue;
        const T *RESTRICT s = at<T>(task.s, (base + slot) * n), *RESTRICT y = at<T>(task.y, (base + slot) * n);
        Sums<SUMS> sums;
        summed<T, SUMS>(from, to, sums, [&](int64_t j, int64_t l) BODY {
            const T part = T(free[j]);
            const double v = double(s[j] * part), w = double(y[j] * part), here = double(q[j]);
            sums.block[SY][l] += v * w;
            sums.block[SS][l] += v * v;
            sums.block[YY][l] += w * w;
            sums.block[SQ][l] += v * here;
            sums.block[YQ][l] += w * here;
        });
        for (int64_t k = 0; k < SUMS; ++k) pass.sums[unit * SUMS + k] = sums.value(k);
    }
}

CLONES void pass_part(const Pass &pass, int64_t first, int64_t last) {
    if (pass.task.shape.precision == 4) return pass_units<float>(pass, first, last);
    return pass_units<double>(pass, first, last);
}

// the slot of the k-th newest pair, -1 if there are not so many
INLINE int64_t slot_of(const Task &task, int64_t image, int64_t k) {
    const int64_t count = task.count[image];
    return k >= 0 && k < least(count, task.memory) ? (count - 1 - k) % task.memory : -1;
}

}  // namespace

// From the newest pair to the oldest one.
EXPORT void solvers_restricted_down(const Task *given) {
    const Task &task = *given;
    const Shape &shape = task.shape;
    std::vector<int64_t> added(shape.images, -1), slots(shape.images);
    std::vector<double> factors(shape.images), sums(shape.units() * SUMS);
    for (int64_t i = 0; i < shape.images; ++i) task.newest[i] = -1;
    for (int64_t k = 0; k <= task.memory; ++k) {  // the last pass only adds
        for (int64_t i = 0; i < shape.images; ++i) slots[i] = slot_of(task, i, k);
        share(Pass{task, task.y, added, slots, factors, sums}, shape.units(), shape.threads, pass_part);
        for (int64_t i = 0; k < task.memory && i < shape.images; ++i) {
            const int64_t of = i * task.memory + k;
            task.rho[of] = task.a[of] = 0;
            added[i] = -1;
            if (slots[i] < 0) continue;
            const Sums<SUMS> all = shape.total<SUMS>(i, sums);
            const double sy = all.value(SY);
            if (!(sy > task.curvature * std::sqrt(all.value(SS)) * std::sqrt(all.value(YY)))) continue;
            if (task.newest[i] < 0) {
                task.newest[i] = slots[i];
                task.sy[i] = sy;
                task.yy[i] = all.value(YY);
            }
            task.rho[of] = 1 / sy;
            task.a[of] = task.rho[of] * all.value(SQ);
            added[i] = slots[i];
            factors[i] = -task.a[of];
        }
    }
}

// From the oldest pair to the newest one.
EXPORT void solvers_restricted_up(const Task *given) {
    const Task &task = *given;
    const Shape &shape = task.shape;
    std::vector<int64_t> added(shape.images, -1), slots(shape.images);
    std::vector<double> factors(shape.images), sums(shape.units() * SUMS);
    for (int64_t k = task.memory - 1; k >= -1; --k) {
        for (int64_t i = 0; i < shape.images; ++i) {
            slots[i] = slot_of(task, i, k);
            if (slots[i] >= 0 && task.rho[i * task.memory + k] == 0) slots[i] = -1;
        }
        share(Pass{task, task.s, added, slots, factors, sums}, shape.units(), shape.threads, pass_part);
        for (int64_t i = 0; i < shape.images; ++i) {
            added[i] = slots[i];
            if (slots[i] < 0) continue;
            const int64_t of = i * task.memory + k;
            factors[i] = task.a[of] - task.rho[of] * shape.total<SUMS>(i, sums).value(YQ);
        }
    }
}
