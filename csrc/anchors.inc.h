/*
 * The vector loop that compares anchors, once; included by scan_avx2.c, scan_avx512.c and
 * scan_neon.c, which bring, besides what scan.inc.h wants:
 *
 *   ANCHORS   the name of the function
 *   fill()    64 times the same byte
 *   both()    64 bits: where (first & mask) == value, and the second likewise
 */
#include "search.h"

INLINE bool anchors_in(const struct fastdump_anchor *anchors, uint64_t count,
                       const unsigned char *data, uint64_t blocks, uint64_t *words_ret) {
    block values[2 * PATTERNS_AT_ONCE], masks[2 * PATTERNS_AT_ONCE];
    const unsigned char *from[2 * PATTERNS_AT_ONCE];
    for (uint64_t i = 0; i < 2 * count; i++) {
        values[i] = fill(anchors[i].value);
        masks[i] = fill(anchors[i].mask);
        from[i] = data + anchors[i].offset;
    }
    uint64_t any = 0;
    for (uint64_t at = 0; at < blocks; at++) {
        uint64_t word = 0;
        for (uint64_t i = 0; i < 2 * count; i += 2)
            word |= both(load(from[i] + 64 * at), values[i], masks[i], load(from[i + 1] + 64 * at),
                         values[i + 1], masks[i + 1]);
        words_ret[at] = word;
        any |= word;
    }
    return any;
}

/* The number is a constant in the loop, so that all stays in registers. */
TARGET bool ANCHORS(const struct fastdump_anchor *anchors, uint64_t count,
                    const unsigned char *data, uint64_t blocks, uint64_t *words_ret) {
    switch (count) {
    case 1:
        return anchors_in(anchors, 1, data, blocks, words_ret);
    case 2:
        return anchors_in(anchors, 2, data, blocks, words_ret);
    case 3:
        return anchors_in(anchors, 3, data, blocks, words_ret);
    default:
        return anchors_in(anchors, 4, data, blocks, words_ret);
    }
}
