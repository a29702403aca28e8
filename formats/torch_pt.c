/* mask_embedding.pt: the pickle inside the zip, read as data.
 *
 * A pickle is a program for a stack machine that may call anything; this machine knows the opcodes that torch writes for a
 * dict of an integer and a tensor, and its only calls are two it recognizes by name and turns into plain values:
 * OrderedDict() and _rebuild_tensor_v2.  Every other global is refused by name, so nothing is ever run.
 * Values are small tagged structs; a tuple or dict is a range of a pool.  Source: pickletools (protocol 2), torch's
 * serialization format. */
#include "formats/torch_pt.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "formats/torch_zip.h"
#include "src/file.h"

enum { MAX_FILE_BYTES = 64 << 20, MAX_STACK = 64, MAX_MEMO = 256, MAX_POOL = 256, MAX_TEXT = 256 };

typedef enum kind {
    K_NONE,   /* of this enum, not a pickle's None: an empty slot */
    K_MARK, K_INT, K_BOOL, K_TEXT, K_TUPLE, K_DICT,
    K_REBUILD, K_ORDERED_DICT, K_STORAGE_TYPE, /* the globals we know */
    K_STORAGE, K_TENSOR
} kind;

typedef struct value {
    kind k;
    int64_t i;        /* INT, BOOL; STORAGE and TENSOR: elements */
    const char *text; /* TEXT [n]; STORAGE and TENSOR: key of the member below data/ */
    int64_t n;        /* bytes of text; TUPLE: members */
    int first;        /* TUPLE: members in the pool */
    mq_dtype dtype;   /* STORAGE_TYPE, STORAGE, TENSOR */
} value;

typedef struct machine {
    const uint8_t *code;
    int64_t n, pos;
    value stack[MAX_STACK], memo[MAX_MEMO], pool[MAX_POOL];
    int depth, n_pool;
    value id, embedding; /* the two entries of the outer dict */
    mq_err *err;
} machine;

static mq_status bad(const machine *m, const char *what)
{
    return mq_fail(m->err, MQ_E_FORMAT, "data.pkl: byte %lld: %s", (long long)m->pos, what);
}

static mq_status unsupported(const machine *m, const char *what)
{
    return mq_fail(m->err, MQ_E_UNSUPPORTED, "data.pkl: byte %lld: %s", (long long)m->pos, what);
}

static mq_status push(machine *m, value v)
{
    if (m->depth == MAX_STACK)
        return bad(m, "stack overflow");
    m->stack[m->depth++] = v;
    return MQ_OK;
}

static mq_status pop(machine *m, value *v)
{
    if (m->depth == 0 || m->stack[m->depth - 1].k == K_MARK)
        return bad(m, "stack underflow");
    *v = m->stack[--m->depth];
    return MQ_OK;
}

/* n bytes of operand. */
static mq_status take(machine *m, int64_t n, const uint8_t **out)
{
    if (n > m->n - m->pos)
        return bad(m, "the pickle ends inside an operand");
    *out = m->code + m->pos;
    m->pos += n;
    return MQ_OK;
}

static mq_status push_int(machine *m, int n_bytes, bool is_signed)
{
    const uint8_t *p = NULL;
    MQ_TRY(take(m, n_bytes, &p));
    uint32_t u = 0;
    for (int i = 0; i < n_bytes; i++)
        u |= (uint32_t)p[i] << (8 * i);
    value v = {K_INT, is_signed ? (int64_t)(int32_t)u : (int64_t)u, NULL, 0, 0, 0};
    return push(m, v);
}

static mq_status push_text(machine *m)
{
    const uint8_t *p = NULL;
    MQ_TRY(take(m, 4, &p));
    int64_t n = (int64_t)p[0] | (int64_t)p[1] << 8 | (int64_t)p[2] << 16 | (int64_t)p[3] << 24;
    if (n > MAX_TEXT)
        return bad(m, "a string longer than 256 bytes");
    MQ_TRY(take(m, n, &p));
    return push(m, (value){K_TEXT, 0, (const char *)p, n, 0, 0});
}

static mq_status take_line(machine *m, const char **out, int64_t *n)
{
    const uint8_t *start = m->code + m->pos, *end = memchr(start, '\n', (size_t)(m->n - m->pos));
    if (!end || end - start > MAX_TEXT)
        return bad(m, "a global's name does not end");
    *out = (const char *)start;
    *n = end - start;
    m->pos += *n + 1;
    return MQ_OK;
}

