# Where a recipe lets each gradient be used and forgotten at once, there is no slab of them, every
# new weight is computed into the place of the old one, and weights and losses are the same bit for
# bit as with the slab, under plans and precisions, fused or not, on any number of threads.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for i in 1 2; do cat docs/*.md README.md tests/oracle/make.py; done >"$work/all"
"$COLAC" data pack "$work/all" -o "$work/data" >/dev/null || exit 1
failed=0
sizes="-D V=256 -D D=48 -D F=112 -D H=4 -D L=2 -D S=40 -D B=3"
fail() {
    echo "$*"
    failed=1
}

train() { # NAME MODEL options…
    name=$1 model=$2
    shift 2
    "$COLAC" train "models/$model.cola" --data "$work/data" --out "$work/$name" --json "$@" \
        >"$work/$name.log" 2>&1 || { cat "$work/$name.log"; exit 1; }
    grep -o '"loss":[^,]*' "$work/$name.log" >"$work/$name.losses"
    [ "$(wc -l <"$work/$name.losses")" -eq 20 ] || { echo "$name: not 20 losses"; exit 1; }
}
same() { # WHAT A B
    cmp -s "$work/$2.losses" "$work/$3.losses" &&
        cmp -s "$work/$2/weights.safetensors" "$work/$3/weights.safetensors" ||
        fail "$1: other losses or weights than with the gradients kept"
}

turn=0
for recipe in at_once two_groups with_muon; do
    for plan in full cola cola_m; do
        turn=$((turn + 1))
        case $turn in
        1 | 5 | 9) options="--threads 3" ;;
        2 | 6 | 7) options="--no-fuse --no-reuse --poison --threads 1" ;;
        *) options="--poison" ;;
        esac
        asked="--plan $plan --recipe tests/at_once.cola:$recipe $sizes"
        train kept llama $asked --keep-gradients
        train consumed llama $asked $options
        same "$recipe, $plan" kept consumed
        cp "$work/consumed.losses" "$work/$recipe-$plan.losses"
    done
done
# The comparison can fail: other recipes give other losses.
cmp -s "$work/at_once-full.losses" "$work/two_groups-full.losses" && fail "two recipes, one run"

COLAC_BF16=1
export COLAC_BF16
asked="--plan cola_lean --precision bf16 --recipe tests/at_once.cola:at_once $sizes"
train kept llama $asked --keep-gradients
train consumed llama $asked
same "bf16" kept consumed
unset COLAC_BF16

# Some weights of one optimizer are kept, as several products add to their gradients: tied ones, and
# one that a loop uses, where a sum at the end would keep every term until then.
for model in gpt2 bert; do
    asked="-D V=256 -D D=48 -D H=4 -D L=2 -D S=40 -D B=3 --recipe tests/at_once.cola:at_once"
    [ $model = gpt2 ] || asked="$asked -D MASK=255"
    train kept $model $asked --plan gcp --keep-gradients
    train consumed $model $asked --plan gcp
    same "$model" kept consumed
done
cat >"$work/looped.cola" <<'TEXT'
use "std.cola"
dim B = 2, S = 64, V = 256, D = 128, F = 512, L = 12
block ffn(x: [B,S,D], up, down) -> [B,S,D] {
    return x + dot(gelu(dot(x, up; D)), down; F)
}
model looped {
    input tokens: int[B,S] below V
    input targets: int[B,S] below V next 1
    param embed: [V -> D] ~ normal(0.02)
    param up: [D -> F] ~ normal(0.02)
    param down: [F -> D] ~ normal(0.02)
    x = embed[tokens]
    for i in L { x = ffn(x, up, down) }
    param head: [D -> V] ~ normal(0.02)
    minimize mean(cross_entropy(dot(x, head; D), targets; V))
}
plan gcp { recompute ffn[*] }
TEXT
peak() {
    "$COLAC" check "$work/looped.cola" --plan gcp --recipe tests/at_once.cola:at_once --json "$@" |
        sed 's/.*"peak":\([0-9]*\).*/\1/'
}
[ "$(peak)" -lt "$(peak --keep-gradients)" ] || fail "looped: $(peak) bytes, kept $(peak --keep-gradients)"

bytes() { # KEY options…
    key=$1
    shift
    "$COLAC" check models/llama.cola --preset 60m "$@" --json | sed "s/.*\"$key\":\([0-9]*\).*/\1/"
}
at_once="--recipe tests/at_once.cola:at_once"
[ "$(bytes gradients $at_once)" -eq 0 ] || fail "there are gradients"
[ "$(bytes gradients $at_once --keep-gradients)" -eq "$((4 * $(bytes params)))" ] ||
    fail "--keep-gradients keeps none"
[ "$(bytes gradients)" -eq "$((4 * $(bytes params)))" ] || fail "no recipe keeps none"
[ "$(bytes gradients --recipe demo)" -eq "$((4 * $(bytes params)))" ] || fail "a clip keeps none"
# A second moment takes the memory of those that have one: with Muon, embedding, head and gains.
with_second=$((2 * 32000 * 512 + 17 * 512))
for options in "" --keep-gradients; do
    [ "$(bytes optimizer --recipe tests/at_once.cola:with_muon $options)" -eq \
        "$((4 * ($(bytes params) + with_second)))" ] || fail "with_muon $options: other moments"
done
for plan in full gcp cola cola_m; do
    [ "$(bytes peak $at_once --plan $plan)" -lt "$(bytes peak --plan $plan)" ] ||
        fail "$plan: gradients that die at once save no memory"
done

for model in llama gpt2 bert mlp; do
    for precision in f32 bf16; do
        COLAC_BF16=1 "$COLAC" ir "models/$model.cola" --precision $precision $at_once --stage fuse \
            >"$work/fused.ir" 2>&1 || { cat "$work/fused.ir"; exit 1; }
        grep -q '^  write weight .* direct' "$work/fused.ir" || fail "$model: micro writes no weight"
        copies=$(grep '^  write \(weight\|moment\|copy\)' "$work/fused.ir" | grep -cv direct)
        [ "$copies" -eq 0 ] || fail "$model, $precision: $copies new values take a copy"
    done
done

# A rate that makes it diverge: a sentence, and nothing is written.
"$COLAC" train models/mlp.cola --recipe tests/at_once.cola:at_once -D lr=1e38 -D warmup=0 \
    --data "$work/data" --out "$work/diverged" >"$work/diverged.log" 2>&1
[ $? -eq 1 ] || fail "diverged: exit code"
grep -q 'training stopped' "$work/diverged.log" || { cat "$work/diverged.log"; fail "no sentence"; }
grep -q -- '--check-nan' "$work/diverged.log" || fail "no remedy"
[ -e "$work/diverged" ] && fail "a folder of a run that diverged"
exit $failed
