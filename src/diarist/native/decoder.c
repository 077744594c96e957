/* Whisper's decoder for a few tokens at a time, on processors with AVX-512 VNNI, or with AVX2.

What takes the time of such a pass in PyTorch is not arithmetic but the several hundred small operations that it is made
of. Here a pass is one call. It computes what asr/network.py does with 8-bit products. Threads take rows of their own.

At the end stands all that is called from Python, the encoder's layers among it. */
#include "pool.h" /* first: it asks for more of the system's headers */

#include <string.h>

#include "attention.h"
#include "choice.h"
#include "encoder.h"
#include "layers.h"
#include "recurrence.h"
#include "winograd.h"

typedef struct {
    Norm self_norm, cross_norm, mlp_norm;
    Product query_key_value, self_out, cross_query, cross_out, mlp_in, mlp_out;
} Block;

typedef struct {
    const Block *blocks;
    Norm norm;
    const void *embedding; /* [tokens][state] */
    const float *positions;
    const Product *fuse; /* NULL, or of an embedding and a hidden state */
    Type embedding_type;
    int64_t layers, state, aligned; /* aligned: how many alignment heads there are */
    const int64_t *alignment_heads; /* layer and head of each */
} Network;

typedef struct { /* see DecoderCache; addresses of each layer's tensors */
    float *const *self_keys, *const *self_values; /* [rows][positions][state] */
    const uint8_t *const *cross_keys; /* [rows][heads x most_heard x HEAD], of which the heads' `Heard` come first */
    const int8_t *const *cross_values;
    const float *const *key_scales, *const *value_scales; /* [rows][heads x most_heard], used alike */
    float *alignment_queries; /* [rows][positions][aligned][HEAD] */
    float *hidden_before;     /* NULL, or [rows][positions + 1][state] */
    int64_t positions, most_heard;
} Cache;

typedef struct { /* rows of a cache, q tokens in each */
    const int64_t *tokens, *starts, *heard; /* [n][q], [n], [n] */
    const float *before;                    /* NULL, or [n][q][state] */
    float *hidden;                          /* [n][q][state], written */
    int64_t first, n, q;
} Rows;

typedef struct { /* memory of one pass */
    float *x, *wide, *narrow, *scores;
    Quantised quantised;
} Memory;

static void embed(const Network *net, const Rows *rows, Memory *s) {
    int64_t state = net->state;
    for (int64_t m = 0; m < rows->n * rows->q; m++)
        for (int64_t i = 0; i < state; i += WIDE) {
            float *target = net->fuse ? s->wide + 2 * m * state + i : s->x + m * state + i;
            put(target, load(net->embedding, rows->tokens[m] * state + i, net->embedding_type));
            if (net->fuse) put(target + state, get(rows->before + m * state + i));
        }
    if (net->fuse) product(net->fuse, s->wide, rows->n * rows->q, s->x, SET, s->quantised);
    for (int64_t m = 0; m < rows->n * rows->q; m++) {
        const float *position = net->positions + (rows->starts[m / rows->q] + m % rows->q) * state;
        float *x = s->x + m * state;
        for (int64_t i = 0; i < state; i += WIDE) put(x + i, plus(get(x + i), get(position + i)));
    }
}

static void attend_self(const Network *net, const Cache *cache, const Rows *rows, int64_t layer, Memory *s) {
    int64_t state = net->state;
    for (int64_t m = 0; m < rows->n * rows->q; m++) {
        int64_t position = rows->starts[m / rows->q] + m % rows->q, past = (rows->first + m / rows->q) * cache->positions * state;
        float *keys = cache->self_keys[layer] + past, *values = cache->self_values[layer] + past;
        const float *projected = s->wide + m * 3 * state;
        memcpy(keys + position * state, projected + state, state * sizeof *keys);
        memcpy(values + position * state, projected + 2 * state, state * sizeof *values);
        for (int64_t head = 0; head < state; head += HEAD)
            attend_past(keys + head, values + head, state, position + 1, projected + head, s->narrow + m * state + head, s->scores);
    }
}

