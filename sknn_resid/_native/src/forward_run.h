/* From Python's arrays to one forward pass: checks every size before a pointer is used. */
#ifndef SKNN_FORWARD_RUN_H
#define SKNN_FORWARD_RUN_H

/* Buffers of one call; `held` of them are to be released. */
struct arrays {
    Py_ssize_t n_layers, held;
    Py_buffer X, out, parameters[2 * MOST_LAYERS];
};

static int is_type(const Py_buffer *view, int dims, char type)
{
    return view->ndim == dims && view->format && view->format[0] == type && view->format[1] == 0;
}

static void release(struct arrays *a)
{
    while (a->held > 0) {
        a->held--;
        PyBuffer_Release(a->held == 0 ? &a->X : a->held == 1 ? &a->out : &a->parameters[a->held - 2]);
    }
}

/* A buffer from a sequence's item; -1 with an error set where there is none. */
static int buffer_of_item(PyObject *sequence, Py_ssize_t n, Py_buffer *view)
{
    PyObject *item = PySequence_GetItem(sequence, n);
    if (item == NULL) return -1;
    const int status = PyObject_GetBuffer(item, view, PyBUF_STRIDES | PyBUF_FORMAT);
    Py_DECREF(item);
    return status;
}

static int take_arrays(struct arrays *a, PyObject *coefs, PyObject *intercepts, PyObject *X, PyObject *out)
{
    a->held = 0;
    if (PyObject_GetBuffer(X, &a->X, PyBUF_STRIDES | PyBUF_FORMAT) < 0) return -1;
    a->held = 1;
    if (PyObject_GetBuffer(out, &a->out, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) < 0) return -1;
    a->held = 2;
    a->n_layers = PySequence_Size(coefs);
    if (a->n_layers < 1 || a->n_layers > MOST_LAYERS || PySequence_Size(intercepts) != a->n_layers) return 1;
    for (Py_ssize_t n = 0; n < a->n_layers; n++) {
        if (buffer_of_item(coefs, n, &a->parameters[2 * n]) < 0) return -1;
        a->held++;
        if (buffer_of_item(intercepts, n, &a->parameters[2 * n + 1]) < 0) return -1;
        a->held++;
    }
    return 0;
}

/* Whether the arrays are a network of this type whose layers fit together, X and out to its ends. */
static int fit_together(const struct arrays *a, char type, char link)
{
    Py_ssize_t width = a->X.ndim == 2 ? a->X.shape[1] : -1;
    if (!is_type(&a->X, 2, type) || a->X.strides[0] % a->X.itemsize || a->X.strides[1] % a->X.itemsize) return 0;
    for (Py_ssize_t n = 0; n < a->n_layers; n++) {
        const Py_buffer *w = &a->parameters[2 * n], *b = w + 1;
        if (!is_type(w, 2, type) || !is_type(b, 1, type) || w->shape[0] != width || b->shape[0] != w->shape[1]) return 0;
        width = w->shape[1];
        if (width < 1 || w->shape[0] < 1 || (width > 1 && b->strides[0] != b->itemsize)) return 0;
        if (w->strides[0] % w->itemsize || w->strides[1] % w->itemsize) return 0;
        if (w->strides[0] != w->itemsize && w->strides[1] != w->itemsize) return 0;
    }
    const Py_buffer *out = &a->out;
    const int whole = out->format && (out->format[0] == 'l' || out->format[0] == 'q') && out->itemsize == 8;
    if (out->ndim < 1 || out->shape[0] != a->X.shape[0]) return 0;
    if (link == 'a') return whole && out->ndim == 1;
    if (out->ndim != 2 || out->shape[1] != width) return 0;
    return link == 'p' ? whole : is_type(out, 2, type);
}

static void describe(const struct arrays *a, const char *activations, char link, struct dense_pass *f)
{
    const Py_ssize_t size = a->X.itemsize;
    for (Py_ssize_t n = 0; n < a->n_layers; n++) {
        const Py_buffer *w = &a->parameters[2 * n];
        struct dense_layer *l = &f->layers[n];
        l->in = w->shape[0], l->out = w->shape[1];
        l->in_step = w->strides[0] / size, l->out_step = w->strides[1] / size;
        l->weights = w->buf, l->bias = w[1].buf, l->packed = NULL;
        l->activation = activations[n];
    }
    f->n_layers = a->n_layers, f->rows = a->X.shape[0], f->link = link;
    f->x_row = a->X.strides[0] / size, f->x_col = a->X.strides[1] / size;
    f->X = a->X.buf, f->out = a->out.buf;
}

static int known(const char *letters, const char *all)
{
    for (; *letters; letters++)
        if (strchr(all, *letters) == NULL) return 0;
    return 1;
}

static PyObject *run(PyObject *self, PyObject *args)
{
    PyObject *coefs, *intercepts, *X, *out;
    const char *activations, *link;
    int only_finite;
    if (!HAS_TILES) return PyBool_FromLong(0); /* numpy's BLAS is many times faster than plain loops */
    if (!PyArg_ParseTuple(args, "OOsOOsp", &coefs, &intercepts, &activations, &X, &out, &link, &only_finite)) return NULL;
    struct arrays a;
    struct dense_pass f;
    int status = take_arrays(&a, coefs, intercepts, X, out), enough = 0;
    if (status >= 0) {
        const char type = status == 0 && a.X.format ? a.X.format[0] : 0;
        const int right = (type == 'f' || type == 'd') && strlen(link) == 1 && known(link, "nelsap")
                          && known(activations, "irlt") && (Py_ssize_t)strlen(activations) == a.n_layers
                          && fit_together(&a, type, link[0])
                          && !(only_finite && a.X.strides[1] != a.X.itemsize && a.X.shape[1] > 1);
        if (right) {
            describe(&a, activations, link[0], &f);
            f.only_finite = (char)only_finite;
            Py_BEGIN_ALLOW_THREADS
            enough = type == 'f' ? CHOOSE(forward, f32)(&f) : CHOOSE(forward, f64)(&f);
            Py_END_ALLOW_THREADS
        }
        status = right ? enough : 1;
    }
    release(&a);
    if (PyErr_Occurred()) return NULL;
    if (status < 0) return PyErr_NoMemory();
    return PyBool_FromLong(status == 0);
}
#endif
