# Bad input through the command line: each is refused with exit 1 and a sentence that names the place
# and the remedy, soon, and nothing half-written is left behind.
set -u
work=$(mktemp -d)
mounted=
trap '[ -n "$mounted" ] && umount "$mounted"; rm -rf "$work"' EXIT
failed=0
fail() {
    echo "$*"
    failed=1
}

# PATTERN… -- command…: exits with 1 within 30 seconds, says each PATTERN, and leaves $work/out empty.
refused() {
    patterns=$work/patterns
    : >"$patterns"
    while [ "$1" != -- ]; do
        printf '%s\n' "$1" >>"$patterns"
        shift
    done
    shift
    mkdir -p "$work/out"
    timeout 30 "$@" >"$work/said" 2>&1
    code=$?
    [ $code -eq 1 ] || fail "$*: exit $code instead of 1: $(cut -c 1-200 "$work/said" | head -n 5)"
    while read -r pattern; do
        grep -q -- "$pattern" "$work/said" || fail "$*: \`$pattern\` should be in:" "$(cut -c 1-300 "$work/said" | head -n 12)"
    done <"$patterns"
    [ -z "$(ls -A "$work/out")" ] || fail "$*: left $(find "$work/out" | tail -n 3)"
    rm -rf "$work/out"
}

