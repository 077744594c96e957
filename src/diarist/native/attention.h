/* Attention of a few queries, one head at a time.

However many queries there are, each is computed by the same steps in the same order, so that a token that is read with
its draft has the numbers that it has alone. */
#pragma once
#include <math.h>
#include <string.h>

#include "vector.h"

#define HEAD 64 /* features of a head: every Whisper's */
#define PARTS (HEAD / WIDE)
#define FOUR 4 /* products that one instruction adds up */
#define ROOT 0.125f /* 1 / sqrt(HEAD) */

/* --- to a decoder's own past, float32 ----------------------------------------------------------------------------- */

/* One head of one query: it sees `count` positions, `stride` numbers apart; `scores` has room for WIDE more. */
static void attend_past(const float *keys, const float *values, int64_t stride, int64_t count, const float *query,
                        float *attended, float *scores) {
    Floats part[PARTS], sum[PARTS], loudest = same(-INFINITY), total = same(0.0f);
    for (int i = 0; i < PARTS; i++) part[i] = times(get(query + WIDE * i), same(ROOT));
    for (int64_t first = 0; first < count; first += WIDE) {
        Floats products[WIDE];
        for (int lane = 0; lane < WIDE; lane++) {
            const float *key = keys + (first + lane < count ? first + lane : count - 1) * stride;
            products[lane] = times(part[0], get(key));
            for (int i = 1; i < PARTS; i++) products[lane] = plus_product(products[lane], part[i], get(key + WIDE * i));
        }
        Floats score = choose_lanes(up_to(count - first), sums(products), same(-INFINITY));
        loudest = larger(loudest, score);
        put(scores + first, score);
    }
    Floats top = same(largest_of(loudest));
    for (int64_t first = 0; first < count; first += WIDE) {
        Floats weight = exponential(minus(get(scores + first), top));
        total = choose_lanes(up_to(count - first), plus(total, weight), total);
        put(scores + first, weight);
    }
    for (int i = 0; i < PARTS; i++) sum[i] = same(0.0f);
    for (int64_t position = 0; position < count; position++)
        for (int i = 0; i < PARTS; i++)
            sum[i] = plus_product(sum[i], same(scores[position]), get(values + position * stride + WIDE * i));
    Floats share = same(1.0f / sum_of(total));
    for (int i = 0; i < PARTS; i++) put(attended + WIDE * i, times(sum[i], share));
}

/* --- to what was heard, in 8 bits ----------------------------------------------------------------------------------- */

typedef struct { /* of one head; positions are filled up to a multiple of FOUR */
    const uint8_t *keys; /* [positions][HEAD], 128 added */
    const int8_t *values; /* [HEAD / GROUP][positions / FOUR][GROUP][FOUR]: a matrix as in `Product` */
    const float *key_scales, *value_scales;
    int64_t positions;
} Heard;

static int64_t filled(int64_t positions) { return (positions + FOUR - 1) / FOUR * FOUR; }

/* HEAD numbers as whole ones between -`highest` and `highest`; returns their scale. */
ALWAYS float compress(const void *numbers, size_t index, Type type, float highest, Integers steps[PARTS]) {
    Floats part[PARTS], most = same(0.0f);
    for (int i = 0; i < PARTS; i++) {
        part[i] = load(numbers, index + WIDE * i, type);
        most = larger(most, absolute(part[i]));
    }
    float loudest = largest_of(most);
    Floats to_steps = same(loudest > 0 ? highest / loudest : 0.0f);
    for (int i = 0; i < PARTS; i++) steps[i] = rounded(times(part[i], to_steps));
    return loudest / highest;
}

ALWAYS int32_t sum_of_steps(const Integers steps[PARTS]) {
    Integers sum = same_integer(0);
    for (int i = 0; i < PARTS; i++) sum = integers_plus(sum, steps[i]);
    return sum_of_integers(sum);
}

