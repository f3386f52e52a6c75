/* AVX2: 8 rows by 4 columns a multiplication, so that a block is done in quarters. */
#include "layout.h"
#include "portable.h"
#include <immintrin.h>

#define ON2 __attribute__((target("avx2,f16c,fma")))
#define IN2 static inline __attribute__((always_inline)) ON2

IN2 __m256i piece2(const uint8_t *tile, int bits, int j, int p)
{
    const piece *from = &PIECES[bits][j][p];
    __m256i whole = _mm256_loadu_si256((const __m256i *)(tile + VECTOR * from->source));
    if (from->right > 0)
        whole = _mm256_srli_epi16(whole, from->right);
    if (from->right < 0)
        whole = _mm256_slli_epi16(whole, -from->right);
    return _mm256_and_si256(whole, _mm256_set1_epi8((char)from->mask));
}

/* A quarter of code vector j, brought down: in place, pairs of products would not fit in 16 bits. */
IN2 __m256i code2(const uint8_t *tile, int bits, int j)
{
    __m256i found = piece2(tile, bits, j, 0);
    for (int p = 1; p < 3; p++)
        if (PIECES[bits][j][p].mask)
            found = _mm256_or_si256(found, piece2(tile, bits, j, p));
    return _mm256_srli_epi16(found, UP[bits][j % SLOTS]);
}

/* Sums of four products: of 8 bits, the highest apart, as two of 255 * 128 saturate. */
IN2 __m256i four2(__m256i code, __m256i a, int bits)
{
    __m256i ones = _mm256_set1_epi16(1), low = code;
    if (bits == 8)
        low = _mm256_and_si256(code, _mm256_set1_epi8(127));
    __m256i found = _mm256_madd_epi16(_mm256_maddubs_epi16(low, a), ones);
    if (bits < 8)
        return found;
    __m256i high = _mm256_and_si256(code, _mm256_set1_epi8((char)128));
    return _mm256_add_epi32(found, _mm256_madd_epi16(_mm256_maddubs_epi16(high, a), ones));
}

IN2 __m256 scales2(const matrix *w, int64_t at)
{
    __m128i half = _mm_loadu_si128((const __m128i *)(w->scales + at));
    if (w->brain)
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    return _mm256_cvtph_ps(half);
}

IN2 __m256i zeros2(const matrix *w, int64_t at)
{
    if (!w->zeros)
        return _mm256_set1_epi32((int)w->zero);
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(w->zeros + at)));
}

/* The sums of 8 rows of a group: what they add to the output. */
IN2 __m256 group2(const matrix *w, const inputs *x, const outputs *out, int64_t block, int64_t row,
                  int64_t token, int64_t g, __m256i sum, __m256 before)
{
    int64_t groups = groups_of(w), place = (block * groups + g) * ROWS + row;
    __m256i below = _mm256_set1_epi32(x->sums[token * groups + g]);
    sum = _mm256_sll_epi32(sum, _mm_cvtsi32_si128((int)w->twice));
    sum = _mm256_sub_epi32(sum, _mm256_mullo_epi32(zeros2(w, place), below));
    if (out->sums) {
        int32_t kept[8];
        _mm256_storeu_si256((__m256i *)kept, sum);
        keep(w, out, block * ROWS + row, 8, g, token, kept);
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scales2(w, place), before);
}

/* 8 rows of a block times `many` tokens from one on. */
IN2 void rows2(const matrix *w, const inputs *x, const outputs *out, int64_t block, int64_t row,
               int64_t token, const int bits, const int many)
{
    int64_t groups = groups_of(w), tiles = tiles_of(w), across = groups * tiles * COLUMNS;
    const uint8_t *tile = w->codes + block * groups * tiles * VECTOR * bits + 4 * row;
    const int8_t *a = x->codes + token * across;
    __m256 found[4];
#pragma GCC unroll 4
    for (int m = 0; m < many; m++)
        found[m] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m256i sums[4];
#pragma GCC unroll 4
        for (int m = 0; m < many; m++)
            sums[m] = _mm256_setzero_si256();
        for (int64_t t = 0; t < tiles; t++, tile += VECTOR * bits, a += COLUMNS) {
#pragma GCC unroll 8
            for (int j = 0; j < CODES; j++) {
                __m256i code = code2(tile, bits, j);
#pragma GCC unroll 4
                for (int m = 0; m < many; m++) {
                    int32_t four;
                    memcpy(&four, a + m * across + 4 * j, sizeof four);
                    sums[m] = _mm256_add_epi32(sums[m], four2(code, _mm256_set1_epi32(four), bits));
                }
            }
        }
#pragma GCC unroll 4
        for (int m = 0; m < many; m++)
            found[m] = group2(w, x, out, block, row, token + m, g, sums[m], found[m]);
    }
    for (int m = 0; m < many; m++) {
        float kept[8];
        _mm256_storeu_ps(kept, found[m]);
        finish(w, x, out, block * ROWS + row, 8, token + m, kept);
    }
}

#define EACH2(bits)                                                                                \
    ON2 static void block2_##bits(const matrix *w, const inputs *x, const outputs *out,            \
                                  int64_t block)                                                   \
    {                                                                                              \
        int64_t token = 0;                                                                         \
        for (; token + 4 <= x->tokens; token += 4)                                                 \
            for (int64_t row = 0; row < ROWS; row += 8)                                            \
                rows2(w, x, out, block, row, token, bits, 4);                                      \
        for (; token < x->tokens; token++)                                                         \
            for (int64_t row = 0; row < ROWS; row += 8)                                            \
                rows2(w, x, out, block, row, token, bits, 1);                                      \
    }
EACH2(1) EACH2(2) EACH2(3) EACH2(4) EACH2(5) EACH2(6) EACH2(7) EACH2(8)
