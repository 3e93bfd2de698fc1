/* Operations of a residual network's step: callables without the interpreter in them. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <string.h>

#include "bound.h"
#include "levels.h"
#define KERNELS "residual_kernels.inc"
#include "every_level.inc"

/* Every operation: what it is bound to (bound.h), how many numbers it is given when it is bound and
   with each call, and the memory it works in, in numbers. */
struct kind {
    const char *name, *arrays;
    int n_numbers, n_now; /* n_numbers < 0: any */
    size_t (*scratch)(const struct bound *, const double *numbers, Py_ssize_t n_numbers);
    kernel kernels[2][3]; /* by number type and level */
};

static size_t two_lines(const struct bound *b, const double *numbers, Py_ssize_t n)
{
    return 2 * (size_t)SIZE('H');
}

/* Also checks the description of the runs; 0 is refused. */
static size_t rounds_memory(const struct bound *b, const double *numbers, Py_ssize_t n)
{
    size_t most = 0;
    if (n < 3 || !(numbers[1] >= 1 && numbers[1] <= 16)) return 0;
    const Py_ssize_t at = 2 + 3 * (Py_ssize_t)numbers[1];
    if (n <= at || !(numbers[at] >= 1) || n != at + 1 + 4 * (Py_ssize_t)numbers[at]) return 0;
    for (const double *run = numbers + at + 1; run < numbers + n; run += 4) {
        for (int k = 0; k < 4; k++)
            if (!(run[k] >= (k == 0 ? 0 : 1) && run[k] <= 1e9)) return 0;
        if (run[0] + run[1] * run[2] * run[3] > (double)SIZE('N')) return 0;
        const ptrdiff_t rows = (ptrdiff_t)run[2], columns = (ptrdiff_t)run[3];
        const size_t own = rows < columns ? ns_numbers(rows, columns) : ns_numbers(columns, rows);
        most = own > most ? own : most;
    }
    return most;
}

/* Two rows of numbers for each column of pieces, and one more; 0 is refused. */
static size_t tables_memory(const struct bound *b, const double *numbers, Py_ssize_t n)
{
    if (n != 2 * SIZE('F') || SIZE('J') > 1 << 24) return 0; /* columns are counted in floats */
    for (Py_ssize_t k = 0; k < n; k += 2)
        if (!(numbers[k] >= (k ? numbers[k - 1] : 0) && numbers[k + 1] >= numbers[k] + 1
              && numbers[k + 1] <= (double)SIZE('J')))
            return 0;
    return (size_t)SIZE('H') * (size_t)(2 * (numbers[n - 1] - numbers[0]) + 1);
}

