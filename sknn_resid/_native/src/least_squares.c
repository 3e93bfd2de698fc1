/* Least squares: sums of products, one refinement step and statistics of rows, for problems whose
   time in Python is that of the calls. linear_model/_compiled.py calls them and says what they
   compute; the same in numpy is beside each call. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "levels.h"

/* A product and a sum are two operations: their rounding errors are what this file is about. GCC
   never contracts them under -std=c11. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#include "least_squares_terms.h"

#if defined(HAS_LEVELS)
#include <immintrin.h>
#endif

#define LEVEL(name) name##_base
#if defined(__GNUC__) && defined(__aarch64__)
#define LANES 2
#define LEVEL_FMA 1
#elif defined(__GNUC__)
#define LANES 2
#define LEVEL_FMA 0
#else
#define LANES 1
#define LEVEL_FMA 0
#endif
#include "least_squares.inc"

#ifdef HAS_LEVELS
BEGIN_V3
#define LEVEL(name) name##_v3
#define LANES 4
#define LEVEL_FMA 256
#include "least_squares.inc"
END_LEVEL
BEGIN_V4
#define LEVEL(name) name##_v4
#define LANES 8
#define LEVEL_FMA 512
#include "least_squares.inc"
END_LEVEL
#define AT_LEVEL(name, arguments)                                                                  \
    (level == LEVEL_V4   ? name##_v4 arguments                                                     \
     : level == LEVEL_V3 ? name##_v3 arguments                                                     \
                         : name##_base arguments)
#else
#define AT_LEVEL(name, arguments) name##_base arguments
#endif

/* Set once, when the module is imported. SKNN_RESID_NATIVE=base or avx2 holds it down, to compare. */
static enum level level;

static void choose_level(void)
{
    const char *most = getenv("SKNN_RESID_NATIVE");
    level = best_level();
    if (most != NULL && strcmp(most, "base") == 0)
        level = LEVEL_BASE;
    if (most != NULL && strcmp(most, "avx2") == 0 && level > LEVEL_V3)
        level = LEVEL_V3;
}

#include "least_squares_arrays.h"
#include "least_squares_passes.h"
#include "least_squares_solve.h"
#include "least_squares_small.h"

static PyMethodDef methods[] = {
    {"finite", call_finite, METH_VARARGS, "Whether all numbers are finite."},
    {"shifts", call_shifts, METH_VARARGS, "Shifts that keep means from costing bits."},
    {"sums", call_sums, METH_VARARGS, "Sums of products in two words."},
    {"cut", call_cut, METH_VARARGS, "Columns cut in two for exact products."},
    {"centre", call_centre, METH_VARARGS, "Centred sums of products, if they are harmless."},
    {"eigh", call_eigh, METH_VARARGS, "Eigenvalues and vectors of a small symmetric matrix."},
    {"basis", call_basis, METH_VARARGS, "Basis, coordinates and residual sums."},
    {"solve", call_solve, METH_VARARGS, "Coefficients by one step, if it suffices."},
    {"covariance", call_covariance, METH_VARARGS, "Covariance by one step, if it suffices."},
    {"rows", call_rows, METH_VARARGS, "Residuals, leverages, leave-one-out residuals."},
    {"skeleton", call_skeleton, METH_VARARGS, "Columns of which the others are mixtures."},
    {"loo", call_loo, METH_VARARGS, "Squared leave-one-out errors of all penalties."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_least_squares", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__least_squares(void)
{
    choose_level();
    return PyModule_Create(&definition);
}
