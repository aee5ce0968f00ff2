// beat SIZE [thp]: a thread that looks at the clock all the time beside SIZE bytes of memory. For
// each byte on standard input it prints the longest time between two looks since the one before.
#include "target.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static atomic_ulong longest;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

_Noreturn static void *look(void *argument) {
    (void)argument;
    for (uint64_t before = now(), time;; before = time) {
        time = now();
        if (time - before > longest)
            longest = time - before;
    }
}

int main(int argc, char **argv) {
    if (argc < 2)
        return fprintf(stderr, "usage: beat SIZE [thp]\n"), 2;
    die_with_parent();
    size_t length = parse_size(argv[1]);
    uint8_t *memory = map_apart(length, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    if (argc > 2)
        MUST(madvise(memory, length, MADV_HUGEPAGE));
    else
        no_huge_pages(memory, length);
    for (size_t at = 0; at < length; at += 8)
        *(uint64_t *)(memory + at) = pattern_word(at, 1);
    pthread_t thread;
    MUST0(pthread_create(&thread, NULL, look, NULL));
    do {
        json_begin();
        json_number("start", (uintptr_t)memory);
        json_number("longest", atomic_exchange(&longest, 0));
        json_end();
    } while (next_byte() >= 0);
    _exit(0);
}
