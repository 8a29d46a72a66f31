// Steps of the primal-dual method for total variation, and its certificate: see iteration.py for the formulas.
//
// A step changes p at row r from rows r, r + 1 of x_bar, and then x and x_bar at row r from rows r - 1, r of p. So all is in
// place, and step k + 1 may be at row r - 1 as soon as step k is at row r: several steps run through the image one behind
// the other, on rows that are still in the cache. What is computed does not depend on that.
//
// Without contraction to fused operations (-ffp-contract=off) all instruction sets compute the same bits.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#if defined(_MSC_VER)
#define EXPORT extern "C" __declspec(dllexport)
#define INLINE __forceinline
#define RESTRICT __restrict
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#define RESTRICT __restrict__
#endif

namespace {

constexpr int64_t CACHE = 400 * 1024;  // bytes of rows that steps behind one another may touch
constexpr int64_t LANES = 8;           // partial sums of a row
constexpr double UNIT = 0x1p-53;       // relative rounding error in double precision

struct Shape {
    int64_t planes, height, width;
    int64_t size() const { return planes * height * width; }
};

struct Step {
    double dual, primal, theta;
};

template <typename T>
struct Problem {
    Shape shape;
    T alpha, low, high;
    const T *y, *weights;  // weights: null where all are 1
};

template <typename T>
INLINE T clip(T v, T low, T high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}

// p + s D x_bar, projected: `below` is row r + 1 of x_bar, or row r where that is the last
template <typename T, bool ISOTROPIC>
INLINE void dual_row(const T *RESTRICT here, const T *RESTRICT below, T *RESTRICT p0, T *RESTRICT p1, int64_t width,
                     T step) {
    for (int64_t j = 0; j < width - 1; ++j) {
        const T a = p0[j] + step * (below[j] - here[j]), b = p1[j] + step * (here[j + 1] - here[j]);
        if (ISOTROPIC) {
            const T square = a * a + b * b;
            const T scale = T(1) / std::sqrt(square > T(1) ? square : T(1));
            p0[j] = a * scale;
            p1[j] = b * scale;
        } else {
            p0[j] = clip(a, T(-1), T(1));
            p1[j] = clip(b, T(-1), T(1));
        }
    }
    p0[width - 1] = clip(p0[width - 1] + step * (below[width - 1] - here[width - 1]), T(-1), T(1));
}

template <typename T, bool WEIGHTED>
INLINE void primal_row(const Problem<T> &problem, const T *RESTRICT y, const T *RESTRICT weights,
                       const T *RESTRICT above, const T *RESTRICT p0, const T *RESTRICT p1, T *RESTRICT x,
                       T *RESTRICT bar, T tau, T theta) {
    const T alpha = problem.alpha, low = problem.low, high = problem.high, plain = tau / (T(1) + tau);
    for (int64_t j = 0; j < problem.shape.width; ++j) {
        const T left = j > 0 ? p1[j - 1] : T(0);
        const T transpose = (above[j] - p0[j]) + (left - p1[j]);
        const T step = WEIGHTED ? tau / (T(1) + tau * weights[j]) : plain;
        const T misfit = WEIGHTED ? weights[j] * (y[j] - x[j]) : y[j] - x[j];
        const T next = clip(x[j] + step * (misfit - alpha * transpose), low, high);
        bar[j] = next + theta * (next - x[j]);
        x[j] = next;
    }
}

template <typename T, bool ISOTROPIC, bool WEIGHTED>
INLINE void advance(const Problem<T> &problem, int64_t count, const Step *steps, T *x, T *bar, T *p, const T *zeros) {
    const int64_t width = problem.shape.width, height = problem.shape.height, plane = width * height;
    const int64_t fits = CACHE / (int64_t(sizeof(T)) * width * (WEIGHTED ? 6 : 5)) - 2;
    const int64_t most = fits < 1 ? 1 : fits;
    for (int64_t c = 0; c < problem.shape.planes; ++c) {
        const int64_t start = c * plane;
        T *p0 = p + start, *p1 = p + problem.shape.size() + start;
        for (int64_t first = 0; first < count; first += most) {
            const int64_t behind = count - first < most ? count - first : most;
            for (int64_t front = 0; front < height + behind - 1; ++front) {
                for (int64_t k = 0; k < behind; ++k) {
                    const int64_t r = front - k;
                    if (r < 0 || r >= height) continue;
                    const Step &step = steps[first + k];
                    const int64_t row = r * width, at = start + row;
                    const T *below = bar + at + (r + 1 < height ? width : 0);
                    dual_row<T, ISOTROPIC>(bar + at, below, p0 + row, p1 + row, width, T(step.dual));
                    const T *above = r > 0 ? p0 + row - width : zeros;
                    const T *weights = WEIGHTED ? problem.weights + at : nullptr;
                    primal_row<T, WEIGHTED>(problem, problem.y + at, weights, above, p0 + row, p1 + row, x + at,
                                            bar + at, T(step.primal), T(step.theta));
                }
            }
        }
    }
}

// What the certificate adds up, in double precision, see certificate.py.
enum Sum : int64_t { VARIATION, SLACK, DISTANCE, BOUND, OUTPUT, SUMS };

// The sum in an order that no instruction set changes.
INLINE double total(const double *RESTRICT terms, int64_t count) {
    double lanes[LANES] = {};
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES) {
        for (int64_t l = 0; l < LANES; ++l) lanes[l] += terms[j + l];
    }
    for (int64_t l = 0; j < count; ++j, ++l) lanes[l] += terms[j];
    double sum = 0;
    for (int64_t l = 0; l < LANES; ++l) sum += lanes[l];
    return sum;
}

