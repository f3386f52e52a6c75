/* How weights, inputs and sums lie in memory, for every path.
 *
 * Rows go in blocks of ROWS, columns in tiles of COLUMNS, and every group of columns that share a
 * scale is filled up to whole tiles. A tile holds its codes as `bits` vectors of 128 bytes: byte
 * 4 * row + i of a vector belongs to column 4 * j + i, where j, 0 to 7, counts the code vectors that
 * come out of the tile. So one multiplication of 16 rows by 4 columns leaves a sum a lane, and the
 * whole weight is one stream of bytes. Code vector j is made of up to three pieces of those vectors, each moved and
 * masked, and stands in its bytes `up` bits above the lowest: sums are moved down, codes are not.
 * Where j mod 4 is equal, so is `up`: four accumulators are enough.
 */
#ifndef MPSEARCH_LAYOUT_H
#define MPSEARCH_LAYOUT_H

#include <stdint.h>

enum { ROWS = 32, COLUMNS = 32, VECTOR = 4 * ROWS, CODES = 8, SLOTS = 4 };

typedef struct {
    int8_t source, right; /* which vector, and how far it is moved right: left where negative */
    uint8_t mask;         /* what is kept of it then; nothing is no piece */
} piece;

/* A weight (rows, columns): value = ((code << twice) - zero) * scale. */
typedef struct {
    int64_t rows, columns, group, bits, twice, brain; /* brain: scales are bfloat16, not half */
    const uint8_t *codes;   /* (blocks, groups, tiles of a group, bits, 128) */
    const uint16_t *scales; /* (blocks, groups, 32) */
    const uint8_t *zeros;   /* (blocks, groups, 32), or null: all are `zero` */
    int64_t zero;
} matrix;

/* Inputs as codes: value = (code - moved) * scale, moved and scale in `scales` or with the bias. */
typedef struct {
    int64_t tokens;
    const int8_t *codes;  /* (tokens, groups, a group's columns filled up) */
    const int32_t *sums;  /* (tokens, groups) of the codes */
    const double *scales; /* (tokens) */
} inputs;

/* Where results go: y (tokens, rows); sums (tokens, groups, rows), or null. */
typedef struct {
    float *y;
    const float *bias; /* (rows), or null */
    int32_t *sums;
} outputs;

#define NONE {0, 0, 0}
#define ONE(source, right, mask) {{source, right, mask}, NONE, NONE}
#define NIBBLES ONE(0, 0, 15), ONE(0, 0, 240), ONE(1, 0, 15), ONE(1, 0, 240), \
                ONE(2, 0, 15), ONE(2, 0, 240), ONE(3, 0, 15), ONE(3, 0, 240)

/* PIECES[bits][j]: 5, 6 and 7 bits are nibbles with what is missing from a vector or three more. */
static const piece PIECES[9][CODES][3] = {
    [1] = {ONE(0, 0, 1), ONE(0, 0, 2), ONE(0, 0, 4), ONE(0, 0, 8),
           ONE(0, 4, 1), ONE(0, 4, 2), ONE(0, 4, 4), ONE(0, 4, 8)},
    [2] = {ONE(0, 0, 3), ONE(0, 0, 12), ONE(0, 0, 48), ONE(0, 0, 192),
           ONE(1, 0, 3), ONE(1, 0, 12), ONE(1, 0, 48), ONE(1, 0, 192)},
    [3] = {ONE(0, 0, 7), ONE(0, 0, 56), {{0, 0, 192}, {2, 1, 32}, NONE}, ONE(1, 0, 7),
           ONE(2, 0, 7), ONE(2, 0, 56), {{1, 0, 192}, {2, 2, 32}, NONE}, ONE(1, 3, 7)},
    [4] = {NIBBLES},
    [5] = {{{0, 0, 15}, {4, 0, 16}, NONE}, {{0, 0, 240}, {4, 0, 8}, NONE},
           {{1, 0, 15}, {4, 1, 16}, NONE}, {{1, 0, 240}, {4, -1, 8}, NONE},
           {{2, 0, 15}, {4, 2, 16}, NONE}, {{2, 0, 240}, {4, -2, 8}, NONE},
           {{3, 0, 15}, {4, 3, 16}, NONE}, {{3, 0, 240}, {4, -3, 8}, NONE}},
    [6] = {{{0, 0, 15}, {4, 0, 48}, NONE}, {{0, 0, 240}, {4, 0, 12}, NONE},
           {{1, 0, 15}, {4, 2, 48}, NONE}, {{1, 0, 240}, {4, -2, 12}, NONE},
           {{2, 0, 15}, {5, 0, 48}, NONE}, {{2, 0, 240}, {5, 0, 12}, NONE},
           {{3, 0, 15}, {5, 2, 48}, NONE}, {{3, 0, 240}, {5, -2, 12}, NONE}},
    [7] = {{{0, 0, 15}, {4, 0, 48}, {6, 0, 64}}, {{0, 0, 240}, {4, 0, 12}, {6, 0, 2}},
           {{1, 0, 15}, {4, 2, 48}, {6, 1, 64}}, {{1, 0, 240}, {4, -2, 12}, {6, -1, 2}},
           {{2, 0, 15}, {5, 0, 48}, {6, -1, 64}}, {{2, 0, 240}, {5, 0, 12}, {6, 1, 2}},
           {{3, 0, 15}, {5, 2, 48}, {6, -2, 64}}, {{3, 0, 240}, {5, -2, 12}, {6, 2, 2}}},
    [8] = {ONE(0, 0, 255), ONE(1, 0, 255), ONE(2, 0, 255), ONE(3, 0, 255),
           ONE(4, 0, 255), ONE(5, 0, 255), ONE(6, 0, 255), ONE(7, 0, 255)},
};

/* UP[bits][j mod 4]. */
static const int8_t UP[9][SLOTS] = {
    [1] = {0, 1, 2, 3}, [2] = {0, 2, 4, 6}, [3] = {0, 3, 5, 0}, [4] = {0, 4, 0, 4},
    [5] = {0, 3, 0, 3}, [6] = {0, 2, 0, 2}, [7] = {0, 1, 0, 1}, [8] = {0, 0, 0, 0},
};

static inline int64_t over(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
static inline int64_t blocks_of(const matrix *w) { return over(w->rows, ROWS); }
static inline int64_t groups_of(const matrix *w) { return w->group ? over(w->columns, w->group) : 0; }
static inline int64_t tiles_of(const matrix *w) { return over(w->group, COLUMNS); } /* of a group */

#endif
