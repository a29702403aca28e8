#!/usr/bin/env bash
# Calibrated runs that are cut off: kill -9 at random points, a signal, another machine, a full disk, and memory held to its limit
# with a checkpoint that is larger.  The bytes are always those of an undisturbed run.  MQ_KILLS: number of kills (default 12).
. "$(dirname "${BASH_SOURCE[0]}")/tool_tests.sh"
nano=$data/nano
text=$data/text/eval.txt
export OMP_WAIT_POLICY=passive
cd "$work" || exit 1
: >out && : >err
run=("$bin/mimo-quantize" --quiet --calib "$text" --calib-tokens 8192 --calib-window 512 "$nano")

# digest DIR: one hash of all names and contents
digest() { (cd "$1" && find . -type f | sort | xargs -d '\n' sha256sum | sha256sum); }
# cut_at FILE ARGS: run, and kill it when FILE is there
cut_at() {
    local pid
    "${run[@]}" "${@:2}" cut >/dev/null 2>&1 &
    pid=$!
    until [ -e "cut/$1" ] || ! kill -0 $pid 2>/dev/null; do sleep 0.002; done
    kill -9 $pid 2>/dev/null || fail "the run ended before $1"
    wait $pid 2>/dev/null || true
}

start=$(date +%s%N)
"${run[@]}" whole >/dev/null || fail 'the undisturbed run'
took_us=$((($(date +%s%N) - start) / 1000))
whole_ms=$((took_us / 1000))
want=$(digest whole)

# ---- kill -9 ----
# A run that ended before its kill must be complete and right; so must, every fifth time, one that is left to itself.
killed=0
runs=0
kills=${MQ_KILLS:-12}
RANDOM=7
while ((killed < kills && runs < 8 * kills)); do
    runs=$((runs + 1))
    began=$(date +%s%N)
    "${run[@]}" --resume cut >/dev/null 2>&1 &
    pid=$!
    us=$(((RANDOM * 32768 + RANDOM) % took_us))
    sleep "$(printf '%d.%06d' $((us / 1000000)) $((us % 1000000)))"
    kill -9 $pid 2>/dev/null || true
    got=0
    wait $pid 2>/dev/null || got=$?
    [ $got = 137 ] && killed=$((killed + 1))
    # It ended by itself: the machine has become faster, or had little left to do; later kills come sooner.
    [ $got = 137 ] || took_us=$(((took_us + ($(date +%s%N) - began) / 1000) / 3 + 100000))
    [ $got = 137 ] || [ $got = 0 ] || fail "resume after kill $killed: exit $got"
    [ $got = 137 ] && ((killed % 5)) && ((killed < kills)) && continue
    "${run[@]}" --resume cut >/dev/null 2>err || fail "resume after kill $killed"
    [ "$(digest cut)" = "$want" ] || fail "other bytes after kill $killed"
    rm -rf cut
done
echo "killed $killed of $runs runs (a whole run took $whole_ms ms)"
[ $killed = "$kills" ] || fail "only $killed kills hit a run"

# ---- another machine, another text ----
rm -rf cut
cut_at scratch-hidden-002
cp cut/.mimo-quantize.journal journal
for change in 'instruction set:neon' 'matrix library:another 1.0'; do
    sed -i "1s/\"${change%:*}\":\"[^\"]*\"/\"${change%:*}\":\"${change#*:}\"/" cut/.mimo-quantize.journal
    expect 6 mimo-quantize --quiet --resume --calib "$text" --calib-tokens 8192 --calib-window 512 "$nano" cut
    err_has "${change%:*} was \"${change#*:}\", now"
    cp journal cut/.mimo-quantize.journal
done
expect 6 mimo-quantize --quiet --resume --calib "$text" --calib-tokens 4096 --calib-window 512 "$nano" cut
err_has 'calibration text was'
expect 6 mimo-quantize --quiet --resume --method search "$nano" cut
err_has 'method was "gptq", now "search"'
expect 6 mimo-quantize --quiet --calib "$text" --calib-tokens 8192 --calib-window 512 "$nano" cut
err_has 'an unfinished run'
"${run[@]}" --overwrite cut >/dev/null 2>err && [ "$(digest cut)" = "$want" ] || fail '--overwrite of a calibrated run'