// Fields p of length almost 1 have length 1: in single precision rounding takes or adds as much, which would be most of
// the gap. `snap`: from which length on.
template <typename T, bool ISOTROPIC>
INLINE void snapped_row(const T *RESTRICT p0, const T *RESTRICT p1, double *RESTRICT q0, double *RESTRICT q1,
                        int64_t width, double snap) {
    for (int64_t j = 0; j < width; ++j) {
        const double a = double(p0[j]), b = double(p1[j]);
        if (ISOTROPIC) {
            const double length = std::sqrt(a * a + b * b);
            const double scale = 1.0 / (length >= snap ? length : 1.0);
            q0[j] = a * scale;
            q1[j] = b * scale;
        } else {
            q0[j] = a >= snap ? 1.0 : a <= -snap ? -1.0 : a;
            q1[j] = b >= snap ? 1.0 : b <= -snap ? -1.0 : b;
        }
    }
}

// Terms of a row, `width` of each in the order of Sum.
struct Terms {
    double *first;
    int64_t width;
    double *operator[](Sum s) const { return first + s * width; }
};

// x(p), the minimizer over [low, high] of w (t - y)^2 / 2 + pull t, and what lies between it and x
template <typename T, bool WEIGHTED>
INLINE void distance_row(const T *RESTRICT x, const T *RESTRICT data, const T *RESTRICT weights,
                         const double *RESTRICT above, const double *RESTRICT q0, const double *RESTRICT q1,
                         double alpha, double low, double high, int64_t width, T *RESTRICT out,
                         double *RESTRICT distance, double *RESTRICT bound, double *RESTRICT output) {
    for (int64_t j = 0; j < width; ++j) {
        const double v = double(x[j]), w = WEIGHTED ? double(weights[j]) : 1.0, y = double(data[j]);
        const double pull = alpha * ((above[j] - q0[j]) + (q1[j - 1] - q1[j]));
        double best = WEIGHTED ? y - pull / w : y - pull;
        if (WEIGHTED) {  // where nothing was measured: an end, or x itself where all values are as good
            const double end = pull > 0 ? low : high;
            const double free = pull == 0 ? v : end;
            best = w > 0 ? best : free;
        }
        best = clip(best, low, high);
        const double force = w * (best - y) + pull, away = v - best, product = force * away;
        const bool held = (best <= low) | (best >= high) | (w <= 0);
        distance[j] = w * away * away;
        bound[j] = held ? product : 0.0;  // elsewhere the force is zero but for rounding errors
        const double middle = 0.5 * (v + best);
        const T rounded = T(middle);
        const double lost = std::fabs(double(rounded) - middle) + UNIT * std::fabs(middle);
        output[j] = lost * lost;
        out[j] = rounded;
    }
}

