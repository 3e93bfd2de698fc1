#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "levels.h"

static PyObject *level_name(PyObject *self, PyObject *none)
{
    static const char *names[] = {"base", "avx2", "avx512"};
    return PyUnicode_FromString(names[best_level()]);
}

static PyMethodDef methods[] = {
    {"level", level_name, METH_NOARGS, "Name of the instructions in use."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_steps", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__steps(void) { return PyModule_Create(&definition); }
