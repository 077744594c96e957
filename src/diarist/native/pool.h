/* Threads that help the caller with parts of a piece of work.

Helpers wait for the next piece awake for a moment, then asleep: the pieces of one pass follow each other within
microseconds, and on a virtual machine it takes a tenth of a millisecond to wake a processor. They are started when first
wanted, anew in a process that was forked, and never stopped. A second caller at the same time does its work alone. */
#pragma once
#define _GNU_SOURCE
#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST_HELPERS 63
#define LOOKS 4000 /* before a helper sleeps: some 100 us */

/* Memory of the calling thread, for as long as it asks for no other; NULL where there is none. */
static void *scratch(size_t bytes) {
    static _Thread_local struct {
        void *memory;
        size_t bytes;
    } own;
    if (bytes > own.bytes) {
        free(own.memory);
        bytes = (bytes + 4095) / 4096 * 4096;
        own.memory = aligned_alloc(64, bytes);
        own.bytes = own.memory == NULL ? 0 : bytes;
    }
    return own.memory;
}

typedef void Work(void *argument, int64_t part);

static struct {
    pthread_mutex_t busy;
    atomic_int round, open, active, asleep;
    Work *work;
    void *argument;
    int64_t parts;
    atomic_llong next, left;
    int wanted, helpers;
    pid_t process;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER};

static void do_parts(void) {
    for (int64_t part; (part = atomic_fetch_add(&pool.next, 1)) < pool.parts; atomic_fetch_sub(&pool.left, 1))
        pool.work(pool.argument, part);
}

static void *help(void *number) {
    int seen = 0; /* a round that has begun already is worth a look */
    for (;;) {
        for (int looks = 0; atomic_load(&pool.round) == seen && looks < LOOKS; looks++) _mm_pause();
        while (atomic_load(&pool.round) == seen) {
            atomic_fetch_add(&pool.asleep, 1);
            syscall(SYS_futex, &pool.round, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
            atomic_fetch_sub(&pool.asleep, 1);
        }
        seen = atomic_load(&pool.round);
        atomic_fetch_add(&pool.active, 1); /* from here on the caller waits, unless it has closed the round already */
        if (atomic_load(&pool.open) && (intptr_t)number < pool.wanted) do_parts();
        atomic_fetch_sub(&pool.active, 1);
    }
    return NULL;
}

static void start_helpers(int wanted) {
    if (pool.process != getpid()) {
        pool.process = getpid();
        pool.helpers = 0;
        atomic_store(&pool.active, 0);
        atomic_store(&pool.asleep, 0);
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the interpreter's business */
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (pool.helpers < wanted && !pthread_create(&thread, &attributes, help, (void *)(intptr_t)pool.helpers)) pool.helpers++;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Do `work(argument, part)` for each of `parts`, in at most so many threads. */
static void in_threads(Work *work, void *argument, int64_t parts, int64_t threads) {
    if (threads > parts) threads = parts;
    if (threads > MOST_HELPERS + 1) threads = MOST_HELPERS + 1;
    if (threads < 2 || pthread_mutex_trylock(&pool.busy)) {
        for (int64_t part = 0; part < parts; part++) work(argument, part);
        return;
    }
    start_helpers((int)threads - 1);
    pool.work = work;
    pool.argument = argument;
    pool.parts = parts;
    pool.wanted = (int)threads - 1;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.left, parts);
    atomic_store(&pool.open, 1);
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.asleep)) syscall(SYS_futex, &pool.round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    do_parts();
    while (atomic_load(&pool.left)) _mm_pause();
    atomic_store(&pool.open, 0);
    while (atomic_load(&pool.active)) _mm_pause();
    pthread_mutex_unlock(&pool.busy);
}
