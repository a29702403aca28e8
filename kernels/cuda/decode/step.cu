/* The decode step on a device: the table of its parts. */
#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

/* Entries come with their files. */
static constexpr mq_decode_parts parts_table()
{
    mq_decode_parts t = {};
    t.check_linear = check_linear;
    t.linear = linear;
    t.embed = embed;
    t.norm = norm;
    t.swiglu = swiglu;
    t.check_router = check_router;
    t.router_bytes = router_bytes;
    t.router = router;
    t.check_attention = check_attention;
    t.attention_bytes = attention_bytes;
    t.attention = attention;
    t.check_experts = check_experts;
    t.experts = experts;
    t.experts_bulk = experts_bulk;
    return t;
}
static const mq_decode_parts parts = parts_table();

static constexpr mq_decode_ops ops_table()
{
    mq_decode_ops t = {};
    t.parts = &parts;
    return t;
}

} // namespace decode

const mq_decode_ops decode_ops = decode::ops_table();

} // namespace mq_cuda