static bool is(const char *s, int64_t n, const char *text)
{
    return n == (int64_t)strlen(text) && memcmp(s, text, (size_t)n) == 0;
}

static mq_status push_global(machine *m)
{
    static const struct {
        const char *module, *name;
        kind k;
        mq_dtype dtype;
    } known[] = {{"torch._utils", "_rebuild_tensor_v2", K_REBUILD, 0},
                 {"collections", "OrderedDict", K_ORDERED_DICT, 0},
                 {"torch", "BFloat16Storage", K_STORAGE_TYPE, MQ_DT_BF16},
                 {"torch", "HalfStorage", K_STORAGE_TYPE, MQ_DT_F16},
                 {"torch", "FloatStorage", K_STORAGE_TYPE, MQ_DT_F32}};
    const char *module = "", *name = "";
    int64_t module_bytes = 0, name_bytes = 0;
    MQ_TRY(take_line(m, &module, &module_bytes));
    MQ_TRY(take_line(m, &name, &name_bytes));
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (is(module, module_bytes, known[i].module) && is(name, name_bytes, known[i].name))
            return push(m, (value){known[i].k, 0, NULL, 0, 0, known[i].dtype});
    return mq_fail(m->err, MQ_E_UNSUPPORTED, "data.pkl: byte %lld: global '%.*s.%.*s' is not one of a plain tensor's",
                   (long long)m->pos, (int)module_bytes, module, (int)name_bytes, name);
}

static mq_status make_tuple(machine *m, int n)
{
    if (m->depth < n)
        return bad(m, "stack underflow");
    if (m->n_pool + n > MAX_POOL)
        return bad(m, "too many tuple members");
    value v = {K_TUPLE, 0, NULL, n, m->n_pool, 0};
    for (int i = 0; i < n; i++) {
        m->pool[m->n_pool] = m->stack[m->depth - n + i];
        if (m->pool[m->n_pool++].k == K_MARK)
            return bad(m, "stack underflow");
    }
    m->depth -= n;
    return push(m, v);
}

/* Values above the topmost mark; -1 when there is none. */
static int above_mark(const machine *m)
{
    int i = m->depth - 1;
    while (i >= 0 && m->stack[i].k != K_MARK)
        i--;
    return i < 0 ? -1 : m->depth - 1 - i;
}

static mq_status tuple_from_mark(machine *m)
{
    int n = above_mark(m);
    if (n < 0)
        return bad(m, "no mark on the stack");
    MQ_TRY(make_tuple(m, n));
    m->stack[m->depth - 2] = m->stack[m->depth - 1]; /* the tuple replaces the mark */
    m->depth--;
    return MQ_OK;
}

static const value *member(const machine *m, const value *tuple, int i)
{
    return &m->pool[tuple->first + i];
}

/* ('storage', type, key, 'cpu', elements) -> storage */
static mq_status make_storage(machine *m)
{
    value t = {0};
    MQ_TRY(pop(m, &t));
    if (t.k != K_TUPLE || t.n != 5 || member(m, &t, 0)->k != K_TEXT ||
        !is(member(m, &t, 0)->text, member(m, &t, 0)->n, "storage") || member(m, &t, 1)->k != K_STORAGE_TYPE ||
        member(m, &t, 2)->k != K_TEXT || member(m, &t, 3)->k != K_TEXT || member(m, &t, 4)->k != K_INT)
        return unsupported(m, "a persistent id that is not a tensor's storage");
    const value *key = member(m, &t, 2);
    return push(m, (value){K_STORAGE, member(m, &t, 4)->i, key->text, key->n, 0, member(m, &t, 1)->dtype});
}

/* (storage, offset, size, stride, requires_grad, hooks) -> tensor; only a whole contiguous vector. */
static mq_status rebuild_tensor(machine *m, const value *args)
{
    if (args->n != 6 || member(m, args, 0)->k != K_STORAGE || member(m, args, 1)->k != K_INT ||
        member(m, args, 2)->k != K_TUPLE || member(m, args, 3)->k != K_TUPLE || member(m, args, 4)->k != K_BOOL ||
        member(m, args, 5)->k != K_DICT)
        return bad(m, "arguments of _rebuild_tensor_v2");
    const value *storage = member(m, args, 0), *size = member(m, args, 2), *stride = member(m, args, 3);
    if (size->n != 1 || stride->n != 1 || member(m, size, 0)->k != K_INT || member(m, stride, 0)->k != K_INT ||
        member(m, stride, 0)->i != 1 || member(m, args, 1)->i != 0 || member(m, size, 0)->i != storage->i)
        return unsupported(m, "a tensor that is not one contiguous vector over its whole storage");
    value v = *storage;
    v.k = K_TENSOR;
    return push(m, v);
}

