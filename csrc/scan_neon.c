/* Finds strings with NEON, which every aarch64 CPU has: load and classify only. */
#if defined(__aarch64__)
#include "scan.h"
#include <arm_neon.h>

#define TARGET
#define FIND fastdump_find_neon
#define ANCHORS fastdump_anchors_neon

#define HELPER static inline __attribute__((always_inline))

typedef uint8x16x4_t block;

HELPER block load(const unsigned char *from) {
    return (block){{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
}

/* A bit for each byte, all of whose bits are 1 or 0: NEON has no movemask. */
HELPER uint64_t bits(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    static const uint8_t weights[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t weight = vld1q_u8(weights);
    uint8x16_t ab = vpaddq_u8(vandq_u8(a, weight), vandq_u8(b, weight));
    uint8x16_t cd = vpaddq_u8(vandq_u8(c, weight), vandq_u8(d, weight));
    uint8x16_t all = vpaddq_u8(ab, cd);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
}

HELPER uint64_t zeros(block b) {
    return bits(vceqzq_u8(b.val[0]), vceqzq_u8(b.val[1]), vceqzq_u8(b.val[2]), vceqzq_u8(b.val[3]));
}

HELPER block either(block a, block b) {
    for (int i = 0; i < 4; i++)
        a.val[i] = vorrq_u8(a.val[i], b.val[i]);
    return a;
}

HELPER uint8x16_t below_quarter(uint8x16_t b, int limit) {
    return vcltq_s8(vreinterpretq_s8_u8(b), vdupq_n_s8((int8_t)limit));
}

HELPER uint64_t below(block b, int limit) {
    return bits(below_quarter(b.val[0], limit), below_quarter(b.val[1], limit),
                below_quarter(b.val[2], limit), below_quarter(b.val[3], limit));
}

/* 0x20 to 0x7e and tab; all above 0x7f where the encoding (1) has 8 bits; \n \v \f \r as well. */
HELPER uint8x16_t printable_quarter(uint8x16_t b, int encoding, bool whitespace) {
    uint8x16_t yes = vcltq_u8(vsubq_u8(b, vdupq_n_u8(0x20)), vdupq_n_u8(0x5f));
    if (whitespace)
        yes = vorrq_u8(yes, vcltq_u8(vsubq_u8(b, vdupq_n_u8(9)), vdupq_n_u8(5)));
    else
        yes = vorrq_u8(yes, vceqq_u8(b, vdupq_n_u8(9)));
    return encoding == 1 ? vorrq_u8(yes, vcgeq_u8(b, vdupq_n_u8(0x80))) : yes;
}

HELPER uint64_t printable(block b, int encoding, bool whitespace) {
    return bits(printable_quarter(b.val[0], encoding, whitespace),
                printable_quarter(b.val[1], encoding, whitespace),
                printable_quarter(b.val[2], encoding, whitespace),
                printable_quarter(b.val[3], encoding, whitespace));
}

HELPER uint64_t printable_zero(block text, block zero, bool whitespace) {
    uint8x16_t yes[4];
    for (int i = 0; i < 4; i++)
        yes[i] = vandq_u8(printable_quarter(text.val[i], FASTDUMP_UTF16LE, whitespace),
                          vceqzq_u8(zero.val[i]));
    return bits(yes[0], yes[1], yes[2], yes[3]);
}

HELPER uint32_t emit(uint32_t *to, uint64_t word, uint32_t base) {
    uint32_t count = (uint32_t)__builtin_popcountll(word);
    for (uint32_t done = 0; done < count; done += 8)
        for (int i = 0; i < 8; i++) { /* some too many, but without a branch for each */
            to[done + (uint32_t)i] = base + (uint32_t)__builtin_ctzll(word | 1ull << 63);
            word &= word - 1;
        }
    return count;
}

HELPER block fill(unsigned char byte) {
    uint8x16_t all = vdupq_n_u8(byte);
    return (block){{all, all, all, all}};
}

HELPER uint64_t both(block a, block a_value, block a_mask, block b, block b_value, block b_mask) {
    uint8x16_t yes[4];
    for (int i = 0; i < 4; i++)
        yes[i] = vandq_u8(vceqq_u8(vandq_u8(a.val[i], a_mask.val[i]), a_value.val[i]),
                          vceqq_u8(vandq_u8(b.val[i], b_mask.val[i]), b_value.val[i]));
    return bits(yes[0], yes[1], yes[2], yes[3]);
}

#include "scan.inc.h"

#include "anchors.inc.h"
#endif
