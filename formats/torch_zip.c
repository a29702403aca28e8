/* A strict reader of the zip files that torch.save writes.
 *
 * Those are plain: stored members, data descriptors behind them, padding in an extra field so that storages are aligned,
 * a zip64 end record that repeats the small one.  Everything said twice (central directory, local header,
 * descriptor) must agree, and members lie one behind the other: no byte of the file has two meanings.
 * Source: APPNOTE 6.3.9 sections 4.3 to 4.5. */
#include "formats/torch_zip.h"

#include <stdbool.h>
#include <string.h>

enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    FLAG_ENCRYPTED = 1,
    FLAG_DESCRIPTOR = 8,
    FLAG_UTF8 = 0x800
};

static uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) | get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* CRC-32 (IEEE 802.3, reflected), bit by bit through a table of 16: the files are small. */
static uint32_t crc32_of(const uint8_t *bytes, int64_t n)
{
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    uint32_t c = 0xffffffffu;
    for (int64_t i = 0; i < n; i++) {
        c = table[(c ^ bytes[i]) & 15] ^ c >> 4;
        c = table[(c ^ bytes[i] >> 4) & 15] ^ c >> 4;
    }
    return ~c;
}

/* The archive while it is read. */
typedef struct reader {
    const uint8_t *bytes;
    int64_t n_bytes;
    int64_t dir_off, dir_bytes; /* central directory */
    int64_t n_entries;
    int64_t next_local; /* where the next member must begin */
    mq_zip *out;
    mq_err *err;
} reader;

/* One entry of the central directory. */
typedef struct entry {
    uint32_t flags, method, crc, name_bytes;
    int64_t n_bytes, local_off;
    const char *name;
} entry;

static mq_status bad(const reader *r, const char *what)
{
    return mq_fail(r->err, MQ_E_FORMAT, "zip: %s", what);
}

static mq_status bad_member(const reader *r, const entry *e, mq_status code, const char *what)
{
    return mq_fail(r->err, code, "zip member '%.*s': %s", (int)(e->name_bytes > 100 ? 100 : e->name_bytes), e->name,
                   what);
}

/* The zip64 end record and its locator, when they stand in front of the end record: same values. */
static mq_status check_end64(const reader *r, int64_t *dir_limit)
{
    int64_t locator = *dir_limit - LOCATOR_BYTES, end64 = locator - END64_BYTES;
    if (locator < 0 || get32(r->bytes + locator) != 0x07064b50)
        return MQ_OK;
    if (end64 < 0 || get32(r->bytes + end64) != 0x06064b50 || get64(r->bytes + locator + 8) != (uint64_t)end64)
        return bad(r, "the zip64 locator does not point at the zip64 end record");
    const uint8_t *p = r->bytes + end64;
    if (get32(r->bytes + locator + 4) != 0 || get32(r->bytes + locator + 16) != 1 || get64(p + 4) != END64_BYTES - 12 ||
        get32(p + 16) != 0 || get32(p + 20) != 0)
        return bad(r, "zip64 end record of an archive in several parts, or with extensions");
    if (get64(p + 24) != (uint64_t)r->n_entries || get64(p + 32) != (uint64_t)r->n_entries ||
        get64(p + 40) != (uint64_t)r->dir_bytes || get64(p + 48) != (uint64_t)r->dir_off)
        return bad(r, "the zip64 end record differs from the end record");
    *dir_limit = end64;
    return MQ_OK;
}

