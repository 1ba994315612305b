# The machinery of bench/quality against results by hand: what text.c keeps, splits and drops; which
# runs queue.awk asks for; what report.awk makes of the results.  Nothing is trained.
set -u
export LC_ALL=C
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

same() { # WHAT WANTED GOT
    [ "$2" = "$3" ] && return 0
    printf '%s\n  wanted: %s\n  got:    %s\n' "$1" "$2" "$3"
    failed=1
}

# ---- text: 400 entries and 400 files; a long paragraph in each, and one that all share ----------
shared="This paragraph stands in every document and is longer than forty bytes by far."
mkdir -p "$work/in" "$work/out"
awk -v shared="$shared" 'BEGIN {
    printf "00-database-info\n   not an entry\n\n"
    for (i = 1; i <= 400; i++) {
        printf "Word%d \\Wo\"rd\\, n. [L. verbum.]\n   1. Meaning   %d of a word that nobody ever says aloud. [Obs.]\n", i, i
        printf "      [1913 Webster]\n\n   {See}, other [WordNet 1.5 +PJC]\n\n   %s\n   [PJC]\n\n", shared
    }
}' | gzip >"$work/in/words.dict.dz"
printf 'gcide\t%s\n' "$work/in/words.dict.dz" >"$work/list"
i=1
while [ $i -le 400 ]; do
    printf 'Title %d, which has more than forty bytes so as to count\n\n\n  :: \n\n  This paragraph stands in every\ndocument and is longer than forty bytes by far.\n\n::\n' $i >"$work/in/file$i"
    printf 'files\t%s\n' "$work/in/file$i"
    i=$((i + 1))
done >>"$work/list"
cc -std=c17 -O1 -Wall -Wextra -Werror -o "$work/text" bench/quality/text.c -lz -lxxhash || exit 1
"$work/text" "$work/list" "$work/out" >"$work/counts" || exit 1
all="$work/out/train.txt $work/out/test-gcide.txt $work/out/valid-gcide.txt $work/out/test-files.txt $work/out/valid-files.txt"
same "every meaning is kept once" 400 "$(cat $all | grep -c '^1\. Meaning [0-9]* of a word that nobody ever says aloud\. \[Obs\.\]$')"
same "every title is kept once" 400 "$(cat $all | grep '^Title' | sort -u | wc -l)"
same "tags are gone" 0 "$(cat $all | grep -c 'Webster\|WordNet\|PJC')"
same "what is no entry is left out" 0 "$(cat $all | grep -c 'database\|not an entry')"
same "a shared paragraph stands once in all" 1 "$(cat $all | tr '\n' ' ' | grep -o 'This paragraph stands in every document' | wc -l)"
same "and is held out where it can be" 0 "$(tr '\n' ' ' <"$work/out/train.txt" | grep -c 'This paragraph')"
same "short paragraphs stay" 800 "$(cat $all | grep -c '^ *:: *$')"
held=$(cat "$work"/out/test-*.txt "$work"/out/valid-*.txt | grep -c '^Title\|^1\. Meaning')
[ "$held" -ge 20 ] && [ "$held" -le 64 ] || same "some 40 of 800 documents are held out" 40 "$held"
first=$(head -n 400 "$work/out/train.txt" | grep -c '^Title')
[ "$first" -ge 20 ] || same "sources are mixed" "20 or more titles in the first 400 lines" "$first"
cp "$work/out/train.txt" "$work/before"
"$work/text" "$work/list" "$work/out" >/dev/null
cmp -s "$work/before" "$work/out/train.txt" || same "the order is a function of the text" same other

