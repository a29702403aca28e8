"""A reader of packed models, written from formats/SHARD.md alone (numbers in comments are its sections).

It shares no code with the C reader, so that a mistake in one of them, or in the text, shows as a difference.  Needs numpy; a
compressed model needs the package zstandard too.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

HEADER_MAGIC = b"MQS\r\n\x1a\n\0"
TRAILER_MAGIC = b"MQSEND\r\n"
SCHEMES = {1: "bf16", 2: "f16", 3: "f32", 4: "fp8_block", 5: "int4", 6: "mxfp4"}
KINDS = ["common", "layer", "head", "mtp", "draft"]


class Damaged(Exception):
    """The bytes break a rule of SHARD.md."""


def need(condition, text):
    if not condition:
        raise Damaged(text)


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(x):
    """Round to nearest, ties to even; finite values."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def e4m3_table():
    out = np.zeros(256, np.float32)
    for c in range(256):
        e, m = (c >> 3) & 15, c & 7
        mag = (1 + m / 8) * 2.0 ** (e - 7) if e else m / 8 * 2.0**-6
        out[c] = -mag if c & 128 else mag
        if c & 127 == 127:
            out[c] = np.nan
    return out


E4M3 = e4m3_table()
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])


def unit_places():
    """5: byte in the unit and shift of each row and column."""
    r, c = np.mgrid[0:16, 0:64]
    p = np.array([0, 2, 1, 3])
    byte = 16 * (4 * (r % 8) + c // 8 % 4) + 4 * (2 * (c // 32) + c // 4 % 2) + p[c % 4]
    return byte, np.where(r < 8, 0, 4)


def decode_units(plain, rows, cols, scheme, group):
    """5: codes [rows, cols] as u and scales [rows, cols / group] as stored bits."""
    width = 128 if scheme == "int4" and group == 128 else 64
    units = width // 64
    n = 2 if group == 32 else 1
    item = 2 if scheme == "int4" else 1
    block = 512 * units + 16 * n * item
    data = np.frombuffer(plain, np.uint8).reshape(rows // 16, cols // width, block)
    byte, shift = unit_places()
    codes = data[:, :, : 512 * units].reshape(rows // 16, cols // width, units, 512)
    u = (codes[..., byte] >> shift) & 15  # tile, block, unit, row, column
    u = u.transpose(0, 3, 1, 2, 4).reshape(rows, cols)
    raw = np.ascontiguousarray(data[:, :, 512 * units :])
    scales = raw.view("<u2") if item == 2 else raw
    r, k = np.mgrid[0:16, 0:n]
    s = scales[..., ((r % 8) * n + k) * 2 + r // 8]  # tile, block, row, group in block
    s = s.transpose(0, 2, 1, 3).reshape(rows, cols // group)
    return u, s


class Record:
    """One index entry and its plain bytes."""

    def __init__(self, entry, name, shard):
        (self.off, self.stored, self.plain_bytes, self.rows, self.cols, self.row0, self.col0, self.seg_rows) = struct.unpack_from(
            "<8Q", entry
        )
        self.name_off, self.name_bytes, scheme, self.codec, self.group, self.row_phase, self.col_phase = struct.unpack_from(
            "<IHBBHBB", entry, 64
        )
        need(entry[76:96] == bytes(20), f"{name}: reserved bytes")
        need(scheme in SCHEMES, f"{name}: scheme {scheme}")
        self.scheme, self.sha256, self.entry, self.name, self.shard = SCHEMES[scheme], entry[96:128], entry, name, shard

    def plain(self):
        data = self.shard.data[self.off : self.off + self.stored]
        if self.codec == 1:
            import zstandard

            out, d = b"", data
            while d:  # one frame after the other
                z = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
                out += z.decompress(d)
                d = z.unused_data
            data = out
        need(len(data) == self.plain_bytes, f"{self.name}: plain bytes")
        need(hashlib.sha256(data).digest() == self.sha256, f"{self.name}: record digest")
        return data

    def fp8(self):
        """7: codes [rows, cols] and scales [segments * S, C]."""
        plain, n = self.plain(), self.rows * self.cols
        start = -(-n // 16) * 16
        need(plain[n:start] == bytes(start - n), f"{self.name}: fill")
        per_segment = -(-(self.row_phase + self.seg_rows) // 128)
        scale_cols = -(-(self.col_phase + self.cols) // 128)
        codes = np.frombuffer(plain, np.uint8, n).reshape(self.rows, self.cols)
        scales = np.frombuffer(plain, "<f4", offset=start).reshape(self.rows // self.seg_rows * per_segment, scale_cols)
        return codes, scales

    def units(self):
        return decode_units(self.plain(), self.rows, self.cols, self.scheme, self.group)

    def stored_values(self):
        """bf16, f16, f32: the values as stored."""
        kind = {"bf16": "<u2", "f16": "<f2", "f32": "<f4"}[self.scheme]
        return np.frombuffer(self.plain(), kind).reshape(self.rows, self.cols)

    def weights(self):
        """4, 6, 7: F32 [rows, cols]."""
        if self.scheme == "bf16":
            return bf16_to_f32(self.stored_values())
        if self.scheme in ("f16", "f32"):
            return self.stored_values().astype(np.float32)
        if self.scheme == "fp8_block":
            codes, scales = self.fp8()
            r = np.arange(self.rows)
            per_segment = -(-(self.row_phase + self.seg_rows) // 128)
            sr = r // self.seg_rows * per_segment + (self.row_phase + r % self.seg_rows) // 128
            sc = (self.col_phase + np.arange(self.cols)) // 128
            return E4M3[codes] * scales[sr[:, None], sc[None, :]]
        u, s = self.units()
        wide = lambda x: np.repeat(x, self.group, axis=1)
        if self.scheme == "int4":
            return (u.astype(np.float32) - 8) * wide(bf16_to_f32(s))
        return E2M1[u] * wide(np.ldexp(np.float32(1), s.astype(np.int32) - 127).astype(np.float32))


class Shard:
    """2, 3: one .mqs file, checked."""

    def __init__(self, path):
        self.data = data = Path(path).read_bytes()
        need(data[:8] == HEADER_MAGIC and data[28:4096] == bytes(4068), f"{path}: header")
        version, kind, self.layer, self.rank, self.n_ranks = struct.unpack_from("<5I", data, 8)
        need(version == 1 and kind < 5, f"{path}: version or kind")
        self.kind = KINDS[kind]
        index_off, index_bytes, n, names_bytes = struct.unpack_from("<QQII", data, len(data) - 64)
        need(data[-8:] == TRAILER_MAGIC, f"{path}: trailer")
        need(index_bytes == 128 * n + names_bytes and index_off + index_bytes + 64 == len(data), f"{path}: index")
        index = data[index_off : index_off + index_bytes]
        need(hashlib.sha256(data[:64] + index).digest() == data[-40:-8], f"{path}: index digest")
        names, at, next_off = index[128 * n :], 0, 4096
        self.records = []
        for i in range(n):
            entry = index[128 * i : 128 * i + 128]
            length = struct.unpack_from("<H", entry, 68)[0]
            record = Record(entry, names[at : at + length].decode("ascii"), self)
            need(record.name_off == at and record.off == next_off, f"{record.name}: place")
            end = record.off + record.stored
            next_off = -(-end // 4096) * 4096
            need(data[end:next_off] == bytes(next_off - end), f"{record.name}: padding")
            at += length
            self.records.append(record)
        need(at == names_bytes and next_off == index_off, f"{path}: names or gap")
        self.by_name = {r.name: r for r in self.records}

    def content(self):
        """10."""
        h = hashlib.sha256(self.data[:64])
        for r in self.records:
            e = bytearray(r.entry)
            e[0:16] = bytes(16)
            e[71] = 0
            h.update(bytes(e) + r.name.encode())
        return h.digest()


def sha256_file(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Packed:
    """1, 11: a packed model's folder, every digest checked."""

    def __init__(self, folder):
        folder = Path(folder)
        text = (folder / "manifest.json").read_bytes()
        self.manifest = m = json.loads(text)
        tail = b',\n  "digest": "' + m["digest"].encode() + b'"\n}\n'
        need(text.endswith(tail), "manifest: end")
        need(hashlib.sha256(text[: -len(tail)]).hexdigest() == m["digest"], "manifest: digest")
        need(m["format"] == "mimo-packed" and m["version"] == 1, "manifest: version")
        listed = {"manifest.json"}
        for f in m["extra"]:
            listed.add(f["name"])
            need(sha256_file(folder / f["name"]) == f["sha256"], f["name"])
            need((folder / f["name"]).stat().st_size == f["bytes"], f["name"])
        self.shards, contents = [], b""
        for f in m["shards"]:
            listed.add(f["name"])
            need(sha256_file(folder / f["name"]) == f["sha256"], f["name"])
            s = Shard(folder / f["name"])
            need(s.content().hex() == f["content"], f["name"] + ": content")
            need(sum(r.plain_bytes for r in s.records) == f["plain_bytes"], f["name"] + ": plain bytes")
            need(len(s.data) == f["bytes"], f["name"] + ": bytes")
            contents += s.content()
            self.shards.append(s)
        need(hashlib.sha256(contents).hexdigest() == m["content"], "manifest: content")
        present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        need(present == listed, f"files {present ^ listed}")
        self.config = json.loads((folder / "config.json").read_text())

    def slices(self):
        """Name to its records, in rank order."""
        out = {}
        for s in self.shards:
            for r in s.records:
                out.setdefault(r.name, []).append(r)
        return out
