/* Arguments of a Python call as arrays of float64, their shapes checked before any use. */
#ifndef SKNN_LEAST_SQUARES_ARRAYS_H
#define SKNN_LEAST_SQUARES_ARRAYS_H

#include "least_squares_terms.h"

#define MOST_ARRAYS 16

typedef struct {
    double *data;         /* NULL for None */
    ptrdiff_t n[3], s[3]; /* shape, and strides in numbers */
    Py_buffer view;
} array;

static void release(array *a, int count)
{
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&a[i].view);
}

static int hold(PyObject *object, int axes, int writable, array *a)
{
    if (PyObject_GetBuffer(object, &a->view, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)))
        return -1;
    int wrong = a->view.ndim != axes || a->view.itemsize != (Py_ssize_t)sizeof(double)
                || a->view.format == NULL || strcmp(a->view.format, "d") != 0;
    for (int i = 0; i < axes && !wrong; i++) {
        a->n[i] = a->view.shape[i];
        a->s[i] = a->view.strides[i] / (Py_ssize_t)sizeof(double);
        wrong = a->view.strides[i] % (Py_ssize_t)sizeof(double) != 0;
    }
    a->data = a->view.buf;
    if (!wrong && (size_t)a->data % sizeof(double) == 0)
        return 0;
    PyBuffer_Release(&a->view);
    PyErr_SetString(PyExc_TypeError, "an argument is no aligned float64 array of the axes wanted");
    return -1;
}

/* Hold the first arguments: for each a letter and its number of axes, 'r' to read, 'w' to write
   (C order), 'n' and 'm' the same but None is allowed. Returns how many, or -1. */
static int hold_all(PyObject *args, const char *kinds, array *a)
{
    int count = (int)strlen(kinds) / 2;
    if (PyTuple_Size(args) < count) {
        PyErr_SetString(PyExc_TypeError, "too few arguments");
        return -1;
    }
    memset(a, 0, sizeof(array) * (size_t)count);
    for (int i = 0; i < count; i++) {
        char kind = kinds[2 * i];
        int axes = kinds[2 * i + 1] - '0', writable = kind == 'w' || kind == 'm';
        PyObject *object = PyTuple_GetItem(args, i);
        if ((kind == 'n' || kind == 'm') && object == Py_None)
            continue;
        int failed = hold(object, axes, writable, a + i);
        if (!failed && writable && !PyBuffer_IsContiguous(&a[i].view, 'C')) {
            PyBuffer_Release(&a[i].view);
            PyErr_SetString(PyExc_TypeError, "an array to write to is not in C order");
            failed = 1;
        }
        if (failed) {
            release(a, i);
            return -1;
        }
    }
    return count;
}

/* Whether an array has this shape (-1 for axes that are not there); None always has. */
static int has_shape(const array *a, ptrdiff_t n0, ptrdiff_t n1, ptrdiff_t n2)
{
    if (a->data == NULL)
        return 1;
    ptrdiff_t wanted[3] = {n0, n1, n2};
    for (int i = 0; i < a->view.ndim; i++)
        if (a->n[i] != wanted[i])
            return 0;
    return 1;
}

/* Whether an array lies in memory without gaps, in C order; None always does. */
static int is_dense(const array *a)
{
    return a->data == NULL || PyBuffer_IsContiguous(&a->view, 'C');
}

static PyObject *refuse(array *a, int count)
{
    release(a, count);
    PyErr_SetString(PyExc_ValueError, "arrays of shapes that do not belong together");
    return NULL;
}

/* The argument behind the arrays, as a number. */
static double number(PyObject *args, int i)
{
    PyObject *object = i < PyTuple_Size(args) ? PyTuple_GetItem(args, i) : NULL;
    if (object == NULL) {
        PyErr_SetString(PyExc_TypeError, "too few arguments");
        return -1.0;
    }
    return PyFloat_AsDouble(object);
}

/* Memory that is handed out piece by piece and freed at once; NULL pieces while it is measured. */
typedef struct {
    double *start;
    size_t used;
} arena;

static double *piece(arena *memory, ptrdiff_t numbers)
{
    double *found = memory->start ? memory->start + memory->used : NULL;
    memory->used += ((size_t)numbers + 7) & ~(size_t)7;
    return found;
}

/* Copy a strided matrix into rows of `wide` numbers, the rest of each 0. */
static void copy_matrix(const double *from, ptrdiff_t row, ptrdiff_t column, ptrdiff_t m,
                        ptrdiff_t n, ptrdiff_t wide, double *to)
{
    for (ptrdiff_t i = 0; i < m; i++) {
        for (ptrdiff_t j = 0; j < n; j++)
            to[i * wide + j] = from[i * row + j * column];
        for (ptrdiff_t j = n; j < wide; j++)
            to[i * wide + j] = 0.0;
    }
}

/* Some rows of a matrix, less the shifts (or NULL), as columns of ROWS numbers; the rest 0. */
static void pack_panel(const array *X, ptrdiff_t first, ptrdiff_t count, const double *shift,
                       double *panel)
{
    ptrdiff_t p = X->n[1], row = X->s[0], column = X->s[1];
    const double *start = X->data + first * row;
    if (count < ROWS)
        memset(panel, 0, sizeof(double) * (size_t)(p * ROWS));
    for (ptrdiff_t j = 0; j < p; j++) {
        double less = shift ? shift[j] : 0.0, *to = panel + j * ROWS;
        const double *from = start + j * column;
        for (ptrdiff_t r = 0; r < count; r++)
            to[r] = from[r * row] - less;
    }
}

#endif