/* A head's keys, read `stride` numbers apart. */
static void compress_keys(const void *numbers, Type type, int64_t stride, int64_t positions, int8_t *keys, float *scales) {
    Integers steps[PARTS];
    for (int64_t position = 0; position < positions; position++) {
        scales[position] = compress(numbers, position * stride, type, 127.0f, steps);
        for (int i = 0; i < PARTS; i++) put_bytes(keys + position * HEAD + WIDE * i, integers_plus(steps[i], same_integer(128)));
    }
}

static void compress_values(const void *numbers, Type type, int64_t stride, int64_t positions, int8_t *values, float *scales) {
    for (int64_t first = 0; first < positions; first += FOUR) {
        Integers steps[FOUR][PARTS];
        memset(steps, 0, sizeof steps);
        for (int i = 0; i < FOUR && first + i < positions; i++)
            scales[first + i] = compress(numbers, (first + i) * stride, type, 127.0f, steps[i]);
        for (int part = 0; part < PARTS; part++) {
            int64_t feature = part * WIDE, group = feature / GROUP * GROUP;
            Integers four[FOUR] = {steps[0][part], steps[1][part], steps[2][part], steps[3][part]};
            put_fours(values + group * filled(positions) + first * GROUP + (feature - group) * FOUR, four);
        }
    }
}

typedef enum { PRECISELY, ROUGHLY } Care;

#define HEAVIEST 32767.0f /* weight, as it is multiplied */

/* Scores become weights of 15 bits, each times its value's scale; returns the scale of all. Both have `room` for whole
vectors. */
ALWAYS float weigh(float *scores, const float *value_scales, int64_t count, uint16_t *weights, int64_t room, const Care care) {
    Floats loudest = same(-INFINITY), total = same(0.0f), heaviest = same(0.0f);
    for (int64_t i = 0; i < count; i += WIDE)
        loudest = choose_lanes(up_to(count - i), larger(loudest, get(scores + i)), loudest);
    Floats top = same(largest_of(loudest));
    for (int64_t i = 0; i < count; i += WIDE) {
        Floats below = minus(get(scores + i), top);
        Floats weight = choose_lanes(up_to(count - i), care == ROUGHLY ? rough_exponential(below) : exponential(below), same(0.0f));
        total = plus(total, weight);
        weight = times(weight, get_up_to(value_scales + i, count - i));
        heaviest = larger(heaviest, weight);
        put(scores + i, weight);
    }
    float most = largest_of(heaviest);
    Floats to_steps = same(most > 0 ? HEAVIEST / most : 0.0f);
    for (int64_t i = 0; i < count; i += WIDE) put_weights(weights, room, i, rounded(times(get(scores + i), to_steps)));
    return most / HEAVIEST / sum_of(total);
}

/* One head of one query. Queries have 16 bits and weights 15: what is read but once may be precise, and most weights are
small, and many.
`scores` has room for WIDE more than there are positions, and behind them for half as many again. */
static void attend_heard(const Heard *heard, const float *query, float *attended, float *scores) {
    int64_t count = heard->positions, room = (count + WIDE - 1) / WIDE * WIDE;
    uint16_t *weights = (uint16_t *)(scores + room);
    Integers steps[PARTS];
    Floats sum[MOST_WEIGHTS][GROUP / WIDE];
    float factor = ROOT * compress(query, 0, FLOAT32, 127.0f * 256.0f, steps);
    Integers added = same_integer(128 * sum_of_steps(steps));
    Asked asked = ask(steps);
    for (int64_t first = 0; first < count; first += WIDE) {
        Integers products = answers(heard->keys + first * HEAD, count - first, asked);
        Floats scale = times(get_up_to(heard->key_scales + first, count - first), same(factor));
        put(scores + first, times(floats(integers_minus(products, added)), scale));
    }
    Floats share = same(weigh(scores, heard->value_scales, count, weights, room, PRECISELY));
    for (int64_t feature = 0; feature < HEAD; feature += GROUP) {
        multiply_weights(sum, heard->values + feature * filled(count), weights, room, filled(count), 1);
        for (int block = 0; block < GROUP / WIDE; block++) put(attended + feature + WIDE * block, times(sum[0][block], share));
    }
}