# NAME: a model text on standard input, with a preamble, as $work/NAME.cola
text() {
    { printf 'use "std.cola"\ndim B = 2, S = 4, T = S, V = 8, D = 6, F = 12\n'; cat; } >"$work/$1.cola"
}
small="--preset nano -D L=1 -D D=32 -D F=48 -D H=2 -D S=16 -D B=3"
llama=models/llama.cola
cat docs/*.md | head -c 60000 >"$work/words"
"$COLAC" data pack "$work/words" -o "$work/data" >/dev/null || exit 1
train="$COLAC train $llama $small --data $work/data --out $work/out/run --steps 2"

# ---- model texts -------------------------------------------------------------------------
text character <<'TEXT'
model m {
    input tokens: int[B,S] below V
    x = 2.0 × tokens
    minimize mean(x $ 1)
}
TEXT
refused 'character.cola:5:13: error: unexpected character `×`' 'help: write `\*`' \
    'character.cola:6:21: error: unexpected `\$`' -- "$COLAC" check "$work/character.cola"

text name <<'TEXT'
model m {
    input tokens: int[B,S] below V
    minimize mean(1.0 * tokenz)
}
TEXT
refused 'name.cola:5:25: error: nothing here is named `tokenz`' 'help: did you mean `tokens`?' -- \
    "$COLAC" check "$work/name.cola"

text mismatch <<'TEXT'
model m {
    input tokens: int[B,S] below V
    param embed: [V -> D] ~ normal(1)
    param up: [D -> F] ~ normal(1)
    x = embed[tokens]
    minimize mean(x + dot(x, up; D))
}
TEXT
refused 'mismatch.cola:8:19: error: `x` has axes `\[B,S,D\]` and `dot(x, up; D)` has `\[B,S,F\]`' \
    'mismatch.cola:2:33: note: `D = 6` is declared here' 'note: `F = 7` is set by `-D`' -- \
    "$COLAC" check "$work/mismatch.cola" -D F=7

text rename <<'TEXT'
model m {
    input tokens: int[B,S] below V
    param embed: [V -> D] ~ normal(1)
    x = embed[tokens]
    s: [B,S,T] = dot(x, x; D)
    minimize mean(s)
}
TEXT
refused 'rename.cola:7:18: error: `s` is declared `\[B,S,T\]`' 'matched, not crossed: write `x\[S as T\]`' -- \
    "$COLAC" check "$work/rename.cola"

refused 'llama.cola:9:9: error: `D / H` is not whole: 512 / 7' 'note: `H = 7` is set by `-D`' \
    'help: choose sizes that divide' -- "$COLAC" check $llama -D H=7

text twins <<'TEXT'
model m {
    input tokens: int[B,S] below V
    param embed: [V -> D] ~ normal(1)
    x = rmsnorm(embed[tokens]; D)
    minimize mean(rmsnorm(x; D))
}
TEXT
refused 'twins.cola:7:19: error: two components would be called `rmsnorm`' 'twins.cola:6:9: note: the other' \
    'help: label one, as in `first: rmsnorm' -- "$COLAC" check "$work/twins.cola"

sed 's/layer\[\*\].attn.{wq,wk,wv,wo}/layer[*].attn.{wq,wx}/' $llama >"$work/selector.cola"
refused 'selector.cola:[0-9]*:[0-9]*: error: `wx` matches no parameter' 'in the place of `wx` there is `wq`, `wk`' -- \
    "$COLAC" check "$work/selector.cola" --plan cola
refused 'recipes.cola:2:32: error: `layers\[\*\].\*\*` matches no parameter' 'there is `embed`, `head`, `layer\[\*\]`' -- \
    "$COLAC" check $llama --recipe "$(printf 'recipe r {\n    optimizer adamw(lr = 1) on layers[*].**; sgd()\n    steps 1\n}\n' >"$work/recipes.cola"; echo "$work/recipes.cola:r")"

text recursive <<'TEXT'
block a(x: [B,S]) -> [B,S] { return b(x) }
block b(x: [B,S]) -> [B,S] { return a(x) }
model m {
    input tokens: int[B,S] below V
    minimize mean(a(1.0 * tokens))
}
TEXT
refused 'recursive.cola:4:37: error: `a` calls itself' 'note: in block `b` (`a.b`), called here' -- \
    "$COLAC" check "$work/recursive.cola"

# ---- plans -------------------------------------------------------------------------------
# PLAN PATTERN…: the text `plan p { PLAN }` beside the small model is refused so
plan() {
    printf 'use "llama.cola"\nplan p { %s }\n' "$1" >"$work/plan.cola"
    shift
    refused "$@" -- "$COLAC" check "$work/plan.cola" $small --plan p
}
cp $llama "$work/llama.cola"
bound='help: a bound is a whole number of bytes from 1 on, as in `memory 6 GiB`'
plan 'memory 0' 'plan.cola:2:17: error: `0` is 0, which is no bound on bytes' "$bound"
plan 'memory 1e30' 'plan.cola:2:17: error: `1e30` is 1e+30, which is no bound on bytes' "$bound"
plan 'memory D * 0' 'plan.cola:2:17: error: `D \* 0` is 0' 'note: `D = 32` is set by `-D`' "$bound"
plan 'memory 3 parsecs' 'plan.cola:2:19: error: unknown unit of memory `parsecs`' 'others are `KiB`, `MiB`'
plan 'memory 1 KiB' 'plan.cola:2:10: error: a training step of `llama` takes at least' 'help: allow `memory '
plan 'keep mid' 'plan.cola:2:10: error: expected a directive, found `keep`' 'help: `keep` follows what is recomputed'
plan '3' 'plan.cola:2:10: error: expected a directive, found `3`' 'help: a plan has `factorize`, '
plan 'recompute nothing' 'plan.cola:2:20: error: `nothing` matches no block instance' 'there is `layer\[\*\]`'
plan 'recompute layer[7]' 'plan.cola:2:20: error: `layer\[7\]` matches no block instance' 'help: '
plan 'recompute layer[*].attn keep x' 'plan.cola:2:39: error: `keep` has nothing to do for `x`' 'help: '
plan 'preset tiny { R = 3 }' 'plan.cola:2:24: error: preset `tiny` sets `R`, which is no dim' 'help: declare it: `dim R = …`'
plan 'precision fp16' 'plan.cola:2:20: error: `fp16` is no precision' 'help: it is `f32`, `tf32` or `bf16`'
factor='factorize layer[*].attn.wq with'
plan "$factor cola(0)" 'std.cola:[0-9]*:20: error: `R` is 0' 'plan.cola:2:47: note: `R = 0` is given here'
[ "$(grep -c ': error: ' "$work/said")" -eq 1 ] || fail 'rank 0 is one mistake:' "$(cat "$work/said")"
plan "$factor cola(D)" 'error: axis `D` is here twice' 'plan.cola:2:10: note: in block `cola` (`layer\[0\].attn.wq`)'
plan 'factorize **.gain with cola(4)' 'plan.cola:2:20: error: `factorize` cannot replace `layer\[0\].attn_norm.gain`' \
    'help: so it is with 3 of the weights that this selects' 'help: select weights'
[ "$(grep -c ': error: ' "$work/said")" -eq 1 ] || fail 'one selector is one mistake:' "$(cat "$work/said")"
refused 'no/plans.cola:1:1: error: cannot read it: there is no such file' 'help: name a text that is there' -- \
    "$COLAC" plan $llama $small --no-predict --plan "cola,$work/no/plans.cola:p"

# ---- charts ------------------------------------------------------------------------------
printf '{"a":1,"memory":{"peak":2}}\n{"a":\n' >"$work/rows.jsonl"
chart="--x a -o $work/out/chart.svg --y"
refused "^$work/rows.jsonl:2:1: error: this line is no JSON object" 'help: .* an object a line' -- \
    "$COLAC" chart "$work/rows.jsonl" $chart memory.peak
sed -i 2d "$work/rows.jsonl"
refused '`--y peak`: no row has a number under this key' 'help: the first row has `a`, `memory.peak`' -- \
    "$COLAC" chart "$work/rows.jsonl" $chart peak
refused '`--label name`: no row has a value' -- "$COLAC" chart "$work/rows.jsonl" $chart memory.peak --label name
refused "^$work/none.jsonl:1:1: error: cannot be read" 'help: name a file of JSON lines' -- \
    "$COLAC" chart "$work/none.jsonl" $chart memory.peak

# ---- files -------------------------------------------------------------------------------
cp $llama "$work/llama.cola"
refused "^$work/lama.cola:1:1: error: cannot read it: there is no such file" 'did you mean `.*/llama.cola`?' -- \
    "$COLAC" check "$work/lama.cola"
refused "^$work:1:1: error: cannot read it: it is a directory" -- "$COLAC" check "$work"
echo 'use "other.cola"' >"$work/uses.cola"
refused 'uses.cola:1:5: error: cannot read `.*/other.cola`: there is no such file' 'help: `use` looks beside' -- \
    "$COLAC" check "$work/uses.cola"
refused "^$work/plans.cola:1:1: error: cannot read it" -- "$COLAC" check $llama --plan "$work/plans.cola:cola"
: >"$work/nothing.cola"
refused 'nothing.cola:1:1: error: there is no model in this text' -- "$COLAC" check "$work/nothing.cola"
refused 'libc.*:1:1: error: ' -- "$COLAC" check "$(ls /lib/*/libc.so.6 | head -n 1)"
refused 'no plan is named `colla`' 'did you mean `cola`?' 'there is .*`cola_gcp`' -- "$COLAC" check $llama --plan colla
refused 'no preset is named `60n`' 'did you mean `60m`?' -- "$COLAC" check $llama --preset 60n
refused '`-D LL`: no dim, flag or recipe value has this name' 'did you mean `L`?' -- "$COLAC" check $llama -D LL=3
printf 'embed model.embed out in\nhead nonsense\n' >"$work/llama.map"
refused "^$work/llama.map:2:[0-9]*: error: " -- \
    "$COLAC" train "$work/llama.cola" $small --data "$work/data" --out "$work/out/run" --steps 2
rm "$work/llama.map"

# ---- sizes -------------------------------------------------------------------------------
refused '^-D:1:3: error: `9223372036854775808` is beyond 2^60' -- "$COLAC" check $llama -D D=9223372036854775808
refused '^-D:1:3: error: `9223372036854775807` is beyond 2^60' -- "$COLAC" check $llama -D B=9223372036854775807
refused 'llama.cola:50:5: error: this loop runs 1000000 times' 'note: `L = 1000000` is set by `-D`' -- \
    "$COLAC" check $llama -D L=1000000
refused 'llama.cola:33:.*: error: with `layer\[7\].ffn.up` the model has more than 2^60 parameters' -- \
    "$COLAC" check $llama -D F=100000000000000
refused 'llama.cola:[0-9]*:[0-9]*: error: the values of `.*` do not fit' 'the largest is this, `f32\[.*\]` of' 'help: ' -- \
    "$COLAC" check $llama --preset nano -D B=1000000000000
refused 'llama.cola:.*: error: `.*` has more than 2^60 elements' -- "$COLAC" check $llama -D B=1000000000000000
refused 'llama.cola:[0-9]*:[0-9]*: error: `D` is 0, which is no size\|error: `K` is 0, which' -- "$COLAC" check $llama -D D=0
head -c 101000000 /dev/zero | tr '\0' '#' >"$work/large.cola"
head -c 5000000 /dev/zero | tr '\0' '\n' >>"$work/large.cola"
refused 'large.cola:1:1: error: cannot read it: it is larger than 100 MB' -- "$COLAC" check "$work/large.cola"
{ printf 'dim A = '; head -c 99000000 /dev/zero | tr '\0' '('; } >"$work/large.cola"
refused 'large.cola:1:509: error: nested more than 500 levels deep' -- "$COLAC" check "$work/large.cola"
yes 'dim a = 1 $' | head -c 99000000 >"$work/large.cola"
refused 'large.cola:1:11: error: unexpected `\$`' -- "$COLAC" check "$work/large.cola"
rm "$work/large.cola"

# ---- data --------------------------------------------------------------------------------
data() { # PATTERN… for the data in $work/shard.bin
    refused "$@" -- "$COLAC" train $llama $small --data "$work/shard.bin" --out "$work/out/run" --steps 2
}
: >"$work/shard.bin"
data "^$work/shard.bin:1:1: error: the file is empty" 'help: `--data` takes' 'colac data pack'
shard=$(find "$work/data" -name 'train*.bin')
head -c 2000 "$shard" >"$work/shard.bin"
data 'shard.bin:1:1: error: its header counts [0-9]* tokens, but 976 bytes follow' 'help: the file may have been cut short'
# the 5000th token of a shard of llm.c lies at byte 1024 + 2 * 5000
cp "$shard" "$work/shard.bin"
printf '\054\001' | dd of="$work/shard.bin" bs=1 seek=11024 conv=notrunc 2>/dev/null
data 'shard.bin:1:1: error: token 5000 (at byte 11024) is 300, which is not in the vocabulary of 256' 'help: the data was made'
# a file too large to be looked through at once: the token is found when it is read, in update 9
{ head -c 800 /dev/zero; printf '\054\001'; head -c 20000000 /dev/zero; } >"$work/shard.bin"
refused 'shard.bin:1:1: error: token 400 (at byte 800) is 300' -- \
    "$COLAC" train $llama $small --order sequential --data "$work/shard.bin" --out "$work/out/run" --steps 20
head -c 20 /dev/zero >"$work/shard.bin"
data 'shard.bin:1:1: error: it has 10 tokens and no place for one sample, which takes 17' 'help: use more data'
rm "$work/shard.bin"
refused "^$work/data:1:1: error: held out for validation are [0-9]* tokens and no place" 'help: use more data' -- \
    "$COLAC" train $llama $small -D S=20000 --data "$work/data" --out "$work/out/run" --steps 2
mkdir "$work/shard.bin"
data 'shard.bin:1:1: error: there is no .bin file in this folder' 'help: `colac data pack'
rmdir "$work/shard.bin"
data "^$work/shard.bin:1:1: error: cannot be read as token data: No such file"
refused "^$work/none:1:1: error: " -- "$COLAC" data pack "$work/none" -o "$work/out/data"
printf '\037\213 this is no gzip' >"$work/broken.gz"
refused "^$work/broken.gz:1:1: error: " -- "$COLAC" data pack "$work/words" "$work/broken.gz" -o "$work/out/data"
refused "^$work/data:1:1: error: " -- "$COLAC" data pack "$work/words" -o "$work/data"

