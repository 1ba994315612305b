#!/bin/sh
# The CPU's programs against the interpreter, on texts that reach rare corners: three updates of two
# micro-batches have the same losses, so the same gradients and the same updates.
set -u
BUILD=${BUILD:-build}
COLAC=$BUILD/colac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# Each model's body, after the inputs `tokens` and `other`, goes to $work/NAME.cola.
text() {
    {
        printf 'use "std.cola"\ndim B = 2, S = 4, T = S, V = 5, D = 3, E = 4\nmodel %s {\n' "$1"
        printf 'input tokens: int[B,S] below V\ninput other: int[B,S] below V next 1\n'
        cat
        printf '}\nrecipe quick {\noptimizer sgd(lr = 0.2)\nbatch 2 * B\n}\n'
    } >"$work/$1.cola"
}

# Parameters with the very same gradient, which is one node that several states take in.
text shared_gradient <<'END'
    param t, u, v: [V -> D] ~ normal(0.5)
    param w, z: [D -> E] ~ normal(0.5)
    param b, c: [E] ~ zeros
    x = t[tokens] + u[tokens] + v[tokens]
    minimize mean((dot(x, w; D) + dot(x, z; D) + b + c)^2)
END

# Integers beyond 32 bits, remainders and quotients by zero, buckets of anything.
text integers <<'END'
    param t: [V -> D] ~ normal(0.5)
    wrapped = (tokens * 2000000000 + other * 1999999999 - 7) % V
    by_zero = (tokens + 3) % other
    anywhere = bucket(t[tokens] * 3 - 1; V)
    x = t[V = wrapped] * (1 + by_zero) + t[tokens] * abs(tokens * 1500000000) / 2147483648
    minimize mean(where(anywhere == 2, x, 0.3 * x)^2)
END

# Losses of the updates, one a line.
losses() {
    model=$1
    shift
    "$COLAC" train "$work/$model.cola" --recipe quick --data "$work/data.bin" --order sequential \
        --steps 3 --seed 3 --json --out "$work/run" "$@" >"$work/log" 2>&1 ||
        { echo "$model $*:" && cat "$work/log"; } >&2
    sed -n 's/.*"step":[0-9]*.*"loss":\([-0-9.e+]*\).*/\1/p' "$work/log"
}

i=0 # uint16 tokens below 5
while [ $i -lt 400 ]; do
    printf "\\$(((i * i + i / 3) % 5))\\0"
    i=$((i + 1))
done >"$work/data.bin"

for model in shared_gradient integers; do
    losses $model --device interpreter >"$work/expected"
    [ "$(wc -l <"$work/expected")" -ge 3 ] || { echo "$model: no losses" && failed=1; }
    for options in "--poison" "--no-fuse --no-reuse --threads 1"; do
        # shellcheck disable=SC2086
        losses $model $options >"$work/found"
        paste "$work/expected" "$work/found" | awk -v model="$model $options" '
            function size(x) { return x < 0 ? -x : x }
            NF != 2 || size($1 - $2) > 1e-5 * (1 + size($1)) { print model ": " $0; bad = 1 }
            END { exit bad }' || failed=1
    done
done
exit $failed
