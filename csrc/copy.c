/*
 * Slices of a process → bytes: asks the page tables, reads what holds data, and writes it
 * at its offset. One page that cannot be read costs one page.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "scan.h"
#include "search.h"
#include "words.h"

/*
 * A string that crosses the end of what a thread scans is read on in steps of so many bytes; the
 * page tables are asked for as many at a time.
 */
#define TAIL_STEP 16384
#define TAIL_WINDOW (1 << 20)

#define ZEROS                                                                                      \
    FASTDUMP_LONGEST /* of what lies around a slice: more than any string or pattern needs */

/* An extent with everything known of it: FILE here means "absent, but the file has it". */
enum source { SOURCE_NONE, SOURCE_PROCESS, SOURCE_FILE };

struct piece {
    uint64_t start;
    uint64_t end;
    enum source source;
    uint64_t kind;
    int32_t gap; /* FASTDUMP_GAP_*, or 0 */
};

/* The walk over one slice: the page tables, and behind what is absent the mapped file. */
struct pieces {
    const struct fastdump_slice *slice;
    uint64_t file_end; /* address that the end of the mapped file, page-rounded, would have */
    struct fastdump_extent rest; /* absent in the process, the file not yet asked */
    struct fastdump_extents walk;
};

struct copy {
    const struct fastdump_target *main;
    const struct fastdump_target *target; /* main, or its origin, which has the slice */
    struct fastdump_cursor *cursor;
    struct fastdump_gap *gaps;
    struct fastdump_tally *tally;
    unsigned char *buffer;
    uint64_t size;
    int32_t output;
    uint64_t hole;
    uint64_t gap_capacity;
    uint64_t offset; /* of buffer[0] in the output */
    uint64_t filled;
    struct fastdump_scan *scan; /* one of these takes the buffer, instead of the output; */
    struct fastdump_search *search;
    struct fastdump_words *words; /* or all are NULL */
    bool again;                   /* the slice is accounted for elsewhere */
};

/* --- what takes the buffer ------------------------------------------------------------------ */

static bool has_sink(const struct copy *copy) { return copy->scan || copy->search || copy->words; }

static void sink_chunk(struct copy *copy, uint64_t address, uint64_t length) {
    if (copy->words)
        fastdump_words_block(copy->words, copy->buffer, length, address);
    else if (copy->search)
        fastdump_search_chunk(copy->search, address, length);
    else /* only the end of a plain file is no whole block */
        fastdump_scan_chunk(copy->scan, address, length, length % 64 != 0);
}

static void sink_zeros(struct copy *copy, uint64_t address, uint64_t length) {
    if (copy->search)
        fastdump_search_zeros(copy->search, address, length);
    else if (copy->scan)
        fastdump_scan_zeros(copy->scan, address, length);
}

static bool sink_go_on(struct copy *copy, uint64_t address, uint64_t region) {
    if (copy->words) /* which knows nothing that goes on */
        return true;
    return copy->search ? fastdump_search_go_on(copy->search, address, region)
                        : fastdump_scan_go_on(copy->scan, address, region);
}

/* Whether what came last ends at this address. */
static bool sink_is_at(const struct copy *copy, uint64_t address) {
    if (copy->words)
        return false;
    return copy->search ? copy->search->begun && copy->search->next == address
                        : copy->scan->begun && copy->scan->next == address;
}

static bool sink_is_full(const struct copy *copy) {
    if (copy->words)
        return fastdump_words_full(copy->words);
    return copy->search ? fastdump_search_full(copy->search) : fastdump_scan_full(copy->scan);
}

static bool sink_is_open(const struct copy *copy) {
    if (copy->words)
        return false;
    return copy->search ? fastdump_search_open(copy->search) : fastdump_scan_open(copy->scan);
}

static void sink_end(struct copy *copy) {
    if (copy->search)
        fastdump_search_end(copy->search);
    else if (copy->scan)
        fastdump_scan_end(copy->scan);
}

