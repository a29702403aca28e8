#!/usr/bin/env bash
# mimo-quantize from outside: the same bytes whatever the threads, restarts and memory limits; kill -9 at random points, signals, a
# full disk; exit statuses, stdout and stderr, JSON.   MQ_KILLS sets the number of kills (default 100).
set -u
bin=${MQ_BIN:?}/mimo-quantize
maker=$MQ_BIN/tests/make-checkpoint
data=${MQ_SOURCE:?}/tests/data
work=$(mktemp -d "${TMPDIR:-/tmp}/mq-quantize.XXXXXX")
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
fails=0

fail() { echo "FAILED: $*"; fails=$((fails + 1)); }

# digest DIR: one hash of all names and contents
digest() { (cd "$1" && find . -type f | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum); }

# expect STATUS TEXT ARGS...: the exit status, and text on stderr
expect() {
    local status=$1 text=$2
    shift 2
    "$bin" "$@" >out.txt 2>err.txt
    local got=$?
    [ $got = "$status" ] || fail "exit $got, expected $status: $* ($(tail -n 1 err.txt))"
    [ -z "$text" ] || grep -qF -- "$text" err.txt || fail "stderr lacks '$text': $* ($(tail -n 1 err.txt))"
}

# ---- usage
expect 2 "usage" "$data/nano"
expect 2 "unknown option" --frobnicate "$data/nano" o
expect 2 "--group 48: expected 32, 64 or 128" --method search --group 48 "$data/nano" o
expect 2 "the largest that works is 1" --method search --group 128 --ranks 2 "$data/nano" o
expect 2 "--experts mxfp4: not built yet" --method search --experts mxfp4 "$data/nano" o
expect 2 "--format compressed-tensors: not built yet" --method search --format compressed-tensors "$data/nano" o
expect 2 "--compress zstd:20" --method search --compress zstd:20 "$data/nano" o
expect 2 "--compress zstd:+3" --method search --compress zstd:+3 "$data/nano" o
expect 2 "exclude each other" --method search --resume --overwrite "$data/nano" o
expect 2 "--rehash goes with --resume" --method search --rehash "$data/nano" o
expect 4 "" --method search /nonexistent o
expect 5 "this model needs" --method search --memory 1M "$data/nano" o
# Known before any work: a file too large to be carried along, a drafter that cannot be reached.
cp -r "$data/nano" odd && truncate -s 300M odd/tokenizer.json
expect 3 "tokenizer.json: 314572800 bytes, expected at most" --method search odd o
cp "$data/nano/tokenizer.json" odd/ && rm -r odd/dflash && ln -s ../nowhere odd/dflash
expect 3 "odd/dflash: exists and is not a folder" --method search odd o
rm -rf odd
"$maker" --preset nano --layers 2 --hidden 96 odd >/dev/null || fail "make-checkpoint"
expect 3 "odd/config.json: 1 ranks: hidden_size 96 is not a multiple of 64" --method search odd o
expect 2 "no number of ranks works for this model" --method search --ranks 2 odd o
rm -rf odd
[ -e o ] && fail "a refused run left its folder"
"$bin" --help >out.txt 2>err.txt || fail "--help"
[ -s out.txt ] && [ ! -s err.txt ] || fail "--help goes to stdout"

