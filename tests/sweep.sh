# Sweeps: rows against what `check`, `train` and `eval` say of the same request; taking rows over;
# failures; interrupts; the picture and the page.  And `colac chart`: where points are drawn.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "$*"
    failed=1
}
expect() { # CODE WORDS command…
    code=$1 words=$2
    shift 2
    "$@" >"$work/said" 2>&1
    got=$?
    [ $got -eq "$code" ] && grep -q -- "$words" "$work/said" ||
        fail "$*: exit $got (expected $code), and \`$words\` should be in: $(cat "$work/said")"
}
field() { # ROW KEY: the value of "KEY": in a line; keys are unlike
    printf '%s\n' "$1" | grep -o "\"$2\":[^,}]*" | tail -n 1 | sed 's/^[^:]*://'
}
row() { # FILE LABEL SEED
    grep "\"label\":\"$2\"" "$1" | grep "\"seed\":$3[,}]"
}
well_formed() { # FILE
    if command -v xmllint >/dev/null; then
        xmllint --noout "$1" 2>"$work/xml" || fail "$1 is not well-formed: $(head -n 3 "$work/xml")"
    elif command -v python3 >/dev/null; then
        python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$1" 2>"$work/xml" ||
            fail "$1 is not well-formed: $(tail -n 1 "$work/xml")"
    else # as many ends as beginnings, no stray &
        awk '{ gsub(/<[^>]*\/>|<[!?][^>]*>/, ""); ends += gsub(/<\/[^>]*>/, ""); begins += gsub(/<[^>]*>/, "")
               gsub(/&(amp|lt|gt|quot);/, ""); stray += gsub(/[&<>]/, "") }
             END { exit begins != ends || stray }' "$1" || fail "$1 is not well-formed"
    fi
}

