# A layer written by hand in the model, with the library's block under the weight's name as its
# label, is the layer that `factorize` makes: the same parameters, the same graph under every plan,
# and the same bits after 20 updates.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "$*"
    failed=1
}

text() { # the model, with these lines for attn's and ffn's products
    cat <<TEXT
use "std.cola"
dim B = 4, S = 24, T = S, V = 256
dim D = 32, F = 80, L = 2, H = 2, K = D / H, R = 8
block attn(x: [B,S,D]) -> [B,S,D] {
$1
    p = softmax(where(index(T) <= index(S), dot(q, k; K) / sqrt(K), -inf); T)
    mixed = dot(p, v; T)
    return $2
}
block ffn(x: [B,S,D]) -> [B,S,D] {
$3
}
block layer(x: [B,S,D]) -> [B,S,D] {
    mid = x + attn(attn_norm: rmsnorm(x; D))
    return mid + ffn(ffn_norm: rmsnorm(mid; D))
}
model m {
    input tokens:  int[B,S] below V
    input targets: int[B,S] below V next 1
    param embed: [V -> D] ~ normal(0.02)
    param head:  [D -> V] ~ normal(0.02)
    x = embed[tokens]
    for i in L { x = layer(x) }
    minimize mean(cross_entropy(dot(x, head; D), targets; V))
}
plan plain $4
plan all   extends plain { recompute layer[*] }
plan low   extends plain { recompute layer[*] keep mid, **.low }
plan pre   extends plain { recompute layer[*].{attn,ffn} keep **.pre }
plan inner extends plain { recompute layer[0].attn.wq, layer[*].ffn.up }
TEXT
}
text '    param wq, wk, wv: [D -> H,K] ~ normal(0.02)
    param wo: [H,K -> D] ~ normal(0.02)
    q = rope(dot(x, wq; D); S, K)
    k = rope(dot(x, wk; D); S, K)[S as T]
    v = dot(x, wv; D)[S as T]' 'dot(mixed, wo; H, K)' '    param gate, up: [D -> F] ~ normal(0.02)
    param down: [F -> D] ~ normal(0.02)
    return dot(silu(dot(x, gate; D)) * dot(x, up; D), down; F)' \
    '{ factorize layer[*].attn.{wq,wk,wv,wo}, layer[*].ffn.{gate,up,down} with cola(R) }' >"$work/plan.cola"
text '    q = rope(wq: cola(x; D -> H,K; R); S, K)
    k = rope(wk: cola(x; D -> H,K; R); S, K)[S as T]
    v = (wv: cola(x; D -> H,K; R))[S as T]' 'wo: cola(mixed; H,K -> D; R)' \
    '    return down: cola(silu(gate: cola(x; D -> F; R)) * (up: cola(x; D -> F; R)); F -> D; R)' \
    '{ }' >"$work/hand.cola"

parameters() { "$COLAC" check "$work/$1.cola" --plan plain --params --json | grep '"parameter"' | sed 's/, "low_rank.*//'; }
parameters plan >"$work/a"
parameters hand >"$work/b"
[ "$(wc -l <"$work/a")" -eq 34 ] || fail "34 parameters are expected: $(wc -l <"$work/a")"
cmp -s "$work/a" "$work/b" || fail "other parameters: $(diff "$work/a" "$work/b" | head -n 5)"

for i in 1 2; do cat docs/language.md README.md; done >"$work/all"
"$COLAC" data pack "$work/all" -o "$work/data" >/dev/null || exit 1
run() { # TEXT PLAN
    "$COLAC" train "$work/$1.cola" --plan "$2" --data "$work/data" --out "$work/$1_$2" --steps 20 --json 2>&1 |
        grep -o '"loss":[^,]*' >"$work/$1.losses"
    "$COLAC" check "$work/$1.cola" --plan "$2" --json | sed 's/"params_low_rank":[0-9]*//' >"$work/$1.figures"
}
for plan in plain all low pre inner; do
    run plan $plan
    run hand $plan
    [ "$(wc -l <"$work/plan.losses")" -eq 20 ] || fail "$plan: no 20 losses"
    cmp -s "$work/plan.losses" "$work/hand.losses" || fail "$plan: other losses by hand"
    cmp -s "$work/plan.figures" "$work/hand.figures" ||
        fail "$plan: other figures by hand: $(cat "$work/plan.figures" "$work/hand.figures")"
    cmp -s "$work/plan_$plan/weights.safetensors" "$work/hand_$plan/weights.safetensors" ||
        fail "$plan: other weights by hand"
    cmp -s "$work/plan_plain/weights.safetensors" "$work/plan_$plan/weights.safetensors" ||
        fail "$plan: other weights than without recomputation"
done
exit $failed
