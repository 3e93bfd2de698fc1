/* Normal equations in two words: centring, basis, one step for coefficients, one for covariance.
   The formulas, bounds and refusals are those of linear_model/_quick.py. */

#define CENTRED 0x1p-6 /* part of the square of a column that centring must leave */
#define SPREAD 64.0    /* of norms that share a power of two */

static double power_near(double norm)
{
    int exponent;
    frexp(norm, &exponent);
    return ldexp(1.0, exponent - 1);
}

static pair pair_at(const array *words, ptrdiff_t i, ptrdiff_t j)
{
    const double *at = words->data + i * words->s[1] + (words->view.ndim > 2 ? j * words->s[2] : 0);
    pair found = {at[0], at[words->s[0]]};
    return found;
}

/* centre(xx, xy, yy, intercept, C, c, y, mean, y_mean, norms, scale): centred sums (p, p), (p, t),
   (t,) and means; norms and scales of all 1 + p columns. Returns whether nothing forbids one step:
   no empty or nearly constant column, norms near each other. */
static int centred(array *a, int intercept)
{
    array *xx = a, *xy = a + 1, *yy = a + 2;
    double *C = a[3].data, *c = a[4].data, *y = a[5].data, *mean = a[6].data, *y_mean = a[7].data;
    double *norms = a[8].data, *scale = a[9].data;
    ptrdiff_t p = a[3].n[0], t = a[5].n[0];
    double largest = 0.0, least = HUGE_VAL;
    for (ptrdiff_t i = 0; i <= p; i++) {
        double square = pair_at(xx, i, i).high;
        if (!(square > 0.0))
            return 0;
        norms[i] = sqrt(square);
        if (i > 0) {
            largest = norms[i] > largest ? norms[i] : largest;
            least = norms[i] < least ? norms[i] : least;
        }
    }
    if (!(largest <= SPREAD * least) || !isfinite(largest))
        return 0;
    scale[0] = power_near(norms[0]);
    for (ptrdiff_t i = 1; i <= p; i++)
        scale[i] = power_near(largest);
    double total = pair_at(xx, 0, 0).high, error = pair_at(xx, 0, 0).low;
    for (ptrdiff_t i = 0; i < p + t; i++) {
        pair s = i < p ? pair_at(xx, 0, 1 + i) : pair_at(xy, 0, i - p);
        double m = intercept ? s.high / total : 0.0;
        *(i < p ? mean + i : y_mean + i - p) = m;
    }
    for (ptrdiff_t i = 0; i < p + t; i++) {
        int target = i >= p;
        pair s = target ? pair_at(xy, 0, i - p) : pair_at(xx, 0, 1 + i);
        double m = target ? y_mean[i - p] : mean[i], low = 0.0;
        pair whole = {total, error};
        if (intercept) /* what rounding took from the mean */
            low = AT_LEVEL(less_means, (s, whole, m, 0.0)) / total;
        if (target) {
            pair square = pair_at(yy, i - p, 0);
            double found = AT_LEVEL(less_means, (square, s, m, low));
            if (!(found >= CENTRED * square.high) || !(found > 0.0))
                return 0;
            y[i - p] = found;
            for (ptrdiff_t j = 0; j < p; j++)
                c[j * t + i - p] = AT_LEVEL(less_means, (pair_at(xy, 1 + j, i - p), pair_at(xx, 0, 1 + j), m, low));
            continue;
        }
        for (ptrdiff_t j = 0; j <= i; j++)
            C[i * p + j] = C[j * p + i]
                = AT_LEVEL(less_means, (pair_at(xx, 1 + i, 1 + j), pair_at(xx, 0, 1 + j), m, low));
        if (!(C[i * p + i] >= CENTRED * norms[1 + i] * norms[1 + i]))
            return 0;
    }
    return 1;
}

