/*
 * What the words of memory point to: into modules, to types, to chunks of the heap.
 *
 * Most words point nowhere near. So a block of words is held against at most three windows first,
 * by code that compilers vectorise, and only blocks with a hit are looked at word by word.
 */
#include <string.h>

#include "heap.h"

#if defined(__x86_64__) && defined(__GLIBC__)
#define VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORISED
#endif

/* GCC 12 unrolls a loop over 16 words and then does not vectorise it: 5 GB/s instead of 31. */
#define BLOCK 32

/* --- filters ---------------------------------------------------------------------------- */

/* The first block from at on of which a word lies in a window; count if there is none. */
VECTORISED
static uint64_t next_block(const uint64_t *words, uint64_t at, uint64_t count,
                           const struct fastdump_range *windows) {
    uint64_t a = windows[0].start, b = windows[1].start, c = windows[2].start;
    uint64_t x = windows[0].end - a, y = windows[1].end - b, z = windows[2].end - c;
    for (; at + BLOCK <= count; at += BLOCK) {
        uint64_t any = 0;
        for (int i = 0; i < BLOCK; i++) {
            uint64_t word = words[at + (uint64_t)i];
            any |= (uint64_t)(word - a < x) | (uint64_t)(word - b < y) | (uint64_t)(word - c < z);
        }
        if (any)
            return at;
    }
    return at;
}

/* --- where a word lies ------------------------------------------------------------------ */

