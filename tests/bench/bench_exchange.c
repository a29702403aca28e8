/* Time of an exchange of 1 and 8 rows of MiMo-V2.5-Pro's residual stream (6144 columns) between two GPUs, in a captured graph,
 * until the next kernel can read the whole sum: one-shot, two-shot, NCCL; 2 and 8 logical ranks.  Each way's sums are
 * compared with the host's first.  bench_exchange [EXCHANGES a graph]; exit 77 with fewer than two GPUs. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/maker/calibration_data.h"

enum { HIDDEN = 6144, ROWS = MQ_EXCHANGE_ROWS, PART = ROWS * HIDDEN, N_GPUS = 2, MOST_RANKS = 8 };

typedef struct end {
    mq_dev *dev;
    mq_exchange *x;
    float *local, *sum;
    int32_t *n_rows;
    mq_exchange_way way;
    int n_local, n_exchanges;
    const float *want; /* [ROWS, HIDDEN], rows from n on are zero */
    double us;
    mq_status st;
    mq_err err;
} end;

static const mq_kernels *k;

static mq_status measure(end *e)
{
    static const char *const names[] = {"one-shot", "two-shot", "NCCL"};
    float *got = malloc(PART * sizeof *got);
    if (!got)
        return mq_fail(&e->err, MQ_E_NOMEM, "out of memory");
    mq_status st = k->exchange->sum(e->x, e->way, e->sum, e->local, e->n_rows, &e->err);
    if (st == MQ_OK)
        st = k->download(e->dev, got, e->sum, PART * 4, &e->err);
    if (st == MQ_OK && memcmp(got, e->want, PART * sizeof *got))
        st = mq_fail(&e->err, MQ_E_BUG, "%s: the sum differs from the host's", names[e->way]);
    free(got);
    if (st == MQ_OK)
        st = k->exchange->time(e->x, e->way, e->sum, e->local, e->n_rows, e->n_exchanges, &e->us, &e->err);
    return st == MQ_OK ? k->exchange->check(e->x, &e->err) : st;
}

static void *run_end(void *arg)
{
    end *e = arg;
    e->st = measure(e);
    if (e->st != MQ_OK)
        k->exchange->stop(e->x);
    return NULL;
}

static void must(mq_status st, const mq_err *err)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

/* The sum in rank order of n rows of the host's parts. */
static void add_up(float *want, const float *parts, int n_ranks, int n)
{
    memset(want, 0, PART * sizeof *want);
    for (int i = 0; i < n * HIDDEN; i++) {
        want[i] = parts[i];
        for (int r = 1; r < n_ranks; r++)
            want[i] += parts[r * PART + i];
    }
}

static void one(end *ends, mq_exchange_way way, const float *parts, float *want, int n_ranks, int32_t n)
{
    pthread_t threads[N_GPUS];
    add_up(want, parts, n_ranks, n);
    for (int i = 0; i < N_GPUS; i++) {
        must(k->upload(ends[i].dev, ends[i].n_rows, &n, sizeof n, &ends[i].err), &ends[i].err);
        ends[i].way = way;
        ends[i].want = want;
        if (pthread_create(&threads[i], NULL, run_end, &ends[i])) {
            fprintf(stderr, "no thread\n");
            exit(1);
        }
    }
    for (int i = 0; i < N_GPUS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < N_GPUS; i++)
        must(ends[i].st, &ends[i].err);
    printf("  %7.2f", ends[0].us > ends[1].us ? ends[0].us : ends[1].us);
}

static void table(int n_ranks, int n_exchanges)
{
    static const char *const names[] = {"one-shot", "two-shot", "NCCL"};
    end ends[N_GPUS] = {0};
    mq_exchange *xs[N_GPUS];
    mq_err err;
    float *parts = random_floats((int64_t)n_ranks * PART, 3), *want = malloc(PART * sizeof *want);
    if (!want)
        exit(1);
    for (int i = 0; i < N_GPUS; i++) {
        end *e = &ends[i];
        mq_exchange_plan plan = {n_ranks, i * n_ranks / N_GPUS, n_ranks / N_GPUS, HIDDEN, 0};
        e->n_local = plan.n_local;
        e->n_exchanges = n_exchanges;
        must(k->dev_open(&e->dev, i, 0, NULL, &err), &err);
        must(k->exchange->create(&e->x, e->dev, &plan, &err), &err);
        must(k->alloc(e->dev, (void **)&e->local, (int64_t)plan.n_local * PART * 4, &err), &err);
        must(k->alloc(e->dev, (void **)&e->sum, PART * 4, &err), &err);
        must(k->alloc(e->dev, (void **)&e->n_rows, 4, &err), &err);
        must(k->upload(e->dev, e->local, parts + (int64_t)plan.first_rank * PART, (int64_t)plan.n_local * PART * 4, &err),
             &err);
        xs[i] = e->x;
    }
    must(k->exchange->connect(xs, N_GPUS, &err), &err);
    bool has_nccl = k->exchange->connect_nccl(xs, N_GPUS, NULL, &err) == MQ_OK;
    for (int way = 0; way < 3; way++) {
        printf("%2d ranks  %-9s", n_ranks, names[way]);
        if (way == MQ_EXCHANGE_NCCL && !has_nccl) {
            printf("  %s\n", err.text);
            break;
        }
        one(ends, (mq_exchange_way)way, parts, want, n_ranks, 1);
        one(ends, (mq_exchange_way)way, parts, want, n_ranks, ROWS);
        printf("\n");
    }
    for (int i = 0; i < N_GPUS; i++) {
        k->release(ends[i].dev, ends[i].local);
        k->release(ends[i].dev, ends[i].sum);
        k->release(ends[i].dev, ends[i].n_rows);
        k->exchange->close(ends[i].x);
        k->dev_close(ends[i].dev);
    }
    free(parts);
    free(want);
}

int main(int argc, char **argv)
{
    char name[256];
    int n_exchanges = argc > 1 ? atoi(argv[1]) : 140;
    k = mq_kernels_find("cuda");
    if (!k || mq_cuda_count() < N_GPUS || n_exchanges < 1) {
        printf("SKIPPED: fewer than two GPUs\n");
        return 77;
    }
    for (int i = 0; i < N_GPUS; i++)
        printf("cuda %d: %s\n", i, mq_cuda_name(i, name, sizeof name) ? name : "?");
    printf("exchanges of %d columns, F32, %d a graph; us each, the slower GPU\n%-20s  %7s  %7s\n", (int)HIDDEN, n_exchanges,
           "", "1 row", "8 rows");
    table(2, n_exchanges);
    table(MOST_RANKS, n_exchanges);
    return 0;
}
