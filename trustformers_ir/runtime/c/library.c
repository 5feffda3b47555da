/* The runtime of a model in a shared library: what runtime/executable.py, ir/machine.py and ir/binding.py do, in C99.
 *
 * runtime/library.py puts the library's name in the place of tfm_, writes the tables of the model into tables.h and compiles this file once per
 * library. Sizes are small programs (a stack machine on 64-bit integers, every operation checked), so that what a shape means is said once, in
 * ir/dims.py. Binding symbols to shapes follows ir/binding.py step by step: each dim of each input is an equation.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cpus.h"
#include "header.h"
#include "sha256.h"

#define TFI_ALIGNMENT 64
#define TFI_EXPORT __attribute__((visibility("default")))
#define TFI_HIDDEN __attribute__((visibility("hidden")))

/* -- the types of the tables ------------------------------------------------------------------------------------------------------- */

enum { TFI_END, TFI_CONST, TFI_SYMBOL, TFI_ADD, TFI_MUL, TFI_FLOORDIV, TFI_MOD, TFI_MIN, TFI_MAX };

typedef struct { int symbol, slope, offset; } tfi_solution;           /* dim = slope * symbol + offset, both programs */
typedef struct { int dim, first, count; } tfi_axis;                   /* a program, and how to solve it for a symbol */
typedef struct { int axes; unsigned char fill[16]; } tfi_port;        /* the first of its axes; what a missing one is filled with */
typedef struct { int inputs, outputs; } tfi_function;                 /* the first of its ports */
typedef struct { const char *text, *bound_text, *place; int bound; } tfi_site;
typedef struct { const char *name; unsigned leaf, subleaf; int reg, bit, state; } tfi_feature;

struct tfir_call {
    const int64_t *dims;
    const void *const *inputs;
    void *const *outputs;
    const uint8_t *weights;
    uint8_t *arena;
    int64_t *status;
    int64_t *profile;
};
typedef void tfi_entry(const struct tfir_call *call, int64_t worker, int64_t workers, void *pool, uint8_t *scratch, int64_t claim);
typedef struct { tfi_entry *code; int arena, scratch, flops, bytes; } tfi_code; /* the function, and programs */
typedef struct {
    const char *name, *cpu;
    int features, feature_count;
    const tfi_site *sites;
    int site_count;
    const tfi_code *codes;
    void *(*create)(int64_t workers);
    void (*run)(void *pool, tfi_entry *entry, const struct tfir_call *call, uint8_t *scratch, int64_t stride);
    void (*patience)(void *pool, int64_t nanoseconds);
    void (*destroy)(void *pool);
} tfi_variant;

#include "tables.h"

static const size_t tfi_item_bytes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 1};
static const char *const tfi_dtype_names[] = {"bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f16", "bf16", "f32", "f64", "f8e4m3"};

/* -- errors ------------------------------------------------------------------------------------------------------------------------ */

TFI_EXPORT const char *tfm_code_text(int code) {
    size_t i;
    for (i = 0; i < sizeof tfi_codes / sizeof *tfi_codes; i++)
        if (tfi_codes[i].code == code) return tfi_codes[i].text;
    return "unknown code";
}

__attribute__((format(printf, 3, 4))) static int tfi_fail(tfm_error *error, int code, const char *format, ...) {
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        error->code = code;
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return code;
}

static int tfi_ok(tfm_error *error) {
    if (error != NULL) {
        error->code = TFM_OK;
        error->message[0] = 0;
    }
    return TFM_OK;
}

/* Puts a problem behind those that are known; the code is that of the first. */
static void tfi_gather(tfm_error *all, const tfm_error *one) {
    size_t at = strlen(all->message);
    if (all->code == TFM_OK)
        *all = *one;
    else
        snprintf(all->message + at, sizeof all->message - at, "; %s", one->message);
}

static int tfi_told(const tfm_error *all, tfm_error *error) {
    if (all->code != TFM_OK && error != NULL) *error = *all;
    return all->code;
}

/* "i64[batch, seq]" */
static const char *tfi_type_text(const tfm_port *port, char *text, size_t room) {
    size_t at = (size_t)snprintf(text, room, "%s[", tfi_dtype_names[port->dtype]);
    int axis;
    for (axis = 0; axis < port->rank && at < room; axis++)
        at += (size_t)snprintf(text + at, room - at, "%s%s", axis ? ", " : "", port->dims[axis]);
    if (at < room) snprintf(text + at, room - at, "]");
    return text;
}

static const char *tfi_shape_text(const int64_t *shape, int rank, char *text, size_t room) {
    size_t at = (size_t)snprintf(text, room, "[");
    int axis;
    for (axis = 0; axis < rank && at < room; axis++)
        at += (size_t)snprintf(text + at, room - at, "%s%lld", axis ? ", " : "", (long long)shape[axis]);
    if (at < room) snprintf(text + at, room - at, "]");
    return text;
}

/* -- programs ---------------------------------------------------------------------------------------------------------------------- */

typedef struct { /* the values of the symbols, as far as they are known, and where each comes from */
    int64_t value[TFI_SYMBOLS + 1];
    unsigned char known[TFI_SYMBOLS + 1];
    int input[TFI_SYMBOLS + 1], axis[TFI_SYMBOLS + 1];
} tfi_dims;

