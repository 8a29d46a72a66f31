// Steps of L-BFGS: see quasi_newton.py and lbfgs.py for the formulas.
//
// The history is read twice for every accepted step, which is what takes time: once for the products of all its vectors
// with the new change of the gradient and with the new gradient, once for the direction that they make.

#include "passes.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace {

constexpr int64_t ROWS = 4;  // of the history at a time

// What lbfgs.py passes, field by field. Tensors are (images, ...); flags are bytes.
struct Task {
    Shape shape;
    int64_t memory;
    void *pairs;       // (2 memory, pixels) per image
    double *gram;      // (2 memory, 2 memory)
    int64_t *count;    // of pairs so far
    double *products;  // of pairs with the gradient, (2 memory)
    const void *x, *grad, *first;  // first: the preconditioned gradient, or null
    void *direction, *trial;
    double *step, *norms;  // norms: of the gradient and of x
    unsigned char *fresh;
    int64_t *evaluations;
    double armijo, resolution, shortest, longest, curvature;
    double scale;  // of the first directions; 0: one over the norm of the gradient, at most 1
    const void *trial_grad, *changes;  // changes: of the preconditioned gradient, or null
    const double *value, *trial_value;
};

// slots of an image that hold something
INLINE int64_t filled(const Task &task, int64_t image) { return least(task.count[image], task.memory); }

// --- directions ------------------------------------------------------------------------------------------------------

// gamma, and the weights of s_0, ..., y_0, ... in H g, from the products with g
INLINE double weigh(const Task &task, int64_t image, double *weights) {
    const int64_t m = task.memory, k = filled(task, image), newest = task.count[image] - 1;
    const double *gram = task.gram + image * 4 * m * m, *products = task.products + image * 2 * m;
    if (k == 0) {
        const double norm = task.norms[2 * image];
        return task.scale > 0 ? task.scale : 1 / (norm < 1 ? 1 : norm);
    }
    const auto slot = [&](int64_t i) { return (newest - (k - 1) + i) % m; };  // from the oldest to the newest
    const auto sy = [&](int64_t i, int64_t j) { return gram[slot(i) * 2 * m + m + slot(j)]; };
    const auto yy = [&](int64_t i, int64_t j) { return gram[(m + slot(i)) * 2 * m + m + slot(j)]; };
    const double tiny = std::numeric_limits<double>::min(), last = yy(k - 1, k - 1);
    const double gamma = sy(k - 1, k - 1) / (last < tiny ? tiny : last);
    std::vector<double> p(k), q(k);
    for (int64_t i = k - 1; i >= 0; --i) {  // R p = S^T g
        double rest = products[slot(i)];
        for (int64_t j = i + 1; j < k; ++j) rest -= sy(i, j) * p[j];
        p[i] = rest / sy(i, i);
    }
    for (int64_t i = 0; i < k; ++i) {  // R^T q = (D + gamma Y^T Y) p - gamma Y^T g
        double product = 0;
        for (int64_t j = 0; j < k; ++j) product += yy(i, j) * p[j];
        double rest = sy(i, i) * p[i] + gamma * (product - products[m + slot(i)]);
        for (int64_t j = 0; j < i; ++j) rest -= sy(j, i) * q[j];
        q[i] = rest / sy(i, i);
    }
    for (int64_t i = 0; i < k; ++i) {
        weights[slot(i)] = q[i];
        weights[m + slot(i)] = -gamma * p[i];
    }
    return gamma;
}

