/* Chunks by the bits of a segment, and where words lie: for all files that know chunks. */
#ifndef FASTDUMP_HEAP_H
#define FASTDUMP_HEAP_H

#include "fastdump.h"

/* Whether a chunk begins at an address of a segment that is cut into chunks: a multiple of 16. */
static inline bool fastdump_chunk_begins(const struct fastdump_segment *segment, uint64_t address) {
    uint64_t index = (address - segment->start) / 16;
    return segment->begins[index / 64] >> index % 64 & 1;
}

/* How many chunks of a ranked segment begin at an address in it or before. */
static inline uint64_t fastdump_rank_of(const struct fastdump_segment *segment, uint64_t address) {
    if (!segment->begins)
        return 1;
    uint64_t index = (address - segment->start) / 16, at = index / 64;
    uint64_t begins = segment->begins[at] & (UINT64_MAX >> (63 - index % 64));
    return segment->ranks[at / FASTDUMP_RANKS] + segment->ranks_within[at] +
           (uint64_t)__builtin_popcountll(begins);
}

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

static inline uint64_t fastdump_size_class_of(uint64_t size) {
    return 64 - (uint64_t)__builtin_clzll(size - 1);
}

static inline void fastdump_enter_size(struct fastdump_size_class *sizes, uint64_t size) {
    struct fastdump_size_class *found = &sizes[fastdump_size_class_of(size)];
    found->chunks++;
    found->bytes += size;
}

/* Whether a word lies in one of three windows. */
static inline bool fastdump_is_in(const struct fastdump_range *windows, uint64_t word) {
    return (word - windows[0].start < windows[0].end - windows[0].start) |
           (word - windows[1].start < windows[1].end - windows[1].start) |
           (word - windows[2].start < windows[2].end - windows[2].start);
}

/* The segment that holds an address, NULL if none does. */
static inline struct fastdump_segment *fastdump_segment_of(struct fastdump_place *place,
                                                           const struct fastdump_heap *heap,
                                                           uint64_t address) {
    if (address >= place->from && address < place->to)
        return place->segment;
    uint64_t low = 0, high = heap->count;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (heap->segments[middle]->start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    place->to = low < heap->count ? heap->segments[low]->start : UINT64_MAX;
    place->from = low ? heap->segments[low - 1]->next : 0;
    place->segment = NULL;
    if (low && address < place->from) {
        place->segment = heap->segments[low - 1];
        place->to = place->from;
        place->from = place->segment->start;
    }
    return place->segment;
}

#define FASTDUMP_FAR 0x10000 /* bytes: so far an interior pointer is followed again and again */

/* As fastdump_chunk_of; a large chunk, whose beginning is far to seek, is remembered. */
static inline uint64_t fastdump_chunk_in(struct fastdump_place *place,
                                         const struct fastdump_segment *segment, uint64_t address) {
    if (address >= place->chunk && address < place->end)
        return place->chunk;
    uint64_t chunk = fastdump_chunk_of(segment, address);
    if (chunk && address - chunk > FASTDUMP_FAR) {
        place->chunk = chunk;
        place->end = fastdump_chunk_end(segment, chunk);
    }
    return chunk;
}

/* The number of the module that an address lies in, or 0; *last is remembered from one to the next.
 */
static inline uint32_t fastdump_module_at(const struct fastdump_module_range *ranges,
                                          uint64_t count, uint64_t *last, uint64_t address) {
    if (address >= ranges[*last].start && address < ranges[*last].end)
        return ranges[*last].module;
    uint64_t low = 0, high = count;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (ranges[middle].end <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == count || address < ranges[low].start)
        return 0;
    *last = low;
    return ranges[low].module;
}

/* One vote more for a module, if there is room for it; *count is that of the votes. */
static inline void fastdump_vote_for(struct fastdump_vote *votes, uint32_t *count,
                                     uint32_t module) {
    for (uint32_t i = 0; i < *count; i++)
        if (votes[i].module == module) {
            votes[i].count++;
            return;
        }
    if (*count < FASTDUMP_VOTES)
        votes[(*count)++] = (struct fastdump_vote){.module = module, .count = 1};
}

/* The module with the most votes, the first of several; 0 if there are none. */
static inline uint32_t fastdump_elected(const struct fastdump_vote *votes, uint32_t count) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (votes[i].count > votes[best].count)
            best = i;
    return count ? votes[best].module : 0;
}

/* The chunk whose user has the word at an address: see fastdump_segment. */
static inline void fastdump_move_to(struct fastdump_place *place, const struct fastdump_heap *heap,
                                    uint64_t address) {
    uint64_t at = address - FASTDUMP_CHUNK_HEADER;
    struct fastdump_segment *segment = fastdump_segment_of(place, heap, at);
    place->chunk = segment ? fastdump_chunk_of(segment, at) : 0;
    if (place->chunk) {
        place->end = fastdump_chunk_end(segment, place->chunk);
        place->live = !fastdump_chunk_is_free(segment, place->chunk);
    } else { /* no heap, or before its first chunk */
        place->chunk = segment ? segment->start - 1 : place->from;
        place->end = segment ? fastdump_chunk_from(segment, 0) : place->to;
        place->live = !segment;
    }
}

static inline bool fastdump_is_at(const struct fastdump_place *place, uint64_t address) {
    uint64_t at = address - FASTDUMP_CHUNK_HEADER;
    return at >= place->chunk && at < place->end;
}

#endif
