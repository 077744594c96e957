/* Vectors of 16 numbers on processors with AVX2: two registers each.

Such processors multiply 8 bits exactly only as 16, so the rows of a product are kept in 16, and matrices are widened as
they are read. Sums are the same as with AVX-512, and so are all floats. */
#pragma once
#include "wide.h"

#define GROUP 16    /* outputs of a product that are computed side by side; matrices are filled up to a multiple of it */
#define MOST_ROWS 4 /* of a product at once: more sums than registers otherwise */
#define MOST_WORDS 5 /* rows of 16 bits */

typedef struct {
    __m256 low, high;
} Floats;

typedef struct {
    __m256i low, high;
} Integers;

typedef Floats Mask;
typedef int16_t Step; /* of a row that is multiplied: from 0 to 255 */

static int is_supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* --- floats ------------------------------------------------------------------------------------------------------- */

ALWAYS Floats same(float x) { return (Floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ALWAYS Floats get(const float *x) { return (Floats){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
ALWAYS void put(float *target, Floats x) {
    _mm256_storeu_ps(target, x.low);
    _mm256_storeu_ps(target + 8, x.high);
}
ALWAYS Floats plus(Floats a, Floats b) { return (Floats){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
ALWAYS Floats minus(Floats a, Floats b) { return (Floats){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
ALWAYS Floats times(Floats a, Floats b) { return (Floats){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
ALWAYS Floats over(Floats a, Floats b) { return (Floats){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
ALWAYS Floats plus_product(Floats sum, Floats a, Floats b) {
    return (Floats){_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
ALWAYS Floats minus_product(Floats sum, Floats a, Floats b) {
    return (Floats){_mm256_fnmadd_ps(a.low, b.low, sum.low), _mm256_fnmadd_ps(a.high, b.high, sum.high)};
}
ALWAYS Floats larger(Floats a, Floats b) { return (Floats){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
ALWAYS Floats smaller(Floats a, Floats b) { return (Floats){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
ALWAYS Floats absolute(Floats x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (Floats){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
ALWAYS Floats nearest(Floats x) {
    return (Floats){_mm256_round_ps(x.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                    _mm256_round_ps(x.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

/* x times 2^n; n is whole, and nothing is lost by not going below the least exponent. */
ALWAYS __m256 times_power_8(__m256 x, __m256 n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_max_ps(n, _mm256_set1_ps(-126.0f))), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
ALWAYS Floats times_power(Floats x, Floats n) { return (Floats){times_power_8(x.low, n.low), times_power_8(x.high, n.high)}; }

ALWAYS float largest_of(Floats x) {
    __m256 eight = _mm256_max_ps(x.low, x.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

ALWAYS float sum_of(Floats x) {
    __m256 eight = _mm256_add_ps(x.low, x.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* --- some of the lanes -------------------------------------------------------------------------------------------- */

ALWAYS Mask up_to(int64_t left) {
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32(left >= WIDE ? WIDE : left < 0 ? 0 : (int)left);
    return (Mask){_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lanes)),
                  _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))))};
}
ALWAYS Mask negative(Floats x) {
    return (Mask){_mm256_cmp_ps(x.low, _mm256_setzero_ps(), _CMP_LT_OQ), _mm256_cmp_ps(x.high, _mm256_setzero_ps(), _CMP_LT_OQ)};
}
ALWAYS Floats choose_lanes(Mask mask, Floats where, Floats elsewhere) {
    return (Floats){_mm256_blendv_ps(elsewhere.low, where.low, mask.low), _mm256_blendv_ps(elsewhere.high, where.high, mask.high)};
}
ALWAYS Floats get_up_to(const float *x, int64_t left) {
    if (left >= WIDE) return get(x);
    Mask mask = up_to(left);
    return (Floats){_mm256_maskload_ps(x, _mm256_castps_si256(mask.low)), _mm256_maskload_ps(x + 8, _mm256_castps_si256(mask.high))};
}
ALWAYS void put_up_to(float *target, int64_t left, Floats x) {
    if (left >= WIDE) {
        put(target, x);
        return;
    }
    Mask mask = up_to(left);
    _mm256_maskstore_ps(target, _mm256_castps_si256(mask.low), x.low);
    _mm256_maskstore_ps(target + 8, _mm256_castps_si256(mask.high), x.high);
}

/* The first of the lanes left that hold a number; -1 where none does. */
ALWAYS int find(Floats x, float number, int64_t left) {
    __m256 wanted = _mm256_set1_ps(number);
    unsigned found = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x.low, wanted, _CMP_EQ_OQ)) |
                     (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x.high, wanted, _CMP_EQ_OQ)) << 8;
    if (left < WIDE) found &= (1u << left) - 1;
    return found ? __builtin_ctz(found) : -1;
}

/* --- integers ----------------------------------------------------------------------------------------------------- */

ALWAYS Integers same_integer(int32_t x) { return (Integers){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
ALWAYS Integers get_integers(const int32_t *x) {
    return (Integers){_mm256_loadu_si256((const __m256i *)x), _mm256_loadu_si256((const __m256i *)(x + 8))};
}
ALWAYS Integers integers_plus(Integers a, Integers b) {
    return (Integers){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
ALWAYS Integers integers_minus(Integers a, Integers b) {
    return (Integers){_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
ALWAYS int32_t sum_of_integers(Integers x) {
    __m256i eight = _mm256_add_epi32(x.low, x.high);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
ALWAYS Integers rounded(Floats x) { return (Integers){_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
ALWAYS Floats floats(Integers x) { return (Floats){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
ALWAYS __m256 get_bfloat16_8(const uint16_t *x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x)), 16));
}
ALWAYS Floats get_bfloat16(const uint16_t *x) { return (Floats){get_bfloat16_8(x), get_bfloat16_8(x + 8)}; }
ALWAYS __m256 get_float16_8(const uint16_t *x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)); }
ALWAYS Floats get_float16(const uint16_t *x) { return (Floats){get_float16_8(x), get_float16_8(x + 8)}; }

/* The lower 8 bits of each, as 16. */
ALWAYS __m256i lower_bytes(Integers x) {
    __m256i byte = _mm256_set1_epi32(255);
    __m256i packed = _mm256_packs_epi32(_mm256_and_si256(x.low, byte), _mm256_and_si256(x.high, byte));
    return _mm256_permute4x64_epi64(packed, 0xd8);
}

/* The lower 8 bits of each. */
ALWAYS void put_bytes(void *target, Integers x) {
    __m256i bytes = lower_bytes(x);
    _mm_storeu_si128((__m128i *)target, _mm_packus_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
ALWAYS void put_steps(Step *target, Integers x) { _mm256_storeu_si256((__m256i *)target, lower_bytes(x)); }
ALWAYS __m256i in_words(Integers x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8); }
ALWAYS void put_words(int16_t *target, Integers x) { _mm256_storeu_si256((__m256i *)target, in_words(x)); }

/* The lower 8 bits of four vectors, side by side. */
ALWAYS void put_fours(int8_t *target, const Integers x[4]) {
    Integers four = same_integer(0);
    __m256i byte = _mm256_set1_epi32(255);
    for (int i = 3; i >= 0; i--) {
        four.low = _mm256_or_si256(_mm256_slli_epi32(four.low, 8), _mm256_and_si256(x[i].low, byte));
        four.high = _mm256_or_si256(_mm256_slli_epi32(four.high, 8), _mm256_and_si256(x[i].high, byte));
    }
    _mm256_storeu_si256((__m256i *)target, four.low);
    _mm256_storeu_si256((__m256i *)(target + 32), four.high);
}

/* --- sums --------------------------------------------------------------------------------------------------------- */

/* Of each 128 bits of 4 vectors the sum, side by side: added up as AVX-512 does. */
ALWAYS __m256 sums_of_quarters(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 first = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    __m256 second = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256d low = _mm256_castps_pd(first), high = _mm256_castps_pd(second);
    return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(low, high)), _mm256_castpd_ps(_mm256_unpackhi_pd(low, high)));
}

ALWAYS __m128 sums_of_4(const Floats v[4]) {
    __m256 low = sums_of_quarters(v[0].low, v[1].low, v[2].low, v[3].low);
    __m256 high = sums_of_quarters(v[0].high, v[1].high, v[2].high, v[3].high);
    __m128 first = _mm_add_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
    return _mm_add_ps(first, _mm_add_ps(_mm256_castps256_ps128(high), _mm256_extractf128_ps(high, 1)));
}

/* The sums of 16 vectors, in their order. */
ALWAYS Floats sums(const Floats v[WIDE]) {
    return (Floats){_mm256_set_m128(sums_of_4(v + 4), sums_of_4(v)), _mm256_set_m128(sums_of_4(v + 12), sums_of_4(v + 8))};
}

/* --- products of 8 bits ------------------------------------------------------------------------------------------- */

ALWAYS __m256i widened(const int8_t *bytes) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)bytes)); }

/* Sums of two neighbours each, four of one vector's and four of the other's, in the order of what they belong to. */
ALWAYS __m256i sums_of_pairs(__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8); }

/* A few rows of steps times [inputs / 4] of 8 outputs' [8][4], GROUP * 4 bytes apart. A function of its own for each number
of rows: inlined into a larger one, not all sums are kept in registers. */
static __attribute__((noinline)) void multiply_steps_8(__m256i total[MOST_ROWS], const int8_t *weight, const Step *x,
                                                       int64_t stride, int64_t inputs, const int rows) {
    __m256i sum[MOST_ROWS][2];
    UNROLLED
    for (int row = 0; row < rows; row++) sum[row][0] = sum[row][1] = _mm256_setzero_si256();
    for (int64_t i = 0; i < inputs; i += 4) {
        __m256i first = widened(weight + GROUP * i), second = widened(weight + GROUP * i + 16);
        UNROLLED
        for (int row = 0; row < rows; row++) {
            int64_t steps;
            __builtin_memcpy(&steps, x + row * stride + i, sizeof steps);
            __m256i four = _mm256_set1_epi64x(steps);
            sum[row][0] = _mm256_add_epi32(sum[row][0], _mm256_madd_epi16(four, first));
            sum[row][1] = _mm256_add_epi32(sum[row][1], _mm256_madd_epi16(four, second));
        }
    }
    UNROLLED
    for (int row = 0; row < rows; row++) total[row] = sums_of_pairs(sum[row][0], sum[row][1]);
}

/* A few rows of steps, `stride` apart, times [inputs / 4][GROUP][4]; the sums stay in registers, so all loops over them are
unrolled. Four inputs of 4 outputs are one instruction. */
ALWAYS void multiply_steps(Integers total[MOST_ROWS][GROUP / WIDE], const int8_t *weight, const Step *x, int64_t stride,
                           int64_t inputs, const int rows) {
    __m256i half[MOST_ROWS];
    multiply_steps_8(half, weight, x, stride, inputs, rows);
    UNROLLED
    for (int row = 0; row < rows; row++) total[row][0].low = half[row];
    multiply_steps_8(half, weight + 32, x, stride, inputs, rows);
    UNROLLED
    for (int row = 0; row < rows; row++) total[row][0].high = half[row];
}

/* The same of 16 bits: a few rows, `stride` apart, times [inputs / 2][GROUP][2]. */
ALWAYS void multiply_words(Integers total[MOST_WORDS][GROUP / WIDE], const int16_t *weight, const int16_t *x, int64_t stride,
                           int64_t inputs, const int rows) {
    Integers sum[MOST_WORDS];
    UNROLLED
    for (int row = 0; row < rows; row++) sum[row] = same_integer(0);
    for (int64_t i = 0; i < inputs; i += 2) {
        __m256i low = _mm256_loadu_si256((const __m256i *)(weight + GROUP * i));
        __m256i high = _mm256_loadu_si256((const __m256i *)(weight + GROUP * i + WIDE));
        UNROLLED
        for (int row = 0; row < rows; row++) {
            int32_t words;
            __builtin_memcpy(&words, x + row * stride + i, sizeof words);
            __m256i two = _mm256_set1_epi32(words);
            sum[row].low = _mm256_add_epi32(sum[row].low, _mm256_madd_epi16(two, low));
            sum[row].high = _mm256_add_epi32(sum[row].high, _mm256_madd_epi16(two, high));
        }
    }
    UNROLLED
    for (int row = 0; row < rows; row++) total[row][0] = sum[row];
}

/* 15 bits of each weight of a row: [room]. */
ALWAYS void put_weights(uint16_t *row, int64_t room, int64_t first, Integers x) {
    (void)room;
    put_words((int16_t *)row + first, x);
}

#define MOST_WEIGHTS MOST_ROWS /* rows of them at once */
#define SUMMED 1024            /* positions, whose sums of weights have no more than 32 bits */

ALWAYS __m256 rounded_once(__m256i a, __m256i b) {
    __m256d low = _mm256_add_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(a)), _mm256_cvtepi32_pd(_mm256_castsi256_si128(b)));
    __m256d high = _mm256_add_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(a, 1)), _mm256_cvtepi32_pd(_mm256_extracti128_si256(b, 1)));
    return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
}

/* A few rows of weights, `room` for each, times [positions / 4][GROUP][4]; positions are no more than two times SUMMED. */
ALWAYS void multiply_weights(Floats sum[MOST_WEIGHTS][GROUP / WIDE], const int8_t *values, const uint16_t *weights, int64_t room,
                             int64_t positions, const int rows) {
    Integers first[MOST_ROWS][GROUP / WIDE], second[MOST_ROWS][GROUP / WIDE];
    int64_t summed = positions < SUMMED ? positions : SUMMED;
    multiply_steps(first, values, (const Step *)weights, room, summed, rows);
    multiply_steps(second, values + summed * GROUP, (const Step *)weights + summed, room, positions - summed, rows);
    UNROLLED
    for (int row = 0; row < rows; row++)
        sum[row][0] = (Floats){rounded_once(first[row][0].low, second[row][0].low), rounded_once(first[row][0].high, second[row][0].high)};
}

typedef struct {
    __m256i part[4];
} Asked;

/* 64 numbers of 16 bits. */
ALWAYS Asked ask(const Integers x[4]) {
    Asked asked;
    for (int i = 0; i < 4; i++) asked.part[i] = in_words(x[i]);
    return asked;
}

ALWAYS __m128i answers_of_4(const uint8_t *rows, int64_t left, Asked asked) {
    __m256i products[4];
    for (int lane = 0; lane < 4; lane++) {
        const __m128i *row = (const __m128i *)(rows + (lane < left ? lane : left - 1) * 64);
        products[lane] = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            __m256i part = _mm256_cvtepu8_epi16(_mm_loadu_si128(row + i));
            products[lane] = _mm256_add_epi32(products[lane], _mm256_madd_epi16(part, asked.part[i]));
        }
    }
    __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(products[0], products[1]), _mm256_hadd_epi32(products[2], products[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

/* What is asked times each of 16 rows of 64 bytes, of which the last that is left stands for all after it. */
ALWAYS Integers answers(const uint8_t *rows, int64_t left, Asked asked) {
    __m128i four[4];
    for (int i = 0; i < 4; i++) {
        int64_t first = 4 * i < left ? 4 * i : left - 1;
        four[i] = answers_of_4(rows + first * 64, left - first, asked);
    }
    return (Integers){_mm256_set_m128i(four[1], four[0]), _mm256_set_m128i(four[3], four[2])};
}
