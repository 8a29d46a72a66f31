// Sparse matrices times a few vectors side by side: see sparse.py.
//
// Entries are in single precision and sums in double. The sum of a row has four parts, entry e in part e mod 4, which
// hides the time that an addition takes; they are added in the end. So a result depends neither on how many vectors
// there are, nor on which rows a thread has, nor, without contraction to fused operations (-ffp-contract=off), on the
// instructions.

#include <cstdint>

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

constexpr int64_t PARTS = 4;  // of a sum

template <typename T, int64_t WIDTH>
INLINE void rows(int64_t first, int64_t last, const int32_t *RESTRICT starts, const int32_t *RESTRICT columns,
                 const float *RESTRICT values, const T *RESTRICT x, double *RESTRICT out) {
    for (int64_t r = first; r < last; ++r) {
        double sums[PARTS][WIDTH] = {};
        int64_t e = starts[r];
        const int64_t end = starts[r + 1];
        for (; e + PARTS <= end; e += PARTS) {
            for (int64_t part = 0; part < PARTS; ++part) {
                const double value = double(values[e + part]);
                const T *RESTRICT row = x + int64_t(columns[e + part]) * WIDTH;
                for (int64_t c = 0; c < WIDTH; ++c) sums[part][c] += value * double(row[c]);
            }
        }
        for (int64_t part = 0; e < end; ++e, ++part) {
            const double value = double(values[e]);
            const T *RESTRICT row = x + int64_t(columns[e]) * WIDTH;
            for (int64_t c = 0; c < WIDTH; ++c) sums[part][c] += value * double(row[c]);
        }
        double *RESTRICT result = out + r * WIDTH;
        for (int64_t c = 0; c < WIDTH; ++c) result[c] = (sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c]);
    }
}

template <typename T>
INLINE void choose(int64_t width, int64_t first, int64_t last, const int32_t *starts, const int32_t *columns,
                   const float *values, const T *x, double *out) {
    if (width == 8) return rows<T, 8>(first, last, starts, columns, values, x, out);
    if (width == 4) return rows<T, 4>(first, last, starts, columns, values, x, out);
    return rows<T, 1>(first, last, starts, columns, values, x, out);
}

CLONES void dispatch(int64_t bytes, int64_t width, int64_t first, int64_t last, const int32_t *starts,
                     const int32_t *columns, const float *values, const void *x, double *out) {
    if (bytes == 4) {
        return choose(width, first, last, starts, columns, values, static_cast<const float *>(x), out);
    }
    return choose(width, first, last, starts, columns, values, static_cast<const double *>(x), out);
}

}  // namespace

EXPORT int64_t sparse_version() { return 1; }

// Rows first, ..., last - 1 of the matrix (CSR) times x, (columns, width) with numbers of so many bytes, to out, (rows,
// width) in double precision. The width is 1, 4 or 8.
EXPORT void sparse_rows(int64_t bytes, int64_t width, int64_t first, int64_t last, const int32_t *starts,
                        const int32_t *columns, const float *values, const void *x, double *out) {
    dispatch(bytes, width, first, last, starts, columns, values, x, out);
}
