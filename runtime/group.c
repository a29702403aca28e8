/* A mutex and two conditions: one for runs that begin and end, one for members that wait for each other.  A run is known
 * by its number, a meeting of members by its number too, so nobody can mistake an old one for a new one. */
#include "runtime/group.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct member {
    mq_group *group;
    int index;
    pthread_t thread;
    mq_status status;
    mq_err err;
} member;

struct mq_group {
    int n_members, n_threads; /* threads: members but the first, as many as were made */
    member *members;
    pthread_mutex_t lock;
    pthread_cond_t run, meeting;
    uint64_t n_runs, n_meetings; /* so far */
    int n_running, n_waiting;
    bool failed, closing;
    mq_group_fn fn;
    void *ctx;
};

/* One member's share of the run under way. */
static void take_part(mq_group *g, member *m)
{
    m->status = g->fn(g->ctx, m->index, &m->err);
    pthread_mutex_lock(&g->lock);
    g->n_running--;
    /* Whoever waits for one that has ended would wait for ever. */
    if (m->status != MQ_OK || g->n_waiting > 0)
        g->failed = true;
    pthread_cond_broadcast(&g->meeting);
    pthread_cond_broadcast(&g->run);
    pthread_mutex_unlock(&g->lock);
}

static void *serve(void *arg)
{
    member *m = arg;
    mq_group *g = m->group;
    for (uint64_t seen = 0;;) {
        pthread_mutex_lock(&g->lock);
        while (g->n_runs == seen && !g->closing)
            pthread_cond_wait(&g->run, &g->lock);
        bool closing = g->closing;
        seen = g->n_runs;
        pthread_mutex_unlock(&g->lock);
        if (closing)
            return NULL;
        take_part(g, m);
    }
}

mq_status mq_group_create(mq_group **out, int n_members, mq_err *err)
{
    assert(n_members >= 1);
    *out = NULL;
    mq_group *g = calloc(1, sizeof *g);
    member *members = calloc((size_t)n_members, sizeof *members);
    if (!g || !members) {
        free(g);
        free(members);
        return mq_fail(err, MQ_E_NOMEM, "a group of %d threads: out of memory", n_members);
    }
    g->n_members = n_members;
    g->members = members;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->run, NULL);
    pthread_cond_init(&g->meeting, NULL);
    for (int i = 0; i < n_members; i++) {
        members[i].group = g;
        members[i].index = i;
    }
    for (; g->n_threads < n_members - 1; g->n_threads++) {
        member *m = &members[g->n_threads + 1];
        if (pthread_create(&m->thread, NULL, serve, m) != 0) {
            mq_group_free(g);
            return mq_fail(err, MQ_E_NOMEM, "a group of %d threads: one could not be made", n_members);
        }
    }
    *out = g;
    return MQ_OK;
}

void mq_group_free(mq_group *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    g->closing = true;
    pthread_cond_broadcast(&g->run);
    pthread_mutex_unlock(&g->lock);
    for (int i = 0; i < g->n_threads; i++)
        pthread_join(g->members[i + 1].thread, NULL);
    pthread_cond_destroy(&g->run);
    pthread_cond_destroy(&g->meeting);
    pthread_mutex_destroy(&g->lock);
    free(g->members);
    free(g);
}

int mq_group_n_members(const mq_group *g)
{
    return g->n_members;
}

mq_status mq_group_run(mq_group *g, mq_group_fn fn, void *ctx, mq_err *err)
{
    pthread_mutex_lock(&g->lock);
    g->fn = fn;
    g->ctx = ctx;
    g->failed = false;
    g->n_running = g->n_members;
    g->n_runs++;
    pthread_cond_broadcast(&g->run);
    pthread_mutex_unlock(&g->lock);
    take_part(g, &g->members[0]);
    pthread_mutex_lock(&g->lock);
    while (g->n_running > 0)
        pthread_cond_wait(&g->run, &g->lock);
    pthread_mutex_unlock(&g->lock);

    const member *failed = NULL;
    for (int i = 0; i < g->n_members; i++) {
        const member *m = &g->members[i];
        if (m->status != MQ_OK && (!failed || (failed->status == MQ_E_STOPPED && m->status != MQ_E_STOPPED)))
            failed = m;
    }
    return failed ? mq_fail(err, failed->status, "%s", failed->err.text) : MQ_OK;
}

mq_status mq_group_wait(mq_group *g, mq_err *err)
{
    pthread_mutex_lock(&g->lock);
    uint64_t mine = g->n_meetings;
    if (++g->n_waiting == g->n_members) {
        g->n_waiting = 0;
        g->n_meetings++;
        pthread_cond_broadcast(&g->meeting);
    } else if (g->n_running < g->n_members) {
        g->failed = true;
    }
    while (g->n_meetings == mine && !g->failed)
        pthread_cond_wait(&g->meeting, &g->lock);
    bool met = g->n_meetings != mine;
    if (!met)
        g->n_waiting--;
    pthread_cond_broadcast(&g->meeting); /* failed may have been set here */
    pthread_mutex_unlock(&g->lock);
    return met ? MQ_OK : mq_fail(err, MQ_E_STOPPED, "another device failed");
}