template <typename T>
INLINE void directions(const Task &task, int64_t first, int64_t last) {
    const Shape &shape = task.shape;
    const int64_t n = shape.pixels, m = task.memory;
    std::vector<double> weights(2 * m);
    T sum[LONG];
    for (int64_t unit = last - 1; unit >= first; --unit) {  // backwards: the end of the history was read last
        const int64_t image = shape.image(unit), from = shape.from(unit), to = shape.to(unit), k = filled(task, image);
        T *direction = at<T>(task.direction, image * n), *trial = at<T>(task.trial, image * n);
        const T *x = at<T>(task.x, image * n), *pairs = at<T>(task.pairs, image * 2 * m * n);
        const T *start = at<T>(task.first ? task.first : task.grad, image * n);
        const T step = T(task.step[image]);
        if (!task.fresh[image]) {
            for (int64_t j = from; j < to; ++j) trial[j] = x[j] + step * direction[j];
            continue;
        }
        const T gamma = T(weigh(task, image, weights.data()));
        for (int64_t end = to; end > from;) {
            const int64_t begin = from + (end - 1 - from) / LONG * LONG, length = end - begin;
            end = begin;
            for (int64_t j = 0; j < length; ++j) sum[j] = gamma * start[begin + j];
            for (int64_t half = 0; half < 2; ++half) {
                const T *RESTRICT row = pairs + half * m * n + begin;
                const double *w = weights.data() + half * m;
                int64_t r = 0;
                for (; r + ROWS <= k; r += ROWS) {
                    const T *RESTRICT p = row + r * n;
                    const T a = T(w[r]), b = T(w[r + 1]), c = T(w[r + 2]), d = T(w[r + 3]);
                    for (int64_t j = 0; j < length; ++j) {
                        sum[j] += (a * p[j] + b * p[n + j]) + (c * p[2 * n + j] + d * p[3 * n + j]);
                    }
                }
                for (; r < k; ++r) {
                    const T a = T(w[r]);
                    for (int64_t j = 0; j < length; ++j) sum[j] += a * row[r * n + j];
                }
            }
            for (int64_t j = 0; j < length; ++j) {
                direction[begin + j] = -sum[j];
                trial[begin + j] = x[begin + j] - step * sum[j];
            }
        }
    }
}

CLONES void propose(const Task &task, int64_t first, int64_t last) {
    if (task.shape.precision == 4) return directions<float>(task, first, last);
    return directions<double>(task, first, last);
}

// --- trials ----------------------------------------------------------------------------------------------------------

// before = <g, d>, after = <g+, d>, and of the pair s = x+ - x, y = g+ - g; squares of g+ and x+
enum Trial : int64_t { BEFORE, AFTER, CURVATURE, STEP, CHANGE, GRADIENT, POINT, TRIALS };

struct Judging {
    const Task &task;
    double *sums;  // (TRIALS) per unit
};

template <typename T>
INLINE void judge_units(const Judging &judging, int64_t first, int64_t last) {
    const Task &task = judging.task;
    const Shape &shape = task.shape;
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t offset = shape.image(unit) * shape.pixels;
        const T *RESTRICT x = at<T>(task.x, offset), *RESTRICT trial = at<T>(task.trial, offset);
        const T *RESTRICT grad = at<T>(task.grad, offset);
        const T *RESTRICT trial_grad = at<T>(task.trial_grad, offset);
        const T *RESTRICT direction = at<T>(task.direction, offset);
        Sums<TRIALS> sums;
        summed<T, TRIALS>(shape.from(unit), shape.to(unit), sums, [&](int64_t j, int64_t l) BODY {
            const double s = double(T(trial[j] - x[j])), y = double(T(trial_grad[j] - grad[j]));
            const double d = double(direction[j]), g = double(trial_grad[j]), point = double(trial[j]);
            sums.block[BEFORE][l] += double(grad[j]) * d;
            sums.block[AFTER][l] += g * d;
            sums.block[CURVATURE][l] += s * y;
            sums.block[STEP][l] += s * s;
            sums.block[CHANGE][l] += y * y;
            sums.block[GRADIENT][l] += g * g;
            sums.block[POINT][l] += point * point;
        });
        for (int64_t k = 0; k < TRIALS; ++k) judging.sums[unit * TRIALS + k] = sums.value(k);
    }
}

CLONES void judge(const Judging &judging, int64_t first, int64_t last) {
    if (judging.task.shape.precision == 4) return judge_units<float>(judging, first, last);
    return judge_units<double>(judging, first, last);
}

INLINE bool finite(double v) { return v - v == 0; }

// whether a trial is good, as LineSearchSolver._accepted
INLINE bool accepted(const Task &task, int64_t image, double before, double after) {
    const double old = task.value[image], now = task.trial_value[image];
    const bool flat = std::fabs(now - old) <= task.resolution * std::fabs(old);
    const bool lower = now <= old + task.armijo * task.step[image] * before;
    return (lower || (flat && after <= (2 * task.armijo - 1) * before)) && finite(after);
}

