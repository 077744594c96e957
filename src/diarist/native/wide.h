/* How wide vectors are, whatever processor they are for. */
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define WIDE 16            /* numbers in a vector */
#define MOST_STEPS 4095.0f /* of numbers that are multiplied by weights of 12 bits: sums of 256 such products have 31 */
#define UNROLLED _Pragma("GCC unroll 16")
#define ALWAYS static inline __attribute__((always_inline))
