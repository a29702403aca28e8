"""The packed nano models, read by shard_reader.py, against their checkpoints: untouched tensors bit for bit, experts within half a
step and equal to a round-to-nearest written here, MXFP4 code for code.

Needs mimo-quantize in $MQ_BIN; without it the test is skipped (exit 77).
"""

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from shard_reader import E2M1, E4M3, Packed, bf16_to_f32, f32_to_bf16  # noqa: E402

ROOT = Path(os.environ.get("MQ_SOURCE", Path(__file__).parents[2]))
TOOL = Path(os.environ.get("MQ_BIN", ROOT / "build")) / "mimo-quantize"
BLOCK = 128


def load_safetensors(path):
    """Own reader: name to (dtype, array of stored bits)."""
    data = path.read_bytes()
    n = struct.unpack_from("<Q", data)[0]
    kinds = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F8_E4M3": "u1", "U8": "u1"}
    out = {}
    for name, t in json.loads(data[8 : 8 + n]).items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            out[name] = np.frombuffer(data[8 + n + a : 8 + n + b], kinds[t["dtype"]]).reshape(t["shape"])
    return out


class Source:
    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = {}
        for f in sorted(folder.glob("model*.safetensors")):
            self.tensors |= load_safetensors(f)
        for name, t in load_safetensors(folder / "dflash/dflash_draft_model.safetensors").items():
            self.tensors["draft." + name] = t
        with zipfile.ZipFile(folder / "dflash/mask_embedding.pt") as z:
            stored = next(n for n in z.namelist() if n.endswith("data/0"))
            self.tensors["draft.mask_embedding"] = np.frombuffer(z.read(stored), "<u2")
        self.fused = self.config.get("attention_projection_layout") == "fused_qkv"

    def is_swa(self, name):
        m = re.match(r"model\.layers\.(\d+)\.", name)
        return not m or self.config["hybrid_layer_pattern"][int(m[1])] == 1

    def qkv_rows(self, name):
        """Stored rows of each logical row of a fused q, k or v, and the stored tensor's name."""
        c = self.config
        swa = "swa_" if self.is_swa(name) else ""
        chunks, nh, nkv = c["num_key_value_heads"], c[swa + "num_attention_heads"], c[swa + "num_key_value_heads"]
        sizes = [nh * c["head_dim"] // chunks, nkv * c["head_dim"] // chunks, nkv * c["v_head_dim"] // chunks]
        which = "qkv".index(re.search(r"\.([qkv])_proj", name)[1])
        off, part, chunk = sum(sizes[:which]), sizes[which], sum(sizes)
        rows = [k * chunk + off + i for k in range(chunks) for i in range(part)]
        return np.array(rows), chunk, re.sub(r"[qkv]_proj", "qkv_proj", name)

    def matrix(self, name):
        """Stored bits [rows, cols] of a logical tensor, and for FP8 the scale of each row and stored column block."""
        if self.fused and not name.startswith("draft.") and re.search(r"self_attn\.[qkv]_proj", name):
            rows, chunk, stored = self.qkv_rows(name)
        else:
            stored, rows, chunk = name, None, None
        t = self.tensors[stored]
        t = t.reshape(1, -1) if t.ndim == 1 else t
        if rows is None:
            rows, chunk = np.arange(len(t)), len(t)
        inv = self.tensors.get(stored + "_scale_inv")
        scales = None if inv is None else inv[rows // chunk * -(-chunk // BLOCK) + rows % chunk // BLOCK]
        return t[rows], scales

    def widened(self, name):
        bits, scales = self.matrix(name)
        if scales is None:
            return bf16_to_f32(bits) if bits.dtype == np.uint16 else bits.astype(np.float32)
        return E4M3[bits] * np.repeat(scales, BLOCK, axis=1)[:, : bits.shape[1]]


def interleave(gate, up):
    """gate_up: 8 rows of gate, 8 of up, and so on."""
    rows, cols = gate.shape
    return np.stack([gate.reshape(-1, 8, cols), up.reshape(-1, 8, cols)], axis=1).reshape(2 * rows, cols)


def round_to_nearest(w, group):
    """kernels/round.h, RTN: u and scale bits."""
    rows, cols = w.shape
    g = w.reshape(rows, cols // group, group)
    absmax = np.abs(g).max(axis=2)
    s = f32_to_bf16(absmax / np.float32(7))
    s = np.where(absmax == 0, 0x3F80, np.maximum(s, 0x0080)).astype(np.uint16)
    q = np.rint(g / bf16_to_f32(s)[..., None])
    return (np.clip(q, -8, 7) + 8).astype(np.uint8).reshape(rows, cols), s


def check_untouched(record, source):
    bits, scales = source.matrix(record.name)
    cut = np.s_[record.row0 : record.row0 + record.rows, record.col0 : record.col0 + record.cols]
    if record.scheme == "fp8_block":
        codes, _ = record.fp8()
        assert np.array_equal(codes, bits[cut]), record.name
        assert np.array_equal(record.weights(), source.widened(record.name)[cut]), record.name
    else:
        assert record.stored_values().tobytes() == np.ascontiguousarray(bits[cut]).tobytes(), record.name


def expert_parts(name):
    base = name.rsplit(".", 2)[0]
    return [f"{base}.gate_proj.weight", f"{base}.up_proj.weight"] if "gate_up" in name else [f"{base}.down_proj.weight"]


def check_int4(record, source):
    parts = [source.widened(n) for n in expert_parts(record.name)]
    full = interleave(*parts) if len(parts) == 2 else parts[0]
    w = full[record.row0 : record.row0 + record.rows, record.col0 : record.col0 + record.cols]
    u, s = record.units()
    step = np.repeat(np.abs(bf16_to_f32(s)), record.group, axis=1)
    # half a step; the scale's own rounding (2^-9 of absmax, 7 steps) may clip the largest weight a little more
    assert (np.abs(record.weights() - w) <= step * (0.5 + 7 * 2.0**-8)).all(), record.name
    expected_u, expected_s = round_to_nearest(np.ascontiguousarray(w), record.group)
    assert np.array_equal(s, expected_s), record.name
    assert np.array_equal(u, expected_u), record.name


def check_mxfp4(record, source):
    codes, scales = [], []
    for n in expert_parts(record.name):
        t = source.tensors[n]
        codes.append(np.stack([t & 15, t >> 4], axis=2).reshape(len(t), -1))
        scales.append(source.tensors[n + "_scale"])
    codes = interleave(*codes) if len(codes) == 2 else codes[0]
    scales = interleave(*scales) if len(scales) == 2 else scales[0]
    u, s = record.units()
    rows = np.s_[record.row0 : record.row0 + record.rows]
    assert np.array_equal(u, codes[rows, record.col0 : record.col0 + record.cols]), record.name
    assert np.array_equal(s, scales[rows, record.col0 // 32 : (record.col0 + record.cols) // 32]), record.name
    w = E2M1[u] * np.exp2(np.repeat(s, 32, axis=1).astype(np.float32) - 127)
    assert np.array_equal(record.weights(), w), record.name


def check_slices(packed, source):
    """8: the ranks' slices cover each tensor; k and v say their head by row0."""
    for name, records in packed.slices().items():
        if ".experts." in name:
            continue
        bits, _ = source.matrix(name)
        seen = np.zeros(bits.shape, np.uint8)
        for r in records:
            seen[r.row0 : r.row0 + r.rows, r.col0 : r.col0 + r.cols] += 1
        assert seen.min() >= 1 and seen.max() == seen.min(), name


def check_model(model, ranks, group):
    folder = ROOT / "tests/data" / model
    source = Source(folder)
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "packed"
        command = [str(TOOL), "--method", "rtn", "--group", str(group), "--ranks", str(ranks), "--quiet", str(folder), str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        packed = Packed(out)
        counts = {}
        for shard in packed.shards:
            for record in shard.records:
                counts[record.scheme] = counts.get(record.scheme, 0) + 1
                check = {"int4": check_int4, "mxfp4": check_mxfp4}.get(record.scheme, check_untouched)
                check(record, source)
        check_slices(packed, source)
    print(f"{model}, {ranks} ranks, group {group}: {counts}")


def main():
    if not TOOL.exists():
        print(f"SKIPPED: {TOOL} is not built")
        return 77
    for model, ranks, group in [
        ("nano", 1, 128),
        ("nano", 2, 64),
        ("nano", 2, 32),
        ("nano-fp8", 1, 64),
        ("nano-fp8", 2, 64),
        ("nano-mxfp4", 2, 64),
    ]:
        check_model(model, ranks, group)
    return 0


if __name__ == "__main__":
    sys.exit(main())
