/* Uses a library (the encoder of runtime_harness.py) rightly and wrongly, for tools that watch memory: exits with 0 when every answer is as it
 * should be. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoder.h"

static int wrong = 0;

static void expect(int line, int code, int expected, const encoder_error *error) {
    if (code == expected && error->code == code && (code == ENCODER_OK) == (error->message[0] == 0)) return;
    fprintf(stderr, "line %d: %d, not %d: %s\n", line, code, expected, error->message);
    wrong = 1;
}
#define EXPECT(call, code) expect(__LINE__, (call), (code), &error)

static void use(encoder_session *session) {
    static const int64_t shapes[][2] = {{1, 1}, {2, 5}, {64, 128}, {3, 7}};
    encoder_error error;
    size_t i, n;
    for (i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        encoder_sizes sizes;
        encoder_main_shapes out_shapes;
        encoder_main_inputs in;
        encoder_main_outputs out;
        size_t tokens = (size_t)(shapes[i][0] * shapes[i][1]);
        int64_t *ids = malloc(tokens * sizeof *ids);
        float scale = 0.25f, *all, *pooled;
        sizes.batch = shapes[i][0];
        sizes.seq = shapes[i][1];
        for (n = 0; n < tokens; n++) ids[n] = (int64_t)(n % 50);
        EXPECT(encoder_main_infer(&sizes, &out_shapes, &error), ENCODER_OK);
        all = malloc(tokens * (size_t)out_shapes.probabilities[2] * sizeof *all); /* exactly as much as is needed */
        pooled = malloc((size_t)(out_shapes.pooled[0] * out_shapes.pooled[1]) * sizeof *pooled);
        in.ids = ids;
        in.scale = &scale;
        out.probabilities = all;
        out.pooled = pooled;
        EXPECT(encoder_main(session, &sizes, &in, &out, &error), ENCODER_OK);
        ids[tokens - 1] = 50;
        EXPECT(encoder_main(session, &sizes, &in, &out, &error), ENCODER_INDEX_OUT_OF_RANGE);
        ids[tokens - 1] = INT64_MIN;
        EXPECT(encoder_main(session, &sizes, &in, &out, &error), ENCODER_INDEX_OUT_OF_RANGE);
        in.scale = NULL;
        EXPECT(encoder_main(session, &sizes, &in, &out, &error), ENCODER_INPUT_COUNT);
        in.scale = &scale;
        ids[tokens - 1] = 0;
        out.probabilities = NULL;
        EXPECT(encoder_main(session, &sizes, &in, &out, &error), ENCODER_OK);
        out.pooled = NULL;
        EXPECT(encoder_main(session, &sizes, &in, &out, &error), ENCODER_OK);
        sizes.batch = -1;
        EXPECT(encoder_main(session, &sizes, &in, &out, &error), ENCODER_DIM_RANGE);
        sizes.batch = INT64_MAX;
        EXPECT(encoder_main_infer(&sizes, &out_shapes, &error), ENCODER_DIM_RANGE);
        free(ids);
        free(all);
        free(pooled);
    }
    EXPECT(encoder_main(session, NULL, NULL, NULL, &error), ENCODER_USAGE);
    EXPECT(encoder_main_infer(NULL, NULL, &error), ENCODER_USAGE);
}

static void shapes_of_anything(void) {
    encoder_input in[2];
    encoder_output out[2];
    encoder_error error;
    unsigned seed = 1;
    int i, right = 0;
    for (i = 0; i < 20000; i++) {
        int n, axis, code;
        for (n = 0; n < 2; n++) {
            in[n].data = NULL;
            in[n].dtype = n == 0 ? ENCODER_I64 : ENCODER_F32;
            in[n].rank = n == 0 ? 2 : 0;
            for (axis = 0; axis < ENCODER_MAX_RANK; axis++) {
                seed = seed * 1664525u + 1013904223u;
                in[n].shape[axis] = seed >> 28 == 0 ? (int64_t)((uint64_t)seed << 33) : (int64_t)(seed >> 24 & 127);
            }
            if (seed % 16 == 0) in[n].dtype = (int)seed;
            if (seed % 17 == 0) in[n].rank = (int)(seed * 3);
        }
        code = encoder_infer(0, in, 2, out, 2, &error);
        right += code == ENCODER_OK;
        if (code == ENCODER_OK && out[0].shape[0] != in[0].shape[0]) wrong = 1;
        if (strlen(error.message) >= sizeof error.message) wrong = 1;
    }
    if (right < 1000 || right > 19000) wrong = 1;
}

int main(int argc, char **argv) {
    encoder_options options = {0, 0, 0, NULL, NULL};
    encoder_session *session, *other;
    encoder_error error;
    int threads;
    for (threads = 1; threads <= 3; threads++) {
        options.threads = threads;
        options.spin_us = 100 * (threads - 2);
        options.check_weights = threads == 2;
        EXPECT(encoder_create(&options, &session, &error), ENCODER_OK);
        EXPECT(encoder_create(&options, &other, &error), ENCODER_OK);
        use(session);
        encoder_destroy(session);
        use(other);
        encoder_destroy(other);
    }
    options.weights = argc > 1 ? argv[1] : "absent";
    EXPECT(encoder_create(&options, &session, &error), argc > 1 ? ENCODER_ARTIFACT_TRUNCATED : ENCODER_FILE_NOT_FOUND);
    options.target = "none";
    EXPECT(encoder_create(&options, &session, &error), ENCODER_USAGE);
    encoder_destroy(session);
    EXPECT(encoder_create(NULL, NULL, &error), ENCODER_USAGE);
    shapes_of_anything();
    return wrong;
}
