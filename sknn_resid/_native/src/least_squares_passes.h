/* Passes over the rows: shifts, sums of products, slices, statistics, leave-one-out. */

/* finite(X): whether all numbers of a matrix are. Times 0 is 0, but for what is not finite. */
static PyObject *call_finite(PyObject *self, PyObject *args)
{
    array a[1];
    int held = hold_all(args, "r2", a);
    if (held < 0)
        return NULL;
    double found = 0.0;
    Py_BEGIN_ALLOW_THREADS
    int whole = PyBuffer_IsContiguous(&a->view, 'A'), turned = a->s[0] < a->s[1];
    ptrdiff_t lines = whole ? 1 : a->n[turned], length = whole ? a->n[0] * a->n[1] : a->n[!turned];
    ptrdiff_t step = whole ? 1 : a->s[!turned], next = a->s[turned];
    for (ptrdiff_t i = 0; i < lines; i++) {
        const double *x = a->data + i * next;
        double sum = 0.0;
        if (step == 1) {
#pragma omp simd reduction(+ : sum)
            for (ptrdiff_t j = 0; j < length; j++)
                sum += x[j] * 0.0;
        } else {
            for (ptrdiff_t j = 0; j < length; j++)
                sum += x[j * step] * 0.0;
        }
        found += sum;
    }
    Py_END_ALLOW_THREADS
    release(a, held);
    return PyBool_FromLong(found == 0.0);
}

/* shifts(X, Y, found): see choose_shifts in linear_model/_gram.py; no weights. */
static void shifts_of(const array *X, double *found)
{
    ptrdiff_t n = X->n[0], step = n / 64 > 1 ? n / 64 : 1, count = (n + step - 1) / step;
    for (ptrdiff_t j = 0; j < X->n[1]; j++) {
        const double *x = X->data + j * X->s[1];
        ptrdiff_t stride = step * X->s[0];
        double largest = DBL_MIN, mean = 0.0, spread = 0.0;
        for (ptrdiff_t i = 0; i < count; i++)
            largest = fabs(x[i * stride]) > largest ? fabs(x[i * stride]) : largest;
        for (ptrdiff_t i = 0; i < count; i++)
            mean += x[i * stride] / largest;
        mean /= (double)count;
        for (ptrdiff_t i = 0; i < count; i++) {
            double off = x[i * stride] / largest - mean;
            spread += off * off;
        }
        spread = sqrt(spread / (double)count);
        found[j] = fabs(mean) > 4.0 * spread ? mean * largest : 0.0;
    }
}

static PyObject *call_shifts(PyObject *self, PyObject *args)
{
    array a[3];
    int held = hold_all(args, "r2r2w1", a);
    if (held < 0)
        return NULL;
    if (a[0].n[0] != a[1].n[0] || a[2].n[0] != a[0].n[1] + a[1].n[1])
        return refuse(a, held);
    Py_BEGIN_ALLOW_THREADS
    shifts_of(a, a[2].data);
    shifts_of(a + 1, a[2].data + a[0].n[1]);
    Py_END_ALLOW_THREADS
    release(a, held);
    Py_RETURN_NONE;
}

/* Columns of X less their shifts into a panel, second words into another; whether these are 0. */
static int pack_words(const array *X, ptrdiff_t first, ptrdiff_t count, const double *shift,
                      double *panel, double *low)
{
    int exact = 1;
    pack_panel(X, first, count, shift, panel);
    memset(low, 0, sizeof(double) * (size_t)(X->n[1] * ROWS));
    for (ptrdiff_t j = 0; j < X->n[1]; j++) {
        if (shift[j] == 0.0)
            continue;
        for (ptrdiff_t r = 0; r < count; r++) {
            double x = X->data[(first + r) * X->s[0] + j * X->s[1]];
            double error = pair_sum(x, -shift[j]).low;
            low[j * ROWS + r] = error;
            exact &= error == 0.0;
        }
    }
    return exact;
}

/* sums(X, Y, w or None, shift, y_shift, out): out (2, m, m) becomes A' W A in two words, for
   A = [1, X - shift, Y - y_shift]. Rows of weight 0 add nothing. Returns whether the squares are in
   the range where products have their rounding errors to the last bit that counts. */
