/* lib@NAME@: @MODEL@, compiled by trustformers_ir @COMPILER@ for @TARGETS@.
 *
@SIGNATURES@
 *
 * C99, and C++. The library needs libc, libm and pthreads, and nothing else@WEIGHTS_NOTE@.
 *
 *     tfm_error error;
 *     tfm_session *session;
 *     if (tfm_create(NULL, &session, &error) != TFM_OK) { puts(error.message); return 1; }
 *     ... tfm_@FIRST@(session, &sizes, &inputs, &outputs, &error) ...
 *     tfm_destroy(session);
 *
 * Every function that can fail gives a code, TFM_OK or one of the numbers of docs/errors.md (TFC5013 is 5013), and where `error` is not NULL
 * writes there what is wrong. Nothing that is passed by mistake is a crash, but for pointers that are not what they are said to be.
 *
 * Threads: any number of threads may use one session; runs on it take turns, each on all of its workers. Sessions do not disturb each other and
 * share the memory of the weights. The other functions keep no state. A forked child makes sessions of its own: one of its parent is refused.
 * The number of workers and the target change no bit of a result.
 */
#ifndef TFM_H
#define TFM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum tfm_code {
    TFM_OK = 0,
@CODES@
};

typedef struct tfm_error {
    int code;
    char message[1024]; /* UTF-8, one line; "" when all is well. All that is wrong with the inputs, "; " between; the code is the first one's */
} tfm_error;

/* What a code stands for, in a few words; never NULL. */
const char *tfm_code_text(int code);

/* -- sessions --------------------------------------------------------------------------------------------------------------------- */

typedef struct tfm_session tfm_session;

typedef struct tfm_options { /* all zeros (or no options at all) are the defaults */
    int threads;         /* workers, the calling thread among them, 1 to 1024; 0: one for each CPU that the process may use */
    int spin_us;         /* microseconds that idle workers poll for the next run before they sleep; 0: 100; negative: none */
    int check_weights;   /* not 0: compute the checksum of the weights first (a few seconds per gigabyte) */
    const char *weights; /* the file of the weights; NULL: @WEIGHTS_DEFAULT@ */
    const char *target;  /* which code to execute; NULL: the best that this machine runs. There is code for @TARGETS@ */
} tfm_options;

/* Maps the weights and starts the workers. */
int tfm_create(const tfm_options *options, tfm_session **session, tfm_error *error);
/* Ends the workers and frees all. No run may be going on. NULL is allowed. */
void tfm_destroy(tfm_session *session);
int tfm_threads(const tfm_session *session);
const char *tfm_target(const tfm_session *session);

/* -- what there is to run --------------------------------------------------------------------------------------------------------- */

enum tfm_dtype { /* in memory: numbers of the machine; a bool is a byte, 0 or 1; f16 and bf16 are their 16 bits, f8e4m3 its 8 */
    TFM_BOOL = 0, TFM_I8, TFM_I16, TFM_I32, TFM_I64, TFM_U8, TFM_U16, TFM_U32, TFM_U64, TFM_F16, TFM_BF16, TFM_F32, TFM_F64,
    TFM_F8E4M3
};

#define TFM_MAX_RANK @MAX_RANK@

typedef struct tfm_symbol { /* a size that the caller chooses: low <= size <= high, and a multiple of divisor */
    const char *name;
    int64_t low, high, divisor;
} tfm_symbol;

typedef struct tfm_port { /* an input or an output */
    const char *name;
    int dtype, rank;
    const char *dims[TFM_MAX_RANK];  /* as the model says it: "batch", "2*seq + 1", "384" */
    int64_t sizes[TFM_MAX_RANK];     /* -1 where the size follows from symbols */
    int optional;                    /* not 0: may be left out; it is then filled with a number that the model chose */
} tfm_port;

typedef struct tfm_function {
    const char *name;
    int input_count, output_count;
    const tfm_port *inputs, *outputs;
} tfm_function;

const tfm_function *tfm_functions(int *count);
const tfm_symbol *tfm_symbols(int *count);

@CONSTANTS@

/* -- running: any function, shapes as data ------------------------------------------------------------------------------------------ */

typedef struct tfm_input {
    const void *data; /* C order without gaps, aligned to its element */
    int dtype, rank;  /* rank -1: the input is left out, as it is where an optional one has no data */
    int64_t shape[TFM_MAX_RANK];
} tfm_input;

typedef struct tfm_output {
    void *data;      /* in: where to write, or NULL: not wanted. It may overlap nothing else that is passed */
    size_t capacity; /* in: bytes of data */
    size_t bytes;    /* out, and all below: what the output takes */
    int dtype, rank;
    int64_t shape[TFM_MAX_RANK];
} tfm_output;

/* Checks the shapes of the inputs (their data may be NULL) and computes those of the outputs. */
int tfm_infer(int function, const tfm_input *inputs, int input_count, tfm_output *outputs, int output_count, tfm_error *error);
/* The shapes of inputs and outputs from the sizes of all symbols, in the order of tfm_symbols; data is left alone. */
int tfm_shapes(int function, const int64_t *sizes, tfm_input *inputs, tfm_output *outputs, tfm_error *error);
/* Runs. The shapes of the outputs are set before anything is computed: TFM_OUTPUT_SIZE says that a buffer is too small for them. */
int tfm_run(tfm_session *session, int function, const tfm_input *inputs, int input_count, tfm_output *outputs, int output_count,
            tfm_error *error);

/* -- running: a function and its own types ------------------------------------------------------------------------------------------- */

@TYPED@
#ifdef __cplusplus
}
#endif
#endif
