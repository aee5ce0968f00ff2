/* Shared by the files that find strings; the public declarations are in api.h. */
#ifndef FASTDUMP_SCAN_H
#define FASTDUMP_SCAN_H

#include "fastdump.h"

typedef int64_t fastdump_find_function(struct fastdump_finder *finder, const unsigned char *data,
                                       uint64_t length, bool last, uint32_t base, uint64_t capacity,
                                       uint32_t *edges_ret, uint64_t *count_ret);

fastdump_find_function fastdump_find_scalar, fastdump_find_avx2, fastdump_find_avx512,
    fastdump_find_neon;

/*
 * Call a function with the number of doublings that a finder needs as a constant, so that what it
 * carries from word to word stays in registers.
 */
#define STEPS(function, finder, ...)                                                               \
    do {                                                                                           \
        if ((finder)->filter == 1)                                                                 \
            return function(finder, 0, __VA_ARGS__);                                               \
        if ((finder)->filter == 2)                                                                 \
            return function(finder, 1, __VA_ARGS__);                                               \
        if ((finder)->filter <= 4)                                                                 \
            return function(finder, 2, __VA_ARGS__);                                               \
        if ((finder)->filter <= 8)                                                                 \
            return function(finder, 3, __VA_ARGS__);                                               \
        if ((finder)->filter <= 16)                                                                \
            return function(finder, 4, __VA_ARGS__);                                               \
        if ((finder)->filter <= 32)                                                                \
            return function(finder, 5, __VA_ARGS__);                                               \
        return function(finder, 6, __VA_ARGS__);                                                   \
    } while (0)

/* One buffer full, length bytes at scan->buffer + HEAD, which lie at address. */
void fastdump_scan_chunk(struct fastdump_scan *scan, uint64_t address, uint64_t length, bool last);

/* Known zeros. */
void fastdump_scan_zeros(struct fastdump_scan *scan, uint64_t address, uint64_t length);

/* The end of a region, or a gap: all runs end. */
void fastdump_scan_end(struct fastdump_scan *scan);

/* Another slice: all runs end, unless it follows what came last. Returns whether it does. */
bool fastdump_scan_go_on(struct fastdump_scan *scan, uint64_t address, uint64_t region);

/* Whether the output, the records or the giants may not have room for two buffers more. */
bool fastdump_scan_full(const struct fastdump_scan *scan);

/* Whether a string of this scan has begun and not ended. */
bool fastdump_scan_open(const struct fastdump_scan *scan);

/* Enter one string; text is what it is known by. */
void fastdump_table_add(struct fastdump_table *table, const unsigned char *text,
                        uint64_t text_length, uint64_t bytes, uint64_t address, uint64_t region);

/* The same in two steps, for a string whose end is far: its key, then what it takes. */
uint64_t fastdump_table_key(struct fastdump_table *table, const unsigned char *text,
                            uint64_t text_length, uint64_t address, uint64_t region);
void fastdump_table_add_key(struct fastdump_table *table, uint64_t key, uint64_t bytes,
                            uint64_t region);

#endif
