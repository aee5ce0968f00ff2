// linger SIZE: the main thread has ended (a zombie leader), another lives on with patterned memory.
#include "target.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

enum { SEED = 1 };

static pthread_t leader;
static size_t length;

static char state_of_leader(void) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    MUST(read(fd, text, sizeof text - 1));
    close(fd);
    return strrchr(text, ')')[2];
}

static void *live_on(void *at) {
    MUST0(pthread_join(leader, NULL));
    while (state_of_leader() != 'Z') // it turns into a zombie a moment after the join
        sched_yield();
    json_begin();
    json_number("tid", gettid());
    json_number("start", (uintptr_t)at);
    json_number("end", (uintptr_t)at + length);
    json_number("seed", SEED);
    json_end();
    wait_for_end();
}

int main(int argc, char **argv) {
    if (argc != 2)
        return fprintf(stderr, "usage: linger SIZE\n"), 2;
    die_with_parent();
    length = parse_size(argv[1]) & -page_size();
    uint8_t *at = map_apart(length, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    no_huge_pages(at, length);
    pattern(at, length, SEED);
    leader = pthread_self();
    pthread_t id;
    MUST0(pthread_create(&id, NULL, live_on, at));
    pthread_exit(NULL);
}