static mq_status reduce(machine *m)
{
    value args = {0}, callee = {0};
    MQ_TRY(pop(m, &args));
    MQ_TRY(pop(m, &callee));
    if (args.k != K_TUPLE)
        return bad(m, "REDUCE without a tuple");
    if (callee.k == K_ORDERED_DICT && args.n == 0)
        return push(m, (value){K_DICT, 0, NULL, 0, 0, 0});
    if (callee.k == K_REBUILD)
        return rebuild_tensor(m, &args);
    return unsupported(m, "REDUCE of something that is not _rebuild_tensor_v2 or an empty OrderedDict");
}

static mq_status set_item(machine *m, const value *key, const value *v)
{
    if (key->k != K_TEXT)
        return unsupported(m, "a key that is not a string");
    value *slot = is(key->text, key->n, "mask_token_id") ? &m->id
                  : is(key->text, key->n, "embedding")   ? &m->embedding
                                                         : NULL;
    if (!slot)
        return mq_fail(m->err, MQ_E_UNSUPPORTED, "data.pkl: key '%.*s', expected mask_token_id and embedding",
                       (int)key->n, key->text);
    if (slot->k != K_NONE)
        return bad(m, "a key twice");
    *slot = *v;
    return MQ_OK;
}

/* n pairs from the top of the stack into the dict below them (below a mark, too, when marked). */
static mq_status set_items(machine *m, int n, bool marked)
{
    int below = m->depth - n - (marked ? 1 : 0);
    if (n < 0 || n % 2 != 0 || below < 1 || m->stack[below - 1].k != K_DICT)
        return bad(m, "SETITEMS without a dict and pairs");
    if (below != 1)
        return unsupported(m, "entries of a dict that is not the outermost");
    for (int i = m->depth - n; i < m->depth; i += 2)
        MQ_TRY(set_item(m, &m->stack[i], &m->stack[i + 1]));
    m->depth = below;
    return MQ_OK;
}

static mq_status memo_put(machine *m, uint32_t at)
{
    if (m->depth == 0 || m->stack[m->depth - 1].k == K_MARK)
        return bad(m, "stack underflow");
    if (at >= MAX_MEMO)
        return bad(m, "memo index above 255");
    m->memo[at] = m->stack[m->depth - 1];
    return MQ_OK;
}

static mq_status memo_get(machine *m, uint32_t at)
{
    if (at >= MAX_MEMO || m->memo[at].k == K_NONE)
        return bad(m, "memo entry that was never set");
    return push(m, m->memo[at]);
}

static mq_status memo_op(machine *m, int n_bytes, bool put)
{
    const uint8_t *p = NULL;
    MQ_TRY(take(m, n_bytes, &p));
    uint32_t at = 0;
    for (int i = 0; i < n_bytes; i++)
        at |= (uint32_t)p[i] << (8 * i);
    return put ? memo_put(m, at) : memo_get(m, at);
}

static mq_status step(machine *m, uint8_t op)
{
    switch (op) {
    case '}': /* EMPTY_DICT */
        return push(m, (value){K_DICT, 0, NULL, 0, 0, 0});
    case ')': /* EMPTY_TUPLE */
        return make_tuple(m, 0);
    case '(': /* MARK */
        return push(m, (value){K_MARK, 0, NULL, 0, 0, 0});
    case 'X': /* BINUNICODE */
        return push_text(m);
    case 'K': /* BININT1 */
        return push_int(m, 1, false);
    case 'M': /* BININT2 */
        return push_int(m, 2, false);
    case 'J': /* BININT */
        return push_int(m, 4, true);
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push(m, (value){K_BOOL, op == 0x88, NULL, 0, 0, 0});
    case 't': /* TUPLE */
        return tuple_from_mark(m);
    case 0x85: /* TUPLE1, 2, 3 */
    case 0x86:
    case 0x87:
        return make_tuple(m, op - 0x84);
    case 'c': /* GLOBAL */
        return push_global(m);
    case 'Q': /* BINPERSID */
        return make_storage(m);
    case 'R': /* REDUCE */
        return reduce(m);
    case 'q': /* BINPUT */
    case 'h': /* BINGET */
        return memo_op(m, 1, op == 'q');
    case 'r': /* LONG_BINPUT */
    case 'j': /* LONG_BINGET */
        return memo_op(m, 4, op == 'r');
    case 's': /* SETITEM */
        return set_items(m, 2, false);
    case 'u': /* SETITEMS */
        return set_items(m, above_mark(m), true);
    default:
        return mq_fail(m->err, MQ_E_UNSUPPORTED, "data.pkl: byte %lld: opcode 0x%02x is not one of a plain tensor's",
                       (long long)(m->pos - 1), op);
    }
}

