# `colac plan` and the reports of `colac check`: held to formulas that are computed here, and to each
# other where two ways lead to one number.
set -u
export COLAC_BF16=1 # the figures of plans in bf16, on any processor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
llama=models/llama.cola

fail() {
    echo "$1"
    [ $# -gt 1 ] && cat "$2"
    failed=1
}

key() { # NAME: its number in each JSON object that is read
    sed -n "s/.*\"$1\":\(-\{0,1\}[0-9][0-9.e+]*\).*/\1/p"
}

same() { # WHAT A B: equal numbers, to the last digit that a double holds?
    awk -v a="$2" -v b="$3" 'BEGIN { d = a - b; exit !(a != "" && b != "" && (d < 0 ? -d : d) <= 1e-12 * b) }' ||
        fail "$1: $2, and it should be $3"
}

# Every plan of the paper at every size: parameters, FLOPs a token, kept bytes, by formula.
# Per token and layer, n positions: products of a full-rank layer 8d^2 + 6df + 4nd, of CoLA's
# 16dr + 6r(d + f) + 4nd; backward twice that.
formulas() { # d f layers r
    awk -v d="$1" -v f="$2" -v l="$3" -v r="$4" -v n=256 -v b=8 -v v=32000 -v OFMT=%.0f 'BEGIN {
        norms = l * 2 * d + d
        whole = 2 * v * d + l * (4 * d * d + 3 * d * f) + norms
        low = l * (8 * d * r + 3 * r * (d + f))
        part = 2 * v * d + low + norms
        ff = 8 * d * d + 6 * d * f + 4 * n * d
        fc = 16 * d * r + 6 * r * (d + f) + 4 * n * d
        head = 6 * d * v
        all = -1 # kept: not by formula
        print "full", whole, 0, l * ff, 0, head, all
        print "gcp", whole, 0, l * ff, l * (8 * d * d + 4 * d * f + 4 * n * d), head, l * 4 * b * n * d
        print "cola", part, low, l * fc, 0, head, all
        print "cola_gcp", part, low, l * fc, l * (fc - 2 * d * r), head, l * 4 * b * n * d
        print "cola_m", part, low, l * fc, l * (18 * d * r + 6 * r * f + 4 * n * d), head, l * 4 * b * n * (2 * d + 7 * r)
        print "cola_lean", part, low, l * fc, l * (6 * d * r + 4 * r * f + 4 * n * d), head, l * 4 * b * n * (2 * d + 7 * r)
    }'
}

sizes='60m 512 1376 8 128
130m 768 2048 12 256
350m 1024 2736 24 256
1b 2048 5461 24 512
7b 4096 11008 32 1024'
echo "$sizes" >"$work/sizes"
while read -r preset d f l r; do
    "$COLAC" plan $llama --preset "$preset" --json --no-predict >"$work/plans" || fail "plan --preset $preset: refused"
    formulas "$d" "$f" "$l" "$r" >"$work/formulas"
    while read -r plan params low forward recompute head kept; do
        grep "\"plan\":\"$plan\"" "$work/plans" >"$work/one"
        same "$preset $plan parameters" "$(key params <"$work/one")" "$params"
        same "$preset $plan low-rank part" "$(key params_low_rank <"$work/one")" "$low"
        same "$preset $plan forward" "$(key forward <"$work/one")" "$forward"
        same "$preset $plan backward" "$(key backward <"$work/one")" "$((2 * forward))"
        same "$preset $plan recompute" "$(key recompute <"$work/one")" "$recompute"
        same "$preset $plan head" "$(key head <"$work/one")" "$head"
        [ "$kept" = -1 ] || same "$preset $plan kept" "$(key kept_activations <"$work/one")" "$kept"
        # The same object as check's, but for the plan's name.
        "$COLAC" check $llama --preset "$preset" --plan "$plan" --json >"$work/check"
        sed "s/\"plan\":\"$plan\",//" "$work/one" | cmp -s - "$work/check" ||
            fail "$preset $plan: plan and check say different things" "$work/check"
    done <"$work/formulas"