// a step that was rejected, shortened as in LineSearchSolver._moved
INLINE double shortened(const Task &task, double step, double before, double after) {
    double secant = before / (before - after);
    secant = secant == secant ? secant : task.shortest;
    secant = secant < task.shortest ? task.shortest : secant;
    return step * (secant > task.longest ? task.longest : secant);
}

// --- pairs -----------------------------------------------------------------------------------------------------------

struct Pairing {
    const Task &task;
    const unsigned char *curved;  // images that have a new pair
    double *products;             // (2, 2 memory) per unit, of all rows with y and with g+
};

// Adds products of four rows from an entry on with two vectors, at most LONG entries, to LANES sums of each.
template <typename T>
INLINE void multiply(const T *const *rows, int64_t begin, const T *RESTRICT y, const T *RESTRICT g, int64_t length,
                     double *RESTRICT with_y, double *RESTRICT with_g) {
    const T *RESTRICT p0 = rows[0] + begin, *RESTRICT p1 = rows[1] + begin;
    const T *RESTRICT p2 = rows[2] + begin, *RESTRICT p3 = rows[3] + begin;
    T a0[LANES] = {}, a1[LANES] = {}, a2[LANES] = {}, a3[LANES] = {};
    T b0[LANES] = {}, b1[LANES] = {}, b2[LANES] = {}, b3[LANES] = {};
    const auto add = [&](int64_t j, int64_t l) BODY {
        a0[l] += p0[j] * y[j];
        b0[l] += p0[j] * g[j];
        a1[l] += p1[j] * y[j];
        b1[l] += p1[j] * g[j];
        a2[l] += p2[j] * y[j];
        b2[l] += p2[j] * g[j];
        a3[l] += p3[j] * y[j];
        b3[l] += p3[j] * g[j];
    };
    int64_t j = 0;
    for (; j + LANES <= length; j += LANES) {
        for (int64_t l = 0; l < LANES; ++l) add(j + l, l);
    }
    for (int64_t l = 0; j < length; ++j, ++l) add(j, l);
    for (int64_t l = 0; l < LANES; ++l) {
        with_y[l] += double(a0[l]);
        with_g[l] += double(b0[l]);
        with_y[LANES + l] += double(a1[l]);
        with_g[LANES + l] += double(b1[l]);
        with_y[2 * LANES + l] += double(a2[l]);
        with_g[2 * LANES + l] += double(b2[l]);
        with_y[3 * LANES + l] += double(a3[l]);
        with_g[3 * LANES + l] += double(b3[l]);
    }
}

template <typename T>
INLINE void pair_units(const Pairing &pairing, int64_t first, int64_t last) {
    const Task &task = pairing.task;
    const Shape &shape = task.shape;
    const int64_t n = shape.pixels, m = task.memory;
    T change[LONG];
    const int64_t padded = (2 * m + ROWS - 1) / ROWS * ROWS;
    std::vector<double> lanes(2 * padded * LANES);
    std::vector<const T *> rows(padded);
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t image = shape.image(unit), offset = image * n, to = shape.to(unit);
        if (!task.fresh[image]) continue;
        const bool curved = pairing.curved[image];
        const int64_t head = task.count[image] % m, k = curved ? least(task.count[image] + 1, m) : filled(task, image);
        T *pairs = at<T>(task.pairs, image * 2 * m * n);
        const T *x = at<T>(task.x, offset), *trial = at<T>(task.trial, offset);
        const T *grad = at<T>(task.grad, offset), *trial_grad = at<T>(task.trial_grad, offset);
        const T *changes = task.changes ? at<T>(task.changes, offset) : change;
        double *with_y = lanes.data(), *with_g = with_y + padded * LANES;
        const auto slot = [&](int64_t r) { return r < k ? r : m + r - k; };  // of the r-th row that holds something
        for (int64_t r = 0; r < padded; ++r) rows[r] = pairs + slot(least(r, 2 * k - 1)) * n;
        std::fill(lanes.begin(), lanes.end(), 0.0);
        for (int64_t begin = shape.from(unit); begin < to; begin += LONG) {
            const int64_t length = least(LONG, to - begin);
            for (int64_t j = 0; j < length; ++j) change[j] = trial_grad[begin + j] - grad[begin + j];
            if (curved) {
                T *RESTRICT s = pairs + head * n + begin, *RESTRICT y = pairs + (m + head) * n + begin;
                for (int64_t j = 0; j < length; ++j) s[j] = trial[begin + j] - x[begin + j];
                std::memcpy(y, task.changes ? changes + begin : change, length * sizeof(T));
            }
            for (int64_t r = 0; r < 2 * k; r += ROWS) {
                multiply<T>(&rows[r], begin, change, trial_grad + begin, length, with_y + r * LANES, with_g + r * LANES);
            }
        }
        double *products = pairing.products + unit * 4 * m;
        std::fill(products, products + 4 * m, 0.0);
        for (int64_t r = 0; r < 2 * k; ++r) {
            for (int64_t l = 0; l < LANES; ++l) {
                products[slot(r)] += with_y[r * LANES + l];
                products[2 * m + slot(r)] += with_g[r * LANES + l];
            }
        }
    }
}

