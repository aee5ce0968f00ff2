/*
 * What the words of memory point to: into modules, to types, to chunks of the heap.
 *
 * Most words point nowhere near. So a kernel looks at their upper halves first: whether these are
 * those of an address in at most three windows. Only such words are held against the windows.
 */
#include <string.h>

#include "words.h"

/* --- where a word lies ------------------------------------------------------------------ */

/* The chunk whose user has the word at an address: see fastdump_segment. */
CLONED
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
    return &segment->owners[fastdump_rank_of(segment, chunk) - 1];
}

/* --- hits ------------------------------------------------------------------------------- */

static struct fastdump_pointed *hit_of(struct fastdump_words *words, uint64_t target,
                                       uint64_t size_class) {
    uint64_t mask = words->capacity - 1;
    uint64_t at = ((target >> 3) + size_class) * 0x9e3779b97f4a7c15u >> 20 & mask;
    for (; words->slots[at]; at = (at + 1) & mask) {
        struct fastdump_pointed *hit = &words->hits[words->slots[at] - 1];
        if (hit->target == target && hit->size_class == size_class)
            return hit;
    }
    if (words->used >= words->capacity / 4 * 3)
        return NULL;
    words->hits[words->used] =
        (struct fastdump_pointed){.target = target, .size_class = size_class};
    words->slots[at] = (uint32_t)++words->used;
    return &words->hits[words->used - 1];
}

static void own(struct fastdump_words *words, unsigned char *owner, uint64_t chunk, uint64_t end,
                uint32_t module, uint32_t tier) {
    *owner = (unsigned char)(module | (tier > FASTDUMP_ANY_WORD ? FASTDUMP_NOT_DIRECT : 0));
    words->owned[module].count[tier]++;
    words->owned[module].bytes[tier] += end - chunk;
    words->owned[module].example[tier] = chunk + FASTDUMP_CHUNK_HEADER;
}

/* The chunk that was being read has an owner: the one of its first word, else of most words. */
static inline void settle(struct fastdump_words *words) {
    struct fastdump_place *place = &words->place;
    uint32_t elected = fastdump_elected(words->votes, words->voted);
    if (elected) { /* its first word has a vote, too */
        uint32_t module = words->first ? words->first : elected;
        own(words, owner_of(place->segment, place->chunk), place->chunk, place->end, module,
            words->first ? FASTDUMP_FIRST_WORD : FASTDUMP_ANY_WORD);
    }
    words->first = words->voted = 0;
}

