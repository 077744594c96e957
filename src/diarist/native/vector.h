/* Functions of 16 floats at a time that no processor has an instruction for. */
#pragma once
#include "wide.h"

#ifdef __AVX512VNNI__
#include "avx512.h"
#else
#include "avx2.h"
#endif

/* e to the x: 2^n times a polynomial on half a power of two on either side of 1 (Cephes' coefficients); 1 ulp or two. */
ALWAYS Floats exponential(Floats x) {
    x = larger(smaller(x, same(88.0f)), same(-87.0f));
    Floats n = nearest(times(x, same(1.44269504f)));
    x = minus_product(x, n, same(0.693359375f));
    x = minus_product(x, n, same(-2.12194440e-4f));
    Floats p = plus_product(same(1.3981999507e-3f), same(1.9875691500e-4f), x);
    p = plus_product(same(8.3334519073e-3f), p, x);
    p = plus_product(same(4.1665795894e-2f), p, x);
    p = plus_product(same(1.6666665459e-1f), p, x);
    p = plus_product(same(5.0000001201e-1f), p, x);
    p = plus(plus_product(x, times(x, x), p), same(1.0f));
    return times_power(p, n);
}

/* The same to 1e-4 of it, in half the steps: for weights that are rounded to 16 bits afterwards. */
ALWAYS Floats rough_exponential(Floats x) {
    x = times(x, same(1.44269504f));
    Floats n = nearest(x), rest = minus(x, n);
    Floats p = plus_product(same(0.0555041087f), same(0.0096181291f), rest);
    p = plus_product(same(0.2402265070f), p, rest);
    p = plus_product(same(0.6931471806f), p, rest);
    return times_power(plus_product(same(1.0f), p, rest), n);
}

/* x times the share of a normal distribution below x; the error function after Abramowitz and Stegun 7.1.26 (1.5e-7). */
ALWAYS Floats gelu(Floats x) {
    Floats z = times(absolute(x), same(0.70710678f));
    Floats t = over(same(1.0f), plus_product(same(1.0f), z, same(0.3275911f)));
    Floats p = plus_product(same(-1.453152027f), same(1.061405429f), t);
    p = plus_product(same(1.421413741f), p, t);
    p = plus_product(same(-0.284496736f), p, t);
    p = plus_product(same(0.254829592f), p, t);
    Floats rest = times(times(p, t), exponential(times(z, minus(same(0.0f), z))));
    Floats half = times(x, same(0.5f)); /* x/2 (1 + erf) above zero, x/2 (1 - erf) below */
    return choose_lanes(negative(x), times(half, rest), times(half, minus(same(2.0f), rest)));
}

typedef enum { FLOAT32, BFLOAT16, FLOAT16 } Type;

static size_t size_of(Type type) { return type == FLOAT32 ? sizeof(float) : sizeof(uint16_t); }

/* 16 numbers from the given index on. */
ALWAYS Floats load(const void *numbers, size_t index, Type type) {
    if (type == FLOAT32) return get((const float *)numbers + index);
    const uint16_t *halves = (const uint16_t *)numbers + index;
    return type == BFLOAT16 ? get_bfloat16(halves) : get_float16(halves);
}