#ifdef HAS_LEVELS
#define LEVELS(f, type) {f##_##type##_base, f##_##type##_v3, f##_##type##_v4}
#else
#define LEVELS(f, type) {f##_##type##_base, f##_##type##_base, f##_##type##_base}
#endif
#define KIND(name, arrays, n_numbers, n_now, scratch) \
    {#name, arrays, n_numbers, n_now, scratch, {LEVELS(op_##name, f32), LEVELS(op_##name, f64)}}

static const struct kind kinds[] = {
    KIND(gemm, "~MIJ ~MJK >MIK ?MK ?MI", 1, 0, NULL),
    KIND(batch_norm, "MBH MB MH MH >MBH >MH >MH >MBH", 2, 0, NULL),
    KIND(batch_norm_back, ">MBH ?MBH MB MBH MH MH >MH >MH >MBH", 1, 0, two_lines),
    KIND(layer_norm, "MBH MH MH >MBH >MB >MBH", 2, 0, NULL),
    KIND(layer_norm_back, ">MBH ?MBH MH MBH MB >MH >MH >MBH", 1, 0, NULL),
    KIND(relu_back, ">MBH MBH >MH", 0, 0, NULL),
    KIND(sum_rows, "MBH >MH", 0, 0, NULL),
    KIND(sum_columns, "MBH >MB", 0, 0, NULL),
    KIND(scale_rows, "MIJ ~MI >MIJ", 0, 0, NULL),
    KIND(adam, ">MN MN >MN >MN", 4, 2, NULL),
    KIND(average, ">MN MN", 0, 1, NULL),
    KIND(muon, ">MN MN >MN", -1, 2, rounds_memory),
    KIND(pieces_in, "MBF MBF MJH >MBH", -1, 0, tables_memory),
    KIND(pieces_back, "MBF MBF MBH >MJH", -1, 0, tables_memory),
    {NULL, NULL, 0, 0, NULL, {{NULL}}},
};

/* One bound operation, or several that are carried out model by model. */
typedef struct {
    PyObject_HEAD
    const struct kind *kind; /* NULL: several */
    kernel run;
    struct bound bound;
    Py_buffer views[MOST_ARRAYS];
    int n_views, busy;
    double *numbers;
    char *memory;
    PyObject *parts; /* a tuple of operations */
    Py_ssize_t n_parts;
} Operation;

static void run_model(Operation *self, ptrdiff_t model)
{
    if (self->kind != NULL) {
        self->run(&self->bound, model);
        return;
    }
    Operation *const *parts = (Operation *const *)self->memory; /* Python is not asked here */
    for (Py_ssize_t k = 0; k < self->n_parts; k++) run_model(parts[k], model);
}

static PyObject *call(PyObject *object, PyObject *args, PyObject *named)
{
    Operation *self = (Operation *)object;
    const Py_ssize_t given = PyTuple_Size(args);
    if (given != (self->kind ? self->kind->n_now : 0) || (named && PyDict_Size(named) > 0)) {
        PyErr_SetString(PyExc_TypeError, "an operation takes the numbers of its kind, by position");
        return NULL;
    }
    if (self->busy) { /* its memory is one caller's */
        PyErr_SetString(PyExc_RuntimeError, "this operation is already running in another thread");
        return NULL;
    }
    for (Py_ssize_t k = 0; k < given; k++) {
        self->bound.now[k] = PyFloat_AsDouble(PyTuple_GetItem(args, k));
        if (self->bound.now[k] == -1 && PyErr_Occurred()) return NULL;
    }
    self->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    for (ptrdiff_t model = 0; model < self->bound.models; model++) run_model(self, model);
    Py_END_ALLOW_THREADS
    self->busy = 0;
    Py_RETURN_NONE;
}

static void dealloc(PyObject *object)
{
    Operation *self = (Operation *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (int k = 0; k < self->n_views; k++) PyBuffer_Release(&self->views[k]);
    PyMem_Free(self->numbers);
    PyMem_Free(self->memory);
    Py_XDECREF(self->parts);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyType_Slot operation_slots[] = {
    {Py_tp_call, call}, {Py_tp_dealloc, dealloc}, {Py_tp_doc, "A bound operation; call it to run it."}, {0, NULL}};
static PyType_Spec operation_spec = {"sknn_resid._native._residual.Operation", sizeof(Operation), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, operation_slots};

struct state {
    PyTypeObject *type;
    enum level level;
};

static Operation *new_operation(PyObject *module)
{
    PyTypeObject *type = ((struct state *)PyModule_GetState(module))->type;
    return (Operation *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0); /* zeros */
}

static int refuse(const struct kind *kind, int array, const char *why)
{
    PyErr_Format(PyExc_ValueError, "%s: array %d %s", kind->name, array, why);
    return -1;
}

/* Take one array after its part of the signature, `shape` up to a space; 0 or -1. */
static int take(Operation *self, int n, PyObject *object, const char *shape, char *type)
{
    struct bound *b = &self->bound;
    int free_strides = 0, writable = 0;
    for (; *shape == '~' || *shape == '>' || *shape == '?'; shape++) {
        if (*shape == '?' && object == Py_None) return 0;
        free_strides |= *shape == '~';
        writable |= *shape == '>';
    }
    Py_buffer *view = &self->views[self->n_views];
    const int flags = PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) return -1;
    self->n_views++;
    if (view->format == NULL || view->format[1] != '\0' || (view->format[0] != 'f' && view->format[0] != 'd')
        || (*type != '\0' && *type != view->format[0]))
        return refuse(self->kind, n, "is of another number type");
    *type = view->format[0];
    const Py_ssize_t item = view->itemsize;
    int axis = 0;
    for (; shape[axis] != '\0' && shape[axis] != ' '; axis++) {
        if (axis >= view->ndim) return refuse(self->kind, n, "has too few axes");
        ptrdiff_t *size = &b->size[shape[axis] - 'A'];
        if (*size < 0) *size = view->shape[axis];
        if (*size != view->shape[axis] || *size < 1) return refuse(self->kind, n, "does not fit the others");
        if (view->strides[axis] % item != 0 || view->strides[axis] < 0)
            return refuse(self->kind, n, "has odd strides");
    }
    if (axis != view->ndim || axis < 2) return refuse(self->kind, n, "has too many axes");
    b->at[n] = view->buf;
    b->step[n] = view->strides[0];
    b->column[n] = view->strides[axis - 1] / item;
    b->row[n] = axis == 3 ? view->strides[1] / item : b->column[n];
    if (!free_strides && b->column[n] != 1 && view->shape[axis - 1] > 1)
        return refuse(self->kind, n, "has no rows of neighbouring numbers");
    return 0;
}

static int take_numbers(Operation *self, PyObject *numbers)
{
    const Py_ssize_t n = PyTuple_Size(numbers);
    if (n < 0) return -1;
    if (self->kind->n_numbers >= 0 && n != self->kind->n_numbers) {
        PyErr_Format(PyExc_ValueError, "%s: takes %d numbers", self->kind->name, self->kind->n_numbers);
        return -1;
    }
    self->numbers = PyMem_Malloc((size_t)(n + 1) * sizeof(double));
    if (self->numbers == NULL) return PyErr_NoMemory(), -1;
    for (Py_ssize_t k = 0; k < n; k++) {
        self->numbers[k] = PyFloat_AsDouble(PyTuple_GetItem(numbers, k));
        if (self->numbers[k] == -1 && PyErr_Occurred()) return -1;
    }
    self->bound.numbers = self->numbers;
    if (self->kind->scratch) {
        const size_t needed = self->kind->scratch(&self->bound, self->numbers, n);
        if (needed == 0) {
            PyErr_Format(PyExc_ValueError, "%s: the numbers do not describe it", self->kind->name);
            return -1;
        }
        self->memory = PyMem_Calloc(needed * sizeof(double) + 64, 1);
        if (self->memory == NULL) return PyErr_NoMemory(), -1;
        self->bound.scratch = (void *)(((uintptr_t)self->memory + 63) / 64 * 64);
    }
    return 0;
}

/* What the signature cannot say: columns of these are neighbours along one of two axes, and a
   number of columns lies within a row. */
static int fits(Operation *self)
{
    const struct bound *b = &self->bound;
    if (strcmp(self->kind->name, "gemm") == 0 && b->column[1] != 1 && b->row[1] != 1 && SIZE('K') > 1 && SIZE('J') > 1)
        return refuse(self->kind, 1, "has no rows or columns of neighbouring numbers");
    if (strcmp(self->kind->name, "adam") == 0 && !(self->numbers[3] >= 0 && self->numbers[3] <= (double)SIZE('N'))) {
        PyErr_SetString(PyExc_ValueError, "adam: more parameters decay than there are");
        return -1;
    }
    return 0;
}

/* bind(name, arrays, numbers): an operation. */
static PyObject *bind(PyObject *module, PyObject *args)
{
    const char *name;
    PyObject *arrays, *numbers;
    if (!PyArg_ParseTuple(args, "sO!O!", &name, &PyTuple_Type, &arrays, &PyTuple_Type, &numbers)) return NULL;
    const struct kind *kind = kinds;
    while (kind->name != NULL && strcmp(kind->name, name) != 0) kind++;
    if (kind->name == NULL) return PyErr_Format(PyExc_ValueError, "no operation is called %s", name);
    Operation *self = new_operation(module);
    if (self == NULL) return NULL;
    self->kind = kind;
    for (int k = 0; k < 26; k++) self->bound.size[k] = -1;
    char type = '\0';
    const char *shape = kind->arrays;
    for (int n = 0; shape != NULL; n++) {
        PyObject *object = n < PyTuple_Size(arrays) ? PyTuple_GetItem(arrays, n) : Py_None;
        if (take(self, n, object, shape, &type) < 0) goto failed;
        shape = strchr(shape, ' ');
        shape = shape ? shape + 1 : NULL;
    }
    self->bound.models = self->bound.size['M' - 'A'];
    if (take_numbers(self, numbers) < 0 || fits(self) < 0) goto failed;
    const enum level level = ((struct state *)PyModule_GetState(module))->level;
    self->run = kind->kernels[type == 'd'][level];
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

/* join(operations): one operation that carries them out in their order, model by model. */
static PyObject *join(PyObject *module, PyObject *parts)
{
    PyTypeObject *type = ((struct state *)PyModule_GetState(module))->type;
    if (!PyTuple_Check(parts) || PyTuple_Size(parts) < 1) {
        PyErr_SetString(PyExc_TypeError, "join takes a tuple of operations");
        return NULL;
    }
    ptrdiff_t models = -1;
    for (Py_ssize_t k = 0; k < PyTuple_Size(parts); k++) {
        PyObject *part = PyTuple_GetItem(parts, k);
        const Operation *own = (Operation *)part;
        if (Py_TYPE(part) != type || (own->kind && own->kind->n_now > 0)
            || (models >= 0 && models != own->bound.models)) {
            PyErr_SetString(PyExc_ValueError, "operations of one stack that take no numbers can be joined");
            return NULL;
        }
        models = own->bound.models;
    }
    Operation *self = new_operation(module);
    if (self == NULL) return NULL;
    self->n_parts = PyTuple_Size(parts);
    self->memory = PyMem_Malloc((size_t)self->n_parts * sizeof(Operation *));
    if (self->memory == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t k = 0; k < self->n_parts; k++)
        ((Operation **)self->memory)[k] = (Operation *)PyTuple_GetItem(parts, k);
    Py_INCREF(parts);
    self->parts = parts;
    self->bound.models = models;
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS, "bind(name, arrays, numbers): an operation on these arrays."},
    {"join", join, METH_O, "join(operations): one operation that carries them out model by model."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    state->level = best_level();
    state->type = (PyTypeObject *)PyType_FromSpec(&operation_spec);
    if (state->type == NULL) return -1;
    Py_INCREF((PyObject *)state->type);
    return PyModule_AddObject(module, "Operation", (PyObject *)state->type);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_residual", NULL, sizeof(struct state), methods, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__residual(void) { return PyModuleDef_Init(&definition); }
