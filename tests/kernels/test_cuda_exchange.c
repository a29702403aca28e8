/* Exchange of parts between devices: bits of the sums, every value a part may hold, all ways and placements of ranks, peers that
 * fail or never come.  A host thread for each device, as in the engine.
 *
 * On the emulator each end has a device of its own.  On a GPU (argument "cuda") ends take the GPUs in turn, so that one is
 * enough: its kernels then wait for each other on one device. */
#include <pthread.h>

#include "tests/kernels/cuda_test.h"
#include "tests/maker/calibration_data.h"

enum { ROWS = MQ_EXCHANGE_ROWS, MOST = 4, HIDDEN = 72 };

typedef struct end {
    mq_dev *dev;
    mq_exchange *x;
    mq_exchange_plan plan;
    float *local, *parts, *sum; /* device */
    int32_t *n_rows;
    pthread_t thread;
    struct bench *b;
    mq_err err;
} end;

typedef struct bench {
    int n_ends, n_ranks;
    int64_t hidden;
    end ends[MOST];
    float *host; /* [n_ranks, ROWS, hidden] */
    int n_rounds, first_round;
    mq_exchange_way way;
    bool gathers, varies; /* parts instead of sums; n and contents from round to round */
    int n;
    mq_status (*special)(end *e); /* NULL: rounds */
    int absent;                   /* this end never comes */
    bool stops;                   /* it says so */
} bench;

static const mq_exchange_ops *ops;

static int n_gpus(void)
{
    return is_emulated ? MOST : mq_cuda_count();
}

static bench open_ends(int n_ends, int n_ranks, int64_t hidden, int timeout_ms)
{
    bench b = {.n_ends = n_ends, .n_ranks = n_ranks, .hidden = hidden, .absent = -1, .n_rounds = 1};
    mq_exchange *xs[MOST];
    int64_t part = ROWS * hidden;
    if (is_emulated)
        mq_emulator_set_devices(MOST);
    b.host = random_floats(n_ranks * part, 9);
    for (int i = 0; i < n_ends; i++) {
        end *e = &b.ends[i];
        int first = i * n_ranks / n_ends, next = (i + 1) * n_ranks / n_ends;
        e->plan = (mq_exchange_plan){n_ranks, first, next - first, hidden, timeout_ms};
        mq_assert_ok(gpu->dev_open(&e->dev, i % n_gpus(), 0, NULL, &err), &err);
        mq_assert_ok(ops->create(&e->x, e->dev, &e->plan, &err), &err);
        mq_assert_ok(gpu->alloc(e->dev, (void **)&e->parts, n_ranks * part * 4, &err), &err);
        mq_assert_ok(gpu->alloc(e->dev, (void **)&e->sum, part * 4, &err), &err);
        mq_assert_ok(gpu->alloc(e->dev, (void **)&e->n_rows, 4, &err), &err);
        e->local = e->parts + first * part; /* where it belongs */
        xs[i] = e->x;
    }
    mq_assert_ok(ops->connect(xs, n_ends, &err), &err);
    return b;
}

static void close_ends(bench *b)
{
    for (int i = 0; i < b->n_ends; i++) {
        end *e = &b->ends[i];
        gpu->release(e->dev, e->parts);
        gpu->release(e->dev, e->sum);
        gpu->release(e->dev, e->n_rows);
        ops->close(e->x);
        gpu->dev_close(e->dev);
    }
    free(b->host);
    if (is_emulated)
        mq_emulator_set_devices(1);
}

static float cleaned(float x)
{
    return x == 0.0f ? 0.0f : x;
}

/* What round's rank contributes: the host's array, rolled by the round. */
static float contribution(const bench *b, int round, int rank, int64_t i)
{
    int64_t part = ROWS * b->hidden;
    return b->host[rank * part + (b->varies ? (i + 5 * round) % part : i)];
}

static int rows_of(const bench *b, int round)
{
    return b->varies ? (round * 7 + round / 9) % (ROWS + 1) : b->n;
}

