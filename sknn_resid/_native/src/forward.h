/* What a forward pass is about, whatever the number type: pointers and strides, counted in numbers. */
#ifndef SKNN_FORWARD_H
#define SKNN_FORWARD_H
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
enum { MOST_LAYERS = 64 };
/* Panels that share a pass over weights which do not stay in the second cache; rows from which on
   the weights are put into the order of the tiles. */
enum { FORWARD_PANELS = 8, FORWARD_RESIDENT_BYTES = 384 * 1024, FORWARD_PACK_ROWS = 128 };

/* weights[in, out]; 'i'dentity, 'r'elu, 'l'ogistic or 't'anh. `packed` belongs to the pass. */
struct dense_layer {
    ptrdiff_t in, out, in_step, out_step;
    const void *weights, *bias;
    void *packed;
    char activation;
};

/* Rows of X by strides; those of `out` are contiguous. What is written there is the `link`:
   'n' the logits, 'e' their exp, 'l' the logistic function strictly inside (0, 1), 's' softmax, as
   REAL[rows, K]; 'a' the class of the largest logit, int64[rows]; 'p' logit > 0, int64[rows, K]. With
   `only_finite`, a number in X that is NaN or infinite ends the pass. */
struct dense_pass {
    struct dense_layer layers[MOST_LAYERS];
    ptrdiff_t n_layers, rows, x_row, x_col, widest, panels;
    const void *X;
    void *out;
    char link, only_finite;
};
#endif