done <"$work/sizes"

# Without --plan: all plans of the file, in its order.
awk '/^plan / { print $2 }' $llama >"$work/names"
"$COLAC" plan $llama --preset nano --no-predict >"$work/table"
awk 'NR > 2 { print $1 }' "$work/table" | cmp -s - "$work/names" || fail "not all plans, in order:" "$work/table"

# A time is predicted for each: positive, and in the table under its name.
"$COLAC" plan $llama --preset nano --plan full,cola --json | key predicted_step_s >"$work/seconds"
[ "$(awk '$1 > 0 && $1 < 60' "$work/seconds" | wc -l)" -eq 2 ] || fail 'no time is predicted:' "$work/seconds"
"$COLAC" plan $llama --preset nano --plan full >"$work/table"
grep -q ' predicted$' "$work/table" && grep -q '^  full .* m\{0,1\}s$' "$work/table" || fail 'no predicted time:' "$work/table"

# The published figure beside ours: all of the forward part.
"$COLAC" check $llama --preset 60m --plan cola_m >"$work/check"
published=$(awk 'BEGIN { d = 512; f = 1376; r = 128; printf "%d", 8 * (16 * d * r + 6 * r * (d + f) + 4 * 256 * d) }')
said=$(sed -n 's/.*as published: \([0-9,]*\).*/\1/p' "$work/check" | tr -d ,)
same 'published recompute' "$said" "$published"
"$COLAC" check $llama --preset 60m --plan full | grep -q published && fail 'full rank recomputes nothing, and yet a published figure is shown'
# Attention, forward, backward and once again: 4 times 4nd a layer.
said=$(sed -n 's/.*of these attention *\([0-9,]*\).*/\1/p' "$work/check" | tr -d ,)
same 'attention' "$said" $((8 * 4 * 4 * 256 * 512))

# What one plan keeps, to the byte; what it makes again is what it executes more than without.
for model in llama gpt2 bert mlp; do
    file=models/$model.cola
    for plan in $(awk '/^plan / { print $2 }' $file); do
        "$COLAC" check $file --preset nano --plan "$plan" --json >"$work/check" || fail "$model $plan: refused"
        "$COLAC" plan $file --preset nano --plan "$plan" --explain --json >"$work/explain" || fail "$model $plan: not explained"
        sum=$(grep '"kind":"kept"' "$work/explain" | key bytes | awk '{ s += $1 } END { printf "%d", s }')
        same "$model $plan: the kept values in sum" "$sum" "$(key kept_activations <"$work/check")"
        base=full
        case $plan in cola*) base=cola ;; esac
        "$COLAC" check $file --preset nano --plan $base --json >"$work/base"
        again=$(grep '"kind":"recomputed"' "$work/explain" | key flops | awk '{ s += $1 } END { printf "%.9f", s }')
        more=$(awk -v a="$(key executed <"$work/check")" -v b="$(key executed <"$work/base")" 'BEGIN { printf "%.9f", a - b }')
        awk -v a="$again" -v b="$more" 'BEGIN { d = a - b; exit !((d < 0 ? -d : d) <= 1e-6 * b + 1e-6) }' ||
            fail "$model $plan: $again FLOPs a token are made again, and $more are executed more"
        # By layer: the rows are all there is.
        "$COLAC" check $file --preset nano --plan "$plan" --json --layers | grep '"kind":"layer"' >"$work/layers"
        for what in params params_low_rank kept_activations recompute; do
            key count <"$work/layers" >"$work/counts"
            sum=$(key $what <"$work/layers" | paste -d' ' "$work/counts" - | awk '{ s += $1 * $2 } END { printf "%.6f", s }')
            same "$model $plan: $what by layer" "$sum" "$(key $what <"$work/check")"
        done
        for what in forward backward; do # the head's are among them
            sum=$(key $what <"$work/layers" | paste -d' ' "$work/counts" - | awk '{ s += $1 * $2 } END { printf "%.6f", s }')
            echo "$sum"
        done | awk '{ s += $1 } END { printf "%.6f\n", s }' >"$work/products"
        all=$(for what in forward backward head; do key $what <"$work/check"; done | awk '{ s += $1 } END { printf "%.6f", s }')
        same "$model $plan: products by layer" "$(cat "$work/products")" "$all"
    done
