/* Each member has two sets of parts and uses them in turn.  A set is written again only after the meeting of the next
 * exchange, and whoever comes to that meeting has finished copying from the set before: one meeting an exchange.  A sum over more
 * than two members takes two, and moves each element twice instead of once a rank. */
#include "runtime/join.h"

#include <assert.h>
#include <stdlib.h>

/* One member's memory. */
typedef struct side {
    mq_dev *dev;
    float *parts; /* [2, n_ranks, max_count] */
    int now;      /* the set that is being filled */
} side;

struct mq_join {
    mq_group *group;
    const mq_kernels *kernels;
    int n_members, n_ranks, n_local;
    int64_t max_count;
    side *sides; /* [n_members] */
};

int64_t mq_join_bytes(int n_ranks, int64_t max_count)
{
    return 2 * (int64_t)sizeof(float) * n_ranks * max_count;
}

mq_status mq_join_create(mq_join **out, mq_group *group, const mq_kernels *kernels, mq_dev *const *devs, int n_ranks,
                         int64_t max_count, mq_err *err)
{
    *out = NULL;
    mq_join *j = calloc(1, sizeof *j);
    int n = mq_group_n_members(group);
    assert(n_ranks % n == 0);
    side *sides = calloc((size_t)n, sizeof *sides);
    if (!j || !sides) {
        free(j);
        free(sides);
        return mq_fail(err, MQ_E_NOMEM, "sums over devices: out of memory");
    }
    *j = (mq_join){group, kernels, n, n_ranks, n_ranks / n, max_count, sides};
    for (int i = 0; i < n; i++) {
        void *p;
        sides[i].dev = devs[i];
        mq_status st = kernels->alloc(devs[i], &p, mq_join_bytes(n_ranks, max_count), err);
        if (st != MQ_OK) {
            mq_join_free(j);
            return mq_wrap(err, st, "sums over devices");
        }
        sides[i].parts = p;
    }
    *out = j;
    return MQ_OK;
}

void mq_join_free(mq_join *j)
{
    if (!j)
        return;
    for (int i = 0; i < j->n_members; i++)
        if (j->sides[i].parts)
            j->kernels->release(j->sides[i].dev, j->sides[i].parts);
    free(j->sides);
    free(j);
}

int mq_join_first_rank(const mq_join *j, int member)
{
    return member * j->n_local;
}

int mq_join_n_local(const mq_join *j)
{
    return j->n_local;
}

int64_t mq_join_max_count(const mq_join *j)
{
    return j->max_count;
}

static float *part_of(const mq_join *j, int member, int set, int rank)
{
    return j->sides[member].parts + ((int64_t)set * j->n_ranks + rank) * j->max_count;
}

float *mq_join_part(const mq_join *j, int member, int rank)
{
    assert(rank >= 0 && rank < j->n_ranks);
    return part_of(j, member, j->sides[member].now, rank);
}

/* Elements lo .. hi - 1 of every rank's part of other members come here. */
static mq_status collect(mq_join *j, int member, int set, int64_t lo, int64_t hi, mq_err *err)
{
    for (int r = 0; r < j->n_ranks; r++) {
        int owner = r / j->n_local;
        if (owner != member)
            MQ_TRY(j->kernels->copy(j->sides[member].dev, part_of(j, member, set, r) + lo, part_of(j, owner, set, r) + lo,
                                    (hi - lo) * (int64_t)sizeof(float), err));
    }
    return MQ_OK;
}

mq_status mq_join_exchange(mq_join *j, int member, const float **parts, int64_t count, mq_err *err)
{
    assert(count <= j->max_count);
    side *s = &j->sides[member];
    int set = s->now;
    MQ_TRY(j->kernels->dev_sync(s->dev, err));
    MQ_TRY(mq_group_wait(j->group, err));
    MQ_TRY(collect(j, member, set, 0, count, err));
    *parts = part_of(j, member, set, 0);
    s->now = 1 - set;
    return MQ_OK;
}

/* y [count] = the sum of the parts from at on, in rank order. */
static mq_status add_parts(mq_join *j, int member, int set, float *y, int64_t at, int64_t count, mq_err *err)
{
    mq_dev *dev = j->sides[member].dev;
    MQ_TRY(j->kernels->copy(dev, y, part_of(j, member, set, 0) + at, count * (int64_t)sizeof *y, err));
    for (int r = 1; r < j->n_ranks; r++)
        MQ_TRY(j->kernels->add(dev, y, part_of(j, member, set, r) + at, count, err));
    return MQ_OK;
}

/* Where member's slice of count elements begins; slices are multiples of 4 elements but for the last. */
static int64_t slice_start(const mq_join *j, int member, int64_t count)
{
    int64_t each = (count / 4 + j->n_members - 1) / j->n_members * 4, at = member * each;
    return member == j->n_members || at > count ? count : at;
}

/* Each member adds up its slice, whose sum takes the place of its first rank's part, which nobody else reads there; after a second
 * meeting slices go to everyone. */
static mq_status sum_slices(mq_join *j, int member, float *y, int64_t count, mq_err *err)
{
    side *s = &j->sides[member];
    int set = s->now;
    int64_t lo = slice_start(j, member, count), hi = slice_start(j, member + 1, count);
    MQ_TRY(j->kernels->dev_sync(s->dev, err));
    MQ_TRY(mq_group_wait(j->group, err));
    MQ_TRY(collect(j, member, set, lo, hi, err));
    MQ_TRY(add_parts(j, member, set, y + lo, lo, hi - lo, err));
    MQ_TRY(j->kernels->copy(s->dev, part_of(j, member, set, member * j->n_local) + lo, y + lo, (hi - lo) * (int64_t)sizeof *y, err));
    MQ_TRY(j->kernels->dev_sync(s->dev, err));
    MQ_TRY(mq_group_wait(j->group, err));
    for (int m = 0; m < j->n_members; m++) {
        int64_t at = slice_start(j, m, count), n = slice_start(j, m + 1, count) - at;
        if (m != member)
            MQ_TRY(j->kernels->copy(s->dev, y + at, part_of(j, m, set, m * j->n_local) + at, n * (int64_t)sizeof *y, err));
    }
    s->now = 1 - set;
    return MQ_OK;
}

mq_status mq_join_sum(mq_join *j, int member, float *y, int64_t count, mq_err *err)
{
    const float *parts;
    int set = j->sides[member].now;
    if (j->n_members > 2)
        return sum_slices(j, member, y, count, err);
    MQ_TRY(mq_join_exchange(j, member, &parts, count, err));
    return add_parts(j, member, set, y, 0, count, err);
}