static PyObject *call_centre(PyObject *self, PyObject *args)
{
    array a[10];
    int held = hold_all(args, "r3r3r2w2w2w1w1w1w1w1", a);
    if (held < 0)
        return NULL;
    double intercept = number(args, held);
    ptrdiff_t p = a[3].n[0], t = a[5].n[0];
    if (PyErr_Occurred()) {
        release(a, held);
        return NULL;
    }
    if (!has_shape(a, 2, 1 + p, 1 + p) || !has_shape(a + 1, 2, 1 + p, t) || !has_shape(a + 2, 2, t, -1)
        || a[3].n[1] != p || !has_shape(a + 4, p, t, -1) || a[6].n[0] != p || a[7].n[0] != t
        || a[8].n[0] != 1 + p || a[9].n[0] != 1 + p)
        return refuse(a, held);
    int found;
    Py_BEGIN_ALLOW_THREADS
    found = centred(a, intercept != 0.0);
    Py_END_ALLOW_THREADS
    release(a, held);
    return PyBool_FromLong(found);
}

/* basis(V, h, mean, c, y_mean, y, norms, total, intercept, B, d, z, outside): from eigenvalues h,
   ascending, and vectors V of the centred sums the basis (1 + p, k), singular values, coordinates
   of the targets, residual sums; returns the growth of errors. */
static double based(array *a, double total, int intercept)
{
    const double *h = a[1].data, *mean = a[2].data, *c = a[3].data, *norms = a[6].data;
    double *B = a[7].data, *d = a[8].data, *z = a[9].data, *outside = a[10].data, growth = 0.0;
    ptrdiff_t p = a[1].n[0], t = a[5].n[0], own = intercept, k = p + own;
    for (ptrdiff_t l = 0; l < p; l++) {
        ptrdiff_t from = p - 1 - l;
        double value = sqrt(h[from]), sum = 0.0, weight = 0.0;
        d[own + l] = value;
        for (ptrdiff_t j = 0; j < p; j++) {
            double b = a[0].data[j * a[0].s[0] + from * a[0].s[1]] / value;
            B[(1 + j) * k + own + l] = b;
            sum += mean[j] * b;
            weight += fabs(b) * norms[1 + j];
        }
        B[own + l] = -sum;
        growth = weight * weight > growth ? weight * weight : growth;
        for (ptrdiff_t i = 0; i < t; i++) {
            double s = 0.0;
            for (ptrdiff_t j = 0; j < p; j++)
                s += B[(1 + j) * k + own + l] * c[j * t + i];
            z[(own + l) * t + i] = s;
        }
    }
    for (ptrdiff_t i = 0; i < t; i++) {
        double s = 0.0;
        for (ptrdiff_t l = own; l < k; l++)
            s += z[l * t + i] * z[l * t + i];
        outside[i] = a[5].data[i] > s ? a[5].data[i] - s : 0.0;
    }
    if (own) {
        d[0] = HUGE_VAL;
        for (ptrdiff_t j = 0; j <= p; j++)
            B[j * k] = j ? 0.0 : 1.0 / sqrt(total);
        for (ptrdiff_t i = 0; i < t; i++)
            z[i] = a[4].data[i] * sqrt(total);
    }
    return growth;
}

static PyObject *call_basis(PyObject *self, PyObject *args)
{
    array a[11];
    int held = hold_all(args, "r2r1r1r2r1r1r1w2w1w2w1", a);
    if (held < 0)
        return NULL;
    double total = number(args, held), intercept = number(args, held + 1);
    ptrdiff_t p = a[1].n[0], t = a[5].n[0], k = p + (intercept != 0.0);
    if (PyErr_Occurred()) {
        release(a, held);
        return NULL;
    }
    int wrong = !has_shape(a, p, p, -1) || a[2].n[0] != p || !has_shape(a + 3, p, t, -1)
                || a[4].n[0] != t || a[6].n[0] != 1 + p || !has_shape(a + 7, 1 + p, k, -1)
                || a[8].n[0] != k || !has_shape(a + 9, k, t, -1) || a[10].n[0] != t
                || !is_dense(a + 3);
    for (int i = 1; i < 7; i++)
        wrong |= i != 3 && !is_dense(a + i);
    if (wrong)
        return refuse(a, held);
    double growth;
    Py_BEGIN_ALLOW_THREADS
    growth = based(a, total, intercept != 0.0);
    Py_END_ALLOW_THREADS
    release(a, held);
    return PyFloat_FromDouble(growth);
}