done

# One layer by hand: its parameters, its products, and what it keeps of its own (x is its caller's).
"$COLAC" check $llama --preset 60m --plan cola_m --json --layers | grep '"path":"layer\[0..7\]"' >"$work/layer"
same 'a layer: count' "$(key count <"$work/layer")" 8
same 'a layer: parameters' "$(key params <"$work/layer")" $((8 * 512 * 128 + 3 * 128 * (512 + 1376) + 2 * 512))
same 'a layer: forward' "$(key forward <"$work/layer")" $((16 * 512 * 128 + 6 * 128 * (512 + 1376) + 4 * 256 * 512))
same 'a layer: kept' "$(key kept_activations <"$work/layer")" $((4 * 2048 * (512 + 7 * 128)))

# The library's other methods: parameters of all matrices, a part in P of them sparse.
cat >"$work/methods.cola" <<'EOF'
plan lowrank { factorize layer[*].{attn,ffn}.* with lowrank(16) }
plan blocks { factorize layer[*].{attn,ffn}.* with lowrank_blocks(16, 32) }
plan channels { factorize layer[*].{attn,ffn}.* with cola_channels(16, 32) }
EOF
low=$((6 * 16 * (8 * 192 + 3 * (192 + 512)))) sparse=$((6 * (4 * 192 * 192 + 3 * 192 * 512) / 32))
for plan in lowrank blocks channels; do
    "$COLAC" plan $llama --preset nano --plan "$work/methods.cola:$plan" --json --no-predict >"$work/one"
    part=$low
    [ $plan = lowrank ] || part=$((low + sparse))
    same "$plan: parameters" "$(key params_low_rank <"$work/one")" "$part"
    same "$plan: forward" "$(key forward <"$work/one")" $((2 * part + 6 * 4 * 256 * 192))
done

# In bf16: half the kept bytes, copies of two bytes a parameter; the head's products are the head's.
printf 'plan half extends cola_m { precision bf16 }\n' >"$work/half.cola"
"$COLAC" check $llama --preset 60m --plan "$work/half.cola:half" --json --layers >"$work/half"
same 'bf16: kept' "$(head -n 1 "$work/half" | key kept_activations)" $((8 * 2 * 2048 * (2 * 512 + 7 * 128)))
same 'bf16: the head backward' "$(grep '"path":"head"' "$work/half" | key backward)" $((2 * 2 * 512 * 32000))
"$COLAC" check $llama --preset 60m --plan "$work/half.cola:half" | grep -A 1 'half.cola:1 ' | grep -q tolerant || fail 'precision should be tolerant'

# Under a bound: what it says of itself is what check says of it, and the kept values sum up.
bound=$("$COLAC" check $llama --preset nano --plan cola_m --json | key peak)
printf 'plan fit extends cola { memory %s }\nplan tight extends cola { memory 1 MiB }\n' "$bound" >"$work/fit.cola"
"$COLAC" check $llama --preset nano --plan "$work/fit.cola:fit" --json >"$work/check" || fail 'no placement fits where that of cola_m does' "$work/check"
"$COLAC" plan $llama --preset nano --plan "$work/fit.cola:fit" --explain --json >"$work/explain"
grep '"kind":"budget"' "$work/explain" >"$work/one"
same 'a bound: bound' "$(key bound <"$work/one")" "$bound"
same 'a bound: peak' "$(key peak <"$work/one")" "$(key peak <"$work/check")"
[ "$(key peak <"$work/one")" -le "$bound" ] || fail 'the bound is not held:' "$work/one"
same 'a bound: added FLOPs' "$(key added_flops_per_token <"$work/one")" "$(grep '"kind":"recomputed"' "$work/explain" | key flops | awk '{ s += $1 } END { printf "%.9f", s }')"
same 'a bound: the kept values in sum' "$(grep '"kind":"kept"' "$work/explain" | key bytes | awk '{ s += $1 } END { printf "%d", s }')" "$(key kept_activations <"$work/check")"
"$COLAC" plan $llama --preset nano --plan "$work/fit.cola:fit" --explain | grep -q '^  memory bound' || fail 'the bound is not explained'
"$COLAC" plan $llama --preset nano --no-predict --plan "full,$work/fit.cola:tight" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'fit.cola:2:27: error' "$work/out" || fail 'a bound that nothing fits in:' "$work/out"

