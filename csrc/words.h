/* Shared by the files that look at words; the public declarations are in api.h. */
#ifndef FASTDUMP_WORDS_H
#define FASTDUMP_WORDS_H

#include <string.h>

#include "heap.h"

/* The upper halves of the addresses of three windows: count ranges from first to first + more. */
struct fastdump_near {
    int count;
    uint32_t first[3];
    uint32_t more[3];
};

#define RARE 0x1000 /* above 2^44 there are addresses, and hardly any number that is none */

/*
 * Each range costs time. So those of a program with PIE become one, with all that lies between; but
 * small numbers, which are many, are near only where a window has the same half.
 */
static inline struct fastdump_near fastdump_near(const struct fastdump_range *windows) {
    struct fastdump_near near = {.count = 0};
    for (int i = 0; i < 3; i++) {
        if (windows[i].start >= windows[i].end)
            continue;
        uint32_t first = (uint32_t)(windows[i].start >> 32), begun = first;
        if (near.count && near.first[near.count - 1] >= RARE && near.first[near.count - 1] <= first)
            begun = near.first[--near.count];
        near.first[near.count] = begun;
        near.more[near.count++] = (uint32_t)((windows[i].end - 1) >> 32) - begun;
    }
    return near;
}

/*
 * The indexes of those of count words whose upper half is that of an address of a window; how
 * many. near_ret has room for all, and for NEAR_SLACK more.
 */
#define NEAR_SLACK 4
typedef uint64_t fastdump_near_function(const struct fastdump_range *windows, const uint64_t *words,
                                        uint64_t count, uint32_t *near_ret);

fastdump_near_function fastdump_near_scalar, fastdump_near_avx2;

fastdump_near_function *fastdump_near_of(int32_t kernel);

#define WORDS_STRIP 4096 /* words that are looked at while they are in the L1 cache */

static inline uint64_t fastdump_kept_word(uint64_t word, uint64_t index) {
    return word << (64 - FASTDUMP_ADDRESS_BITS) | index;
}

static inline uint64_t fastdump_word_of(uint64_t kept) {
    return kept >> (64 - FASTDUMP_ADDRESS_BITS);
}

/* Where it lies. */
static inline uint64_t fastdump_place_of(uint64_t kept, const struct fastdump_block *block) {
    return block->address + (uint16_t)kept * 8ull;
}

/* Copies: what is written could be anything's, so that windows would be read for each word. */
struct fastdump_windows {
    struct fastdump_range range[3];
};

static inline struct fastdump_windows fastdump_windows_in(const struct fastdump_range *windows) {
    struct fastdump_windows copy;
    memcpy(copy.range, windows, sizeof copy.range);
    return copy;
}

/* As those of scan.h: bytes that were read, and whether there is room for a buffer more. */
void fastdump_words_block(struct fastdump_words *words, const void *data, uint64_t length,
                          uint64_t address);
bool fastdump_words_full(const struct fastdump_words *words);

#endif
