/* What one step of a training is made of: instructions on memory that was bound before.

   An instruction works on one model of a stack and one batch at a time: model m finds operand i of
   batch g at at[i] + m * step[i] + g * slot[i] (a step of 0: all models share it). So a run of instructions is carried out
   model by model, and what a model reads and writes stays in the caches from one instruction to
   the next. Python fills the table (engine/native.py holds the same layout as a numpy dtype). */
#ifndef SKNN_INSTRUCTION_H
#define SKNN_INSTRUCTION_H

#include <stdint.h>

#define N_SIZES 10
#define N_CONSTANTS 4
#define N_OPERANDS 8

struct instruction {
    int32_t op;                /* place in the table of operations */
    int32_t type;              /* 0: float, 1: double */
    int64_t n[N_SIZES];        /* sizes, strides in numbers, flags */
    double x[N_CONSTANTS];
    char *at[N_OPERANDS];      /* operands of model 0 */
    int64_t step[N_OPERANDS];  /* bytes from a model to the next */
    int64_t slot[N_OPERANDS];  /* bytes from a batch to the next */
};

/* What all instructions of a call share. */
struct context {
    void *sgemm, *dgemm; /* BLAS as scipy hands it on: column-major, 32-bit sizes */
    int threads;         /* whether BLAS may use several threads: then large products are its own */
};

typedef void (*operation)(const struct instruction *, int64_t model, int64_t batch,
                          const struct context *);

enum op {
    OP_MATMUL,
    OP_ADD_ROW,
    OP_ADD_COLUMN,
    OP_ACTIVATE,
    OP_ADD_ROW_ACTIVATE,
    OP_ACTIVATE_BACK,
    OP_SUM_ROWS,
    OP_SUM_COLUMNS,
    OP_SUM_SQUARES,
    OP_ADD_DECAY,
    OP_CLIP,
    OP_GATHER,
    OP_TARGET_CODES,
    OP_TARGET_REALS,
    OP_SOFTMAX,
    OP_LOSS,
    OP_SGD,
    OP_ADAM,
    N_OPS
};

/* A bias beside a product: along its columns (one number a column), or along its rows. */
enum bias { NO_BIAS, ROW_BIAS, COLUMN_BIAS };

enum activation { ACT_IDENTITY, ACT_RELU, ACT_LOGISTIC, ACT_TANH };

enum loss { LOSS_SQUARED, LOSS_ABSOLUTE, LOSS_HUBER, LOSS_PINBALL, LOSS_POISSON, LOSS_BINARY };

#endif