enum { TFI_VALUE, TFI_UNKNOWN, TFI_IMPOSSIBLE, TFI_TOO_LARGE };

static int tfi_floordiv(int64_t a, int64_t b, int64_t *quotient, int64_t *rest) {
    if (b == 0 || (a == INT64_MIN && b == -1)) return 0;
    *quotient = a / b;
    *rest = a % b;
    if (*rest != 0 && (*rest < 0) != (b < 0)) {
        *quotient -= 1;
        *rest += b;
    }
    return 1;
}

/* TFI_VALUE and the value of a program; TFI_UNKNOWN when it needs a symbol that has none; TFI_IMPOSSIBLE for a division by zero;
 * TFI_TOO_LARGE for a number of more than 64 bits, the result or one on the way to it. */
static int tfi_evaluate(int program, const tfi_dims *dims, int64_t *value) {
    int64_t stack[TFI_STACK], a, b, other;
    const int64_t *at = tfi_programs + program;
    int top = 0;
    for (;;) {
        switch (*at++) {
        case TFI_END:
            *value = stack[0];
            return TFI_VALUE;
        case TFI_CONST:
            stack[top++] = *at++;
            continue;
        case TFI_SYMBOL:
            if (!dims->known[*at]) return TFI_UNKNOWN;
            stack[top++] = dims->value[*at++];
            continue;
        default:
            break;
        }
        b = stack[--top];
        a = stack[--top];
        switch (at[-1]) {
        case TFI_ADD:
            if (__builtin_add_overflow(a, b, &a)) return TFI_TOO_LARGE;
            break;
        case TFI_MUL:
            if (__builtin_mul_overflow(a, b, &a)) return TFI_TOO_LARGE;
            break;
        case TFI_FLOORDIV:
            if (!tfi_floordiv(a, b, &a, &other)) return TFI_IMPOSSIBLE;
            break;
        case TFI_MOD:
            if (!tfi_floordiv(a, b, &other, &a)) return TFI_IMPOSSIBLE;
            break;
        case TFI_MIN:
            a = a < b ? a : b;
            break;
        default:
            a = a > b ? a : b;
        }
        stack[top++] = a;
    }
}

/* -- from shapes to sizes ---------------------------------------------------------------------------------------------------------- */

static const tfm_port *tfi_input_port(int function, int n) { return &tfi_inputs[tfi_functions[function].inputs + n]; }
static const tfi_axis *tfi_input_axis(int function, int n, int axis) {
    return &tfi_axes[tfi_input_details[tfi_functions[function].inputs + n].axes + axis];
}
static int tfi_left_out(const tfm_port *port, const tfm_input *input, int running) {
    return port->optional && (input->rank < 0 || (running && input->data == NULL));
}

static int tfi_wrong_shape(tfm_error *error, int code, const tfm_port *port, const tfm_input *input, int axis, const char *why) {
    char given[256], declared[256];
    return tfi_fail(error, code, "input '%s': axis %d is %s%s; the shape %s was given; it is declared as %s", port->name, axis, port->dims[axis], why,
                    tfi_shape_text(input->shape, input->rank, given, sizeof given), tfi_type_text(port, declared, sizeof declared));
}

/* One equation: solved for its unknown symbol, or checked. *settled is 0 when it has to wait. */
static int tfi_settle(int function, const tfm_input *inputs, int n, int axis, tfi_dims *dims, int *settled, tfm_error *error) {
    const tfm_port *port = tfi_input_port(function, n);
    const tfi_axis *equation = tfi_input_axis(function, n, axis);
    int64_t size = inputs[n].shape[axis], value, slope, offset, rest;
    char why[128];
    int i, unknown = 0;
    const tfi_solution *solution = NULL;
    *settled = 1;
    for (i = 0; i < equation->count; i++)
        if (!dims->known[tfi_solutions[equation->first + i].symbol]) {
            unknown++;
            solution = &tfi_solutions[equation->first + i];
        }
    if (unknown == 0) {
        i = tfi_evaluate(equation->dim, dims, &value);
        if (i == TFI_TOO_LARGE)
            return tfi_wrong_shape(error, TFM_DIM_CONFLICT, port, &inputs[n], axis, ", more than 64 bits by other sizes");
        if (i != TFI_VALUE)
            return tfi_wrong_shape(error, TFM_INPUT_SHAPE, port, &inputs[n], axis, ", which cannot be computed from these shapes");
        if (value == size) return TFM_OK;
        if (port->sizes[axis] >= 0) return tfi_wrong_shape(error, TFM_INPUT_SHAPE, port, &inputs[n], axis, "");
        snprintf(why, sizeof why, " = %lld by other sizes", (long long)value);
        return tfi_wrong_shape(error, TFM_DIM_CONFLICT, port, &inputs[n], axis, why);
    }
    if (unknown > 1 || solution->slope < 0 || tfi_evaluate(solution->slope, dims, &slope) != TFI_VALUE || slope == 0 ||
        tfi_evaluate(solution->offset, dims, &offset) != TFI_VALUE) {
        *settled = 0;
        return TFM_OK;
    }
    if (__builtin_sub_overflow(size, offset, &rest) || !tfi_floordiv(rest, slope, &value, &rest) || rest != 0 || value < 0) {
        snprintf(why, sizeof why, ", which is %lld for no %s", (long long)size, tfi_symbols[solution->symbol].name);
        return tfi_wrong_shape(error, TFM_INPUT_SHAPE, port, &inputs[n], axis, why);
    }
    dims->value[solution->symbol] = value;
    dims->known[solution->symbol] = 1;
    dims->input[solution->symbol] = n;
    dims->axis[solution->symbol] = axis;
    return TFM_OK;
}

