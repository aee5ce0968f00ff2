/*
 * Whose the chunks are: by the words that were kept of memory, without it. First by what a chunk's
 * own words point to, then by who points to it.
 */
#include "words.h"

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
    struct fastdump_owned *owned = &words->owned[module];
    *owner = (unsigned char)(module | (tier > FASTDUMP_ANY_WORD ? FASTDUMP_NOT_DIRECT : 0));
    owned->count[tier]++;
    owned->bytes[tier] += end - chunk;
    owned->example[tier] = chunk + FASTDUMP_CHUNK_HEADER;
    fastdump_enter_size(owned->sizes, end - chunk);
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
    if (!fastdump_is_at(&words->place, address)) {
        settle(words);
        fastdump_move_to(&words->place, &words->heap, address);
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

/* --- kept words --------------------------------------------------------------------------- */

/* The next block, if its words are kept, or NULL; *words_ret: its words. */
static struct fastdump_block *block_of(const struct fastdump_kept *kept, uint64_t **words_ret) {
    *words_ret = kept->words + kept->word;
    return kept->block < kept->count && kept->blocks[kept->block].count != FASTDUMP_TOO_MANY
               ? &kept->blocks[kept->block]
               : NULL;
}

static void block_end(struct fastdump_kept *kept) {
    const struct fastdump_block *block = &kept->blocks[kept->block++];
    kept->word += block->count + block->modules;
}

CLONED
void fastdump_words_count(struct fastdump_words *words, struct fastdump_kept *kept) {
    uint64_t *found;
    for (const struct fastdump_block *block; (block = block_of(kept, &found)); block_end(kept)) {
        found += block->count;
        for (uint32_t i = 0; i < block->modules; i++)
            count_hit(words, fastdump_word_of(found[i]), fastdump_place_of(found[i], block));
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
    if (!segment || !segment->begins || word < place->from || word >= place->to)
        return;
    uint64_t at = word - segment->start;
    __builtin_prefetch(&segment->begins[at / 1024]);
    __builtin_prefetch(&segment->ranks_within[at / 1024]);
}

/* Give an owner to the chunk that a word points to, if it is live and has none: it, or 0. */
static inline uint64_t give(struct fastdump_words *words, struct fastdump_place *target,
                            uint64_t word, uint32_t owner, uint32_t tier) {
    struct fastdump_segment *segment = fastdump_segment_of(target, &words->heap, word);
    uint64_t rank = segment ? fastdump_rank_of(segment, word) : 0;
    if (!rank || segment->owners[rank - 1])
        return 0;
    uint64_t chunk = fastdump_chunk_in(target, segment, word);
    if (fastdump_chunk_is_free(segment, chunk))
        return 0;
    own(words, &segment->owners[rank - 1], chunk, fastdump_chunk_end(segment, chunk), owner, tier);
    return chunk;
}

static inline void put_todo(struct fastdump_words *words, uint64_t chunk) {
    if (words->todo_used < words->todo_capacity)
        words->todo[words->todo_used++] = chunk;
}

/* Of its words so many stay, at left. */
CLONED
static uint64_t follow_block(struct fastdump_words *words, struct fastdump_block *block,
                             const uint64_t *found, uint64_t *left, uint32_t module,
                             uint32_t tier) {
    struct fastdump_place *place = &words->place, target = words->target;
    uint64_t news = 0, begin = 0, end = 0;
    uint32_t owner = module, count = block->count, kept = 0;
    bool stays = false;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word = fastdump_word_of(found[i]), at = fastdump_place_of(found[i], block);
        if (i + AHEAD < count)
            prefetch(&target, fastdump_word_of(found[i + AHEAD]));
        if (!module && at - FASTDUMP_CHUNK_HEADER - begin >= end - begin) {
            if (!fastdump_is_at(place, at))
                fastdump_move_to(place, &words->heap, at);
            begin = place->chunk, end = place->end;
            owner = given(place, tier);
            stays = !owner && place->live && place->segment;
        }
        left[kept] = found[i]; /* no branch, which would be guessed wrong */
        kept += stays;
        if (!owner)
            continue;
        uint64_t chunk = give(words, &target, word, owner, tier);
        news += chunk != 0;
        if (chunk && tier == FASTDUMP_FURTHER && chunk < begin)
            put_todo(words, chunk);
    }
    words->target = target;
    block->count = kept;
    block->modules = 0;
    return news;
}

uint64_t fastdump_words_follow(struct fastdump_words *words, struct fastdump_kept *kept,
                               uint32_t module, uint32_t tier) {
    uint64_t news = 0, *found;
    for (struct fastdump_block *block; (block = block_of(kept, &found));) {
        block_end(kept);
        news += follow_block(words, block, found, kept->words + kept->used, module, tier);
        kept->used += block->count;
    }
    return news;
}

/* Give what the words of a chunk point to its owner, and put it into todo. */
static uint64_t chase_words(struct fastdump_words *words, const uint64_t *found, uint64_t count,
                            uint32_t owner) {
    uint64_t news = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t chunk = fastdump_is_in(words->heap_windows, found[i])
                             ? give(words, &words->target, found[i], owner, FASTDUMP_FURTHER)
                             : 0;
        news += chunk != 0;
        if (chunk)
            put_todo(words, chunk);
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

/* The module, other than owner, that the nearest of count words around an index points to; or 0. */
static uint32_t module_beside(struct fastdump_words *words, const uint64_t *found, uint32_t count,
                              uint32_t index, uint32_t owner) {
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if ((uint16_t)found[middle] < index)
            low = middle + 1;
        else
            high = middle;
    }
    for (uint32_t before = low, after = low;;) {
        uint32_t back = before ? index - (uint16_t)found[before - 1] : UINT32_MAX;
        uint32_t on = after < count ? (uint16_t)found[after] - index : UINT32_MAX;
        if (back > FASTDUMP_BESIDE && on > FASTDUMP_BESIDE)
            return 0;
        uint32_t module =
            fastdump_module_at(words->ranges, words->range_count, &words->last_range,
                               fastdump_word_of(found[back < on ? --before : after++]));
        if (module && module != owner)
            return module;
    }
}

/* Whose the chunk is that begins where a word points to, if it is live and has an owner; or 0. */
static uint32_t owner_at(struct fastdump_words *words, uint64_t word) {
    uint64_t chunk = word - FASTDUMP_CHUNK_HEADER;
    struct fastdump_segment *segment = fastdump_segment_of(&words->target, &words->heap, chunk);
    if (!segment || fastdump_chunk_of(segment, chunk) != chunk ||
        fastdump_chunk_is_free(segment, chunk))
        return 0;
    return *owner_of(segment, chunk) & (FASTDUMP_NOT_DIRECT - 1);
}

void fastdump_words_holders(struct fastdump_words *words, struct fastdump_kept *kept,
                            uint32_t module, uint64_t *counts_ret) {
    struct fastdump_place *place = &words->place;
    uint64_t *found;
    for (const struct fastdump_block *block; (block = block_of(kept, &found)); block_end(kept))
        for (uint32_t i = 0; i < block->count; i++) {
            uint64_t at = fastdump_place_of(found[i], block);
            uint32_t owner = owner_at(words, fastdump_word_of(found[i])), from = module;
            if (owner && !module) {
                if (!fastdump_is_at(place, at))
                    fastdump_move_to(place, &words->heap, at);
                if (place->live)
                    from = place->segment
                               ? *owner_of(place->segment, place->chunk) & (FASTDUMP_NOT_DIRECT - 1)
                               : module_beside(words, found + block->count, block->modules,
                                               (uint16_t)found[i], owner);
            }
            if (owner && from)
                counts_ret[owner * FASTDUMP_MODULES + from]++;
        }
}
