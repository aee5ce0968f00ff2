// chunks COUNT ORDER: COUNT small chunks of malloc. Of every twelve one leaked, and every other of
// those points to the one leaked before; all others are one list: 0 in the order of their
// addresses, 1 against it, 2 at random, 3 a table of pointers in a chunk of its own.
#include "target.h"

#include <malloc.h>

int main(int argc, char **argv) {
    if (argc != 3)
        return fprintf(stderr, "usage: chunks COUNT ORDER\n"), 2;
    die_with_parent();
    size_t count = parse_size(argv[1]), kept = 0, leaked = 0, direct = 0, bytes = 0;
    int order = atoi(argv[2]);
    static void **list;
    void **nodes = MUST(mmap(NULL, count * sizeof *nodes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    void **before = NULL;
    for (size_t i = 0; i < count; i++) {
        void **node = malloc(24 + pattern_word(i * 8, 1) % 8 * 16);
        bytes += malloc_usable_size(node) + 8;
        memset(node, 0, malloc_usable_size(node));
        if (i % 12) {
            nodes[kept++] = node;
            continue;
        }
        if (leaked++ % 2)
            node[1] = before;
        before = node;
    }
    before = NULL;
    direct = leaked - leaked / 2;
    for (size_t i = kept - 1; order == 2 && i > 0; i--) {
        size_t other = pattern_word(i * 8, 2) % (i + 1);
        void **node = nodes[i];
        nodes[i] = nodes[other];
        nodes[other] = node;
    }
    if (order == 3) {
        list = malloc(kept * sizeof *list);
        bytes += malloc_usable_size(list) + 16;
        memcpy(list, nodes, kept * sizeof *list);
    } else {
        for (size_t i = 1; i < kept; i++) {
            void **from = nodes[order == 1 ? i : i - 1];
            from[0] = nodes[order == 1 ? i - 1 : i];
        }
        list = nodes[order == 1 ? kept - 1 : 0];
    }
    MUST(munmap(nodes, count * sizeof *nodes));
    json_begin();
    json_number("leaked", leaked);
    json_number("direct", direct);
    json_number("kept", kept);
    json_number("bytes", bytes);
    json_end();
    wait_for_end();
}