# ---- weights -----------------------------------------------------------------------------
"$COLAC" train $llama $small --data "$work/data" --out "$work/run" --steps 1 >/dev/null 2>&1 || exit 1
weights=$work/run/weights.safetensors
grad() { # FILE PATTERN… options…: patterns end at --
    file=$1
    shift
    set -- "$@" "$COLAC" grad $llama $small --weights "$file" --data "$work/data" -o "$work/out/g.safetensors"
    refused "$@"
}
grad "$work/none.safetensors" "^$work/none.safetensors:1:1: error: cannot be read" 'help: name a file of weights' --
grad "$work/words" 'words:1:1: error: not a sound safetensors file' --
head -c 5000 "$weights" >"$work/cut"
grad "$work/cut" 'cut:1:1: error: .*`embed` lies at bytes 0 to 32768 .*cut short' --
refused 'error: `layer\[0\].ffn.gate` has the shape \[32, 48\], but .* needs \[32, 64\]' 'note: `layer\[0\].ffn.gate` is declared here' \
    'help: choose the preset' -- "$COLAC" grad $llama $small -D F=64 --weights "$weights" --data "$work/data" -o "$work/out/g"
refused "^$weights:1:1: error: holds neither \`layer\[1\].attn_norm.gain\` nor \`model.layers.1.input_layernorm.weight\`" \
    'error: 9 weights of the model are missing' 'help: weights fit the model' -- \
    "$COLAC" grad $llama $small -D L=2 --weights "$weights" --data "$work/data" -o "$work/out/g"