static void tfi_check_facts(int function, const tfi_dims *dims, tfm_error *all) {
    int s;
    for (s = 0; s < TFI_SYMBOLS; s++) {
        tfm_error one;
        const tfm_symbol *fact = &tfi_symbols[s];
        int64_t value = dims->value[s];
        char place[128] = "", multiple[64] = "", high[32] = "inf";
        if (!dims->known[s] || (value >= fact->low && value <= fact->high && value % fact->divisor == 0)) continue;
        if (dims->input[s] >= 0)
            snprintf(place, sizeof place, " by axis %d of input '%.60s'", dims->axis[s], tfi_input_port(function, dims->input[s])->name);
        if (fact->divisor != 1) snprintf(multiple, sizeof multiple, " %% %lld", (long long)fact->divisor);
        if (fact->high != INT64_MAX) snprintf(high, sizeof high, "%lld", (long long)fact->high);
        tfi_fail(&one, TFM_DIM_RANGE, "the dim '%s' is %lld%s; it was declared as [%lld, %s]%s", fact->name, (long long)value, place,
                 (long long)fact->low, high, multiple);
        tfi_gather(all, &one);
    }
}

/* The values of the symbols from the shapes of the inputs. All that is wrong is told together. */
static int tfi_bind(int function, const tfm_input *inputs, int running, tfi_dims *dims, tfm_error *error) {
    int count = tfi_model[function].input_count, n, axis, settled, left = 0, before;
    tfm_error all = {TFM_OK, ""}, one;
    unsigned char pending[TFI_INPUTS * TFM_MAX_RANK + 1];
    memset(dims, 0, sizeof *dims);
    memset(pending, 0, sizeof pending);
    for (n = 0; n < count; n++) {
        const tfm_port *port = tfi_input_port(function, n);
        char given[256], declared[256];
        if (tfi_left_out(port, &inputs[n], running)) continue;
        if (inputs[n].rank < 0) {
            tfi_fail(&one, TFM_INPUT_COUNT, "input '%s' is missing", port->name);
            tfi_gather(&all, &one);
            continue;
        }
        tfi_type_text(port, declared, sizeof declared);
        if (inputs[n].dtype != port->dtype) {
            tfi_fail(&one, TFM_INPUT_DTYPE, "input '%s' has the dtype %s; it is declared as %s", port->name,
                     inputs[n].dtype < 0 || inputs[n].dtype > TFM_F8E4M3 ? "of no number" : tfi_dtype_names[inputs[n].dtype], declared);
            tfi_gather(&all, &one);
        }
        if (inputs[n].rank != port->rank) {
            tfi_fail(&one, TFM_INPUT_SHAPE, "input '%s' has rank %d; the shape %s was given; it is declared as %s", port->name, port->rank,
                     tfi_shape_text(inputs[n].shape, inputs[n].rank <= TFM_MAX_RANK ? inputs[n].rank : 0, given, sizeof given), declared);
            tfi_gather(&all, &one);
            continue;
        }
        for (axis = 0; axis < port->rank; axis++) {
            if (inputs[n].shape[axis] < 0) {
                tfi_wrong_shape(&one, TFM_INPUT_SHAPE, port, &inputs[n], axis, ", which is not negative");
                tfi_gather(&all, &one);
                continue;
            }
            pending[n * TFM_MAX_RANK + axis] = 1;
            left++;
        }
    }
    while (left > 0) {
        int waiting = -1;
        before = left;
        for (n = 0; n < count; n++)
            for (axis = 0; axis < TFM_MAX_RANK; axis++) {
                if (!pending[n * TFM_MAX_RANK + axis]) continue;
                if (tfi_settle(function, inputs, n, axis, dims, &settled, &one) != TFM_OK) tfi_gather(&all, &one);
                if (!settled) waiting = waiting < 0 ? n * TFM_MAX_RANK + axis : waiting;
                if (!settled) continue;
                pending[n * TFM_MAX_RANK + axis] = 0;
                left--;
            }
        if (left == before) { /* what is wrong elsewhere may be why nothing more is known */
            if (all.code != TFM_OK) break;
            n = waiting / TFM_MAX_RANK;
            return tfi_wrong_shape(error, TFM_INPUT_SHAPE, tfi_input_port(function, n), &inputs[n], waiting % TFM_MAX_RANK,
                                   ", from which its symbols cannot be computed");
        }
    }
    tfi_check_facts(function, dims, &all);
    return tfi_told(&all, error);
}