CLONES void pair(const Pairing &pairing, int64_t first, int64_t last) {
    if (pairing.task.shape.precision == 4) return pair_units<float>(pairing, first, last);
    return pair_units<double>(pairing, first, last);
}

// the new pair among the products of pairs, and all products with the new gradient
void remember(const Task &task, int64_t image, bool curved, const double *products) {
    const int64_t m = task.memory, head = task.count[image] % m, per_image = task.shape.per_image();
    double *gram = task.gram + image * 4 * m * m;
    for (int64_t r = 0; r < 2 * m; ++r) {
        double with_y = 0, with_g = 0;
        for (int64_t c = 0; c < per_image; ++c) {
            const double *unit = products + (image * per_image + c) * 4 * m;
            with_y += unit[r];
            with_g += unit[2 * m + r];
        }
        if (curved) gram[(m + head) * 2 * m + r] = gram[r * 2 * m + m + head] = with_y;
        task.products[image * 2 * m + r] = with_g;
    }
    if (curved) ++task.count[image];
}

}  // namespace

// Directions of the images that are fresh, and the trial points of all.
EXPORT void solvers_lbfgs_propose(const Task *task) { share(*task, task->shape.units(), task->shape.threads, propose); }

// Which trials are good, the pairs that they give, and the next steps; returns how many are good. If all are, the task
// has their x, gradient and value afterwards.
EXPORT int64_t solvers_lbfgs_accept(Task *given) {
    const Task &task = *given;
    const Shape &shape = task.shape;
    std::vector<double> sums(shape.units() * TRIALS), products(shape.units() * 4 * task.memory);
    std::vector<unsigned char> curved(shape.images);
    const Judging judging{task, sums.data()};
    share(judging, shape.units(), shape.threads, judge);
    int64_t good = 0;
    for (int64_t image = 0; image < shape.images; ++image) {
        const Sums<TRIALS> all = shape.total<TRIALS>(image, sums);
        const double before = all.value(BEFORE), after = all.value(AFTER);
        ++task.evaluations[image];
        task.fresh[image] = accepted(task, image, before, after);
        const double lengths = std::sqrt(all.value(STEP)) * std::sqrt(all.value(CHANGE));
        curved[image] = task.fresh[image] && all.value(CURVATURE) > task.curvature * lengths;
        task.step[image] = task.fresh[image] ? 1.0 : shortened(task, task.step[image], before, after);
        if (!task.fresh[image]) continue;
        task.norms[2 * image] = std::sqrt(all.value(GRADIENT));
        task.norms[2 * image + 1] = std::sqrt(all.value(POINT));
        ++good;
    }
    const Pairing pairing{task, curved.data(), products.data()};
    share(pairing, shape.units(), shape.threads, pair);
    for (int64_t image = 0; image < shape.images; ++image) {
        if (task.fresh[image]) remember(task, image, curved[image], products.data());
    }
    if (good == shape.images) {
        given->x = task.trial;
        given->grad = task.trial_grad;
        given->value = task.trial_value;
    }
    return good;
}
