/* A file of fixed places, read and written by position.  It is never synced and has no name to come back to: after a crash the
 * layer's experts are done again. */
#include "tools/calibrate_codes.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/dtype.h"
#include "src/file.h"
#include "src/units.h"

enum { ALIGN = 4096, IO_CHUNK = 1 << 30 };

struct mq_codes {
    mq_codes_shape shape;
    int layer, group;
    char *path;
    int fd;
    uint8_t *lent; /* an expert's gate_up and down */
    int64_t lent_cap;
    int lent_layer, lent_expert; /* -1: nothing */
};

int64_t mq_codes_gate_up_bytes(const mq_codes_shape *s, int group)
{
    return mq_units_bytes(2 * s->width, s->hidden, group);
}

int64_t mq_codes_down_bytes(const mq_codes_shape *s, int group)
{
    return mq_units_bytes(s->hidden, s->width, group);
}

static int64_t place_bytes(const mq_codes_shape *s, int group)
{
    return mq_round_up(mq_codes_gate_up_bytes(s, group) + mq_codes_down_bytes(s, group), ALIGN);
}

int64_t mq_codes_bytes(const mq_codes_shape *s, int group)
{
    return s->n_experts * place_bytes(s, group);
}

static mq_status io_fail(mq_err *err, const char *path, const char *what)
{
    char text[128];
    return mq_fail(err, MQ_E_IO, "%s: %s: %s", path, what, strerror_r(errno, text, sizeof text));
}

mq_status mq_codes_create(mq_codes **out, const char *dir, const char *name, const mq_codes_shape *shape, mq_err *err)
{
    char file[64];
    *out = NULL;
    snprintf(file, sizeof file, "%s.partial", name);
    mq_codes *c = calloc(1, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    c->shape = *shape;
    c->layer = c->lent_layer = c->lent_expert = c->fd = -1;
    c->path = mq_path_join(dir, file);
    mq_status st = c->path ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK && unlink(c->path) != 0 && errno != ENOENT)
        st = io_fail(err, c->path, "remove");
    if (st == MQ_OK) {
        c->fd = open(c->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (c->fd < 0)
            st = io_fail(err, c->path, "create");
    }
    if (st != MQ_OK) {
        mq_codes_close(c);
        return st;
    }
    *out = c;
    return MQ_OK;
}

void mq_codes_close(mq_codes *c)
{
    if (!c)
        return;
    if (c->fd >= 0) {
        close(c->fd);
        unlink(c->path);
    }
    free(c->lent);
    free(c->path);
    free(c);
}

void mq_codes_begin(mq_codes *c, int layer, int group)
{
    c->layer = layer;
    c->group = group;
    c->lent_layer = -1;
}

int mq_codes_layer(const mq_codes *c)
{
    return c->layer;
}

static mq_status write_at(const mq_codes *c, const uint8_t *bytes, int64_t n_bytes, int64_t off, mq_err *err)
{
    while (n_bytes > 0) {
        ssize_t n = pwrite(c->fd, bytes, (size_t)(n_bytes < IO_CHUNK ? n_bytes : IO_CHUNK), off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_fail(err, c->path, "write");
        bytes += n;
        off += n;
        n_bytes -= n;
    }
    return MQ_OK;
}

static mq_status read_at(const mq_codes *c, uint8_t *out, int64_t n_bytes, int64_t off, mq_err *err)
{
    while (n_bytes > 0) {
        ssize_t n = pread(c->fd, out, (size_t)(n_bytes < IO_CHUNK ? n_bytes : IO_CHUNK), off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_fail(err, c->path, "read");
        if (n == 0)
            return mq_fail(err, MQ_E_IO, "%s: file shrank while being read", c->path);
        out += n;
        off += n;
        n_bytes -= n;
    }
    return MQ_OK;
}

mq_status mq_codes_write(mq_codes *c, int64_t expert, const uint8_t *gate_up, const uint8_t *down, mq_err *err)
{
    assert(expert >= 0 && expert < c->shape.n_experts);
    int64_t at = expert * place_bytes(&c->shape, c->group), n = mq_codes_gate_up_bytes(&c->shape, c->group);
    MQ_TRY(write_at(c, gate_up, n, at, err));
    return write_at(c, down, mq_codes_down_bytes(&c->shape, c->group), at + n, err);
}

mq_status mq_codes_read(const mq_codes *c, uint8_t *out, int64_t expert, bool is_down, int64_t tile0, int64_t n_tiles,
                        mq_err *err)
{
    assert(expert >= 0 && expert < c->shape.n_experts);
    int64_t at = expert * place_bytes(&c->shape, c->group);
    int64_t tile = mq_tile_bytes(is_down ? c->shape.width : c->shape.hidden, c->group);
    at += is_down ? mq_codes_gate_up_bytes(&c->shape, c->group) : 0;
    return read_at(c, out, n_tiles * tile, at + tile0 * tile, err);
}

void mq_codes_cut(uint8_t *out, const uint8_t *tiles, int64_t n_tiles, int64_t full_cols, int64_t col0, int64_t n_cols,
                  int group)
{
    int64_t full = mq_tile_bytes(full_cols, group), from = mq_tile_bytes(col0, group), n = mq_tile_bytes(n_cols, group);
    for (int64_t t = 0; t < n_tiles; t++)
        memcpy(out + t * n, tiles + t * full + from, (size_t)n);
}

void mq_codes_paste(uint8_t *tiles, const uint8_t *part, int64_t n_tiles, int64_t full_cols, int64_t col0, int64_t n_cols,
                    int group)
{
    int64_t full = mq_tile_bytes(full_cols, group), to = mq_tile_bytes(col0, group), n = mq_tile_bytes(n_cols, group);
    for (int64_t t = 0; t < n_tiles; t++)
        memcpy(tiles + t * full + to, part + t * n, (size_t)n);
}

mq_status mq_codes_lend(void *ctx, mq_mlp_weights *out, int layer, int expert, mq_err *err)
{
    mq_codes *c = ctx;
    const mq_codes_shape *s = &c->shape;
    if (layer != c->layer)
        return mq_fail(err, MQ_E_BUG, "codes of layer %d, expected layer %d", c->layer, layer);
    int64_t gate_up = mq_codes_gate_up_bytes(s, c->group), need = place_bytes(s, c->group);
    if (need > c->lent_cap) {
        free(c->lent);
        c->lent_cap = 0;
        c->lent_layer = -1;
        c->lent = aligned_alloc(64, (size_t)need);
        if (!c->lent)
            return mq_fail(err, MQ_E_NOMEM, "out of memory");
        c->lent_cap = need;
    }
    if (c->lent_layer != layer || c->lent_expert != expert) {
        c->lent_layer = -1;
        MQ_TRY(read_at(c, c->lent, gate_up + mq_codes_down_bytes(s, c->group), expert * need, err));
        c->lent_layer = layer;
        c->lent_expert = expert;
    }
    mq_scheme scheme = c->group == MQ_GROUP_MXFP4 ? MQ_SCHEME_MXFP4 : MQ_SCHEME_INT4;
    *out = (mq_mlp_weights){.interleaved = true};
    out->gate_up = (mq_matrix){.scheme = scheme, .rows = 2 * s->width, .cols = s->hidden, .data = c->lent, .group = c->group};
    out->down = (mq_matrix){.scheme = scheme, .rows = s->hidden, .cols = s->width, .data = c->lent + gate_up,
                            .group = c->group};
    return MQ_OK;
}