refused 'cannot be created: No such file or directory' 'help: the folder that it would go to does not exist' -- \
    "$COLAC" grad $llama $small --weights "$weights" --data "$work/data" -o "$work/out/none/g"

# ---- a loss that is no number ------------------------------------------------------------
cp "$weights" "$work/nan"
size=$(wc -c <"$work/nan")
printf '\377\377\377\177' | dd of="$work/nan" bs=1 seek=$((size - 4)) conv=notrunc 2>/dev/null
refused 'llama.cola:1:1: error: the loss of update 1 is NaN' 'cola:[0-9]*:[0-9]*: error: in `micro`, step [0-9]* (`layer.*`) wrote a value that is no finite number' \
    'help: a weight that it reads was not finite before' -- \
    $train --weights "$work/nan"
high="$COLAC train $llama $small --recipe demo -D batch=3 -D lr=1e30 -D warmup=0 -D clip=0 --data $work/data
    --out $work/out/run --steps 5"
first='llama.cola:[0-9]*:[0-9]*: error: in `micro`, step [0-9]* (`.*`) wrote a value that is no finite number'
refused '\(loss\|gradient\) of update 2 is NaN' 'help: a lower rate (`-D lr=…`)' "$first" -- $high --keep-gradients
# Where gradients die at once, so do the weights that they came from.
refused '\(loss\|gradient norm\) of update 2 is NaN' 'help: a lower rate (`-D lr=…`).*; `--check-nan` runs' -- $high
refused 'a value of update 2 is NaN' "$first" -- $high --check-nan