# ---- SIGTERM: exit 143, resumable; the stream behind the last finished layer is all the scratch that stays ----
rm -rf cut
"${run[@]}" cut >/dev/null 2>err &
pid=$!
until [ -e cut/scratch-hidden-001 ]; do sleep 0.002; done
kill -TERM $pid
got=0
wait $pid || got=$?
[ $got = 143 ] || fail "SIGTERM: exit $got"
compgen -G 'cut/*.partial' >/dev/null && fail 'SIGTERM left partial files'
"${run[@]}" --resume cut >/dev/null 2>err && [ "$(digest cut)" = "$want" ] || fail 'resume after SIGTERM'

# ---- memory: a checkpoint larger than the limit, the stream in files ----
# Not in the sanitizer build (MQ_TEST_SMALL), whose own memory counts.
if [ -z "${MQ_TEST_SMALL:-}" ]; then
"$bin/tests/make-checkpoint" --preset nano --layers 5 --experts 64 --hidden 256 --moe-intermediate 256 --experts-dtype f32 \
    --tokenizer "$nano" gen >/dev/null || fail make-checkpoint
big=(--quiet --method imatrix --recipe rounds=0,descent=0 --group 32 --calib "$text" --calib-tokens 4096 --calib-window 512)
limit=64
until "$bin/mimo-quantize" "${big[@]}" --memory ${limit}M --json j.json gen tight >/dev/null 2>err; do
    grep -q 'this model needs' err && [ $limit -lt 160 ] || break
    limit=$((limit + 4))
done
[ -e tight/manifest.json ] || fail 'a run under --memory'
in=$(sed -n 's/.*"bytes_in": \([0-9]*\).*/\1/p' j.json)
peak=$(sed -n 's/.*"peak_host_bytes": \([0-9]*\).*/\1/p' j.json)
echo "memory: $peak bytes at most, limit ${limit} MiB, checkpoint $in bytes"
[ "$peak" -le $((limit << 20)) ] || fail 'memory beyond --memory'
[ "$in" -gt $((limit << 20)) ] || fail 'the checkpoint fits into memory'
"$bin/mimo-quantize" "${big[@]}" gen roomy >/dev/null 2>err || fail 'a run without --memory'
[ "$(digest tight)" = "$(digest roomy)" ] || fail 'other bytes under --memory'
# More threads than that memory has room for: fewer work.
"$bin/mimo-quantize" "${big[@]}" --memory ${limit}M --threads 64 --overwrite --json j.json gen tight >/dev/null 2>err ||
    fail '64 threads under --memory'
peak=$(sed -n 's/.*"peak_host_bytes": \([0-9]*\).*/\1/p' j.json)
[ "$peak" -le $((limit << 20)) ] || fail "$peak bytes with 64 threads, beyond --memory"
[ "$(digest tight)" = "$(digest roomy)" ] || fail 'other bytes with 64 threads under --memory'
rm -rf tight roomy
else
    echo 'SKIPPED: memory limits (a sanitizer counts its own)'
fi

# ---- no space for scratch ----
mkdir small
if mount -t tmpfs -o size=12m tmpfs small 2>/dev/null; then
    trap 'umount "$work/small" 2>/dev/null || true; rm -rf "$work"' EXIT
    expect 4 mimo-quantize --quiet --calib "$text" --calib-tokens 8192 --calib-window 512 "$nano" small/cut
    err_has 'not enough space'
    umount small
    # Space for a run and hardly more: what lies there already is not asked for again when it goes on.
    rm -rf cut
    "${run[@]}" --dry-run --json need.json cut >/dev/null 2>err || fail 'a dry run'
    need=$(sed -n 's/.*"need_bytes": \([0-9]*\).*/\1/p' need.json)
    mkdir cut && mount -t tmpfs -o size=$((need + (1 << 20))) tmpfs cut
    trap 'umount "$work/cut" 2>/dev/null || true; rm -rf "$work"' EXIT
    cut_at scratch-hidden-003
    "${run[@]}" --resume cut >/dev/null 2>err && [ "$(digest cut)" = "$want" ] || fail 'resume where there is hardly space'
    umount cut && rmdir cut
else
    echo 'SKIPPED: tmpfs (not root)'
fi
finish test_quantize_resume
