// many_maps N: N mappings of one page, by turns read-only and writable so that none merge.
#include "target.h"

enum { SEED = 1 };

int main(int argc, char **argv) {
    if (argc != 2)
        return fprintf(stderr, "usage: many_maps N\n"), 2;
    die_with_parent();
    size_t page = page_size(), count = parse_size(argv[1]);
    uint8_t *at = map_apart(count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    no_huge_pages(at, count * page);
    pattern(at, count * page, SEED);
    for (size_t i = 0; i < count; i += 2)
        MUST(mprotect(at + i * page, page, PROT_READ));

    json_begin();
    json_number("start", (uintptr_t)at);
    json_number("end", (uintptr_t)at + count * page);
    json_number("seed", SEED);
    json_number("count", count);
    json_end();
    wait_for_end();
}
