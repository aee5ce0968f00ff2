// threads N: N threads with small stacks, parked on a futex.
#include "target.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>

struct thread {
    pid_t tid;
    uint64_t *local;
    uint64_t seed;
};

static sem_t ready;

static void *park(void *argument) {
    struct thread *self = argument;
    uint64_t local[8];
    int never = 0;
    pattern(local, sizeof local, self->seed);
    self->tid = gettid();
    self->local = local;
    sem_post(&ready);
    do
        syscall(SYS_futex, &never, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    while (!never);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2)
        return fprintf(stderr, "usage: threads N\n"), 2;
    die_with_parent();
    size_t count = parse_size(argv[1]), least = sysconf(_SC_THREAD_STACK_MIN), stack = 64 << 10;
    struct thread *threads = calloc(count, sizeof *threads);
    pthread_attr_t attributes;
    pthread_t id;
    sem_init(&ready, 0, 0);
    pthread_attr_init(&attributes);
    MUST0(pthread_attr_setstacksize(&attributes, stack > least ? stack : least));
    for (size_t i = 0; i < count; i++) {
        threads[i].seed = i + 1;
        MUST0(pthread_create(&id, &attributes, park, &threads[i]));
    }
    for (size_t i = 0; i < count; i++)
        while (sem_wait(&ready))
            ;

    json_begin();
    json_number("local_size", 64);
    printf(", \"threads\": [");
    for (size_t i = 0; i < count; i++)
        printf("%s{\"tid\": %d, \"local\": %zu, \"seed\": %zu}", i ? ", " : "", threads[i].tid,
               (size_t)threads[i].local, (size_t)threads[i].seed);
    printf("]");
    json_end();
    wait_for_end();
}