static mq_status run(machine *m)
{
    if (m->n < 3 || m->code[0] != 0x80 || m->code[1] != 2)
        return bad(m, "does not begin with PROTO 2");
    m->pos = 2;
    while (m->pos < m->n) {
        uint8_t op = m->code[m->pos++];
        if (op != '.') {
            MQ_TRY(step(m, op));
            continue;
        }
        if (m->pos != m->n)
            return bad(m, "bytes behind STOP");
        if (m->depth != 1 || m->stack[0].k != K_DICT)
            return unsupported(m, "the value is not a dict");
        return MQ_OK;
    }
    return bad(m, "the pickle ends without STOP");
}

/* The storage's bytes: member data/KEY. */
static mq_status copy_storage(mq_mask_embedding *out, const mq_zip *zip, const value *t, mq_err *err)
{
    char name[MAX_TEXT + 8] = "data/";
    memcpy(name + 5, t->text, (size_t)t->n);
    name[5 + t->n] = '\0';
    const mq_zip_member *data = mq_zip_find(zip, name);
    if (!data)
        return mq_fail(err, MQ_E_FORMAT, "zip member '%s' is missing", name);
    int64_t bytes;
    if (t->i < 1 || !mq_mul_i64(&bytes, t->i, mq_dtype_bits(t->dtype) / 8) || bytes != data->n_bytes)
        return mq_fail(err, MQ_E_FORMAT, "zip member '%s': %lld bytes, expected %lld elements of %s", name,
                       (long long)data->n_bytes, (long long)t->i, mq_dtype_name(t->dtype));
    out->bytes = malloc((size_t)bytes);
    if (!out->bytes)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld bytes", (long long)bytes);
    memcpy(out->bytes, data->bytes, (size_t)bytes);
    out->dtype = t->dtype;
    out->n = t->i;
    return MQ_OK;
}

static mq_status parse(mq_mask_embedding *out, const mq_zip *zip, machine *m, mq_err *err)
{
    const mq_zip_member *order = mq_zip_find(zip, "byteorder"), *code = mq_zip_find(zip, "data.pkl");
    if (order && !is((const char *)order->bytes, order->n_bytes, "little"))
        return mq_fail(err, MQ_E_UNSUPPORTED, "byteorder is not 'little'");
    if (!code)
        return mq_fail(err, MQ_E_FORMAT, "zip member 'data.pkl' is missing");
    m->code = code->bytes;
    m->n = code->n_bytes;
    m->err = err;
    MQ_TRY(run(m));
    if (m->id.k != K_INT || m->embedding.k != K_TENSOR)
        return mq_fail(err, MQ_E_UNSUPPORTED, "data.pkl: expected {mask_token_id: int, embedding: tensor}");
    if (m->id.i < 0)
        return mq_fail(err, MQ_E_FORMAT, "data.pkl: mask_token_id is negative");
    out->mask_token_id = m->id.i;
    return copy_storage(out, zip, &m->embedding, err);
}

mq_status mq_mask_embedding_parse(mq_mask_embedding *out, const uint8_t *bytes, int64_t n_bytes, const char *name,
                                  mq_err *err)
{
    memset(out, 0, sizeof *out);
    mq_zip *zip = calloc(1, sizeof *zip);
    machine *m = calloc(1, sizeof *m);
    mq_status st = zip && m ? mq_zip_read(zip, bytes, n_bytes, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = parse(out, zip, m, err);
    free(zip);
    free(m);
    return mq_wrap(err, st, "%s", name);
}

mq_status mq_mask_embedding_load(mq_mask_embedding *out, const char *path, mq_err *err)
{
    mq_buf buf = mq_buf_empty();
    memset(out, 0, sizeof *out);
    mq_status st = mq_file_load(&buf, path, MAX_FILE_BYTES, err);
    if (st == MQ_OK)
        st = mq_mask_embedding_parse(out, (const uint8_t *)buf.data, buf.n_bytes, path, err);
    mq_buf_release(&buf);
    return st;
}

void mq_mask_embedding_release(mq_mask_embedding *e)
{
    free(e->bytes);
    memset(e, 0, sizeof *e);
}
