// swapped SIZE: patterned memory, of which the kernel is asked to swap out the second half.
#include "target.h"

enum { SEED = 1 };

int main(int argc, char **argv) {
    if (argc != 2)
        return fprintf(stderr, "usage: swapped SIZE\n"), 2;
    die_with_parent();
    size_t page = page_size(), length = parse_size(argv[1]) & -page, half = length / 2 & -page;
    uint8_t *at = map_apart(length, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    no_huge_pages(at, length);
    pattern(at, length, SEED);
    MUST(madvise(at + half, length - half, MADV_PAGEOUT));

    json_begin();
    json_number("start", (uintptr_t)at);
    json_number("end", (uintptr_t)at + length);
    json_number("paged_out", (uintptr_t)at + half);
    json_number("seed", SEED);
    json_end();
    wait_for_end();
}