/* Symbols of one value need no input. */
static void tfi_complete(tfi_dims *dims) {
    int s;
    for (s = 0; s < TFI_SYMBOLS; s++)
        if (!dims->known[s] && tfi_symbols[s].low == tfi_symbols[s].high) {
            dims->known[s] = 1;
            dims->value[s] = tfi_symbols[s].low;
        }
}

static uint64_t tfi_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : (uint64_t)1 << 40;
}

/* A size that a program computes, of something that is called `what`. */
static int tfi_size(int program, const tfi_dims *dims, const char *what, int64_t *size, tfm_error *error) {
    switch (tfi_evaluate(program, dims, size)) {
    case TFI_UNKNOWN:
        return tfi_fail(error, TFM_INPUT_SHAPE, "no input determines %s", what);
    case TFI_IMPOSSIBLE:
        return tfi_fail(error, TFM_INPUT_SHAPE, "%s cannot be computed from these shapes", what);
    case TFI_TOO_LARGE:
        return tfi_fail(error, TFM_OUT_OF_MEMORY, "%s takes numbers of more than 64 bits", what);
    default:
        if (*size < 0 || *size >= (int64_t)1 << 62) return tfi_fail(error, TFM_DIM_RANGE, "%s is impossible: %lld", what, (long long)*size);
        return TFM_OK;
    }
}

static int tfi_shape(const tfm_port *port, const tfi_axis *axes, const tfi_dims *dims, int64_t *shape, size_t *bytes, tfm_error *error) {
    uint64_t total = tfi_item_bytes[port->dtype], limit = tfi_memory();
    int axis, code, empty = 0;
    for (axis = 0; axis < port->rank; axis++) {
        char what[256];
        snprintf(what, sizeof what, "axis %d of '%.100s', which is %.100s", axis, port->name, port->dims[axis]);
        code = tfi_size(axes[axis].dim, dims, what, &shape[axis], error);
        if (code != TFM_OK) return code;
        empty = empty || shape[axis] == 0;
    }
    for (axis = 0; axis < port->rank && !empty; axis++)
        if (__builtin_mul_overflow(total, (uint64_t)shape[axis], &total) || total > limit)
            return tfi_fail(error, TFM_OUT_OF_MEMORY, "'%s' is larger than the %llu bytes of memory", port->name, (unsigned long long)limit);
    *bytes = empty ? 0 : (size_t)total;
    return TFM_OK;
}

static int tfi_output_shapes(int function, const tfi_dims *dims, tfm_output *outputs, tfm_error *error) {
    int n, code;
    for (n = 0; n < tfi_model[function].output_count; n++) {
        int at = tfi_functions[function].outputs + n;
        const tfm_port *port = &tfi_outputs[at];
        code = tfi_shape(port, &tfi_axes[tfi_output_details[at].axes], dims, outputs[n].shape, &outputs[n].bytes, error);
        if (code != TFM_OK) return code;
        outputs[n].dtype = port->dtype;
        outputs[n].rank = port->rank;
    }
    return TFM_OK;
}

static int tfi_check_call(int function, const void *inputs, int input_count, const void *outputs, int output_count, tfm_error *error) {
    const tfm_function *f;
    if (function < 0 || function >= TFI_FUNCTIONS)
        return tfi_fail(error, TFM_UNKNOWN_ENTRY, "there is no function %d: there are %d, counted from 0", function, TFI_FUNCTIONS);
    f = &tfi_model[function];
    if (input_count != f->input_count)
        return tfi_fail(error, TFM_INPUT_COUNT, "%d inputs were given, '%s' takes %d", input_count, f->name, f->input_count);
    if (output_count != f->output_count)
        return tfi_fail(error, TFM_USAGE, "%d outputs were given, '%s' has %d", output_count, f->name, f->output_count);
    if ((inputs == NULL && input_count > 0) || (outputs == NULL && output_count > 0))
        return tfi_fail(error, TFM_USAGE, "the array of the %s is NULL", inputs == NULL ? "inputs" : "outputs");
    return TFM_OK;
}

TFI_EXPORT const tfm_function *tfm_functions(int *count) {
    if (count != NULL) *count = TFI_FUNCTIONS;
    return tfi_model;
}

TFI_EXPORT const tfm_symbol *tfm_symbols(int *count) {
    if (count != NULL) *count = TFI_SYMBOLS;
    return tfi_symbols;
}

TFI_EXPORT int tfm_infer(int function, const tfm_input *inputs, int input_count, tfm_output *outputs, int output_count, tfm_error *error) {
    tfi_dims dims;
    int code = tfi_check_call(function, inputs, input_count, outputs, output_count, error);
    if (code == TFM_OK) code = tfi_bind(function, inputs, 0, &dims, error);
    if (code != TFM_OK) return code;
    tfi_complete(&dims);
    code = tfi_output_shapes(function, &dims, outputs, error);
    return code == TFM_OK ? tfi_ok(error) : code;
}

