/* Convolutions of 3 x 3 with stride 1, with fewer products (Lavin and Gray, "Fast algorithms for convolutional neural
networks", CVPR 2016): a tile of 2 x 2 outputs takes 16 instead of 36. `weight` is [outputs / GROUP][PLACES][inputs / 2]
[GROUP][2] here, and `scale` [PLACES][outputs].

The 4 x 4 pixels that a tile sees are mixed to 16 others, by additions alone, as the weights were beforehand; these are
multiplied place by place and mixed again to the tile. Each place of a tile is quantised like a pixel elsewhere, so what
comes of a tile does not depend on what else there is. */
#pragma once
#include "convolution.h"

#define EDGE 4 /* of what a tile sees */
#define PLACES (EDGE * EDGE)
#define TILES 40 /* of a part, about: what they are mixed to stays in the cache */

typedef struct { /* of a part */
    int64_t count;   /* filled up to a multiple of MOST_WORDS */
    int16_t *steps;  /* [PLACES][count][inputs] */
    float *scales;   /* [PLACES][count] */
    float *products; /* [PLACES][count][GROUP] */
} Tiles;

/* Four become four: what is the tile's first and last see, and both between. */
ALWAYS void mix_seen(Floats x[EDGE], int64_t apart) {
    Floats first = x[0], second = x[apart], third = x[2 * apart], fourth = x[3 * apart];
    x[0] = minus(first, third);
    x[apart] = plus(second, third);
    x[2 * apart] = minus(third, second);
    x[3 * apart] = minus(second, fourth);
}

/* Of the image's rows and columns from the given ones on, which may lie outside. */
static void quantise_tile(const Convolving *all, int64_t row, int64_t column, const Tiles *tiles, int64_t tile) {
    static const float nothing[256];
    int64_t inputs = all->convolution->inputs;
    float mixed[PLACES][256];
    const float *pixels[PLACES];
    for (int64_t place = 0; place < PLACES; place++) {
        int64_t high = row + place / EDGE, wide = column + place % EDGE;
        int inside = high >= 0 && high < all->height && wide >= 0 && wide < all->width;
        pixels[place] = inside ? all->x + (high * all->width + wide) * inputs : nothing;
    }
    for (int64_t i = 0; i < inputs; i += WIDE) {
        Floats x[PLACES];
        UNROLLED
        for (int place = 0; place < PLACES; place++) x[place] = get(pixels[place] + i);
        UNROLLED
        for (int line = 0; line < EDGE; line++) mix_seen(x + line, EDGE);
        UNROLLED
        for (int line = 0; line < EDGE; line++) mix_seen(x + line * EDGE, 1);
        UNROLLED
        for (int place = 0; place < PLACES; place++) put(mixed[place] + i, x[place]);
    }
    for (int64_t place = 0; place < PLACES; place++) {
        int64_t at = place * tiles->count + tile;
        quantise_pixel(mixed[place], inputs, tiles->steps + at * inputs, tiles->scales + at);
    }
}

/* GROUP outputs of all tiles, from `output` on. */
static void multiply_tiles(const Convolution *c, const Tiles *tiles, int64_t output) {
    const int16_t *weight = c->weight + output * c->inputs * PLACES;
    for (int64_t place = 0; place < PLACES; place++, weight += c->inputs * GROUP)
        for (int64_t tile = 0; tile < tiles->count; tile += MOST_WORDS) {
            int64_t at = place * tiles->count + tile;
            Integers total[MOST_WORDS][GROUP / WIDE];
            multiply_words(total, weight, tiles->steps + at * c->inputs, c->inputs, c->inputs, MOST_WORDS);
            UNROLLED
            for (int row = 0; row < MOST_WORDS; row++) {
                Floats scale = same(tiles->scales[at + row]);
                UNROLLED
                for (int block = 0; block < GROUP / WIDE; block++)
                    put(tiles->products + (at + row) * GROUP + WIDE * block, times(floats(total[row][block]), scale));
            }
        }
}

/* Four become two. */
ALWAYS void mix_products(Floats x[EDGE], int64_t apart) {
    Floats sum = plus(x[apart], x[2 * apart]), difference = minus(x[apart], x[2 * apart]);
    x[0] = plus(x[0], sum);
    x[apart] = minus(difference, x[3 * apart]);
}

/* Sixteen outputs of a tile, of which `products` has those of one place, the next ones so many floats further. */
ALWAYS void put_tile(const Convolving *all, int64_t row, int64_t column, int64_t output, const float *products, int64_t apart) {
    const Convolution *c = all->convolution;
    Floats x[PLACES];
    UNROLLED
    for (int place = 0; place < PLACES; place++)
        x[place] = times(get(products + place * apart), get(c->scale + place * c->outputs + output));
    UNROLLED
    for (int line = 0; line < EDGE; line++) mix_products(x + line, EDGE);
    UNROLLED
    for (int line = 0; line < 2; line++) mix_products(x + line * EDGE, 1);
    for (int64_t high = 0; high < 2 && row + high < all->height; high++)
        for (int64_t wide = 0; wide < 2 && column + wide < all->width; wide++) {
            int64_t target = ((row + high) * all->width + column + wide) * c->outputs + output;
            put_outputs(all, target, plus(x[high * EDGE + wide], get(c->bias + output)));
        }
}

ALWAYS int64_t rows_of_tiles(int64_t width) { return width < 2 * TILES ? 2 * TILES / width : 1; }

static void convolve_tiles(void *argument, int64_t part) {
    Convolving *all = argument;
    const Convolution *c = all->convolution;
    int64_t across = (all->width + 1) / 2, most = rows_of_tiles(all->width);
    int64_t first = most * part, left = (all->height + 1) / 2 - first, count = (left < most ? left : most) * across;
    Tiles tiles = {(count + MOST_WORDS - 1) / MOST_WORDS * MOST_WORDS, NULL, NULL, NULL};
    int64_t places = PLACES * tiles.count;
    tiles.products = scratch(places * ((GROUP + 1) * sizeof(float) + c->inputs * sizeof(int16_t)));
    if (tiles.products == NULL) {
        atomic_store(&all->failed, 1);
        return;
    }
    tiles.scales = tiles.products + places * GROUP;
    tiles.steps = (int16_t *)(tiles.scales + places);
    for (int64_t tile = 0; tile < tiles.count; tile++) /* those that fill up are nobody's */
        quantise_tile(all, 2 * (first + tile / across) - 1, 2 * (tile % across) - 1, &tiles, tile);
    for (int64_t output = 0; output < c->outputs; output += GROUP) {
        multiply_tiles(c, &tiles, output);
        for (int64_t tile = 0; tile < count; tile++)
            for (int64_t block = 0; block < GROUP && output + block < c->outputs; block += WIDE)
                put_tile(all, 2 * (first + tile / across), 2 * (tile % across), output + block,
                         tiles.products + tile * GROUP + block, tiles.count * GROUP);
    }
}
