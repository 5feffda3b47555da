/* Sentence embeddings of MiniLM from C: no Python at run time.
 *
 *     make                                                  (once: compiles the model with tfc, and this file with cc)
 *     ./minilm --vocab vocab.txt "A cat sleeps." "A kitten naps." "Stocks fell."
 *     ./minilm --ids "101 1037 4937 25126 1012 102" ...     token ids instead of text
 *
 * Prints the first numbers of each embedding (the mean of the states of its tokens, scaled to length 1: that is part of the model) and the
 * cosine similarities. --threads N, --target T, --weights FILE and --check go to the library; --raw FILE receives the bytes of all outputs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "minilm.h"
#include "wordpiece.h"

#define MAX_TOKENS 512 /* the positions that MiniLM has */

static void fail(const char *what) {
    fprintf(stderr, "minilm: %s\n", what);
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size);
    if (p == NULL) fail("out of memory");
    return p;
}

/* The numbers of a text; gives how many there are. */
static size_t read_ids(const char *text, int64_t *ids, size_t room) {
    size_t n = 0;
    char *end;
    for (;;) {
        long long id = strtoll(text, &end, 10);
        if (end == text) break;
        if (n == room) fail("more token ids than the model has positions");
        ids[n++] = id;
        text = end;
    }
    if (text[strspn(text, " \t\r\n")] != 0 || n == 0) fail("token ids are whole numbers with blanks between");
    return n;
}

static double dot(const float *a, const float *b, size_t n) {
    double sum = 0;
    size_t i;
    for (i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static void print(const float *embeddings, size_t batch, size_t width, int count, char **texts) {
    size_t i, j;
    for (i = 0; i < batch; i++) {
        const float *e = embeddings + i * width;
        printf("%2d  [%.6f, %.6f, %.6f, ...]  %s\n", (int)i, e[0], e[1], e[2], (int)i < count ? texts[i] : "");
    }
    printf("\ncosine similarity\n");
    for (i = 0; i < batch; i++) {
        printf("%2d", (int)i);
        for (j = 0; j <= i; j++) printf("  %6.3f", dot(embeddings + i * width, embeddings + j * width, width));
        printf("\n");
    }
}

static void save(const char *path, const minilm_main_outputs *outputs, size_t rows, size_t batch, size_t width) {
    FILE *file = fopen(path, "wb");
    if (file == NULL) fail("cannot write the raw outputs");
    fwrite(outputs->last_hidden_state, sizeof(float), rows * width, file);
    fwrite(outputs->pooler_output, sizeof(float), batch * width, file);
    fwrite(outputs->sentence_embedding, sizeof(float), batch * width, file);
    if (fclose(file) != 0) fail("cannot write the raw outputs");
}

int main(int argc, char **argv) {
    minilm_options options = {0, 0, 0, NULL, NULL};
    minilm_session *session;
    minilm_error error;
    minilm_sizes sizes = {0, 0};
    minilm_main_inputs inputs = {NULL, NULL, NULL};
    minilm_main_outputs outputs = {NULL, NULL, NULL};
    minilm_main_shapes shapes;
    const char *vocabulary = NULL, *raw = NULL;
    int64_t *tokens, *ids, *mask;
    size_t *lengths, rows, width, batch, i;
    int at, as_ids = 0;
    wordpiece *words = NULL;

    for (at = 1; at < argc && strncmp(argv[at], "--", 2) == 0; at++) {
        const char *value = at + 1 < argc ? argv[at + 1] : NULL;
        if (strcmp(argv[at], "--ids") == 0) as_ids = 1;
        else if (strcmp(argv[at], "--check") == 0) options.check_weights = 1;
        else if (value == NULL) fail("an option lacks its value");
        else if (strcmp(argv[at], "--threads") == 0) options.threads = atoi(argv[++at]);
        else if (strcmp(argv[at], "--target") == 0) options.target = argv[++at];
        else if (strcmp(argv[at], "--weights") == 0) options.weights = argv[++at];
        else if (strcmp(argv[at], "--vocab") == 0) vocabulary = argv[++at];
        else if (strcmp(argv[at], "--raw") == 0) raw = argv[++at];
        else fail("the options are --ids --vocab --threads --target --weights --check --raw");
    }
    batch = (size_t)(argc - at);
    if (batch == 0 || as_ids == (vocabulary != NULL)) fail("give texts and --vocab vocab.txt, or lists of numbers and --ids");
    if (vocabulary != NULL && (words = wordpiece_open(vocabulary)) == NULL) fail("cannot read the vocabulary");

    /* A row of tokens per text. */
    tokens = allocate(batch * MAX_TOKENS, sizeof *tokens);
    lengths = allocate(batch, sizeof *lengths);
    for (i = 0; i < batch; i++) {
        int64_t *row = tokens + i * MAX_TOKENS;
        const char *text = argv[at + (int)i];
        lengths[i] = as_ids ? read_ids(text, row, MAX_TOKENS) : wordpiece_encode(words, text, row, MAX_TOKENS);
        if (lengths[i] > MAX_TOKENS) fail("a text has more tokens than the model has positions");
        if ((int64_t)lengths[i] > sizes.seq) sizes.seq = (int64_t)lengths[i];
    }
    wordpiece_close(words);

    /* All rows as long as the longest; the mask says which tokens are real. Padding changes no bit of what belongs to them. */
    sizes.batch = (int64_t)batch;
    rows = batch * (size_t)sizes.seq;
    ids = allocate(rows, sizeof *ids);
    mask = allocate(rows, sizeof *mask);
    for (i = 0; i < batch; i++) {
        size_t t;
        for (t = 0; t < lengths[i]; t++) {
            ids[i * (size_t)sizes.seq + t] = tokens[i * MAX_TOKENS + t];
            mask[i * (size_t)sizes.seq + t] = 1;
        }
    }

    if (minilm_create(&options, &session, &error) != MINILM_OK) fail(error.message);
    if (minilm_main_infer(&sizes, &shapes, &error) != MINILM_OK) fail(error.message);
    width = (size_t)shapes.sentence_embedding[1];
    inputs.input_ids = ids;
    inputs.attention_mask = mask; /* the types of the tokens are left out: all zero */
    outputs.sentence_embedding = allocate(batch * width, sizeof(float));
    if (raw != NULL) { /* what is NULL is not wanted */
        outputs.last_hidden_state = allocate(rows * width, sizeof(float));
        outputs.pooler_output = allocate(batch * width, sizeof(float));
    }
    if (minilm_main(session, &sizes, &inputs, &outputs, &error) != MINILM_OK) fail(error.message);
    printf("%d texts, %d tokens each; %d threads, %s\n\n", (int)batch, (int)sizes.seq, minilm_threads(session), minilm_target(session));
    print(outputs.sentence_embedding, batch, width, as_ids ? 0 : argc - at, argv + at);
    if (raw != NULL) save(raw, &outputs, rows, batch, width);

    minilm_destroy(session);
    free(outputs.sentence_embedding);
    free(outputs.last_hidden_state);
    free(outputs.pooler_output);
    free(ids);
    free(mask);
    free(tokens);
    free(lengths);
    return 0;
}