template <typename T, bool ISOTROPIC>
INLINE void slack_row(const T *RESTRICT here, const T *RESTRICT below, const double *RESTRICT q0,
                      const double *RESTRICT q1, int64_t width, double *RESTRICT variation, double *RESTRICT slack) {
    for (int64_t j = 0; j < width - 1; ++j) {
        const double v = double(here[j]), d0 = double(below[j]) - v, d1 = double(here[j + 1]) - v;
        const double length = ISOTROPIC ? std::sqrt(d0 * d0 + d1 * d1) : std::fabs(d0) + std::fabs(d1);
        variation[j] = length;
        slack[j] = length - (d0 * q0[j] + d1 * q1[j]);
    }
    const double last = double(below[width - 1]) - double(here[width - 1]);
    variation[width - 1] = std::fabs(last);
    slack[width - 1] = std::fabs(last) - last * q0[width - 1];
}

template <typename T, bool ISOTROPIC, bool WEIGHTED>
INLINE void certify(const Problem<T> &problem, const T *x, const T *p, double alpha, double snap, T *out,
                    double *sums) {
    const int64_t width = problem.shape.width, height = problem.shape.height, plane = width * height;
    std::vector<double> room((3 + SUMS) * width + 1, 0.0);
    double *above = room.data(), *q0 = above + width, *q1 = q0 + width + 1;  // with a zero in front of q1
    const Terms terms{q1 + width, width};
    for (int64_t s = 0; s < SUMS; ++s) sums[s] = 0;
    for (int64_t c = 0; c < problem.shape.planes; ++c) {
        for (int64_t j = 0; j < width; ++j) above[j] = 0;
        for (int64_t r = 0; r < height; ++r) {
            const int64_t at = c * plane + r * width;
            snapped_row<T, ISOTROPIC>(p + at, p + problem.shape.size() + at, q0, q1, width, snap);
            distance_row<T, WEIGHTED>(x + at, problem.y + at, WEIGHTED ? problem.weights + at : nullptr, above, q0, q1,
                                      alpha, double(problem.low), double(problem.high), width, out + at,
                                      terms[DISTANCE], terms[BOUND], terms[OUTPUT]);
            slack_row<T, ISOTROPIC>(x + at, x + at + (r + 1 < height ? width : 0), q0, q1, width, terms[VARIATION],
                                    terms[SLACK]);
            for (int64_t s = 0; s < SUMS; ++s) sums[s] += total(terms[Sum(s)], width);
            double *swap = above;
            above = q0;
            q0 = swap;
        }
    }
}

// What iteration.py passes, field by field.
struct Task {
    int64_t precision, isotropic;  // bytes of a number; whether |(Dx)_i| is Euclidean
    int64_t planes, height, width;
    double alpha, low, high;
    const void *y, *weights;  // (planes, height, width); weights: null where all are 1
    void *x, *bar, *p;        // p: (2, planes, height, width)
    int64_t count;            // of steps, triples of numbers
    const double *steps;
    double snap;
    void *out;
    double *sums;
};

template <typename T, bool ISOTROPIC, bool WEIGHTED>
INLINE void run(const Task &task) {
    const Shape shape{task.planes, task.height, task.width};
    const Problem<T> problem{shape,
                             T(task.alpha),
                             T(task.low),
                             T(task.high),
                             static_cast<const T *>(task.y),
                             static_cast<const T *>(task.weights)};
    T *x = static_cast<T *>(task.x), *p = static_cast<T *>(task.p);
    if (task.out) {
        certify<T, ISOTROPIC, WEIGHTED>(problem, x, p, task.alpha, task.snap, static_cast<T *>(task.out), task.sums);
        return;
    }
    const std::vector<T> zeros(task.width, T(0));
    advance<T, ISOTROPIC, WEIGHTED>(problem, task.count, reinterpret_cast<const Step *>(task.steps), x,
                                    static_cast<T *>(task.bar), p, zeros.data());
}

template <typename T>
INLINE void choose(const Task &task) {
    if (task.isotropic && task.weights) return run<T, true, true>(task);
    if (task.isotropic) return run<T, true, false>(task);
    if (task.weights) return run<T, false, true>(task);
    return run<T, false, false>(task);
}

CLONES void dispatch(const Task &task) {
    if (task.precision == 4) return choose<float>(task);
    return choose<double>(task);
}

}  // namespace

EXPORT int64_t total_variation_version() { return 1; }

EXPORT void total_variation_run(const Task *task) { dispatch(*task); }
