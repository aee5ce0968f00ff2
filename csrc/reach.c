/*
 * Which chunks the roots lead to, by bits: nothing here is as long as the heap.
 *
 * A chunk is marked once, and read once. Of those that are to be read, few lie on a stack and in a
 * list, all others are bits alone: so no order of pointers needs more memory, and an order against
 * that of the reading costs reads, and no chunk.
 */
#include <string.h>

#include "heap.h"

static inline uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static inline uint64_t index_of(const struct fastdump_segment *segment, uint64_t chunk) {
    return (chunk - segment->start) / 16;
}

static inline bool has(const uint64_t *bits, uint64_t index) {
    return bits[index / 64] >> index % 64 & 1;
}

static inline void put(uint64_t *bits, uint64_t index) { bits[index / 64] |= 1ull << index % 64; }

/* The end of what the program has of a chunk: the next header's first word, too. */
static inline uint64_t user_end(const struct fastdump_segment *segment, uint64_t chunk) {
    if (!segment->begins)
        return segment->end;
    return least(fastdump_chunk_end(segment, chunk) + 8, segment->end);
}

/* --- bits ------------------------------------------------------------------------------- */

static inline uint64_t bits_of(const struct fastdump_segment *segment, uint64_t at, int32_t what) {
    if (what == FASTDUMP_PENDING)
        return segment->pending[at];
    if (!segment->begins)
        return ~segment->marked[0] & 1;
    return segment->begins[at] & ~segment->free[at] & ~segment->marked[at];
}

/* The first such chunk in [from, limit), or 0. */
static uint64_t next_in(const struct fastdump_segment *segment, uint64_t from, uint64_t limit,
                        int32_t what) {
    if (!segment->begins)
        return from <= segment->start && segment->start < limit && bits_of(segment, 0, what)
                   ? segment->start
                   : 0;
    from = from > segment->start ? from : segment->start;
    limit = least(limit, segment->next);
    if (from >= limit)
        return 0;
    uint64_t index = (from - segment->start + 15) / 16, end = (limit - segment->start + 15) / 16;
    for (uint64_t at = index / 64; at * 64 < end; at++) {
        uint64_t word = bits_of(segment, at, what);
        if (at == index / 64)
            word &= UINT64_MAX << index % 64;
        if (word) {
            uint64_t found = at * 64 + (uint64_t)__builtin_ctzll(word);
            return found < end ? segment->start + found * 16 : 0;
        }
    }
    return 0;
}

uint64_t fastdump_reach_next(const struct fastdump_segment *segment, uint64_t from, int32_t what) {
    return next_in(segment, from, segment->next, what);
}

static bool is(const struct fastdump_segment *segment, uint64_t chunk, int32_t what) {
    uint64_t index = index_of(segment, chunk);
    return bits_of(segment, index / 64, what) >> index % 64 & 1;
}

int64_t fastdump_reach_window(struct fastdump_reach *reach, const struct fastdump_segment *segment,
                              uint64_t chunk, uint64_t length, int32_t what,
                              struct fastdump_range *range_ret) {
    uint64_t start = segment->start, end = segment->end;
    if (!is(segment, chunk, what))
        return 0;
    if (segment->begins) {
        uint64_t low = chunk & -length, high = least((chunk | (length - 1)) + 1, segment->next);
        if (low > start)
            start = fastdump_chunk_from(segment, (low - start + 15) / 16);
        uint64_t last = fastdump_chunk_of(segment, high - 16);
        bool whole = fastdump_chunk_end(segment, last) <= high || is(segment, last, what);
        end = whole ? user_end(segment, last) : last + 8;
    }
    *range_ret = (struct fastdump_range){.start = start, .end = end};
    reach->until = end;
    reach->open = 0;
    return 1;
}

/* --- marks ------------------------------------------------------------------------------ */

/* The live chunk that a word points into what the program has of, or 0. */
static uint64_t pointed_to(struct fastdump_reach *reach, uint64_t word,
                           struct fastdump_segment **segment_ret) {
    if (!fastdump_is_in(reach->windows, word))
        return 0;
    struct fastdump_place *target = &reach->target;
    uint64_t at = word - FASTDUMP_CHUNK_HEADER;
    struct fastdump_segment *segment = fastdump_segment_of(target, &reach->heap, at);
    uint64_t chunk = segment ? fastdump_chunk_in(target, segment, at) : 0;
    if (!chunk)
        return 0;
    if (!segment->begins) {
        if (word >= segment->end)
            return 0;
    } else { /* of the next chunk the second word of the header, too, is not this one's */
        uint64_t next = (word - 8) & ~(uint64_t)15;
        if (next > at && (next >= segment->next || fastdump_chunk_begins(segment, next)))
            return 0;
        if (fastdump_chunk_is_free(segment, chunk))
            return 0;
    }
    *segment_ret = segment;
    return chunk;
}

