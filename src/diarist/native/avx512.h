/* Vectors of 16 numbers on processors with AVX-512 VNNI: a register each. */
#pragma once
#include "wide.h"

#define GROUP 64    /* outputs of a product that are computed side by side; matrices are filled up to a multiple of it */
#define MOST_ROWS 4 /* of a product at once: more sums than registers otherwise */
#define MOST_WORDS 5 /* rows of 16 bits */

typedef __m512 Floats;
typedef __m512i Integers;
typedef __mmask16 Mask;
typedef uint8_t Step; /* of a row that is multiplied: from 0 to 255 */

static int is_supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

/* --- floats ------------------------------------------------------------------------------------------------------- */

ALWAYS Floats same(float x) { return _mm512_set1_ps(x); }
ALWAYS Floats get(const float *x) { return _mm512_loadu_ps(x); }
ALWAYS void put(float *target, Floats x) { _mm512_storeu_ps(target, x); }
ALWAYS Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
ALWAYS Floats minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
ALWAYS Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
ALWAYS Floats over(Floats a, Floats b) { return _mm512_div_ps(a, b); }
ALWAYS Floats plus_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
ALWAYS Floats minus_product(Floats sum, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, sum); }
ALWAYS Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
ALWAYS Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
ALWAYS Floats absolute(Floats x) { return _mm512_abs_ps(x); }
ALWAYS Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
ALWAYS Floats times_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
ALWAYS float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }
ALWAYS float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }

/* --- some of the lanes -------------------------------------------------------------------------------------------- */

ALWAYS Mask up_to(int64_t left) { return left >= WIDE ? 0xffff : left <= 0 ? 0 : (Mask)((1u << left) - 1); }
ALWAYS Mask negative(Floats x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ); }
ALWAYS Floats choose_lanes(Mask mask, Floats where, Floats elsewhere) { return _mm512_mask_blend_ps(mask, elsewhere, where); }
ALWAYS Floats get_up_to(const float *x, int64_t left) { return _mm512_maskz_loadu_ps(up_to(left), x); }
ALWAYS void put_up_to(float *target, int64_t left, Floats x) { _mm512_mask_storeu_ps(target, up_to(left), x); }

/* The first of the lanes left that hold a number; -1 where none does. */
ALWAYS int find(Floats x, float number, int64_t left) {
    Mask found = _mm512_mask_cmp_ps_mask(up_to(left), x, same(number), _CMP_EQ_OQ);
    return found ? __builtin_ctz(found) : -1;
}

/* --- integers ----------------------------------------------------------------------------------------------------- */