/* --- the walk ------------------------------------------------------------------------------- */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pieces_begin(struct pieces *pieces, const struct fastdump_target *target,
                         const struct fastdump_slice *slice, uint64_t done) {
    uint64_t start = slice->address + done, end = slice->address + slice->length;
    pieces->slice = slice;
    pieces->rest = (struct fastdump_extent){0, 0, KIND_ABSENT};
    pieces->file_end = slice->address;
    struct stat st;
    if (slice->file >= 0 && fstat(slice->file, &st) == 0 &&
        (uint64_t)st.st_size > slice->file_offset) {
        uint64_t left = (uint64_t)st.st_size - slice->file_offset, page = target->page_size;
        pieces->file_end =
            left > slice->length ? end : slice->address + (left + page - 1) / page * page;
    }
    fastdump_extents_begin(&pieces->walk, target, start, end,
                           (slice->flags & FASTDUMP_MODIFIED) != 0);
    if (slice->flags & FASTDUMP_EVERY) { /* one extent, as if the page tables had said so */
        pieces->walk.batch[0] = (struct fastdump_extent){start, end, KIND_PRESENT};
        pieces->walk.count = 1;
        pieces->walk.scanned = end;
    }
}

/* The first part of the absent range *rest that is the same throughout in the mapped file. */
static struct piece piece_of_file(struct pieces *pieces, uint64_t page) {
    const struct fastdump_slice *slice = pieces->slice;
    struct fastdump_extent *rest = &pieces->rest;
    struct piece piece = {rest->start, rest->end, SOURCE_NONE, KIND_ABSENT, 0};
    if (rest->start >= pieces->file_end) {
        piece.gap = FASTDUMP_GAP_PAST_EOF;
    } else {
        /*
         * Of shared memory this finds the pages that only other mappings have touched, and
         * reads none of the rest: a hole in it is never allocated (lseek(2), SEEK_DATA).
         */
        off_t offset = (off_t)(slice->file_offset + (rest->start - slice->address));
        off_t data = lseek(slice->file, offset, SEEK_DATA);
        uint64_t known = rest->end < pieces->file_end ? rest->end : pieces->file_end;
        if (data < 0 && errno == ENXIO) {
            piece.end = known;
        } else if (data > offset && (uint64_t)(data - offset) / page > 0) {
            uint64_t hole = (uint64_t)(data - offset) / page * page;
            piece.end = hole < known - rest->start ? rest->start + hole : known;
        } else {
            piece.source = SOURCE_FILE;
            off_t hole = data < 0 ? -1 : lseek(slice->file, data, SEEK_HOLE);
            uint64_t length = hole < offset ? known - rest->start
                                            : ((uint64_t)(hole - offset) + page - 1) / page * page;
            piece.end = length < known - rest->start ? rest->start + length : known;
            if (piece.end == rest->start) /* a file that shrinks meanwhile */
                piece.end = known;
            if (!(slice->flags & FASTDUMP_SWAPPED)) {
                uint64_t part = piece.end - rest->start, out;
                while ((out = (uint64_t)fastdump_swapped_of_file(slice->file, (uint64_t)offset,
                                                                 part, page)) &&
                       out < part)
                    part = (part / page + 1) / 2 * page;
                piece.end = rest->start + part;
                if (out) {
                    piece.source = SOURCE_NONE;
                    piece.gap = FASTDUMP_GAP_SWAPPED;
                }
            }
        }
    }
    rest->start = piece.end;
    return piece;
}

