# `colac opt` runs each pass alone: from the text that `colac ir` prints before a pass it gives the
# text that `colac ir` prints after it.  Ordinals may differ: their counters are not in the text.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

fail() {
    echo "$*"
    failed=1
}
text_of() { sed 's/ ordinal [0-9]*//' "$1"; }

# PLAN RECIPE MODEL: every pass of the list, each from the text before it
each_pass() {
    plan=$1 recipe=$2 model=models/$3.cola
    common="--preset nano --recipe $recipe"
    "$COLAC" ir $model $common --plan $plan --stage expand >"$work/before" || fail "$model: expand"
    for pass in factorize simplify autodiff tables update clean precision recompute layout fuse schedule memory; do
        "$COLAC" ir $model $common --plan $plan --stage $pass >"$work/wanted" 2>/dev/null
        case $pass in
        factorize | update | precision | recompute) asks="--model $model $common --plan $plan" ;;
        *) asks= ;;
        esac
        "$COLAC" opt "$work/before" --passes $pass $asks >"$work/got" 2>"$work/said" ||
            fail "$model: opt --passes $pass: $(cat "$work/said")"
        text_of "$work/wanted" >"$work/a"
        text_of "$work/got" >"$work/b"
        cmp -s "$work/a" "$work/b" ||
            fail "$model, plan $plan: $pass gives another text alone: $(diff "$work/a" "$work/b" | head -n 5)"
        mv "$work/wanted" "$work/before"
    done
}

cat >"$work/recipes.cola" <<'TEXT'
recipe two {
    optimizer muon(lr = 0.01) on layer[*].**.{A,B}; adamw(decay = 0)
    clip 1
    steps 10
}
TEXT
each_pass cola "$work/recipes.cola:two" llama
each_pass gcp demo llama
each_pass cola_m demo llama
each_pass cola demo gpt2
each_pass cola demo bert
each_pass cola demo mlp

# Several passes at once are the same as one after the other.
llama="models/llama.cola --preset nano"
"$COLAC" ir $llama --stage expand >"$work/before"
"$COLAC" ir $llama --plan cola --stage memory | sed 's/ ordinal [0-9]*//' >"$work/wanted"
"$COLAC" opt "$work/before" --model $llama --plan cola \
    --passes factorize,simplify,autodiff,tables,update,clean,precision,recompute,layout,fuse,schedule,memory |
    sed 's/ ordinal [0-9]*//' >"$work/got"
cmp -s "$work/wanted" "$work/got" || fail "all passes at once give another text"

expect() { # CODE WORDS command…
    code=$1 words=$2
    shift 2
    "$@" >"$work/out" 2>&1
    got=$?
    if [ $got -ne "$code" ] || ! grep -q -- "$words" "$work/out"; then
        fail "$*: exit $got (expected $code), and \`$words\` should be in:" "$(cat "$work/out")"
    fi
}
at="^$work/before:1:1: error: "
expect 1 "${at}pass \`factorize\`: it asks for a model's plan" "$COLAC" opt "$work/before" --passes factorize
expect 1 "${at}pass \`layout\`: it takes.*at stage\|${at}pass \`fuse\`: it takes a module at stage layout" \
    "$COLAC" opt "$work/before" --passes fuse
expect 1 "${at}there is no pass \`fuze\`" "$COLAC" opt "$work/before" --passes fuze
expect 1 'did you mean `fuse`' "$COLAC" opt "$work/before" --passes fuze
expect 1 "${at}pass \`update\`: needs the metrics\|$work/before:1:1: error: pass \`update\`" \
    "$COLAC" opt "$work/before" --passes update,update --model $llama
expect 2 '`--plan` is about a model: name it with `--model FILE`' "$COLAC" opt "$work/before" --plan cola
expect 1 'no plan is named `colla`' "$COLAC" opt "$work/before" --passes factorize --model $llama --plan colla
expect 1 '^none.ir:1:1: error: cannot be read' "$COLAC" opt none.ir
# the plan's weights are not in this module
expect 1 'matches no parameter' "$COLAC" opt "$work/got" --passes factorize --model $llama --plan cola
printf 'module stage graph\n' >"$work/empty"
expect 1 "$work/empty:1:1: error: the module has no function \`micro\`" \
    "$COLAC" opt "$work/empty" --passes factorize --model $llama --plan cola
exit $failed