static mq_status one_round(end *e, int round)
{
    bench *b = e->b;
    int64_t part = ROWS * b->hidden;
    int32_t n = rows_of(b, round);
    float *host = floats(b->n_ranks * part);
    for (int l = 0; l < e->plan.n_local; l++)
        for (int64_t i = 0; i < part; i++)
            host[l * part + i] = contribution(b, round, e->plan.first_rank + l, i);
    mq_status st = gpu->upload(e->dev, e->local, host, e->plan.n_local * part * 4, &e->err);
    if (st == MQ_OK)
        st = gpu->upload(e->dev, e->n_rows, &n, 4, &e->err);
    if (st == MQ_OK)
        st = b->gathers ? ops->gather(e->x, b->way, e->parts, e->local, e->n_rows, &e->err)
                        : ops->sum(e->x, b->way, e->sum, e->local, e->n_rows, &e->err);
    if (st == MQ_OK)
        st = gpu->dev_sync(e->dev, &e->err);
    if (st == MQ_OK)
        st = ops->check(e->x, &e->err);
    if (st == MQ_OK)
        st = gpu->download(e->dev, host, b->gathers ? e->parts : e->sum, (b->gathers ? b->n_ranks : 1) * part * 4,
                           &e->err);
    for (int r = 0; st == MQ_OK && r < (b->gathers ? b->n_ranks : 1); r++)
        for (int64_t i = 0; i < part; i++) {
            float want = 0.0f;
            if (i / b->hidden < n) {
                want = cleaned(contribution(b, round, b->gathers ? r : 0, i));
                for (int o = 1; !b->gathers && o < b->n_ranks; o++)
                    want += cleaned(contribution(b, round, o, i));
            }
            if (memcmp(&want, &host[r * part + i], 4) && !(isnan(want) && isnan(host[r * part + i])))
                return mq_fail(&e->err, MQ_E_BUG, "round %d, n %d, rank %d: element %d is %g, expected %g", round, n, r,
                               (int)i, (double)host[r * part + i], (double)want);
        }
    free(host);
    return st;
}

static void *run_end(void *arg)
{
    end *e = arg;
    bench *b = e->b;
    int self = (int)(e - b->ends);
    if (self == b->absent) {
        if (b->stops)
            ops->stop(e->x);
        return NULL;
    }
    for (int i = 0; i < b->n_rounds && e->err.code == MQ_OK; i++)
        e->err.code = b->special ? b->special(e) : one_round(e, b->first_round + i);
    return NULL;
}

/* Every end's rounds; their errors are in the ends. */
static void run_all(bench *b)
{
    for (int i = 0; i < b->n_ends; i++) {
        b->ends[i].b = b;
        b->ends[i].err = (mq_err){0};
        ck_assert(pthread_create(&b->ends[i].thread, NULL, run_end, &b->ends[i]) == 0);
    }
    for (int i = 0; i < b->n_ends; i++)
        ck_assert(pthread_join(b->ends[i].thread, NULL) == 0);
    b->first_round += b->n_rounds;
}

static void run_well(bench *b)
{
    run_all(b);
    for (int i = 0; i < b->n_ends; i++)
        ck_assert_msg(b->ends[i].err.code == MQ_OK, "end %d: %s", i, b->ends[i].err.text);
}

static const struct {
    int n_ends, n_ranks;
} placements[] = {{1, 1}, {1, 3}, {2, 2}, {2, 8}, {3, 5}, {4, 4}, {4, 8}};

START_TEST(everybody_has_the_sum_in_rank_order)
{
    for (size_t p = 0; p < sizeof placements / sizeof placements[0]; p++) {
        bench b = open_ends(placements[p].n_ends, placements[p].n_ranks, HIDDEN, 60000);
        for (b.n = 0; b.n <= ROWS; b.n++)
            for (int c = 0; c < 3; c++) { /* ways follow each other: each clears what another left */
                b.gathers = c == 0;
                b.way = c == 2 ? MQ_EXCHANGE_TWO_SHOT : MQ_EXCHANGE_ONE_SHOT;
                run_well(&b);
            }
        close_ends(&b);
    }
}
END_TEST

