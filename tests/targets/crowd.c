// crowd N: N threads, each some frames deep, with a thread-local variable, in one of several calls.
#include "target.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

static __thread volatile int mine;
static sem_t ready, never;

__attribute__((noinline)) static int deep(int frames, int number) {
    if (frames) {
        int found = deep(frames - 1, number);
        __asm__ volatile("" ::: "memory"); // no tail call
        return found + 1;
    }
    mine = number;
    sem_post(&ready);
    struct timespec day = {86400, 0};
    switch (number % 4) {
    case 0:
        return nanosleep(&day, NULL);
    case 1:
        return poll(NULL, 0, -1);
    case 2:
        return sem_wait(&never);
    default:
        return pause();
    }
}

static void *start(void *number) {
    deep((int)(intptr_t)number % 20, (int)(intptr_t)number);
    return NULL;
}

int main(int argc, char **argv) {
    die_with_parent();
    int count = argc > 1 ? atoi(argv[1]) : 1;
    sem_init(&ready, 0, 0);
    sem_init(&never, 0, 0);
    for (int i = 0; i < count; i++) {
        pthread_t id;
        MUST0(pthread_create(&id, NULL, start, (void *)(intptr_t)(i + 1)));
    }
    for (int i = 0; i < count; i++)
        sem_wait(&ready);
    json_begin();
    json_end();
    wait_for_end();
}
