# Shared by the end-to-end tests of the tools; sourced, not run.  Sets bin, data, work (removed at the end), json_tool.
set -eu
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${MQ_SOURCE:-$(cd "$here/../.." && pwd)}
bin=${MQ_BIN:-$root/build}
data=$root/tests/data
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${MQ_PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || python=
n_failed=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    out: /' "$work/out" | head -20
    sed 's/^/    err: /' "$work/err" | head -20
    n_failed=$((n_failed + 1))
}

# expect STATUS TOOL ARGS: run a tool, keep stdout and stderr in $work/out and $work/err.
expect() {
    local want=$1 got=0
    shift
    "$bin/$1" "${@:2}" >"$work/out" 2>"$work/err" </dev/null || got=$?
    [ "$got" = "$want" ] || fail "$*: exit status $got, expected $want"
}

# The last run's stderr (or stdout) holds a text.
err_has() { grep -qF -- "$1" "$work/err" || fail "stderr lacks '$1'"; }
out_has() { grep -qF -- "$1" "$work/out" || fail "stdout lacks '$1'"; }
out_is() { [ "$(cat "$work/out")" = "$1" ] || fail "stdout is not '$1'"; }
out_is_empty() { [ ! -s "$work/out" ] || fail "stdout is not empty"; }
err_is_empty() { [ ! -s "$work/err" ] || fail "stderr is not empty"; }

# json_is FILE EXPRESSION: a Python expression over r, the parsed object; without Python only the braces are seen.
json_is() {
    if [ -z "$python" ]; then
        [ "$(head -c 1 "$1")" = '{' ] || fail "$1 is no object"
        return 0
    fi
    "$python" - "$1" "$2" <<'P' || fail "$1: not $2"
import json, sys
def once(pairs):
    d = dict(pairs)
    assert len(d) == len(pairs), "a key stands twice"
    return d
def refuse(text):
    raise ValueError(text)
r = json.load(open(sys.argv[1], encoding="utf-8"), object_pairs_hook=once, parse_constant=refuse)
for key in ("schema", "tool", "version", "command", "status", "exit_code", "seconds", "peak_host_bytes", "errors"):
    assert key in r, key
ok = eval(sys.argv[2])
if not ok:
    print({k: v for k, v in r.items() if k not in ("tensors", "records", "weights")})
sys.exit(0 if ok else 1)
P
}

# Change one byte of a file: flip FILE OFFSET.
flip() {
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    # shellcheck disable=SC2059  # the format is the byte
    printf "$(printf '\\%03o' $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

finish() {
    [ "$n_failed" = 0 ] || { echo "$n_failed checks failed"; exit 1; }
    echo "$1: ok"
}
