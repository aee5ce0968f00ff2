// sparse private | shared | zero SIZE: huge mappings with little or nothing in them.
//
//   private  2 TiB, of which 1,000 pages hold the pattern
//   shared   64 GiB of shared memory, never touched: reading it would allocate it
//   zero     SIZE bytes that reads have mapped to the zero page
#include "target.h"

enum { TOUCHED = 1000, SEED = 1 };

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    bool is_private = !strcmp(mode, "private"), shared = !strcmp(mode, "shared"),
         zero = !strcmp(mode, "zero");
    if (argc != 2 + zero || !(is_private || shared || zero))
        return fprintf(stderr, "usage: sparse private | shared | zero SIZE\n"), 2;
    die_with_parent();
    size_t page = page_size(),
           length = zero ? parse_size(argv[2]) & -page : (size_t)(shared ? 64 : 2048) << 30;
    size_t step = length / TOUCHED & -page;
    uint8_t *at = map_apart(length, PROT_READ | PROT_WRITE,
                            (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_NORESERVE);
    if (!shared)
        no_huge_pages(at, length);
    for (size_t i = 0; is_private && i < TOUCHED; i++)
        pattern(at + i * step, page, SEED);
    for (size_t offset = 0; zero && offset < length; offset += page)
        touch(at + offset);

    json_begin();
    json_number("start", (uintptr_t)at);
    json_number("end", (uintptr_t)at + length);
    json_number("seed", SEED);
    printf(", \"touched\": [");
    for (size_t i = 0; is_private && i < TOUCHED; i++)
        printf("%s%zu", i ? ", " : "", (size_t)(at + i * step));
    printf("]");
    json_end();
    wait_for_end();
}