# ---- the machine -------------------------------------------------------------------------
refused '^/no/such/cc:1:1: error: there is no such program' 'help: unset `CC`.*apt-get install gcc' -- \
    env CC=/no/such/cc COLAC_CACHE="$work/cache" $train
refused '^cc:1:1: error: there is no C compiler' 'help: `apt-get install gcc`' -- \
    env PATH=/nonexistent COLAC_CACHE="$work/cache" $train
printf '#!/bin/sh\necho broken compiler >&2\nexit 1\n' >"$work/badcc"
chmod +x "$work/badcc"
refused ': error: ' 'broken compiler' -- env CC="$work/badcc" COLAC_CACHE="$work/cache" $train
refused 'llama.cola:1:1: error: this needs 1.* TiB of memory, and .* are available' \
    'note: activations and workspace: .* TiB' 'help: fewer sequences' -- \
    "$COLAC" train $llama $small -D B=30000000 --data "$work/data" --out "$work/out/run" --steps 1
if (ulimit -v 1500000) 2>/dev/null && ! nm -D "$COLAC" 2>/dev/null | grep -q __asan; then
    (ulimit -v 1500000
     refused 'error: this needs .* and .* are available' -- \
        "$COLAC" train $llama --preset 350m -D V=256 --data "$work/data" --out "$work/out/run" --steps 1
     exit $failed) || failed=1