static void mark(struct fastdump_reach *reach, uint64_t word) {
    struct fastdump_segment *segment;
    uint64_t chunk = pointed_to(reach, word, &segment);
    if (!chunk || has(segment->marked, index_of(segment, chunk)))
        return;
    put(segment->marked, index_of(segment, chunk));
    reach->marked++;
    if (segment == reach->segment && chunk >= reach->from && chunk < reach->limit) {
        if (reach->used == FASTDUMP_REACH_STACK) {
            reach->overflow = 1;
        } else if (user_end(segment, chunk) <= reach->limit) {
            reach->stack[reach->used++] = chunk;
            return;
        }
    }
    put(segment->pending, index_of(segment, chunk));
    reach->pending++;
    if ((!reach->sweeping || chunk < reach->from) && reach->todo_used < reach->todo_capacity)
        reach->todo[reach->todo_used++] = chunk;
}

static void mark_all(struct fastdump_reach *reach, const void *data, uint64_t length) {
    const unsigned char *bytes = data;
    uint64_t word;
    for (uint64_t at = 0; at + 8 <= length; at += 8) {
        memcpy(&word, bytes + at, 8);
        mark(reach, word);
    }
}

void fastdump_reach_root(struct fastdump_reach *reach, const void *data, uint64_t length) {
    mark_all(reach, data, length);
}

/* The part of [start, end) that lies in the memory being read. */
static void mark_part(struct fastdump_reach *reach, const unsigned char *bytes, uint64_t start,
                      uint64_t end) {
    end = least(end, reach->limit);
    if (bytes && start < end)
        mark_all(reach, bytes + (start - reach->from), end - start);
}

void fastdump_reach_feed(struct fastdump_reach *reach, struct fastdump_segment *segment,
                         const void *data, uint64_t length, uint64_t address) {
    const unsigned char *bytes = data;
    uint64_t cursor = address, chunk;
    reach->segment = segment;
    reach->from = address;
    reach->limit = address + length;
    if (reach->open > address)
        mark_part(reach, bytes, address, reach->open);
    if (reach->open <= reach->limit)
        reach->open = 0;
    for (;;) {
        if (reach->used) {
            chunk = reach->stack[--reach->used];
        } else {
            chunk = next_in(segment, cursor, reach->limit, FASTDUMP_PENDING);
            if (!chunk || user_end(segment, chunk) > reach->until) {
                if (!reach->overflow)
                    break;
                reach->overflow = 0;
                cursor = address;
                continue;
            }
            uint64_t index = index_of(segment, chunk);
            segment->pending[index / 64] &= ~(1ull << index % 64);
            reach->pending--;
            cursor = chunk + 16;
        }
        uint64_t end = user_end(segment, chunk);
        mark_part(reach, bytes, chunk + FASTDUMP_CHUNK_HEADER, end);
        if (end > reach->limit)
            reach->open = end;
    }
    reach->segment = NULL;
}

/* --- one by one ------------------------------------------------------------------------- */

uint64_t fastdump_reach_chase(struct fastdump_reach *reach, const struct fastdump_target *target,
                              const struct fastdump_slice *slices, uint64_t count, uint64_t most,
                              uint64_t limit) {
    struct fastdump_place place = {.end = 0};
    uint64_t left = 0, tried = 0; /* left: of todo, from its start */
    while (reach->todo_used > left && reach->pending <= most && tried < limit) {
        uint64_t chunk = reach->todo[--reach->todo_used];
        struct fastdump_segment *segment = fastdump_segment_of(&place, &reach->heap, chunk);
        struct fastdump_range range;
        if (!segment || !fastdump_reach_window(reach, segment, chunk, FASTDUMP_REACH_BLOCK,
                                               FASTDUMP_PENDING, &range))
            continue;
        tried++;
        if (range.end - range.start <= sizeof reach->block &&
            fastdump_read_range(target, slices, count, &range, reach->block)) {
            fastdump_reach_feed(reach, segment, reach->block, range.end - range.start, range.start);
        } else { /* to the start, in exchange for what is not read yet */
            reach->todo[reach->todo_used++] = reach->todo[left];
            reach->todo[left++] = chunk;
        }
    }
    return tried;
}