START_TEST(rows_of_any_width)
{
    static const int64_t widths[] = {4, 8, 20, 1028};
    for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
        bench b = open_ends(2, 4, widths[w], 60000);
        for (b.n = 1; b.n <= ROWS; b.n += 7)
            for (int c = 0; c < 3; c++) {
                b.gathers = c == 0;
                b.way = c == 2 ? MQ_EXCHANGE_TWO_SHOT : MQ_EXCHANGE_ONE_SHOT;
                run_well(&b);
            }
        close_ends(&b);
    }
}
END_TEST

START_TEST(every_value_arrives)
{
    static const float odd[] = {-0.0f, 0.0f, NAN, INFINITY, -INFINITY, 1e-45f, -1e-45f, 3.4e38f, -1.0f};
    enum { N_ODD = sizeof odd / sizeof odd[0] };
    bench b = open_ends(2, 4, HIDDEN, 60000);
    for (int64_t i = 0; i < 4 * ROWS * HIDDEN; i++)
        b.host[i] = i < 3 * HIDDEN ? -0.0f : odd[(i * 31 + i / 97) % N_ODD]; /* also nothing but -0.0 */
    b.n = ROWS;
    for (int c = 0; c < 3; c++) {
        b.gathers = c == 0;
        b.way = c == 2 ? MQ_EXCHANGE_TWO_SHOT : MQ_EXCHANGE_ONE_SHOT;
        run_well(&b);
    }
    close_ends(&b);
}
END_TEST

START_TEST(thousands_of_exchanges_with_any_n)
{
    bool small = getenv("MQ_TEST_SMALL") != NULL;
    for (int c = 0; c < 3; c++) {
        bench b = open_ends(c == 1 ? 3 : 2, 3, 32, 60000);
        b.varies = true;
        b.n_rounds = small ? 60 : 1200;
        b.gathers = c == 0;
        b.way = c == 2 ? MQ_EXCHANGE_TWO_SHOT : MQ_EXCHANGE_ONE_SHOT;
        run_well(&b);
        close_ends(&b);
    }
}
END_TEST

static mq_status take_time(end *e)
{
    bench *b = e->b;
    double us;
    int32_t n = b->n;
    int64_t n_bytes = e->plan.n_local * ROWS * b->hidden * 4;
    mq_status st = gpu->upload(e->dev, e->local, b->host + e->plan.first_rank * ROWS * b->hidden, n_bytes, &e->err);
    if (st == MQ_OK)
        st = gpu->upload(e->dev, e->n_rows, &n, 4, &e->err);
    if (st == MQ_OK)
        st = ops->time(e->x, b->way, e->sum, e->local, e->n_rows, 4, &us, &e->err);
    if (st == MQ_OK)
        st = ops->check(e->x, &e->err);
    return st == MQ_OK && us <= 0.0 ? mq_fail(&e->err, MQ_E_BUG, "no time") : st;
}

START_TEST(exchanges_in_a_graph_give_the_same_sums)
{
    for (int way = MQ_EXCHANGE_ONE_SHOT; way <= MQ_EXCHANGE_TWO_SHOT; way++) {
        bench b = open_ends(2, 4, HIDDEN, 60000);
        b.n = 5;
        b.way = (mq_exchange_way)way;
        b.special = take_time;
        run_well(&b); /* 4 exchanges a graph, replayed: the count is the device's */
        b.special = NULL;
        run_well(&b);
        close_ends(&b);
    }
}
END_TEST

START_TEST(a_peer_that_never_comes_is_named)
{
    for (int two_shot = 0; two_shot < 2; two_shot++) {
        bench b = open_ends(3, 6, HIDDEN, 1000);
        b.n = 3;
        b.way = two_shot ? MQ_EXCHANGE_TWO_SHOT : MQ_EXCHANGE_ONE_SHOT;
        b.absent = 1;
        run_all(&b);
        for (int i = 0; i < 3; i += 2) {
            const mq_err *e = &b.ends[i].err;
            char who[32], text[160];
            snprintf(who, sizeof who, "cuda %d: exchange 0: rank ", i % n_gpus());
            ck_assert_msg(e->code == MQ_E_DEVICE && strstr(e->text, who) && strstr(e->text, "in 1000 ms"), "end %d: %s", i,
                          e->text);
            snprintf(text, sizeof text, "(cuda %d) sent nothing for row ", 1 % n_gpus());
            ck_assert_msg(two_shot || strstr(e->text, text), "end %d: %s", i, e->text);
            /* what is queued after that does not wait again */
            mq_err later;
            mq_assert_ok(ops->sum(b.ends[i].x, b.way, b.ends[i].sum, b.ends[i].local, b.ends[i].n_rows, &later), &later);
            mq_assert_ok(gpu->dev_sync(b.ends[i].dev, &later), &later);
            mq_assert_fails(ops->check(b.ends[i].x, &later), MQ_E_DEVICE, &later, "exchange 0: rank");
        }
        close_ends(&b);
    }
}
END_TEST