static inline void count_hit(struct fastdump_words *words, uint64_t target, uint64_t address) {
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

#define PAGE_WORDS (FASTDUMP_CLASS_PAGE / 8)
#define LINE_WORDS 8
#define LINES 8
#define SAMPLES (LINES * LINE_WORDS)

#define HIGH 0x8080808080808080u /* of each byte */
#define ALL 0x0101010101010101u

/* Whether every fourth sample has at least so many different bytes: of 128 random ones 101. */
static inline bool has_different_bytes(const uint64_t *samples, int least) {
    int count = 1; /* zero */
    for (int i = 0; i < SAMPLES; i += 4)
        count += __builtin_popcountll((((samples[i] & ~HIGH) + ~HIGH) | samples[i]) & HIGH);
    if (count < least)
        return false;
    uint64_t rows[32] = {0};
    unsigned char *seen = (unsigned char *)rows;
    for (int i = 0; i < SAMPLES; i += 4)
        for (int byte = 0; byte < 64; byte += 8)
            seen[samples[i] >> byte & 0xff] = 1;
    count = 0;
    for (int i = 0; i < 32; i++)
        count += __builtin_popcountll(rows[i]);
    return count >= least;
}

/* By every ninth cache line, so that no power of 2 repeats in them: what a page of 4 KiB holds. */
CLONED
static int page_class(const uint64_t *words) {
    uint64_t samples[SAMPLES], zero = 0, pointers = 0, text = 0;
    for (int line = 0; line < LINES; line++)
        memcpy(samples + line * LINE_WORDS, words + line * 9 * LINE_WORDS, LINE_WORDS * 8);
    for (int i = 0; i < SAMPLES; i++) {
        uint64_t word = samples[i];
        zero += word == 0;
        pointers += !(word & 0xffff800000000007) & ((int64_t)word > UINT32_MAX);
        /* Where a byte carries into the next one, it is above 0x7f. */
        text += ((word + ALL * (0x80 - 0x20)) & ~word & HIGH) == HIGH;
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
    return has_different_bytes(samples, 73) ? FASTDUMP_PAGE_ENTROPY : FASTDUMP_PAGE_OTHER;
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
    words->pages[class]++;
}

/* --- blocks ----------------------------------------------------------------------------- */

#define STRIP 4096 /* words that are looked at while they are in the L1 cache */

struct windows {
    struct fastdump_range range[3];
};

static inline struct windows windows_in(const struct fastdump_range *windows) {
    struct windows copy;
    memcpy(copy.range, windows, sizeof copy.range);
    return copy;
}

/* The words of a strip, the first of which has index first, that lie in the windows; how many. */
CLONED
static uint64_t find_in(const struct fastdump_words *words, const uint64_t *strip, uint64_t count,
                        uint64_t first, uint64_t room, uint64_t *found_ret, uint16_t *indexes_ret) {
    uint64_t found = 0;
    uint32_t near[STRIP + NEAR_SLACK];
    /* Copies: what is written could be anything's, so that the windows would be read for each. */
    const struct windows modules = windows_in(words->module_windows),
                         heap = windows_in(words->heap_windows);
    uint64_t all = fastdump_near_of(words->kernel)(words->windows, strip, count, near);
    for (uint64_t i = 0; i < all && found + FASTDUMP_BLOCK_SLACK <= room; i++) {
        uint64_t word = strip[near[i]];
        found_ret[found] = word; /* no branch, which would be guessed wrong */
        indexes_ret[found] = (uint16_t)(first + near[i]);
        found += (int)fastdump_is_in(modules.range, word) | (int)fastdump_is_in(heap.range, word);
    }
    return found;
}

uint64_t fastdump_words_find(const struct fastdump_words *words, const void *data, uint64_t length,
                             uint64_t capacity, uint64_t *found_ret, uint16_t *indexes_ret) {
    const uint64_t *all = data;
    uint64_t found = 0;
    for (uint64_t at = 0; at < length / 8; at += STRIP)
        found += find_in(words, all + at, length / 8 - at < STRIP ? length / 8 - at : STRIP, at,
                         capacity - found, found_ret + found, indexes_ret + found);
    return found;
}

/* Walk the chunks of the segments that a block lies in, if the walk has come so far. */
static void walk_chunks(const struct fastdump_heap *heap, const void *data, uint64_t length,
                        uint64_t address) {
    uint64_t low = 0, high = heap->count, end = address + length;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (heap->segments[middle]->start < end)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low && heap->segments[low - 1]->end > address; low--) {
        struct fastdump_segment *segment = heap->segments[low - 1];
        if (segment->bits && !segment->walked && segment->next >= address &&
            segment->next + FASTDUMP_CHUNK_HEADER <= end)
            fastdump_segment_walk(segment, data, length, address);
    }
}

void fastdump_words_block(struct fastdump_words *words, const void *data, uint64_t length,
                          uint64_t address) {
    const uint64_t *all = data;
    uint64_t found = 0, most = length / 8 / 16, room = most + FASTDUMP_BLOCK_SLACK;
    walk_chunks(&words->heap, data, length, address);
    if (words->types)
        fastdump_types_feed(words->types, data, length, address);
    for (uint64_t at = 0; at < length / 8; at += STRIP) { /* while it is in the cache */
        uint64_t count = length / 8 - at < STRIP ? length / 8 - at : STRIP;
        uint64_t used = words->kept_used + found;
        for (uint64_t page = at; page + PAGE_WORDS <= at + count; page += PAGE_WORDS)
            enter_page(words, page_class(all + page), address + page * 8);
        found += find_in(words, all + at, count, at, room - found, words->kept + used,
                         words->indexes + used);
    }
    bool keep = found <= most;
    words->blocks[words->blocks_used++] =
        (struct fastdump_block){.address = address,
                                .length = (uint32_t)length,
                                .count = keep ? (uint32_t)found : FASTDUMP_TOO_MANY};
    words->kept_used += keep ? found : 0;
}

/* A buffer becomes several blocks where pages of it cannot be read. */
bool fastdump_words_full(const struct fastdump_words *words) {
    return words->blocks_capacity - words->blocks_used < words->size / FASTDUMP_CLASS_PAGE + 4 ||
           words->kept_capacity - words->kept_used <
               4 * (words->size / 8 / 16) + FASTDUMP_BLOCK_SLACK;
}

uint64_t fastdump_words_bytes(struct fastdump_words *words, const void *data, uint64_t length,
                              uint64_t address) {
    const unsigned char *bytes = data;
    uint64_t done = 0;
    while (done < length && !fastdump_words_full(words)) {
        uint64_t part = length - done < words->size ? length - done : words->size;
        fastdump_words_block(words, bytes + done, part, address + done);
        done += part;
    }
    return done;
}

/* A block's words, one after the other. Those that stay make up the block from then on. */
struct block_words {
    struct fastdump_kept *kept;
    struct fastdump_block *block;
    uint64_t *words;
    uint16_t *indexes;
    uint64_t *words_left;
    uint16_t *indexes_left;
    uint32_t left;
};

/* Whether there is a next block, and its words are kept. */
static bool block_begin(struct block_words *at, struct fastdump_kept *kept) {
    if (kept->block == kept->count || kept->blocks[kept->block].count == FASTDUMP_TOO_MANY)
        return false;
    *at = (struct block_words){.kept = kept,
                               .block = &kept->blocks[kept->block],
                               .words = kept->words + kept->word,
                               .indexes = kept->indexes + kept->word,
                               .words_left = kept->words + kept->used,
                               .indexes_left = kept->indexes + kept->used};
    return true;
}

static inline void block_keep(struct block_words *at, uint32_t i, bool stays) {
    at->words_left[at->left] = at->words[i]; /* no branch, which would be guessed wrong */
    at->indexes_left[at->left] = at->indexes[i];
    at->left += stays;
}

static void block_end(struct block_words *at) {
    at->kept->block++;
    at->kept->word += at->block->count;
    at->kept->used += at->left;
    at->block->count = at->left;
}

CLONED
void fastdump_words_count(struct fastdump_words *words, struct fastdump_kept *kept) {
    struct block_words at;
    const struct windows modules = windows_in(words->module_windows),
                         heap = windows_in(words->heap_windows);
    for (; block_begin(&at, kept); block_end(&at))
        for (uint32_t i = 0; i < at.block->count; i++) {
            uint64_t word = at.words[i];
            if (fastdump_is_in(modules.range, word))
                count_hit(words, word, at.block->address + at.indexes[i] * 8ull);
            block_keep(&at, i, fastdump_is_in(heap.range, word));
        }
}

void fastdump_words_settle(struct fastdump_words *words) {
    settle(words);
    words->place = (struct fastdump_place){.end = 0};
}

/* --- parents ---------------------------------------------------------------------------- */

#define AHEAD 16 /* words: an access to memory takes as long as about so many of them */

/* Whose the chunks are that the chunk at hand points to: 0 if it has no owner to give. */
static inline uint32_t given(const struct fastdump_place *place, uint32_t tier) {
    if (!place->live || !place->segment)
        return 0;
    uint32_t owner = *owner_of(place->segment, place->chunk);
    if (!(owner & FASTDUMP_NOT_DIRECT))
        return owner;
    return tier == FASTDUMP_PARENT ? 0 : owner & (FASTDUMP_NOT_DIRECT - 1);
}

/* What tells the owner of the chunk that a word points to, if that is where the last one lay. */
static inline void prefetch(const struct fastdump_place *place, uint64_t word) {
    struct fastdump_segment *segment = place->segment;
    if (!segment || !segment->bits || word < place->from || word >= place->to)
        return;
    uint64_t at = word - segment->start;
    __builtin_prefetch(&segment->bits[at / 1024]);
    __builtin_prefetch(&segment->ranks_within[at / 1024]);
}

static inline void put_todo(struct fastdump_words *words, uint64_t chunk) {
    if (words->todo_used < words->todo_capacity)
        words->todo[words->todo_used++] = chunk;
}

CLONED
static uint64_t follow_block(struct fastdump_words *words, struct block_words *block,
                             uint32_t module, uint32_t tier) {
    struct fastdump_place *place = &words->place, target = words->target;
    uint64_t news = 0, address = block->block->address, begin = 0, end = 0;
    uint32_t owner = module, count = block->block->count;
    bool stays = false;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word = block->words[i], at = address + block->indexes[i] * 8ull;
        if (i + AHEAD < count)
            prefetch(&target, block->words[i + AHEAD]);
        if (!module && at - FASTDUMP_CHUNK_HEADER - begin >= end - begin) {
            if (!is_at(place, at))
                move_to(place, &words->heap, at);
            begin = place->chunk, end = place->end;
            owner = given(place, tier);
            stays = !owner && place->live && place->segment;
        }
        block_keep(block, i, stays);
        if (!owner)
            continue;
        struct fastdump_segment *segment = fastdump_segment_of(&target, &words->heap, word);
        uint64_t rank = segment ? fastdump_rank_of(segment, word) : 0;
        if (!rank || segment->owners[rank - 1])
            continue;
        uint64_t chunk = fastdump_chunk_in(&target, segment, word);
        if (fastdump_chunk_is_free(segment, chunk))
            continue;
        own(words, &segment->owners[rank - 1], chunk, fastdump_chunk_end(segment, chunk), owner,
            tier);
        news++;
        if (tier == FASTDUMP_FURTHER && chunk < begin)
            put_todo(words, chunk);
    }
    words->target = target;
    return news;
}

