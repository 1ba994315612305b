# What each plan keeps for the backward part, in the names of the text: tests/golden/kept.expect,
# which GOLDEN=write rewrites.
set -u
golden=tests/golden/kept.expect
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kept() { # MODEL PLAN
    echo "== $1, plan $2"
    "$COLAC" plan "models/$1.cola" --preset nano -D L=2 --plan "$2" --explain >"$work/said" 2>&1 || cat "$work/said"
    sed -n '/kept for the backward part/,/in sum/p' "$work/said" | sed 's/  *[a-z0-9_/]*\.cola:[0-9]*$//'
}
for plan in full gcp cola cola_gcp cola_m cola_lean; do kept llama $plan; done >"$work/got"
for model in gpt2 bert mlp; do
    for plan in gcp cola_m cola_lean; do kept $model $plan; done
done >>"$work/got"
[ "${GOLDEN:-}" = write ] && cp "$work/got" $golden
diff $golden "$work/got" || { echo "other values are kept: GOLDEN=write tests/run BUILD kept"; exit 1; }
