// Sparse matrices times a few vectors side by side: see sparse.py.
//
// Entries are in single precision and sums in double. The sum of a row has four parts, entry e in part e mod 4, which
// hides the time that an addition takes; they are added in the end. So a result depends neither on how many vectors
// there are, nor on which rows a thread has. Of vectors in single precision products are exact, so that it does not
// depend on whether the processor has fused operations either.
//
// What limits eight vectors is how fast the caches hand out their rows. With AVX-512 a row fills a register, which
// compilers do not find out (GCC 12 makes conversions that take twice as long): that is written for the processor.

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own header
#include <immintrin.h>
#define WIDE __attribute__((target("avx512f,fma")))
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#define RESTRICT __restrict__

namespace {

constexpr int64_t PARTS = 4;  // of a sum

typedef double Doubles __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(16)));

#if defined(WIDE)
WIDE inline __m512d numbers(const float *row) { return _mm512_cvtps_pd(_mm256_loadu_ps(row)); }
WIDE inline __m512d numbers(const double *row) { return _mm512_loadu_pd(row); }

template <typename T>
WIDE inline __m512d plus(__m512d sum, float value, const T *row) {
    return _mm512_fmadd_pd(_mm512_set1_pd(value), numbers(row), sum);
}

// `rows` below, for eight vectors
template <typename T>
WIDE void wide_rows(int64_t first, int64_t last, const int32_t *RESTRICT starts, const int32_t *RESTRICT columns,
                    const float *RESTRICT values, const T *RESTRICT x, double *RESTRICT out) {
    for (int64_t r = first; r < last; ++r) {
        __m512d a = _mm512_setzero_pd(), b = a, c = a, d = a;
        int64_t e = starts[r];
        const int64_t end = starts[r + 1];
        for (; e + PARTS <= end; e += PARTS) {
            a = plus(a, values[e], x + int64_t(columns[e]) * 8);
            b = plus(b, values[e + 1], x + int64_t(columns[e + 1]) * 8);
            c = plus(c, values[e + 2], x + int64_t(columns[e + 2]) * 8);
            d = plus(d, values[e + 3], x + int64_t(columns[e + 3]) * 8);
        }
        if (e < end) a = plus(a, values[e], x + int64_t(columns[e]) * 8);
        if (e + 1 < end) b = plus(b, values[e + 1], x + int64_t(columns[e + 1]) * 8);
        if (e + 2 < end) c = plus(c, values[e + 2], x + int64_t(columns[e + 2]) * 8);
        _mm512_storeu_pd(out + r * 8, _mm512_add_pd(_mm512_add_pd(a, b), _mm512_add_pd(c, d)));
    }
}
#endif

// Numbers of a row of x, in double precision.
template <int64_t WIDTH>
struct Numbers {
    static constexpr int64_t HALVES = WIDTH / 4;
    Doubles half[HALVES] = {};

    INLINE void add(double value, const double *RESTRICT row) {
        for (int64_t h = 0; h < HALVES; ++h) {
            Doubles numbers;
            std::memcpy(&numbers, row + 4 * h, sizeof numbers);
            half[h] += value * numbers;
        }
    }
    INLINE void add(double value, const float *RESTRICT row) {
        for (int64_t h = 0; h < HALVES; ++h) {
            Floats numbers;
            std::memcpy(&numbers, row + 4 * h, sizeof numbers);
            half[h] += value * __builtin_convertvector(numbers, Doubles);
        }
    }
    INLINE static void total(const Numbers *parts, double *RESTRICT out) {
        for (int64_t h = 0; h < HALVES; ++h) {
            const Doubles sum = (parts[0].half[h] + parts[1].half[h]) + (parts[2].half[h] + parts[3].half[h]);
            std::memcpy(out + 4 * h, &sum, sizeof sum);
        }
    }
};

template <>
struct Numbers<1> {
    double sum = 0;

    template <typename T>
    INLINE void add(double value, const T *RESTRICT row) {
        sum += value * double(*row);
    }
    INLINE static void total(const Numbers *parts, double *RESTRICT out) {
        *out = (parts[0].sum + parts[1].sum) + (parts[2].sum + parts[3].sum);
    }
};

template <typename T, int64_t WIDTH>
INLINE void rows(int64_t first, int64_t last, const int32_t *RESTRICT starts, const int32_t *RESTRICT columns,
                 const float *RESTRICT values, const T *RESTRICT x, double *RESTRICT out) {
    for (int64_t r = first; r < last; ++r) {
        Numbers<WIDTH> sums[PARTS];
        int64_t e = starts[r];
        const int64_t end = starts[r + 1];
        for (; e + PARTS <= end; e += PARTS) {
            sums[0].add(values[e], x + int64_t(columns[e]) * WIDTH);
            sums[1].add(values[e + 1], x + int64_t(columns[e + 1]) * WIDTH);
            sums[2].add(values[e + 2], x + int64_t(columns[e + 2]) * WIDTH);
            sums[3].add(values[e + 3], x + int64_t(columns[e + 3]) * WIDTH);
        }
        if (e < end) sums[0].add(values[e], x + int64_t(columns[e]) * WIDTH);
        if (e + 1 < end) sums[1].add(values[e + 1], x + int64_t(columns[e + 1]) * WIDTH);
        if (e + 2 < end) sums[2].add(values[e + 2], x + int64_t(columns[e + 2]) * WIDTH);
        Numbers<WIDTH>::total(sums, out + r * WIDTH);
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
#if defined(WIDE)
    static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
    if (wide && width == 8) {
        if (bytes == 4) return wide_rows(first, last, starts, columns, values, static_cast<const float *>(x), out);
        return wide_rows(first, last, starts, columns, values, static_cast<const double *>(x), out);
    }
#endif
    dispatch(bytes, width, first, last, starts, columns, values, x, out);
}
