# Same bits in every weight after 20 updates, however the run is made: threads, again, cold and warm
# cache, fused or not, planned arena or every value its own poisoned memory.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c 200000 "${0%/*}/../tests/oracle/make.py" >"$work/text" # any text
for i in 1 2 3 4 5 6 7 8; do cat "$work/text" docs/*.md README.md; done >"$work/all" 2>/dev/null
"$COLAC" data pack "$work/all" -o "$work/data" || exit 1

failed=0
train() { # NAME PLAN options…
    name=$1 plan=$2
    shift 2
    "$COLAC" train models/llama.cola --preset nano --plan "$plan" --recipe demo -D L=2 -D S=40 -D B=3 -D batch=6 \
        --data "$work/data" --out "$work/$name" --steps 20 --json "$@" >"$work/$name.log" 2>&1 ||
        { cat "$work/$name.log"; exit 1; }
}
same() {
    if ! cmp -s "$work/reference/weights.safetensors" "$work/$1/weights.safetensors"; then
        echo "$1: weights differ from the reference run's"
        failed=1
    fi
}
for plan in full cola; do
    rm -rf "$work/reference"
    COLAC_CACHE=$work/cold train reference $plan --threads 1
    COLAC_CACHE=$work/cold train warm_$plan $plan --threads 1
    same warm_$plan
    for threads in 2 3 8; do
        train threads_${threads}_$plan $plan --threads $threads
        same threads_${threads}_$plan
    done
    train unfused_$plan $plan --no-fuse
    same unfused_$plan
    train poisoned_$plan $plan --no-reuse --poison
    same poisoned_$plan
    train unfused_poisoned_$plan $plan --no-fuse --no-reuse --poison --threads 1
    same unfused_poisoned_$plan
done

# Rows so long that they are cut in blocks, whose last sweep overwrites an operand.
cat >"$work/long.cola" <<'END'
use "std.cola"
dim B = 2, S = 4, V = 256, D = 8, F = 40000
model long {
    input tokens:  int[B,S] below V
    input targets: int[B,S] below V next 1
    param embed: [V -> D] ~ normal(1)
    param up:    [D -> F] ~ normal(1)
    param down:  [F -> V] ~ normal(0.1)
    p = softmax(dot(embed[tokens], up; D); F)
    minimize mean(cross_entropy(dot(rmsnorm(p * p; F), down; F), targets; V))
}
recipe r { optimizer adamw(lr = 1e-2)
           batch B
           steps 5 }
END
for reuse in "" "--no-reuse --poison"; do
    "$COLAC" train "$work/long.cola" --recipe r --data "$work/data" --out "$work/long${reuse:+_apart}" $reuse \
        >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
done
cmp "$work/long/weights.safetensors" "$work/long_apart/weights.safetensors" || failed=1

# The comparison can fail: another seed gives other weights.
train other cola --seed 2
cmp -s "$work/reference/weights.safetensors" "$work/other/weights.safetensors" &&
    { echo "another seed gave the same weights"; failed=1; }
exit $failed