/* The chunk whose user has the word at an address: see fastdump_segment. */
static void move_to(struct fastdump_place *place, const struct fastdump_heap *heap,
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

static inline bool is_at(const struct fastdump_place *place, uint64_t address) {
    uint64_t at = address - FASTDUMP_CHUNK_HEADER;
    return at >= place->chunk && at < place->end;
}

static inline unsigned char *owner_of(const struct fastdump_segment *segment, uint64_t chunk) {
    return &segment->owners[(chunk - segment->start) / 32];
}

/* --- hits ------------------------------------------------------------------------------- */

static struct fastdump_pointed *hit_of(struct fastdump_words *words, uint64_t target,
                                       uint64_t size_class) {
    uint64_t mask = words->capacity - 1;
    uint64_t at = ((target >> 3) + size_class) * 0x9e3779b97f4a7c15u >> 20 & mask;
    while (words->hits[at].target != target || words->hits[at].size_class != size_class) {
        if (!words->hits[at].target) {
            if (words->used >= words->capacity / 4 * 3)
                return NULL;
            words->used++;
            words->hits[at].target = target;
            words->hits[at].size_class = size_class;
            break;
        }
        at = (at + 1) & mask;
    }
    return &words->hits[at];
}

static void own(struct fastdump_words *words, struct fastdump_segment *segment, uint64_t chunk,
                uint64_t end, uint32_t module, uint32_t tier) {
    *owner_of(segment, chunk) =
        (unsigned char)(module | (tier > FASTDUMP_ANY_WORD ? FASTDUMP_NOT_DIRECT : 0));
    words->owned[module].count[tier]++;
    words->owned[module].bytes[tier] += end - chunk;
    words->owned[module].example[tier] = chunk + FASTDUMP_CHUNK_HEADER;
}

/* The chunk that was being read has an owner: the one of its first word, else of most words. */
static void settle(struct fastdump_words *words) {
    struct fastdump_place *place = &words->place;
    uint32_t elected = fastdump_elected(words->votes, words->voted);
    if (words->first)
        own(words, place->segment, place->chunk, place->end, words->first, FASTDUMP_FIRST_WORD);
    else if (elected)
        own(words, place->segment, place->chunk, place->end, elected, FASTDUMP_ANY_WORD);
    words->first = words->voted = 0;
}

static void count_hit(struct fastdump_words *words, uint64_t target, uint64_t address) {
    uint32_t module =
        fastdump_module_at(words->ranges, words->range_count, &words->last_range, target);
    if (!module)
        return;
    if (!is_at(&words->place, address)) {
        settle(words);
        move_to(&words->place, &words->heap, address);
    }
    struct fastdump_place *place = &words->place;
    if (!place->live) {
        words->stale++;
        return;
    }
    bool in_heap = place->segment, first = in_heap && address == place->chunk + 16;
    uint64_t size = first ? place->end - place->chunk : 0;
    struct fastdump_pointed *hit = hit_of(words, target, first ? fastdump_size_class_of(size) : 0);
    if (hit) {
        hit->example = address;
        hit->count++;
        hit->bytes += size;
    } else {
        words->lost++;
    }
    if (!in_heap)
        return;
    if (first)
        words->first = module;
    fastdump_vote_for(words->votes, &words->voted, module);
}

/* --- pages ------------------------------------------------------------------------------ */

#define SAMPLES 64
#define PAGE_WORDS 512
#define STRIDE (PAGE_WORDS / SAMPLES)

/* How many different bytes the samples have: of 512 random ones 221. */
static int different_bytes(const uint64_t *words) {
    uint64_t seen[4] = {0};
    for (int i = 0; i < SAMPLES; i++)
        for (int byte = 0; byte < 64; byte += 8)
            seen[words[i * STRIDE] >> (byte + 6) & 3] |= 1ull << (words[i * STRIDE] >> byte & 63);
    return __builtin_popcountll(seen[0]) + __builtin_popcountll(seen[1]) +
           __builtin_popcountll(seen[2]) + __builtin_popcountll(seen[3]);
}

/* By every eighth word: what a page of 4 KiB holds. */
static int page_class(const uint64_t *words) {
    uint64_t zero = 0, pointers = 0, text = 0;
    for (int i = 0; i < SAMPLES; i++) {
        const uint64_t high = 0x8080808080808080u, all = 0x0101010101010101u;
        uint64_t word = words[i * STRIDE];
        zero += word == 0;
        pointers += (word >> 32) - 1 < 0x7fff && !(word & 7);
        text += (~word & ((word & ~high) + all * (0x80 - 0x20)) & high) == high;
    }
    if (zero == SAMPLES) {
        for (int i = 0; i < PAGE_WORDS; i++)
            if (words[i])
                return FASTDUMP_PAGE_OTHER;
        return FASTDUMP_PAGE_ZERO;
    }
    if (pointers * 4 >= SAMPLES)
        return FASTDUMP_PAGE_POINTERS;
    if (text * 2 >= SAMPLES - zero && text * 4 >= SAMPLES)
        return FASTDUMP_PAGE_TEXT;
    return different_bytes(words) >= 180 ? FASTDUMP_PAGE_ENTROPY : FASTDUMP_PAGE_OTHER;
}

/* Two neighbours become one. */
static void halve_cells(struct fastdump_words *words) {
    words->cell_count /= 2;
    words->cell_pages *= 2;
    for (uint64_t i = 0; i < words->cell_count; i++) {
        struct fastdump_cell cell = words->cells[2 * i], *other = &words->cells[2 * i + 1];
        cell.count += other->count;
        for (int class = 0; class < FASTDUMP_PAGE_CLASSES; class ++)
            cell.pages[class] += other->pages[class];
        words->cells[i] = cell;
    }
}

static void enter_page(struct fastdump_words *words, int class, uint64_t address) {
    uint64_t last = words->cell_count - 1;
    if (!words->cell_count || words->cells[last].count == words->cell_pages) {
        if (words->cell_count == words->cell_capacity)
            halve_cells(words);
        last = words->cell_count++;
        words->cells[last] = (struct fastdump_cell){.address = address};
    }
    words->cells[last].count++;
    words->cells[last].pages[class]++;
}

void fastdump_words_feed(struct fastdump_words *words, const void *data, uint64_t length,
                         uint64_t address) {
    const uint64_t *found = data;
    uint64_t count = length / 8, at = 0;
    for (uint64_t page = 0; page + PAGE_WORDS <= count; page += PAGE_WORDS)
        enter_page(words, page_class(found + page), address + page * 8);
    while ((at = next_block(found, at, count, words->windows)) < count) {
        uint64_t end = count - at < BLOCK ? count : at + BLOCK;
        for (; at < end; at++)
            if (fastdump_is_in(words->windows, found[at]))
                count_hit(words, found[at], address + at * 8);
    }
}

void fastdump_words_settle(struct fastdump_words *words) {
    settle(words);
    words->place = (struct fastdump_place){.end = 0};
}

/* --- parents ---------------------------------------------------------------------------- */

/* Whose the chunks are that the chunk at hand points to: 0 if it has no owner to give. */
static uint32_t given(const struct fastdump_place *place, uint32_t tier) {
    if (!place->live || !place->segment)
        return 0;
    uint32_t owner = *owner_of(place->segment, place->chunk);
    if (!(owner & FASTDUMP_NOT_DIRECT))
        return owner;
    return tier == FASTDUMP_PARENT ? 0 : owner & (FASTDUMP_NOT_DIRECT - 1);
}

uint64_t fastdump_words_follow(struct fastdump_words *words, const void *data, uint64_t length,
                               uint64_t address, uint32_t module, uint32_t tier) {
    const uint64_t *found = data;
    uint64_t count = length / 8, at = 0, news = 0;
    struct fastdump_place *place = &words->place, target = words->target;
    uint32_t owner = module ? module : given(place, tier);
    while ((at = next_block(found, at, count, words->heap_windows)) < count) {
        uint64_t end = count - at < BLOCK ? count : at + BLOCK;
        for (; at < end; at++) {
            uint64_t word = found[at];
            if (!fastdump_is_in(words->heap_windows, word))
                continue;
            if (!module && !is_at(place, address + at * 8)) {
                move_to(place, &words->heap, address + at * 8);
                owner = given(place, tier);
            }
            if (!owner)
                continue;
            struct fastdump_segment *segment = fastdump_segment_of(&target, &words->heap, word);
            uint64_t chunk = segment ? fastdump_chunk_of(segment, word) : 0;
            if (!chunk || *owner_of(segment, chunk) || fastdump_chunk_is_free(segment, chunk))
                continue;
            own(words, segment, chunk, fastdump_chunk_end(segment, chunk), owner, tier);
            news++;
        }
    }
    words->target = target;
    return news;
}

/* --- types ------------------------------------------------------------------------------ */

#define MOST_ITEMS (1ull << 40)

/* A count of 32 bits; above it 3.14 has flags, and freed memory of pymalloc a pointer. */
static inline bool is_plausible(uint64_t references) {
    return (uint32_t)references && !(references >> 32 & 0xffff) && references >> 48 < 256;
}

uint64_t fastdump_type_home(const struct fastdump_types *types, uint64_t address) {
    uint64_t mask = types->capacity - 1, at = (address >> 4) * 0x9e3779b97f4a7c15u >> 20 & mask;
    while (types->types[at].address != address && types->types[at].address)
        at = (at + 1) & mask;
    return at;
}

void fastdump_types_feed(struct fastdump_types *types, const void *data, uint64_t length,
                         uint64_t address) {
    const uint64_t *found = data;
    uint64_t count = length / 8, at = 0;
    while ((at = next_block(found, at, count, types->windows)) < count) {
        uint64_t end = count - at < BLOCK ? count : at + BLOCK;
        for (; at < end; at++) {
            uint64_t target = found[at];
            if (!at || !fastdump_is_in(types->windows, target))
                continue;
            if (!is_plausible(found[at - 1]))
                continue;
            struct fastdump_type *type = &types->types[fastdump_type_home(types, target)];
            if (!type->address)
                continue;
            if (!is_at(&types->place, address + at * 8))
                move_to(&types->place, &types->heap, address + at * 8);
            if (!types->place.live)
                continue;
            bool cut = at + 4 > count; /* what follows lies in the next buffer */
            uint64_t size = cut ? 0 : found[at + 1], state = cut ? 0 : found[at + 3];
            if ((int64_t)size < 0)
                size = -size;
            if (type->sizing != FASTDUMP_SIZE_FIXED && size >= MOST_ITEMS)
                continue; /* a tuple of one type looks like an object but for that */
            type->count++;
            if (types->places_found < types->places_capacity)
                types->places[types->places_found++] = address + at * 8 - 8;
            switch (type->sizing) {
            case FASTDUMP_SIZE_VAR:
                type->items += size;
                break;
            case FASTDUMP_SIZE_LIST: /* allocated, not ob_size */
                type->items += state < MOST_ITEMS ? state : 0;
                break;
            case FASTDUMP_SIZE_TAG: /* int since 3.12 */
                type->items += size >> 3;
                break;
            case FASTDUMP_SIZE_STR: /* compact and ASCII are the bits 5 and 6 of its state */
                type->items += (state >> 5 & 1)
                                   ? (size + 1) * (state >> 2 & 7) +
                                         ((state >> 6 & 1) ? 0 : types->str_wide - types->str_ascii)
                                   : types->str_wide - types->str_ascii;
                break;
            }
        }
    }
}