# ---- dry run
expect 0 "" --method search --dry-run "$data/nano" o
grep -q "nothing was written" out.txt && grep -q "int4 g64" out.txt || fail "the dry run's table"
[ -e o ] && fail "a dry run wrote something"
dry=$("$bin" --method search --quiet --dry-run --json - "$data/nano" o | grep '"bytes_out"' | tr -dc 0-9)
"$bin" --method search --quiet "$data/nano" o >out.txt 2>err.txt || fail "nano"
[ -s err.txt ] && fail "--quiet is not quiet: $(cat err.txt)"
grep -q "down" out.txt || fail "no result on stdout"
real=$(cat o/*.mqs | wc -c)
[ "$dry" = "$real" ] || fail "dry run says $dry bytes, $real were written"

# Without streams nothing is printed into a file that took their number.
want=$(digest o)
rm -rf o
"$bin" --method search "$data/nano" o <&- >&- 2>&-
got=$?
[ $got = 4 ] && [ "$(digest o)" = "$want" ] || fail "closed streams: exit $got, or other bytes"

# ---- other people's files, and JSON on failure
expect 6 "--overwrite begins anew" --method search "$data/nano" o
expect 0 "" --method search --resume "$data/nano" o
grep -q "already complete" out.txt || fail "a finished model is not recognized"
expect 6 "compress was none, now zstd:3" --method search --resume --compress zstd "$data/nano" o
expect 6 "another checkpoint" --method search --resume "$data/nano-fp8" o
"$bin" --method search --json j.json "$data/nano" o 2>/dev/null >&2
grep -q '"exit_code": 6' j.json && grep -q '"code": "exists"' j.json || fail "JSON of a failure"
"$bin" --method search --json - --overwrite "$data/nano" o >j.json 2>/dev/null || fail "--overwrite"
for key in bytes_in bytes_out seconds params_per_s peak_host_bytes method group ranks files content rel_rms_error; do
    grep -q "\"$key\"" j.json || fail "JSON lacks $key"
done
# What is not ours stays: a folder behind a link, the model that --json would have written into.
expect 2 "lies in o; give a place outside" --method search --json o/manifest.json --overwrite "$data/nano" o
expect 4 "--json nowhere/j: No such file" --method search --json nowhere/j --overwrite "$data/nano" o
mkdir behind && mv o/dflash/config.json behind && rmdir o/dflash && ln -s ../behind o/dflash
expect 6 "o/dflash: is not a folder of a packed model" --method search --overwrite "$data/nano" o
[ -e behind/config.json ] || fail "a file behind a link was removed"
rm -rf o behind
mkdir foreign && echo mine >foreign/notes.txt
expect 6 "no packed model" --method search "$data/nano" foreign
expect 6 "no packed model" --method search --overwrite "$data/nano" foreign
[ "$(cat foreign/notes.txt)" = mine ] || fail "a foreign file was touched"

# ---- the same bytes: threads, twice, another place, little memory
for model in nano nano-fp8 nano-mxfp4; do
    want=
    for threads in 1 2 8 1 2 8; do
        rm -rf o
        "$bin" --method search --quiet --compress zstd --threads $threads "$data/$model" o >/dev/null || fail "$model"
        got=$(digest o)
        [ "${want:=$got}" = "$got" ] || fail "$model: other bytes with $threads threads"
    done
    rm -rf moved o
    cp -rL "$data/$model" moved
    # A notice is part of the report, so it must not hold the path either.
    sed -i 's/^{/{"made_up_key": 1,/' moved/config.json
    rm -rf o
    "$bin" --method search --compress zstd moved o >/dev/null 2>err.txt || fail "$model with an unknown key"
    grep -q made_up_key err.txt && grep -q made_up_key o/report.json || fail "an unknown key is not told"
    want=$(digest o)
    rm -rf o
    (cd moved && "$bin" --method search --quiet --compress zstd --memory 400M . ../o >/dev/null) || fail "$model elsewhere"
    [ "$(digest o)" = "$want" ] || fail "$model: other bytes from another place"
done

# ---- interrupted runs.  A generated model takes long enough to be hit at every stage.
"$maker" --preset nano --layers 8 --experts 48 --hidden 256 --moe-intermediate 256 --tokenizer "$data/nano" gen >/dev/null ||
    fail "make-checkpoint"
run=("$bin" --quiet --method rtn --group 32 --compress zstd gen)
start=$(date +%s%N)
"${run[@]}" whole >/dev/null || fail "generated model"
took_us=$((($(date +%s%N) - start) / 1000))
want=$(digest whole)

# Kill after a random part of a whole run's time.  A run that ended before its kill must be complete and right; so must, every
# fifth time, one that is left to itself after a kill.
killed=0
runs=0
kills=${MQ_KILLS:-100}
RANDOM=20
while ((killed < kills && runs < 4 * kills)); do
    runs=$((runs + 1))
    "${run[@]}" cut --resume >/dev/null 2>&1 &
    pid=$!
    us=$(((RANDOM * 32768 + RANDOM) % took_us))
    sleep "$(printf '%d.%06d' $((us / 1000000)) $((us % 1000000)))"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    got=$?
    [ $got = 137 ] && killed=$((killed + 1))
    [ $got = 137 ] || [ $got = 0 ] || fail "resume after kill $killed: exit $got"
    [ $got = 137 ] && ((killed % 5)) && continue
    "${run[@]}" cut --resume >/dev/null 2>&1 || fail "resume after kill $killed: exit $?"
    [ "$(digest cut)" = "$want" ] || fail "other bytes after kill $killed"
    rm -rf cut
done
echo "killed $killed of $runs runs (a whole run takes $((took_us / 1000)) ms)"
[ $killed = "$kills" ] || fail "only $killed kills hit a run"

# Each state a crash can leave at the edges of the journal's life.
rm -rf cut && mkdir cut && : >cut/.mimo-quantize.journal.partial
expect 6 "an unfinished run" --method search gen cut
"${run[@]}" --resume cut >/dev/null 2>&1 && [ "$(digest cut)" = "$want" ] || fail "a journal that was never whole"
rm -rf cut && mkdir cut && printf '{"journal":"mimo' >cut/.mimo-quantize.journal
"${run[@]}" --resume cut >/dev/null 2>&1 && [ "$(digest cut)" = "$want" ] || fail "a journal cut in its first line"

# ---- SIGTERM: exit 143, resumable, nothing partial is left
rm -rf cut
"${run[@]}" cut >/dev/null 2>err.txt &
pid=$!
for ((i = 0; i < 2000; i++)); do
    compgen -G "cut/layer-00[1-9]*" >/dev/null && break
    sleep 0.002
done
kill -TERM $pid
wait $pid
got=$?
[ $got = 143 ] || fail "SIGTERM: exit $got"
grep -q "stopped" err.txt || fail "SIGTERM: $(cat err.txt)"
compgen -G "cut/*.partial" >/dev/null && fail "SIGTERM left partial files"
cp cut/.mimo-quantize.journal journal.keep
expect 6 "an unfinished run" --method search gen cut
expect 6 "group was 32, now 64" --resume --method rtn --compress zstd gen cut
expect 6 "method was \"rtn\", now \"search\"" --method search --resume --group 32 --compress zstd gen cut

# A damaged, a missing and an unjournalled file; a changed source.
first=$(ls cut/layer-*.mqs | head -n 1)
printf X | dd of="$first" bs=1 seek=5000 conv=notrunc 2>/dev/null
rm -f cut/common.mqs
echo junk >cut/draft-rank-00-of-08.mqs
touch -d '2001-01-01' cut/draft-rank-00-of-08.mqs
cp -p gen/config.json config.keep
touch gen/config.json
expect 6 "mtime_ns of 'config.json'" --resume --method rtn --group 32 --compress zstd gen cut
cp -p config.keep gen/config.json
"${run[@]}" --resume --rehash cut >/dev/null 2>err.txt || fail "resume after damage: $(cat err.txt)"
grep -q "damaged or missing" err.txt || fail "damage was not noticed"
[ "$(digest cut)" = "$want" ] || fail "other bytes after damage"

# Killed between the manifest and the end of the journal: both are there.
cp journal.keep cut/.mimo-quantize.journal
"${run[@]}" --resume cut >/dev/null 2>&1 && [ "$(digest cut)" = "$want" ] || fail "a journal beside a manifest"

# --overwrite cut before it removed anything: the new journal beside all old files
head -n 1 journal.keep >cut/.mimo-quantize.journal
"${run[@]}" --resume cut >/dev/null 2>&1 && [ "$(digest cut)" = "$want" ] || fail "a new journal beside old files"

# ---- two runs, one folder: the lock is held here by another process
rm -rf cut && mkdir cut
if command -v flock >/dev/null; then
    exec 9<cut
    flock -n 9
    expect 6 "another mimo-quantize is writing here" --method search gen cut
    exec 9<&-
fi

# ---- no space: a file size limit, and a small tmpfs where that can be mounted
rm -rf cut
(ulimit -f 300 && "${run[@]}" cut >/dev/null 2>err.txt)
got=$?
[ $got = 4 ] || fail "file size limit: exit $got ($(cat err.txt))"
"${run[@]}" --resume cut >/dev/null && [ "$(digest cut)" = "$want" ] || fail "resume after a file size limit"
mkdir small
if mount -t tmpfs -o size=80m tmpfs small 2>/dev/null; then
    head -c 70M /dev/zero >small/ballast
    expect 4 "not enough space" --method search gen small/cut
    # Space vanishes while the run writes; a run that was faster gets another try.
    for ((i = 0; i < 5; i++)); do
        rm -rf small/*
        "${run[@]}" small/cut >/dev/null 2>err.txt &
        pid=$!
        for ((k = 0; k < 2000; k++)); do
            compgen -G "small/cut/layer-001*" >/dev/null && break
            sleep 0.002
        done
        head -c 100M /dev/zero >small/ballast 2>/dev/null
        wait $pid
        got=$?
        [ $got = 0 ] || break
    done
    [ $got = 4 ] && grep -q "No space left" err.txt || fail "full disk: exit $got ($(cat err.txt))"
    rm -f small/ballast
    "${run[@]}" --resume small/cut >/dev/null && [ "$(digest small/cut)" = "$want" ] || fail "resume after a full disk"
    umount small
else
    echo "SKIPPED: tmpfs (not root)"
fi

[ $fails = 0 ] || { echo "$fails checks failed"; exit 1; }
echo "all checks passed"