# In the user's names, at the user's lines.
line() { grep -n "$1" "$2" | head -n 1 | cut -d: -f1; }
"$COLAC" plan $llama --preset 60m --plan cola_m --explain >"$work/explain"
grep -q "8 x 4.0 MiB  *mid  $llama:$(line ' mid = ' $llama)\$" "$work/explain" || fail 'mid is not kept, or not where it stands:' "$work/explain"
grep -q "8 x 4.0 MiB  *x  $llama:$(line ' x = embed' $llama)\$" "$work/explain" || fail 'x is not kept, or not where it stands:' "$work/explain"
[ "$(grep -c '8 x 1.0 MiB  *[a-z_.]*\.low  std.cola:' "$work/explain")" -eq 7 ] || fail 'the seven low are not kept:' "$work/explain"
grep -q "M .*%  attn\.v  $llama:$(line ' v = dot' $llama)\$" "$work/explain" || fail 'v is not made again:' "$work/explain"
grep -q '125,829,120 B' "$work/explain" || fail 'the sum is not there:' "$work/explain"
"$COLAC" plan $llama --preset nano --plan cola --explain | grep -q 'nothing is made again' || fail 'cola recomputes something'

# Ranks that differ by layer are rows of their own.
cat >"$work/two.cola" <<'EOF'
plan two {
    factorize layer[0..2].attn.wq with cola(16)
    factorize layer[3..5].attn.wq with cola(8)
    recompute layer[*] keep mid, **.low
}
EOF
"$COLAC" plan $llama --preset nano --plan "$work/two.cola:two" --explain >"$work/explain"
for row in 'layer\[0..2\]' 'layer\[3..5\]'; do
    grep -q "^    $row\$" "$work/explain" || fail "no section $row:" "$work/explain"
done
grep -q '3 x 128.0 KiB *attn.wq.low' "$work/explain" || fail 'rank 16: 8 x 256 x 16 x 4 bytes:' "$work/explain"
grep -q '3 x 64.0 KiB *attn.wq.low' "$work/explain" || fail 'rank 8: 8 x 256 x 8 x 4 bytes:' "$work/explain"

# The memory over a step: an object a step, the printed peak is their largest.
"$COLAC" check $llama --preset 60m --plan cola_m --json --timeline >"$work/timeline"
grep '"kind":"step"' "$work/timeline" | key live_bytes >"$work/live"
awk 'BEGIN { m = -1 } $1 > m { m = $1; at = NR - 1 } END { print at, m, NR }' "$work/live" >"$work/most"
read -r at most steps <"$work/most"
"$COLAC" check $llama --preset 60m --plan cola_m --timeline >"$work/plot"
grep -q "the peak is at step $at," "$work/plot" || fail "the peak is at step $at:" "$work/plot"
grep -q "over the $steps steps" "$work/plot" || fail "there are $steps steps:" "$work/plot"
arena=$(head -n 1 "$work/timeline" | awk -F'[:,}]' '{ for (i = 1; i < NF; i++) if ($i ~ /kept_act|workspace/) s += $(i + 1) } END { printf "%d", s }')
[ "$most" -le "$arena" ] || fail "$most bytes are live in $arena bytes"
[ "$(grep -c '^ *[0-9.]* [KMGi]*B |' "$work/plot")" -eq 8 ] || fail 'the plot is not eight rows high:' "$work/plot"
# logits [B,S,V] in f32 are live there
grep '"value":"logits"' "$work/timeline" | grep -q "\"bytes\":$((8 * 256 * 32000 * 4))}" ||
    fail 'logits are not live at the peak:' "$work/plot"

