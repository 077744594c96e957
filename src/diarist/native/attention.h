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
    __m512 part[PARTS], loudest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int i = 0; i < PARTS; i++) part[i] = _mm512_mul_ps(_mm512_loadu_ps(query + WIDE * i), _mm512_set1_ps(ROOT));
    for (int64_t first = 0; first < count; first += WIDE) {
        __m512 products[WIDE];
        for (int lane = 0; lane < WIDE; lane++) {
            const float *key = keys + (first + lane < count ? first + lane : count - 1) * stride;
            products[lane] = _mm512_mul_ps(part[0], _mm512_loadu_ps(key));
            for (int i = 1; i < PARTS; i++) products[lane] = _mm512_fmadd_ps(part[i], _mm512_loadu_ps(key + WIDE * i), products[lane]);
        }
        __m512 score = _mm512_mask_blend_ps(up_to(count - first), _mm512_set1_ps(-INFINITY), sums(products));
        loudest = _mm512_max_ps(loudest, score);
        _mm512_storeu_ps(scores + first, score);
    }
    __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(loudest)), sum[PARTS];
    for (int64_t first = 0; first < count; first += WIDE) {
        __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + first), top));
        total = _mm512_mask_add_ps(total, up_to(count - first), total, weight);
        _mm512_storeu_ps(scores + first, weight);
    }
    for (int i = 0; i < PARTS; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t position = 0; position < count; position++)
        for (int i = 0; i < PARTS; i++)
            sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(scores[position]), _mm512_loadu_ps(values + position * stride + WIDE * i), sum[i]);
    __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    for (int i = 0; i < PARTS; i++) _mm512_storeu_ps(attended + WIDE * i, _mm512_mul_ps(sum[i], share));
}

/* --- to what was heard, in 8 bits ----------------------------------------------------------------------------------- */

typedef struct { /* of one head; positions are filled up to a multiple of FOUR */
    const uint8_t *keys; /* [positions][HEAD], 128 added */
    const int8_t *values; /* [positions / FOUR][HEAD][FOUR] */
    const float *key_scales, *value_scales;
    int64_t positions;
} Heard;

static int64_t filled(int64_t positions) { return (positions + FOUR - 1) / FOUR * FOUR; }

/* HEAD numbers as whole ones between -`highest` and `highest`; returns their scale. */
ALWAYS float compress(const void *numbers, size_t index, Type type, float highest, __m512i steps[PARTS]) {
    __m512 part[PARTS], most = _mm512_setzero_ps();
    for (int i = 0; i < PARTS; i++) {
        part[i] = load(numbers, index + WIDE * i, type);
        most = _mm512_max_ps(most, _mm512_abs_ps(part[i]));
    }
    float loudest = _mm512_reduce_max_ps(most);
    __m512 to_steps = _mm512_set1_ps(loudest > 0 ? highest / loudest : 0.0f);
    for (int i = 0; i < PARTS; i++) steps[i] = _mm512_cvtps_epi32(_mm512_mul_ps(part[i], to_steps));
    return loudest / highest;
}

ALWAYS void store_bytes(int8_t *bytes, const __m512i steps[PARTS], int add) {
    for (int i = 0; i < PARTS; i++)
        _mm_storeu_si128((__m128i *)(bytes + WIDE * i), _mm512_cvtepi32_epi8(_mm512_add_epi32(steps[i], _mm512_set1_epi32(add))));
}

/* A head's keys, read `stride` numbers apart. */
static void compress_keys(const void *numbers, Type type, int64_t stride, int64_t positions, int8_t *keys, float *scales) {
    __m512i steps[PARTS];
    for (int64_t position = 0; position < positions; position++) {
        scales[position] = compress(numbers, position * stride, type, 127.0f, steps);
        store_bytes(keys + position * HEAD, steps, 128);
    }
}

static void compress_values(const void *numbers, Type type, int64_t stride, int64_t positions, int8_t *values, float *scales) {
    for (int64_t first = 0; first < positions; first += FOUR) {
        __m512i steps[FOUR][PARTS];
        memset(steps, 0, sizeof steps);
        for (int i = 0; i < FOUR && first + i < positions; i++)
            scales[first + i] = compress(numbers, (first + i) * stride, type, 127.0f, steps[i]);
        for (int part = 0; part < PARTS; part++) {
            __m512i four = _mm512_setzero_si512(), byte = _mm512_set1_epi32(255);
            for (int i = FOUR - 1; i >= 0; i--) four = _mm512_or_si512(_mm512_slli_epi32(four, 8), _mm512_and_si512(steps[i][part], byte));
            _mm512_storeu_si512(values + first * HEAD + part * WIDE * FOUR, four);
        }
    }
}

typedef enum { PRECISELY, ROUGHLY } Care;