ALWAYS Integers same_integer(int32_t x) { return _mm512_set1_epi32(x); }
ALWAYS Integers get_integers(const int32_t *x) { return _mm512_loadu_si512(x); }
ALWAYS Integers integers_plus(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
ALWAYS Integers integers_minus(Integers a, Integers b) { return _mm512_sub_epi32(a, b); }
ALWAYS int32_t sum_of_integers(Integers x) { return _mm512_reduce_add_epi32(x); }
ALWAYS Integers rounded(Floats x) { return _mm512_cvtps_epi32(x); }
ALWAYS Floats floats(Integers x) { return _mm512_cvtepi32_ps(x); }
ALWAYS Floats get_bfloat16(const uint16_t *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}
ALWAYS Floats get_float16(const uint16_t *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }

/* The lower 8 bits of each. */
ALWAYS void put_bytes(void *target, Integers x) { _mm_storeu_si128((__m128i *)target, _mm512_cvtepi32_epi8(x)); }
ALWAYS void put_steps(Step *target, Integers x) { put_bytes(target, x); }
ALWAYS void put_words(int16_t *target, Integers x) { _mm256_storeu_si256((__m256i *)target, _mm512_cvtepi32_epi16(x)); }

/* The lower 8 bits of four vectors, side by side. */
ALWAYS void put_fours(int8_t *target, const Integers x[4]) {
    Integers four = _mm512_setzero_si512(), byte = same_integer(255);
    for (int i = 3; i >= 0; i--) four = _mm512_or_si512(_mm512_slli_epi32(four, 8), _mm512_and_si512(x[i], byte));
    _mm512_storeu_si512(target, four);
}

/* --- sums --------------------------------------------------------------------------------------------------------- */

/* The sums of 16 vectors, in their order. */
ALWAYS Floats sums(const Floats v[WIDE]) {
    __m512 pairs[8], fours[4];
    for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x88), _mm512_shuffle_f32x4(fours[0], fours[1], 0xdd));
    __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2], fours[3], 0x88), _mm512_shuffle_f32x4(fours[2], fours[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

/* The same of integers. */
ALWAYS Integers integer_sums(const Integers v[WIDE]) {
    __m512i pairs[8], fours[4];
    for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++)
        fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                    _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
    __m512i low = _mm512_add_epi32(_mm512_shuffle_i32x4(fours[0], fours[1], 0x88), _mm512_shuffle_i32x4(fours[0], fours[1], 0xdd));
    __m512i high = _mm512_add_epi32(_mm512_shuffle_i32x4(fours[2], fours[3], 0x88), _mm512_shuffle_i32x4(fours[2], fours[3], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xdd));
}

/* --- products of 8 and 16 bits ------------------------------------------------------------------------------------ */

/* A few rows of numbers, `stride` bytes apart, times [inputs][GROUP], where an input is 32 bits: two words, or four steps.
Those of 16 outputs are one instruction. The sums stay in registers, so all loops over them are unrolled. */
ALWAYS void multiply_numbers(Integers (*total)[GROUP / WIDE], const void *weight, const void *x, int64_t stride, int64_t inputs,
                     const int rows, const int words) {
    UNROLLED
    for (int row = 0; row < rows; row++) {
        UNROLLED
        for (int block = 0; block < GROUP / WIDE; block++) total[row][block] = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < inputs; i++) {
        __m512i weights[GROUP / WIDE];
        UNROLLED
        for (int block = 0; block < GROUP / WIDE; block++)
            weights[block] = _mm512_loadu_si512((const int32_t *)weight + GROUP * i + WIDE * block);
        UNROLLED
        for (int row = 0; row < rows; row++) {
            int32_t numbers;
            __builtin_memcpy(&numbers, (const char *)x + row * stride + 4 * i, sizeof numbers);
            __m512i everywhere = _mm512_set1_epi32(numbers);
            UNROLLED
            for (int block = 0; block < GROUP / WIDE; block++)
                total[row][block] = words ? _mm512_dpwssd_epi32(total[row][block], everywhere, weights[block])
                                          : _mm512_dpbusd_epi32(total[row][block], everywhere, weights[block]);
        }
    }
}

/* A few rows of steps, `stride` apart, times [inputs / 4][GROUP][4]. */
ALWAYS void multiply_steps(Integers total[MOST_ROWS][GROUP / WIDE], const int8_t *weight, const Step *x, int64_t stride,
                           int64_t inputs, const int rows) {
    multiply_numbers(total, weight, x, stride, inputs / 4, rows, 0);
}

/* The same of 16 bits: times [inputs / 2][GROUP][2]. */
ALWAYS void multiply_words(Integers total[MOST_WORDS][GROUP / WIDE], const int16_t *weight, const int16_t *x, int64_t stride,
                           int64_t inputs, const int rows) {
    multiply_numbers(total, weight, x, 2 * stride, inputs / 2, rows, 1);
}

/* 15 bits of each weight of a row, of which both halves are multiplied by themselves: [2][room]. */
ALWAYS void put_weights(uint16_t *row, int64_t room, int64_t first, Integers x) {
    put_bytes((uint8_t *)row + first, _mm512_srai_epi32(x, 8));
    put_bytes((uint8_t *)row + room + first, x);
}

#define MOST_WEIGHTS (MOST_ROWS / 2) /* rows of them at once */

/* A few rows of weights, `room` for each, times [positions / 4][GROUP][4]. */
ALWAYS void multiply_weights(Floats sum[MOST_WEIGHTS][GROUP / WIDE], const int8_t *values, const uint16_t *weights, int64_t room,
                             int64_t positions, const int rows) {
    Integers halves[MOST_ROWS][GROUP / WIDE];
    multiply_steps(halves, values, (const Step *)weights, room, positions, 2 * rows);
    UNROLLED
    for (int row = 0; row < rows; row++) {
        UNROLLED
        for (int block = 0; block < GROUP / WIDE; block++)
            sum[row][block] = plus_product(floats(halves[2 * row + 1][block]), floats(halves[2 * row][block]), same(256.0f));
    }
}

typedef struct {
    __m512i upper, lower;
} Asked;

/* 64 numbers of 16 bits as two of 8 each, which are signed: what the lower takes too much, the upper makes up for. */
ALWAYS Asked ask(const Integers x[4]) {
    int8_t bytes[2][4 * WIDE];
    for (int i = 0; i < 4; i++) {
        put_bytes(bytes[0] + WIDE * i, _mm512_srai_epi32(_mm512_add_epi32(x[i], same_integer(128)), 8));
        put_bytes(bytes[1] + WIDE * i, x[i]);
    }
    return (Asked){_mm512_loadu_si512(bytes[0]), _mm512_loadu_si512(bytes[1])};
}

/* What is asked times each of 16 rows of 64 bytes, of which the last that is left stands for all after it. */
ALWAYS Integers answers(const uint8_t *rows, int64_t left, Asked asked) {
    Integers products[WIDE];
    for (int lane = 0; lane < WIDE; lane++) {
        __m512i row = _mm512_loadu_si512(rows + (lane < left ? lane : left - 1) * 64);
        __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), row, asked.upper);
        products[lane] = _mm512_dpbusd_epi32(_mm512_slli_epi32(upper, 8), row, asked.lower);
    }
    return integer_sums(products);
}
