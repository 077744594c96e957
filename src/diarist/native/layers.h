/* What layers are made of: norms and products of rows that stay in a processor's cache. */
#pragma once
#include <math.h>

#include "product.h"

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct { /* memory for rows that are made 8-bit, and their scales */
    uint8_t *bytes;
    float *scales;
} Quantised;

static void normalise(const Norm *norm, const float *x, float *y, int64_t rows, int64_t state) {
    for (int64_t row = 0; row < rows; row++, x += state, y += state) {
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < state; i += WIDE) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)state);
        for (int64_t i = 0; i < state; i += WIDE) {
            __m512 difference = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
            squares = _mm512_fmadd_ps(difference, difference, squares);
        }
        __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)state + 1e-5f));
        for (int64_t i = 0; i < state; i += WIDE) {
            __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), factor);
            _mm512_storeu_ps(y + i, _mm512_fmadd_ps(scaled, _mm512_loadu_ps(norm->weight + i), _mm512_loadu_ps(norm->bias + i)));
        }
    }
}

typedef enum { SET, SET_GELU, ADD } Way;

static void product(const Product *p, const float *x, int64_t rows, float *y, Way way, Quantised memory) {
    quantise(x, rows, p->inputs, memory.bytes, memory.scales);
    Result result = {y, p->outputs, way == ADD ? y : NULL, way == SET_GELU};
    multiply(p, memory.bytes, memory.scales, rows, 0, p->outputs, result);
}
