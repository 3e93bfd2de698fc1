/* Small dense problems whose library call costs more than the arithmetic. */

#define SWEEPS 30

/* eigh(A, h, V): eigenvalues, ascending, and vectors (columns of V) of a symmetric matrix by
   Jacobi's rotations, whose errors are those of the usual algorithm at most (Golub & Van Loan, 8.5).
   Returns whether it converged. */
static int rotated(double *A, ptrdiff_t p, double *h, double *V)
{
    for (ptrdiff_t i = 0; i < p * p; i++)
        V[i] = i % (p + 1) == 0 ? 1.0 : 0.0;
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        int done = 1;
        for (ptrdiff_t i = 0; i < p; i++)
            for (ptrdiff_t j = i + 1; j < p; j++) {
                double off = A[i * p + j], first = A[i * p + i], second = A[j * p + j];
                if (!(fabs(off) > 0x1p-54 * sqrt(fabs(first)) * sqrt(fabs(second))))
                    continue;
                done = 0;
                double theta = (second - first) / (2.0 * off);
                double tangent = (theta < 0.0 ? -1.0 : 1.0) / (fabs(theta) + sqrt(1.0 + theta * theta));
                double c = 1.0 / sqrt(1.0 + tangent * tangent), s = c * tangent;
                for (ptrdiff_t l = 0; l < p; l++) { /* rows of A, and of V, which is transposed */
                    double x = A[i * p + l], y = A[j * p + l];
                    A[i * p + l] = c * x - s * y;
                    A[j * p + l] = s * x + c * y;
                    x = V[i * p + l];
                    y = V[j * p + l];
                    V[i * p + l] = c * x - s * y;
                    V[j * p + l] = s * x + c * y;
                }
                for (ptrdiff_t l = 0; l < p; l++) {
                    double x = A[l * p + i], y = A[l * p + j];
                    A[l * p + i] = c * x - s * y;
                    A[l * p + j] = s * x + c * y;
                }
                A[i * p + i] = first - tangent * off;
                A[j * p + j] = second + tangent * off;
                A[i * p + j] = A[j * p + i] = 0.0;
            }
        if (!done)
            continue;
        for (ptrdiff_t i = 0; i < p; i++)
            h[i] = A[i * p + i];
        return 1;
    }
    return 0;
}

static PyObject *call_eigh(PyObject *self, PyObject *args)
{
    array a[3];
    int held = hold_all(args, "r2w1w2", a);
    if (held < 0)
        return NULL;
    ptrdiff_t p = a[0].n[0];
    if (a[0].n[1] != p || a[1].n[0] != p || !has_shape(a + 2, p, p, -1))
        return refuse(a, held);
    double *A = malloc(sizeof(double) * (size_t)(2 * p * p + 1));
    if (A == NULL) {
        release(a, held);
        return PyErr_NoMemory();
    }
    int found;
    double *V = A + p * p, *h = a[1].data;
    Py_BEGIN_ALLOW_THREADS
    copy_matrix(a[0].data, a[0].s[0], a[0].s[1], p, p, p, A);
    found = rotated(A, p, h, V);
    for (ptrdiff_t i = 0; i < p && found; i++) { /* ascending */
        ptrdiff_t least = i;
        for (ptrdiff_t j = i + 1; j < p; j++)
            least = h[j] < h[least] ? j : least;
        double value = h[i];
        h[i] = h[least];
        h[least] = value;
        for (ptrdiff_t l = 0; l < p; l++) {
            a[2].data[l * p + i] = V[least * p + l];
            V[least * p + l] = V[i * p + l];
        }
    }
    Py_END_ALLOW_THREADS
    free(A);
    release(a, held);
    return PyBool_FromLong(found);
}

/* skeleton(F, columns, mix, tolerance): rank r columns of F (a, k), the first a r numbers of
   `columns` as (a, r), and the first r k numbers of `mix` as (r, k), so that F = columns mix to about
   the tolerance; r, or -1 where that is no gain. Gram-Schmidt with pivoting, once more for each
   pivot, then back substitution. */
static ptrdiff_t mixtures(const array *F, double tolerance, double *columns, double *mix, double *T,
                          double *R, ptrdiff_t *order)
{
    ptrdiff_t a = F->n[0], k = F->n[1], r = 0, most = a < k ? a : k;
    copy_matrix(F->data, F->s[1], F->s[0], k, a, a, T);
    for (ptrdiff_t j = 0; j < k; j++)
        order[j] = j;
    for (; r < most; r++) {
        ptrdiff_t best = r;
        double largest = -1.0;
        for (ptrdiff_t j = r; j < k; j++) {
            double square = 0.0, *c = T + order[j] * a;
#pragma omp simd reduction(+ : square)
            for (ptrdiff_t i = 0; i < a; i++)
                square += c[i] * c[i];
            if (square > largest) {
                largest = square;
                best = j;
            }
        }
        double norm = sqrt(largest);
        if (!(norm > tolerance))
            break;
        if ((r + 1) * (a + k) * 4 > 3 * a * k)
            return -1;
        ptrdiff_t pivot = order[best];
        order[best] = order[r];
        order[r] = pivot;
        double *q = T + pivot * a;
        for (ptrdiff_t i = 0; i < a; i++)
            q[i] /= norm;
        R[r * k + pivot] = norm;
        for (ptrdiff_t j = r + 1; j < k; j++) {
            double *c = T + order[j] * a, s = 0.0;
#pragma omp simd reduction(+ : s)
            for (ptrdiff_t i = 0; i < a; i++)
                s += q[i] * c[i];
#pragma omp simd
            for (ptrdiff_t i = 0; i < a; i++)
                c[i] -= s * q[i];
            R[r * k + order[j]] = s;
        }
    }
    for (ptrdiff_t i = 0; i < a; i++)
        for (ptrdiff_t l = 0; l < r; l++)
            columns[i * r + l] = F->data[i * F->s[0] + order[l] * F->s[1]];
    for (ptrdiff_t j = 0; j < k; j++) {
        double *at = R + order[j];
        for (ptrdiff_t l = r - 1; l >= 0; l--) {
            double s = j < r ? (j == l ? 1.0 : 0.0) : at[l * k];
            for (ptrdiff_t i = l + 1; i < r && j >= r; i++)
                s -= R[l * k + order[i]] * mix[i * k + order[j]];
            mix[l * k + order[j]] = j < r ? s : s / R[l * k + order[l]];
        }
    }
    return r;
}

static PyObject *call_skeleton(PyObject *self, PyObject *args)
{
    array a[3];
    int held = hold_all(args, "r2w1w1", a);
    if (held < 0)
        return NULL;
    double tolerance = number(args, held);
    ptrdiff_t m = a[0].n[0], k = a[0].n[1];
    if (PyErr_Occurred()) {
        release(a, held);
        return NULL;
    }
    if (a[1].n[0] < m * k || a[2].n[0] < k * k)
        return refuse(a, held);
    double *T = calloc((size_t)(m * k + k * k + 1), sizeof(double));
    ptrdiff_t *order = malloc(sizeof(ptrdiff_t) * (size_t)(k + 1)), rank = 0;
    if (T != NULL && order != NULL) {
        Py_BEGIN_ALLOW_THREADS
        rank = mixtures(a, tolerance, a[1].data, a[2].data, T, T + m * k, order);
        Py_END_ALLOW_THREADS
    }
    int failed = T == NULL || order == NULL;
    free(T);
    free(order);
    release(a, held);
    return failed ? PyErr_NoMemory() : PyLong_FromSsize_t(rank);
}