# The directives, their lines and classes; what `factorize` changes.
cat >"$work/classes.cola" <<'EOF'
plan classes extends base {
    dim N = 3
    recompute layer[0..N] keep mid
    factorize layer[*].ffn.up with cola(R)
    preset nano { R = 8 }
    preset 60m { R = 4 }
    set gate_silu = false
    dim UNUSED = 1
}
plan base {
    dim R = 16
    factorize layer[*].ffn.{up,down} with lowrank(R)
}
EOF
"$COLAC" check $llama --preset nano --plan "$work/classes.cola:classes" --json --directives >"$work/directives" || fail 'refused:' "$work/directives"
class() { # LINE CLASS
    grep "classes.cola:$1\"" "$work/directives" | grep -q "\"class\":\"$2\"" || fail "line $1 should be $2:" "$work/directives"
}
class 2 exact
class 3 exact
class 4 model-changing
class 5 model-changing
class 6 unused
class 7 model-changing
class 8 unused
class 11 model-changing
class 12 model-changing
change() { # LINE WEIGHTS BEFORE AFTER
    grep "classes.cola:$1\"" "$work/directives" >"$work/one"
    same "line $1: weights" "$(key weights <"$work/one")" "$2"
    same "line $1: before" "$(key params_before <"$work/one")" "$3"
    same "line $1: after" "$(key params_after <"$work/one")" "$4"
}
change 4 6 $((6 * 192 * 512)) $((6 * 8 * (192 + 512)))
change 12 6 $((6 * 192 * 512)) $((6 * 8 * (192 + 512)))
grep '"kind":"parameters"' "$work/directives" >"$work/one"
plain=$(key params <<EOF
$("$COLAC" check $llama --preset nano --json)
EOF
)
same 'parameters before' "$(key before <"$work/one")" "$plain"
same 'parameters after' "$(key after <"$work/one")" $((plain - 2 * 6 * 192 * 512 + 2 * 6 * 8 * (192 + 512)))
# -D of the plan's own dim: the model alone does not know it
"$COLAC" check $llama --preset nano --plan cola -D R=8 --json --directives >"$work/directives"
same 'parameters before, with -D' "$(grep '"kind":"parameters"' "$work/directives" | key before)" "$plain"

