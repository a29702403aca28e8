/* The account of a layer and its form in the journal: one number after the other, so that a line is written and read by the
 * same loop as that of other layers.  Counts are exact in a double up to 2^53. */
#include "tools/convert_account.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

mq_status mq_account_init(mq_convert_account *a, int64_t n_experts, mq_err *err)
{
    memset(a, 0, sizeof *a);
    a->matrices = calloc((size_t)n_experts * MQ_CALIB_MATRICES + 1, sizeof *a->matrices);
    a->coef_sums = calloc((size_t)n_experts + 1, sizeof *a->coef_sums);
    if (!a->matrices || !a->coef_sums) {
        mq_account_release(a);
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    }
    a->n_experts = n_experts;
    return MQ_OK;
}

void mq_account_release(mq_convert_account *a)
{
    free(a->matrices);
    free(a->coef_sums);
    memset(a, 0, sizeof *a);
}

void mq_account_to_stats(double *stats, const mq_convert_account *a)
{
    for (int64_t i = 0; i < a->n_experts * MQ_CALIB_MATRICES; i++, stats += MQ_STAT_COUNT) {
        const mq_calib_account *m = &a->matrices[i];
        stats[MQ_STAT_ERR2] = m->err2;
        stats[MQ_STAT_NORM2] = m->norm2;
        stats[MQ_STAT_PATH] = m->path;
        stats[MQ_STAT_TOKENS] = (double)m->n_tokens;
        stats[MQ_STAT_COEF] = a->coef_sums[i / MQ_CALIB_MATRICES];
        stats[MQ_STAT_LOSS] = m->loss;
        stats[MQ_STAT_ENERGY] = m->energy;
        stats[MQ_STAT_DAMP] = m->damp;
        stats[MQ_STAT_RETRIES] = m->n_retries;
        stats[MQ_STAT_REFIT] = (double)m->n_refit;
    }
}

static bool is_count(double d, double most)
{
    return d >= 0 && d <= most && d == floor(d);
}

bool mq_account_from_stats(mq_convert_account *a, const double *stats, int64_t n_experts)
{
    const double exact = 9007199254740992.0; /* 2^53 */
    if (mq_account_init(a, n_experts, NULL) != MQ_OK)
        return false;
    for (int64_t i = 0; i < n_experts * MQ_CALIB_MATRICES; i++, stats += MQ_STAT_COUNT) {
        if (!is_count(stats[MQ_STAT_PATH], MQ_CALIB_PATH_COUNT - 1) || !is_count(stats[MQ_STAT_TOKENS], exact) ||
            !is_count(stats[MQ_STAT_RETRIES], 1 << 20) || !is_count(stats[MQ_STAT_REFIT], exact)) {
            mq_account_release(a);
            return false;
        }
        a->matrices[i] = (mq_calib_account){
            .path = (mq_calib_path)stats[MQ_STAT_PATH],
            .n_tokens = (int64_t)stats[MQ_STAT_TOKENS],
            .err2 = stats[MQ_STAT_ERR2],
            .norm2 = stats[MQ_STAT_NORM2],
            .loss = stats[MQ_STAT_LOSS],
            .energy = stats[MQ_STAT_ENERGY],
            .damp = stats[MQ_STAT_DAMP],
            .n_retries = (int)stats[MQ_STAT_RETRIES],
            .n_refit = (int64_t)stats[MQ_STAT_REFIT],
        };
        a->coef_sums[i / MQ_CALIB_MATRICES] = stats[MQ_STAT_COEF];
    }
    return true;
}