/* The same as pieces_next(), of a process that lives. */
static int64_t pieces_step(struct pieces *pieces, const struct fastdump_target *target,
                           struct piece *piece_ret) {
    const struct fastdump_slice *slice = pieces->slice;
    if (slice->flags & FASTDUMP_PLAIN) {
        *piece_ret =
            (struct piece){pieces->walk.position, pieces->walk.end, SOURCE_FILE, KIND_PRESENT, 0};
        pieces->walk.position = pieces->walk.end;
        return piece_ret->start < piece_ret->end;
    }
    if (pieces->rest.start == pieces->rest.end) {
        struct fastdump_extent extent;
        int64_t got = fastdump_extents_next(&pieces->walk, &extent);
        if (got <= 0)
            return got;
        bool modified_only = slice->flags & FASTDUMP_MODIFIED;
        *piece_ret = (struct piece){extent.start, extent.end, SOURCE_NONE, extent.kind, 0};
        switch (extent.kind) {
        case KIND_PRESENT:
            piece_ret->source = SOURCE_PROCESS;
            return 1;
        case KIND_SWAPPED:
            if (slice->flags & FASTDUMP_SWAPPED)
                piece_ret->source = SOURCE_PROCESS;
            else
                piece_ret->gap = FASTDUMP_GAP_SWAPPED;
            return 1;
        case KIND_GUARD:
            piece_ret->gap = FASTDUMP_GAP_GUARD;
            return 1;
        case KIND_ABSENT:
            if (modified_only)
                piece_ret->kind = KIND_FILE;
            else if (slice->flags & FASTDUMP_NO_FILE)
                piece_ret->gap = FASTDUMP_GAP_NO_FILE;
            else if (slice->file >= 0)
                break;
            return 1;
        default:
            return 1;
        }
        pieces->rest = extent;
    }
    *piece_ret = piece_of_file(pieces, target->page_size);
    return 1;
}

/*
 * 1: *piece_ret is the next piece; 0: the end of the slice; or -errno. If an origin is gone, what
 * is left of the slice is a gap: its page tables may read as empty.
 */
static int64_t pieces_next(struct pieces *pieces, const struct fastdump_target *target,
                           struct piece *piece_ret) {
    *piece_ret = (struct piece){.gap = 0}; /* gcc 12 cannot see that it is always set */
    int64_t got = pieces_step(pieces, target, piece_ret);
    if (got != 0 && pieces->slice->flags & FASTDUMP_ORIGIN && !fastdump_alive(target)) {
        uint64_t start = got > 0 ? piece_ret->start : pieces->walk.position;
        uint64_t end = pieces->walk.end;
        *piece_ret = (struct piece){start, end, SOURCE_NONE, KIND_ABSENT, FASTDUMP_GAP_GONE};
        pieces->walk.position = end;
        pieces->rest.start = pieces->rest.end;
        return 1;
    }
    return got;
}

static int64_t add_gap(struct copy *copy, uint64_t start, uint64_t end, int32_t reason,
                       int32_t error) {
    struct fastdump_gap *last = copy->cursor->gaps ? &copy->gaps[copy->cursor->gaps - 1] : NULL;
    copy->tally->gap += end - start;
    if (copy->again)
        return 0;
    if (last && last->end == start && last->reason == reason && last->error == error) {
        last->end = end;
        return 0;
    }
    if (copy->cursor->gaps == copy->gap_capacity)
        return -ENOBUFS;
    copy->gaps[copy->cursor->gaps++] = (struct fastdump_gap){start, end, reason, error};
    return 0;
}

int64_t fastdump_is_zero(const void *buffer, uint64_t length) {
    const unsigned char *at = buffer, *end = at + length;
    for (; end - at >= 64; at += 64) { /* a cache line at a time: most data ends in the first */
        uint64_t words[8], any = 0;
        memcpy(words, at, sizeof words);
        for (int i = 0; i < 8; i++)
            any |= words[i];
        if (any)
            return 0;
    }
    while (at < end)
        if (*at++)
            return 0;
    return 1;
}