/* Memory of a step, with G and B scaled; 0 where there is none. */
static int set_up(struct step *s, arena *memory, const array *xx, const array *B, const double *scale,
                  ptrdiff_t first, ptrdiff_t columns)
{
    ptrdiff_t q = s->q, k = s->k, wide = (columns + 7) / 8 * 8;
    ptrdiff_t tall = q > k ? q : k;
    s->wide = wide;
    for (;;) {
        double **parts[] = {&s->g, &s->g_low, &s->more, &s->more_low, &s->x, &s->x_low, &s->R};
        for (int i = 0; i < 7; i++)
            *parts[i] = piece(memory, tall * wide);
        s->weight = piece(memory, q * wide);
        s->G = piece(memory, q * q);
        s->G_low = piece(memory, q * q);
        s->square = piece(memory, q * q);
        s->B = piece(memory, q * k);
        s->u = piece(memory, tall);
        if (memory->start != NULL)
            break;
        memory->start = malloc(sizeof(double) * memory->used);
        if (memory->start == NULL)
            return 0;
        memset(memory->start, 0, sizeof(double) * memory->used);
        memory->used = 0;
    }
    for (ptrdiff_t i = 0; i < q; i++) {
        for (ptrdiff_t j = 0; j < q; j++) {
            pair g = pair_at(xx, first + i, first + j);
            s->G[i * q + j] = g.high / scale[i] / scale[j];
            s->G_low[i * q + j] = g.low / scale[i] / scale[j];
        }
        for (ptrdiff_t l = 0; l < k; l++)
            s->B[i * k + l] = B->data[(first + i) * B->s[0] + l * B->s[1]] * scale[i];
    }
    return 1;
}

/* Whether what one step leaves in a column is below the last bit of every entry. Rows of x and R
   are `wide` apart; reference replaces |x[0]|; error < 0: the bits of the sums suffice. */
static int is_certain(const struct step *s, const double *norms, const double *f, ptrdiff_t f_stride,
                      ptrdiff_t column, double rate, double error, double last,
                      const double *reference)
{
    ptrdiff_t q = s->q, k = s->k, wide = s->wide;
    double terms = 0.0, left = 0.0;
    for (ptrdiff_t l = 0; l < k; l++)
        s->u[l] = 0.0;
    for (ptrdiff_t i = 0; i < q; i++) {
        double norm = norms[i] / s->scale[i];
        for (ptrdiff_t l = 0; l < k; l++)
            s->u[l] += fabs(s->B[i * k + l]) * norm;
        terms += norm * fabs(s->x[i * wide + column]);
        left += fabs(s->R[i * wide + column]) / norm;
    }
    left *= rate;
    if (error >= 0.0)
        left += error * (double)q * terms;
    for (ptrdiff_t i = 0; i < q; i++) {
        double spread = 0.0, allowed = reference ? reference[i] : fabs(s->x[i * wide + column]);
        for (ptrdiff_t l = 0; l < k; l++)
            spread += fabs(s->B[i * k + l]) * (f ? f[l * f_stride] : 1.0) * s->u[l];
        double small = SMALL * terms / (norms[i] / s->scale[i]);
        if (error < 0.0 && small > allowed)
            allowed = small;
        if (!(spread * left <= last * allowed) || !isfinite(spread * left)
            || !isfinite(s->x[i * wide + column]) || !isfinite(s->x_low[i * wide + column]))
            return 0;
    }
    return 1;
}

/* How much larger terms are than their sum; 1 where there are none. */
static double cancelled(double terms, double sum) { return terms > 0.0 ? terms / fabs(sum) : 1.0; }

static int solved(struct step *s, array *a, const double *norms, int own, double rate, double error,
                  int moved, double *b, double *c, double *rss, double *size)
{
    ptrdiff_t q = s->q, t = s->t, p = q - own;
    double lost = 1.0;
    AT_LEVEL(solve, (s));
    for (ptrdiff_t i = 0; i < 2 * t; i++)
        c[i] = 0.0;
    for (ptrdiff_t j = 0; j < t && own; j++) {
        double terms = 1.0;
        pair at = {s->x[j] / s->scale[0], s->x_low[j] / s->scale[0]};
        if (moved) {
            at = AT_LEVEL(intercept, (s, j, &terms));
            double ratio = cancelled(terms, at.high);
            lost = ratio > lost ? ratio : lost;
        }
        c[j] = at.high;
        c[t + j] = at.low;
    }
    if (!(lost <= MOST_LOST))
        return 0;
    double *reference = s->square; /* (q, q) of memory, q of it in use */
    for (ptrdiff_t j = 0; j < t; j++) {
        size[j] = sqrt(s->yy[j * s->yy_stride]);
        for (ptrdiff_t i = 0; i < q; i++) {
            double x = fabs(s->x[i * s->wide + j]);
            reference[i] = own && i == 0 ? fabs(c[j]) * s->scale[0] : x;
            size[j] += norms[i] / s->scale[i] * x;
        }
        if (!is_certain(s, norms, s->f + j, t, j, rate, error, LAST / lost, reference))
            return 0;
        rss[j] = AT_LEVEL(residual_sum, (s, j));
        for (ptrdiff_t i = own; i < q; i++) {
            b[j * p + i - own] = s->x[i * s->wide + j] / s->scale[i];
            b[t * p + j * p + i - own] = s->x_low[i * s->wide + j] / s->scale[i];
        }
    }
    (void)a;
    return 1;
}