fi
# folders where nothing can be made (permissions do not bind root)
: >"$work/file"
refused "^$work/file:1:1: error: the folder cannot be created: Not a directory" 'help: name a folder' -- \
    "$COLAC" train $llama $small --data "$work/data" --out "$work/file" --steps 1
refused '^/proc/run:1:1: error: the folder cannot be created' -- \
    "$COLAC" train $llama $small --data "$work/data" --out /proc/run --steps 1
if [ "$(id -u)" != 0 ]; then
    mkdir -m 555 "$work/closed"
    refused "^$work/closed/run:1:1: error: the folder cannot be created: Permission denied" 'help: name a folder' -- \
        "$COLAC" train $llama $small --data "$work/data" --out "$work/closed/run" --steps 1
    refused "^$work/closed:1:1: error: the folder cannot be written to: Permission denied" 'help: name another folder' -- \
        "$COLAC" train $llama $small --data "$work/data" --out "$work/closed" --steps 1
fi
refused "^$work/file:1:1: error: the folder cannot be created" -- "$COLAC" build $llama $small -o "$work/file"

# ---- a full disk -------------------------------------------------------------------------
# A small file system where one can be mounted, else a limit on the size of files.  The kernels are
# in the cache by now.
mkdir "$work/disk"
if mount -t tmpfs -o size=64k tmpfs "$work/disk" 2>/dev/null; then
    mounted=$work/disk
    limit=unlimited
else
    limit=60
fi
full() { # command…: fails, says that and leaves nothing
    (ulimit -f $limit; timeout 60 "$@") >"$work/said" 2>&1
    code=$?
    [ $code -eq 1 ] || fail "a full disk, $*: exit $code: $(head -n 5 "$work/said")"
    grep -q "^$work/disk.*:1:1: error: .*\(No space left\|File too large\)" "$work/said" ||
        fail "a full disk, $*: $(head -n 5 "$work/said")"
    grep -q 'help: ' "$work/said" || fail "a full disk, $*: no remedy in $(head -n 5 "$work/said")"
    [ -z "$(find "$work/disk" -type f)" ] || fail "a full disk, $*: left $(find "$work/disk" -type f)"
    rm -rf "$work/disk/"*
}
full "$COLAC" train $llama $small --data "$work/data" --out "$work/disk/run" --steps 1
full "$COLAC" grad $llama $small --weights "$weights" --data "$work/data" -o "$work/disk/g.safetensors"
full "$COLAC" data pack "$work/words" -o "$work/disk/data"
full "$COLAC" build $llama --preset nano -o "$work/disk/build"
full "$COLAC" ir $llama --preset nano -o "$work/disk/module.ir"
exit $failed
