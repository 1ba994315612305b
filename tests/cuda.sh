#!/bin/sh
# colac on the simulated card (tests/simulator): the CPU's losses and weights, bit for bit, under plans,
# precisions and a budget; recorded once and replayed, nothing allocated after; the memory that was
# promised; every call failing once.  Nothing here needs a card, a driver or a toolkit.
set -u
BUILD=${BUILD:-build}
COLAC=$BUILD/colac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export COLAC_SIMULATE_OBJECTS=$work/objects
mkdir "$COLAC_SIMULATE_OBJECTS"
export COLAC_BF16=1 # the card multiplies bf16 values, so this processor is to do it too
failed=0
fail() {
    echo "$1"
    failed=1
}
field() { # FILE NAME: a number of the report
    sed -n "s/.*\"$2\":\\([0-9]*\\).*/\\1/p" "$1"
}
i=0
while [ $i -lt 4000 ]; do
    echo "line $i of a text that is learned: $((i * 7919 % 1000)) and $((i * i % 977))"
    i=$((i + 1))
done >"$work/text"
"$COLAC" data pack "$work/text" -o "$work/data" >"$work/out" || fail "the text was not packed"
cat >"$work/plans.cola" <<'END'
use "std.cola"
plan full { }
plan budget { memory 5.5 MiB }
plan whole_f32 { memory 59 MiB }
plan whole_bf16 { memory 63 MiB } # copies of weights in bf16, of 5 MiB, come in
plan fast { precision tf32 }
END

on_card() { # SETTINGS ARGUMENTS…
    settings=$1
    shift
    LD_LIBRARY_PATH=$BUILD/tests/simulated COLAC_SIMULATE=report=$work/report,$settings "$COLAC" "$@"
}
whole="models/llama.cola --preset nano -D B=2 -D S=32 --recipe $work/recipe.cola:two"
small="$whole -D L=2 -D D=48 -D F=128 -D H=2"
model=$small
cat >"$work/recipe.cola" <<'END'
recipe two { optimizer adamw(lr = 1e-2)
             clip 0.5
             batch 4
             steps 5 }
END

# ---- the same bits ---------------------------------------------------------------------------
same() { # NAME SETTINGS ARGUMENTS…
    name=$1 settings=$2
    shift 2
    rm -rf "$work/cpu" "$work/card"
    "$COLAC" train $model "$@" --data "$work/data" --out "$work/cpu" --json >"$work/cpu.log" 2>"$work/cpu.errors" ||
        fail "$name: the CPU's run failed: $(cat "$work/cpu.errors")"
    on_card "$settings" train $model "$@" --device cuda --data "$work/data" --out "$work/card" --json \
        >"$work/card.log" 2>"$work/errors" || fail "$name: $(cat "$work/errors")"
    cmp -s "$work/cpu/weights.safetensors" "$work/card/weights.safetensors" || fail "$name: other weights"
    for log in cpu card; do
        sed 's/"tokens_per_s":[^,]*,\|"peak_bytes":[0-9]*,*\|"compile_s":[^}]*//g' "$work/$log.log" >"$work/$log.numbers"
    done
    cmp -s "$work/cpu.numbers" "$work/card.numbers" || fail "$name: other losses"
    [ "$(wc -l <"$work/card.log")" = 6 ] || fail "$name: $(wc -l <"$work/card.log") lines, not 5 updates and an end"
    [ "$(field "$work/report" recorded)" = 3 ] || fail "$name: recorded $(field "$work/report" recorded) times"
    [ "$(field "$work/report" allocations_after_replay)" = 0 ] || fail "$name: memory was allocated after step 1"
    for left in live_bytes modules streams events graphs recordings pinned contexts blas; do
        [ "$(field "$work/report" $left)" = 0 ] || fail "$name: $(field "$work/report" $left) $left were not given back"
    done
    promised=$("$COLAC" check $model "$@" --device cuda --json | sed -n 's/.*"peak": *\([0-9]*\).*/\1/p')
    used=$(field "$work/report" peak_bytes)
    [ "$promised" = "$used" ] || fail "$name: $promised bytes promised, $used used"
}
for precision in f32 bf16; do
    for plan in full cola cola_m cola_lean; do
        same "$plan, $precision" seed=0 --plan $plan --precision $precision
    done
