/* What the files of the checkpoint maker share. */
#ifndef MQ_TESTS_MAKER_PARTS_H
#define MQ_TESTS_MAKER_PARTS_H

#include "src/buf.h"
#include "src/dtype.h"
#include "tests/maker/maker.h"

/* How a tensor's bytes are made. */
typedef enum maker_fill {
    FILL_NORMAL,    /* about N(0, sigma), by dtype */
    FILL_NORM,      /* norm weights: 1 +- 0.1 */
    FILL_E4M3,      /* codes of about N(0, 96) */
    FILL_FP8_SCALE, /* sigma / 96 times 0.5 .. 1.5 */
    FILL_E2M1,      /* two codes of about N(0, 2) a byte */
    FILL_E8M0       /* 2^k near sigma / 2 */
} maker_fill;

/* A stored tensor. */
typedef struct maker_tensor {
    char name[128];
    mq_dtype dtype;
    int n_dims;
    int64_t dims[2], n_bytes;
    maker_fill fill;
    double sigma;
    bool is_scale;
    int file;
    uint64_t seed;
} maker_tensor;

typedef struct maker_list {
    maker_tensor *tensors;
    int64_t n, cap;
    mq_status st; /* MQ_E_NOMEM once an append failed */
} maker_list;

/* All tensors of the target, or of the drafter's folder. */
void maker_list_model(maker_list *l, const mq_maker *m);
void maker_list_draft(maker_list *l, const mq_maker *m);

/* The noise. */
typedef struct maker_noise maker_noise;
maker_noise *maker_noise_create(uint64_t seed); /* NULL: out of memory */
void maker_noise_free(maker_noise *n);
/* Bytes [off, off + n_bytes) of t; off a multiple of MAKER_CHUNK, n_bytes at most that. */
enum { MAKER_CHUNK = 1 << 16 };
void maker_fill_bytes(const maker_noise *n, const maker_tensor *t, int64_t off, uint8_t *dst, int64_t n_bytes);

/* config.json and dflash/config.json. */
void maker_config(mq_buf *out, const mq_maker *m);
void maker_draft_config(mq_buf *out, const mq_maker *m);
int maker_mask_token(const mq_maker *m);
/* mask_embedding.pt as torch.save writes it: BF16 [hidden]. */
void maker_mask_pt(mq_buf *out, int mask_token, const uint16_t *embedding, int hidden);

#endif
