// A library that keeps pointers: in its .data, its .bss, and for each thread.
__attribute__((visibility("default"))) void *volatile leaky_data = (void *)1;
__attribute__((visibility("default"))) void *volatile leaky_bss;
static __thread void *volatile local;

__attribute__((visibility("default"))) void leaky_keep_local(void *pointer) { local = pointer; }