cp models/llama.cola "$work/m.cola"
model=$work/m.cola
small="--preset nano -D L=1 -D D=32 -D F=48 -D H=2 -D S=16 -D B=3"
cat models/*.cola docs/*.md | head -c 40000 >"$work/text"
"$COLAC" data pack "$work/text" -o "$work/data" >/dev/null || exit 1
sweep() { # NAME options…: rows in NAME.log
    name=$1
    shift
    "$COLAC" sweep "$model" $small --json "$@" >"$work/$name.log" 2>"$work/$name.err"
}

# Without data: a row for each combination, in order; its figures are those of `check`.
sweep plans --rank 4,8 --plan full,cola,cola_m || fail "without data: $(cat "$work/plans.err")"
labels=$(grep -o '"label":"[^"]*"' "$work/plans.log" | tr '\n' ' ')
[ "$labels" = '"label":"full" "label":"cola R=4" "label":"cola R=8" "label":"cola_m R=4" "label":"cola_m R=8" ' ] ||
    fail "the combinations are $labels"
grep -q 'plan full has no `R`' "$work/plans.err" || fail "nothing says that full has no R"
same_as_check() { # LABEL options…: each number that both print
    line=$(grep "\"label\":\"$1\"" "$work/plans.log")
    shift
    "$COLAC" check "$model" $small --json "$@" >"$work/check.log" || fail "check $*"
    for key in params params_low_rank forward backward recompute head executed weights gradients optimizer \
               copies kept_activations workspace peak; do
        a=$(field "$line" $key) b=$(field "$(cat "$work/check.log")" $key)
        awk -v a="$a" -v b="$b" 'BEGIN { exit !(a != "" && b != "" && a + 0 == b + 0) }' ||
            fail "$key of $*: sweep says $a, check $b"
    done
}
same_as_check full --plan full
same_as_check 'cola R=8' --plan cola -D R=8
same_as_check 'cola_m R=4' --plan cola_m -D R=4

# With data: what `train` says, to the last digit; kept runs evaluate to their row's loss.
sweep trained --rank 4,8 --plan full,cola,cola_m --data "$work/data" --steps 6 --seeds 1,2 -o "$work/dir" \
    --keep-runs || fail "training: $(cat "$work/trained.err")"
[ "$(wc -l <"$work/trained.log")" -eq 10 ] || fail "not ten rows: $(cat "$work/trained.log")"
cmp -s "$work/trained.log" "$work/dir/sweep.jsonl" || fail "sweep.jsonl is not what was printed"
"$COLAC" train "$model" $small --plan cola -D R=8 --seed 2 --steps 6 --data "$work/data" --out "$work/run" --json \
    >"$work/train.log" 2>&1 || fail "train: $(cat "$work/train.log")"
line=$(row "$work/trained.log" 'cola R=8' 2)
for key in final_loss val_loss; do
    a=$(field "$line" $key) b=$(field "$(tail -n 1 "$work/train.log")" $key)
    awk -v a="$a" -v b="$b" 'BEGIN { exit !(a != "" && b != "" && a + 0 == b + 0) }' || fail "$key is $a, train says $b"
done
[ "$(field "$line" tokens)" = 288 ] || fail "6 updates of 3 sequences of 16 tokens are $(field "$line" tokens)"
[ "$(field "$line" peak_bytes)" = "$(field "$line" peak)" ] || fail "the measured peak is not the planned one: $line"
# Recomputation changes no bit, the seed does.
[ "$(field "$(row "$work/trained.log" 'cola_m R=8' 2)" final_loss)" = "$(field "$line" final_loss)" ] ||
    fail "cola_m does not train as cola"
[ "$(field "$(row "$work/trained.log" 'cola R=8' 1)" final_loss)" != "$(field "$line" final_loss)" ] ||
    fail "both seeds train alike"
[ "$(ls "$work/dir/runs" | wc -l)" -eq 10 ] || fail "not ten runs were kept: $(ls "$work/dir/runs")"
"$COLAC" eval "$work"/dir/runs/cola-R=8-seed-2-* --data "$work/data" --json >"$work/eval.log" 2>&1
awk -v a="$(field "$(cat "$work/eval.log")" loss)" -v b="$(field "$line" val_loss)" \
    'BEGIN { d = a - b; exit !(a != "" && d < 1e-6 && d > -1e-6) }' ||
    fail "eval of a kept run: $(cat "$work/eval.log"), its row says $(field "$line" val_loss)"

# The table: a line a row, then the mean and the standard deviation of the seeds.
"$COLAC" sweep "$model" $small --rank 4,8 --plan full,cola,cola_m --data "$work/data" --steps 6 --seeds 1,2 \
    -o "$work/dir" >"$work/table" 2>"$work/err" || fail "the table: $(cat "$work/err")"
a=$(field "$(row "$work/trained.log" full 1)" val_loss) b=$(field "$(row "$work/trained.log" full 2)" val_loss)
mean=$(awk -v a="$a" -v b="$b" 'BEGIN { d = (a - b) / 2; printf "%.4f ± %.4f", (a + b) / 2, sqrt(2 * d * d) }')
grep -q "mean.*$mean\$" "$work/table" || fail "no mean of $mean in: $(cat "$work/table")"
[ "$(grep -c '' "$work/table")" -eq 16 ] || fail "not 1 + 10 + 5 lines: $(cat "$work/table")"

# Nothing was trained again: the rows, their times included, and the picture are the same bytes.
cmp -s "$work/trained.log" "$work/dir/sweep.jsonl" || fail "taken-over rows have changed"
cp "$work/dir/sweep.svg" "$work/first.svg"
sweep again --rank 4,8 --plan full,cola,cola_m --data "$work/data" --steps 6 --seeds 1,2 -o "$work/dir" || fail again
cmp -s "$work/first.svg" "$work/dir/sweep.svg" || fail "the same rows give another picture"
# A further rank: the others' rows are taken over, and what is not asked for is kept.
sweep more --rank 8,16 --plan cola --data "$work/data" --steps 6 -o "$work/dir" || fail "more: $(cat "$work/more.err")"
[ "$(row "$work/more.log" 'cola R=8' 1)" = "$(row "$work/trained.log" 'cola R=8' 1)" ] || fail "a known row was trained again"
[ "$(grep -c '' "$work/dir/sweep.jsonl")" -eq 11 ] || fail "not 10 + 1 rows in sweep.jsonl"
# Another seed, number of updates, setting, data or text: trained anew.
anew() { # WHAT options…
    what=$1
    shift
    sweep anew --rank 8 --plan cola --data "$work/data" --steps 6 -o "$work/dir" "$@" || fail "$what: $(cat "$work/anew.err")"
    key=$(field "$(cat "$work/anew.log")" key)
    grep -q "\"key\":$key" "$work/more.log" && fail "$what: an earlier row was taken over"
}
anew seed --seed 3
anew steps --steps 5
anew order --order sequential
anew recipe -D lr=2e-3
anew memory --no-reuse
anew fusion --no-fuse
anew gradients --keep-gradients
head -c 30000 "$work/text" >"$work/less"
"$COLAC" data pack "$work/less" -o "$work/other" >/dev/null
anew data --data "$work/other"
echo '# another text' >>"$model"
anew text

# A combination that fails is a row, and the others go on.
sweep bad --over R=0,8 --over V=256,400000000000 --plan cola --data "$work/data" --steps 2 -o "$work/bad"
[ $? -eq 1 ] || fail "failures do not end in exit code 1"
[ "$(grep -c '"status":"failed"' "$work/bad.log")" -eq 3 ] || fail "not three failures: $(cat "$work/bad.log")"
[ "$(grep '"R":8,"V":256' "$work/bad.log" | grep -c '"status":"trained"')" -eq 1 ] || fail "the good one was not trained"
grep '"R":0,"V":256[,}]' "$work/bad.log" | grep -q '"error":"[^"]*:[0-9]*:[0-9]*: .*0' || fail "no reason: $(cat "$work/bad.log")"
grep -q 'failed' "$work/bad/sweep.html" || fail "the page hides failures"
[ -z "$(find "$work/bad" "$work/dir" -name '*.tmp')" ] || fail "temporary files are left"

# An interrupt ends the sweep after the run at hand; the rest follows later.
"$COLAC" sweep "$model" $small --rank 1,2,3,4,5,6,7,8 --plan cola --data "$work/data" --steps 300 -o "$work/cut" \
    >"$work/cut.log" 2>&1 &
pid=$!
until grep -q '^\[1/8\]' "$work/cut.log" || ! kill -0 $pid 2>/dev/null; do sleep 0.1; done
kill -INT $pid
wait $pid
code=$?
rows=$(grep '"status":"trained"' "$work/cut/sweep.jsonl" | grep -c '"steps":300,')
[ $code -eq 130 ] && [ "$rows" -ge 1 ] && [ "$rows" -lt 8 ] && [ "$rows" -eq "$(grep -c '' "$work/cut/sweep.jsonl")" ] ||
    fail "an interrupt: exit $code, $rows rows: $(cat "$work/cut.log")"
first=$(head -n 1 "$work/cut/sweep.jsonl")
sweep rest --rank 1,2 --plan cola --data "$work/data" --steps 300 -o "$work/cut" || fail "the rest: $(cat "$work/rest.err")"
[ "$(head -n 1 "$work/rest.log")" = "$first" ] && [ "$(grep -c trained "$work/rest.log")" -eq 2 ] || fail "the rest: $(cat "$work/rest.log")"

# The picture and the page stand alone and are XML.
for file in "$work/dir/sweep.svg" "$work/dir/sweep.html" "$work/bad/sweep.svg" "$work/bad/sweep.html"; do
    well_formed "$file"
    grep -v 'xmlns="http://www.w3.org/2000/svg"' "$file" | grep -q '<script\|<link\|<img\|@import\|url(' &&
        fail "$file needs something from elsewhere"
done
for words in '<svg ' 'cola R=8' '--steps 6' 'recompute layer' 'plan cola {' '# another text'; do
    grep -qF -- "$words" "$work/dir/sweep.html" || fail "the page has no \`$words\`"
done

# Points stand where their numbers say: places are linear in x, and on a log axis in its logarithm.
printf '{"a":{"x":%s},"y":%s,"s":"one","n":"p%s"}\n' 1 2 1 4 3 2 5 7 3 >"$work/p.jsonl"
places() { # FILE: x of circles
    grep -o '<circle class="p[0-9]*" cx="[0-9.]*" cy="[0-9.]*" r="5.0"><title>' "$1" | sed 's/.*cx="\([0-9.]*\)".*/\1/' | tr '\n' ' '
}
chart="$COLAC chart $work/p.jsonl --x a.x --y y"
$chart -o "$work/linear.svg" && $chart --log-x -o "$work/log.svg" || fail "chart"
places "$work/linear.svg" | awk '{ r = ($2 - $1) / ($3 - $1); exit !(NF == 3 && r > .749 && r < .751) }' ||
    fail "1, 4, 5 stand at $(places "$work/linear.svg")"