START_TEST(a_peer_that_stops_lets_the_others_out)
{
    bench b = open_ends(2, 2, HIDDEN, 600000);
    b.n = 8;
    run_well(&b);
    b.absent = 1;
    b.stops = true;
    run_all(&b);
    char text[64];
    snprintf(text, sizeof text, "cuda 0: exchange 1: given up, cuda %d has stopped", 1 % n_gpus());
    ck_assert_str_eq(b.ends[0].err.text, text);
    ck_assert_int_eq(b.ends[0].err.code, MQ_E_STOPPED);
    mq_assert_fails(ops->check(b.ends[1].x, &err), MQ_E_STOPPED, &err, "the exchange was stopped by cuda");
    close_ends(&b);
}
END_TEST

START_TEST(plans_that_cannot_be_are_refused)
{
    mq_exchange *x, *y;
    mq_exchange_plan good = {4, 0, 2, 64, 0}, p = good;
    p.n_ranks = 9;
    mq_assert_fails(ops->create(&x, gpu_dev, &p, &err), MQ_E_ARG, &err, "of 9, expected some of at most 8");
    ck_assert(!x);
    p = good;
    p.n_local = 5;
    mq_assert_fails(ops->create(&x, gpu_dev, &p, &err), MQ_E_ARG, &err, "ranks 0 to 4 of 4");
    p = good;
    p.hidden = 66;
    mq_assert_fails(ops->create(&x, gpu_dev, &p, &err), MQ_E_ARG, &err, "rows of 66, expected a multiple of 4");
    p = good;
    p.timeout_ms = -1;
    mq_assert_fails(ops->create(&x, gpu_dev, &p, &err), MQ_E_ARG, &err, "a time-out of -1 ms");
    ops->close(NULL);

    mq_assert_ok(ops->create(&x, gpu_dev, &good, &err), &err);
    mq_assert_fails(ops->sum(x, MQ_EXCHANGE_ONE_SHOT, NULL, NULL, NULL, &err), MQ_E_ARG, &err, "is not connected");
    mq_assert_fails(ops->sum(x, MQ_EXCHANGE_NCCL, NULL, NULL, NULL, &err), MQ_E_ARG, &err, "is not connected to NCCL");
    mq_assert_fails(ops->gather(x, MQ_EXCHANGE_TWO_SHOT, NULL, NULL, NULL, &err), MQ_E_ARG, &err, "gives sums, not parts");
    mq_assert_fails(ops->connect(&x, 1, &err), MQ_E_ARG, &err, "the ends hold 2 ranks, expected all");
    p = good;
    p.first_rank = 1;
    mq_assert_ok(ops->create(&y, gpu_dev, &p, &err), &err);
    mq_assert_fails(ops->connect((mq_exchange *[]){x, y}, 2, &err), MQ_E_ARG, &err, "end 1 begins with rank 1, expected 2");
    ops->close(y);
    p = good;
    p.hidden = 128;
    mq_assert_ok(ops->create(&y, gpu_dev, &p, &err), &err);
    mq_assert_fails(ops->connect((mq_exchange *[]){x, y}, 2, &err), MQ_E_ARG, &err, "4 ranks of 128 columns beside 4 of 64");
    ops->close(y);
    ops->close(x);
}
END_TEST

