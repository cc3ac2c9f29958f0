/* word: a network of 43 parameters

   Compiled by bpnet 0.1.0 for x86_64-unknown-linux-gnu with avx avx2 avx512bw avx512cd avx512dq avx512f avx512vl bmi
   bmi2 cx16 f16c fma lzcnt movbe popcnt prfchw sahf sse3 sse4.1 sse4.2 ssse3.
   Functions may be called by any number of threads at once: they have no state, and start no threads. */
#ifndef WORD_H
#define WORD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WORD_VERSION "0.1.0"
#define WORD_HASH "48db993437bec1e196bdda20e929869361d5144fb2597c9c3fb65073e658a4b7"
#define WORD_INPUTS 4
#define WORD_OUTPUTS 3
#define WORD_PROBABILITIES 3
#define WORD_LABELS 1

/* The same in the object: the two belong together where word_hash is WORD_HASH. */
extern const char word_version[6];
extern const char word_hash[65];
extern const int64_t word_inputs;
extern const int64_t word_outputs;
extern const int64_t word_probabilities;
extern const int64_t word_labels;

/* What functions return. */
enum {
    WORD_OK = 0,
    WORD_BAD_ARGUMENT = 1, /* a null pointer, or rows below 0; y is as it was */
    WORD_NO_MEMORY = 2, /* y is as it was */
    WORD_NO_PROCESSOR = 3, /* this processor lacks instructions that the code has; y is as it was */
    WORD_BAD_INPUT = 4, /* NaN or infinity in x; all rows without are right */
    WORD_BAD_OUTPUT = 5 /* a result is not a number, of a row that is sound; all other rows are right */
};

/* Whether this processor has all instructions that the code has. */
int32_t word_supported(void);

/* Bytes of a workspace for so many rows, which may begin at any address and is for one call at a time.  More than
   2 rows need no more than these. */
int64_t word_workspace_bytes(int64_t rows);

/* y[rows * WORD_OUTPUTS] <- the network's outputs, from x[rows * 4]; y is no part of what is read. */
int word_predict(const float *x, int64_t rows, float *y);
int word_predict_in(const float *x, int64_t rows, float *y, void *workspace);

/* y[rows * WORD_PROBABILITIES] <- probabilities, from x[rows * 4]; y is no part of what is read. */
int word_predict_proba(const float *x, int64_t rows, float *y);
int word_predict_proba_in(const float *x, int64_t rows, float *y, void *workspace);

/* y[rows * WORD_LABELS] <- the number of the class, from x[rows * 4]; y is no part of what is read. */
int word_predict_class(const float *x, int64_t rows, int32_t *y);
int word_predict_class_in(const float *x, int64_t rows, int32_t *y, void *workspace);

#ifdef __cplusplus
}
#endif

#endif /* WORD_H */
