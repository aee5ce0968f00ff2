// hostile NAME...: each name as that of a memfd, as text in memory and on the heap, and the first
// one as that of the thread. An owner of the heap is the program, whose own name is up to the test.
#include "target.h"

enum { COPIES = 2000 };

struct chunk {
    const void *owner;
    char text[240];
};

static const int owner;
static struct chunk *chunks[COPIES];

int main(int argc, char **argv) {
    if (argc < 2)
        return fprintf(stderr, "usage: hostile NAME...\n"), 2;
    die_with_parent();
    MUST(prctl(PR_SET_NAME, argv[1]));
    size_t page = page_size();
    for (int i = 1; i < argc; i++) {
        int fd = MUST(memfd_create(argv[i], MFD_CLOEXEC));
        MUST(ftruncate(fd, page));
        char *at = MUST(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
        snprintf(at, page, "before %s behind", argv[i]);
    }
    for (int i = 0; i < COPIES; i++) {
        chunks[i] = malloc(sizeof *chunks[i]);
        chunks[i]->owner = &owner;
        snprintf(chunks[i]->text, sizeof chunks[i]->text, "number %d %s behind it", i,
                 argv[1 + i % (argc - 1)]);
    }
    json_begin();
    json_end();
    wait_for_end();
}