static PyObject *call_sums(PyObject *self, PyObject *args)
{
    array a[6];
    int held = hold_all(args, "r2r2n1r1r1w3", a);
    if (held < 0)
        return NULL;
    ptrdiff_t n = a[0].n[0], p = a[0].n[1], t = a[1].n[1], m = 1 + p + t;
    if (a[1].n[0] != n || !has_shape(a + 2, n, -1, -1) || a[3].n[0] != p || a[4].n[0] != t
        || !has_shape(a + 5, 2, m, m) || !is_dense(a + 3) || !is_dense(a + 4))
        return refuse(a, held);
    double *panel = malloc(sizeof(double) * (size_t)(4 * m + 1) * ROWS);
    if (panel == NULL) {
        release(a, held);
        return PyErr_NoMemory();
    }
    double *low = panel + m * ROWS, *b = low + m * ROWS, *b_low = b + m * ROWS;
    int in_range = 1;
    double *w = b_low + m * ROWS, *high = a[5].data, *rest = a[5].data + m * m;
    Py_BEGIN_ALLOW_THREADS
    memset(high, 0, sizeof(double) * (size_t)(2 * m * m));
    for (ptrdiff_t first = 0; first < n; first += ROWS) {
        int count = (int)(n - first < ROWS ? n - first : ROWS);
        for (int r = 0; r < ROWS; r++) {
            panel[r] = r < count ? 1.0 : 0.0;
            low[r] = 0.0;
            w[r] = a[2].data != NULL && r < count ? a[2].data[(first + r) * a[2].s[0]] : 0.0;
        }
        int exact = pack_words(a, first, count, a[3].data, panel + ROWS, low + ROWS);
        exact &= pack_words(a + 1, first, count, a[4].data, panel + (1 + p) * ROWS,
                            low + (1 + p) * ROWS);
        if (a[2].data == NULL)
            AT_LEVEL(add_products, (panel, exact ? NULL : low, panel, exact ? NULL : low, m, count,
                                    high, rest));
        else {
            AT_LEVEL(weigh, (panel, exact ? NULL : low, w, m, b, b_low));
            AT_LEVEL(add_products, (panel, exact ? NULL : low, b, b_low, m, count, high, rest));
        }
    }
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < i; j++) {
            high[i * m + j] = high[j * m + i];
            rest[i * m + j] = rest[j * m + i];
        }
    for (ptrdiff_t i = 0; i < m; i++)
        in_range &= high[i * m + i] >= 0x1p-800 && high[i * m + i] <= 0x1p900;
    Py_END_ALLOW_THREADS
    free(panel);
    release(a, held);
    return PyBool_FromLong(in_range);
}

/* cut(X, Y, shift, y_shift, piece, rest, sum, bits): A = [1, X - shift, Y - y_shift], (n, m), as
   piece + rest, with piece rounded to `bits` bits below each column's largest entry, and
   sum = piece + A. */
static PyObject *call_cut(PyObject *self, PyObject *args)
{
    array a[7];
    int held = hold_all(args, "r2r2r1r1w2w2w2", a);
    if (held < 0)
        return NULL;
    double bits = number(args, held);
    ptrdiff_t n = a[0].n[0], p = a[0].n[1], t = a[1].n[1], m = 1 + p + t;
    if (PyErr_Occurred()) {
        release(a, held);
        return NULL;
    }
    if (a[1].n[0] != n || a[2].n[0] != p || a[3].n[0] != t || !is_dense(a + 2) || !is_dense(a + 3)
        || !has_shape(a + 4, n, m, -1) || !has_shape(a + 5, n, m, -1) || !has_shape(a + 6, n, m, -1))
        return refuse(a, held);
    int shifted = 0;
    for (ptrdiff_t j = 0; j < p + t; j++)
        shifted |= (j < p ? a[2].data[j] : a[3].data[j - p]) != 0.0;
    double *magic = malloc(sizeof(double) * (size_t)(m + (shifted ? n * m : 0)));
    if (magic == NULL) {
        release(a, held);
        return PyErr_NoMemory();
    }
    double *error = shifted ? magic + m : NULL, *whole = a[6].data;
    Py_BEGIN_ALLOW_THREADS
    for (ptrdiff_t j = 0; j < m; j++)
        magic[j] = j == 0 ? 1.0 : 0.0;
    for (ptrdiff_t i = 0; i < n; i++) {
        whole[i * m] = 1.0;
        if (error != NULL)
            error[i * m] = 0.0;
    }
    AT_LEVEL(shift_rows, (a[0].data, a[0].s[0], a[0].s[1], n, p, a[2].data, whole + 1,
                          error ? error + 1 : NULL, m, magic + 1));
    AT_LEVEL(shift_rows, (a[1].data, a[1].s[0], a[1].s[1], n, t, a[3].data, whole + 1 + p,
                          error ? error + 1 + p : NULL, m, magic + 1 + p));
    for (ptrdiff_t j = 0; j < m; j++) {
        int exponent;
        frexp(magic[j], &exponent);
        magic[j] = ldexp(1.5, exponent + 53 - (int)bits);
    }
    AT_LEVEL(cut, (whole, error, magic, n, m, a[4].data, a[5].data));
    Py_END_ALLOW_THREADS
    free(magic);
    release(a, held);
    Py_RETURN_NONE;
}

