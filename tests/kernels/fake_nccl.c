/* As much of NCCL as kernels/cuda/nccl.cu calls, for devices of the emulator, whose memory is the host's: a gather is a meeting
 * of threads between two copies.  Built as a library that test_cuda_exchange names. */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8, SUCCESS = 0, REMOTE_ERROR = 6, FLOAT32 = 7 };

typedef struct group {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n, n_comms, n_inside, n_waiting;
    unsigned meeting;
    bool aborted;
    const void *send[MOST];
} group;

typedef struct comm {
    group *g;
    int rank;
} comm;

int ncclGetVersion(int *version);
const char *ncclGetErrorString(int result);
int ncclCommInitAll(comm **comms, int n, const int *devices);
int ncclAllGather(const void *send, void *receive, size_t count, int type, comm *c, void *stream);
int ncclCommDestroy(comm *c);
int ncclCommAbort(comm *c);

int ncclGetVersion(int *version)
{
    *version = 22809;
    return SUCCESS;
}

const char *ncclGetErrorString(int result)
{
    return result == REMOTE_ERROR ? "remote process exited or there was a network error" : "invalid argument";
}

int ncclCommInitAll(comm **comms, int n, const int *devices)
{
    (void)devices;
    group *g = calloc(1, sizeof *g);
    if (!g || n > MOST)
        return 2;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->n = g->n_comms = n;
    for (int i = 0; i < n; i++) {
        comms[i] = malloc(sizeof *comms[i]);
        if (!comms[i])
            abort();
        *comms[i] = (comm){g, i};
    }
    return SUCCESS;
}

/* Until all have come, or one has gone; lock is held. */
static void meet(group *g)
{
    unsigned mine = g->meeting;
    if (++g->n_waiting == g->n) {
        g->n_waiting = 0;
        g->meeting++;
        pthread_cond_broadcast(&g->changed);
    }
    while (mine == g->meeting && !g->aborted)
        pthread_cond_wait(&g->changed, &g->lock);
}

int ncclAllGather(const void *send, void *receive, size_t count, int type, comm *c, void *stream)
{
    group *g = c->g;
    (void)stream;
    if (type != FLOAT32)
        return 4;
    pthread_mutex_lock(&g->lock);
    g->n_inside++;
    g->send[c->rank] = send;
    meet(g);
    for (int i = 0; i < g->n && !g->aborted; i++)
        memmove((char *)receive + (size_t)i * count * 4, g->send[i], count * 4);
    if (!g->aborted)
        meet(g); /* nobody changes what others still copy */
    g->n_inside--;
    int result = g->aborted ? REMOTE_ERROR : SUCCESS;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    return result;
}

int ncclCommDestroy(comm *c)
{
    group *g = c->g;
    free(c);
    pthread_mutex_lock(&g->lock);
    bool last = --g->n_comms == 0;
    pthread_mutex_unlock(&g->lock);
    if (last) {
        pthread_mutex_destroy(&g->lock);
        pthread_cond_destroy(&g->changed);
        free(g);
    }
    return SUCCESS;
}

int ncclCommAbort(comm *c)
{
    group *g = c->g;
    pthread_mutex_lock(&g->lock);
    g->aborted = true;
    pthread_cond_broadcast(&g->changed);
    while (g->n_inside)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return ncclCommDestroy(c);
}