done
[ "$(field "$work/report" tf32_products)" = 0 ] || fail "TF32 is allowed where nobody asked for it"
same "tf32" seed=0 --plan "$work/plans.cola:fast"
[ "$(field "$work/report" tf32_products)" -gt 10 ] || fail "precision tf32 allows no TF32"
grep -q "does not multiply tf32 values: products are computed in f32" "$work/cpu.errors" || fail "tf32 on a CPU without a word"
same "sequences of one position" seed=0 --plan cola -D S=1
model="models/gpt2.cola --preset nano -D B=2 -D S=16 -D L=1 -D D=1 -D H=1 --recipe $work/recipe.cola:two"
same "rows of one element" seed=0 --plan full
model=$small
same "grouped-query heads" seed=0 --plan cola --precision bf16 -D H=4 -D J=2
for precision in f32 bf16; do
    same "a budget, $precision" seed=3 --plan "$work/plans.cola:budget" --precision $precision
done
same "other interleavings" seed=5 --plan cola_m
model=$whole # all layers of the preset, at their width
same "whole nano" seed=0 --plan cola_m
if [ "${COLAC_FUZZ:-0}" -ge 100000 ]; then
    for precision in f32 bf16; do
        for plan in full cola cola_m cola_lean; do
            same "whole nano, $plan, $precision" seed=1 --plan $plan --precision $precision
        done
        same "whole nano, a budget, $precision" seed=2 --plan "$work/plans.cola:whole_$precision" --precision $precision
    done
fi
model=$small

# ---- predictions say that they are such ----------------------------------------------------------
"$COLAC" plan models/llama.cola --preset 7b --plan full,cola --precision bf16 --device cuda >"$work/out" ||
    fail "plan --device cuda failed"
grep -q "a prediction, nobody has measured it" "$work/out" || fail "a prediction that does not say so"
grep -q "a100 *h100 *b200$" "$work/out" || fail "no columns of cards: $(cat "$work/out")"
grep -q "^  full .* ms\* .* ms\* .* ms$" "$work/out" || fail "full rank at 7b fits an A100: $(cat "$work/out")"
grep -q "^  cola .* ms .* ms .* ms$" "$work/out" || fail "CoLA at 7b does not fit: $(cat "$work/out")"
grep -q "^\* does not fit in the card's memory: a100 79.15 GiB, h100 79.11 GiB, b200 178.35 GiB$" "$work/out" || fail "no foot: $(cat "$work/out")"
"$COLAC" plan models/llama.cola --preset 60m --plan cola --device cuda:sm_120 >"$work/out" 2>"$work/errors"
grep -q "^--device cuda:sm_120:1:1: warning: no figures of a card of this architecture" "$work/errors" || fail "sm_120 without a word"
on_card card=sm_120 profile $small --device cuda --steps 1 >"$work/out" 2>"$work/errors" || fail "profile: $(cat "$work/errors")"
grep -q "^simulated card, sm_120, sm_120: no figures of such a card are known" "$work/out" || fail "profile on sm_120: $(head -n 3 "$work/out")"
grep -q "^predicted:" "$work/out" && fail "a prediction for a card that nobody knows"
"$COLAC" plan models/llama.cola --preset 60m --plan cola --device cuda:sm_90 --json >"$work/out"
grep -q '"predicted_step_s_on":{"h100":0\.0' "$work/out" || fail "no prediction in: $(cat "$work/out")"

# ---- times are the card's: between marks in graphs of their own --------------------------------
on_card seed=2 profile $small --device cuda --steps 3 --json >"$work/out" 2>"$work/errors" || fail "profile: $(cat "$work/errors")"
[ "$(field "$work/report" recorded)" = 4 ] || fail "profile: recorded $(field "$work/report" recorded) times, not each of two programs with marks and without"
asked=$(field "$work/report" cuEventElapsedTime) passed=$(field "$work/report" cuEventRecordWithFlags)
[ "$asked" = $((3 * (passed - 2))) ] || fail "profile: $passed marks in two graphs, and $asked times in three rounds"
for name in cuEventRecordWithFlags cuEventElapsedTime; do
    on_card "fail=$name:3" profile $small --device cuda --steps 3 >"$work/out" 2>"$work/errors"
    code=$?
    [ $code = 1 ] && [ "$(grep -c ': error: ' "$work/errors")" = 1 ] || fail "profile, $name fails: exit $code: $(cat "$work/errors")"
    [ "$(field "$work/report" events)$(field "$work/report" recordings)$(field "$work/report" live_bytes)" = 000 ] ||
        fail "profile, $name fails: something is not given back"