TFI_EXPORT int tfm_shapes(int function, const int64_t *sizes, tfm_input *inputs, tfm_output *outputs, tfm_error *error) {
    tfi_dims dims;
    tfm_error all = {TFM_OK, ""};
    size_t bytes;
    int s, n, code;
    memset(&dims, 0, sizeof dims);
    if (function < 0 || function >= TFI_FUNCTIONS) return tfi_check_call(function, NULL, 0, NULL, 0, error);
    if ((sizes == NULL && TFI_SYMBOLS > 0) || inputs == NULL || outputs == NULL)
        return tfi_fail(error, TFM_USAGE, "the sizes, the inputs or the outputs are NULL");
    for (s = 0; s < TFI_SYMBOLS; s++) {
        dims.value[s] = sizes[s];
        dims.known[s] = 1;
        dims.input[s] = -1;
    }
    tfi_check_facts(function, &dims, &all);
    code = tfi_told(&all, error);
    for (n = 0; n < tfi_model[function].input_count && code == TFM_OK; n++) {
        const tfm_port *port = tfi_input_port(function, n);
        inputs[n].dtype = port->dtype;
        inputs[n].rank = port->rank;
        code = tfi_shape(port, tfi_input_axis(function, n, 0), &dims, inputs[n].shape, &bytes, error);
    }
    if (code == TFM_OK) code = tfi_output_shapes(function, &dims, outputs, error);
    return code == TFM_OK ? tfi_ok(error) : code;
}

/* -- the machine ------------------------------------------------------------------------------------------------------------------- */

/* The register state that the system saves and that an instruction set needs: bits of XCR0. */
static const uint64_t tfi_states[] = {0, 0x6, 0xe6, 0x60000, 0x80000};

static int tfi_has(const tfi_feature *f) {
    unsigned r[4] = {0, 0, 0, 0}, low, high;
    uint64_t state = tfi_states[f->state];
    if (__get_cpuid_max(f->leaf & 0x80000000u, NULL) < f->leaf) return 0;
    if (f->leaf == 7 && f->subleaf > 0) {
        __cpuid_count(7, 0, r[0], r[1], r[2], r[3]);
        if (r[0] < f->subleaf) return 0;
    }
    __cpuid_count(f->leaf, f->subleaf, r[0], r[1], r[2], r[3]);
    if (!(r[f->reg] >> f->bit & 1)) return 0;
    if (state == 0) return 1;
    __cpuid(1, r[0], r[1], r[2], r[3]);
    if (!(r[2] >> 27 & 1) || !(r[2] >> 28 & 1)) return 0; /* OSXSAVE, AVX */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (((uint64_t)high << 32 | low) & state) == state;
}

/* Adds the features that the machine lacks to a text; gives their number. */
static int tfi_lacks(const tfi_variant *v, char *text, size_t room) {
    int i, missing = 0;
    size_t at = strlen(text);
    for (i = 0; i < v->feature_count; i++) {
        const tfi_feature *f = &tfi_features[tfi_needed[v->features + i]];
        if (tfi_has(f)) continue;
        if (at < room && missing < 8) at += (size_t)snprintf(text + at, room - at, "%s%s", missing ? ", " : "", f->name);
        missing++;
    }
    if (missing > 8 && at < room) snprintf(text + at, room - at, " and %d more", missing - 8);
    return missing;
}

static int tfi_choose(const char *wanted, int *chosen, tfm_error *error) {
    char text[700] = "";
    int v, seen = 0;
    for (v = 0; v < TFI_VARIANTS; v++) {
        size_t at = strlen(text);
        if (wanted != NULL && strcmp(wanted, tfi_variants[v].name) != 0) continue;
        seen++;
        snprintf(text + at, sizeof text - at, "%s%s (%s) lacks ", at ? "; for " : "for ", tfi_variants[v].name, tfi_variants[v].cpu);
        if (tfi_lacks(&tfi_variants[v], text, sizeof text) == 0) {
            *chosen = v;
            return TFM_OK;
        }
    }
    if (!seen) {
        text[0] = 0;
        for (v = 0; v < TFI_VARIANTS; v++) {
            size_t at = strlen(text);
            snprintf(text + at, sizeof text - at, "%s%s", at ? ", " : "", tfi_variants[v].name);
        }
        return tfi_fail(error, TFM_USAGE, "there is no code for the target '%.100s'; there is code for %s", wanted, text);
    }
    return tfi_fail(error, TFM_ARTIFACT_TARGET, "this machine cannot run the code: %s", text);
}

/* -- sessions ---------------------------------------------------------------------------------------------------------------------- */

typedef struct { /* a block of memory that grows */
    uint8_t *data;
    uint64_t bytes;
} tfi_block;

struct tfm_session {
    const tfi_variant *variant;
    const uint8_t *weights;
    void *mapping;
    size_t mapped;
    int threads;
    pid_t process;
    void *all, *alone; /* pools */
    pthread_mutex_t turn;
    tfi_block arena, scratch, spare; /* spare: inputs that are left out, outputs that nobody wants */
};

static uint64_t tfi_aligned(uint64_t bytes) { return (bytes + TFI_ALIGNMENT - 1) / TFI_ALIGNMENT * TFI_ALIGNMENT; }

