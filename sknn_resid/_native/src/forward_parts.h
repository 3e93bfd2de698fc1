/* Products and functions by themselves, on arrays from Python: what the tests call. */
#ifndef SKNN_FORWARD_PARTS_H
#define SKNN_FORWARD_PARTS_H

/* An array of `dims` axes of float or double ('f', 'd'); -1 and an error set where it is not. */
static int array_of(PyObject *object, Py_buffer *view, int dims, char type, int writable)
{
    if (PyObject_GetBuffer(object, view, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) < 0) return -1;
    if (view->ndim == dims && view->format && view->format[0] == type && view->format[1] == 0) return 0;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "expected an array of another type or number of axes");
    return -1;
}

static int contiguous_rows(const Py_buffer *view)
{
    return view->strides[view->ndim - 1] == view->itemsize || view->shape[view->ndim - 1] <= 1;
}

static PyObject *part_levels(PyObject *self, PyObject *none)
{
    return PyLong_FromLong(1 + (long)best_level());
}

#define DEFINE_PRODUCT(REAL, TYPE) \
    static void product_##TYPE(int level, int transposed, const Py_buffer *a, const Py_buffer *b, const Py_buffer *c, \
                               const REAL *bias_k, const REAL *bias_i, int flags) \
    { \
        const ptrdiff_t size = sizeof(REAL), j = a->shape[1]; \
        (transposed ? AT_LEVEL(level, gemm_bt, TYPE) : AT_LEVEL(level, gemm, TYPE))( \
            c->shape[0], j, c->shape[1], a->buf, a->strides[0] / size, a->strides[1] / size, b->buf, \
            b->strides[0] / size, c->buf, c->strides[0] / size, bias_k, bias_i, flags); \
    }
DEFINE_PRODUCT(float, f32)
DEFINE_PRODUCT(double, f64)

static PyObject *part_gemm(PyObject *self, PyObject *args)
{
    PyObject *objects[5], *result = NULL;
    Py_buffer views[5];
    int transposed, flags, level, held = 0, given = 0;
    if (!PyArg_ParseTuple(args, "OOOOOiii", objects, objects + 1, objects + 2, objects + 3, objects + 4, &transposed,
                          &flags, &level))
        return NULL;
    const int dims[5] = {2, 2, 2, 1, 1};
    char type = 'd';
    if (PyObject_GetBuffer(objects[0], views, PyBUF_STRIDES | PyBUF_FORMAT) < 0) return NULL;
    if (views[0].format && views[0].format[0] == 'f') type = 'f';
    PyBuffer_Release(views);
    for (; held < 5 && objects[held] != Py_None; held++)
        if (array_of(objects[held], views + held, dims[held], type, held == 2) < 0) goto done;
    given = held;
    if (held == 3 && objects[4] != Py_None) {
        if (array_of(objects[4], views + 3, 1, type, 0) < 0) goto done;
        held++;
    }
    const Py_buffer *a = views, *b = views + 1, *c = views + 2;
    const Py_buffer *bias_k = given >= 4 ? views + 3 : NULL, *bias_i = held > given ? views + 3 : NULL;
    if (given == 5 || given < 3 || level < 0 || level > (int)best_level() || a->shape[0] != c->shape[0]
        || b->shape[transposed ? 1 : 0] != a->shape[1] || b->shape[transposed ? 0 : 1] != c->shape[1]
        || !contiguous_rows(b) || !contiguous_rows(c)
        || (bias_k && (bias_k->shape[0] != c->shape[1] || !contiguous_rows(bias_k)))
        || (bias_i && (bias_i->shape[0] != c->shape[0] || !contiguous_rows(bias_i)))) {
        PyErr_SetString(PyExc_ValueError, "shapes or strides do not fit");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    if (type == 'd') product_f64(level, transposed, a, b, c, bias_k ? bias_k->buf : NULL, bias_i ? bias_i->buf : NULL, flags);
    else product_f32(level, transposed, a, b, c, bias_k ? bias_k->buf : NULL, bias_i ? bias_i->buf : NULL, flags);
    Py_END_ALLOW_THREADS
    Py_INCREF(Py_None);
    result = Py_None;
done:
    while (held > 0) PyBuffer_Release(views + --held);
    return result;
}

/* Which function of an array: exp, logistic, tanh. */
#define DEFINE_MAP(REAL, TYPE) \
    static void map_##TYPE(char which, int level, ptrdiff_t n, const REAL *in, REAL *out) \
    { \
        if (which == 'e') AT_LEVEL(level, exp_array, TYPE)(n, in, out); \
        else if (which == 'l') AT_LEVEL(level, logistic_array, TYPE)(n, in, out); \
        else AT_LEVEL(level, tanh_array, TYPE)(n, in, out); \
    }
DEFINE_MAP(float, f32)
DEFINE_MAP(double, f64)

static PyObject *part_map(PyObject *self, PyObject *args)
{
    const char *name;
    PyObject *in, *out, *result = NULL;
    Py_buffer x, y;
    int level;
    if (!PyArg_ParseTuple(args, "sOOi", &name, &in, &out, &level)) return NULL;
    if (PyObject_GetBuffer(in, &x, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return NULL;
    const char type = x.format && x.format[0] == 'f' ? 'f' : 'd';
    if (array_of(out, &y, 1, type, 1) < 0) {
        PyBuffer_Release(&x);
        return NULL;
    }
    if (level < 0 || level > (int)best_level() || x.len != y.len || x.itemsize != y.itemsize || !contiguous_rows(&y)
        || x.format == NULL || x.format[0] != type) {
        PyErr_SetString(PyExc_ValueError, "shapes or types do not fit");
    } else {
        Py_BEGIN_ALLOW_THREADS
        if (type == 'd') map_f64(name[0], level, x.len / 8, x.buf, y.buf);
        else map_f32(name[0], level, x.len / 4, x.buf, y.buf);
        Py_END_ALLOW_THREADS
        Py_INCREF(Py_None);
        result = Py_None;
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&y);
    return result;
}
#endif
