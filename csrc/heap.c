/*
 * Chunks of an allocator, from outside: which there are and which are free, as bits.
 *
 * Two bits for each 16 bytes are 1.6% of a heap, whatever its chunks; an array of their addresses
 * would be a quarter of a heap of small ones.
 */
#include <errno.h>
#include <string.h>

#include "heap.h"

#define PREV_INUSE 1u /* the bits of malloc_chunk.mchunk_size */
#define IS_MMAPPED 2u
#define FLAGS 7u
#define MIN_SIZE 32
#define FENCEPOST 16

/*
 * What malloc keeps for each thread (tcache_perthread_struct) is a chunk like any other. Of glibc
 * 2.26, 2.30, 2.42 and 2.43: counts, then the first entry of each list.
 */
static const struct cache_layout {
    uint64_t size; /* of the chunk */
    uint64_t bins;
    uint64_t width; /* of a count */
    bool counts;    /* how many there are; since 2.42 how many more there may be */
} cache_layouts[] = {
    {0x250, 64, 1, true}, {0x290, 64, 2, true}, {0x300, 76, 2, false}, {0x310, 76, 2, false}};

static const struct cache_layout *cache_layout_of(uint64_t size) {
    for (size_t i = 0; i < sizeof cache_layouts / sizeof *cache_layouts; i++)
        if (size == cache_layouts[i].size)
            return &cache_layouts[i];
    return NULL;
}

static bool may_be_cache(const struct cache_layout *layout, const unsigned char *user) {
    uint64_t used = 0;
    for (uint64_t bin = 0; bin < layout->bins; bin++) {
        uint64_t entry;
        uint16_t count = 0;
        memcpy(&entry, user + layout->bins * layout->width + bin * 8, 8);
        memcpy(&count, user + bin * layout->width, layout->width);
        if (entry % 16 || entry >> 56 || (layout->counts && !count != !entry))
            return false;
        used += entry != 0;
    }
    return used;
}

void fastdump_segment_release(struct fastdump_segment *segment, uint64_t chunk) {
    if (fastdump_chunk_is_free(segment, chunk))
        return;
    uint64_t size = fastdump_chunk_end(segment, chunk) - chunk;
    uint64_t index = (chunk - segment->start) / 16;
    segment->free[index / 64] |= 1ull << index % 64;
    struct fastdump_size_class *found = &segment->sizes[fastdump_size_class_of(size)];
    found->chunks--;
    found->bytes -= size;
    segment->free_chunks++;
    segment->free_bytes += size;
}

static int64_t walk(struct fastdump_segment *segment, const void *data, uint64_t length,
                    uint64_t address) {
    const unsigned char *bytes = data;
    uint64_t end = address + length;
    while (segment->next < segment->end && segment->next + FASTDUMP_CHUNK_HEADER <= end) {
        uint64_t words[2];
        if (segment->next < address)
            return -EILSEQ;
        memcpy(words, bytes + (segment->next - address), sizeof words);
        uint64_t size = words[1] & ~(uint64_t)FLAGS;
        bool last_free = segment->last && !(words[1] & PREV_INUSE);
        if (last_free) {
            if (words[0] != segment->next - segment->last)
                return -EILSEQ;
            fastdump_segment_release(segment, segment->last);
        }
        if (size == FENCEPOST || (size == 0 && words[1] == PREV_INUSE))
            return 1;
        if (size < MIN_SIZE || size % 16 || words[1] & IS_MMAPPED ||
            size > segment->end - segment->next)
            return -EILSEQ;
        uint64_t index = (segment->next - segment->start) / 16;
        segment->begins[index / 64] |= 1ull << index % 64;
        fastdump_enter_size(segment->sizes, size);
        uint64_t behind = segment->next + size; /* 8 bytes behind it are its user's too */
        const struct cache_layout *layout = cache_layout_of(size);
        if (layout &&
            (behind + 8 > end || may_be_cache(layout, bytes + (segment->next + 16 - address))) &&
            segment->caches_found < segment->caches_capacity)
            segment->caches[segment->caches_found++] = segment->next;
        segment->last = segment->next;
        segment->next = behind;
    }
    return segment->next >= segment->end;
}

int64_t fastdump_segment_walk(struct fastdump_segment *segment, const void *data, uint64_t length,
                              uint64_t address) {
    return segment->walked = walk(segment, data, length, address);
}

uint64_t fastdump_segment_chunk(const struct fastdump_segment *segment, uint64_t address,
                                uint64_t *end_ret, int32_t *free_ret) {
    uint64_t chunk = fastdump_chunk_of(segment, address);
    if (chunk) {
        *end_ret = fastdump_chunk_end(segment, chunk);
        *free_ret = fastdump_chunk_is_free(segment, chunk);
    }
    return chunk;
}

void fastdump_segment_tally(const struct fastdump_segment *segment, uint64_t start, uint64_t end,
                            struct fastdump_chunk_tally *tally_ret) {
    uint64_t chunk = fastdump_chunk_of(segment, start);
    if (!chunk)
        chunk = fastdump_chunk_from(segment, (start - segment->start) / 16);
    end = end < segment->next ? end : segment->next;
    while (chunk < end) {
        uint64_t behind = fastdump_chunk_end(segment, chunk);
        uint64_t from = chunk > start ? chunk : start, to = behind < end ? behind : end;
        bool free = fastdump_chunk_is_free(segment, chunk);
        *(free ? &tally_ret->free_bytes : &tally_ret->live_bytes) += to - from;
        *(free ? &tally_ret->free : &tally_ret->live) += chunk >= start;
        chunk = behind;
    }
}

