/* zstd (RFC 8878) in one pass, memory to memory.
 *
 * Decompression walks the frames itself, for two reasons: skippable and legacy frames, which the
 * library would take, are refused, and so is a window above the cap, which the library ignores in
 * one-pass use but which a streaming reader of the same file would have to allocate. */
#include "src/codec.h"

#include <stdbool.h>

#include <zstd.h>
#include <zstd_errors.h>

enum { LEVEL_MAX = 19, WINDOW_LOG_MAX = 27, HEADER_MIN = 6 };

int64_t mq_zstd_bound(int64_t n_bytes)
{
    return (int64_t)ZSTD_compressBound((size_t)n_bytes);
}

mq_status mq_zstd_compress(void *dst, int64_t dst_cap, int64_t *out_bytes, const void *src,
                           int64_t n_bytes, int level, mq_err *err)
{
    *out_bytes = 0;
    if (level < 1 || level > LEVEL_MAX)
        return mq_fail(err, MQ_E_BUG, "zstd: level %d, expected 1..%d", level, LEVEL_MAX);
    if (n_bytes < 0 || dst_cap < mq_zstd_bound(n_bytes))
        return mq_fail(err, MQ_E_BUG,
                       "zstd: %lld bytes of room for %lld bytes of input, expected %lld",
                       (long long)dst_cap, (long long)n_bytes, (long long)mq_zstd_bound(n_bytes));
    size_t n = ZSTD_compress(dst, (size_t)dst_cap, src, (size_t)n_bytes, level);
    if (ZSTD_isError(n)) {
        mq_status st = ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? MQ_E_NOMEM : MQ_E_BUG;
        return mq_fail(err, st, "zstd: %s", ZSTD_getErrorName(n));
    }
    *out_bytes = (int64_t)n;
    return MQ_OK;
}

/* Check the head of the frame at src [n_bytes]: a Zstandard frame (not skippable, not legacy) with
 * its content size, window within the cap.
 *
 *   byte 0..3  magic 28 B5 2F FD
 *   byte 4     descriptor; bit 5 set: single segment, the window is the content
 *   byte 5     window, else: size is (1 << (10 + b / 8)) * (8 + b % 8) / 8 */
static mq_status check_head(const uint8_t *src, int64_t n_bytes, int64_t off, mq_err *err)
{
    if (n_bytes < HEADER_MIN)
        return mq_fail(err, MQ_E_FORMAT, "zstd: %lld bytes left at byte %lld, too few for a frame",
                       (long long)n_bytes, (long long)off);
    if (src[0] != 0x28 || src[1] != 0xb5 || src[2] != 0x2f || src[3] != 0xfd)
        return mq_fail(err, MQ_E_FORMAT, "zstd: no frame starts at byte %lld", (long long)off);
    bool single = src[4] >> 5 & 1;
    unsigned long long content = ZSTD_getFrameContentSize(src, (size_t)n_bytes);
    bool known = content != ZSTD_CONTENTSIZE_UNKNOWN && content != ZSTD_CONTENTSIZE_ERROR;
    uint64_t window = !single ? (UINT64_C(1) << (10 + (src[5] >> 3))) / 8 * (8 + (src[5] & 7u))
                      : known ? content
                              : 0;
    if (window > UINT64_C(1) << WINDOW_LOG_MAX)
        return mq_fail(err, MQ_E_FORMAT,
                       "zstd: window of %llu bytes at byte %lld, expected at most %llu",
                       (unsigned long long)window, (long long)off, 1ull << WINDOW_LOG_MAX);
    if (!known)
        return mq_fail(err, MQ_E_FORMAT, "zstd: frame at byte %lld without its content size",
                       (long long)off);
    return MQ_OK;
}

/* Decompress the frame at src + *off into dst + *done and move both on. */
static mq_status one_frame(ZSTD_DCtx *ctx, uint8_t *dst, int64_t plain_bytes, int64_t *done,
                           const uint8_t *src, int64_t n_bytes, int64_t *off, mq_err *err)
{
    MQ_TRY(check_head(src + *off, n_bytes - *off, *off, err));
    size_t frame = ZSTD_findFrameCompressedSize(src + *off, (size_t)(n_bytes - *off));
    if (ZSTD_isError(frame))
        return mq_fail(err, MQ_E_FORMAT, "zstd: frame at byte %lld: %s", (long long)*off,
                       ZSTD_getErrorName(frame));
    /* dst may be NULL when nothing is expected. */
    uint8_t *to = dst ? dst + *done : NULL;
    size_t n = ZSTD_decompressDCtx(ctx, to, (size_t)(plain_bytes - *done), src + *off, frame);
    if (ZSTD_isError(n)) {
        if (ZSTD_getErrorCode(n) == ZSTD_error_dstSize_tooSmall)
            return mq_fail(
                err, MQ_E_FORMAT,
                "zstd: frame at byte %lld holds more than the expected %lld bytes in all",
                (long long)*off, (long long)plain_bytes);
        mq_status st =
            ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? MQ_E_NOMEM : MQ_E_FORMAT;
        return mq_fail(err, st, "zstd: frame at byte %lld: %s", (long long)*off,
                       ZSTD_getErrorName(n));
    }
    *done += (int64_t)n;
    *off += (int64_t)frame;
    return MQ_OK;
}

