/* Operations of a residual network's step, bound to their arrays once and called many times.

   A kernel works on one model of a stack; its arrays are found at at[i] + m * step[i]. Shapes are
   checked when an operation is bound, by a signature such as "MBH MB >MH": one letter an axis, equal
   letters are equal sizes, the first axis is that of the models, ">" is written to, "?" may be None,
   "~" may have any strides (all others have rows of neighbouring numbers). */
#ifndef SKNN_BOUND_H
#define SKNN_BOUND_H

#include <stddef.h>

#define MOST_ARRAYS 9

struct bound {
    ptrdiff_t models;
    ptrdiff_t size[26];             /* by the letter of the axis */
    char *at[MOST_ARRAYS];          /* NULL: left out */
    ptrdiff_t step[MOST_ARRAYS];    /* bytes from a model to the next */
    ptrdiff_t row[MOST_ARRAYS];     /* strides of the last two axes, in numbers */
    ptrdiff_t column[MOST_ARRAYS];
    const double *numbers;          /* given when it was bound */
    double now[3];                  /* given with the call */
    void *scratch;
};

typedef void (*kernel)(const struct bound *, ptrdiff_t model);

#define SIZE(letter) (b->size[letter - 'A'])
#define ARRAY(i) ((REAL *)(b->at[i] == NULL ? NULL : b->at[i] + model * b->step[i]))

#endif