/* solve(xx, xy, yy, B, f, alpha, norms, scale, shift, y_shift, b, c, rss, size, rate, error): one
   step; b (2, t, p) and c (2, t) in two words, residual sums and the norms of their terms. norms
   and scale are those of the q unknowns, p or 1 + p. Returns whether the last digits are certain. */
static PyObject *call_solve(PyObject *self, PyObject *args)
{
    array a[14];
    int held = hold_all(args, "r3r3r2r2r2r1r1r1r1r1w3w2w1w1", a);
    if (held < 0)
        return NULL;
    double rate = number(args, held), error = number(args, held + 1);
    ptrdiff_t p = a[8].n[0], t = a[5].n[0], q = a[7].n[0], k = a[3].n[1], own = q - p;
    if (PyErr_Occurred()) {
        release(a, held);
        return NULL;
    }
    int wrong = (own != 0 && own != 1) || p < 1 || !has_shape(a, 2, 1 + p, 1 + p)
                || !has_shape(a + 1, 2, 1 + p, t) || !has_shape(a + 2, 2, t, -1) || a[3].n[0] != 1 + p
                || !has_shape(a + 4, k, t, -1) || a[6].n[0] != q || a[9].n[0] != t
                || !has_shape(a + 10, 2, t, p) || !has_shape(a + 11, 2, t, -1) || a[12].n[0] != t
                || a[13].n[0] != t || !is_dense(a + 4);
    for (int i = 5; i < 10; i++)
        wrong |= !is_dense(a + i);
    if (wrong)
        return refuse(a, held);
    arena memory = {NULL, 0};
    struct step s = {q, k, t};
    s.f = a[4].data;
    s.yy = a[2].data;
    s.yy_low = a[2].data + a[2].s[0];
    s.yy_stride = a[2].s[1];
    s.scale = a[7].data;
    s.shift = a[8].data;
    s.y_shift = a[9].data;
    if (!set_up(&s, &memory, a, a + 3, s.scale, 1 - own, t)) {
        release(a, held);
        return PyErr_NoMemory();
    }
    int found, moved = 0, penalised = 0;
    Py_BEGIN_ALLOW_THREADS
    for (ptrdiff_t i = 0; i < p; i++)
        moved |= s.shift[i] != 0.0;
    for (ptrdiff_t j = 0; j < t; j++) {
        moved |= s.y_shift[j] != 0.0;
        penalised |= a[5].data[j] != 0.0;
        for (ptrdiff_t i = 0; i < q; i++) {
            pair g = pair_at(a + 1, 1 - own + i, j);
            s.g[i * s.wide + j] = g.high / s.scale[i];
            s.g_low[i * s.wide + j] = g.low / s.scale[i];
            s.weight[i * s.wide + j] = i < own ? 0.0 : a[5].data[j] / (s.scale[i] * s.scale[i]);
        }
    }
    if (!penalised)
        s.weight = NULL;
    found = solved(&s, a, a[6].data, (int)own, rate, error, moved, a[10].data, a[11].data, a[12].data,
                   a[13].data);
    Py_END_ALLOW_THREADS
    free(memory.start);
    release(a, held);
    return PyBool_FromLong(found);
}