/*
 * The bytes of a mapping of a chunk, 0 if it is none. An aligned one has a second header further
 * on, which tells how far; after a realloc that one alone is right.
 */
static uint64_t mapping_of(const unsigned char *page, uint64_t uncounted, uint64_t page_size) {
    uint64_t words[2], size = 0;
    for (uint64_t lead = 0; lead < page_size; lead += 16) {
        memcpy(words, page + lead, sizeof words);
        uint64_t found = (words[1] & ~(uint64_t)FLAGS) + lead + uncounted;
        bool fits = words[0] == lead && (words[1] & FLAGS) == IS_MMAPPED && found > lead &&
                    found % page_size == 0;
        if (lead == 0 && !fits)
            return 0;
        if (fits)
            size = found;
    }
    return size;
}

CLONED
uint64_t fastdump_segment_rank(struct fastdump_segment *segment) {
    if (!segment->begins)
        return 1;
    uint64_t rank = 0;
    for (uint64_t at = 0; segment->start + at * 1024 < segment->next; at++) {
        if (at % FASTDUMP_RANKS == 0)
            segment->ranks[at / FASTDUMP_RANKS] = rank;
        segment->ranks_within[at] = (uint16_t)(rank - segment->ranks[at / FASTDUMP_RANKS]);
        rank += (uint64_t)__builtin_popcountll(segment->begins[at]);
    }
    return rank;
}

int64_t fastdump_mapped_chunks(const void *data, uint64_t length, uint64_t address, uint64_t limit,
                               uint64_t uncounted, uint64_t page_size, uint64_t capacity,
                               uint64_t *next_ret, struct fastdump_range *chunks_ret) {
    const unsigned char *bytes = data;
    uint64_t found = 0, at = address > *next_ret ? address : *next_ret;
    for (at = (at + page_size - 1) & -page_size;
         at + page_size <= address + length && found < capacity; at += page_size) {
        uint64_t size = mapping_of(bytes + (at - address), uncounted, page_size);
        if (size && size <= limit - at) {
            chunks_ret[found++] = (struct fastdump_range){.start = at, .end = at + size};
            at += size - page_size;
        }
    }
    *next_ret = at;
    return (int64_t)found;
}

int64_t fastdump_self_pointers(const void *data, uint64_t length, uint64_t address, int64_t delta,
                               uint64_t capacity, uint64_t *found_ret) {
    const unsigned char *bytes = data;
    uint64_t found = 0, word;
    for (uint64_t at = -address % 8; at + 8 <= length && found < capacity; at += 8) {
        memcpy(&word, bytes + at, 8);
        if (word == address + at + (uint64_t)delta)
            found_ret[found++] = address + at;
    }
    return (int64_t)found;
}

#define STEPS (1 << 20) /* of one call, which cannot be interrupted */

/* The segment in which a chunk begins at an address, or NULL. */
static struct fastdump_segment *begun_at(struct fastdump_free_list *list, uint64_t chunk) {
    struct fastdump_segment *segment = fastdump_segment_of(&list->place, &list->heap, chunk);
    if (!segment || !segment->begins || (chunk - segment->start) % 16)
        return NULL;
    return fastdump_chunk_begins(segment, chunk) ? segment : NULL;
}

static bool has_link(struct fastdump_free_list *list, const struct fastdump_target *target,
                     const struct fastdump_slice *slices, uint64_t count) {
    struct fastdump_range *block = &list->block;
    if (list->link >= block->start && list->link + 8 <= block->end)
        return true;
    uint64_t before = list->link % FASTDUMP_LIST_BLOCK;
    if (before < FASTDUMP_CHUNK_HEADER)
        return false;
    *block = (struct fastdump_range){.start = list->link - before,
                                     .end = list->link - before + FASTDUMP_LIST_BLOCK};
    if (fastdump_read_range(target, slices, count, block, list->content))
        return true;
    block->end = block->start;
    return false;
}

int64_t fastdump_free_list_follow(struct fastdump_free_list *list,
                                  const struct fastdump_target *target,
                                  const struct fastdump_slice *slices, uint64_t count) {
    for (uint64_t steps = 0; list->entry; steps++) {
        uint64_t chunk = list->entry - list->header, word;
        struct fastdump_segment *segment = begun_at(list, chunk);
        if (!segment || fastdump_chunk_is_free(segment, chunk) || list->chunks == list->most)
            return -EILSEQ;
        uint64_t size = fastdump_chunk_end(segment, chunk) - chunk;
        if (list->size && list->size != size)
            return -EILSEQ;
        list->link = chunk + FASTDUMP_CHUNK_HEADER;
        if (steps == STEPS || !has_link(list, target, slices, count))
            return 0;
        if (list->entry == list->seen)
            return -EILSEQ;
        if ((list->chunks & (list->chunks - 1)) == 0) /* Brent: it may be far to the loop */
            list->seen = list->entry;
        memcpy(&word, list->content + (list->link - list->block.start), sizeof word);
        if (list->release)
            fastdump_segment_release(segment, chunk);
        list->chunks++;
        list->bytes += size;
        uint64_t plain = word ^ list->link >> 12;
        if (!word || !plain)
            list->entry = 0;
        else
            list->entry = begun_at(list, plain - list->header) ? plain : word;
    }
    return 1;
}
