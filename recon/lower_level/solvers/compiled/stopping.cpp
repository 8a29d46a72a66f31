// Which images may stop: see stopping.py for the formulas.

#include "passes.hpp"

namespace {

// What stopping.py passes, field by field; (images), but for norms: of what is left of the gradient, and of x.
struct Stop {
    int64_t images;
    const double *norms, *fixed, *pull;
    double data, gain, image, gradient;  // of the model of rounding errors
    double scale;
    const double *accuracy;
    double *best, *stale;
    double patience;
    const unsigned char *stalled;  // null where that is not known, as are evaluations
    const int64_t *evaluations;
    int64_t most;
    int64_t *status;
};

enum Status : int64_t { RUNNING = -1, CONVERGED, ITERATION_LIMIT, PRECISION_FLOOR, NOT_FINITE };

INLINE int64_t judged(const Stop &stop, int64_t i) {
    const double norm = stop.norms[2 * i], size = stop.norms[2 * i + 1], grown = stop.gain * size;
    const double pull = stop.pull[i] >= grown ? stop.pull[i] : grown;
    const double rounding = stop.fixed[i] + stop.data * pull + stop.image * size + stop.gradient * norm;
    const bool better = norm <= 0.9 * stop.best[i];
    if (better) stop.best[i] = norm;
    stop.stale[i] = better ? 0 : stop.stale[i] + 1;
    if (!(norm - norm == 0)) return NOT_FINITE;
    if (norm + rounding <= stop.scale * stop.accuracy[i]) return CONVERGED;
    if (norm <= rounding) return PRECISION_FLOOR;
    if (stop.stale[i] >= stop.patience && norm <= 1000 * rounding) return PRECISION_FLOOR;
    if (stop.stalled && stop.stalled[i]) return PRECISION_FLOOR;
    return stop.evaluations && stop.evaluations[i] >= stop.most ? ITERATION_LIMIT : RUNNING;
}

}  // namespace

// Returns how many stop.
EXPORT int64_t solvers_stop(const Stop *stop) {
    int64_t stopped = 0;
    for (int64_t i = 0; i < stop->images; ++i) {
        stop->status[i] = judged(*stop, i);
        stopped += stop->status[i] != RUNNING;
    }
    return stopped;
}

EXPORT int64_t solvers_version() { return 2; }
