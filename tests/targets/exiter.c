// exiter SIZE [dontfork]: patterned memory that goes away on command, a byte on standard input;
// with "dontfork" no copy by fork has it:
//
//   x  exit
//   e  exec itself: another address space, and another line of JSON
//   u  unmap the second half, then print "ok"
#include "target.h"

enum { SEED = 1 };

int main(int argc, char **argv) {
    if (argc < 2)
        return fprintf(stderr, "usage: exiter SIZE [dontfork]\n"), 2;
    die_with_parent();
    size_t page = page_size(), length = parse_size(argv[1]) & -page, half = length / 2 & -page;
    uint8_t *at = map_apart(length, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    no_huge_pages(at, length);
    pattern(at, length, SEED);
    if (argc > 2)
        MUST(madvise(at, length, MADV_DONTFORK));

    json_begin();
    json_number("start", (uintptr_t)at);
    json_number("end", (uintptr_t)at + length);
    json_number("half", (uintptr_t)at + half);
    json_number("seed", SEED);
    json_end();
    for (;;)
        switch (next_byte()) {
        case -1:
        case 'x':
            _exit(0);
        case 'e':
            MUST(execv("/proc/self/exe", argv));
            break;
        case 'u':
            MUST(munmap(at + half, length - half));
            puts("ok");
            fflush(stdout);
        }
}
