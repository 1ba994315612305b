# precision bf16: same bits in every weight after 6 updates and every loss on the way, however the
# run is made, as this processor multiplies and by the plain loop; near the losses in f32; what is
# kept takes half of the bytes; where the processor lacks it a sentence, and f32.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for i in 1 2 3 4; do cat docs/*.md README.md; done >"$work/all"
"$COLAC" data pack "$work/all" -o "$work/data" >/dev/null || exit 1
printf 'plan half extends cola { precision bf16 }\n' >"$work/plans.cola"

failed=0
fail() { echo "$*"; failed=1; }
train() { # NAME PLAN options…
    name=$1 plan=$2
    shift 2
    "$COLAC" train models/llama.cola --plan "$plan" --recipe demo \
        -D V=256 -D D=48 -D F=112 -D H=4 -D L=2 -D S=40 -D B=3 -D batch=6 \
        --data "$work/data" --out "$work/$name" --steps 6 --json "$@" >"$work/$name.log" 2>&1 ||
        { cat "$work/$name.log"; exit 1; }
    grep -o '"loss":[^,]*' "$work/$name.log" >"$work/$name.losses"
    [ "$(wc -l <"$work/$name.losses")" -eq 6 ] || fail "$plan: not 6 losses"
}
same() { # NAME PLAN options… : as the reference
    train "$@"
    cmp -s "$work/reference.losses" "$work/$1.losses" &&
        cmp -s "$work/reference/weights.safetensors" "$work/$1/weights.safetensors" ||
        fail "$*: other losses or weights than the reference run's"
}
train single cola
for how in as_it_is plain; do
    [ $how = plain ] && export COLAC_BF16=1
    for plan in full cola; do
        train reference $plan --precision bf16 --threads 1
        same threads $plan --precision bf16 --threads 3
        same unfused $plan --precision bf16 --no-fuse
        same apart $plan --precision bf16 --no-reuse --poison --check-nan
        case $plan in full) placements=gcp ;; *) placements="cola_m cola_lean" ;; esac
        for placement in $placements; do
            same $placement $placement --precision bf16
        done
    done
    same by_the_plan "$work/plans.cola:half"
done
# `reference` is `cola` by the plain loop: really bf16, and near.
cmp -s "$work/reference/weights.safetensors" "$work/single/weights.safetensors" &&
    fail "--precision bf16 gives the weights of f32"
paste -d' ' "$work/reference.losses" "$work/single.losses" | tr -d '"a-z:' |
    awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > 0.02 * $2) exit 1 }' ||
    fail "losses in bf16 are farther than 2% from those in f32"

# In the interpreter nothing is rounded: a plan in bf16 computes what one in f32 does, from the
# first loss on, whose weights no update has written, and from a file's weights.
interpreted() { # NAME options…
    name=$1
    shift
    "$COLAC" train models/llama.cola --plan cola --recipe demo -D V=256 -D D=16 -D F=24 -D H=2 \
        -D L=1 -D S=12 -D B=2 -D batch=2 --data "$work/data" --out "$work/$name" --steps 2 --json \
        --device interpreter "$@" >"$work/$name.log" 2>&1 || { cat "$work/$name.log"; exit 1; }
    grep -o '"loss":[^,]*' "$work/$name.log" | cut -c1-17 >"$work/$name.losses"
    [ "$(wc -l <"$work/$name.losses")" -eq 2 ] || fail "$name: not 2 losses"
}
interpreted exact
interpreted exact_bf16 --precision bf16
cmp -s "$work/exact.losses" "$work/exact_bf16.losses" || fail "the interpreter differs in bf16"
interpreted further --weights "$work/exact/weights.safetensors"
interpreted further_bf16 --weights "$work/exact/weights.safetensors" --precision bf16
cmp -s "$work/further.losses" "$work/further_bf16.losses" ||
    fail "the interpreter differs in bf16 from given weights"
cmp -s "$work/exact.losses" "$work/further.losses" && fail "--weights was not read"

# A weight that is no number is named as the cause, though a product reads its copy alone.
weights=$work/exact/weights.safetensors
header=$(od -An -tu4 -N4 "$weights" | tr -d ' ')
end=$(head -c $((8 + header)) "$weights" | grep -ao '"head":{[^}]*' | sed 's/.*,\([0-9]*\)]$/\1/')
[ -n "$end" ] || fail "no place of \`head\` in $weights"
printf '\377\377\377\177' | dd of="$weights" bs=1 seek=$((4 + header + end)) conv=notrunc 2>/dev/null
"$COLAC" train models/llama.cola --plan cola --recipe demo -D V=256 -D D=16 -D F=24 -D H=2 -D L=1 \
    -D S=12 -D B=2 -D batch=2 --data "$work/data" --out "$work/nan" --steps 1 --precision bf16 \
    --weights "$weights" >"$work/nan.log" 2>&1 &&
    fail "trained from a weight that is NaN"
grep -q 'help: a weight that it reads was not finite before' "$work/nan.log" ||
    { cat "$work/nan.log"; fail "no word of the weight that is NaN"; }

kept() {
    "$COLAC" check models/llama.cola --preset 20m --plan cola_m --json "$@" |
        sed 's/.*"kept_activations": *\([0-9]*\).*/\1/'
}
single=$(kept) half=$(kept --precision bf16)
[ $((half * 100)) -le $((single * 51)) ] || fail "cola_m keeps $half bytes in bf16, $single in f32"

export COLAC_BF16=0
train lacking cola --precision bf16
grep -q 'models/llama.cola:1:1: warning: `--precision bf16`: this device does not' \
    "$work/lacking.log" || fail "no warning where the processor lacks bf16"
cmp -s "$work/lacking/weights.safetensors" "$work/single/weights.safetensors" ||
    fail "without bf16: other weights than in f32"
train lacking_by_plan "$work/plans.cola:half"
grep -q 'plans.cola:1:26: warning: this device does not multiply bf16' \
    "$work/lacking_by_plan.log" || fail "no warning at the directive"
exit $failed