# ---- the queue -----------------------------------------------------------------------------------
echo 'a full 8 8 0' >"$work/arms"
run() { # ARM BYTES LR SEED VALID TEST
    echo "{\"kind\":\"run\",\"setup\":\"s\",\"arm\":\"$1\",\"updates\":$(($2 / 8192)),\"tokens\":$2,\"lr\":\"$3\",\"seed\":$4,\"diverged\":$([ "$5" = null ] && echo true || echo false),\"valid\":$5,\"test\":$6,\"test_by_source\":{\"gcide\":$6},\"params\":1,\"train_flops\":$(awk -v t=$2 -v f="${7:-1}" 'BEGIN { printf "%.6e", t * f }'),\"peak_bytes\":1048576,\"wall_s\":1,\"commit\":\"c\",\"processor\":\"p\"}"
}
queue() { awk -v setup=s -v stage="${1:-all}" -v only= -f bench/quality/queue.awk "$work/arms" "$work/results" | cut -d ' ' -f 6-8 | paste -sd '|'; }
: >"$work/results"
same "four rates first" "4194304 1.7e-3 11|4194304 3e-3 11|4194304 1e-3 11|4194304 5e-3 11" "$(queue)"
same "nothing at full length before" "" "$(queue full)"
{ run a 4194304 1e-3 11 10.5 0; run a 4194304 1.7e-3 11 9.75 0; run a 4194304 3e-3 11 9.5 0; } >>"$work/results"
same "what is there is not asked for" "4194304 5e-3 11" "$(queue)"
run a 4194304 5e-3 11 9.25 0 >>"$work/results"
same "the best is at the edge: one further" "4194304 8e-3 11" "$(queue)"
run a 4194304 8e-3 11 null null >>"$work/results"
full="16777216 5e-3 1|16777216 5e-3 2|16777216 5e-3 3|16777216 3e-3 1|16777216 3e-3 2|16777216 3e-3 3"
same "one that diverged is the worst; the better neighbour" "$full" "$(queue)"
same "tuning is complete" "" "$(queue tune)"
sed -i 's/"setup":"s"/"setup":"t"/' "$work/results"
same "other setups do not count" "4194304 1.7e-3 11|4194304 3e-3 11|4194304 1e-3 11|4194304 5e-3 11" "$(queue)"

# ---- the report: 0.02, 0.03, 0.04 has deviation 0.01, so its interval is ± 4.303 · 0.01 / √3 --------
for arm in cola lowrank full dense_flops; do echo "$arm full 8 8 0"; done >"$work/arms"
for seed in 1 2 3; do
    for lr in 1e-3 2e-3; do # the higher rate is worse on valid; its test would show
        worse=$([ $lr = 1e-3 ] && echo 0 || echo 1)
        run cola 16777216 $lr $seed $((1 + worse)).5 1.5${worse}0 4
        run lowrank 16777216 $lr $seed $((1 + worse)).5 1.4$((9 - seed))
        run full 16777216 $lr $seed $((1 + worse)).5 1.00 16
        # a line from 2.02 at 1 to 1.00 at 16 FLOPs has 1.51 at 4
        run dense_flops 16777216 $lr $seed $((1 + worse)).5 2.0$((seed * 2)) 1
    done
done >"$work/results"
report=$(awk -v setup=s -v points="$work/points" -f bench/quality/report.awk "$work/arms" "$work/results")
row() { echo "$report" | grep "^| $1\." | cut -d '|' -f 3-; }
same "hypothesis 1" " +0.4900, +0.4900, +0.4900 | +0.4900 | +0.4900 … +0.4900 | **refuted** |" "$(row 1)"
same "hypothesis 2" " -0.0100, -0.0200, -0.0300 | -0.0200 | -0.0448 … +0.0048 | **undecided** |" "$(row 2)"
same "hypothesis 3" " +0.0200, +0.0300, +0.0400 | +0.0300 | +0.0052 … +0.0548 | **refuted** |" "$(row 3)"
grep -v '"arm":"lowrank".*"seed":3' "$work/results" >"$work/fewer"
report=$(awk -v setup=s -v points="$work/points" -f bench/quality/report.awk "$work/arms" "$work/fewer")
same "with two seeds nothing is decided" " +0.0200, +0.0300, · | +0.0250 | -0.0385 … +0.0885 | open: runs are missing |" "$(row 3)"
exit $failed