# A plan that does not stand: what is wrong with it, the others all the same, exit 1.
cat >"$work/bad.cola" <<'EOF'
plan bad { factorize layer[*].attn.wx with cola(8) }
EOF
"$COLAC" plan $llama --preset nano --plan "full,$work/bad.cola:bad,cola" >"$work/out" 2>"$work/err"
[ $? -eq 1 ] || fail 'a bad plan should end in exit 1'
grep -q '^  full ' "$work/out" && grep -q '^  cola ' "$work/out" || fail 'the other plans are not there:' "$work/out"
grep -q "bad.cola:1:22: error" "$work/err" || fail 'the place of the mistake is not there:' "$work/err"
"$COLAC" plan $llama --preset nano --plan "nothing,cola" --json >"$work/out" 2>/dev/null
[ "$(wc -l <"$work/out")" -eq 2 ] && grep -q '{"plan":"nothing","refused":true}' "$work/out" || fail 'a plan that is not there:' "$work/out"
"$COLAC" plan $llama --plan 'full,,cola' >"$work/out" 2>&1
[ $? -eq 2 ] || fail 'an empty name should be wrong syntax' "$work/out"
# A value that one of the plans knows is enough; one that none knows is a mistake.
"$COLAC" plan $llama --preset nano --plan full,cola -D R=8 --json >"$work/out" 2>&1 || fail 'full does not know R, cola does:' "$work/out"
same '-D R=8' "$(sed -n 2p "$work/out" | key params_low_rank)" $((6 * (4 * 8 * 2 * 192 + 3 * 8 * (192 + 512))))
"$COLAC" plan $llama --preset nano --plan full,gcp -D R=8 >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'help: it is declared by plan `cola`' "$work/out" || fail 'no plan knows R' "$work/out"
"$COLAC" plan $llama --preset nano --plan full,cola -D Rr=8 --json >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'help: did you mean `R`' "$work/out" || fail 'no plan knows Rr' "$work/out"
printf 'model m {\n    input x: int[N] below V\n    param e: [V -> D] ~ ones\n    minimize mean(e[x])\n}\ndim N = 2, V = 3, D = 4\n' >"$work/none.cola"
# Without products there is no ratio of them.
{ cat "$work/none.cola"; echo 'plan full { }'; } >"$work/sums.cola"
"$COLAC" plan "$work/sums.cola" --no-predict >"$work/out" 2>&1 || fail 'a model without products:' "$work/out"
grep -q 'nan' "$work/out" && fail 'a ratio of nothing:' "$work/out"
# All cards of an architecture; bf16 where there is none.
"$COLAC" plan $llama --preset nano --plan full --device cuda:sm_90 >"$work/out" 2>&1 && grep -q ' h100 *h200$' "$work/out" ||
    fail 'the cards of sm_90:' "$work/out"
"$COLAC" check $llama --preset nano --precision bf16 --device cuda:sm_75 >"$work/out" 2>&1 &&
    grep -q 'this device does not multiply bf16 values' "$work/out" || fail 'bf16 on sm_75:' "$work/out"
"$COLAC" check $llama --preset nano --precision bf16 --device cuda:sm_80 2>&1 | grep -q 'does not multiply' && fail 'bf16 on sm_80 is refused'
# What a step runs, as the programs say.
"$COLAC" build $llama --preset nano --plan cola -o "$work/built" >"$work/out" 2>&1 || fail 'build:' "$work/out"
"$COLAC" check $llama --preset nano --plan cola --json >"$work/out"
for kind in launch:kernels product:dots copy:copies zero:zeroes; do
    same "steps: ${kind%:*}" "$(key ${kind#*:} <"$work/out" | tail -n 1)" \
        "$(cat "$work/built/micro.txt" "$work/built/update.txt" | grep -c "^  [0-9]* ${kind%:*} ")"
done
# More blocks than a grid has are said by build; the time is predicted all the same.
"$COLAC" plan $llama --preset nano -D L=1 -D B=100000000 --plan full --device cuda >"$work/out" 2>&1 ||
    fail 'a very large batch on a card:' "$work/out"
"$COLAC" build $llama --preset nano -D L=1 -D B=100000000 --plan full --device cuda:sm_90 -o "$work/huge" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'blocks, and a card.s grid has at most 2147483647' "$work/out" || fail 'a very large batch for a card:' "$work/out"
[ ! -e "$work/huge" ] || fail 'a refused build left a folder'
# Many sums of many columns in one pass: shared memory holds those of a block, chunks and totals.
{
    printf 'use "std.cola"\ndim B = 70, N = 65536, V = 256\nmodel m {\n    input t: int[B] below V\n'
    printf '    param e: [V -> N] ~ normal(1)\n    param g: [N] ~ ones\n    x = e[t]\n'
    printf '    s = (sum(x; B) + sum(x * x; B) + sum(exp(x); B) + sum(x + 1; B) + sum(x * 3; B) + sum(x - 2; B) + sum(abs(x); B) + sum(sqrt(abs(x)); B)) * g\n'
    printf '    minimize mean(s * s)\n}\nplan full { }\n'
} >"$work/columns.cola"
"$COLAC" plan "$work/columns.cola" --device cuda >"$work/out" 2>&1 || fail 'eight sums of columns on a card:' "$work/out"
"$COLAC" plan "$work/none.cola" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'none.cola:1:1: error: there is no plan' "$work/out" || fail 'a file without a plan:' "$work/out"

