// A shared object with whole pages of .data and 1 MiB of .bss, whatever the page size.
__attribute__((aligned(65536))) char lib_data[65536] = {1};
__attribute__((aligned(65536))) char lib_bss[1 << 20];

int lib_text(void) { return 42; }