/* Scores become weights of 16 bits, each times its value's scale; returns the scale of all. All three have room for WIDE
more than `count`. */
ALWAYS float weigh(float *scores, const float *value_scales, int64_t count, uint8_t *upper, uint8_t *lower, const Care care) {
    __m512 loudest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps(), heaviest = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += WIDE)
        loudest = _mm512_mask_max_ps(loudest, up_to(count - i), loudest, _mm512_loadu_ps(scores + i));
    __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(loudest));
    for (int64_t i = 0; i < count; i += WIDE) {
        __mmask16 kept = up_to(count - i);
        __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + i), top);
        __m512 weight = _mm512_maskz_mov_ps(kept, care == ROUGHLY ? rough_exponential(below) : exponential(below));
        total = _mm512_add_ps(total, weight);
        weight = _mm512_mul_ps(weight, _mm512_maskz_loadu_ps(kept, value_scales + i));
        heaviest = _mm512_max_ps(heaviest, weight);
        _mm512_storeu_ps(scores + i, weight);
    }
    float most = _mm512_reduce_max_ps(heaviest);
    __m512 to_steps = _mm512_set1_ps(most > 0 ? 65535.0f / most : 0.0f);
    for (int64_t i = 0; i < count; i += WIDE) {
        __m512i weight = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(scores + i), to_steps));
        _mm_storeu_si128((__m128i *)(upper + i), _mm512_cvtepi32_epi8(_mm512_srli_epi32(weight, 8)));
        _mm_storeu_si128((__m128i *)(lower + i), _mm512_cvtepi32_epi8(weight));
    }
    return most / 65535.0f / _mm512_reduce_add_ps(total);
}

/* One head of one query. Queries and weights have 16 bits, of which each half is multiplied by itself: what is read but
once may be precise, and most weights are small, and many.
`scores` has room for WIDE more than there are positions, and behind them for as many numbers again. */
static void attend_heard(const Heard *heard, const float *query, float *attended, float *scores) {
    int64_t count = heard->positions;
    uint8_t *upper = (uint8_t *)(scores + (count + WIDE - 1) / WIDE * WIDE), *lower = upper + (count + WIDE - 1) / WIDE * WIDE;
    int8_t bytes[2][HEAD];
    __m512i steps[PARTS], whole = _mm512_setzero_si512();
    float factor = ROOT * compress(query, 0, FLOAT32, 127.0f * 256.0f, steps);
    for (int i = 0; i < PARTS; i++) whole = _mm512_add_epi32(whole, steps[i]);
    store_bytes(bytes[1], steps, 0); /* signed: what it takes too much or too little, the other half makes up for */
    for (int i = 0; i < PARTS; i++) steps[i] = _mm512_srai_epi32(_mm512_add_epi32(steps[i], _mm512_set1_epi32(128)), 8);
    store_bytes(bytes[0], steps, 0);
    __m512i asked[2] = {_mm512_loadu_si512(bytes[0]), _mm512_loadu_si512(bytes[1])};
    __m512i added = _mm512_set1_epi32(128 * _mm512_reduce_add_epi32(whole));
    for (int64_t first = 0; first < count; first += WIDE) {
        __m512i products[WIDE];
        for (int lane = 0; lane < WIDE; lane++) {
            const uint8_t *key = heard->keys + (first + lane < count ? first + lane : count - 1) * HEAD;
            __m512i upper_half = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(key), asked[0]);
            products[lane] = _mm512_dpbusd_epi32(_mm512_slli_epi32(upper_half, 8), _mm512_loadu_si512(key), asked[1]);
        }
        __m512 scales = _mm512_maskz_loadu_ps(up_to(count - first), heard->key_scales + first);
        __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(factor));
        __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(integer_sums(products), added)), scale);
        _mm512_storeu_ps(scores + first, score);
    }
    float scale_of_all = weigh(scores, heard->value_scales, count, upper, lower, PRECISELY);
    __m512i sum[2][PARTS];
    for (int i = 0; i < PARTS; i++) sum[0][i] = sum[1][i] = _mm512_setzero_si512();
    for (int64_t first = 0; first < count; first += FOUR) {
        int32_t four[2];
        memcpy(four, upper + first, sizeof *four);
        memcpy(four + 1, lower + first, sizeof *four);
        for (int i = 0; i < PARTS; i++) {
            __m512i value = _mm512_loadu_si512(heard->values + first * HEAD + i * WIDE * FOUR);
            for (int half = 0; half < 2; half++) sum[half][i] = _mm512_dpbusd_epi32(sum[half][i], _mm512_set1_epi32(four[half]), value);
        }
    }
    __m512 share = _mm512_set1_ps(scale_of_all);
    for (int i = 0; i < PARTS; i++) {
        __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0][i]), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(sum[1][i]));
        _mm512_storeu_ps(attended + WIDE * i, _mm512_mul_ps(both, share));
    }
}