uint64_t fastdump_words_follow(struct fastdump_words *words, struct fastdump_kept *kept,
                               uint32_t module, uint32_t tier) {
    uint64_t news = 0;
    struct block_words at;
    for (; block_begin(&at, kept); block_end(&at))
        news += follow_block(words, &at, module, tier);
    return news;
}

/* Give what the words of a chunk point to its owner, and put it into todo. */
static uint64_t chase_words(struct fastdump_words *words, const uint64_t *found, uint64_t count,
                            uint32_t owner) {
    uint64_t news = 0;
    struct fastdump_place *target = &words->target;
    for (uint64_t i = 0; i < count; i++) {
        if (!fastdump_is_in(words->heap_windows, found[i]))
            continue;
        struct fastdump_segment *segment = fastdump_segment_of(target, &words->heap, found[i]);
        uint64_t chunk = segment ? fastdump_chunk_in(target, segment, found[i]) : 0;
        if (!chunk || *owner_of(segment, chunk) || fastdump_chunk_is_free(segment, chunk))
            continue;
        own(words, owner_of(segment, chunk), chunk, fastdump_chunk_end(segment, chunk), owner,
            FASTDUMP_FURTHER);
        put_todo(words, chunk);
        news++;
    }
    return news;
}

uint64_t fastdump_words_chase(struct fastdump_words *words, const struct fastdump_target *target,
                              const struct fastdump_slice *slices, uint64_t count, uint64_t limit) {
    uint64_t news = 0, found[FASTDUMP_CHASED / 8];
    struct fastdump_place place = {.end = 0};
    for (; words->todo_used && limit; limit--) {
        uint64_t chunk = words->todo[--words->todo_used];
        const struct fastdump_segment *segment = fastdump_segment_of(&place, &words->heap, chunk);
        uint64_t end = fastdump_chunk_end(segment, chunk);
        /* Its user has the first word of the next header, too. */
        struct fastdump_range range = {.start = chunk + FASTDUMP_CHUNK_HEADER, .end = end + 8};
        uint64_t length = range.end - range.start;
        if (end < segment->next && length <= sizeof found &&
            fastdump_read_range(target, slices, count, &range, found))
            news += chase_words(words, found, length / 8,
                                *owner_of(segment, chunk) & (FASTDUMP_NOT_DIRECT - 1));
    }
    return news;
}

