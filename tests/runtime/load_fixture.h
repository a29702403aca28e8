/* Packed models made for tests of loading, and stores compared byte by byte, wherever their weights are. */
#ifndef MQ_TESTS_RUNTIME_LOAD_FIXTURE_H
#define MQ_TESTS_RUNTIME_LOAD_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/store.h"
#include "src/file.h"
#include "src/units.h"
#include "tests/harness.h"
#include "tests/maker/maker_packed.h"

/* A small packed model of n_ranks, made once per call; the folder goes with the process. */
static inline const char *fix_model(const char *preset, int n_ranks, int group, int zstd_level)
{
    mq_maker m;
    mq_err err;
    mq_maker_packed p = {.n_ranks = n_ranks, .group = group, .zstd_level = zstd_level, .n_threads = 2};
    const char *dir = mq_test_dir();
    ck_assert(mq_maker_preset(&m, preset));
    m.layers = 3;
    m.vocab = 1024;
    m.eos = 1000;
    mq_assert_ok(mq_maker_write_packed(&m, &p, dir, NULL, &err), &err);
    return dir;
}

/* Where weights are: kernels NULL is the host. */
typedef struct fix_side {
    mq_store *store;
    const mq_kernels *kernels;
    mq_dev *dev;
} fix_side;

static inline void fix_same_bytes(const char *what, const fix_side *a, const void *x, const fix_side *b, const void *y,
                                  int64_t n_bytes)
{
    mq_err err;
    ck_assert_msg((x == NULL) == (y == NULL), "%s: only one side has it", what);
    if (!x || n_bytes == 0)
        return;
    uint8_t *copy[2] = {malloc((size_t)n_bytes), malloc((size_t)n_bytes)};
    const fix_side *sides[2] = {a, b};
    const void *from[2] = {x, y};
    for (int i = 0; i < 2; i++)
        if (sides[i]->kernels)
            mq_assert_ok(sides[i]->kernels->download(sides[i]->dev, copy[i], from[i], n_bytes, &err), &err);
        else
            memcpy(copy[i], from[i], (size_t)n_bytes);
    ck_assert_msg(memcmp(copy[0], copy[1], (size_t)n_bytes) == 0, "%s differs", what);
    free(copy[0]);
    free(copy[1]);
}

static inline int64_t fix_matrix_bytes(const mq_matrix *m)
{
    bool units = m->scheme == MQ_SCHEME_INT4 || m->scheme == MQ_SCHEME_MXFP4;
    return units ? mq_units_bytes(m->rows, m->cols, m->group)
                 : m->rows * m->cols * (m->scheme == MQ_SCHEME_F32 ? 4 : m->scheme == MQ_SCHEME_FP8_BLOCK ? 1 : 2);
}

static inline void fix_same_matrix(const char *what, const fix_side *a, const mq_matrix *x, const fix_side *b,
                                   const mq_matrix *y)
{
    ck_assert_msg(x->scheme == y->scheme && x->rows == y->rows && x->cols == y->cols, "%s: other shape", what);
    fix_same_bytes(what, a, x->data, b, y->data, fix_matrix_bytes(x));
    if (x->scheme == MQ_SCHEME_FP8_BLOCK)
        fix_same_bytes(what, a, x->scale, b, y->scale, 4 * mq_fp8_n_scales(x));
}

static inline void fix_same_mlp(const char *what, const fix_side *a, const mq_mlp_weights *x, const fix_side *b,
                                const mq_mlp_weights *y)
{
    fix_same_matrix(what, a, &x->gate_up, b, &y->gate_up);
    fix_same_matrix(what, a, &x->gate, b, &y->gate);
    fix_same_matrix(what, a, &x->up, b, &y->up);
    fix_same_matrix(what, a, &x->down, b, &y->down);
}

static inline void fix_same_layer(const fix_side *a, const fix_side *b, int layer, int rank)
{
    mq_layer_weights x, y;
    mq_err err;
    const mq_model *m = mq_store_model(a->store);
    mq_assert_ok(mq_store_layer(a->store, &x, layer, rank, &err), &err);
    mq_assert_ok(mq_store_layer(b->store, &y, layer, rank, &err), &err);
    fix_same_bytes("input_norm", a, x.input_norm, b, y.input_norm, 4 * m->hidden);
    fix_same_bytes("post_norm", a, x.post_norm, b, y.post_norm, 4 * m->hidden);
    ck_assert_int_eq(x.attn.n_kv_heads, y.attn.n_kv_heads);
    fix_same_bytes("sink", a, x.attn.sink, b, y.attn.sink, 4 * x.attn.n_heads);
    fix_same_matrix("q", a, &x.attn.q, b, &y.attn.q);
    fix_same_matrix("k", a, &x.attn.k, b, &y.attn.k);
    fix_same_matrix("v", a, &x.attn.v, b, &y.attn.v);
    fix_same_matrix("o", a, &x.attn.o, b, &y.attn.o);
    ck_assert(x.is_moe == y.is_moe);
    if (!x.is_moe) {
        fix_same_mlp("mlp", a, &x.mlp, b, &y.mlp);
        return;
    }
    fix_same_matrix("router", a, &x.router, b, &y.router);
    fix_same_bytes("router_bias", a, x.router_bias, b, y.router_bias, 4 * m->n_experts);
    for (int e = 0; e < m->n_experts; e++) {
        mq_mlp_weights p, q;
        mq_assert_ok(mq_store_expert(a->store, &p, layer, e, rank, &err), &err);
        mq_assert_ok(mq_store_expert(b->store, &q, layer, e, rank, &err), &err);
        fix_same_mlp("expert", a, &p, b, &q);
    }
}

/* All weights of two stores of one model, drafters aside. */
static inline void fix_same_store(const fix_side *a, const fix_side *b)
{
    mq_matrix x, y;
    const float *p, *q;
    mq_err err;
    const mq_model *m = mq_store_model(a->store);
    for (int layer = 0; layer < m->n_layers; layer++)
        for (int rank = 0; rank < mq_store_n_ranks(a->store); rank++)
            fix_same_layer(a, b, layer, rank);
    mq_assert_ok(mq_store_embedding(a->store, &x, &err), &err);
    mq_assert_ok(mq_store_embedding(b->store, &y, &err), &err);
    fix_same_matrix("embedding", a, &x, b, &y);
    for (int rank = 0; rank < mq_store_n_ranks(a->store); rank++) {
        mq_assert_ok(mq_store_head(a->store, &x, rank, &err), &err);
        mq_assert_ok(mq_store_head(b->store, &y, rank, &err), &err);
        fix_same_matrix("head", a, &x, b, &y);
    }
    mq_assert_ok(mq_store_final_norm(a->store, &p, &err), &err);
    mq_assert_ok(mq_store_final_norm(b->store, &q, &err), &err);
    fix_same_bytes("final_norm", a, p, b, q, 4 * m->hidden);
}

#endif