places "$work/log.svg" | awk '{ r = ($2 - $1) / ($3 - $1) - log(4) / log(5); exit !(NF == 3 && r > -.001 && r < .001) }' ||
    fail "logarithms of 1, 4, 5 stand at $(places "$work/log.svg")"
# The frontier goes through the points that none beats in both, and no others.
i=0
while [ $((i += 1)) -le 40 ]; do
    echo $((i * 7919 % 97)) $((i * 104729 % 89))
done >"$work/xy"
awk '{ printf "{\"x\":%d,\"y\":%d}\n", $1, $2 }' "$work/xy" >"$work/f.jsonl"
best=$(awk '{ x[NR] = $1; y[NR] = $2 }
    END { for (i in x) { good = 1; for (j in x) if (x[j] <= x[i] && y[j] <= y[i] && (x[j] < x[i] || y[j] < y[i])) good = 0
                         if (good && !((x[i], y[i]) in seen)) { n++; seen[x[i], y[i]] } } print n }' "$work/xy")
"$COLAC" chart "$work/f.jsonl" --x x --y y --frontier -o "$work/f.svg"
stairs=$(grep -o '<path class="f" d="[^"]*"' "$work/f.svg" | awk '{ print gsub(/[ML]/, "&"), $0 }' | sort -n | tail -n 1 | cut -d' ' -f1)
[ "$stairs" -eq $((2 * best + 1)) ] || fail "$best points are best, and the frontier has $stairs corners"
# Means: two rows of one label are one point, and its bar ends one standard deviation away.
printf '{"x":1,"y":%s,"n":"a"}\n' 1 3 >"$work/two.jsonl"
"$COLAC" chart "$work/two.jsonl" --x x --y y --label n --mean -o "$work/two.svg"
grep -q 'y: 2 ± 1.41<' "$work/two.svg" || fail "the mean of 1 and 3: $(grep title "$work/two.svg")"
# Any text and any number.
printf '{"x":%s,"y":%s,"s":"<&\\"\\u0001"}\n' 1e300 1 0 0 -1 -1e-300 1e-5 1e99 >"$work/odd.jsonl"
"$COLAC" chart "$work/odd.jsonl" --x x --y y --series s --log-y --title "$(printf '\377<&\001"')" -o "$work/odd.svg" || fail "odd values"
well_formed "$work/odd.svg"
grep -q '3 points have no place' "$work/odd.svg" || fail "nothing says that points are left out"

# What is wrong is said.
plain="$COLAC sweep $model $small"
expect 0 'keep-runs' "$COLAC" help sweep
expect 2 'takes numbers' $plain --rank 4,x
expect 2 'takes numbers' $plain --rank 4,
expect 2 'NAME=V1' $plain --over R
expect 2 'empty place' $plain --plan cola,,full
expect 2 'twice' $plain --plan cola --rank 4,8,4
expect 2 'given twice' $plain --plan cola --rank 4 --over R=8
expect 2 'by `-D` and by `--rank`' $plain --plan cola -D R=3 --rank 4
expect 2 '`--data PATH` is needed' $plain --plan cola --rank 4 --steps 3
expect 2 '`-o DIR`' $plain --plan cola --rank 4 --data "$work/data" --keep-runs
expect 2 'from 0 to' $plain --plan cola --data "$work/data" --seeds 1,99999999999999999999
expect 2 'runs; 10000 is the most' $plain --over R=$(seq -s, 200) --over V=$(seq -s, 200)
expect 1 'did you mean `cola`' $plain --plan colla --rank 4
"$COLAC" sweep "$work/none.cola" 2>/dev/null | grep -q '^none *failed$' || fail "a table of nothing but failures does not say so"
expect 1 'no dim, flag or recipe value' $plain --plan cola --over Q=4
expect 1 '^none:1:1: error' $plain --plan cola --rank 4 --data none --steps 3
expect 1 'cannot be created' $plain --plan cola --rank 4 -o "$work/text"
mkdir "$work/odd" && echo 'no rows' >"$work/odd/sweep.jsonl"
expect 1 'no JSON object' $plain --plan cola --rank 4 -o "$work/odd"
expect 2 'are needed' "$COLAC" chart "$work/p.jsonl" --x a.x
expect 1 '`--x b`: no row has a number under this key' "$COLAC" chart "$work/p.jsonl" --x b --y y -o "$work/no.svg"
expect 1 '`--series q`: no row has a value' "$COLAC" chart "$work/p.jsonl" --x a.x --y y --series q -o "$work/no.svg"
expect 2 'has an empty place' $plain --plan cola --over R=4,,8
expect 1 'did you mean `one`' "$COLAC" chart "$work/p.jsonl" --x a.x --y y --series s --line-through onee -o "$work/no.svg"
expect 1 ':1:1: error: this line is no JSON object' "$COLAC" chart "$work/text" --x a --y b -o "$work/no.svg"
expect 1 'there is no row in it' "$COLAC" chart /dev/null --x a --y b -o "$work/no.svg"
[ -e "$work/no.svg" ] && fail "a refused chart left a file"
exit $failed
