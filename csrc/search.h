/* Shared by the files that search for patterns; the public declarations are in api.h. */
#ifndef FASTDUMP_SEARCH_H
#define FASTDUMP_SEARCH_H

#include "fastdump.h"

#define PATTERNS_AT_ONCE 4 /* what anchors are compared with fits the registers */

/* Where the anchors of one of the patterns are: one 64-bit word for 64 positions. */
struct fastdump_anchor {
    uint32_t offset;
    unsigned char value;
    unsigned char mask;
};

/*
 * Compare the anchors of count patterns (1 to PATTERNS_AT_ONCE, two each) at 64 * blocks
 * positions: a bit in words_ret for each at which those of some pattern are. Returns whether there
 * is any. Reads data[position + offset].
 */
typedef bool fastdump_anchors_function(const struct fastdump_anchor *anchors, uint64_t count,
                                       const unsigned char *data, uint64_t blocks,
                                       uint64_t *words_ret);

fastdump_anchors_function fastdump_anchors_scalar, fastdump_anchors_avx2, fastdump_anchors_avx512,
    fastdump_anchors_neon;

/*
 * Look the windows at 64 * blocks positions up in a filter: a bit in words_ret for each whose hash
 * is there. Of positions that are no multiple of the stride (1, 2 or 4) the bits are 0. Reads up to
 * 3 bytes more. Returns whether there is any.
 */
typedef bool fastdump_windows_function(const struct fastdump_search *search,
                                       const unsigned char *data, uint64_t blocks,
                                       uint64_t *words_ret);

fastdump_windows_function fastdump_windows_scalar, fastdump_windows_avx2, fastdump_windows_avx512;

fastdump_anchors_function *fastdump_anchors_of(int32_t kernel);
fastdump_windows_function *fastdump_windows_of(int32_t kernel);

#define WINDOW_FACTOR 0x9e3779b1u /* Knuth's: 2^32 / the golden ratio, a prime */

/* Between 0 and 2^bits - 1. */
static inline uint32_t window_hash(uint32_t bytes, uint32_t bits) {
    return bytes * WINDOW_FACTOR >> (32 - bits);
}

/* As those of scan.h. */
void fastdump_search_chunk(struct fastdump_search *search, uint64_t address, uint64_t length);
void fastdump_search_zeros(struct fastdump_search *search, uint64_t address, uint64_t length);
void fastdump_search_end(struct fastdump_search *search);
bool fastdump_search_go_on(struct fastdump_search *search, uint64_t address, uint64_t region);
bool fastdump_search_full(const struct fastdump_search *search);
bool fastdump_search_open(const struct fastdump_search *search);

#endif