/* Largest |I - S M|, relative to the norms of its row and column, with what rounding adds. */
static double measured_rate(const struct step *s, const double *norms)
{
    double largest = 0.0;
    for (ptrdiff_t i = 0; i < s->q; i++)
        for (ptrdiff_t j = 0; j < s->q; j++) {
            double part = fabs(s->R[i * s->wide + j]) * (norms[j] / s->scale[j]) / (norms[i] / s->scale[i]);
            largest = part > largest ? part : largest;
        }
    return 2.0 * (largest + 0x1p-53 * (double)(s->q + 8));
}

static int inverted(struct step *s, const double *norms, int moved, double rate, double error,
                    double *out)
{
    ptrdiff_t q = s->q, wide = s->wide;
    double lost = 1.0, *a = s->more, *cross = a + q, *low = cross + q, *terms = low + q;
    AT_LEVEL(invert, (s));
    double measured = measured_rate(s, norms);
    if (!(measured <= rate)) /* of a matrix that should not have come here */
        return 0;
    for (ptrdiff_t i = 0; i < q; i++)
        for (ptrdiff_t j = 0; j < q; j++)
            out[i * q + j] = s->x[i * wide + j];
    if (moved) {
        double sum = 0.0;
        for (ptrdiff_t i = 0; i < q; i++)
            a[i] = (i ? -s->shift[i - 1] : 1.0) / s->scale[i];
        pair variance = AT_LEVEL(moved, (s, a, cross, low));
        for (ptrdiff_t i = 0; i < q; i++) {
            terms[i] = 0.0;
            for (ptrdiff_t j = 0; j < q; j++)
                terms[i] += fabs(s->x[i * wide + j]) * fabs(a[j]);
            sum += terms[i] * fabs(a[i]);
            double ratio = i ? cancelled(terms[i], cross[i]) : 1.0;
            lost = ratio > lost ? ratio : lost;
            out[i] = out[i * q] = cross[i] * s->scale[0];
        }
        out[0] = variance.high * s->scale[0] * s->scale[0];
        double ratio = cancelled(sum, variance.high);
        lost = ratio > lost ? ratio : lost;
    }
    if (!(lost <= MOST_LOST))
        return 0;
    double *reference = s->square;
    for (ptrdiff_t j = 0; j < q; j++) {
        for (ptrdiff_t i = 0; i < q; i++)
            reference[i] = fabs(out[i * q + j]);
        if (!is_certain(s, norms, NULL, 0, j, measured, error, LAST / lost, reference))
            return 0;
    }
    for (ptrdiff_t i = 0; i < q; i++)
        for (ptrdiff_t j = 0; j < q; j++)
            out[i * q + j] = out[i * q + j] / s->scale[i] / s->scale[j];
    return 1;
}

/* covariance(xx, B, norms, scale, shift, out, rate, error): inverse (q, q) of the sums of the
   unknowns, in the user's coordinates. Returns whether the last digits are certain. */
static PyObject *call_covariance(PyObject *self, PyObject *args)
{
    array a[6];
    int held = hold_all(args, "r3r2r1r1r1w2", a);
    if (held < 0)
        return NULL;
    double rate = number(args, held), error = number(args, held + 1);
    ptrdiff_t p = a[4].n[0], q = a[3].n[0], k = a[1].n[1], own = q - p;
    if (PyErr_Occurred()) {
        release(a, held);
        return NULL;
    }
    if ((own != 0 && own != 1) || p < 1 || !has_shape(a, 2, 1 + p, 1 + p) || a[1].n[0] != 1 + p
        || a[2].n[0] != q || !has_shape(a + 5, q, q, -1) || !is_dense(a + 2) || !is_dense(a + 3)
        || !is_dense(a + 4))
        return refuse(a, held);
    arena memory = {NULL, 0};
    struct step s = {q, k, q};
    s.scale = a[3].data;
    s.shift = a[4].data;
    if (!set_up(&s, &memory, a, a + 1, s.scale, 1 - own, q > 4 ? q : 4)) {
        release(a, held);
        return PyErr_NoMemory();
    }
    int found, moved = 0;
    Py_BEGIN_ALLOW_THREADS
    for (ptrdiff_t i = 0; i < p && own; i++)
        moved |= s.shift[i] != 0.0;
    for (ptrdiff_t i = 0; i < q; i++)
        s.g[i * s.wide + i] = 1.0;
    found = inverted(&s, a[2].data, moved, rate, error, a[5].data);
    Py_END_ALLOW_THREADS
    free(memory.start);
    release(a, held);
    return PyBool_FromLong(found);
}