static int tfi_grow(tfi_block *block, uint64_t bytes, const char *what, tfm_error *error) {
    void *data = NULL;
    if (block->data != NULL && bytes <= block->bytes) return TFM_OK;
    free(block->data);
    block->data = NULL;
    block->bytes = 0;
    if (bytes > tfi_memory() || posix_memalign(&data, TFI_ALIGNMENT, bytes ? (size_t)bytes : 1) != 0)
        return tfi_fail(error, TFM_OUT_OF_MEMORY, "%s needs %llu bytes, which are not to be had", what, (unsigned long long)bytes);
    block->data = data;
    block->bytes = bytes;
    return TFM_OK;
}

#if TFI_EMBEDDED
extern const uint8_t tfi_embedded[] TFI_HIDDEN;

static int tfi_map(tfm_session *session, const tfm_options *options, tfm_error *error) {
    if (options->weights != NULL) return tfi_fail(error, TFM_USAGE, "the weights are in the library: no file can be given");
    session->weights = tfi_embedded;
    return TFM_OK;
}
#else
/* The file beside the library, unless one is named. */
static int tfi_path(const char *given, char *path, size_t room, tfm_error *error) {
    Dl_info library;
    const char *name = "", *slash;
    int length;
    if (given == NULL && dladdr((const void *)(uintptr_t)&tfm_create, &library) != 0 && library.dli_fname != NULL) name = library.dli_fname;
    slash = strrchr(name, '/');
    length = given != NULL ? snprintf(path, room, "%s", given)
                           : snprintf(path, room, "%.*s%s", slash != NULL ? (int)(slash - name) + 1 : 0, name, TFI_WEIGHTS_FILE);
    return length >= 0 && (size_t)length < room ? TFM_OK : tfi_fail(error, TFM_UNREADABLE, "the path of the weights is too long");
}

static int tfi_map(tfm_session *session, const tfm_options *options, tfm_error *error) {
    char path[4096];
    struct stat status;
    int code = tfi_path(options->weights, path, sizeof path, error), file;
    uint64_t expected = TFI_WEIGHTS_HEADER + (uint64_t)TFI_WEIGHTS_BYTES;
    if (code != TFM_OK) return code;
    file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return tfi_fail(error, errno == ENOENT ? TFM_FILE_NOT_FOUND : TFM_UNREADABLE, "cannot open the weights '%.700s': %s", path, strerror(errno));
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
        close(file);
        return tfi_fail(error, TFM_UNREADABLE, "the weights '%.700s' are not an ordinary file", path);
    }
    if ((uint64_t)status.st_size < expected) {
        close(file);
        return tfi_fail(error, TFM_ARTIFACT_TRUNCATED, "the weights '%.700s' have %lld bytes, %llu were written", path, (long long)status.st_size,
                        (unsigned long long)expected);
    }
    session->mapped = (size_t)expected;
    session->mapping = mmap(NULL, session->mapped, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (session->mapping == MAP_FAILED) {
        session->mapping = NULL;
        return tfi_fail(error, TFM_OUT_OF_MEMORY, "cannot map the weights '%.700s': %s", path, strerror(errno));
    }
    if ((uint64_t)status.st_size != expected || memcmp(session->mapping, tfi_weights_header, sizeof tfi_weights_header) != 0)
        return tfi_fail(error, TFM_ARTIFACT_CORRUPT, "the file '%.700s' does not hold the weights that this library was built for", path);
    session->weights = (const uint8_t *)session->mapping + TFI_WEIGHTS_HEADER;
    return TFM_OK;
}
#endif

static void tfi_release(tfm_session *session) {
    if (session->process == getpid()) { /* in a forked child the threads are gone, and the pools with them */
        if (session->all != NULL) session->variant->destroy(session->all);
        if (session->alone != NULL && session->alone != session->all) session->variant->destroy(session->alone);
    }
    if (session->mapping != NULL) munmap(session->mapping, session->mapped);
    free(session->arena.data);
    free(session->scratch.data);
    free(session->spare.data);
    free(session);
}

TFI_EXPORT int tfm_create(const tfm_options *options, tfm_session **session, tfm_error *error) {
    static const tfm_options defaults = {0, 0, 0, NULL, NULL};
    tfm_session *s;
    uint8_t digest[32];
    int chosen = 0, code;
    if (session == NULL) return tfi_fail(error, TFM_USAGE, "there is no place for the session: NULL was given");
    *session = NULL;
    if (options == NULL) options = &defaults;
    if (options->threads < 0 || options->threads > 1024)
        return tfi_fail(error, TFM_USAGE, "threads is %d; it is a number from 1 to 1024, or 0", options->threads);
    code = tfi_choose(options->target, &chosen, error);
    if (code != TFM_OK) return code;
    s = calloc(1, sizeof *s);
    if (s == NULL) return tfi_fail(error, TFM_OUT_OF_MEMORY, "there is no memory for a session");
    s->variant = &tfi_variants[chosen];
    s->threads = options->threads ? options->threads : tfi_cpus();
    if (s->threads > 1024) s->threads = 1024;
    s->process = getpid();
    code = tfi_map(s, options, error);
    if (code == TFM_OK && options->check_weights) {
        tfi_digest(s->weights, TFI_WEIGHTS_BYTES, digest);
        if (memcmp(digest, tfi_weights_digest, sizeof digest) != 0)
            code = tfi_fail(error, TFM_ARTIFACT_CORRUPT, "the bytes of the weights have changed since they were written");
    }
    if (code == TFM_OK) {
        s->all = s->variant->create(s->threads);
        s->alone = s->threads == 1 ? s->all : s->variant->create(1);
        if (s->all == NULL || s->alone == NULL || pthread_mutex_init(&s->turn, NULL) != 0)
            code = tfi_fail(error, TFM_OUT_OF_MEMORY, "%d threads could not be started", s->threads);
        else
            s->variant->patience(s->all, options->spin_us < 0 ? 0 : (int64_t)(options->spin_us ? options->spin_us : 100) * 1000);
    }
    if (code != TFM_OK) {
        tfi_release(s);
        return code;
    }
    *session = s;
    return tfi_ok(error);
}

