/* Functions of 16 floats at a time that the processor has no instruction for. */
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define WIDE 16 /* floats in a vector */
#define UNROLLED _Pragma("GCC unroll 16")
#define ALWAYS static inline __attribute__((always_inline))

/* e to the x: 2^n times a polynomial on half a power of two on either side of 1 (Cephes' coefficients); 1 ulp or two. */
ALWAYS __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), x);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(x, x), p, x), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* The same to 1e-4 of it, in half the steps: for weights that are rounded to 16 bits afterwards. */
ALWAYS __m512 rough_exponential(__m512 x) {
    x = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), rest = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(0.0096181291f);
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.0555041087f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.2402265070f));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.6931471806f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0f)), n);
}

/* x times the share of a normal distribution below x; the error function after Abramowitz and Stegun 7.1.26 (1.5e-7). */
ALWAYS __m512 gelu(__m512 x) {
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 t = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f)));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    __m512 rest = _mm512_mul_ps(_mm512_mul_ps(p, t), exponential(_mm512_mul_ps(z, _mm512_sub_ps(_mm512_setzero_ps(), z))));
    __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f)); /* x/2 (1 + erf) above zero, x/2 (1 - erf) below */
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    __m512 above = _mm512_mul_ps(half, _mm512_sub_ps(_mm512_set1_ps(2.0f), rest));
    return _mm512_mask_mul_ps(above, negative, half, rest);
}

/* The sums of 16 vectors, in their order. */
ALWAYS __m512 sums(const __m512 v[WIDE]) {
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
ALWAYS __m512i integer_sums(const __m512i v[WIDE]) {
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

/* The first lanes of a vector, as many as are left. */
ALWAYS __mmask16 up_to(int64_t left) { return left >= WIDE ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1); }

typedef enum { FLOAT32, BFLOAT16 } Type;

/* 16 numbers from the given index on. */
ALWAYS __m512 load(const void *numbers, size_t index, Type type) {
    if (type == FLOAT32) return _mm512_loadu_ps((const float *)numbers + index);
    __m256i upper = _mm256_loadu_si256((const __m256i *)((const uint16_t *)numbers + index));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}
