"""Ids and text against the Hugging Face tokenizers library, id for id.

Needs the PyPI package tokenizers (skipped without it).  The C side is build/tests/tokenize-records.
  eval.txt          whole, with and without added tokens; its ids decode to the text
  random strings    all planes, contractions, white space, CR LF mixes, digits, marks (NFC), emoji, CJK, added tokens
  every code point  alone, between letters, and with marks around it, so that each class and each combining class
                    is seen
  other files       added tokens that are prefixes of each other, normalized ones; a pattern that PCRE2 runs
"""
import copy
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

try:
    from tokenizers import Tokenizer
except ImportError:
    print("SKIPPED: the PyPI package tokenizers is not there")
    sys.exit(77)

SOURCE = os.environ.get("MQ_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
BIN = os.environ.get("MQ_BIN") or os.path.join(SOURCE, "build")
NANO = os.path.join(SOURCE, "tests", "data", "nano", "tokenizer.json")
EVAL = os.path.join(SOURCE, "tests", "data", "text", "eval.txt")
PROGRAM = os.path.join(BIN, "tests", "tokenize-records")


def ask(path, records):
    """Answers to (command, payload) records: bytes, or an Exception for an error text."""
    data = b"".join(c.encode() + struct.pack("<I", len(p)) + p for c, p in records)
    run = subprocess.run([PROGRAM, path], input=data, stdout=subprocess.PIPE, check=True)
    out, at, answers = run.stdout, 0, []
    while at < len(out):
        (n,) = struct.unpack_from("<I", out, at)
        at += 4
        failed = n == 0xFFFFFFFF
        if failed:
            (n,) = struct.unpack_from("<I", out, at)
            at += 4
        part = out[at:at + n]
        at += n
        answers.append(RuntimeError(part.decode()) if failed else part)
    assert len(answers) == len(records), (len(answers), len(records))
    return answers


def ids_of(answer):
    if isinstance(answer, Exception):
        raise answer
    return list(struct.unpack("<%di" % (len(answer) // 4), answer))


def show(text):
    return ascii(text if len(text) < 200 else text[:200] + "...")


def compare(name, path, texts, decode=True):
    """Encode every text both ways; decode the ids both ways.  Returns the number of differences."""
    library = Tokenizer.from_file(path)
    want = [e.ids for e in library.encode_batch(texts, add_special_tokens=False)]
    got = [ids_of(a) for a in ask(path, [("E", t.encode()) for t in texts])]
    bad = [i for i in range(len(texts)) if want[i] != got[i]]
    for i in bad[:5]:
        print(f"{name}: {show(texts[i])}: library {want[i][:40]}, ours {got[i][:40]}")
    n_bad = len(bad)
    if decode:
        for command, skip in (("D", False), ("S", True)):
            records = [(command, struct.pack("<%di" % len(i), *i)) for i in want]
            ours = [a.decode() for a in ask(path, records)]
            theirs = library.decode_batch(want, skip_special_tokens=skip)
            wrong = [i for i in range(len(want)) if ours[i] != theirs[i]]
            for i in wrong[:5]:
                print(f"{name}: decode {want[i][:40]}: library {show(theirs[i])}, ours {show(ours[i])}")
            n_bad += len(wrong)
    print(f"{name}: {len(texts)} texts, {sum(map(len, want))} ids, {n_bad} differences")
    return n_bad


def scalar(rng, low, high):
    while True:
        c = rng.randrange(low, high)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


MARKS = [chr(c) for c in range(0x110000) if unicodedata.combining(chr(c))]
LETTERS = [c for c in map(chr, range(0xC0, 0x2000)) if unicodedata.category(c)[0] == "L"]
COMPOSED = [chr(c) for c in range(0x110000) if unicodedata.decomposition(chr(c)) and not 0xAC00 <= c < 0xD7A4]
HANGUL = [chr(c) for c in list(range(0x1100, 0x1200)) + list(range(0xAC00, 0xAC00 + 3000))]
SPACES = list("    \t\n\r\r\n\v\f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u180e\u200b\ufeff")
WORDS = ["don't", "I'M", "we'RE", "'s", "'S", "'\u017f", "'ll", "'lL", "'ve", "'d", "'x", "''s", "it's'", "def ", "return",
         "x1", "3.14", "  if", "\n\n\n", "\r\n", " \n ", "\t\t", "!!", "??\r\n", " #", "_a", "\u65e5\u672c\u8a9e", "\u00bd", "\u0661\u0662",
         "\u2162", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "e\u0301", "\u0301", "\u00e9", "\u212b",
         "\U0001d15e", "\u0f73", "\u0344", "\ufb01", "\x00", "\x7f"]


def random_text(rng, added):
    n = rng.choice([1, 2, 3, 5, 8, 13, 40])
    kinds = [
        lambda: rng.choice(WORDS),
        lambda: rng.choice(SPACES) * rng.choice([1, 1, 2, 5]),
        lambda: scalar(rng, 0, 0x80),
        lambda: scalar(rng, 0x80, 0x3000),
        lambda: scalar(rng, 0x3000, 0x10000),
        lambda: scalar(rng, 0x10000, 0x20000),
        lambda: scalar(rng, 0x20000, 0x110000),
        lambda: rng.choice(LETTERS) + "".join(rng.choice(MARKS) for _ in range(rng.choice([1, 2, 5]))),
        lambda: "".join(rng.choice(COMPOSED + MARKS) for _ in range(3)),
        lambda: unicodedata.normalize("NFD", rng.choice(COMPOSED)),
        lambda: "".join(rng.choice(HANGUL) for _ in range(3)),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 12))),
        lambda: rng.choice(added),
        lambda: rng.choice(added)[:rng.randrange(1, 9)],
    ]
    few = rng.sample(kinds, rng.choice([1, 2, 4]))
    return "".join(rng.choice(few)() for _ in range(n))


def every_code_point():
    texts = []
    points = list(range(0, 0xD800)) + list(range(0xE000, 0x32400)) + list(range(0xE0000, 0xE0200))
    points += range(0x32400, 0x110000, 97)  # unassigned and private
    for start in range(0, len(points), 64):
        chars = [chr(c) for c in points[start:start + 64]]
        if chars:
            texts.append(" ".join(chars))
            texts.append("".join("a" + c + "b1" + c + "2!" + c + "?" for c in chars))
            texts.append("".join("q\u0301" + c + "\u0327\u0334" + c + "\u0345\u05b0\u0300 " for c in chars))
    return texts


def variant(folder, name, change):
    with open(NANO, encoding="utf-8") as f:
        doc = json.load(f)
    change(doc)
    path = os.path.join(folder, name + ".json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(doc, f, ensure_ascii=name.startswith("ascii"))
    return path


def add_tokens(tokens):
    def change(doc):
        template = doc["added_tokens"][0]
        for content, normalized, special in tokens:
            t = copy.deepcopy(template)
            last = max(a["id"] for a in doc["added_tokens"])
            t.update(id=doc["model"]["vocab"].get(content, last + 1), content=content, normalized=normalized, special=special)
            doc["added_tokens"].append(t)
    return change


def set_pattern(regex):
    def change(doc):
        doc["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
    return change


def string_merges(doc):
    doc["model"]["merges"] = [" ".join(m) for m in doc["model"]["merges"]]


OVERLAPPING = [("<a", False, False), ("<ab", False, True), ("<abc>", False, False), ("abc>", False, True), ("><", False, False),
               ("caf\u00e9", True, False), ("cafe\u0301s", False, True), ("\u00c5", False, False), ("A\u030a\u0301", False, False),
               ("  ", False, False), ("\n", True, False), ("'s", True, False), ("\u65e5", False, True)]
GPT4 = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")


def main():
    rng = random.Random(2)
    n_bad = 0
    with open(EVAL, encoding="utf-8", newline="") as f:
        text = f.read()
    added = [t["content"] for t in json.load(open(NANO, encoding="utf-8"))["added_tokens"]]
    n_bad += compare("eval.txt", NANO, [text])
    n_bad += compare("eval.txt by line", NANO, text.split("\n"))
    plain = ids_of(ask(NANO, [("P", text.replace("<|endoftext|>", "").encode())])[0])
    n_bad += plain != Tokenizer.from_file(NANO).encode(text.replace("<|endoftext|>", "")).ids
    n_bad += compare("random", NANO, [random_text(rng, added) for _ in range(20000)] + ["", " ", "\n"])
    n_bad += compare("every code point", NANO, every_code_point(), decode=False)
    long_runs = [c * n for c in ("a", " ", "\n", "\u0301", "\u65e5", "ab", " \n", "<|im", "=", "e\u0327\u0301") for n in (1000, 30000)]
    n_bad += compare("long runs", NANO, long_runs)
    partial = [[rng.randrange(4096) for _ in range(rng.choice([1, 2, 5, 30]))] for _ in range(5000)]
    library = Tokenizer.from_file(NANO)
    for command, skip in (("D", False), ("S", True)):
        ours = [a.decode() for a in ask(NANO, [(command, struct.pack("<%di" % len(i), *i)) for i in partial])]
        n_bad += sum(a != b for a, b in zip(ours, library.decode_batch(partial, skip_special_tokens=skip)))
    with tempfile.TemporaryDirectory() as folder:
        path = variant(folder, "overlapping", add_tokens(OVERLAPPING))
        pieces = [t[0] for t in OVERLAPPING] + ["<", ">", "a", "b", "c", "e\u0301", "A\u030a", "\u01fa", "\u212b"] + added
        texts = ["".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12))) for _ in range(5000)]
        n_bad += compare("overlapping added tokens", path, texts)
        path = variant(folder, "no_nfc", lambda doc: doc.update(normalizer=None))
        n_bad += compare("no normalizer", path, [random_text(rng, added) for _ in range(2000)])
        path = variant(folder, "ascii_merges", string_merges)
        n_bad += compare("merges as strings", path, [random_text(rng, added) for _ in range(2000)])
        # PCRE2 knows Unicode 14 and U+180E as white space: ASCII and Latin only.
        latin = [chr(c) for c in range(0x250)] + WORDS[:30]
        texts = ["".join(rng.choice(latin) for _ in range(20)) for _ in range(2000)]
        for name, regex in (("gpt4", GPT4), ("empty_matches", r"a*|(?=b)"), ("gaps", r"[aeiou]+"), ("look", r"(?<=a)|x")):
            n_bad += compare("pattern " + name, variant(folder, name, set_pattern(regex)), texts)
    return 1 if n_bad else 0


sys.exit(main())
