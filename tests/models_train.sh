# Every shipped model trains: on text that repeats itself the loss falls well below that of a uniform
# guess, and held-out loss with it.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
i=0
while [ $i -lt 400 ]; do
    echo "the quick brown fox jumps over the lazy dog, and the dog does not mind at all."
    i=$((i + 1))
done >"$work/text"
"$COLAC" data pack "$work/text" -o "$work/words" >/dev/null || exit 1
# For the masked tokens of BERT: long runs of a letter, which their neighbours give away.
for round in 1 2 3 4 5 6 7 8; do
    for letter in a b c d e f g h i j k l m n o p q r s t u v w x y z; do
        head -c 150 /dev/zero | tr '\0' $letter
    done
done >"$work/runs"
"$COLAC" data pack "$work/runs" -o "$work/letters" >/dev/null || exit 1
failed=0
trains() { # BOUND DATA MODEL options…: the held-out loss ends below BOUND nats (a guess: 5.5)
    bound=$1 data=$2 model=$3
    shift 3
    "$COLAC" train "models/$model.cola" --preset nano --recipe demo --data "$work/$data" --out "$work/run" \
        -D warmup=10 -D validate=0 --json "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    loss=$(tail -n 1 "$work/log" | sed 's/.*"val_loss":\([0-9.]*\).*/\1/')
    awk -v l="$loss" -v b="$bound" 'BEGIN { exit !(l != "" && l + 0 < b) }' ||
        { echo "$model $*: held-out loss $loss, not below $bound"; failed=1; }
}
trains 1.5 words llama -D L=2 -D D=64 -D F=96 -D H=2 -D S=64 -D B=4 --steps 80
trains 1.5 words llama -D L=2 -D D=64 -D F=96 -D H=2 -D S=64 -D B=4 --steps 80 --plan cola
trains 1.5 words gpt2 -D L=2 -D D=64 -D H=2 -D S=64 -D B=4 --steps 80
trains 1.5 letters bert -D L=2 -D D=64 -D H=2 -D S=64 -D B=8 --steps 300
trains 1.5 words mlp --steps 300
trains 1.5 words mlp --steps 300 --plan cola
exit $failed
