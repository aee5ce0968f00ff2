// Shared by the test targets: the fill pattern, JSON on standard output, errors that end the
// program.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

// Word number address/8 of the splitmix64 stream that starts at *seed*: every word of memory
// differs.
static inline uint64_t pattern_word(uint64_t address, uint64_t seed) {
    uint64_t z = seed + (address / 8 + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// Writes to *to* what memory at *address* is to hold; any alignment, any length.
static inline void pattern_fill(void *to, uint64_t address, size_t length, uint64_t seed) {
    uint8_t *out = to;
    while (length) {
        size_t skip = address % 8, count = 8 - skip < length ? 8 - skip : length;
        uint64_t word = pattern_word(address, seed);
        if (count == 8)
            memcpy(out, &word, 8);
        else
            memcpy(out, (uint8_t *)&word + skip, count);
        out += count, address += count, length -= count;
    }
}

static inline void pattern(void *at, size_t length, uint64_t seed) {
    pattern_fill(at, (uintptr_t)at, length, seed);
}

_Noreturn static inline void die(const char *what) {
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
    exit(1);
}

// For calls that return -1 (or MAP_FAILED) and set errno.
#define MUST(call)                                                                                 \
    ({                                                                                             \
        __typeof__(call) r_ = (call);                                                              \
        if ((intptr_t)r_ == -1)                                                                    \
            die(#call);                                                                            \
        r_;                                                                                        \
    })

// For calls that return an error number.
#define MUST0(call)                                                                                \
    do {                                                                                           \
        if ((errno = (call)))                                                                      \
            die(#call);                                                                            \
    } while (0)

static inline size_t page_size(void) { return sysconf(_SC_PAGESIZE); }

static inline void touch(const void *page) { (void)*(const volatile char *)page; }

// A byte count with an optional K, M, G or T.
static inline size_t parse_size(const char *text) {
    char *end;
    errno = 0;
    size_t value = strtoull(text, &end, 0);
    const char *units = "KMGT", *unit = *end ? strchr(units, *end) : NULL;
    if (unit)
        value <<= 10 * (unit - units + 1), end++;
    if (errno || end == text || *end) {
        errno = EINVAL;
        die(text);
    }
    return value;
}

// Between two PROT_NONE pages, so that the kernel cannot merge it with a neighbour.
static inline uint8_t *map_apart(size_t length, int prot, int flags) {
    size_t page = page_size();
    uint8_t *at = MUST(mmap(NULL, length + 2 * page, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return MUST(mmap(at + page, length, prot, flags | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}

// EINVAL is a kernel built without huge pages.
static inline void no_huge_pages(void *at, size_t length) {
    if (madvise(at, length, MADV_NOHUGEPAGE) && errno != EINVAL)
        die("MADV_NOHUGEPAGE");
}

static inline void die_with_parent(void) { MUST(prctl(PR_SET_PDEATHSIG, SIGKILL)); }

// Bytes above 127 become the lone surrogates of Python's "surrogateescape": os.fsencode() restores
// them.
static inline void json_string(const char *text) {
    putchar('"');
    for (const uint8_t *c = (const uint8_t *)text; *c; c++)
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if (*c < 0x20 || *c >= 0x7f)
            printf("\\u%04x", *c < 0x80 ? *c : 0xdc00 + *c);
        else
            putchar(*c);
    putchar('"');
}

// The fields that every line of truth begins with.
static inline void json_begin(void) {
    printf("{\"pid\": %d, \"page_size\": %zu", getpid(), page_size());
}

static inline void json_number(const char *name, uint64_t value) {
    printf(", \"%s\": %llu", name, (unsigned long long)value);
}

static inline void json_end(void) {
    puts("}");
    if (fflush(stdout))
        die("standard output");
}

// The next byte of standard input, or -1 at its end.
static inline int next_byte(void) {
    uint8_t byte;
    ssize_t count;
    while ((count = read(0, &byte, 1)) < 0 && errno == EINTR)
        ;
    return count == 1 ? byte : -1;
}

_Noreturn static inline void wait_for_end(void) {
    while (next_byte() >= 0)
        ;
    _exit(0);
}