START_TEST(devices_that_cannot_reach_each_other_are_named)
{
    if (!is_emulated)
        return;
    mq_emulator_set_devices(2);
    mq_dev *devs[2];
    mq_exchange *xs[2];
    for (int i = 0; i < 2; i++) {
        mq_exchange_plan p = {2, i, 1, 64, 0};
        mq_assert_ok(gpu->dev_open(&devs[i], i, 0, NULL, &err), &err);
        mq_assert_ok(ops->create(&xs[i], devs[i], &p, &err), &err);
    }
    mq_emulator_set_peers(false, false);
    mq_assert_fails(ops->connect(xs, 2, &err), MQ_E_UNSUPPORTED, &err, "cuda 1, emulated GPU, 4 multiprocessors: no access to each other's memory");
    mq_emulator_set_peers(true, false);
    mq_assert_fails(ops->connect(xs, 2, &err), MQ_E_UNSUPPORTED, &err, "no native atomics across their link");
    mq_emulator_set_peers(true, true);
    mq_assert_ok(ops->connect(xs, 2, &err), &err);
    mq_assert_fails(ops->connect_nccl(xs, 2, "/no/libnccl.so.2", &err), MQ_E_DEVICE, &err, "NCCL is not there: /no/libnccl.so.2");
    mq_assert_fails(ops->connect_nccl(xs, 2, "libm.so.6", &err), MQ_E_DEVICE, &err, "NCCL lacks a function");
    for (int i = 0; i < 2; i++) {
        ops->close(xs[i]);
        gpu->dev_close(devs[i]);
    }
    mq_emulator_set_devices(1);
}
END_TEST

START_TEST(failing_allocations_leave_nothing_behind)
{
    if (!is_emulated)
        return;
    mq_exchange *x;
    mq_exchange_plan p = {2, 0, 2, 64, 0};
    int64_t before = mq_emulator_allocated();
    for (int i = 1; i <= 2; i++) {
        mq_emulator_fail_allocation(i);
        mq_assert_fails(ops->create(&x, gpu_dev, &p, &err), MQ_E_NOMEM, &err, "out of memory for the exchange");
        ck_assert(!x && mq_emulator_allocated() == before);
    }
    mq_emulator_fail_allocation(0);
}
END_TEST

START_TEST(nccl_gives_the_same_sums)
{
    if (!is_emulated)
        return; /* bench_exchange has the real one */
    mq_exchange *xs[2];
    bench b = open_ends(2, 4, HIDDEN, 0);
    for (int i = 0; i < 2; i++)
        xs[i] = b.ends[i].x;
    mq_assert_ok(ops->connect_nccl(xs, 2, MQ_FAKE_NCCL, &err), &err);
    mq_assert_fails(ops->connect_nccl(xs, 2, MQ_FAKE_NCCL, &err), MQ_E_ARG, &err, "NCCL is connected already");
    b.way = MQ_EXCHANGE_NCCL;
    b.varies = true;
    b.n_rounds = 20;
    run_well(&b);
    b.gathers = true;
    run_well(&b);
    b.absent = 1;
    b.stops = true;
    run_all(&b);
    ck_assert_msg(b.ends[0].err.code == MQ_E_DEVICE && strstr(b.ends[0].err.text, "NCCL"), "%s", b.ends[0].err.text);
    close_ends(&b);

    b = open_ends(2, 3, HIDDEN, 0);
    for (int i = 0; i < 2; i++)
        xs[i] = b.ends[i].x;
    mq_assert_fails(ops->connect_nccl(xs, 2, MQ_FAKE_NCCL, &err), MQ_E_ARG, &err, "NCCL: 2 ranks on cuda 1, 1 on cuda 0");
    close_ends(&b);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_exchange");
    TCase *t = tcase_create("all");
    ops = gpu->exchange;
    tcase_add_test(t, everybody_has_the_sum_in_rank_order);
    tcase_add_test(t, rows_of_any_width);
    tcase_add_test(t, every_value_arrives);
    tcase_add_test(t, thousands_of_exchanges_with_any_n);
    tcase_add_test(t, exchanges_in_a_graph_give_the_same_sums);
    tcase_add_test(t, nccl_gives_the_same_sums);
    tcase_add_test(t, a_peer_that_never_comes_is_named);
    tcase_add_test(t, a_peer_that_stops_lets_the_others_out);
    tcase_add_test(t, plans_that_cannot_be_are_refused);
    tcase_add_test(t, devices_that_cannot_reach_each_other_are_named);
    tcase_add_test(t, failing_allocations_leave_nothing_behind);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
