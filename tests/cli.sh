# The command line as a contract: exit codes, places, remedies, JSON keys.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

expect() { # CODE WORDS command…: exits with CODE and says WORDS (a pattern)
    code=$1 words=$2
    shift 2
    "$@" >"$work/out" 2>&1
    got=$?
    if [ $got -ne "$code" ] || { [ -n "$words" ] && ! grep -q -- "$words" "$work/out"; }; then
        echo "$*: exit $got (expected $code), and \`$words\` should be in:"
        cat "$work/out"
        failed=1
    fi
}

llama=models/llama.cola
"$COLAC" ir $llama --preset nano -D L=1 --stage expand >"$work/module.ir"
# usage
expect 2 'check MODEL' "$COLAC"
expect 0 'check MODEL' "$COLAC" --help
expect 0 'preset' "$COLAC" help train
expect 2 'did you mean `train`' "$COLAC" trian
expect 2 'did you mean `--plan`' "$COLAC" check $llama --plam cola
expect 2 '`--explain` is an option of `plan`' "$COLAC" check $llama --explain
expect 2 '`--weights` is an option of `train` and `grad`' "$COLAC" check $llama --weights x
expect 2 '`--plan` is given twice: `--plan cola,full` has both' "$COLAC" plan $llama --plan cola --plan full
expect 2 'there is no command `chekc`; did you mean `check`' "$COLAC" help chekc
expect 2 'needs `--dot`' "$COLAC" ir $llama --preset nano --function micro
expect 1 'there are factorize, simplify' "$COLAC" opt "$work/module.ir" --passes zzzzzz
expect 2 'needs a value' "$COLAC" check $llama --plan
expect 2 'NAME=VALUE' "$COLAC" check $llama -D D
expect 2 'usage' "$COLAC" check
expect 2 'takes a number' "$COLAC" train $llama --data x --out y --steps many
expect 2 '`--data PATH` is needed' "$COLAC" train $llama --out y
expect 2 'did you mean `fuse`' "$COLAC" ir $llama --stage fuze
# the input is wrong
expect 1 '^none.cola:1:1: error' "$COLAC" check none.cola
expect 1 'did you mean `60m`' "$COLAC" check $llama --preset 60n
expect 1 'did you mean `cola`' "$COLAC" check $llama --plan colla
expect 1 'error' "$COLAC" check $llama -D Q=3
expect 1 'error' "$COLAC" check $llama -D H=7
expect 1 '^none:1:1: error' "$COLAC" train $llama --preset nano --data none --out "$work/run"
: >"$work/empty.bin"
expect 1 "^$work/empty.bin:1:1: error" "$COLAC" train $llama --preset nano --data "$work/empty.bin" --out "$work/run"
[ -e "$work/run" ] && { echo "a refused run left $work/run behind"; failed=1; }
# a token past the vocabulary: which shard, which offset
head -c 3000 /dev/zero | tr '\0' '\377' >"$work/large.bin"
expect 1 '65535' "$COLAC" train $llama --preset nano --data "$work/large.bin" --out "$work/run"
# weights
expect 1 '^none.safetensors:1:1: error' "$COLAC" grad $llama --weights none.safetensors --data tests/oracle/gpt2/tokens.bin -o "$work/g.safetensors" --preset nano
expect 1 'embed' "$COLAC" grad $llama --weights tests/oracle/llama_full/init.safetensors --data tests/oracle/gpt2/tokens.bin -o "$work/g.safetensors" --preset nano
# too little memory, said before any is taken
for device in cpu interpreter; do
    expect 1 'are available' "$COLAC" train $llama --preset 7b -D L=1000 -D V=256 --data tests/oracle/gpt2/tokens.bin --out "$work/run" --device $device
done
# no compiler on the machine
expect 1 'apt-get install' env CC=/no/such/cc PATH=/nonexistent COLAC_CACHE="$work/cache" "$COLAC" profile $llama --preset nano -D L=1 -D S=16 -D B=1
expect 2 'from 1 on' "$COLAC" train $llama --data x --out y --steps 0
expect 0 'layer\[7\].ffn.down.B *\[R -> D\] *65,536  low rank' "$COLAC" check $llama --preset 60m --plan cola --params
# JSON of check, and figures that the paper's sizes give
expect 0 '"params":58073600[^0-9]' "$COLAC" check $llama --preset 60m --json
expect 0 '"params":42770944[^0-9]' "$COLAC" check $llama --preset 60m --plan cola --json
for key in params params_low_rank flops_per_token forward backward recompute head executed memory \
           weights gradients optimizer kept_activations workspace peak kernels dots; do
    expect 0 "\"$key\":" "$COLAC" check $llama --json
done
# the canonical layout
expect 0 '' "$COLAC" fmt --check models/*.cola frontend/std.cola
printf 'dim   D=3\n' >"$work/loose.cola"
printf 'dim D = = 3\n' >"$work/broken.cola"
expect 1 'is not in canonical layout' "$COLAC" fmt --check "$work/loose.cola"
expect 1 'broken.cola:1:9: error' "$COLAC" fmt "$work/broken.cola"
expect 0 '' "$COLAC" fmt "$work/loose.cola"
expect 0 '' "$COLAC" fmt --check "$work/loose.cola"
# IR text: print, parse, print is the identity at every stage of every model
for model in llama gpt2 bert mlp; do
    for stage in expand simplify factorize autodiff update layout fuse schedule memory; do
        "$COLAC" ir models/$model.cola --preset nano --plan cola --stage $stage >"$work/a.ir" &&
            "$COLAC" opt "$work/a.ir" >"$work/b.ir" && cmp "$work/a.ir" "$work/b.ir" ||
            { echo "$model after $stage: print, parse, print differs"; failed=1; }
    done
done
exit $failed
