/* How wide vectors are, whatever processor they are for. */
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define WIDE 16 /* numbers in a vector */
#define UNROLLED _Pragma("GCC unroll 16")
#define ALWAYS static inline __attribute__((always_inline))