static void attend_cross(const Network *net, const Cache *cache, const Rows *rows, int64_t layer, Memory *s) {
    int64_t state = net->state, q = rows->q, most = filled(cache->most_heard);
    for (int64_t row = 0; row < rows->n; row++) {
        const float *queries = s->wide + row * q * state;
        for (int64_t head = 0; head < state / HEAD; head++) {
            int64_t scale = (rows->first + row) * state / HEAD * most + head * filled(rows->heard[row]), at = scale * HEAD;
            Heard heard = {cache->cross_keys[layer] + at, cache->cross_values[layer] + at, cache->key_scales[layer] + scale,
                           cache->value_scales[layer] + scale, rows->heard[row]};
            for (int64_t j = 0; j < q; j++)
                attend_heard(&heard, queries + j * state + head * HEAD, s->narrow + (row * q + j) * state + head * HEAD, s->scores);
        }
        for (int64_t place = 0; place < net->aligned; place++) {
            if (net->alignment_heads[2 * place] != layer) continue;
            for (int64_t j = 0; j < q; j++) {
                int64_t position = (rows->first + row) * cache->positions + rows->starts[row] + j;
                memcpy(cache->alignment_queries + (position * net->aligned + place) * HEAD,
                       queries + j * state + net->alignment_heads[2 * place + 1] * HEAD, HEAD * sizeof *queries);
            }
        }
    }
}

static int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* Read the tokens. Returns 0, or 1 where there is no memory for it. */
static int decode(const Network *net, const Cache *cache, const Rows *rows) {
    int64_t state = net->state, m = rows->n * rows->q;
    Memory s;
    int64_t room = 2 * most_of(cache->most_heard, cache->positions) + 4 * WIDE;
    int64_t floats = m * (1 + 4 + 1) * state + room + m;
    s.x = scratch(floats * sizeof(float) + m * 4 * state * sizeof(Step));
    if (s.x == NULL) return 1;
    s.wide = s.x + m * state;
    s.narrow = s.wide + 4 * m * state;
    s.scores = s.narrow + m * state;
    s.quantised.scales = s.scores + room;
    s.quantised.steps = (Step *)(s.x + floats);
    embed(net, rows, &s);
    for (int64_t layer = 0; layer < net->layers; layer++) {
        const Block *block = net->blocks + layer;
        normalise(&block->self_norm, s.x, s.narrow, m, state);
        product(&block->query_key_value, s.narrow, m, s.wide, SET, s.quantised);
        attend_self(net, cache, rows, layer, &s);
        product(&block->self_out, s.narrow, m, s.x, ADD, s.quantised);
        normalise(&block->cross_norm, s.x, s.narrow, m, state);
        product(&block->cross_query, s.narrow, m, s.wide, SET, s.quantised);
        attend_cross(net, cache, rows, layer, &s);
        product(&block->cross_out, s.narrow, m, s.x, ADD, s.quantised);
        normalise(&block->mlp_norm, s.x, s.narrow, m, state);
        product(&block->mlp_in, s.narrow, m, s.wide, SET_GELU, s.quantised);
        product(&block->mlp_out, s.wide, m, s.x, ADD, s.quantised);
    }
    normalise(&net->norm, s.x, rows->hidden, m, state);
    for (int64_t row = 0; cache->hidden_before != NULL && row < rows->n; row++) {
        int64_t position = (rows->first + row) * (cache->positions + 1) + rows->starts[row] + 1;
        memcpy(cache->hidden_before + position * state, rows->hidden + row * rows->q * state, rows->q * state * sizeof(float));
    }
    return 0;
}

typedef struct {
    const Network *net;
    const Cache *cache;
    const Rows *rows;
    int64_t parts;
    atomic_int failed;
} Decoding;

static void decode_part(void *argument, int64_t part) {
    Decoding *all = argument;
    Rows rows = *all->rows;
    int64_t begin = rows.n * part / all->parts, width = rows.q * all->net->state;
    rows.n = rows.n * (part + 1) / all->parts - begin;
    rows.tokens += begin * rows.q;
    rows.starts += begin;
    rows.heard += begin;
    rows.before = rows.before ? rows.before + begin * width : NULL;
    rows.hidden += begin * width;
    rows.first += begin;
    if (decode(all->net, all->cache, &rows)) atomic_store(&all->failed, 1);
}