/* rows(X, Y, coef, intercept, basis, shift, f, reach, w or None, plain, h, without): residuals
   (n, t), leverages (n, 1) and leave-one-out residuals (n, t) at one penalty. Returns whether the
   residuals of all targets are of a size, beside their reach, that float64 gives well. */
static PyObject *call_rows(PyObject *self, PyObject *args)
{
    array a[12];
    int held = hold_all(args, "r2r2r2r1r2r1r1r1n1w2w2w2", a);
    if (held < 0)
        return NULL;
    ptrdiff_t n = a[0].n[0], p = a[0].n[1], t = a[1].n[1], k = a[4].n[1];
    if (a[1].n[0] != n || !has_shape(a + 2, t, p, -1) || a[3].n[0] != t || a[4].n[0] != 1 + p
        || a[5].n[0] != p || a[6].n[0] != k || a[7].n[0] != t || !has_shape(a + 8, n, -1, -1)
        || !has_shape(a + 9, n, t, -1) || !has_shape(a + 10, n, 1, -1) || !has_shape(a + 11, n, t, -1)
        || !is_dense(a + 5) || !is_dense(a + 6))
        return refuse(a, held);
    ptrdiff_t most = k > t ? k : t;
    double *memory = malloc(sizeof(double) * (size_t)((p + most + t + 1) * ROWS + (k + t) * (p + 1)));
    if (memory == NULL) {
        release(a, held);
        return PyErr_NoMemory();
    }
    double *panel = memory, *U = panel + p * ROWS, *y = U + most * ROWS, *w = y + t * ROWS;
    double *Bt = w + ROWS, *B0 = Bt + k * p, *coef = B0 + k, *start = coef + t * p;
    int shifted = 0, well = 1;
    Py_BEGIN_ALLOW_THREADS
    for (ptrdiff_t j = 0; j < p; j++)
        shifted |= a[5].data[j] != 0.0;
    copy_matrix(a[4].data + a[4].s[0], a[4].s[1], a[4].s[0], k, p, p, Bt);
    copy_matrix(a[4].data, 0, a[4].s[1], 1, k, k, B0);
    copy_matrix(a[2].data, a[2].s[0], a[2].s[1], t, p, p, coef);
    copy_matrix(a[3].data, 0, a[3].s[0], 1, t, t, start);
    for (ptrdiff_t c = 0; c < t && shifted; c++) /* y = start + (X - shift) b too */
        for (ptrdiff_t j = 0; j < p; j++)
            start[c] += coef[c * p + j] * a[5].data[j];
    struct design d = {n, p, k, t, Bt, B0, a[6].data, NULL, coef, start};
    for (ptrdiff_t first = 0; first < n; first += ROWS) {
        ptrdiff_t count = n - first < ROWS ? n - first : ROWS;
        pack_panel(a, first, count, a[5].data, panel);
        pack_panel(a + 1, first, count, NULL, y);
        for (ptrdiff_t r = 0; r < count && a[8].data != NULL; r++)
            w[r] = a[8].data[(first + r) * a[8].s[0]];
        for (ptrdiff_t r = count; r < ROWS; r++)
            w[r] = 0.0;
        AT_LEVEL(row_block, (&d, panel, y, a[8].data ? w : NULL, count, U, a[9].data + first * t,
                             a[10].data + first, a[11].data + first * t));
    }
    for (ptrdiff_t c = 0; c < t; c++) {
        double sum = 0.0;
        for (ptrdiff_t i = 0; i < n; i++)
            sum += a[9].data[i * t + c] * a[9].data[i * t + c];
        well &= sqrt(sum / (double)(n > 1 ? n : 1)) > 0x1p-12 * a[7].data[c * a[7].s[0]];
    }
    Py_END_ALLOW_THREADS
    free(memory);
    release(a, held);
    return PyBool_FromLong(well);
}

/* loo(X, Y, w or None, basis, shift, y_shift, z, whole, columns or None, mix or None, kept or None,
   plain, weighted or None): sums of squared leave-one-out errors (a, t) for all penalties; kept
   (width, n) becomes what leverages follow from. Returns whether all leverages were clear of 1. */
