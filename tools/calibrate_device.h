/* Between the host's memory and that of the devices that calibrate: rows of the residual stream, weights and codes of experts,
 * arrays that every device needs.  Where a device's memory is the host's (the table "cpu") nothing is copied that need not
 * be, and no memory is taken for it. */
#ifndef MQ_TOOLS_CALIBRATE_DEVICE_H
#define MQ_TOOLS_CALIBRATE_DEVICE_H

#include "calib/hidden.h"
#include "kernels/kernels.h"

bool mq_kernels_on_host(const mq_kernels *k);

/* A device and its way to rows of the host.  One thread. */
typedef struct mq_stage {
    const mq_kernels *k;
    mq_dev *dev;
    bool on_host;
    int64_t n_rows, cols;
    float *rows; /* [n_rows, cols] host; NULL where on_host */
} mq_stage;

/* Rows of cols floats, up to n_rows in one copy.  k and dev are borrowed.  MQ_E_NOMEM. */
mq_status mq_stage_init(mq_stage *s, const mq_kernels *k, mq_dev *dev, int64_t n_rows, int64_t cols, mq_err *err);
void mq_stage_release(mq_stage *s); /* accepts zeros */
int64_t mq_stage_bytes(const mq_kernels *k, int64_t n_rows, int64_t cols); /* of host memory */

/* x [n, cols], the device's memory: from rows row0 .. or index[0 .. n - 1] of h, to rows row0 .. of h (what was queued is done
 * first).  Any n.  Statuses of mq_hidden and of the table. */
mq_status mq_stage_read(mq_stage *s, float *x, const mq_hidden *h, int64_t row0, int64_t n, mq_err *err);
mq_status mq_stage_gather(mq_stage *s, float *x, const mq_hidden *h, const int32_t *index, int64_t n, mq_err *err);
mq_status mq_stage_write(mq_stage *s, mq_hidden *h, const float *x, int64_t row0, int64_t n, mq_err *err);

/* dst [count] of device `to` = src [count] of device `from`; both may be one GPU.  Done on return. */
mq_status mq_floats_across(const mq_kernels *k, mq_dev *to, float *dst, mq_dev *from, const float *src, int64_t count,
                           mq_err *err);

/* Host bytes [n_bytes] to their copy at dst, the device's memory.  On the host nothing is done. */
mq_status mq_bytes_to_device(const mq_stage *s, uint8_t *dst, const uint8_t *src, int64_t n_bytes, mq_err *err);
/* The device's address of what lies at p in host bytes [n_bytes]; others, and on the host all, stay. */
const void *mq_moved_address(const mq_stage *s, const void *p, const uint8_t *host, int64_t n_bytes, const uint8_t *device);

#endif
