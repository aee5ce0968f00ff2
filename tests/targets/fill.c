// fill IMAGE|random|zeros|text SIZE [thp] [zero=PERCENT] [reszero=PERCENT]: memory for benchmarks.
//
// Byte o of the memory is byte o % image_size of the image, except in those runs of 64 pages that
// zero= leaves to the zero page or reszero= fills with zeros: run i by (i * 61) % 100.
#include "target.h"

#include <fcntl.h>
#include <sys/stat.h>

enum { RUN_PAGES = 64, TEXT_SIZE = 32 << 20 };

static uint64_t state = 88172645463325252;

static uint64_t xorshift(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static uint8_t *read_image(const char *path, size_t *length_ret) {
    struct stat status;
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    MUST(fstat(fd, &status));
    size_t length = status.st_size;
    uint8_t *image =
        MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t done = 0; done < length;) {
        ssize_t count = MUST(read(fd, image + done, length - done));
        errno = EIO;
        if (!count)
            die(path);
        done += count;
    }
    close(fd);
    *length_ret = length;
    return image;
}

static uint8_t *write_text(size_t *length_ret) {
    static const char *const levels[] = {"DEBUG", "INFO", "INFO", "INFO", "WARNING", "ERROR"};
    static const char *const words[] = {"cache miss", "request served", "connection closed",
                                        "retrying"};
    char *text = MUST(
        mmap(NULL, TEXT_SIZE + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    size_t length = 0;
    for (unsigned line = 0; length < TEXT_SIZE; line++) {
        uint64_t r = xorshift();
        length += sprintf(text + length,
                          "2024-05-01 %02u:%02u:%02u.%03u %s [worker-%u] %s id=%012llx "
                          "path=/api/v1/items/%u took %u ms\n",
                          line / 3600000 % 24, line / 60000 % 60, line / 1000 % 60, line % 1000,
                          levels[r % 6], (unsigned)(r >> 8) % 32, words[(r >> 16) % 4],
                          (unsigned long long)(r >> 16), (unsigned)(r >> 24) % 100000,
                          (unsigned)(r >> 44) % 500);
    }
    *length_ret = length;
    return (uint8_t *)text;
}

// Copies the image over [offset, offset + length), in step with its repetitions.
static void copy_image(uint8_t *to, size_t offset, size_t length, const uint8_t *image,
                       size_t image_length) {
    for (size_t at = offset % image_length; length; at = 0) {
        size_t count = image_length - at < length ? image_length - at : length;
        memcpy(to, image + at, count);
        to += count, length -= count;
    }
}

int main(int argc, char **argv) {
    unsigned zero = 0, resident_zero = 0;
    bool huge = false;
    if (argc < 3)
        return fprintf(stderr,
                       "usage: fill IMAGE|random|zeros|text SIZE [thp] [zero=%%] [reszero=%%]\n"),
               2;
    for (int i = 3; i < argc; i++)
        if (!strcmp(argv[i], "thp"))
            huge = true;
        else if (sscanf(argv[i], "zero=%u", &zero) != 1 &&
                 sscanf(argv[i], "reszero=%u", &resident_zero) != 1)
            return fprintf(stderr, "fill: unknown option: %s\n", argv[i]), 2;
    die_with_parent();

    size_t page = page_size(), length = parse_size(argv[2]) & -page, run = RUN_PAGES * page,
           image_length = 0;
    bool random = !strcmp(argv[1], "random"), zeros = !strcmp(argv[1], "zeros"),
         text = !strcmp(argv[1], "text");
    uint8_t *image = random || zeros ? NULL
                     : text          ? write_text(&image_length)
                                     : read_image(argv[1], &image_length);
    errno = EINVAL;
    if (image && !image_length)
        die(argv[1]);
    uint8_t *at = map_apart(length, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    if (huge)
        madvise(at, length, MADV_HUGEPAGE);
    else
        no_huge_pages(at, length);

    size_t zero_bytes = 0, resident_zero_bytes = 0;
    for (size_t offset = 0, i = 0; offset < length; offset += run, i++) {
        size_t count = run < length - offset ? run : length - offset;
        unsigned share =
            i * 61 % 100; // 61 and 100 share no factor: exact in every 100 runs, and spread
        if (share < zero) {
            for (size_t o = 0; o < count; o += page)
                touch(at + offset + o);
            zero_bytes += count;
        } else if (share < zero + resident_zero || zeros) {
            memset(at + offset, 0, count);
            resident_zero_bytes += count;
        } else if (random) {
            uint64_t *words = (uint64_t *)(at + offset);
            for (size_t w = 0; w < count / 8; w++)
                words[w] = xorshift();
        } else {
            copy_image(at + offset, offset, count, image, image_length);
        }
    }
    if (image)
        MUST(munmap(image, image_length));

    json_begin();
    json_number("start", (uintptr_t)at);
    json_number("end", (uintptr_t)at + length);
    json_number("image_size", image_length);
    json_number("run_size", run);
    json_number("zero_bytes", zero_bytes);
    json_number("resident_zero_bytes", resident_zero_bytes);
    json_end();
    wait_for_end();
}
