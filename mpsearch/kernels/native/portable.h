/* Plain C, for every CPU: what the other paths must equal. */
#ifndef MPSEARCH_PORTABLE_H
#define MPSEARCH_PORTABLE_H
#include "layout.h"
#include <string.h>

static int moved(int value, int right) { return right < 0 ? value << -right : value >> right; }

/* One code of a tile: byte `at` of code vector j, brought down. */
static int code_of(const uint8_t *tile, int bits, int j, int at)
{
    int found = 0;
    for (int p = 0; p < 3; p++) {
        const piece *from = &PIECES[bits][j][p];
        found |= moved(tile[VECTOR * from->source + at], from->right) & from->mask;
    }
    return found >> UP[bits][j % SLOTS];
}

static float real(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A 16-bit scale as float32. */
static float scale_of(uint16_t bits, int brain)
{
    if (brain)
        return real((uint32_t)bits << 16);
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest < 0x0400) /* denormal: a multiple of 2^-24 */
        return (sign ? -1.0f : 1.0f) * (float)rest * 0x1p-24f;
    return real(sign | (rest < 0x7c00 ? (rest << 13) + 0x38000000u : (rest << 13) | 0x7f800000u));
}

/* What all paths end with: the token's scale, the bias, and of `count` rows those that are there. */
static inline __attribute__((always_inline)) void
finish(const matrix *w, const inputs *x, const outputs *out, int64_t row, int count, int64_t token,
       const float *found)
{
    float *y = out->y + token * w->rows + row;
    const float *bias = out->bias ? out->bias + row : 0;
    double scale = x->scales[token];
    for (int r = 0; r < count && row + r < w->rows; r++)
        y[r] = (float)((double)found[r] * scale) + (bias ? bias[r] : 0.0f);
}

/* Where they are asked for, the integers of a group. */
static inline void keep(const matrix *w, const outputs *out, int64_t row, int count, int64_t group,
                        int64_t token, const int32_t *sums)
{
    int32_t *to = out->sums + (token * groups_of(w) + group) * w->rows + row;
    for (int r = 0; r < count && row + r < w->rows; r++)
        to[r] = sums[r];
}

static void portable_group(const matrix *w, const uint8_t *tile, const int8_t *a, int32_t *sums)
{
    for (int64_t t = 0; t < tiles_of(w); t++, tile += VECTOR * w->bits, a += COLUMNS)
        for (int j = 0; j < CODES; j++)
            for (int at = 0; at < VECTOR; at++)
                sums[at / 4] += code_of(tile, (int)w->bits, j, at) * a[4 * j + at % 4];
}

static void portable_block(const matrix *w, const inputs *x, const outputs *out, int64_t block)
{
    int64_t groups = groups_of(w), bytes = tiles_of(w) * VECTOR * w->bits;
    for (int64_t token = 0; token < x->tokens; token++) {
        float found[ROWS] = {0};
        for (int64_t g = 0; g < groups; g++) {
            int64_t place = block * groups + g, seen = token * groups + g;
            int32_t sums[ROWS] = {0};
            const int8_t *a = x->codes + seen * tiles_of(w) * COLUMNS;
            portable_group(w, w->codes + place * bytes, a, sums);
            for (int r = 0; r < ROWS; r++) {
                int32_t zero = w->zeros ? w->zeros[place * ROWS + r] : (int32_t)w->zero;
                sums[r] = sums[r] * (1 << w->twice) - zero * x->sums[seen];
                found[r] += (float)sums[r] * scale_of(w->scales[place * ROWS + r], (int)w->brain);
            }
            if (out->sums)
                keep(w, out, block * ROWS, ROWS, g, token, sums);
        }
        finish(w, x, out, block * ROWS, ROWS, token, found);
    }
}

#endif
