/* Chunks by the bits of a segment: shared by heap.c and words.c. */
#ifndef FASTDUMP_HEAP_H
#define FASTDUMP_HEAP_H

#include "fastdump.h"

/* The chunk that holds an address of the segment; 0 if it lies before the first. */
static inline uint64_t fastdump_chunk_of(const struct fastdump_segment *segment, uint64_t address) {
    if (!segment->begins)
        return segment->start;
    uint64_t index = (address - segment->start) / 16, at = index / 64;
    uint64_t word = segment->begins[at] & (UINT64_MAX >> (63 - index % 64));
    while (!word) {
        if (at == 0)
            return 0;
        word = segment->begins[--at];
    }
    return segment->start + (at * 64 + 63 - (uint64_t)__builtin_clzll(word)) * 16;
}

/* The first chunk that begins index times 16 bytes behind the start, or later; or their end. */
static inline uint64_t fastdump_chunk_from(const struct fastdump_segment *segment, uint64_t index) {
    uint64_t count = (segment->next - segment->start) / 16;
    if (index >= count)
        return segment->next;
    uint64_t at = index / 64, last = (count - 1) / 64;
    uint64_t word = segment->begins[at] & (UINT64_MAX << index % 64);
    while (!word) {
        if (at == last)
            return segment->next;
        word = segment->begins[++at];
    }
    return segment->start + (at * 64 + (uint64_t)__builtin_ctzll(word)) * 16;
}

static inline uint64_t fastdump_chunk_end(const struct fastdump_segment *segment, uint64_t chunk) {
    if (!segment->begins)
        return segment->end;
    return fastdump_chunk_from(segment, (chunk - segment->start) / 16 + 1);
}

static inline bool fastdump_chunk_is_free(const struct fastdump_segment *segment, uint64_t chunk) {
    uint64_t index = (chunk - segment->start) / 16;
    return segment->begins && segment->free[index / 64] >> index % 64 & 1;
}

/* See fastdump_segment_sizes. */
static inline uint64_t fastdump_size_class_of(uint64_t size) {
    return 64 - (uint64_t)__builtin_clzll(size - 1);
}

#endif