TFI_EXPORT void tfm_destroy(tfm_session *session) {
    if (session == NULL) return;
    if (session->process == getpid()) pthread_mutex_destroy(&session->turn);
    tfi_release(session);
}

TFI_EXPORT int tfm_threads(const tfm_session *session) { return session == NULL ? 0 : session->threads; }

TFI_EXPORT const char *tfm_target(const tfm_session *session) { return session == NULL ? "" : session->variant->name; }

/* -- running ----------------------------------------------------------------------------------------------------------------------- */

typedef struct { /* what one call needs, computed before its turn */
    const void *inputs[TFI_INPUTS + 1];
    void *outputs[TFI_OUTPUTS + 1];
    size_t input_bytes[TFI_INPUTS + 1];
    uint64_t spare_inputs[TFI_INPUTS + 1], spare_outputs[TFI_OUTPUTS + 1]; /* 1 + where in the spare block; 0: not there */
    uint64_t spare, arena, stride;
    int64_t dims[TFI_SYMBOLS + 1];
    int alone;
} tfi_call;

static int tfi_overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return a_bytes > 0 && b_bytes > 0 && x < y + b_bytes && y < x + a_bytes;
}

/* The inputs as they are passed: their bytes where they lie, or a place in the spare block. */
static int tfi_take_inputs(int function, const tfm_input *inputs, const tfi_dims *dims, tfi_call *call, tfm_error *error) {
    int n, code;
    for (n = 0; n < tfi_model[function].input_count; n++) {
        const tfm_port *port = tfi_input_port(function, n);
        int64_t shape[TFM_MAX_RANK];
        code = tfi_shape(port, tfi_input_axis(function, n, 0), dims, shape, &call->input_bytes[n], error);
        if (code != TFM_OK) return code;
        call->inputs[n] = inputs[n].data;
        if (tfi_left_out(port, &inputs[n], 1)) {
            call->spare_inputs[n] = 1 + call->spare;
            call->spare += tfi_aligned(call->input_bytes[n]);
        } else if (inputs[n].data == NULL && call->input_bytes[n] > 0)
            return tfi_fail(error, TFM_INPUT_COUNT, "input '%s' is missing: its data is NULL", port->name);
        else if ((uintptr_t)inputs[n].data % tfi_item_bytes[port->dtype] != 0)
            return tfi_fail(error, TFM_USAGE, "input '%s' is not aligned to its elements of %d bytes", port->name, (int)tfi_item_bytes[port->dtype]);
    }
    return TFM_OK;
}

static int tfi_take_outputs(int function, const tfm_input *inputs, tfm_output *outputs, tfi_call *call, tfm_error *error) {
    int n, m;
    for (n = 0; n < tfi_model[function].output_count; n++) {
        const tfm_port *port = &tfi_outputs[tfi_functions[function].outputs + n];
        call->outputs[n] = outputs[n].data;
        if (outputs[n].data == NULL) {
            call->spare_outputs[n] = 1 + call->spare;
            call->spare += tfi_aligned(outputs[n].bytes);
            continue;
        }
        if (outputs[n].capacity < outputs[n].bytes)
            return tfi_fail(error, TFM_OUTPUT_SIZE, "output '%s' takes %llu bytes; there is room for %llu", port->name,
                            (unsigned long long)outputs[n].bytes, (unsigned long long)outputs[n].capacity);
        if ((uintptr_t)outputs[n].data % tfi_item_bytes[port->dtype] != 0)
            return tfi_fail(error, TFM_USAGE, "output '%s' is not aligned to its elements of %d bytes", port->name, (int)tfi_item_bytes[port->dtype]);
        for (m = 0; m < tfi_model[function].input_count; m++)
            if (!call->spare_inputs[m] && tfi_overlap(outputs[n].data, outputs[n].bytes, inputs[m].data, call->input_bytes[m]))
                return tfi_fail(error, TFM_USAGE, "output '%s' overlaps input '%s'", port->name, tfi_input_port(function, m)->name);
        for (m = 0; m < n; m++)
            if (outputs[m].data != NULL && tfi_overlap(outputs[n].data, outputs[n].bytes, outputs[m].data, outputs[m].bytes))
                return tfi_fail(error, TFM_USAGE, "output '%s' overlaps output '%s'", port->name, tfi_outputs[tfi_functions[function].outputs + m].name);
    }
    return TFM_OK;
}

