/* A program that predicts by a compiled model: `predict FILE` reads rows of x from FILE, and writes what each function
   gives for them to FILE.y, FILE.p and FILE.c.  Any fault ends it with the number of the line. */
#define _DEFAULT_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "model.h"
#include "model.h" /* twice does no harm */

#define MOST 1000
#define CHECK(right) do { if (!(right)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #right); exit(1); } } while (0)

static float *x, *y, *p;
static int32_t *c;

/* Memory that ends where none may be read or written. */
static void *guarded(size_t size) {
    const size_t page = 65536, all = (size + page - 1) / page * page;
    char *memory = mmap(NULL, all + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && mprotect(memory + all, page, PROT_NONE) == 0);
    return memory + all - size;
}

static void put(const char *name, char kind, const void *values, size_t size) {
    char path[4096];
    FILE *file;
    sprintf(path, "%s.%c", name, kind);
    file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(values, 1, size, file) == size && fclose(file) == 0);
}

/* Other numbers of rows give the same bits, whether they take memory or are given it. */
static void *other_rows(void *workspace) {
    static const int64_t counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 100, 257, MOST};
    float *own = malloc(MOST * MODEL_OUTPUTS * sizeof *own);
    int32_t *classes = malloc(MOST * sizeof *classes);
    size_t i, turn;
    for (turn = 0; turn < 4; ++turn) {
        for (i = 0; i < sizeof counts / sizeof *counts; ++i) {
            const int64_t rows = counts[i], first = (int64_t)turn * 137 % (MOST - rows + 1);
            const float *from = x + first * MODEL_INPUTS;
            memset(own, 255, MOST * MODEL_OUTPUTS * sizeof *own);
            if (workspace == NULL) CHECK(model_predict(from, rows, own) == MODEL_OK);
            else CHECK(model_predict_in(from, rows, own, workspace) == MODEL_OK);
            CHECK(memcmp(own, y + first * MODEL_OUTPUTS, rows * MODEL_OUTPUTS * sizeof *own) == 0);
            CHECK(rows == MOST || own[rows * MODEL_OUTPUTS] != own[rows * MODEL_OUTPUTS]); /* as it was */
            CHECK(model_predict_class(from, rows, classes) == MODEL_OK);
            CHECK(memcmp(classes, c + first, rows * sizeof *classes) == 0);
        }
    }
    free(classes);
    free(own);
    return NULL;
}

static void eight_threads(void) {
    pthread_t threads[8];
    int i;
    for (i = 0; i < 8; ++i) CHECK(pthread_create(threads + i, NULL, other_rows, NULL) == 0);
    for (i = 0; i < 8; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
}

static void what_is_wrong(void) {
    float good[2 * MODEL_OUTPUTS], bad[2 * MODEL_OUTPUTS], rows[2 * MODEL_INPUTS];
    int32_t classes[2];
    int i;
    memcpy(rows, x, sizeof rows);
    CHECK(model_predict(rows, 2, good) == MODEL_OK);
    CHECK(model_predict(NULL, 2, bad) == MODEL_BAD_ARGUMENT && model_predict(rows, 2, NULL) == MODEL_BAD_ARGUMENT);
    CHECK(model_predict(rows, -1, bad) == MODEL_BAD_ARGUMENT);
    CHECK(model_predict_in(rows, 2, bad, NULL) == MODEL_BAD_ARGUMENT);
    CHECK(model_predict(NULL, 0, NULL) == MODEL_OK);
    for (i = 0; i < 3; ++i) {
        rows[MODEL_INPUTS - 1] = i == 0 ? NAN : i == 1 ? INFINITY : -INFINITY;
        CHECK(model_predict(rows, 2, bad) == MODEL_BAD_INPUT);
        CHECK(memcmp(bad + MODEL_OUTPUTS, good + MODEL_OUTPUTS, sizeof good / 2) == 0);
    }
    for (i = 0; i < MODEL_INPUTS; ++i) rows[i] = i % 2 ? -3e38f : 3e38f; /* finite, but no product of it is */
    CHECK(model_predict(rows, 2, bad) == MODEL_BAD_OUTPUT && memcmp(bad + MODEL_OUTPUTS, good + MODEL_OUTPUTS, sizeof good / 2) == 0);
    CHECK(model_predict_class(rows, 2, classes) == MODEL_BAD_OUTPUT && classes[0] == -1 && classes[1] == c[1]);
}

int main(int count, char **arguments) {
    FILE *file;
    char *workspace;
    CHECK(count == 2 && model_supported());
    CHECK(strcmp(model_version, MODEL_VERSION) == 0 && strcmp(model_hash, MODEL_HASH) == 0);
    CHECK(model_inputs == MODEL_INPUTS && model_outputs == MODEL_OUTPUTS && model_labels == 1);
    CHECK(strcmp(model_class_names[MODEL_CLASSES - 1], "\xc3\xa9t\xc3\xa9 \"?" "?/\\") == 0);
    x = guarded(MOST * MODEL_INPUTS * sizeof *x);
    y = guarded(MOST * MODEL_OUTPUTS * sizeof *y);
    p = guarded(MOST * MODEL_PROBABILITIES * sizeof *p);
    c = guarded(MOST * sizeof *c);
    workspace = guarded((size_t)model_workspace_bytes(MOST) + 1);
    file = fopen(arguments[1], "rb");
    CHECK(file != NULL && fread(x, sizeof *x, MOST * MODEL_INPUTS, file) == MOST * MODEL_INPUTS && fclose(file) == 0);
    CHECK(model_predict(x, MOST, y) == MODEL_OK);
    CHECK(model_predict_proba(x, MOST, p) == MODEL_OK);
    CHECK(model_predict_class(x, MOST, c) == MODEL_OK);
    other_rows(workspace + 1);
    what_is_wrong();
    eight_threads();
    put(arguments[1], 'y', y, MOST * MODEL_OUTPUTS * sizeof *y);
    put(arguments[1], 'p', p, MOST * MODEL_PROBABILITIES * sizeof *p);
    put(arguments[1], 'c', c, MOST * sizeof *c);
    return 0;
}