/* Read the tokens, each thread those of some rows. */
int diarist_decode(const Network *net, const Cache *cache, const Rows *rows, int64_t threads) {
    Decoding all = {net, cache, rows, threads < rows->n ? threads : rows->n, 0};
    in_threads(decode_part, &all, all.parts, threads);
    return atomic_load(&all.failed);
}

typedef struct {
    const void *numbers;
    Type type;
    int64_t positions, state, are_values;
    int8_t *bytes;
    float *scales;
} Compression;

static void compress_head(void *argument, int64_t head) {
    const Compression *all = argument;
    int64_t at = head * filled(all->positions);
    const void *numbers = (const char *)all->numbers + head * HEAD * size_of(all->type);
    (all->are_values ? compress_values : compress_keys)(numbers, all->type, all->state, all->positions, all->bytes + at * HEAD, all->scales + at);
}

/* Keys or values [positions][state] become those of `Heard` for one head after the other. */
void diarist_compress(const void *numbers, Type type, int64_t positions, int64_t state, int64_t are_values,
                      int8_t *bytes, float *scales, int64_t threads) {
    Compression all = {numbers, type, positions, state, are_values, bytes, scales};
    in_threads(compress_head, &all, state / HEAD, threads);
}

typedef struct {
    const void *numbers;
    Type type;
    int64_t inputs, outputs;
    int8_t *weight;
    float *scale;
    int32_t *offset;
} Packing;

static void pack_group(void *argument, int64_t group) {
    const Packing *all = argument;
    for (int64_t output = GROUP * group; output < GROUP * (group + 1); output++) {
        int8_t *weight = all->weight + GROUP * group * all->inputs + FOUR * (output % GROUP);
        if (output < all->outputs) {
            const void *numbers = (const char *)all->numbers + output * all->inputs * size_of(all->type);
            pack(numbers, all->type, all->inputs, weight, all->scale + output, all->offset + output);
        }
    }
}

/* A matrix [outputs][inputs] becomes that of a `Product`. What its last group has too many is left as it is. */
void diarist_pack(const void *numbers, Type type, int64_t outputs, int64_t inputs, int8_t *weight, float *scale, int32_t *offset,
                  int64_t threads) {
    Packing all = {numbers, type, inputs, outputs, weight, scale, offset};
    in_threads(pack_group, &all, (outputs + GROUP - 1) / GROUP, threads);
}

#define PIECE 512 /* outputs that a thread takes at once, of a few rows: a multiple of GROUP */
#define MANY 128  /* or rows, of many */

typedef struct {
    const Product *product;
    const float *x;
    int64_t rows;
    Result result;
    Step *steps;
    float *scales;
} Multiplication;

static void multiply_outputs(void *argument, int64_t part) {
    const Multiplication *all = argument;
    int64_t outputs = all->product->outputs, first = part * PIECE, last = first + PIECE < outputs ? first + PIECE : outputs;
    multiply(all->product, all->steps, all->scales, all->rows, first, last, all->result);
}

static void multiply_rows(void *argument, int64_t part) {
    const Multiplication *all = argument;
    const Product *p = all->product;
    int64_t first = part * MANY, rows = all->rows - first < MANY ? all->rows - first : MANY;
    Step *steps = all->steps + first * p->inputs;
    Result result = all->result;
    result.y += first * result.stride;
    result.added = result.added ? result.added + first * result.stride : NULL;
    quantise(all->x + first * p->inputs, rows, p->inputs, steps, all->scales + first);
    multiply(p, steps, all->scales + first, rows, 0, p->outputs, result);
}

