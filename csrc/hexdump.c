/* Bytes → lines of text, as hexdump -C shows them. */
#include <errno.h>
#include <string.h>

#include "fastdump.h"

#define COMPARED 64 /* lines compared at a time, where many are equal */

#define CELL(high, low) {high, low, ' ', ' '}
#define CELLS(high)                                                                                \
    CELL(high, '0'), CELL(high, '1'), CELL(high, '2'), CELL(high, '3'), CELL(high, '4'),           \
        CELL(high, '5'), CELL(high, '6'), CELL(high, '7'), CELL(high, '8'), CELL(high, '9'),       \
        CELL(high, 'a'), CELL(high, 'b'), CELL(high, 'c'), CELL(high, 'd'), CELL(high, 'e'),       \
        CELL(high, 'f')

/* A byte's 2 digits, in 4 bytes: one store, of which the next one takes back the last. */
static const unsigned char cells[256][4] = {
    CELLS('0'), CELLS('1'), CELLS('2'), CELLS('3'), CELLS('4'), CELLS('5'), CELLS('6'), CELLS('7'),
    CELLS('8'), CELLS('9'), CELLS('a'), CELLS('b'), CELLS('c'), CELLS('d'), CELLS('e'), CELLS('f'),
};

enum byte_class { PLAIN, NUL, PRINTABLE, SPACE, CONTROL, HIGH };

static const unsigned char classes[256] = {
    [0] = NUL,     [1 ... 8] = CONTROL,       ['\t' ... '\r'] = SPACE, [14 ... 31] = CONTROL,
    [' '] = SPACE, ['!' ... '~'] = PRINTABLE, [0x7f] = CONTROL,        [0x80 ... 0xff] = HIGH,
};

#define CODE 5 /* bytes of an escape code; 8 are written, without a branch for each byte */

static const char codes[][8] = {
    [PLAIN] = "\x1b[39m",     [NUL] = "\x1b[90m", /* bright black */
    [PRINTABLE] = "\x1b[36m",                     /* cyan */
    [SPACE] = "\x1b[32m",                         /* green */
    [CONTROL] = "\x1b[35m",                       /* magenta */
    [HIGH] = "\x1b[33m",                          /* yellow */
};

/* --- lines ------------------------------------------------------------------------------ */

struct layout {
    uint32_t digits, width, group;
    bool color;
};

static inline unsigned char *put_address(unsigned char *to, uint64_t address, uint32_t digits) {
    address <<= 4 * (16 - digits);
    for (uint32_t i = 0; i < digits; i += 2) {
        memcpy(to + i, cells[address >> 56], 2);
        address <<= 8;
    }
    return to + digits;
}

static inline unsigned char *put_class(unsigned char *to, unsigned next, unsigned *now) {
    memcpy(to, codes[next], 8);
    to += next == *now ? 0 : CODE;
    *now = next;
    return to;
}

/* A line of which [first, end) is there. Inlined, so that what is constant of it costs nothing. */
static inline __attribute__((always_inline)) unsigned char *
put_line(unsigned char *restrict to, struct layout layout, uint64_t address,
         const unsigned char *restrict line, uint32_t first, uint32_t end) {
    unsigned now = PLAIN;
    to = put_address(to, address, layout.digits);
    *to++ = ' ';
    for (uint32_t at = 0; at < layout.width; at += layout.group) {
        uint32_t rest = layout.width - at;
        uint32_t stop = at + (rest < layout.group ? rest : layout.group);
        *to++ = ' ';
        for (uint32_t i = at; i < stop; i++, to += 3) {
            bool blank = i < first || i >= end;
            if (layout.color && !blank)
                to = put_class(to, classes[line[i]], &now);
            memcpy(to, blank ? "    " : (const char *)cells[line[i]], 4);
        }
    }
    if (layout.color)
        to = put_class(to, PLAIN, &now);
    *to++ = ' ';
    *to++ = '|';
    memset(to, ' ', first);
    to += first;
    for (uint32_t i = first; i < end; i++, to++) {
        if (layout.color)
            to = put_class(to, classes[line[i]], &now);
        *to = line[i] >= ' ' && line[i] <= '~' ? line[i] : '.';
    }
    if (layout.color)
        to = put_class(to, PLAIN, &now);
    *to++ = '|';
    *to++ = '\n';
    return to;
}

/* --- dumps ------------------------------------------------------------------------------ */

int64_t fastdump_hexdump_begin(struct fastdump_hexdump *dump, uint64_t address, uint32_t blank) {
    if (dump->width < 1 || dump->width > FASTDUMP_HEXDUMP_WIDTH || dump->group < 1 ||
        dump->digits < 1 || dump->digits > 16 || blank >= dump->width || blank > address)
        return -EINVAL;
    dump->first = dump->filled = blank;
    dump->shown = dump->starred = 0;
    dump->address = address;
    return 0;
}

int64_t fastdump_hexdump_room(const struct fastdump_hexdump *dump) {
    uint32_t gaps = (dump->width - 1) / dump->group + 1;
    uint32_t plain = dump->digits + 1 + gaps + 3 * dump->width + 2 + dump->width + 2;
    return plain + (dump->color ? (2 * dump->width + 3) * CODE : 0);
}

static int64_t check(const struct fastdump_hexdump *dump, uint64_t length, uint64_t capacity) {
    uint64_t last;
    if (length > INT64_MAX ||
        (length && (__builtin_add_overflow(dump->address, length - 1, &last) ||
                    (dump->digits < 16 && last >> (4 * dump->digits)))))
        return -EOVERFLOW;
    return capacity < (uint64_t)fastdump_hexdump_room(dump) ? -ENOSPC : 0;
}

