/* What rounding costs under a second moment, D g D^T of each row, and the choice between two roundings by it.
 *
 * With T the lower triangle of g, its diagonal halved, D g D^T = 2 D T D^T: half the products, and g is read as it is kept.
 * Chunks of rows are dealt to threads; each chunk takes tiles of columns in order, single-threaded. */
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum {
    CHUNK = 256, /* rows */
    TILE = 256   /* columns */
};

/* One thread's workspace. */
typedef struct loss_room {
    float *rows; /* [CHUNK, cols] D */
    float *sum;  /* [CHUNK, TILE] */
    float *tile; /* [TILE, TILE] diagonal tile of T, zeros above the diagonal */
} loss_room;

static int64_t room_floats(int64_t cols)
{
    return CHUNK * cols + CHUNK * TILE + TILE * TILE;
}

int64_t mq_cpu_loss_bytes(int64_t cols)
{
    return room_floats(cols) * (int64_t)sizeof(float);
}

static void load_diagonal(float *tile, const float *g, int64_t k0, int64_t width, int64_t cols)
{
    for (int64_t i = 0; i < width; i++) {
        memcpy(tile + i * TILE, g + (k0 + i) * cols + k0, (size_t)i * sizeof *tile);
        tile[i * TILE + i] = 0.5f * g[(k0 + i) * cols + k0 + i];
        for (int64_t j = i + 1; j < width; j++)
            tile[i * TILE + j] = 0.0f;
    }
}

/* out [n] = x g x^T of n rows of x [n, cols]. */
static void quadratic(const mq_dev *dev, float *out, const float *x, const float *g, const loss_room *room, int64_t n,
                      int64_t cols)
{
    double sum[CHUNK] = {0};
    for (int64_t k0 = 0; k0 < cols; k0 += TILE) {
        int64_t width = cols - k0 < TILE ? cols - k0 : TILE;
        load_diagonal(room->tile, g, k0, width, cols);
        mq_blas_gemm(false, true, n, width, width, 1.0f, x + k0, cols, room->tile, TILE, 0.0f, room->sum, TILE);
        if (k0)
            mq_blas_gemm(false, true, n, width, k0, 1.0f, x, cols, g + k0 * cols, cols, 1.0f, room->sum, TILE);
        for (int64_t r = 0; r < n; r++) {
            double part;
            dev->v->dots(&part, x + r * cols + k0, room->sum + r * TILE, 1, width);
            sum[r] += part;
        }
    }
    for (int64_t r = 0; r < n; r++)
        out[r] = (float)(2.0 * sum[r]);
}

mq_status mq_cpu_quant_loss(mq_dev *dev, float *loss, float *norm, const uint8_t *codes, const float *w,
                            const float *scale, const float *g, int64_t rows, int64_t cols, int group, mq_err *err)
{
    int threads = mq_cpu_threads(dev, (double)rows * (double)cols * (double)cols / 16.0);
    void *base;
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_CHUNK, threads * mq_cpu_loss_bytes(cols), &base, err));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r0 = 0; r0 < rows; r0 += CHUNK) {
        loss_room room = {.rows = (float *)base + omp_get_thread_num() * room_floats(cols)};
        room.sum = room.rows + CHUNK * cols;
        room.tile = room.sum + CHUNK * TILE;
        int64_t n = rows - r0 < CHUNK ? rows - r0 : CHUNK;
        for (int64_t r = 0; r < n; r++)
            dev->v->residual(room.rows + r * cols, w + (r0 + r) * cols, codes + (r0 + r) * cols,
                             scale + (r0 + r) * (cols / group), cols, group);
        quadratic(dev, loss + r0, room.rows, g, &room, n, cols);
        if (norm)
            quadratic(dev, norm + r0, w + r0 * cols, g, &room, n, cols);
    }
    return MQ_OK;
}

mq_status mq_cpu_keep_better(mq_dev *dev, uint8_t *codes, float *scale, float *loss, int64_t *n_kept,
                             const uint8_t *codes_new, const float *scale_new, const float *loss_new, int64_t rows,
                             int64_t cols, int group, mq_err *err)
{
    (void)dev;
    (void)err;
    int64_t n_groups = cols / group, kept = 0;
    for (int64_t r = 0; r < rows; r++) {
        if (!(loss_new[r] < loss[r]))
            continue;
        memcpy(codes + r * cols, codes_new + r * cols, (size_t)cols);
        memcpy(scale + r * n_groups, scale_new + r * n_groups, (size_t)n_groups * sizeof *scale);
        loss[r] = loss_new[r];
        kept++;
    }
    if (n_kept)
        *n_kept = kept;
    return MQ_OK;
}

/* Every slot at its largest.  Which way round the matrix stands does not matter: moments have either width. */
int64_t mq_cpu_calibration_bytes(const mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n)
{
    int64_t wide = rows > cols ? rows : cols;
    int64_t chunk[] = {mq_cpu_ldlq_bytes(wide, wide, group), mq_cpu_solve_bytes(wide), mq_cpu_loss_bytes(wide),
                       mq_cpu_refine_bytes(wide, group)};
    int64_t most = 0;
    for (size_t i = 0; i < sizeof chunk / sizeof chunk[0]; i++)
        most = chunk[i] > most ? chunk[i] : most;
    int64_t slots[] = {mq_cpu_gram_bytes(n, wide, dev->n_threads), wide * 8, dev->n_threads * most,
                       wide * wide * (int64_t)sizeof(float), mq_cpu_linear_bytes(wide, wide, dev->n_threads),
                       (8 + 16) * wide * (int64_t)sizeof(float)}; /* the last: linear of few rows keeps them padded */
    int64_t sum = 0;
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        sum += mq_cpu_workspace_room(slots[i]) + 128; /* alignment */
    return sum;
}
