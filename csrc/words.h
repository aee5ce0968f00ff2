/* Shared by the files that look at words; the public declarations are in api.h. */
#ifndef FASTDUMP_WORDS_H
#define FASTDUMP_WORDS_H

#include "heap.h"

/*
 * The upper halves of the addresses of three windows, each from first to first + more. An empty
 * one is as the first: all small numbers have the half of address 0.
 */
struct fastdump_near {
    uint32_t first[3];
    uint32_t more[3];
};

static inline struct fastdump_near fastdump_near(const struct fastdump_range *windows) {
    struct fastdump_near near;
    for (int i = 0; i < 3; i++) {
        const struct fastdump_range *window = &windows[windows[i].start < windows[i].end ? i : 0];
        near.first[i] = (uint32_t)(window->start >> 32);
        near.more[i] = (uint32_t)((window->end - 1) >> 32) - near.first[i];
    }
    return near;
}

/* A bit for each of count words: whether its upper half is that of an address of a window. */
typedef void fastdump_near_function(const struct fastdump_range *windows, const uint64_t *words,
                                    uint64_t count, uint64_t *near_ret);

fastdump_near_function fastdump_near_scalar, fastdump_near_avx2;

fastdump_near_function *fastdump_near_of(int32_t kernel);

/* As those of scan.h: bytes that were read, and whether there is room for a buffer more. */
void fastdump_words_block(struct fastdump_words *words, const void *data, uint64_t length,
                          uint64_t address);
bool fastdump_words_full(const struct fastdump_words *words);

#endif
