/* What the kernels of least squares pass on between them. */
#ifndef SKNN_LEAST_SQUARES_TERMS_H
#define SKNN_LEAST_SQUARES_TERMS_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Registers wider than float64 would round twice, and no sum would have its error. */
#if FLT_EVAL_METHOD != 0
#error "float64 arithmetic that keeps more bits: build without the compiled parts"
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE inline
#endif

#define ROWS 96 /* of a panel: a multiple of three vectors of any level, and few enough that sums of
                   that many products in two words keep 92 bits */
#define CHUNK 16 /* penalties at a time, so that their errors stay in the nearest cache */
#define SPLITTER 134217729.0 /* 2^27 + 1 */
#define MIN_SLACK (16.0 * DBL_EPSILON) /* 1 - h below this is 0 but for rounding */
#define CLEAR_SLACK 0x1p-10 /* as in linear_model/_loo.py */
#define SMALL 0x1p-20       /* these two as in linear_model/_quick.py */
#define LAST 0x1p-58
#define MOST_LOST 0x1p40 /* cancellation that sums in two words still serve */

/* A number in two words. */
typedef struct {
    double high, low;
} pair;

static ALWAYS_INLINE pair pair_sum(double a, double b)
{
    double s = a + b, t = s - a;
    pair found = {s, (a - (s - t)) + (b - t)};
    return found;
}

static ALWAYS_INLINE pair pair_add(pair s, double high, double low)
{
    pair t = pair_sum(s.high, high);
    double rest = t.low + (s.low + low), sum = t.high + rest;
    pair found = {sum, rest - (sum - t.high)};
    return found;
}

static ALWAYS_INLINE void add_pair(double *high, double *low, pair more)
{
    pair old = {*high, *low}, found = pair_add(old, more.high, more.low);
    *high = found.high;
    *low = found.low;
}

/* One refinement step; all in scaled coordinates, rows of `wide` numbers unless said otherwise. */
struct step {
    ptrdiff_t q, k, t, wide, yy_stride;
    double *G, *G_low;     /* (q, q) */
    double *B;             /* (q, k) */
    const double *f;       /* (k, t) */
    double *g, *g_low;     /* right-hand sides, (q, wide) */
    double *weight;        /* penalties, (q, wide), or NULL */
    double *more, *more_low;
    double *x, *x_low, *R; /* solution and remainder */
    double *square;        /* memory for (q, q) */
    double *u;             /* memory for k */
    const double *yy, *yy_low, *shift, *y_shift, *scale;
};

/* A fitted design: B' (k, p) and its part of the intercept, factors, coordinates, coefficients. */
struct design {
    ptrdiff_t n, p, k, t;
    const double *Bt, *B0, *f, *z, *coef, *start;
};

/* Factors of all penalties, and columns of which the others are mixtures. */
struct table {
    ptrdiff_t a, width, largest;
    const double *columns, *mix, *mixed, *whole;
};

#endif