done

# ---- what is not there ------------------------------------------------------------------------
refused() { # WORDS SETTINGS ARGUMENTS…
    words=$1 settings=$2
    shift 2
    on_card "$settings" train $small "$@" --data "$work/data" --out "$work/none" >"$work/out" 2>"$work/errors"
    code=$?
    [ $code = 1 ] || fail "$settings $*: exit $code, not 1"
    grep -q "$words" "$work/errors" || fail "$settings $*: no \`$words\` in: $(cat "$work/errors")"
    [ ! -e "$work/none" ] || fail "$settings $*: something was written"
}
refused "the driver shows no card" cards=0 --device cuda
refused "for CUDA 11.8, and colac needs one for 12.0" version=11080 --device cuda
refused "the driver is for CUDA 12, so .libnvrtc.so.13. was not looked for" version=12040 --device cuda
refused "is of architecture sm_80, not sm_90" card=sm_80 --device cuda:sm_90
refused "does not know the architecture sm_70" card=sm_70 --device cuda
refused "MiB of memory, and 2.0 MiB are available (2097152 of [0-9]* B)" memory=2097152 --device cuda

# it fits, but not beside its kernels' code
peak=$("$COLAC" check $small --device cuda --json | sed -n 's/.*"peak": *\([0-9]*\).*/\1/p')
refused "activations and workspace: " memory=$((peak + 500000)),code=100000 --device cuda
[ "$(field "$work/report" allocations)" = 0 ] || fail "what does not fit beside the code was begun"
on_card memory=$((peak + 800000)),code=100000 train $small --device cuda --steps 1 --data "$work/data" --out "$work/beside" >"$work/out" 2>&1 ||
    fail "what fits beside the code was refused: $(cat "$work/out")"

on_card memory=1048576 eval "$work/beside" --device cuda --data "$work/data" >"$work/out" 2>"$work/errors" &&
    fail "an evaluation that does not fit was begun"
grep -q "help: a run is evaluated as it was trained" "$work/errors" || fail "eval: $(cat "$work/errors")"
# what a card multiplies does not depend on the processor beside it
COLAC_BF16=0 on_card seed=0 train $small --precision bf16 --device cuda --steps 1 --data "$work/data" --out "$work/half" >"$work/out" 2>&1 ||
    fail "bf16 beside a processor without it: $(cat "$work/out")"
COLAC_BF16=0 on_card seed=0 eval "$work/half" --device cuda --data "$work/data" >"$work/out" 2>&1 ||
    fail "eval in bf16: $(cat "$work/out")"
grep -q "does not multiply" "$work/out" && fail "eval in bf16 falls to f32: $(cat "$work/out")"
grep -q '"device": "simulated card' "$work/beside/run.json" || fail "run.json does not name the card"

# NVRTC does not know it, but another of its generation
on_card card=sm_103 train $small --device cuda --steps 1 --data "$work/data" --out "$work/newer" >"$work/out" 2>"$work/errors" ||
    fail "sm_103: $(cat "$work/errors")"

on_card nvrtc=128 train $small --device cuda --steps 1 --data "$work/data" --out "$work/older" >"$work/out" 2>"$work/errors" ||
    fail "NVRTC 12.8, which knows no --no-cache: $(cat "$work/errors")"
refused "does not know the architecture sm_110" card=sm_110 --device cuda

# ---- every call fails once, at first and later ------------------------------------------------
tiny="models/mlp.cola --preset nano -D B=4 --device cuda --data $work/data"
on_card seed=0 train $tiny --steps 2 --out "$work/kept" >"$work/out" 2>&1 || fail "the tiny run failed"
cp "$work/kept/weights.safetensors" "$work/before"
export COLAC_CACHE=$work/cache
on_card seed=0 train $tiny --steps 2 --out "$work/other" >"$work/out" 2>&1 || fail "the tiny run failed"
for part in calls calls_of_record calls_of_replay; do
    sed "s/.*\"$part\":{//; s/}.*//; s/\"//g; s/,/\n/g" "$work/report" >"$work/$part"