static mq_status read_end(reader *r)
{
    if (r->n_bytes < END_BYTES || get32(r->bytes) != 0x04034b50)
        return bad(r, "not a zip archive (a torch file in the old format, or something else)");
    int64_t end = r->n_bytes - END_BYTES;
    const uint8_t *p = r->bytes + end;
    if (get32(p) != 0x06054b50 || get16(p + 20) != 0)
        return bad(r, "no end record at the end of the file (cut short, or bytes behind it)");
    if (get16(p + 4) != 0 || get16(p + 6) != 0 || get16(p + 8) != get16(p + 10))
        return bad(r, "an archive in several parts");
    r->n_entries = get16(p + 10);
    r->dir_bytes = get32(p + 12);
    r->dir_off = get32(p + 16);
    if (r->n_entries > MQ_ZIP_MAX_MEMBERS)
        return mq_fail(r->err, MQ_E_UNSUPPORTED, "zip: %lld members, expected at most %d", (long long)r->n_entries,
                       MQ_ZIP_MAX_MEMBERS);
    int64_t dir_limit = end;
    MQ_TRY(check_end64(r, &dir_limit));
    if (r->dir_off + r->dir_bytes != dir_limit)
        return bad(r, "the central directory does not end at the end record");
    return MQ_OK;
}

/* Central entry at *off; moves *off behind it. */
static mq_status read_entry(const reader *r, int64_t *off, entry *e)
{
    int64_t limit = r->dir_off + r->dir_bytes;
    const uint8_t *p = r->bytes + *off;
    if (limit - *off < CENTRAL_BYTES || get32(p) != 0x02014b50)
        return bad(r, "central directory cut short or damaged");
    e->flags = get16(p + 8);
    e->method = get16(p + 10);
    e->crc = get32(p + 16);
    e->n_bytes = get32(p + 24);
    e->name_bytes = get16(p + 28);
    e->local_off = get32(p + 42);
    e->name = (const char *)p + CENTRAL_BYTES;
    uint32_t extra = get16(p + 30), comment = get16(p + 32);
    if (limit - *off - CENTRAL_BYTES < (int64_t)e->name_bytes + extra + comment)
        return bad(r, "central directory cut short");
    if (e->name_bytes == 0 || e->name_bytes > MQ_ZIP_MAX_NAME || memchr(e->name, 0, e->name_bytes))
        return bad(r, "a member's name is empty, too long or holds NUL");
    if (e->flags & FLAG_ENCRYPTED)
        return bad_member(r, e, MQ_E_UNSUPPORTED, "encrypted");
    if (e->flags & ~(uint32_t)(FLAG_DESCRIPTOR | FLAG_UTF8))
        return bad_member(r, e, MQ_E_UNSUPPORTED, "unknown flags");
    if (e->method != 0)
        return bad_member(r, e, MQ_E_UNSUPPORTED, "compressed, expected stored");
    if (get32(p + 20) != get32(p + 24))
        return bad_member(r, e, MQ_E_FORMAT, "stored with two different sizes");
    if (comment != 0 || get16(p + 34) != 0)
        return bad_member(r, e, MQ_E_FORMAT, "has a comment or lies in another part");
    *off += CENTRAL_BYTES + (int64_t)e->name_bytes + extra;
    return MQ_OK;
}

/* The descriptor behind the data: crc and sizes, with or without a signature.  Moves *off behind it. */
static mq_status check_descriptor(const reader *r, const entry *e, int64_t *off)
{
    const uint8_t *p = r->bytes + *off;
    int64_t left = r->dir_off - *off;
    if (left >= 16 && get32(p) == 0x08074b50) {
        p += 4;
        *off += 4;
        left -= 4;
    }
    if (left < 12 || get32(p) != e->crc || get32(p + 4) != (uint64_t)e->n_bytes || get32(p + 8) != (uint64_t)e->n_bytes)
        return bad_member(r, e, MQ_E_FORMAT, "the data descriptor differs from the central directory");
    *off += 12;
    return MQ_OK;
}