# What an update's matrices take does not stand in the way of what is kept.
cat >"$work/tries.cola" <<TEXT
use "$PWD/$llama"
recipe matrices {
    optimizer muon() on layer[*].{attn,ffn}.*; adamw()
    batch B
}
recipe ten {
    dim N = 10
    steps N
}
recipe twenty extends ten { dim N = 20 }
plan falling { factorize layer[3..1, 2].attn.wq with cola(8) }
plan falls { factorize layer[3..1].attn.wq with cola(8) }
plan part { memory 1.3 GiB }
plan tight { memory 20 KiB }
plan rounded { precision bf16 }
plan whole extends rounded { precision f32 }
TEXT
tries() { # COMMAND options…
    command=$1
    shift
    "$COLAC" "$command" "$work/tries.cola" --preset nano -D B=1 -D S=16 "$@" >"$work/out" 2>&1
}
tries plan --plan full --recipe matrices --explain || fail 'a recipe with matrices is not explained:' "$work/out"
in_sum=$(sed -n 's/^    in sum \([0-9,]*\) B.*/\1/p' "$work/out" | head -n 1 | tr -d ,)
tries check --plan full --recipe matrices --json
same 'kept beside a large update' "$(key kept_activations <"$work/out" | head -n 1)" "$in_sum"
tries check --plan tight --recipe matrices && fail 'memory 20 KiB is enough'
grep -q 'help: allow `memory [0-9]* MiB`$' "$work/out" || fail 'fewer sequences do not make an update smaller:' "$work/out"
tries check --plan tight
grep -q 'help: allow `memory [0-9]* MiB`, or make micro-batches smaller (`B`)$' "$work/out" || fail 'a micro-batch that is too large:' "$work/out"
for plan in falling falls; do
    tries check --plan $plan && fail "$plan: a range that holds nothing is taken"
    grep -q 'error: `3..1` holds no index' "$work/out" || fail "$plan:" "$work/out"
done
tries check --plan part || fail 'memory 1.3 GiB:' "$work/out"
tries check --recipe twenty || fail 'a recipe declares a dim of its base again:' "$work/out"
tries check --plan whole
grep -A1 ' precision f32' "$work/out" | grep -q 'exact: the same bits' || fail 'precision f32 rounds:' "$work/out"
tries check --plan rounded
grep -A1 ' precision bf16' "$work/out" | grep -q 'tolerant' || fail 'precision bf16 is exact:' "$work/out"
# Names that are not UTF-8 are no reason to end.
tries plan --no-predict --json --plan "$(printf 'full,\377')"
[ $? -eq 1 ] && grep -q '^{"plan":"?","refused":true}' "$work/out" || fail 'a plan that is no text:' "$work/out"
# A product that nobody reads is no use of its weight.
cat >"$work/unread.cola" <<'TEXT'
use "std.cola"
dim B = 8, D = 8, F = 16, V = 4
block mlp(x: [B,D]) -> [B,D] {
    param up: [D -> F] ~ normal(0.1)
    param down: [F -> D] ~ normal(0.1)
    unread = dot(2 * x, up; D)
    return dot(silu(dot(x, up; D)), down; F)
}
model m {
    input token: int[B] below V
    param embed: [V -> D] ~ normal(1)
    y = mlp(embed[token])
    minimize mean(y * y)
}
plan p { factorize mlp.up with cola(4) }
TEXT
"$COLAC" check "$work/unread.cola" --plan p --json >"$work/out" 2>&1 && [ "$(key params_low_rank <"$work/out" | head -n 1)" = 96 ] ||
    fail 'a weight that an unread value reads too is not replaced:' "$work/out"
exit $failed
