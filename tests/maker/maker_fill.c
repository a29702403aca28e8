/* Noise at memory speed: blocks of random values made once, read at an offset hashed from tensor and chunk, with a few
 * bits flipped.  BF16 and F32 are scaled by subtracting from the exponent, so sigma is rounded to a power of two. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/float.h"
#include "tests/maker/maker_parts.h"

enum { BLOCK = 1 << 19 };

struct maker_noise {
    float normal[2 * BLOCK]; /* the block twice, so that a chunk never wraps */
    uint16_t bf16[2 * BLOCK];
    uint8_t e4m3[2 * BLOCK], e2m1[2 * BLOCK];
};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static double uniform(uint64_t h)
{
    return ((double)(h >> 11) + 0.5) * 0x1p-53;
}

/* Nearest code by magnitude: the tables are tiny and this runs once per block element. */
static uint8_t nearest(float x, int n_codes, float (*value)(int))
{
    int best = 0;
    int low = 0, high = n_codes - 1;
    while (low < high) { /* magnitudes rise with the code */
        int mid = (low + high) / 2;
        if (value(mid) < fabsf(x))
            low = mid + 1;
        else
            high = mid;
    }
    best = low;
    if (low > 0 && fabsf(x) - value(low - 1) < value(low) - fabsf(x))
        best = low - 1;
    return (uint8_t)best;
}

static float e4m3_value(int c)
{
    return mq_e4m3_to_f32((uint8_t)c);
}

static float e2m1_value(int c)
{
    return mq_e2m1_to_f32((unsigned)c);
}

static uint8_t e2m1_code(float x)
{
    return (uint8_t)(nearest(x, 8, e2m1_value) | (x < 0 ? 8 : 0));
}

maker_noise *maker_noise_create(uint64_t seed)
{
    maker_noise *n = malloc(sizeof *n);
    if (!n)
        return NULL;
    for (int i = 0; i < BLOCK; i++) {
        double r = sqrt(-2.0 * log(uniform(mix(seed + 2 * (uint64_t)i))));
        double a = 6.283185307179586 * uniform(mix(seed + 2 * (uint64_t)i + 1));
        float x = (float)(r * cos(a)), y = (float)(r * sin(a));
        if (fabsf(x) < 1e-6f) /* exponents must survive the scaling below */
            x = 1e-6f;
        n->normal[i] = n->normal[i + BLOCK] = x;
        n->bf16[i] = n->bf16[i + BLOCK] = mq_f32_to_bf16(x);
        uint8_t code = (uint8_t)(nearest(96.0f * x, 127, e4m3_value) | (x < 0 ? 0x80 : 0));
        n->e4m3[i] = n->e4m3[i + BLOCK] = code;
        code = (uint8_t)(e2m1_code(2.0f * x) | e2m1_code(2.0f * y) << 4);
        n->e2m1[i] = n->e2m1[i + BLOCK] = code;
    }
    return n;
}

void maker_noise_free(maker_noise *n)
{
    free(n);
}

/* F32 to F16, ties to even; |x| stays far below the overflow. */
static uint16_t f16_of(float x)
{
    uint16_t sign = x < 0 ? 0x8000 : 0;
    float a = fabsf(x);
    if (a < 0x1p-14f)
        return (uint16_t)(sign | (unsigned)lrintf(a * 0x1p24f));
    uint32_t u = mq_f32_bits(a);
    u += 0xfff + (u >> 13 & 1);
    return (uint16_t)(sign | ((u >> 13) - (112u << 10)));
}

static float norm_weight(float x)
{
    return 1.0f + 0.1f * x;
}

/* Exponent of sigma's nearest power of two, not above 0. */
static unsigned scale_down(double sigma)
{
    int k = -(int)lround(log2(sigma));
    return k > 0 ? (unsigned)k : 0;
}

static void fill_floats(const maker_noise *n, const maker_tensor *t, uint64_t h, uint8_t *dst, int64_t n_bytes)
{
    const float *src = n->normal + h % BLOCK;
    float sigma = (float)t->sigma;
    bool norm = t->fill == FILL_NORM;
    uint32_t k = scale_down(t->sigma) << 23;
    for (int64_t i = 0; i < n_bytes / 4 && t->dtype == MQ_DT_F32; i++) {
        uint32_t u = norm ? mq_f32_bits(norm_weight(src[i])) : mq_f32_bits(src[i]) - k;
        memcpy(dst + 4 * i, &u, 4);
    }
    for (int64_t i = 0; i < n_bytes / 2 && t->dtype != MQ_DT_F32; i++) {
        float x = norm ? norm_weight(src[i]) : sigma * src[i];
        uint16_t u = t->dtype == MQ_DT_F16 ? f16_of(x) : mq_f32_to_bf16(x);
        memcpy(dst + 2 * i, &u, 2);
    }
}

static void fill_bf16(const maker_noise *n, const maker_tensor *t, uint64_t h, uint8_t *dst, int64_t n_bytes)
{
    const uint16_t *src = n->bf16 + h % BLOCK;
    uint16_t flip = (uint16_t)(h >> 32 & 0x801f), k = (uint16_t)(scale_down(t->sigma) << 7);
    for (int64_t i = 0; i < n_bytes / 2; i++) {
        uint16_t u = (uint16_t)((src[i] ^ flip) - k);
        memcpy(dst + 2 * i, &u, 2);
    }
}

static void fill_codes(const uint8_t *src, uint8_t flip, uint8_t *dst, int64_t n_bytes)
{
    for (int64_t i = 0; i < n_bytes; i++)
        dst[i] = src[i] ^ flip;
}

static void fill_fp8_scales(const maker_tensor *t, uint64_t h, uint8_t *dst, int64_t n_bytes)
{
    for (int64_t i = 0; i < n_bytes / 4; i++) {
        float s = (float)(t->sigma / 96.0 * (0.5 + uniform(mix(h + (uint64_t)i))));
        memcpy(dst + 4 * i, &s, 4);
    }
}

static void fill_e8m0(const maker_noise *n, const maker_tensor *t, uint64_t h, uint8_t *dst, int64_t n_bytes)
{
    int k = 127 + (int)lround(log2(t->sigma / 2.0));
    const uint8_t *src = n->e2m1 + h % BLOCK;
    for (int64_t i = 0; i < n_bytes; i++)
        dst[i] = (uint8_t)(k + (src[i] & 1) - (src[i] >> 4 & 1));
}

void maker_fill_bytes(const maker_noise *n, const maker_tensor *t, int64_t off, uint8_t *dst, int64_t n_bytes)
{
    uint64_t h = mix(t->seed ^ mix((uint64_t)off / MAKER_CHUNK));
    switch (t->fill) {
    case FILL_NORMAL:
        if (t->dtype == MQ_DT_BF16)
            fill_bf16(n, t, h, dst, n_bytes);
        else
            fill_floats(n, t, h, dst, n_bytes);
        break;
    case FILL_NORM:
        fill_floats(n, t, h, dst, n_bytes);
        break;
    case FILL_E4M3:
        fill_codes(n->e4m3 + h % BLOCK, (uint8_t)(h >> 32 & 0x80), dst, n_bytes);
        break;
    case FILL_E2M1:
        fill_codes(n->e2m1 + h % BLOCK, (uint8_t)(h >> 32 & 0x88), dst, n_bytes);
        break;
    case FILL_FP8_SCALE:
        fill_fp8_scales(t, h, dst, n_bytes);
        break;
    case FILL_E8M0:
        fill_e8m0(n, t, h, dst, n_bytes);
        break;
    }
}