static PyObject *call_loo(PyObject *self, PyObject *args)
{
    array a[13];
    int held = hold_all(args, "r2r2n1r2r1r1r2r2n2n2m2w2m2", a);
    if (held < 0)
        return NULL;
    ptrdiff_t n = a[0].n[0], p = a[0].n[1], t = a[1].n[1], k = a[3].n[1], m = a[7].n[0];
    ptrdiff_t j = a[8].data ? a[8].n[1] : k, most = j > k ? j : k;
    if (a[1].n[0] != n || !has_shape(a + 2, n, -1, -1) || a[3].n[0] != 1 + p || a[4].n[0] != p
        || a[5].n[0] != t || !has_shape(a + 6, k, t, -1) || a[7].n[1] != k || m < 1 || j < 1
        || !has_shape(a + 8, m, j, -1) || !has_shape(a + 9, j, k, -1) || !has_shape(a + 10, j, n, -1)
        || !has_shape(a + 11, m, t, -1) || !has_shape(a + 12, m, t, -1)
        || (a[8].data == NULL) != (a[9].data == NULL) || (a[2].data == NULL) != (a[12].data == NULL)
        || !is_dense(a + 4) || !is_dense(a + 5))
        return refuse(a, held);
    arena memory = {NULL, 0};
    double *panel, *y, *w, *Bt, *B0, *z, *whole, *columns, *mix, *mixed, *work;
    for (;;) { /* measure, then hand out */
        panel = piece(&memory, p * ROWS);
        y = piece(&memory, t * ROWS);
        w = piece(&memory, ROWS);
        Bt = piece(&memory, k * p);
        B0 = piece(&memory, k);
        z = piece(&memory, k * t);
        whole = piece(&memory, m * k);
        columns = piece(&memory, m * j);
        mix = piece(&memory, j * k);
        mixed = piece(&memory, t * j * k);
        work = piece(&memory, (2 * k + j + most * t + 2 * CHUNK) * ROWS);
        if (memory.start != NULL)
            break;
        memory.start = malloc(sizeof(double) * memory.used);
        memory.used = 0;
        if (memory.start == NULL) {
            release(a, held);
            return PyErr_NoMemory();
        }
    }
    int clear = 1;
    Py_BEGIN_ALLOW_THREADS
    copy_matrix(a[3].data + a[3].s[0], a[3].s[1], a[3].s[0], k, p, p, Bt);
    copy_matrix(a[3].data, 0, a[3].s[1], 1, k, k, B0);
    copy_matrix(a[6].data, a[6].s[0], a[6].s[1], k, t, t, z);
    copy_matrix(a[7].data, a[7].s[0], a[7].s[1], m, k, k, whole);
    if (a[8].data != NULL) {
        copy_matrix(a[8].data, a[8].s[0], a[8].s[1], m, j, j, columns);
        copy_matrix(a[9].data, a[9].s[0], a[9].s[1], j, k, k, mix);
        for (ptrdiff_t c = 0; c < t; c++)
            for (ptrdiff_t i = 0; i < j; i++)
                for (ptrdiff_t l = 0; l < k; l++)
                    mixed[(c * j + i) * k + l] = mix[i * k + l] * z[l * t + c];
    }
    ptrdiff_t largest = 0;
    double most_left = -1.0;
    for (ptrdiff_t i = 0; i < m; i++) { /* the smallest penalty */
        double sum = 0.0;
        for (ptrdiff_t l = 0; l < k; l++)
            sum += whole[i * k + l];
        if (sum > most_left) {
            most_left = sum;
            largest = i;
        }
    }
    struct design d = {n, p, k, t, Bt, B0, NULL, z, NULL, NULL};
    struct table f = {m, j, largest, a[8].data ? columns : whole, a[8].data ? mix : NULL, mixed, whole};
    memset(a[11].data, 0, sizeof(double) * (size_t)(m * t));
    if (a[12].data != NULL)
        memset(a[12].data, 0, sizeof(double) * (size_t)(m * t));
    for (ptrdiff_t first = 0; first < n; first += ROWS) {
        ptrdiff_t count = n - first < ROWS ? n - first : ROWS;
        pack_panel(a, first, count, a[4].data, panel);
        pack_panel(a + 1, first, count, a[5].data, y);
        for (ptrdiff_t r = 0; r < count && a[2].data != NULL; r++)
            w[r] = a[2].data[(first + r) * a[2].s[0]];
        clear &= AT_LEVEL(loo_block, (&d, &f, panel, y, a[2].data ? w : NULL, count, work,
                                      a[10].data ? a[10].data + first : NULL, a[11].data,
                                      a[12].data));
    }
    Py_END_ALLOW_THREADS
    free(memory.start);
    release(a, held);
    return PyBool_FromLong(clear);
}