static struct layout layout_of(const struct fastdump_hexdump *dump) {
    return (struct layout){dump->digits, dump->width, dump->group, dump->color};
}

static bool is_repeated(const struct fastdump_hexdump *dump, const unsigned char *line) {
    return dump->shown && !dump->all && !memcmp(line, dump->previous, dump->width);
}

/* Whole lines, while output and data last and none is like the one before it. Returns how many. */
static inline __attribute__((always_inline)) uint64_t
put_lines(struct fastdump_hexdump *dump, struct layout layout, const unsigned char *from,
          uint64_t count, unsigned char **to_ret, const unsigned char *to_end) {
    uint64_t address = dump->address, done = 0, width = layout.width;
    uint64_t room = (uint64_t)fastdump_hexdump_room(dump);
    unsigned char *to = *to_ret;
    bool all = dump->all, more;
    do {
        to = put_line(to, layout, address, from, 0, layout.width);
        address += width;
        more = ++done < count && (uint64_t)(to_end - to) >= room &&
               (all || memcmp(from, from + width, width));
        from += width;
    } while (more);
    memcpy(dump->previous, from - width, width);
    dump->shown = 1;
    dump->starred = 0;
    dump->address = address;
    *to_ret = to;
    return done;
}

/* The bytes of whole lines at from that are like the one before them. */
static uint64_t repeated(const struct fastdump_hexdump *dump, const unsigned char *from,
                         uint64_t length) {
    uint64_t width = dump->width, many = COMPARED * width;
    if (length < width || !is_repeated(dump, from))
        return 0;
    uint64_t done = width; /* from here on a line before from + done is in the data as well */
    while (length - done >= many && !memcmp(from + done, from + done - width, many))
        done += many;
    while (length - done >= width && !memcmp(from + done, from + done - width, width))
        done += width;
    return done;
}

static unsigned char *put_star(struct fastdump_hexdump *dump, unsigned char *to) {
    if (!dump->starred) {
        dump->starred = 1;
        *to++ = '*';
        *to++ = '\n';
    }
    return to;
}

/* The line that has been filled. */
static unsigned char *put_filled(struct fastdump_hexdump *dump, unsigned char *to) {
    uint64_t start = dump->address - dump->filled;
    if (dump->filled == dump->width && !dump->first && is_repeated(dump, dump->line)) {
        to = put_star(dump, to);
    } else {
        to = put_line(to, layout_of(dump), start, dump->line, dump->first, dump->filled);
        memcpy(dump->previous, dump->line, dump->width);
        dump->shown = !dump->first && dump->filled == dump->width;
        dump->starred = 0;
    }
    dump->first = dump->filled = 0;
    return to;
}

int64_t fastdump_hexdump(struct fastdump_hexdump *dump, const void *data, uint64_t length,
                         uint64_t capacity, void *out, uint64_t *written_ret) {
    const unsigned char *from = data, *end = from + length;
    unsigned char *to = out, *to_end = to + capacity;
    uint64_t room = (uint64_t)fastdump_hexdump_room(dump), width = dump->width;
    struct layout layout = layout_of(dump), usual = {dump->digits, 16, 8, false};
    bool is_usual = width == 16 && dump->group == 8 && !dump->color;
    int64_t error = check(dump, length, capacity);
    *written_ret = 0;
    if (error)
        return error;
    while (from < end && (uint64_t)(to_end - to) >= room) {
        uint64_t left = (uint64_t)(end - from), taken;
        if (dump->filled || left < width) {
            taken = width - dump->filled < left ? width - dump->filled : left;
            memcpy(dump->line + dump->filled, from, taken);
            dump->filled += (uint32_t)taken;
            dump->address += taken;
            if (dump->filled == width)
                to = put_filled(dump, to);
        } else if ((taken = repeated(dump, from, left))) {
            to = put_star(dump, to);
            dump->address += taken;
        } else {
            taken = is_usual ? put_lines(dump, usual, from, left / width, &to, to_end)
                             : put_lines(dump, layout, from, left / width, &to, to_end);
            taken *= width;
        }
        from += taken;
    }
    *written_ret = (uint64_t)(to - (unsigned char *)out);
    return from - (const unsigned char *)data;
}

int64_t fastdump_hexdump_zeros(struct fastdump_hexdump *dump, uint64_t length, uint64_t capacity,
                               void *out, uint64_t *written_ret) {
    static const unsigned char zeros[16 * FASTDUMP_HEXDUMP_WIDTH];
    uint64_t done = 0, written;
    int64_t error = check(dump, length, capacity);
    *written_ret = 0;
    if (error)
        return error;
    while (done < length) {
        uint64_t left = length - done, part = left < sizeof zeros ? left : sizeof zeros;
        if (dump->starred && !memcmp(dump->previous, zeros, dump->width) &&
            !memcmp(dump->line, zeros, dump->filled) && left >= dump->width) {
            part = left / dump->width * dump->width;
            dump->address += part;
            done += part;
            continue;
        }
        if (capacity - *written_ret < (uint64_t)fastdump_hexdump_room(dump))
            break;
        done += (uint64_t)fastdump_hexdump(dump, zeros, part, capacity - *written_ret,
                                           (unsigned char *)out + *written_ret, &written);
        *written_ret += written;
    }
    return (int64_t)done;
}

int64_t fastdump_hexdump_end(struct fastdump_hexdump *dump, uint64_t capacity, void *out) {
    if (dump->filled == dump->first)
        return 0;
    int64_t error = check(dump, 0, capacity);
    return error ? error : put_filled(dump, out) - (unsigned char *)out;
}
