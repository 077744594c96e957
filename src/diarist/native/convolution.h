/* Convolutions of images in 12 bits: weights have as many, and pixels one more, so that sums of 256 products are exact in 32.

Each pixel has a scale of its own: what comes of it does not depend on what else there is. The products of the pixels that
one output sees are added up as floats, one after the other. A part of the work is a few rows of outputs; its inputs are
quantised by whoever does it, and stay in the cache.

Convolutions of 3 x 3 with stride 1 are not done here: see winograd.h. */
#pragma once
#include "vector.h"

#define ROWS 16 /* of outputs, in a part */

typedef struct {
    const int16_t *weight; /* [outputs / GROUP][size][size][inputs / 2][GROUP][2]; for winograd.h see there */
    const float *scale;    /* of each output */
    const float *bias;
    int64_t inputs, outputs; /* of a pixel, up to 256; multiples of WIDE */
    int64_t size, stride;    /* in both directions; size / 2 zeros are added around the image */
} Convolution;

typedef struct {
    const Convolution *convolution;
    const float *x;     /* [height][width][inputs] */
    const float *added; /* NULL, or laid out as y, which it may be */
    float *y;           /* [height / stride][width / stride][outputs], both rounded up */
    int64_t height, width, relu;
    atomic_int failed;
} Convolving;

ALWAYS void quantise_pixel(const float *x, int64_t inputs, int16_t *steps, float *scale) {
    Floats most = same(0.0f);
    for (int64_t i = 0; i < inputs; i += WIDE) most = larger(most, absolute(get(x + i)));
    float loudest = largest_of(most);
    *scale = loudest / MOST_STEPS;
    Floats factor = same(loudest > 1e-30f ? MOST_STEPS / loudest : 0.0f);
    for (int64_t i = 0; i < inputs; i += WIDE) put_words(steps + i, rounded(times(get(x + i), factor)));
}

/* Sixteen outputs, with what else belongs to them; `place` is where they are in y. */
ALWAYS void put_outputs(const Convolving *all, int64_t place, Floats value) {
    if (all->added) value = plus(value, get(all->added + place));
    if (all->relu) value = larger(value, same(0.0f));
    put(all->y + place, value);
}

/* Rows of the image from `first` on, with zeros around. */
static void quantise_rows(const Convolving *all, int64_t first, int64_t rows, int16_t *steps, float *scales) {
    int64_t inputs = all->convolution->inputs, edge = all->convolution->size / 2, width = all->width + 2 * edge;
    memset(steps, 0, rows * width * inputs * sizeof(int16_t));
    memset(scales, 0, rows * width * sizeof(float));
    for (int64_t row = 0; row < rows; row++) {
        if (first + row < 0 || first + row >= all->height) continue;
        for (int64_t at = 0; at < all->width; at++) {
            int64_t place = row * width + edge + at;
            quantise_pixel(all->x + ((first + row) * all->width + at) * inputs, inputs, steps + place * inputs, scales + place);
        }
    }
}

/* A few pixels beside each other: GROUP outputs of each, from `output` on. */
ALWAYS void convolve_pixels(const Convolving *all, int64_t output, const int16_t *steps, const float *scales, int64_t width,
                            int64_t target, const int pixels) {
    const Convolution *c = all->convolution;
    const int16_t *weight = c->weight + output * c->inputs * c->size * c->size;
    Floats sum[MOST_WORDS][GROUP / WIDE];
    UNROLLED
    for (int pixel = 0; pixel < pixels; pixel++) {
        UNROLLED
        for (int block = 0; block < GROUP / WIDE; block++) sum[pixel][block] = same(0.0f);
    }
    for (int64_t high = 0; high < c->size; high++)
        for (int64_t wide = 0; wide < c->size; wide++, weight += c->inputs * GROUP) {
            int64_t place = high * width + wide;
            Integers total[MOST_WORDS][GROUP / WIDE];
            multiply_words(total, weight, steps + place * c->inputs, c->stride * c->inputs, c->inputs, pixels);
            UNROLLED
            for (int pixel = 0; pixel < pixels; pixel++) {
                Floats scale = same(scales[place + pixel * c->stride]);
                UNROLLED
                for (int block = 0; block < GROUP / WIDE; block++)
                    sum[pixel][block] = plus_product(sum[pixel][block], floats(total[pixel][block]), scale);
            }
        }
    for (int block = 0; block < GROUP / WIDE; block++) {
        int64_t at = output + WIDE * block;
        if (at >= c->outputs) return;
        Floats scale = get(c->scale + at), bias = get(c->bias + at);
        for (int pixel = 0; pixel < pixels; pixel++)
            put_outputs(all, target + pixel * c->outputs + at, plus_product(bias, sum[pixel][block], scale));
    }
}

static void convolve_rows(void *argument, int64_t part) {
    Convolving *all = argument;
    const Convolution *c = all->convolution;
    int64_t high = (all->height + c->stride - 1) / c->stride, across = (all->width + c->stride - 1) / c->stride;
    int64_t first = ROWS * part, rows = high - first < ROWS ? high - first : ROWS;
    int64_t edge = c->size / 2, width = all->width + 2 * edge, seen = (rows - 1) * c->stride + c->size;
    float *scales = scratch(seen * width * (sizeof(float) + c->inputs * sizeof(int16_t)));
    if (scales == NULL) {
        atomic_store(&all->failed, 1);
        return;
    }
    int16_t *steps = (int16_t *)(scales + seen * width);
    quantise_rows(all, first * c->stride - edge, seen, steps, scales);
    for (int64_t output = 0; output < c->outputs; output += GROUP)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t at = 0; at < across;) {
                int64_t place = row * c->stride * width + at * c->stride, target = ((first + row) * across + at) * c->outputs;
                const int16_t *corner = steps + place * c->inputs;
                int fits = across - at >= MOST_WORDS;
                if (fits)
                    convolve_pixels(all, output, corner, scales + place, width, target, MOST_WORDS);
                else
                    convolve_pixels(all, output, corner, scales + place, width, target, 1);
                at += fits ? MOST_WORDS : 1;
            }
}