static int tfi_index_error(const tfi_variant *variant, int64_t site, int64_t index, const tfi_dims *dims, tfm_error *error) {
    const tfi_site *s;
    char bound[128] = "";
    int64_t value;
    if (site < 1 || site > variant->site_count) return tfi_fail(error, TFM_INDEX_OUT_OF_RANGE, "an index is out of range: %lld", (long long)index);
    s = &variant->sites[site - 1];
    if (s->bound >= 0 && tfi_evaluate(s->bound, dims, &value) == TFI_VALUE) snprintf(bound, sizeof bound, " = %lld", (long long)value);
    return tfi_fail(error, TFM_INDEX_OUT_OF_RANGE, "%s is %lld, out of range of a size of %s%s%s%s", s->text, (long long)index, s->bound_text, bound,
                    s->place[0] ? ", at " : "", s->place);
}

/* The pools, the arena and what is left out, while it is this call's turn. */
static int tfi_execute(tfm_session *session, int function, const tfi_code *code, tfi_call *call, const tfi_dims *dims, tfm_error *error) {
    struct tfir_call native;
    int64_t status[2] = {0, 0};
    const tfm_function *f = &tfi_model[function];
    int n, failed = tfi_grow(&session->arena, call->arena, "the arena", error);
    if (failed == TFM_OK)
        failed = tfi_grow(&session->scratch, call->stride * (uint64_t)(call->alone ? 1 : session->threads), "the scratch space", error);
    if (failed == TFM_OK) failed = tfi_grow(&session->spare, call->spare, "what is left out", error);
    if (failed != TFM_OK) return failed;
    for (n = 0; n < f->input_count; n++)
        if (call->spare_inputs[n]) {
            const tfm_port *port = tfi_input_port(function, n);
            size_t item = tfi_item_bytes[port->dtype], at;
            uint8_t *fill = session->spare.data + call->spare_inputs[n] - 1;
            for (at = 0; at < call->input_bytes[n]; at += item) memcpy(fill + at, tfi_input_details[tfi_functions[function].inputs + n].fill, item);
            call->inputs[n] = fill;
        }
    for (n = 0; n < f->output_count; n++)
        if (call->spare_outputs[n]) call->outputs[n] = session->spare.data + call->spare_outputs[n] - 1;
    native.dims = call->dims;
    native.inputs = call->inputs;
    native.outputs = call->outputs;
    native.weights = session->weights;
    native.arena = session->arena.data;
    native.status = status;
    native.profile = NULL;
    session->variant->run(call->alone ? session->alone : session->all, code->code, &native, session->scratch.data, (int64_t)call->stride);
    return status[0] ? tfi_index_error(session->variant, status[0], status[1], dims, error) : TFM_OK;
}

TFI_EXPORT int tfm_run(tfm_session *session, int function, const tfm_input *inputs, int input_count, tfm_output *outputs, int output_count,
                       tfm_error *error) {
    tfi_dims dims;
    tfi_call call;
    const tfi_code *own;
    int64_t arena, scratch, flops, bytes;
    int s, code;
    if (session == NULL) return tfi_fail(error, TFM_USAGE, "the session is NULL");
    if (session->process != getpid())
        return tfi_fail(error, TFM_USAGE, "the session belongs to the parent of this process; after fork() a child creates its own");
    code = tfi_check_call(function, inputs, input_count, outputs, output_count, error);
    if (code == TFM_OK) code = tfi_bind(function, inputs, 1, &dims, error);
    if (code != TFM_OK) return code;
    memset(&call, 0, sizeof call);
    tfi_complete(&dims);
    own = &session->variant->codes[function];
    code = tfi_output_shapes(function, &dims, outputs, error);
    if (code == TFM_OK) code = tfi_take_inputs(function, inputs, &dims, &call, error);
    if (code == TFM_OK) code = tfi_take_outputs(function, inputs, outputs, &call, error);
    if (code == TFM_OK) code = tfi_size(own->arena, &dims, "the size of the arena", &arena, error);
    if (code == TFM_OK) code = tfi_size(own->scratch, &dims, "the size of the scratch space", &scratch, error);
    if (code != TFM_OK) return code;
    if ((uint64_t)scratch > tfi_memory()) return tfi_fail(error, TFM_OUT_OF_MEMORY, "the scratch space needs %lld bytes", (long long)scratch);
    call.arena = (uint64_t)arena;
    call.stride = tfi_aligned((uint64_t)scratch);
    for (s = 0; s < TFI_SYMBOLS; s++) call.dims[s] = dims.known[s] ? dims.value[s] : tfi_symbols[s].low;
    /* So little work is done by the calling thread before another one would be awake. */
    call.alone = tfi_evaluate(own->flops, &dims, &flops) == TFI_VALUE && tfi_evaluate(own->bytes, &dims, &bytes) == TFI_VALUE &&
                 flops < TFI_ALONE_BELOW && bytes < TFI_ALONE_BELOW;
    pthread_mutex_lock(&session->turn);
    code = tfi_execute(session, function, own, &call, &dims, error);
    pthread_mutex_unlock(&session->turn);
    return code == TFM_OK ? tfi_ok(error) : code;
}

#include "typed.h"