static int64_t write_all(int32_t fd, const unsigned char *from, uint64_t length, uint64_t offset,
                         uint64_t *written_ret) {
    while (length > 0) {
        ssize_t got = pwrite(fd, from, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -ENOSPC;
        from += got;
        offset += (uint64_t)got;
        length -= (uint64_t)got;
        *written_ret += (uint64_t)got;
    }
    return 0;
}

int64_t fastdump_write(int32_t fd, const void *buffer, uint64_t length, uint64_t offset,
                       uint64_t hole, uint64_t page_size, uint64_t *written_ret) {
    const unsigned char *bytes = buffer;
    uint64_t start = 0, end = 0; /* of the run not yet written */
    int64_t error = 0;
    for (uint64_t at = 0; at < length && !error; at += page_size) {
        if (!fastdump_is_zero(bytes + at, page_size)) {
            if (start == end)
                start = at;
            end = at + page_size;
        } else if (start < end && at + page_size - end >= hole) {
            error = write_all(fd, bytes + start, end - start, offset + start, written_ret);
            start = end = 0;
        }
    }
    return error ? error : write_all(fd, bytes + start, end - start, offset + start, written_ret);
}

/* Write the filled part of the buffer, but for its runs of at least `hole` zero bytes. */
static int64_t flush(struct copy *copy) {
    uint64_t filled = copy->filled;
    copy->filled = 0;
    if ((copy->output < 0 && !has_sink(copy)) || filled == 0)
        return 0;
    if (has_sink(copy)) {
        sink_chunk(copy, copy->offset, filled);
        return 0;
    }
    if (!fastdump_alive(copy->main)) /* these bytes may be those of another program */
        return -ESRCH;
    uint64_t begun = now_ns();
    int64_t error = fastdump_write(copy->output, copy->buffer, filled, copy->offset, copy->hole,
                                   copy->target->page_size, &copy->tally->written);
    copy->tally->write_ns += now_ns() - begun;
    if (error) {
        copy->cursor->output_error = (int32_t)-error;
        return -EIO;
    }
    return 0;
}

/* Room for the bytes at offset, behind what the buffer holds already where they join. */
static int64_t place(struct copy *copy, uint64_t offset, uint64_t *length, unsigned char **at_ret) {
    if (copy->output == FASTDUMP_KEEP) {
        *at_ret = copy->buffer + offset;
        return 0;
    }
    if (copy->filled == copy->size || copy->offset + copy->filled != offset) {
        int64_t error = flush(copy);
        if (error)
            return error;
    }
    if (copy->filled == 0)
        copy->offset = offset;
    if (*length > copy->size - copy->filled)
        *length = copy->size - copy->filled;
    *at_ret = copy->buffer + copy->filled;
    copy->filled += *length;
    return 0;
}

/* Bytes that are known to be zero, or that nobody has. */
static void place_zeros(struct copy *copy, uint64_t offset, uint64_t length) {
    if (copy->output == FASTDUMP_KEEP) {
        memset(copy->buffer + offset, 0, length);
    } else if (copy->filled && copy->offset + copy->filled == offset && length < copy->hole &&
               length <= copy->size - copy->filled) {
        /* Too small for a hole of its own: part of one large write. */
        memset(copy->buffer + copy->filled, 0, length);
        copy->filled += length;
    }
}

/*
 * Of the last length bytes of the buffer, those at address, the first `missing` ones are not there:
 * nothing that is searched for reaches into them. Returns where the rest goes.
 */
static unsigned char *leave_out(struct copy *copy, const struct fastdump_slice *slice,
                                uint64_t address, uint64_t length, uint64_t missing) {
    copy->filled -= length;
    flush(copy);
    sink_go_on(copy, address + missing, slice->region);
    copy->offset = address + missing;
    copy->filled = length - missing;
    return copy->buffer;
}

static int64_t read_process(struct copy *copy, const struct fastdump_slice *slice, uint64_t address,
                            uint64_t length, unsigned char *at) {
    while (length > 0) {
        int64_t got = fastdump_read(copy->target, address, length, slice->flags, at);
        if (got > 0) {
            copy->tally->read += (uint64_t)got;
        } else {
            int32_t reason = FASTDUMP_GAP_UNREADABLE, error = (int32_t)-got;
            uint64_t page = copy->target->page_size;
            got = (int64_t)(page - address % page);
            if (error == ESRCH) {
                if (!(slice->flags & FASTDUMP_ORIGIN))
                    return -ESRCH;
                reason = FASTDUMP_GAP_GONE, error = 0;
                got = (int64_t)length;
            }
            if (has_sink(copy))
                at = leave_out(copy, slice, address, length, (uint64_t)got) - got;
            else
                memset(at, 0, (size_t)got);
            int64_t full = add_gap(copy, address, address + (uint64_t)got, reason, error);
            if (full)
                return full;
        }
        address += (uint64_t)got;
        at += got;
        length -= (uint64_t)got;
    }
    return 0;
}

static int64_t read_file(struct copy *copy, const struct fastdump_slice *slice, uint64_t address,
                         uint64_t length, unsigned char *at) {
    if (slice->flags & FASTDUMP_OURS) {
        uint64_t from = slice->file_offset + (address - slice->address);
        memcpy(at, (const void *)(uintptr_t)from, length);
        copy->tally->file += length;
        return 0;
    }
    while (length > 0) {
        off_t offset = (off_t)(slice->file_offset + (address - slice->address));
        ssize_t got = pread(slice->file, at, length, offset);
        if (got < 0 && errno == EINTR)
            continue;
        int32_t error = got < 0 ? errno : 0;
        if (got == 0 && slice->flags & FASTDUMP_PLAIN)
            error = ENODATA; /* it has become shorter */
        if (error) {         /* one page, unless nothing follows */
            uint64_t page = copy->target->page_size, missing = page - address % page;
            if (error == ENODATA || missing > length)
                missing = length;
            if (has_sink(copy))
                at = leave_out(copy, slice, address, length, missing) - missing;
            else
                memset(at, 0, missing);
            int64_t full =
                add_gap(copy, address, address + missing, FASTDUMP_GAP_UNREADABLE, error);
            if (full)
                return full;
            got = (ssize_t)missing;
        } else {
            if (got == 0) { /* the rest of the last page reads as zeros, as in the process */
                memset(at, 0, length);
                got = (ssize_t)length;
            }
            copy->tally->file += (uint64_t)got;
        }
        address += (uint64_t)got;
        at += got;
        length -= (uint64_t)got;
    }
    return 0;
}

static int64_t copy_piece(struct copy *copy, const struct fastdump_slice *slice,
                          const struct piece *piece) {
    uint64_t offset = slice->offset + (piece->start - slice->address);
    uint64_t length = piece->end - piece->start;
    if (piece->source == SOURCE_NONE) {
        if (has_sink(copy)) {
            int64_t error = flush(copy);
            if (error)
                return error;
            if (piece->gap)
                sink_go_on(copy, piece->end, slice->region);
            else
                sink_zeros(copy, piece->start, length);
        }
        place_zeros(copy, offset, length);
        if (piece->gap)
            return add_gap(copy, piece->start, piece->end, piece->gap, 0);
        if (piece->kind == KIND_ZERO)
            copy->tally->zero += length;
        else if (piece->kind == KIND_FILE)
            copy->tally->clean += length;
        else
            copy->tally->absent += length;
        return 0;
    }
    if (copy->output == FASTDUMP_COUNT) {
        copy->tally->absent += length;
        return 0;
    }
    uint64_t address = piece->start;
    while (length > 0) {
        uint64_t part = length;
        unsigned char *at;
        int64_t error = place(copy, offset, &part, &at);
        if (error)
            return error;
        uint64_t begun = now_ns();
        if (piece->source == SOURCE_FILE)
            error = read_file(copy, slice, address, part, at);
        else
            error = read_process(copy, slice, address, part, at);
        copy->tally->read_ns += now_ns() - begun;
        if (error)
            return error;
        address += part;
        offset += part;
        length -= part;
    }
    return 0;
}

/* What may be copied of a piece at a time; 0 if nothing of its slice is wanted any more. */
static uint64_t step_of(const struct copy *copy, const struct fastdump_slice *slice) {
    if (!(slice->flags & FASTDUMP_TAIL))
        return copy->size;
    return sink_is_open(copy) ? TAIL_STEP : 0;
}

static int64_t copy_slice(struct copy *copy, const struct fastdump_slice *slice) {
    struct fastdump_cursor *cursor = copy->cursor;
    struct pieces pieces;
    struct piece piece;
    int64_t got;
    pieces_begin(&pieces, copy->target, slice, cursor->done);
    if (has_sink(copy)) {
        bool follows = sink_go_on(copy, slice->address + cursor->done, slice->region);
        if (!follows && cursor->done == 0 && slice->flags & FASTDUMP_ZEROS_BEFORE)
            sink_zeros(copy, slice->address - ZEROS, ZEROS);
    }
    while ((got = pieces_next(&pieces, copy->target, &piece)) > 0) {
        /* A piece is taken a buffer at a time, so that its gaps always fit. */
        uint64_t stop = piece.end;
        while (piece.start < stop) {
            uint64_t least = copy->size / copy->target->page_size + 2;
            bool full = copy->output != FASTDUMP_KEEP && copy->gap_capacity - cursor->gaps < least;
            if (full || (has_sink(copy) && sink_is_full(copy))) {
                int64_t error = flush(copy);
                /* What was found leaves us now: until here it does no harm. */
                if (!error && has_sink(copy) && !fastdump_alive(copy->main))
                    error = -ESRCH;
                return error;
            }
            uint64_t step = step_of(copy, slice);
            if (step == 0)
                return 1;
            piece.end = stop;
            if (piece.source != SOURCE_NONE && stop - piece.start > step)
                piece.end = piece.start + step;
            int64_t error = copy_piece(copy, slice, &piece);
            if (!error && slice->flags & FASTDUMP_TAIL)
                error = flush(copy);
            if (error)
                return error;
            cursor->done += piece.end - piece.start;
            piece.start = piece.end;
        }
    }
    return got < 0 ? got : 1;
}

/* Known zeros behind a slice end its strings, and may be a part of the last character. */
static int64_t zeros_behind(struct copy *copy, const struct fastdump_slice *slice) {
    int64_t error = flush(copy);
    if (error)
        return error;
    uint64_t end = slice->address + slice->length;
    if (sink_is_at(copy, end))
        sink_zeros(copy, end, ZEROS);
    return 1;
}

/* As far as strings go on. */
static int64_t copy_tail(struct copy *copy, const struct fastdump_slice *slice) {
    struct fastdump_cursor *cursor = copy->cursor;
    struct fastdump_slice window = *slice;
    while (cursor->done < slice->length && sink_is_open(copy)) {
        uint64_t end = cursor->done + TAIL_WINDOW;
        window.length = end < slice->length ? end : slice->length;
        int64_t got = copy_slice(copy, &window);
        if (got <= 0)
            return got;
    }
    return 1;
}

static const struct fastdump_target *target_of(const struct fastdump_target *target,
                                               const struct fastdump_slice *slice) {
    return slice->flags & FASTDUMP_ORIGIN ? target->origin : target;
}

static int64_t copy_slices(struct copy *copy, const struct fastdump_slice *slices, uint64_t count) {
    struct fastdump_cursor *cursor = copy->cursor;
    struct fastdump_tally *tally = copy->tally, elsewhere = {0};
    const struct fastdump_target *target;
    for (; cursor->slice < count; cursor->slice++, cursor->done = 0) {
        const struct fastdump_slice *slice = &slices[cursor->slice];
        uint64_t end;
        if (copy->output == FASTDUMP_KEEP &&
            (__builtin_add_overflow(slice->offset, slice->length, &end) || end > copy->size))
            return -EINVAL;
        copy->again = slice->flags & FASTDUMP_AGAIN;
        copy->tally = copy->again ? &elsewhere : tally;
        target = target_of(copy->main, slice);
        /* What follows may be another region, or memory of another process. */
        int64_t got = has_sink(copy) || target != copy->target ? flush(copy) : 0;
        copy->target = target;
        if (got == 0)
            got = slice->flags & FASTDUMP_TAIL ? copy_tail(copy, slice) : copy_slice(copy, slice);
        copy->tally = tally;
        if (got > 0 && has_sink(copy) && slice->flags & FASTDUMP_ZEROS_BEHIND)
            got = zeros_behind(copy, slice);
        if (got <= 0)
            return got;
    }
    int64_t error = flush(copy);
    if (error)
        return error;
    if (has_sink(copy)) {
        uint32_t flags = count ? slices[count - 1].flags : 0;
        if (flags & FASTDUMP_MORE && (!(flags & FASTDUMP_TAIL) || sink_is_open(copy)))
            return 2;
        sink_end(copy);
    }
    return fastdump_alive(copy->main) ? 1 : -ESRCH;
}

static int64_t copy_from(struct copy copy, const struct fastdump_target *target,
                         const struct fastdump_slice *slices, uint64_t count, uint64_t gap_capacity,
                         struct fastdump_cursor *cursor, struct fastdump_gap *gaps,
                         struct fastdump_tally *tally) {
    copy.main = copy.target = target;
    copy.cursor = cursor;
    copy.gaps = gaps;
    copy.gap_capacity = gap_capacity;
    copy.tally = tally;
    return copy_slices(&copy, slices, count);
}

int64_t fastdump_copy(const struct fastdump_target *target, const struct fastdump_slice *slices,
                      uint64_t count, void *buffer, uint64_t size, int32_t output, uint64_t hole,
                      uint64_t gap_capacity, struct fastdump_cursor *cursor,
                      struct fastdump_gap *gaps_ret, struct fastdump_tally *tally_ret) {
    struct copy copy = {.buffer = buffer, .size = size, .output = output, .hole = hole};
    return copy_from(copy, target, slices, count, gap_capacity, cursor, gaps_ret, tally_ret);
}

int64_t fastdump_scan_slices(const struct fastdump_target *target,
                             const struct fastdump_slice *slices, uint64_t count,
                             struct fastdump_scan *scan, uint64_t gap_capacity,
                             struct fastdump_cursor *cursor, struct fastdump_gap *gaps_ret,
                             struct fastdump_tally *tally_ret) {
    struct copy copy = {.buffer = scan->buffer + FASTDUMP_HEAD,
                        .size = scan->size,
                        .output = FASTDUMP_DISCARD,
                        .scan = scan};
    return copy_from(copy, target, slices, count, gap_capacity, cursor, gaps_ret, tally_ret);
}

int64_t fastdump_search_slices(const struct fastdump_target *target,
                               const struct fastdump_slice *slices, uint64_t count,
                               struct fastdump_search *search, uint64_t gap_capacity,
                               struct fastdump_cursor *cursor, struct fastdump_gap *gaps_ret,
                               struct fastdump_tally *tally_ret) {
    struct copy copy = {.buffer = search->buffer + FASTDUMP_HEAD,
                        .size = search->size,
                        .output = FASTDUMP_DISCARD,
                        .search = search};
    return copy_from(copy, target, slices, count, gap_capacity, cursor, gaps_ret, tally_ret);
}

int64_t fastdump_words_slices(const struct fastdump_target *target,
                              const struct fastdump_slice *slices, uint64_t count,
                              struct fastdump_words *words, uint64_t gap_capacity,
                              struct fastdump_cursor *cursor, struct fastdump_gap *gaps_ret,
                              struct fastdump_tally *tally_ret) {
    struct copy copy = {
        .buffer = words->buffer, .size = words->size, .output = FASTDUMP_DISCARD, .words = words};
    return copy_from(copy, target, slices, count, gap_capacity, cursor, gaps_ret, tally_ret);
}

int64_t fastdump_runs(const struct fastdump_target *target, const struct fastdump_slice *slices,
                      uint64_t count, uint64_t min_gap, uint64_t min_other, uint64_t capacity,
                      uint64_t *slice_ret, uint64_t *done_ret, struct fastdump_range *runs_ret) {
    uint64_t stored = 0;
    struct pieces pieces;
    struct piece piece;
    int64_t got;
    for (; *slice_ret < count; ++*slice_ret, *done_ret = 0) {
        const struct fastdump_slice *slice = &slices[*slice_ret];
        const struct fastdump_target *of = target_of(target, slice);
        uint64_t first = stored; /* runs are joined within a slice only */
        uint64_t other = 0;      /* the end of what was neither data nor known to be zero */
        pieces_begin(&pieces, of, slice, *done_ret);
        while ((got = pieces_next(&pieces, of, &piece)) > 0) {
            if (piece.source == SOURCE_NONE) {
                if (piece.gap || piece.kind == KIND_FILE)
                    other = piece.end;
                continue;
            }
            uint64_t last = stored > first ? runs_ret[stored - 1].end : 0;
            if (last && piece.start - last < (other > last ? min_other : min_gap)) {
                runs_ret[stored - 1].end = piece.end;
            } else if (stored == capacity) {
                *done_ret = piece.start - slice->address;
                return (int64_t)stored;
            } else {
                runs_ret[stored++] = (struct fastdump_range){piece.start, piece.end};
            }
        }
        if (got < 0)
            return got;
    }
    return fastdump_alive(target) ? (int64_t)stored : -ESRCH;
}

int64_t fastdump_syncfs(int32_t fd) { return syncfs(fd) < 0 ? -errno : 0; }
