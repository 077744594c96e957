/* The likeliest token by Whisper's rules on timestamps: what asr/rules.py does, and says why. */
#pragma once
#include <math.h>

#include "vector.h"

typedef struct {
    const float *logits;    /* of each row, `stride` numbers apart: text, the end, and from `begin` on timestamps */
    int64_t stride, end, begin, stamps, first_stamps; /* first_stamps: the latest that a text may begin with */
    const uint8_t *first, *timestamps, *opened, *paired; /* the rows' states, as in `RuleState` */
    const int64_t *last;
    int64_t *tokens; /* written, as are all below: see `Choice` */
    float *best, *end_logit, *stamp_sum;
    uint8_t *text_allowed;
} Choosing;

typedef struct {
    const float *x;
    int64_t stride, count;
    float *found;
} Summing;

static float largest(const float *x, int64_t count) {
    Floats most = same(-INFINITY);
    for (int64_t i = 0; i < count; i += WIDE)
        most = choose_lanes(up_to(count - i), larger(most, get_up_to(x + i, count - i)), most);
    return largest_of(most);
}

/* Where a number stands first; 0 where it does not. */
static int64_t place(const float *x, int64_t count, float number) {
    for (int64_t i = 0; i < count; i += WIDE) {
        int lane = find(get_up_to(x + i, count - i), number, count - i);
        if (lane >= 0) return i + lane;
    }
    return 0;
}

static float log_sum(const float *x, int64_t count, float most) {
    if (most == -INFINITY) return most;
    Floats sum = same(0.0f);
    for (int64_t i = 0; i < count; i += WIDE) {
        Floats part = exponential(minus(get_up_to(x + i, count - i), same(most)));
        sum = choose_lanes(up_to(count - i), plus(sum, part), sum);
    }
    return most + logf(sum_of(sum));
}

static void choose(void *argument, int64_t row) {
    const Choosing *all = argument;
    const float *x = all->logits + row * all->stride, *stamps = x + all->begin;
    int64_t earliest = all->opened[row] ? all->last[row] : all->last[row] + 1;
    int64_t latest = all->first[row] && all->first_stamps < all->stamps ? all->first_stamps + 1 : all->stamps;
    if (earliest < 0) earliest = 0;
    int may_stamp = all->timestamps[row] && !all->paired[row] && earliest < latest;
    float stamp_best = may_stamp ? largest(stamps + earliest, latest - earliest) : -INFINITY;
    float stamp_sum = may_stamp ? log_sum(stamps + earliest, latest - earliest, stamp_best) : -INFINITY;
    int may_write = !((all->first[row] && all->timestamps[row]) || all->opened[row]);
    float text_best = may_write ? largest(x, all->end) : -INFINITY;
    float end = all->first[row] ? -INFINITY : x[all->end];
    int stamp_wins = stamp_sum > (text_best > end ? text_best : end);
    if (stamp_wins) text_best = end = -INFINITY;
    float best = text_best > end ? text_best : end;
    if (stamp_best > best) best = stamp_best;
    all->tokens[row] = best == text_best ? place(x, all->end, best)
                       : best == end     ? all->end
                                         : all->begin + earliest + place(stamps + earliest, latest - earliest, best);
    all->best[row] = best;
    all->end_logit[row] = end;
    all->stamp_sum[row] = stamp_sum;
    all->text_allowed[row] = may_write && !stamp_wins;
}

static void add_up(void *argument, int64_t row) {
    const Summing *all = argument;
    const float *x = all->x + row * all->stride;
    all->found[row] = log_sum(x, all->count, largest(x, all->count));
}