/* The module, other than owner, that the nearest word of a block by word i points to; or 0. */
static uint32_t module_beside(struct fastdump_words *words, const uint64_t *found,
                              const uint16_t *indexes, uint32_t count, uint32_t i, uint32_t owner) {
    uint32_t before = i, after = i + 1;
    for (;;) {
        uint32_t back = before ? indexes[i] - indexes[before - 1] : UINT32_MAX;
        uint32_t on = after < count ? indexes[after] - indexes[i] : UINT32_MAX;
        if (back > FASTDUMP_BESIDE && on > FASTDUMP_BESIDE)
            return 0;
        uint64_t word = found[back < on ? --before : after++];
        if (!fastdump_is_in(words->module_windows, word))
            continue;
        uint32_t module =
            fastdump_module_at(words->ranges, words->range_count, &words->last_range, word);
        if (module && module != owner)
            return module;
    }
}

void fastdump_words_holders(struct fastdump_words *words, struct fastdump_kept *kept,
                            uint32_t module, uint64_t *counts_ret) {
    struct fastdump_place *place = &words->place, *target = &words->target;
    struct block_words block;
    for (; block_begin(&block, kept); block_end(&block)) {
        uint32_t count = block.block->count;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t word = block.words[i], at = block.block->address + block.indexes[i] * 8ull;
            if (!fastdump_is_in(words->heap_windows, word))
                continue;
            uint64_t chunk = word - FASTDUMP_CHUNK_HEADER;
            struct fastdump_segment *segment = fastdump_segment_of(target, &words->heap, chunk);
            if (!segment || fastdump_chunk_of(segment, chunk) != chunk ||
                fastdump_chunk_is_free(segment, chunk))
                continue;
            uint32_t owner = *owner_of(segment, chunk) & (FASTDUMP_NOT_DIRECT - 1), from = module;
            if (owner && !module) {
                if (!is_at(place, at))
                    move_to(place, &words->heap, at);
                if (place->live)
                    from = place->segment
                               ? *owner_of(place->segment, place->chunk) & (FASTDUMP_NOT_DIRECT - 1)
                               : module_beside(words, block.words, block.indexes, count, i, owner);
            }
            if (owner && from)
                counts_ret[owner * FASTDUMP_MODULES + from]++;
        }
    }
}