/* y [rows][outputs] of x [rows][inputs], then GELU, or what is added, laid out as y. Returns 0, or 1 where there is no
memory for it. */
int diarist_multiply(const Product *p, const float *x, int64_t rows, int64_t gelu, const float *added, float *y, int64_t threads) {
    float *scales = scratch(rows * (sizeof(float) + p->inputs * sizeof(Step)));
    if (scales == NULL) return 1;
    Multiplication all = {p, x, rows, {y, p->outputs, added, (int)gelu}, (Step *)(scales + rows), scales};
    if (rows >= 2 * MANY) {
        in_threads(multiply_rows, &all, (rows + MANY - 1) / MANY, threads);
    } else {
        quantise(x, rows, p->inputs, all.steps, scales);
        in_threads(multiply_outputs, &all, (p->outputs + PIECE - 1) / PIECE, threads);
    }
    return 0;
}

/* All layers of an encoder, and the norm after them. x is [windows x positions][state], read and written; `projected` has
three times, `attended` once as much room. Returns 0, or 1 where there is no memory for it. */
int diarist_encode(const EncoderBlock *blocks, int64_t layers, const Norm *norm, float *x, float *projected, float *attended,
                   int64_t windows, int64_t positions, int64_t state, int64_t threads) {
    Encoding all = {blocks, norm, x, windows * positions, {projected, positions, state, attended, 0}};
    int64_t parts = (all.rows + TOGETHER - 1) / TOGETHER;
    for (int64_t layer = 0; layer < layers; layer++, all.block++) {
        in_threads(project, &all, parts, threads);
        in_threads(attend_window, &all.window, windows * state / HEAD, threads);
        all.norm = layer + 1 < layers ? NULL : norm;
        in_threads(finish, &all, parts, threads);
    }
    return atomic_load(&all.window.failed);
}

void diarist_choose(Choosing *all, int64_t rows, int64_t threads) { in_threads(choose, all, rows, threads); }

/* The logarithm of the sum of each row's exponentials. */
void diarist_log_sums(const float *x, int64_t rows, int64_t stride, int64_t count, float *found, int64_t threads) {
    Summing all = {x, stride, count, found};
    in_threads(add_up, &all, rows, threads);
}

/* LSTM layers one after the other. x is [frames][windows][inputs] in steps of `scales`, one for each window; two rooms of
[frames][windows][2 x units] are for what goes from one layer to the next. Returns 0, or 1 where there is no memory for it. */
int diarist_recur(const Direction *directions, int64_t layers, const int16_t *x, const float *scales, int16_t *room, float *result,
                  int64_t frames, int64_t windows, int64_t inputs, int64_t units, int64_t threads) {
    int64_t groups = (windows + MOST_ROWS - 1) / MOST_ROWS;
    Recurrence r = {directions, x, scales, room, NULL, frames, windows, inputs, units, groups, 0};
    for (int64_t layer = 0; layer < layers; layer++) {
        if (layer == layers - 1) r.result = result;
        in_threads(pass_windows, &r, 2 * groups, threads);
        r.directions += 2;
        r.x = r.hidden;
        r.hidden = room + (layer % 2 ? 0 : frames * windows * 2 * units);
        r.scales = NULL;
        r.inputs = 2 * units;
    }
    return atomic_load(&r.failed);
}

/* y of x, as `Convolving` has them. Returns 0, or 1 where there is no memory for it. */
int diarist_convolve(const Convolution *convolution, const float *x, int64_t height, int64_t width, int64_t relu, const float *added,
                     float *y, int64_t threads) {
    Convolving all = {convolution, x, added, y, height, width, relu, 0};
    if (convolution->size == 3 && convolution->stride == 1) {
        int64_t most = rows_of_tiles(width);
        in_threads(convolve_tiles, &all, ((height + 1) / 2 + most - 1) / most, threads);
    } else {
        int64_t rows = (height + convolution->stride - 1) / convolution->stride;
        in_threads(convolve_rows, &all, (rows + ROWS - 1) / ROWS, threads);
    }
    return atomic_load(&all.failed);
}

/* Outputs of a product that are computed side by side. */
int diarist_group(void) { return GROUP; }

/* Whether this processor has what all of this is made of. */
int diarist_supported(void) {
    __builtin_cpu_init();
    return is_supported();
}
