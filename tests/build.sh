# `colac build`: the folder, the report and its JSON.  CUDA's parts where NVRTC is.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "$*"
    failed=1
}
small="models/llama.cola --preset nano -D L=1 -D D=32 -D F=48 -D H=2 -D S=16 -D B=2"
build() { # CODE ARGUMENTS…
    expected=$1
    shift
    "$COLAC" build $small "$@" >"$work/out" 2>"$work/errors"
    code=$?
    [ $code -eq "$expected" ] || fail "build $*: exit $code, not $expected: $(cat "$work/errors")"
}
json() { # KEY: what the last line says
    sed -n "s/.*\"$1\":\\([^,}]*\\).*/\\1/p" "$work/out"
}

# ---- the folder --------------------------------------------------------------------------------
build 0 -o "$work/new"
[ -s "$work/new/kernels_0.c" ] && [ -s "$work/new/micro.txt" ] && [ -s "$work/new/report.txt" ] || fail "no files: $(ls "$work/new")"
touch "$work/new/kernels_0.cu" "$work/new/kernels_9.so" "$work/new/.report.txt.1-1.tmp"
build 0 -o "$work/new" --plan cola
grep -q "plan cola" "$work/new/report.txt" || fail "the report is not the new one"
for left in kernels_0.cu kernels_9.so .report.txt.1-1.tmp; do
    [ ! -e "$work/new/$left" ] || fail "$left is left of an earlier build"
done
mkdir "$work/empty" "$work/other"
build 0 -o "$work/empty"
echo tokens >"$work/other/train_000.bin"
build 1 -o "$work/other"
grep -q "^$work/other:1:1: error: there is something in the folder that no build has written: .train_000.bin" "$work/errors" ||
    fail "another folder: $(cat "$work/errors")"
[ "$(ls "$work/other")" = train_000.bin ] || fail "something was written: $(ls "$work/other")"
# names that only resemble a build's, or are a build's in a folder without a report: kept
kept() { # NAME
    rm -rf "$work/other"
    mkdir "$work/other"
    echo mine >"$work/other/$1"
    build 1 -o "$work/other"
    [ "$(cat "$work/other/$1")" = mine ] && [ "$(ls -A "$work/other")" = "$1" ] || fail "$1: not left alone: $(ls -A "$work/other")"
    [ "$1" = report.txt ] || { # beside an earlier build
        echo mine >"$work/empty/$1"
        cp "$work/empty/report.txt" "$work/report"
        build 1 -o "$work/empty" --plan cola
        [ "$(cat "$work/empty/$1")" = mine ] && cmp -s "$work/report" "$work/empty/report.txt" || fail "$1 beside a build: something was touched"
        rm "$work/empty/$1"
    }
}
for name in data.tmp .data.tmp .data.bin.12-3.tmp .report.txt.tmp kernels_of_mine.c kernels_0.cc kernels_.so report.txt; do
    kept "$name"
done
for name in module.ir kernels_0.c; do
    rm -rf "$work/other"
    mkdir "$work/other"
    echo mine >"$work/other/$name"
    build 1 -o "$work/other"
    [ "$(cat "$work/other/$name")" = mine ] || fail "$name without a report: replaced"
done
# a build that was killed, before its first file appeared and after it
rm -rf "$work/other"
mkdir "$work/other"
touch "$work/other/.kernels_0.cubin.12-3.tmp" "$work/other/.module.ir.12-0.tmp"
build 0 -o "$work/other"
[ "$(ls -A "$work/other" | wc -l)" -eq "$(ls "$work/empty" | wc -l)" ] || fail "left of a killed build: $(ls -A "$work/other")"
rm "$work/other/module.ir" "$work/other/kernels_1.c"
touch "$work/other/.module.ir.12-0.tmp"
build 0 -o "$work/other"
[ "$(ls -A "$work/other" | wc -l)" -eq "$(ls "$work/empty" | wc -l)" ] || fail "left of a half build: $(ls -A "$work/other")"
for seconds in 0.01 0.02 0.03 0.04 0.05 0.06 0.08 0.1; do
    timeout -s KILL $seconds "$COLAC" build $small -o "$work/killed" >"$work/out" 2>&1
    build 0 -o "$work/killed"
    [ "$(ls -A "$work/killed" | wc -l)" -eq "$(ls "$work/empty" | wc -l)" ] || fail "killed after $seconds s: $(ls -A "$work/killed")"
    rm -rf "$work/killed"
done

# ---- the report --------------------------------------------------------------------------------
build 0 -o "$work/new" --json
[ "$(wc -l <"$work/out")" -eq 1 ] || fail "JSON of $(wc -l <"$work/out") lines"
peak=$("$COLAC" check $small --json | sed -n 's/.*"peak":\([0-9]*\).*/\1/p')
[ "$(json peak_bytes)" = "$peak" ] || fail "$(json peak_bytes) bytes, and check says $peak"
grep -q "^distinct kernels *$(json kernels)\$" "$work/new/report.txt" || fail "kernels: $(json kernels) in JSON"
[ "$(grep -o '"arena_bytes"' "$work/out" | wc -l)" -eq 3 ] || fail "not three programs: $(cat "$work/out")"
for said in '"model":"models/llama.cola"' '"preset":"nano"' '"plan":null' '"device":"cpu"' '"compile_cached":true'; do
    grep -q "$said" "$work/out" || fail "no $said in $(cat "$work/out")"
done
build 0 -o "$work/$(printf 'f\377')" --json # a name that is not UTF-8
grep -q '"folder":".*/f?"' "$work/out" || fail "a folder's name: $(cat "$work/out")"
build 2 -o "$work/new" --device interpreter
build 2 -o "$work/new" --device cuda
build 2
if "$COLAC" build $small --device cuda:sm_90 -o "$work/cuda" >"$work/out" 2>&1; then
    rows=$(sed '1,/registers/d' "$work/cuda/report.txt" | wc -l)
    grep -q ", launched as $rows functions" "$work/cuda/report.txt" || fail "not $rows functions: $(cat "$work/cuda/report.txt")"
    build 0 --device cuda:sm_90 -o "$work/cuda" --json
    grep -q '"card":"NVIDIA H100.*","predicted_step_s_on":{"h100":0\.' "$work/out" || fail "no prediction: $(cat "$work/out")"
    build 0 --device cuda:sm_120 -o "$work/cuda" --json
    grep -q '"card":null' "$work/out" || fail "a card that nobody knows: $(cat "$work/out")"
    [ "$(grep -o '"registers"' "$work/out" | wc -l)" -eq "$rows" ] || fail "not $rows launches: $(cat "$work/out")"
    [ "$(json architecture)" = '"sm_120"' ] || fail "architecture $(json architecture)"
    grep -q "predicted" "$work/out" && fail "a prediction for a card that nobody knows"
    grep -q "no figures of a card of architecture sm_120 are known" "$work/cuda/report.txt" || fail "sm_120 without a word"
else
    grep -q "NVRTC was not found: looked for" "$work/out" || fail "no NVRTC: $(cat "$work/out")"
fi
exit $failed
