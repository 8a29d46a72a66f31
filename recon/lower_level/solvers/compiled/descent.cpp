// Steps of accelerated gradient descent, see fista.py for the formulas, and norms.

#include "passes.hpp"

#include <cmath>

namespace {

// What descent.py passes, field by field. Vectors are (images, pixels), all else (images).
struct Task {
    Shape shape;
    const void *x, *grad;
    void *next, *before;  // v that follows; x_{k-1}, which becomes x_k
    double *momentum;
    const double *lipschitz;
    double modulus;
    int64_t accelerated;
};

struct Norms {
    Shape shape;
    const void *a, *b;
    double *norms;
};

struct Step {
    const Task &task;
    const double *momenta;
};

template <typename T>
INLINE void descend_units(const Step &step, int64_t first, int64_t last) {
    const Task &task = step.task;
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t image = task.shape.image(unit), offset = image * task.shape.pixels;
        const T lipschitz = T(task.lipschitz[image]), beta = T(step.momenta[image]);
        const T *RESTRICT x = at<T>(task.x, offset), *RESTRICT grad = at<T>(task.grad, offset);
        T *RESTRICT next = at<T>(task.next, offset), *RESTRICT before = at<T>(task.before, offset);
        for (int64_t j = task.shape.from(unit); j < task.shape.to(unit); ++j) {
            const T reached = x[j] - grad[j] / lipschitz;
            next[j] = reached + beta * (reached - before[j]);
            before[j] = reached;
        }
    }
}

CLONES void descend(const Step &step, int64_t first, int64_t last) {
    if (step.task.shape.precision == 4) return descend_units<float>(step, first, last);
    return descend_units<double>(step, first, last);
}

INLINE double following(double q, double t) {
    const double a = 1 - q * t * t;
    return (a + std::sqrt(a * a + 4 * t * t)) / 2;
}

}  // namespace

EXPORT void solvers_descend(const Task *given) {
    const Task &task = *given;
    std::vector<double> momenta(task.shape.images);
    for (int64_t i = 0; i < task.shape.images; ++i) {
        const double ratio = task.modulus / task.lipschitz[i], most = 1 - 1e-12, q = ratio > most ? most : ratio;
        const double t = following(q, task.momentum[i]), after = following(q, t);
        momenta[i] = task.accelerated ? (t - 1) * (1 - after * q) / (after * (1 - q)) : 0;
        task.momentum[i] = t;
    }
    share(Step{task, momenta.data()}, task.shape.units(), task.shape.threads, descend);
}

// Norms of a and b, (images, 2).
EXPORT void solvers_norms(const Norms *given) {
    const Shape &shape = given->shape;
    const std::vector<double> inner = inner_products(shape, given->a, given->b);
    for (int64_t i = 0; i < shape.images; ++i) {
        const Sums<INNERS> all = shape.total<INNERS>(i, inner);
        given->norms[2 * i] = std::sqrt(all.value(OWN));
        given->norms[2 * i + 1] = std::sqrt(all.value(OTHER));
    }
}
