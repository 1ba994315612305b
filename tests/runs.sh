# Runs as a user meets them: their folder, evaluation elsewhere, interrupts, divergence, full disks.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "$*"
    failed=1
}
small="--preset nano -D L=1 -D D=32 -D F=48 -D H=2 -D S=16 -D B=3"
train() { # OUT options…: JSON lines in OUT.log
    out=$1
    shift
    "$COLAC" train "$model" $small --data "$work/data" --out "$work/$out" --json "$@" \
        >"$work/$out.log" 2>"$work/$out.err"
}
field() { # FILE NAME: the last value of "NAME":value
    grep -o "\"$2\": *[^,}]*" "$1" | tail -n 1 | sed 's/.*: *//'
}
near() { # A B BOUND: relative
    awk -v a="$1" -v b="$2" -v e="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a != "" && b != "" && d <= e * (b < 0 ? -b : b)) }'
}

# A text with a `use` beside it and a plan file elsewhere: a run keeps all of them.
mkdir -p "$work/texts/models" "$work/texts/plans"
cp models/llama.map "$work/texts/models/m.map"
sed 's|^use "std.cola"|use "std.cola"\nuse "../plans/more.cola"|' models/llama.cola >"$work/texts/models/m.cola"
echo 'plan unused { }' >"$work/texts/plans/more.cola"
sed -n '/^plan cola {/,/^}/p' models/llama.cola | sed 's/^plan cola/plan mine/' >"$work/texts/plans/mine.cola"
model=$work/texts/models/m.cola
# Few enough bytes that training validates on all that was held out, as eval does.
cat models/*.cola docs/*.md | head -c 40000 >"$work/text"
"$COLAC" data pack "$work/text" -o "$work/data" >/dev/null || exit 1

train first --plan "$work/texts/plans/mine.cola:mine" --recipe demo --steps 12 || fail "training: $(cat "$work/first.err")"
[ "$(grep -c '"step":' "$work/first.log")" -eq 12 ] || fail "not one line an update: $(cat "$work/first.log")"
for key in step loss lr grad_norm tokens_per_s peak_bytes; do
    [ "$(grep -c "\"$key\":" "$work/first.log")" -eq 12 ] || fail "$key is not in every line"
done
for key in final_loss val_loss compile_s; do
    tail -n 1 "$work/first.log" | grep -q "\"$key\":[0-9]" || fail "the last line has no $key"
done
[ -z "$(find "$work/first" -name '*.tmp')" ] || fail "temporary files are left"

# The run is evaluated where it was moved, its texts gone: the same loss as at the end of training.
mv "$work/first" "$work/moved" && mv "$work/texts" "$work/hidden"
"$COLAC" eval "$work/moved" --data "$work/data" --json >"$work/eval.log" 2>&1 || fail "eval: $(cat "$work/eval.log")"
near "$(field "$work/eval.log" loss)" "$(field "$work/first.log" val_loss)" 1e-6 ||
    fail "eval of a moved run: $(cat "$work/eval.log"), training said $(tail -n 1 "$work/first.log")"
"$COLAC" eval "$work/moved" --data "$work/data" --json --device interpreter >"$work/double.log" 2>&1
near "$(field "$work/double.log" loss)" "$(field "$work/eval.log" loss)" 1e-5 || fail "the interpreter evaluates to $(cat "$work/double.log")"
mv "$work/hidden" "$work/texts"

# The batch is what the recipe says, however it is cut; weights go out and in under both names.
train theirs --steps 2 --names hf || fail "training: $(cat "$work/theirs.err")"
grep -aq 'model.layers.0.self_attn.q_proj.weight' "$work/theirs/weights.safetensors" || fail "--names hf wrote own names"
"$COLAC" eval "$work/theirs" --data "$work/data" >"$work/out" 2>&1 || fail "eval of Hugging Face names: $(cat "$work/out")"
for b in 1 2 6; do
    "$COLAC" grad "$model" ${small% -D B=3} -D B=$b -D batch=6 --recipe demo --weights "$work/theirs/weights.safetensors" \
        --data "$work/data" -o "$work/g$b.safetensors" --json >"$work/g$b.log" 2>&1 || fail "grad: $(cat "$work/g$b.log")"
done
near "$(field "$work/g1.log" loss)" "$(field "$work/g6.log" loss)" 1e-6 || fail "B=1: $(cat "$work/g1.log"), B=6: $(cat "$work/g6.log")"
near "$(field "$work/g2.log" loss)" "$(field "$work/g6.log" loss)" 1e-6 || fail "B=2: $(cat "$work/g2.log"), B=6: $(cat "$work/g6.log")"
train odd --recipe demo -D batch=7 && fail "a batch of 7 in threes was accepted"
grep -q 'no multiple of a micro-batch' "$work/odd.err" || fail "batch=7: $(cat "$work/odd.err")"

# The peak that check prints before step 1 is what the run holds.
"$COLAC" check "$model" ${small} --recipe demo --json >"$work/check.log" 2>&1
"$COLAC" train "$model" ${small} --recipe demo --steps 1 --data "$work/data" --out "$work/peak" --json >"$work/peak.log" 2>/dev/null
[ "$(field "$work/check.log" peak)" = "$(head -n 1 "$work/peak.log" >"$work/line"; field "$work/line" peak_bytes)" ] ||
    fail "peak: $(cat "$work/check.log"), $(head -n 1 "$work/peak.log")"

# A run that diverges says where, and what was there stays.
cp "$work/moved/weights.safetensors" "$work/before"
train moved --recipe demo --steps 30 -D lr=1e30 -D warmup=0 -D clip=0 --keep-gradients
[ $? -eq 1 ] || fail "a diverging run exits with another code than 1"
grep -q 'of update 2 is NaN' "$work/moved.err" || fail "divergence: $(cat "$work/moved.err")"
grep -q 'no finite number' "$work/moved.err" || fail "the first bad tensor is not named: $(cat "$work/moved.err")"
grep -q 'help: ' "$work/moved.err" || fail "no remedy for divergence"
cmp -s "$work/before" "$work/moved/weights.safetensors" || fail "a diverging run changed the weights"
train checked --steps 3 --check-nan || fail "--check-nan stops a sound run: $(cat "$work/checked.err")"
train checked --steps 2 --check-nan --device interpreter || fail "--check-nan stops a sound run in double: $(cat "$work/checked.err")"
# names of Hugging Face that nothing tells
cp "$work/texts/models/m.cola" "$work/texts/models/unmapped.cola"
"$COLAC" train "$work/texts/models/unmapped.cola" $small --steps 1 --names hf --data "$work/data" --out "$work/unmapped" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'unmapped.cola:1:1: error: `--names hf`' "$work/out" || fail "--names hf without a mapping: $(cat "$work/out")"
# reading is another matter: a run from before that was asked is evaluated
"$COLAC" train "$work/texts/models/unmapped.cola" $small --steps 1 --data "$work/data" --out "$work/unmapped" >"$work/out" 2>&1 &&
    sed -i 's/"names": "own"/"names": "hf"/' "$work/unmapped/run.json" &&
    "$COLAC" eval "$work/unmapped" --data "$work/data" >"$work/out" 2>&1 || fail "eval of own names: $(cat "$work/out")"
# minus infinity in a table is no mistake, whatever a kernel has beside its pointers
cat >"$work/minus.cola" <<'END'
use "std.cola"
dim B = 4, S = 16, V = 256, N = 32
model m {
    input t: int[B,S] below V
    param embed: [V -> N] ~ normal(1)
    param g: [N] ~ ones
    x = embed[t]
    w = sum(exp(log(index(N)) + x); S)
    minimize mean(w * g)
}
END
"$COLAC" train "$work/minus.cola" --steps 2 --check-nan --data "$work/data" --out "$work/minus" >"$work/out" 2>&1 ||
    fail "--check-nan stops a run whose table has minus infinity: $(cat "$work/out")"
train odd --device interpreter --recipe demo --steps 30 -D lr=1e300 -D warmup=0 -D clip=0 --keep-gradients
[ $? -eq 1 ] && grep -q 'first value to become' "$work/odd.err" || fail "divergence in double: $(cat "$work/odd.err")"
[ -e "$work/odd/weights.safetensors" ] && fail "a diverged run wrote weights"

# A full disk: the code is cached by now, the weights do not fit.
train full --steps 1 || fail "$(cat "$work/full.err")"
cp "$work/full/weights.safetensors" "$work/before"
(ulimit -f 20 && train full --steps 2) && fail "a full disk was not noticed"
grep -q 'cannot be written' "$work/full.err" || fail "full disk: $(cat "$work/full.err")"
cmp -s "$work/before" "$work/full/weights.safetensors" || fail "a full disk damaged the weights"
[ -z "$(find "$work/full" -name '*.tmp')" ] || fail "a full disk left temporary files"
"$COLAC" grad "$model" $small --weights "$work/full/weights.safetensors" --data "$work/data" -o /dev/full >"$work/out" 2>&1 &&
    fail "grad into /dev/full succeeded"
grep -q '^/dev/full:1:1: error: cannot be written: No space left' "$work/out" || fail "/dev/full: $(cat "$work/out")"

# An interrupt ends the run after the update at hand, weights written.  One thread takes it, and it
# computes nothing: oneDNN's products for AVX2 borrow the stack pointer.
for signal in INT:130 TERM:143; do
    rm -rf "$work/stopped" "$work/stopped.log"
    "$COLAC" train "$model" $small --data "$work/data" --out "$work/stopped" --json --steps 100000000 \
        --threads 2 >"$work/stopped.log" 2>&1 &
    pid=$!
    tries=0
    while ! grep -q '"step":3,' "$work/stopped.log" 2>/dev/null && [ $tries -lt 600 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    blocked=$(cat /proc/$pid/task/*/status | grep -c '^SigBlk:.*4..2$')
    [ "$blocked" -ge 2 ] && [ "$blocked" -eq $(($(ls /proc/$pid/task | wc -l) - 1)) ] ||
        fail "$blocked of $(ls /proc/$pid/task | wc -l) threads hold interrupts back"
    kill -${signal%:*} $pid
    wait $pid
    code=$?
    [ $code -eq ${signal#*:} ] || fail "$signal: exit $code: $(tail -n 3 "$work/stopped.log")"
    grep -q '"interrupted": true' "$work/stopped/run.json" || fail "run.json does not say that it was interrupted"
    grep -q '"device": "cpu"' "$work/stopped/run.json" || fail "run.json does not say what computed"
done
"$COLAC" eval "$work/stopped" --data "$work/data" >"$work/out" 2>&1 || fail "eval of an interrupted run: $(cat "$work/out")"

# What is no run.
"$COLAC" eval "$work/none" --data "$work/data" >"$work/out" 2>&1 && fail "no run was evaluated"
grep -q "^$work/none/run.json:1:1: error" "$work/out" || fail "no run: $(cat "$work/out")"
for record in '' '{' '[]' '{"format": 2}' '{"format": 1}' '{"format": 1, "model": 3, "names": "own"}' \
    '{"format": 1, "model": "texts/models/m.cola", "names": "own", "defines": [["D"]]}'; do
    printf '%s' "$record" >"$work/stopped/run.json"
    "$COLAC" eval "$work/stopped" --data "$work/data" >"$work/out" 2>&1
    [ $? -eq 1 ] && grep -q "run.json:1:1: error: this is not the record of a run" "$work/out" || fail "$record: $(cat "$work/out")"
done
exit $failed
