/* Products of rows of floats with an 8-bit matrix.

A row is made 8-bit with a scale of its own, so what comes of it does not depend on its company. 128 is added to its
numbers, because instructions that multiply 8 bits take one side unsigned, and what that adds to the sums is taken off
again. Sums are exact, and every row is scaled alike however many there are. */
#pragma once
#include <string.h>

#include "vector.h"

typedef struct {
    const int8_t *weight; /* [outputs / GROUP][inputs / 4][GROUP][4]: read from one end to the other */
    const float *scale;   /* of each output */
    const float *bias;
    const int32_t *offset; /* 128 times the sum of each output's weights */
    int64_t inputs;        /* a multiple of 4 */
    int64_t outputs;
} Product;

/* The weights of one output, laid out as a `Product`'s. */
static void pack(const void *numbers, Type type, int64_t inputs, int8_t *weight, float *scale, int32_t *offset) {
    Floats most = same(0.0f);
    for (int64_t i = 0; i < inputs; i += WIDE) most = larger(most, absolute(load(numbers, i, type)));
    float loudest = largest_of(most) / 127.0f;
    *scale = loudest > 1e-12f ? loudest : 1e-12f;
    Integers sum = same_integer(0);
    for (int64_t i = 0; i < inputs; i += WIDE) {
        Integers steps = rounded(over(load(numbers, i, type), same(*scale)));
        int8_t bytes[WIDE];
        put_bytes(bytes, steps);
        sum = integers_plus(sum, steps);
        for (int four = 0; four < WIDE; four += 4) memcpy(weight + GROUP * (i + four), bytes + four, 4);
    }
    *offset = 128 * sum_of_integers(sum);
}

typedef struct { /* what is made of sums */
    float *y;
    int64_t stride;
    const float *added; /* NULL, or laid out as y, which it may be */
    int gelu;
} Result;

/* Rows as 8-bit numbers above 128, and the scale of each. */
static void quantise(const float *x, int64_t rows, int64_t inputs, Step *steps, float *scales) {
    for (int64_t row = 0; row < rows; row++, x += inputs, steps += inputs) {
        Floats most = same(0.0f);
        for (int64_t i = 0; i < inputs; i += WIDE) most = larger(most, absolute(get(x + i)));
        float loudest = largest_of(most);
        Floats factor = same(loudest > 0 ? 127.0f / loudest : 0.0f);
        scales[row] = loudest / 127.0f;
        for (int64_t i = 0; i < inputs; i += WIDE)
            put_steps(steps + i, integers_plus(rounded(times(get(x + i), factor)), same_integer(128)));
    }
}

/* A few rows times a group of outputs. */
ALWAYS void tile(const Product *p, const Step *x, const float *scales, int64_t output, const Result *result,
                 int64_t first_row, const int rows) {
    Integers total[MOST_ROWS][GROUP / WIDE];
    multiply_steps(total, p->weight + output * p->inputs, x, p->inputs, p->inputs, rows);
    UNROLLED
    for (int block = 0; block < GROUP / WIDE; block++) {
        int64_t at = output + WIDE * block, left = p->outputs - at;
        if (left <= 0) return;
        Floats scale = get(p->scale + at), bias = get(p->bias + at);
        Integers offset = get_integers(p->offset + at);
        UNROLLED
        for (int row = 0; row < rows; row++) {
            int64_t place = (first_row + row) * result->stride + at;
            Floats value = floats(integers_minus(total[row][block], offset));
            value = plus_product(bias, value, times(scale, same(scales[row])));
            if (result->gelu) value = gelu(value);
            if (result->added) value = plus(value, get_up_to(result->added + place, left));
            put_up_to(result->y + place, left, value);
        }
    }
}

/* Outputs from `first` (a multiple of GROUP) to `last` of quantised rows. */
static void multiply(const Product *p, const Step *x, const float *scales, int64_t rows, int64_t first, int64_t last,
                     Result result) {
    for (int64_t output = first; output < last; output += GROUP) {
        int64_t row = 0;
        for (; rows - row >= MOST_ROWS; row += MOST_ROWS) tile(p, x + row * p->inputs, scales + row, output, &result, row, MOST_ROWS);
        for (; rows - row >= 2; row += 2) tile(p, x + row * p->inputs, scales + row, output, &result, row, 2);
        if (row < rows) tile(p, x + row * p->inputs, scales + row, output, &result, row, 1);
    }
}
