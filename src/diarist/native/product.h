/* Products of rows of floats with an 8-bit matrix.

A row is made 8-bit with a scale of its own, so what comes of it does not depend on its company. Four inputs of 16
outputs are multiplied by one instruction (VNNI); it takes the row's side unsigned, so 128 is added to it and what that
adds to the sums is taken off again. Sums are exact, and every row is scaled alike however many there are. */
#pragma once
#include "vector.h"

#define GROUP 64 /* outputs that are computed side by side; matrices are filled up to a multiple of it */

typedef struct {
    const int8_t *weight; /* [outputs / GROUP][inputs / 4][GROUP][4]: read from one end to the other */
    const float *scale;   /* of each output */
    const float *bias;
    const int32_t *offset; /* 128 times the sum of each output's weights */
    int64_t inputs;        /* a multiple of 4 */
    int64_t outputs;
} Product;

typedef struct { /* what is made of sums */
    float *y;
    int64_t stride;
    const float *added; /* NULL, or laid out as y, which it may be */
    int gelu;
} Result;

/* Rows as 8-bit numbers above 128, and the scale of each. */
static void quantise(const float *x, int64_t rows, int64_t inputs, uint8_t *quantised, float *scales) {
    for (int64_t row = 0; row < rows; row++, x += inputs, quantised += inputs) {
        __m512 most = _mm512_setzero_ps();
        for (int64_t i = 0; i < inputs; i += WIDE) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
        float loudest = _mm512_reduce_max_ps(most);
        __m512 factor = _mm512_set1_ps(loudest > 0 ? 127.0f / loudest : 0.0f);
        scales[row] = loudest / 127.0f;
        for (int64_t i = 0; i < inputs; i += WIDE) {
            __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
            _mm_storeu_si128((__m128i *)(quantised + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(steps, _mm512_set1_epi32(128))));
        }
    }
}

#define BLOCKS (GROUP / WIDE)
#define MOST_ROWS 4 /* at once: more sums than registers otherwise */

/* A few rows times a group of outputs; the sums stay in registers, so all loops over them are unrolled. */
ALWAYS void tile(const Product *p, const uint8_t *x, const float *scales, int64_t output, const Result *result,
                 int64_t first_row, const int rows) {
    __m512i total[MOST_ROWS][BLOCKS];
    const int8_t *weight = p->weight + output * p->inputs;
    UNROLLED
    for (int row = 0; row < rows; row++) {
        UNROLLED
        for (int block = 0; block < BLOCKS; block++) total[row][block] = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < p->inputs; i += 4) {
        __m512i four[BLOCKS];
        UNROLLED
        for (int block = 0; block < BLOCKS; block++) four[block] = _mm512_loadu_si512(weight + GROUP * i + 4 * WIDE * block);
        UNROLLED
        for (int row = 0; row < rows; row++) {
            int32_t inputs;
            __builtin_memcpy(&inputs, x + row * p->inputs + i, sizeof inputs);
            UNROLLED
            for (int block = 0; block < BLOCKS; block++)
                total[row][block] = _mm512_dpbusd_epi32(total[row][block], _mm512_set1_epi32(inputs), four[block]);
        }
    }
    UNROLLED
    for (int block = 0; block < BLOCKS; block++) {
        int64_t at = output + WIDE * block;
        if (at >= p->outputs) return;
        __mmask16 kept = up_to(p->outputs - at);
        __m512 scale = _mm512_loadu_ps(p->scale + at), bias = _mm512_loadu_ps(p->bias + at);
        __m512i offset = _mm512_loadu_si512(p->offset + at);
        UNROLLED
        for (int row = 0; row < rows; row++) {
            int64_t place = (first_row + row) * result->stride + at;
            __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(total[row][block], offset));
            value = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, _mm512_set1_ps(scales[row])), bias);
            if (result->gelu) value = gelu(value);
            if (result->added) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(kept, result->added + place));
            _mm512_mask_storeu_ps(result->y + place, kept, value);
        }
    }
}

/* Outputs from `first` (a multiple of GROUP) to `last` of quantised rows. */
static void multiply(const Product *p, const uint8_t *x, const float *scales, int64_t rows, int64_t first, int64_t last,
                     Result result) {
    for (int64_t output = first; output < last; output += GROUP) {
        int64_t row = 0;
        for (; rows - row >= MOST_ROWS; row += MOST_ROWS) tile(p, x + row * p->inputs, scales + row, output, &result, row, MOST_ROWS);
        for (; rows - row >= 2; row += 2) tile(p, x + row * p->inputs, scales + row, output, &result, row, 2);
        if (row < rows) tile(p, x + row * p->inputs, scales + row, output, &result, row, 1);
    }
}
