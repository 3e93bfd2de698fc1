/* Runs of instructions: a step, or many steps, of a training without the interpreter. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <string.h>

#include "instruction.h"
#include "levels.h"

/* From so many multiplications on BLAS shares a product out to its threads. */
#define SHARED_PRODUCT 1e6

#define KERNELS "steps_type.inc"
#include "every_level.inc"

#ifdef HAS_LEVELS
static const operation *tables[3][2] = {
    {operations_f32_base, operations_f64_base},
    {operations_f32_v3, operations_f64_v3},
    {operations_f32_v4, operations_f64_v4},
};
#else
static const operation *tables[1][2] = {{operations_f32_base, operations_f64_base}};
#endif

/* Set once, when the module is made, and only read after that. */
struct state {
    void *sgemm, *dgemm;
    enum level level;
};

static int valid(const struct instruction *table, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++)
        if (table[i].op < 0 || table[i].op >= N_OPS || table[i].type < 0 || table[i].type > 1)
            return 0;
    return 1;
}

/* run(table, first model, stop, first batch, stop, threads): every instruction of the table for each of
   these models and batches, all batches of one model before the next model. */
static PyObject *run(PyObject *module, PyObject *args)
{
    Py_buffer view;
    Py_ssize_t first, stop, first_batch, stop_batch;
    int threads;
    if (!PyArg_ParseTuple(args, "y*nnnnp", &view, &first, &stop, &first_batch, &stop_batch, &threads))
        return NULL;
    const struct instruction *table = view.buf;
    const Py_ssize_t n = view.len / (Py_ssize_t)sizeof(struct instruction);
    if (view.len % (Py_ssize_t)sizeof(struct instruction) != 0 || !valid(table, n)) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "not a table of instructions");
        return NULL;
    }
    const struct state *state = PyModule_GetState(module);
    const operation *const *by_type = tables[state->level];
    const struct context context = {state->sgemm, state->dgemm, threads};
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t model = first; model < stop; model++)
        for (Py_ssize_t batch = first_batch; batch < stop_batch; batch++)
            for (Py_ssize_t i = 0; i < n; i++)
                by_type[table[i].type][table[i].op](&table[i], model, batch, &context);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *level_name(PyObject *module, PyObject *none)
{
    static const char *names[] = {"base", "avx2", "avx512"};
    const struct state *state = PyModule_GetState(module);
    return PyUnicode_FromString(names[state->level]);
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS, "Carry out a table of instructions for some models and batches."},
    {"level", level_name, METH_NOARGS, "Name of the processor's instructions in use."},
    {NULL, NULL, 0, NULL},
};

/* A function of scipy's cython_blas, which publishes BLAS's addresses in capsules. */
static void *blas_function(const char *name)
{
    void *address = NULL;
    PyObject *module = PyImport_ImportModule("scipy.linalg.cython_blas");
    PyObject *table = module ? PyObject_GetAttrString(module, "__pyx_capi__") : NULL;
    PyObject *capsule = table ? PyMapping_GetItemString(table, name) : NULL;
    if (capsule)
        address = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
    Py_XDECREF(capsule);
    Py_XDECREF(table);
    Py_XDECREF(module);
    return address;
}

static int fill(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    if (sizeof(void *) != 8) {
        PyErr_SetString(PyExc_ImportError, "instructions hold addresses of 64 bits");
        return -1;
    }
    state->level = best_level();
    state->sgemm = blas_function("sgemm");
    state->dgemm = blas_function("dgemm");
    if (state->sgemm == NULL || state->dgemm == NULL)
        return -1;
    return PyModule_AddIntConstant(module, "INSTRUCTION_BYTES", sizeof(struct instruction));
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_steps", NULL, sizeof(struct state), methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__steps(void) { return PyModuleDef_Init(&definition); }