mq_status mq_zstd_decompress(void *dst, int64_t plain_bytes, const void *src, int64_t n_bytes,
                             mq_err *err)
{
    if (plain_bytes < 0 || n_bytes <= 0)
        return mq_fail(err, MQ_E_FORMAT, "zstd: %lld bytes for %lld plain ones, expected a frame",
                       (long long)n_bytes, (long long)plain_bytes);
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    if (!ctx)
        return mq_fail(err, MQ_E_NOMEM, "zstd: out of memory");
    int64_t done = 0, off = 0;
    mq_status st = MQ_OK;
    while (st == MQ_OK && off < n_bytes)
        st = one_frame(ctx, dst, plain_bytes, &done, src, n_bytes, &off, err);
    ZSTD_freeDCtx(ctx);
    if (st == MQ_OK && done != plain_bytes)
        return mq_fail(err, MQ_E_FORMAT, "zstd: %lld bytes after decompression, expected %lld",
                       (long long)done, (long long)plain_bytes);
    return st;
}

/* ---- In pieces ---- */

static mq_status stream_fail(size_t code, int64_t off, mq_err *err)
{
    mq_status st =
        ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation ? MQ_E_NOMEM : MQ_E_FORMAT;
    return mq_fail(err, st, "zstd: frame at byte %lld: %s", (long long)off,
                   ZSTD_getErrorName(code));
}

/* Fill buf as far as the frame in goes; *left is 0 behind its end. */
static mq_status fill_buffer(ZSTD_DCtx *ctx, ZSTD_outBuffer *buf, ZSTD_inBuffer *in, size_t *left,
                             int64_t off, mq_err *err)
{
    while (*left != 0 && buf->pos < buf->size) {
        size_t in_before = in->pos, out_before = buf->pos;
        *left = ZSTD_decompressStream(ctx, buf, in);
        if (ZSTD_isError(*left))
            return stream_fail(*left, off, err);
        if (*left != 0 && in->pos == in_before && buf->pos == out_before)
            return mq_fail(err, MQ_E_FORMAT, "zstd: frame at byte %lld: ends early",
                           (long long)off);
    }
    return MQ_OK;
}

/* The frame at src + *off, all of it, through sink; *done plain bytes so far. */
static mq_status stream_frame(ZSTD_DCtx *ctx, mq_zstd_sink sink, void *sink_ctx, int64_t *done,
                              int64_t plain_bytes, const uint8_t *src, int64_t n_bytes,
                              int64_t *off, mq_err *err)
{
    MQ_TRY(check_head(src + *off, n_bytes - *off, *off, err));
    size_t frame = ZSTD_findFrameCompressedSize(src + *off, (size_t)(n_bytes - *off));
    if (ZSTD_isError(frame))
        return stream_fail(frame, *off, err);
    ZSTD_inBuffer in = {src + *off, frame, 0};
    ZSTD_outBuffer out = {NULL, 0, 0};
    for (size_t left = 1; left != 0;) {
        uint8_t *buf;
        int64_t cap;
        MQ_TRY(sink(sink_ctx, (int64_t)out.pos, &buf, &cap, err));
        out = (ZSTD_outBuffer){buf, (size_t)cap, 0};
        MQ_TRY(fill_buffer(ctx, &out, &in, &left, *off, err));
        *done += (int64_t)out.pos;
        if (*done > plain_bytes)
            return mq_fail(
                err, MQ_E_FORMAT,
                "zstd: frame at byte %lld holds more than the expected %lld bytes in all",
                (long long)*off, (long long)plain_bytes);
    }
    *off += (int64_t)frame;
    return sink(sink_ctx, (int64_t)out.pos, NULL, NULL, err);
}

mq_status mq_zstd_decompress_to(mq_zstd_sink sink, void *ctx, int64_t plain_bytes, const void *src,
                                int64_t n_bytes, mq_err *err)
{
    if (plain_bytes < 0 || n_bytes <= 0)
        return mq_fail(err, MQ_E_FORMAT, "zstd: %lld bytes for %lld plain ones, expected a frame",
                       (long long)n_bytes, (long long)plain_bytes);
    ZSTD_DCtx *z = ZSTD_createDCtx();
    if (!z)
        return mq_fail(err, MQ_E_NOMEM, "zstd: out of memory");
    size_t set = ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    mq_status st = ZSTD_isError(set) ? stream_fail(set, 0, err) : MQ_OK;
    int64_t done = 0, off = 0;
    while (st == MQ_OK && off < n_bytes)
        st = stream_frame(z, sink, ctx, &done, plain_bytes, src, n_bytes, &off, err);
    ZSTD_freeDCtx(z);
    if (st == MQ_OK && done != plain_bytes)
        return mq_fail(err, MQ_E_FORMAT, "zstd: %lld bytes after decompression, expected %lld",
                       (long long)done, (long long)plain_bytes);
    return st;
}

const char *mq_zstd_version(void)
{
    return ZSTD_versionString();
}
