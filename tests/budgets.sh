# `memory N` as users run it: for bounds everywhere between the least peak, which the refusal names,
# and that of the plan without a bound, the printed peak is below the bound, is the one that the
# solver measured and the one that a run holds; losses and weights have the bits of the plan
# without a bound.  More memory never costs more FLOPs.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for i in 1 2 3 4; do cat docs/*.md README.md tests/oracle/make.py; done >"$work/all"
"$COLAC" data pack "$work/all" -o "$work/data" >/dev/null || exit 1
cat >"$work/plans.cola" <<'TEXT'
plan fit_full extends full {
    dim BOUND = 1
    memory BOUND
}
plan fit_cola extends cola {
    dim BOUND = 1
    memory BOUND
}
TEXT
small="-D V=256 -D D=48 -D F=112 -D H=4 -D L=3 -D S=40 -D B=3"
count=${COLAC_FUZZ:+25}
count=${count:-1} # bounds between the ends, for each of two plans

failed=0
fail() {
    echo "$1"
    failed=1
}
number() { grep -o "\"$1\": *[0-9.e+]*" | head -n 1 | sed 's/.*: *//'; }
train() { # NAME PLAN options…
    name=$1 plan=$2
    shift 2
    rm -rf "$work/$name"
    "$COLAC" train models/llama.cola --plan "$plan" --recipe demo $small -D batch=6 --data "$work/data" \
        --out "$work/$name" --steps 5 --json "$@" >"$work/$name.log" 2>&1 || { cat "$work/$name.log"; exit 1; }
    grep -o '"loss":[^,]*' "$work/$name.log" >"$work/$name.losses"
    [ "$(wc -l <"$work/$name.losses")" -eq 5 ] || { echo "$plan: not 5 losses"; exit 1; }
}
for plan in full cola; do
    fit="$work/plans.cola:fit_$plan"
    most=$("$COLAC" check models/llama.cola --plan $plan $small --threads 2 --json | number peak)
    "$COLAC" check models/llama.cola --plan "$fit" $small --threads 2 >"$work/refusal" 2>&1
    [ $? -eq 1 ] || fail "$plan: a bound of one byte was not refused"
    grep -q 'plans.cola:.*: error: a training step of `llama` takes at least' "$work/refusal" &&
        grep -q 'at its peak' "$work/refusal" && grep -q 'help: allow `memory' "$work/refusal" ||
        fail "the refusal does not say what it should: $(cat "$work/refusal")"
    least=$(grep -o '([0-9]* bytes)' "$work/refusal" | tr -dc '0-9')
    [ -n "$least" ] && [ "$least" -lt "$most" ] || { echo "$plan: nothing was saved"; exit 1; }
    train reference $plan --threads 1
    before=
    for i in $(seq 0 $((count + 1))); do
        bound=$((least + (most - least) * i / (count + 1)))
        "$COLAC" check models/llama.cola --plan "$fit" $small -D BOUND=$bound --threads 2 --json \
            >"$work/check" 2>&1 || { cat "$work/check"; exit 1; }
        peak=$(number peak <"$work/check")
        flops=$(number executed <"$work/check")
        solved=$("$COLAC" plan models/llama.cola --plan "$fit" $small -D BOUND=$bound --threads 2 --explain --json |
            grep '"kind": *"budget"' | number peak)
        [ "$peak" -le "$bound" ] || fail "$plan: $peak bytes where $bound were allowed"
        [ "$peak" = "$solved" ] || fail "$plan, $bound: check says $peak, the solver measured $solved"
        [ -z "$before" ] || awk "BEGIN { exit !($flops <= $before) }" ||
            fail "$plan: $flops FLOPs a token under $bound bytes, $before under less"
        before=$flops
        [ $i -le "$count" ] || continue # the whole of it is the reference
        train run "$fit" -D BOUND=$bound --threads 2
        held=$(number peak_bytes <"$work/run.log")
        awk "BEGIN { exit !($held == $peak) }" || fail "$plan, $bound: a run holds $held bytes, check says $peak"
        cmp -s "$work/reference.losses" "$work/run.losses" &&
            cmp -s "$work/reference/weights.safetensors" "$work/run/weights.safetensors" ||
            fail "$plan, $bound: other losses or weights than without a bound"
    done
    awk "BEGIN { exit !($flops > 0) }" || fail "$plan: no FLOPs were read"
done
exit $failed
