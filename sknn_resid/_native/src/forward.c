/* The forward pass of dense networks, and its parts by themselves for tests. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "levels.h"
#include "forward.h"
#define KERNELS "forward_kernels.inc"
#include "every_level.inc"
#include "forward_parts.h"
#include "forward_run.h"

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS,
     "run(coefs, intercepts, activations, X, out, link, only_finite): a forward pass, as forward.h says; False, and\n"
     "`out` is of no use, where the arrays are not such a network's, or X not finite though it should be."},
    {"gemm", part_gemm, METH_VARARGS, "gemm(A, B, C, bias_k, bias_i, transposed, flags, level): one product."},
    {"map", part_map, METH_VARARGS, "map(name, x, out, level): exp, logistic or tanh of an array."},
    {"levels", part_levels, METH_NOARGS, "Number of levels this processor can run."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_forward", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__forward(void) { return PyModule_Create(&definition); }
