/* Attention of an encoder: every position of a window asks all of them.

For one head the keys are an 8-bit matrix, and so are the values; queries are rows of 8 bits, and the weights that they
give rows of 15. Scores of a few queries stay in the processor's cache. */
#pragma once
#include <string.h>

#include "attention.h"
#include "layers.h"
#include "pool.h"

#define ASKING 16 /* queries at once */

typedef struct {
    float *projected; /* [windows][positions][query, key, value][state] */
    int64_t positions, state;
    float *attended; /* [windows][positions][state], written */
    atomic_int failed;
} Window;

/* A head's keys as a matrix that queries are multiplied by; what lies beyond the last position gives zero. */
static void make_matrix(const Window *window, size_t first, int8_t *weight, float *scale, int32_t *offset) {
    for (int64_t position = 0; position < window->positions; position++) {
        Integers steps[PARTS];
        int8_t bytes[HEAD];
        scale[position] = compress(window->projected, first + position * 3 * window->state, FLOAT32, 127.0f, steps);
        for (int i = 0; i < PARTS; i++) put_bytes(bytes + WIDE * i, steps[i]);
        offset[position] = 128 * sum_of_steps(steps);
        int8_t *target = weight + position / GROUP * GROUP * HEAD + position % GROUP * FOUR;
        for (int i = 0; i < HEAD; i += FOUR) memcpy(target + GROUP * i, bytes + i, FOUR);
    }
}

typedef struct { /* of a group of a head's features */
    const int8_t *values;
    const uint16_t *weights;
    int64_t room, positions;
    const float *scales; /* of each row of weights */
    float *attended;
    int64_t stride;
} Weighing;

ALWAYS void weigh_values(const Weighing *all, int64_t first, const int rows) {
    Floats sum[MOST_WEIGHTS][GROUP / WIDE];
    multiply_weights(sum, all->values, all->weights + first * all->room, all->room, filled(all->positions), rows);
    UNROLLED
    for (int row = 0; row < rows; row++) {
        UNROLLED
        for (int block = 0; block < GROUP / WIDE; block++)
            put(all->attended + (first + row) * all->stride + WIDE * block, times(sum[row][block], same(all->scales[first + row])));
    }
}

/* One head of one window. */
static void attend_window(void *argument, int64_t part) {
    Window *window = argument;
    int64_t positions = window->positions, state = window->state, heads = state / HEAD, head = part % heads;
    int64_t room = (positions + HEAD - 1) / HEAD * HEAD; /* whole groups, and not fewer than values have features */
    size_t cleared = room * (4 * sizeof(float) + HEAD * 2);
    float *key_scales = scratch(cleared + room * ASKING * (sizeof(float) + sizeof(uint16_t)) + 4096 * sizeof(float));
    if (key_scales == NULL) {
        atomic_store(&window->failed, 1);
        return;
    }
    memset(key_scales, 0, cleared);
    float *value_scales = key_scales + room, *zeros = value_scales + room;
    int32_t *offsets = (int32_t *)(zeros + room);
    int8_t *keys = (int8_t *)(offsets + room), *values = keys + room * HEAD;
    uint16_t *weights = (uint16_t *)(values + room * HEAD);
    float *scores = (float *)(weights + room * ASKING), *asked = scores + room * ASKING, *scales = asked + ASKING * HEAD;
    Step *queries = (Step *)(scales + ASKING);
    size_t first = part / heads * positions * 3 * state + head * HEAD;
    make_matrix(window, first + state, keys, key_scales, offsets);
    compress_values(window->projected + first + 2 * state, FLOAT32, 3 * state, positions, values, value_scales);
    Product by_keys = {keys, key_scales, zeros, offsets, HEAD, positions};
    for (int64_t begin = 0; begin < positions; begin += ASKING) {
        int64_t n = positions - begin < ASKING ? positions - begin : ASKING;
        float *attended = window->attended + (part / heads * positions + begin) * state + head * HEAD;
        const float *query = window->projected + first + begin * 3 * state;
        for (int64_t j = 0; j < n; j++)
            for (int i = 0; i < HEAD; i += WIDE)
                put(asked + j * HEAD + i, times(same(ROOT), get(query + j * 3 * state + i)));
        quantise(asked, n, HEAD, queries, scales);
        multiply(&by_keys, queries, scales, n, 0, positions, (Result){scores, room, NULL, 0});
        for (int64_t j = 0; j < n; j++)
            scales[j] = weigh(scores + j * room, value_scales, positions, weights + j * room, room, ROUGHLY);
        for (int64_t feature = 0; feature < HEAD; feature += GROUP) {
            const Weighing all = {values + feature * filled(positions), weights, room, positions, scales, attended + feature, state};
            int64_t row = 0;
            for (; n - row >= MOST_WEIGHTS; row += MOST_WEIGHTS) weigh_values(&all, row, MOST_WEIGHTS);
            for (; row < n; row++) weigh_values(&all, row, 1);
        }
    }
}

typedef struct {
    Norm attention_norm, mlp_norm;
    Product query_key_value, attention_out, mlp_in, mlp_out;
} EncoderBlock;

#define TOGETHER 32 /* rows that go through a layer together: what they become stays in the processor's cache */

typedef struct {
    const EncoderBlock *block;
    const Norm *norm; /* NULL, or what follows the block */
    float *x;
    int64_t rows;
    Window window;
} Encoding;

typedef struct {
    float *narrow, *wide;
    Quantised quantised;
    int64_t first, rows;
} Part;

static int begin_part(Encoding *all, int64_t part, Part *p) {
    int64_t state = all->window.state;
    p->first = part * TOGETHER;
    p->rows = all->rows - p->first < TOGETHER ? all->rows - p->first : TOGETHER;
    p->narrow = scratch(TOGETHER * ((5 * state + 1) * sizeof(float) + 4 * state * sizeof(Step)));
    if (p->narrow == NULL) {
        atomic_store(&all->window.failed, 1);
        return 0;
    }
    p->wide = p->narrow + TOGETHER * state;
    p->quantised.scales = p->wide + TOGETHER * 4 * state;
    p->quantised.steps = (Step *)(p->quantised.scales + TOGETHER);
    return 1;
}

/* Rows to queries, keys and values. */
static void project(void *argument, int64_t part) {
    Encoding *all = argument;
    Part p;
    if (!begin_part(all, part, &p)) return;
    int64_t state = all->window.state;
    normalise(&all->block->attention_norm, all->x + p.first * state, p.narrow, p.rows, state);
    product(&all->block->query_key_value, p.narrow, p.rows, all->window.projected + p.first * 3 * state, SET, p.quantised);
}

/* What was attended to, and the rest of the block. */
static void finish(void *argument, int64_t part) {
    Encoding *all = argument;
    Part p;
    if (!begin_part(all, part, &p)) return;
    int64_t state = all->window.state;
    float *x = all->x + p.first * state;
    product(&all->block->attention_out, all->window.attended + p.first * state, p.rows, x, ADD, p.quantised);
    normalise(&all->block->mlp_norm, x, p.narrow, p.rows, state);
    product(&all->block->mlp_in, p.narrow, p.rows, p.wide, SET_GELU, p.quantised);
    product(&all->block->mlp_out, p.wide, p.rows, x, ADD, p.quantised);
    if (all->norm) normalise(all->norm, x, x, p.rows, state);
}