/* --- leaks ------------------------------------------------------------------------------ */

static void point(struct fastdump_leaks *leaks, uint64_t word) {
    struct fastdump_segment *segment;
    uint64_t chunk = pointed_to(leaks->reach, word, &segment);
    if (chunk && chunk != leaks->chunk && !has(segment->marked, index_of(segment, chunk)))
        put(segment->pending, index_of(segment, chunk));
}

static void vote(struct fastdump_leaks *leaks, uint64_t word, bool first) {
    if (!fastdump_is_in(leaks->windows, word))
        return;
    uint32_t module =
        fastdump_module_at(leaks->ranges, leaks->range_count, &leaks->last_range, word);
    if (!module)
        return;
    if (first) {
        leaks->first = word;
        leaks->first_module = module;
    }
    fastdump_vote_for(leaks->votes, &leaks->voted, module);
}

/* Of a table that fills up, the rarest distinctions go first; that of modules always has room. */
static struct fastdump_leak_group *group_of(struct fastdump_leaks *leaks, uint64_t target,
                                            uint64_t size, uint32_t module) {
    uint64_t mask = leaks->capacity - 1;
    for (;;) {
        uint64_t key = target + (size << 20) + ((uint64_t)module << 52);
        uint64_t at = key * 0x9e3779b97f4a7c15u >> 32 & mask;
        struct fastdump_leak_group *group;
        while ((group = &leaks->groups[at])->used &&
               (group->target != target || group->size != size || group->module != module))
            at = (at + 1) & mask;
        uint64_t most = leaks->capacity / 4 * (target ? 1 : 2);
        if (group->used || !size || leaks->used < most) {
            leaks->used += !group->used;
            group->used = 1;
            group->target = target;
            group->size = size;
            group->module = module;
            return group;
        }
        if (target)
            target = 0;
        else
            size = 0;
    }
}

static void enter(struct fastdump_leaks *leaks, const struct fastdump_segment *segment) {
    uint64_t chunk = leaks->chunk, size = fastdump_chunk_end(segment, chunk) - chunk;
    uint32_t module = leaks->first_module;
    if (!module)
        module = fastdump_elected(leaks->votes, leaks->voted);
    struct fastdump_leak_group *group = group_of(leaks, leaks->first, size, module);
    bool indirect = has(segment->pending, index_of(segment, chunk));
    if (!group->example || (!indirect && !group->direct))
        group->example = chunk + FASTDUMP_CHUNK_HEADER;
    *(indirect ? &group->indirect : &group->direct) += 1;
    *(indirect ? &group->indirect_bytes : &group->direct_bytes) += size;
    leaks->first = leaks->first_module = leaks->voted = 0;
}

/* What of the chunk being read lies in length bytes at address; whether that is its end. */
static bool read_part(struct fastdump_leaks *leaks, const unsigned char *bytes, uint64_t length,
                      uint64_t address, bool group) {
    uint64_t user = leaks->chunk + FASTDUMP_CHUNK_HEADER, word;
    uint64_t end = least(leaks->end, address + length);
    for (uint64_t at = user > address ? user : address; bytes && at + 8 <= end; at += 8) {
        memcpy(&word, bytes + (at - address), 8);
        if (group)
            vote(leaks, word, at == user);
        else
            point(leaks, word);
    }
    return leaks->end <= address + length;
}

static void read_leaked(struct fastdump_leaks *leaks, const struct fastdump_segment *segment,
                        const void *data, uint64_t length, uint64_t address, bool group) {
    uint64_t cursor = address;
    for (;;) {
        if (!leaks->chunk) {
            uint64_t chunk = next_in(segment, cursor, address + length, FASTDUMP_LEAKED);
            if (!chunk || user_end(segment, chunk) > leaks->reach->until)
                return;
            leaks->chunk = chunk;
            leaks->end = user_end(segment, chunk);
            cursor = chunk + 16;
        }
        if (!read_part(leaks, data, length, address, group))
            return;
        if (group)
            enter(leaks, segment);
        leaks->chunk = 0;
    }
}

void fastdump_leaks_point(struct fastdump_leaks *leaks, struct fastdump_segment *segment,
                          const void *data, uint64_t length, uint64_t address) {
    read_leaked(leaks, segment, data, length, address, false);
}

void fastdump_leaks_group(struct fastdump_leaks *leaks, struct fastdump_segment *segment,
                          const void *data, uint64_t length, uint64_t address) {
    read_leaked(leaks, segment, data, length, address, true);
}
