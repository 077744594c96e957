/* Layers of a bidirectional LSTM over windows, each of which is a sequence by itself.

A part of the work is a few windows in one direction, from one end to the other: threads need not wait for each other at
every frame. What is multiplied has 12 and 13 bits, so that sums of 256 products are exact in 32; cells are floats. */
#pragma once
#include "vector.h"

#define GATES 4 /* input, forget, cell, output: in torch's order */

typedef struct { /* outputs are those of 16 units: their input gates, their forget gates, ... */
    const int16_t *input, *state; /* [outputs / GROUP][inputs / 2][GROUP][2] */
    const float *input_scale, *state_scale, *bias; /* of each output */
} Direction;

typedef struct {
    const Direction *directions; /* forwards, backwards */
    const int16_t *x;            /* [frames][windows][inputs] */
    const float *scales;         /* of each window's inputs; NULL: they are hidden states */
    int16_t *hidden;             /* [frames][windows][2 x units] */
    float *result;               /* NULL, or the same as floats, instead */
    int64_t frames, windows, inputs, units, groups;
    atomic_int failed;
} Recurrence;

ALWAYS Floats sigmoid(Floats x) { return over(same(1.0f), plus(same(1.0f), exponential(minus(same(0.0f), x)))); }
ALWAYS Floats hyperbolic_tangent(Floats x) { return minus(times(same(2.0f), sigmoid(plus(x, x))), same(1.0f)); }

/* Sums of a frame for 16 units, before their gates. */
ALWAYS void add_up_gates(const Recurrence *r, const Direction *d, const int16_t *x, const int16_t *state, const float *scales,
                         int64_t unit, float sums[MOST_ROWS][GATES * WIDE], const int rows) {
    for (int at = 0; at < GATES * WIDE; at += GROUP) {
        int64_t output = GATES * unit + at;
        Integers total[MOST_WORDS][GROUP / WIDE];
        multiply_words(total, d->input + output * r->inputs, x, r->inputs, r->inputs, rows);
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < GROUP / WIDE; i++) {
                Floats scale = times(get(d->input_scale + output + WIDE * i), same(scales[row]));
                put(sums[row] + at + WIDE * i, plus_product(get(d->bias + output + WIDE * i), floats(total[row][i]), scale));
            }
        multiply_words(total, d->state + output * r->units, state, r->units, r->units, rows);
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < GROUP / WIDE; i++) {
                float *sum = sums[row] + at + WIDE * i;
                put(sum, plus_product(get(sum), floats(total[row][i]), get(d->state_scale + output + WIDE * i)));
            }
    }
}

/* A few windows from `first` on, in one direction: 0 forwards, 1 backwards. */
ALWAYS void pass_through(Recurrence *r, int64_t first, int direction, const int rows) {
    int64_t units = r->units;
    float *cells = scratch(rows * units * (sizeof(float) + 2 * sizeof(int16_t)));
    if (cells == NULL) {
        atomic_store(&r->failed, 1);
        return;
    }
    int16_t *before = (int16_t *)(cells + rows * units), *after = before + rows * units;
    memset(cells, 0, rows * units * sizeof(float));
    memset(before, 0, rows * units * sizeof(int16_t));
    float scales[MOST_ROWS];
    for (int row = 0; row < rows; row++) scales[row] = r->scales ? r->scales[first + row] : 1.0f / MOST_STEPS;
    for (int64_t step = 0; step < r->frames; step++) {
        int64_t place = (direction ? r->frames - 1 - step : step) * r->windows + first;
        for (int64_t unit = 0; unit < units; unit += WIDE) {
            float sums[MOST_ROWS][GATES * WIDE];
            add_up_gates(r, r->directions + direction, r->x + place * r->inputs, before, scales, unit, sums, rows);
            for (int row = 0; row < rows; row++) {
                const float *sum = sums[row];
                float *cell = cells + row * units + unit;
                Floats let_in = times(sigmoid(get(sum)), hyperbolic_tangent(get(sum + 2 * WIDE)));
                Floats now = plus_product(let_in, sigmoid(get(sum + WIDE)), get(cell));
                put(cell, now);
                Floats hidden = times(sigmoid(get(sum + 3 * WIDE)), hyperbolic_tangent(now));
                Integers steps = rounded(times(hidden, same(MOST_STEPS)));
                put_words(after + row * units + unit, steps);
                int64_t target = ((place + row) * 2 + direction) * units + unit;
                if (r->result)
                    put(r->result + target, hidden);
                else
                    put_words(r->hidden + target, steps);
            }
        }
        int16_t *swapped = before;
        before = after;
        after = swapped;
    }
}

static void pass_windows(void *argument, int64_t part) {
    Recurrence *r = argument;
    int direction = part >= r->groups;
    int64_t first = MOST_ROWS * (part % r->groups), left = r->windows - first;
    if (left >= MOST_ROWS) {
        pass_through(r, first, direction, MOST_ROWS);
        return;
    }
    if (left >= 2) pass_through(r, first, direction, 2);
    if (left % 2) pass_through(r, first + left - 1, direction, 1);
}
