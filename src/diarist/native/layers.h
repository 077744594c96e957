/* What layers are made of: norms and products of rows that stay in a processor's cache. */
#pragma once
#include <math.h>

#include "product.h"

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct { /* memory for rows that are made 8-bit, and their scales */
    Step *steps;
    float *scales;
} Quantised;

static void normalise(const Norm *norm, const float *x, float *y, int64_t rows, int64_t state) {
    for (int64_t row = 0; row < rows; row++, x += state, y += state) {
        Floats sum = same(0.0f), squares = same(0.0f);
        for (int64_t i = 0; i < state; i += WIDE) sum = plus(sum, get(x + i));
        Floats mean = same(sum_of(sum) / (float)state);
        for (int64_t i = 0; i < state; i += WIDE) {
            Floats difference = minus(get(x + i), mean);
            squares = plus_product(squares, difference, difference);
        }
        Floats factor = same(1.0f / sqrtf(sum_of(squares) / (float)state + 1e-5f));
        for (int64_t i = 0; i < state; i += WIDE) {
            Floats scaled = times(minus(get(x + i), mean), factor);
            put(y + i, plus_product(get(norm->bias + i), scaled, get(norm->weight + i)));
        }
    }
}

typedef enum { SET, SET_GELU, ADD } Way;

static void product(const Product *p, const float *x, int64_t rows, float *y, Way way, Quantised memory) {
    quantise(x, rows, p->inputs, memory.steps, memory.scales);
    Result result = {y, p->outputs, way == ADD ? y : NULL, way == SET_GELU};
    multiply(p, memory.steps, memory.scales, rows, 0, p->outputs, result);
}