/* --- types ------------------------------------------------------------------------------ */

#define MOST_ITEMS (1ull << 40)
#define SMALL_TABLE 8 /* PySet_MINSIZE, PyDict_MINSIZE */

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

static inline bool is_type(const struct fastdump_types *types, uint64_t word) {
    return fastdump_is_in(types->windows, word) &&
           types->types[fastdump_type_home(types, word)].address;
}

/* What ma_keys of a dict takes, or else ma_values, if it has grown to ma_used without deletions. */
static uint64_t dict_bytes(const struct fastdump_types *types, uint64_t used, uint64_t keys,
                           uint64_t values) {
    if (!keys || keys % 8 || keys >> 48)
        return 0; /* no dict */
    if (!used && (values || !types->dict_value))
        return 0; /* keys are static, and to 3.10 values too: without them it has a table */
    uint64_t slots = SMALL_TABLE;
    while (slots * 2 / 3 < used)
        slots *= 2;
    if (values)
        return slots * 2 / 3 * types->dict_value;
    uint64_t index = slots < 1u << 8 ? 1 : slots < 1u << 16 ? 2 : slots < 1ull << 32 ? 4 : 8;
    return types->dict_header + slots * index + slots * 2 / 3 * types->dict_entry;
}

/* The word at an index may be what an object of a type has behind its count of references. */
static void count_object(struct fastdump_types *types, const uint64_t *found, uint64_t count,
                         uint64_t at, uint64_t address) {
    uint64_t target = found[at];
    if (!at || !fastdump_is_in(types->windows, target) || !is_plausible(found[at - 1]))
        return;
    if (fastdump_is_in(types->windows, found[at - 1]))
        return; /* a pointer: a program without PIE has its types below 4 GiB */
    struct fastdump_type *type = &types->types[fastdump_type_home(types, target)];
    if (!type->address)
        return;
    if (!is_at(&types->place, address + at * 8))
        move_to(&types->place, &types->heap, address + at * 8);
    if (!types->place.live)
        return;
    bool cut = at + 4 > count; /* what follows lies in the next buffer */
    uint64_t size = cut ? 0 : found[at + 1], state = cut ? 0 : found[at + 3];
    if ((int64_t)size < 0)
        size = -size;
    if (type->sizing != FASTDUMP_SIZE_FIXED && (size >= MOST_ITEMS || is_type(types, size)))
        return; /* a tuple of types looks like an object but for that */
    type->count++;
    type->example = address + at * 8 - 8;
    types->total++;
    if (types->places_found < types->places_capacity)
        types->places[types->places_found++] = type->example;
    switch (type->sizing) {
    case FASTDUMP_SIZE_VAR:
        type->items += size;
        break;
    case FASTDUMP_SIZE_LIST: /* allocated: list_resize() leaves no more room than that */
        type->items += state <= 2 * size + 8 ? state : size;
        break;
    case FASTDUMP_SIZE_SET: /* mask: a power of 2, less 1 */
        if (state >= SMALL_TABLE && state < MOST_ITEMS && !(state & (state + 1)))
            type->items += state + 1;
        break;
    case FASTDUMP_SIZE_DICT:
        if (at + 4 < count)
            type->items += dict_bytes(types, size, state, found[at + 4]);
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

void fastdump_types_feed(struct fastdump_types *types, const void *data, uint64_t length,
                         uint64_t address) {
    const uint64_t *found = data;
    uint64_t count = length / 8;
    uint32_t near[STRIP + NEAR_SLACK];
    for (uint64_t strip = 0; strip < count; strip += STRIP) {
        uint64_t left = count - strip < STRIP ? count - strip : STRIP;
        uint64_t all = fastdump_near_of(types->kernel)(types->windows, found + strip, left, near);
        for (uint64_t i = 0; i < all; i++)
            count_object(types, found, count, strip + near[i], address);
    }
}
