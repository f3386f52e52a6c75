/* AVX-512 with VNNI: 16 rows by 4 columns a multiplication, the input's codes broadcast. */
#include "layout.h"
#include "portable.h"
#include <immintrin.h>

#define ON512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")))
#define IN512 static inline __attribute__((always_inline)) ON512

/* The vectors of a tile, in registers and read in order. Without the asm, gcc 12 reads each again for
 * every piece, and late: memory then gives two thirds of what it could. */
IN512 void tile512(const uint8_t *tile, const int bits, const int halves, __m512i to[2][CODES])
{
#pragma GCC unroll 8
    for (int v = 0; v < bits; v++)
#pragma GCC unroll 2
        for (int n = 0; n < halves; n++) {
            to[n][v] = _mm512_loadu_si512(tile + VECTOR * v + VECTOR / 2 * n);
            __asm__ volatile("" : "+v"(to[n][v]));
        }
}

IN512 __m512i moved512(__m512i whole, int right)
{
    if (right > 0)
        return _mm512_srli_epi16(whole, right);
    return right < 0 ? _mm512_slli_epi16(whole, -right) : whole;
}

/* Code vector j, in place: `up` bits above the lowest. */
IN512 __m512i code512(const __m512i *tile, const int bits, const int j)
{
    const piece *of = PIECES[bits][j];
    __m512i found = moved512(tile[of[0].source], of[0].right);
    if (bits == 8)
        return found;
    found = _mm512_and_si512(found, _mm512_set1_epi8((char)of[0].mask));
    for (int p = 1; p < 3; p++)
        if (of[p].mask) { /* found | piece & mask */
            __m512i mask = _mm512_set1_epi8((char)of[p].mask);
            __m512i more = moved512(tile[of[p].source], of[p].right);
            found = _mm512_ternarylogic_epi32(found, more, mask, 0xf8);
        }
    return found;
}

IN512 __m512 scales512(const matrix *w, int64_t at)
{
    __m256i half = _mm256_loadu_si256((const __m256i *)(w->scales + at));
    if (w->brain)
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    return _mm512_cvtph_ps(half);
}

IN512 __m512i zeros512(const matrix *w, int64_t at)
{
    if (!w->zeros)
        return _mm512_set1_epi32((int)w->zero);
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(w->zeros + at)));
}

/* The sums of 16 rows of a group, each moved to where it belongs: what they add to the output. */
IN512 __m512 group512(const matrix *w, const inputs *x, const outputs *out, int64_t block,
                      int64_t row, int64_t token, int64_t g, const int bits, const __m512i *slots,
                      __m512 before)
{
    int64_t groups = groups_of(w), place = (block * groups + g) * ROWS + row;
    __m512i sum = slots[0]; /* UP is 0 there */
#pragma GCC unroll 4
    for (int s = 1; s < SLOTS; s++)
        sum = _mm512_add_epi32(sum, _mm512_srai_epi32(slots[s], UP[bits][s]));
    __m512i below = _mm512_set1_epi32(x->sums[token * groups + g]);
    sum = _mm512_sll_epi32(sum, _mm_cvtsi32_si128((int)w->twice));
    sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zeros512(w, place), below));
    if (out->sums) {
        int32_t kept[16];
        _mm512_storeu_si512(kept, sum);
        keep(w, out, block * ROWS + row, 16, g, token, kept);
    }
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales512(w, place), before);
}

/* Groups from one to before another, in as many streams of equal length. */
IN512 void groups512(const matrix *w, const inputs *x, const outputs *out, int64_t block,
                     int64_t row, int64_t token, const int bits, const int halves, const int many,
                     const int streams, int64_t first, int64_t last, __m512 *found)
{
    int64_t groups = groups_of(w), tiles = tiles_of(w), across = groups * tiles * COLUMNS;
    int64_t each = (last - first) / streams, far = each * tiles;
    const uint8_t *tile = w->codes + (block * groups + first) * tiles * VECTOR * bits + 4 * row;
    const int8_t *a = x->codes + token * across + first * tiles * COLUMNS;
    __m512i sums[8][SLOTS], vectors[2][CODES];
    for (int64_t g = first; g < first + each; g++) {
#pragma GCC unroll 16
        for (int i = 0; i < streams * halves * many * SLOTS; i++)
            sums[i / SLOTS][i % SLOTS] = _mm512_setzero_si512();
        for (int64_t t = 0; t < tiles; t++, tile += VECTOR * bits, a += COLUMNS) {
#pragma GCC unroll 2
            for (int k = 0; k < streams; k++) {
                tile512(tile + k * far * VECTOR * bits, bits, halves, vectors);
#pragma GCC unroll 8
                for (int j = 0; j < CODES; j++) {
                    __m512i code[2];
#pragma GCC unroll 2
                    for (int n = 0; n < halves; n++)
                        code[n] = code512(vectors[n], bits, j);
#pragma GCC unroll 4
                    for (int i = 0; i < halves * many; i++) {
                        int32_t four;
                        memcpy(&four, a + i / halves * across + k * far * COLUMNS + 4 * j, 4);
                        __m512i *sum = &sums[k * halves * many + i][j % SLOTS];
                        *sum = _mm512_dpbusd_epi32(*sum, code[i % halves], _mm512_set1_epi32(four));
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < streams * halves * many; i++) {
            int of = i % (halves * many);
            found[of] = group512(w, x, out, block, row + 16 * (of % halves), token + of / halves,
                                 g + i / (halves * many) * each, bits, sums[i], found[of]);
        }
    }
}

/* A block times one token (`halves` 2), or 16 of its rows times four (`halves` 1). One token's 8 bits
 * are all reading: the cache gives more to two streams. */
IN512 void rows512(const matrix *w, const inputs *x, const outputs *out, int64_t block, int64_t row,
                   int64_t token, const int bits, const int halves, const int many)
{
    int64_t groups = groups_of(w), even = bits == 8 && many == 1 ? groups / 2 * 2 : 0;
    __m512 found[4];
#pragma GCC unroll 4
    for (int i = 0; i < halves * many; i++)
        found[i] = _mm512_setzero_ps();
    if (bits == 8 && many == 1)
        groups512(w, x, out, block, row, token, bits, halves, many, 2, 0, even, found);
    groups512(w, x, out, block, row, token, bits, halves, many, 1, even, groups, found);
    for (int i = 0; i < halves * many; i++) {
        float kept[16];
        _mm512_storeu_ps(kept, found[i]);
        finish(w, x, out, block * ROWS + row + 16 * (i % halves), 16, token + i / halves, kept);
    }
}

#define EACH512(bits)                                                                              \
    ON512 static void block512_##bits(const matrix *w, const inputs *x, const outputs *out,        \
                                      int64_t block)                                               \
    {                                                                                              \
        int64_t token = 0;                                                                         \
        for (; token + 4 <= x->tokens; token += 4)                                                 \
            for (int64_t row = 0; row < ROWS; row += 16)                                           \
                rows512(w, x, out, block, row, token, bits, 1, 4);                                 \
        for (; token < x->tokens; token++)                                                         \
            rows512(w, x, out, block, 0, token, bits, 2, 1);                                       \
    }
EACH512(1) EACH512(2) EACH512(3) EACH512(4) EACH512(5) EACH512(6) EACH512(7) EACH512(8)