done
[ "$(wc -l <"$work/calls")" -ge 50 ] || fail "only $(wc -l <"$work/calls") functions are called"
fails() { # NAME N
    case $1 in nvrtc* | *Heuristic | *Preference*) rm -rf "$COLAC_CACHE" ;; esac # else not called
    on_card "fail=$1:$2" train $tiny --steps 2 --out "$work/kept" >"$work/out" 2>"$work/errors"
    code=$?
    [ $code = 1 ] || fail "$1, call $2 fails: exit $code: $(cat "$work/errors")"
    [ "$(grep -c ': error: ' "$work/errors")" = 1 ] || fail "$1, call $2 fails: $(cat "$work/errors")"
    cmp -s "$work/before" "$work/kept/weights.safetensors" || fail "$1, call $2 fails: the weights are not whole"
    for left in modules streams events graphs recordings pinned contexts blas; do
        [ "$(field "$work/report" $left)" = 0 ] || fail "$1, call $2 fails: $left are not given back"
    done
}
while IFS=: read -r name count; do
    [ "$name" != cublasLtGetVersion ] || continue # it has no result that could be a failure
    fails "$name" 1
    [ "$count" -lt 2 ] || fails "$name" $((count / 2 + 1))
done <"$work/calls"
for part in record replay; do
    [ "$(wc -l <"$work/calls_of_$part")" -ge 4 ] || fail "of $part: only $(cat "$work/calls_of_$part")"
    while IFS=: read -r name count; do
        fails "$name" $part
    done <"$work/calls_of_$part"
done

# ---- what cuBLASLt chose is kept ---------------------------------------------------------------
chosen() { # SETTINGS ASKED CHECKED: how often
    rm -rf "$work/other"
    on_card "$1" train $tiny --steps 2 --out "$work/other" >"$work/out" 2>"$work/errors" || fail "$1: $(cat "$work/errors")"
    cmp -s "$work/before" "$work/other/weights.safetensors" || fail "$1: other weights"
    for call in AlgoGetHeuristic:$2 AlgoCheck:$3; do
        count=$(field "$work/report" cublasLtMatmul${call%:*})
        [ "${count:-0}" = ${call#*:} ] || fail "$1: $call expected, and $count came"
    done
}
rm -rf "$COLAC_CACHE"
products=$(sed -n 's/^cublasLtMatmulAlgoGetHeuristic://p' "$work/calls")
chosen seed=0 "$products" 0
chosen seed=0 0 "$products"
chosen fail=cublasLtMatmulAlgoCheck:2 1 "$products" # the library no longer knows one: it is asked
for entry in "$COLAC_CACHE"/*.choices; do printf x >>"$entry"; done
chosen seed=0 "$products" 0 # a damaged entry
chosen card=sm_80 "$products" 0 # another card
chosen seed=0 0 "$products"
[ "$(ls "$COLAC_CACHE"/*.choices | wc -l)" = 2 ] || fail "not one entry a card: $(ls "$COLAC_CACHE")"

# ---- what NVRTC says is for reports alone -------------------------------------------------------
rm -rf "$COLAC_CACHE" "$work/other"
for time in cold warm; do
    on_card log=empty train $tiny --steps 2 --out "$work/other" >"$work/out" 2>"$work/errors" || fail "a silent NVRTC, $time: $(cat "$work/errors")"
    cmp -s "$work/before" "$work/other/weights.safetensors" || fail "a silent NVRTC, $time: other weights"
done

for name in cuGetErrorName cuGetErrorString; do # what is asked after a failure
    fails cuLaunchKernel "1,also=$name:1"
done
fails cublasLtMatmul "1,also=cublasLtGetStatusString:1"
grep -q "cublasLtMatmul. failed: an error without words (status 15), product " "$work/errors" || fail "no words: $(cat "$work/errors")"
fails cublasLtMatmulAlgoGetHeuristic 2
grep -q "cublasLtMatmulAlgoGetHeuristic. failed: the functionality requested is not supported (status 15), product [1-9]" "$work/errors" ||
    fail "which product has no kernel? $(cat "$work/errors")"
exit $failed
