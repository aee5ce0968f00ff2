// plugin_host NAME BYTES...: loads each plugin of a name and lets it leak so many bytes.
#include "target.h"

#include <dlfcn.h>

int main(int argc, char **argv) {
    die_with_parent();
    json_begin();
    for (int i = 1; i + 1 < argc; i += 2) {
        void *library = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        uint64_t (*leak)(uint64_t, uint64_t) = NULL;
        if (library)
            *(void **)&leak = dlsym(library, "leak");
        if (!leak)
            return fprintf(stderr, "%s\n", dlerror()), 1;
        json_number(strrchr(argv[i], '/') + 1, leak(parse_size(argv[i + 1]), (uint64_t)i));
    }
    json_end();
    wait_for_end();
}