/* The local header, the data and what follows; *data is where the data begins. */
static mq_status check_local(reader *r, const entry *e, int64_t *data)
{
    if (e->local_off != r->next_local)
        return bad_member(r, e, MQ_E_FORMAT, "does not begin where the one before ends");
    const uint8_t *p = r->bytes + e->local_off;
    int64_t left = r->dir_off - e->local_off;
    if (left < LOCAL_BYTES || get32(p) != 0x04034b50)
        return bad_member(r, e, MQ_E_FORMAT, "no local header where the central directory says");
    int64_t head = LOCAL_BYTES + (int64_t)get16(p + 26) + get16(p + 28);
    if (left < head || left - head < e->n_bytes)
        return bad_member(r, e, MQ_E_FORMAT, "reaches into the central directory");
    if (get16(p + 6) != e->flags || get16(p + 8) != e->method || get16(p + 26) != e->name_bytes ||
        memcmp(p + LOCAL_BYTES, e->name, e->name_bytes) != 0)
        return bad_member(r, e, MQ_E_FORMAT, "the local header differs from the central directory");
    bool later = e->flags & FLAG_DESCRIPTOR; /* then the three may be zero here */
    uint32_t crc = get32(p + 14), packed = get32(p + 18), plain = get32(p + 22);
    bool same = crc == e->crc && packed == e->n_bytes && plain == e->n_bytes;
    if (!same && !(later && crc == 0 && packed == 0 && plain == 0))
        return bad_member(r, e, MQ_E_FORMAT, "sizes or CRC of the local header differ from the central directory");
    *data = e->local_off + head;
    r->next_local = *data + e->n_bytes;
    if (later)
        MQ_TRY(check_descriptor(r, e, &r->next_local));
    if (crc32_of(r->bytes + *data, e->n_bytes) != e->crc)
        return bad_member(r, e, MQ_E_FORMAT, "CRC-32 differs");
    return MQ_OK;
}

/* Keep the member, its name without the archive's root folder, which is the same for all. */
static mq_status keep(reader *r, const entry *e, int64_t data, const char **root, size_t *root_bytes)
{
    const char *slash = memchr(e->name, '/', e->name_bytes);
    if (!slash || slash == e->name)
        return bad_member(r, e, MQ_E_FORMAT, "not inside a folder");
    size_t n = (size_t)(slash - e->name) + 1;
    if (!*root) {
        *root = e->name;
        *root_bytes = n;
    }
    if (n != *root_bytes || memcmp(e->name, *root, n) != 0)
        return bad_member(r, e, MQ_E_FORMAT, "in another folder than the first member");
    mq_zip_member *m = &r->out->members[r->out->n_members];
    memcpy(m->name, e->name + n, e->name_bytes - n);
    m->name[e->name_bytes - n] = '\0';
    m->bytes = r->bytes + data;
    m->n_bytes = e->n_bytes;
    if (mq_zip_find(r->out, m->name))
        return bad_member(r, e, MQ_E_FORMAT, "there twice");
    r->out->n_members++;
    return MQ_OK;
}

mq_status mq_zip_read(mq_zip *out, const uint8_t *bytes, int64_t n_bytes, mq_err *err)
{
    memset(out, 0, sizeof *out);
    reader r = {bytes, n_bytes, 0, 0, 0, 0, out, err};
    MQ_TRY(read_end(&r));
    int64_t off = r.dir_off, data = 0;
    const char *root = NULL;
    size_t root_bytes = 0;
    for (int64_t i = 0; i < r.n_entries; i++) {
        entry e = {0};
        MQ_TRY(read_entry(&r, &off, &e));
        MQ_TRY(check_local(&r, &e, &data));
        MQ_TRY(keep(&r, &e, data, &root, &root_bytes));
    }
    if (off != r.dir_off + r.dir_bytes)
        return bad(&r, "bytes behind the last entry of the central directory");
    if (r.next_local != r.dir_off)
        return bad(&r, "bytes between the last member and the central directory");
    return MQ_OK;
}

const mq_zip_member *mq_zip_find(const mq_zip *z, const char *name)
{
    for (int i = 0; i < z->n_members; i++)
        if (strcmp(z->members[i].name, name) == 0)
            return &z->members[i];
    return NULL;
}
