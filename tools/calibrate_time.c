/* The measurement as a whole, the disk's part of it, and the arithmetic from rates to seconds. */
#include "tools/calibrate_time.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"
#include "src/pool.h"
#include "src/sha256.h"
#include "tools/calibrate_bench.h"
#include "tools/cli.h"

enum {
    DISK_BYTES = 32 << 20,
    DISK_BLOCK = 4 << 20,
    HASH_BYTES = 8 << 20
};

/* ---- Disk ---- */

/* What cannot be read or written is left at 0: the run itself will say why. */
static void measure_disk(mq_calib_rates *out, const char *path, const char *dir)
{
    mq_file *f = NULL;
    void *block = aligned_alloc(4096, DISK_BLOCK);
    int fd = open(dir, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (block && mq_file_open(&f, path, NULL) == MQ_OK) {
        int64_t n = 0;
        double start = mq_cli_now();
        while (n < DISK_BYTES && n + DISK_BLOCK <= f->n_bytes && mq_file_read(f, block, n, DISK_BLOCK, NULL) == MQ_OK)
            n += DISK_BLOCK;
        out->read_byte = n ? (mq_cli_now() - start) / (double)n : 0;
    }
    if (block && fd >= 0) {
        int64_t n = 0;
        memset(block, 0x5A, DISK_BLOCK);
        double start = mq_cli_now();
        while (n < DISK_BYTES && write(fd, block, DISK_BLOCK) == DISK_BLOCK)
            n += DISK_BLOCK;
        bool synced = fdatasync(fd) == 0;
        out->write_byte = n && synced ? (mq_cli_now() - start) / (double)n : 0;
    }
    if (fd >= 0)
        close(fd);
    mq_file_close(f);
    free(block);
}

static void measure_hash(mq_calib_rates *out)
{
    uint8_t digest[MQ_SHA256_BYTES], *bytes = calloc(1, HASH_BYTES);
    if (!bytes)
        return;
    double start = mq_cli_now();
    mq_sha256_of(digest, bytes, HASH_BYTES);
    out->hash_byte = (mq_cli_now() - start) / HASH_BYTES;
    free(bytes);
}

mq_status mq_calib_measure(mq_calib_rates *out, const mq_calib_work *work, const char *path, const char *dir, mq_err *err)
{
    memset(out, 0, sizeof *out);
    double start = mq_cli_now();
    MQ_TRY(mq_measure_forward(out, work, err));
    MQ_TRY(mq_measure_experts(out, work, err));
    measure_disk(out, path, dir);
    measure_hash(out);
    out->seconds = mq_cli_now() - start;
    return MQ_OK;
}

/* ---- Arithmetic ---- */

/* Flops a token of the linears of a layer's attention half. */
static double attention_flops(const mq_model *m, const mq_attn_geometry *g)
{
    double q = (double)g->n_heads * g->head_dim, k = (double)g->n_kv_heads * g->head_dim;
    double v = (double)g->n_kv_heads * g->v_head_dim, o = (double)g->n_heads * g->v_head_dim;
    return 2 * m->hidden * (q + k + v + o);
}

static double attention_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    const mq_model *m = work->m;
    double row = 0;
    for (int64_t l = 0; l < work->n_layers; l++) {
        row += attention_flops(m, mq_model_attn(m, (int)l)) * rates->linear_flop + rates->route_row;
        row += m->is_swa[l] ? rates->swa_row : rates->full_row;
        row += (m->is_moe[l] ? 2.0 * 2 * m->n_experts : 6.0 * m->intermediate) * m->hidden * rates->linear_flop;
    }
    return row * (double)work->n_rows;
}

static double expert_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    const mq_model *m = work->m;
    double picks = (double)work->n_rows * m->n_experts_per_tok, each = picks / m->n_experts;
    double tokens = picks, layer = 0;
    if (mq_calib_needs_sample(work->recipe, (int64_t)each, m->moe_intermediate))
        tokens += (double)m->n_experts * (double)mq_min(work->sample_rows, work->n_rows);
    if (mq_calib_needs_layer(work->recipe, (int64_t)each, m->hidden))
        layer = (double)work->n_rows * m->hidden * m->hidden * rates->gram_flop;
    double busy = (double)mq_min(work->n_workers, mq_cpu_count());
    return (double)work->n_calibrated * (layer + (m->n_experts * rates->expert + tokens * rates->expert_token) / busy);
}

static double forward_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    double n_followed = (double)(work->n_layers - work->n_dense - 1); /* nothing follows the last one */
    double rows = n_followed * (double)work->n_rows;
    rows += 2.0 * (double)work->n_calibrated * (double)mq_min(work->loss_rows, work->n_rows);
    return rows * work->m->n_experts_per_tok * rates->expert_row;
}

static double disk_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    double scratch = (double)work->scratch_bytes;
    double hashed = (double)work->write_bytes + (double)work->saved_bytes; /* the source is hashed beside the work */
    return (double)work->read_bytes * rates->read_byte + ((double)work->write_bytes + scratch) * rates->write_byte +
           hashed * rates->hash_byte / work->n_threads;
}

mq_calib_seconds mq_calib_estimate(const mq_calib_work *work, const mq_calib_rates *rates)
{
    mq_calib_seconds s = {.attention = attention_seconds(work, rates),
                          .experts = expert_seconds(work, rates),
                          .forward = forward_seconds(work, rates),
                          .disk = disk_seconds(work, rates)};
    s.total = s.attention + s.experts + s.forward + s.disk;
    return s;
}
