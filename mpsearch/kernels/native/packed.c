/* Weights of 1 to 8 bits times inputs of 8: sums exact in int32, scaled by group in float32.
 *
 * One object for every CPU: what a function may use is said by its target, and what this CPU has is
 * asked when it runs. No function keeps anything, or allocates: any number may run at once.
 */
#include "layout.h"
#include "portable.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include "avx2.h"
#include "avx512.h"
#else
#define X86 0
#endif

#ifndef SOURCE
#define SOURCE "unknown"
#endif

enum { PORTABLE, AVX2, AVX512, PATHS };

/* How an input becomes codes: static where `inverse` is not 0, else by each token's largest. */
typedef struct {
    float inverse;
    int32_t zero, low, high;
} rule;

typedef void (*run)(const matrix *, const inputs *, const outputs *, int64_t);

const char *packed_source(void) { return SOURCE; }

/* The best path this CPU has. */
int64_t packed_path(void)
{
#if X86
    __builtin_cpu_init();
    int two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
    if (two && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return AVX512;
    return two ? AVX2 : PORTABLE;
#else
    return PORTABLE;
#endif
}

/* Lay (rows, columns) codes out; `to` holds zeros, as many bytes as `matrix` says. */
void packed_weights(const matrix *w, const uint8_t *codes, uint8_t *to)
{
    int64_t across = groups_of(w) * tiles_of(w) * w->bits * VECTOR;
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t c = 0; c < w->columns; c++) {
            int64_t within = c % w->group, tile = c / w->group * tiles_of(w) + within / COLUMNS;
            int j = (int)(within % COLUMNS / 4);
            uint8_t *at = to + r / ROWS * across + tile * w->bits * VECTOR + r % ROWS * 4 + within % 4;
            int value = codes[r * w->columns + c] << UP[w->bits][j % SLOTS];
            for (int p = 0; p < 3; p++) {
                const piece *from = &PIECES[w->bits][j][p];
                at[VECTOR * from->source] |= (uint8_t)moved(value & from->mask, -from->right);
            }
        }
}

/* The nearest integer, ties to even, of what is small: this, unlike rintf, is done many at once. */
static inline __attribute__((always_inline)) int nearest(float value)
{
    return (int)(value + 0x1.8p23f - 0x1.8p23f);
}

static inline __attribute__((always_inline)) int32_t largest(const float *x, int64_t count)
{
    int32_t found = 0; /* of the bits: as integers, they are in the order of magnitudes */
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        found = bits > found ? bits : found;
    }
    return found;
}

static inline __attribute__((always_inline)) int32_t
some_codes(const float *x, int64_t count, double inverse, const rule *how, int8_t *to)
{
    int32_t sum = 0;
    float by = (float)inverse;
    float low = (float)(how->low - how->zero), high = (float)(how->high - how->zero);
    for (int64_t i = 0; i < count; i++) {
        float value = x[i] * by;
        value = value < low ? low : value;
        value = value > high ? high : value;
        to[i] = (int8_t)(nearest(value) + how->zero);
        sum += to[i];
    }
    return sum;
}

/* The same of a token whose largest is near or below the least normal float: in double. */
static int32_t tiny_codes(const float *x, int64_t count, double inverse, int8_t *to)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += to[i] = (int8_t)((double)x[i] * inverse + 0x1.8p52 - 0x1.8p52);
    return sum;
}

/* Codes of tokens, filled up by group. Returns the first token that cannot be, or -1. */
static inline __attribute__((always_inline)) int64_t
all_codes(const matrix *w, const rule *how, const float *x, int64_t tokens, int8_t *codes,
          int32_t *sums, double *scales)
{
    int64_t groups = groups_of(w), wide = tiles_of(w) * COLUMNS;
    for (int64_t token = 0; token < tokens; token++, x += w->columns) {
        int32_t peak = largest(x, w->columns);
        if (peak > 0x7f800000 || (peak == 0x7f800000 && how->inverse == 0.0f))
            return token;
        double inverse = (double)how->inverse;
        int tiny = 0;
        if (inverse == 0.0) {
            float most = real((uint32_t)peak);
            tiny = most > 0.0f && most < 1e-34f;
            inverse = tiny ? 127.0 / (double)most : most > 0.0f ? 127.0f / most : 1.0f;
            scales[token] = (double)most / 127.0;
        }
        for (int64_t g = 0; g < groups; g++, codes += wide) {
            int64_t left = w->columns - g * w->group, count = left < w->group ? left : w->group;
            const float *from = x + g * w->group;
            sums[token * groups + g] = tiny ? tiny_codes(from, count, inverse, codes)
                                            : some_codes(from, count, inverse, how, codes);
            memset(codes + count, 0, (size_t)(wide - count));
        }
    }
    return -1;
}

#define CODES_ON(name, on)                                                                         \
    on static int64_t name(const matrix *w, const rule *how, const float *x, int64_t tokens,       \
                           int8_t *codes, int32_t *sums, double *scales)                           \
    {                                                                                              \
        return all_codes(w, how, x, tokens, codes, sums, scales);                                  \
    }
CODES_ON(codes_portable, )
#if X86
CODES_ON(codes2, ON2)
CODES_ON(codes512, ON512)
#endif

int64_t packed_codes(const matrix *w, const rule *how, const float *x, int64_t tokens,
                     int8_t *codes, int32_t *sums, double *scales, int64_t path)
{
#if X86
    if (path == AVX512)
        return codes512(w, how, x, tokens, codes, sums, scales);
    if (path == AVX2)
        return codes2(w, how, x, tokens, codes, sums, scales);
#endif
    return codes_portable(w, how, x, tokens, codes, sums, scales);
}

/* Blocks of 32 rows, from one to before another. */
void packed_rows(const matrix *w, const inputs *x, const outputs *out, int64_t first, int64_t last,
                 int64_t path)
{
    run each = portable_block;
#if X86
    static const run ON[PATHS][9] = {
        [AVX2] = {0, block2_1, block2_2, block2_3, block2_4, block2_5, block2_6, block2_7, block2_8},
        [AVX512] = {0, block512_1, block512_2, block512_3, block512_4, block512_5, block512_6,
                    block512_7, block512_8},
    };
    if (path != PORTABLE)
        each = ON[path][w->bits];
#endif
    for (int64_t block = first; block < last; block++)
        each(w, x, out, block);
}
