# The examples of docs/language.md and others (or of those given), as they stand there.  A block's first
# line says what it is:
#
#   ```cola FILE              a whole text
#   ```cola FILE+ OPTIONS     what is added to FILE, a text above
#   ```cola FILE@ OPTIONS     statements, in the place of `# here` in FILE
#       these are in canonical layout, and `colac check FILE OPTIONS` accepts the text
#   ```cola FILE! OPTIONS     a whole text, or (FILE@!) statements, that colac refuses:
#       the ```text block that follows is what it says
#   ```console                `$ command` and its output; they are run in turn
#
# GOLDEN=write puts what the commands print now into the document.
set -u
export OMP_NUM_THREADS=2 # peaks hold a scratchpad for each thread
export COLAC_BF16=1      # the same text on a processor without products of bf16 values
if [ $# -eq 0 ]; then
    failed=0
    for document in language plans sweep; do sh "$0" docs/$document.md || failed=1; done
    exit $failed
fi
least=4
[ "$1" = docs/language.md ] && least=20
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name_of_document=$1
document=$PWD/$1
cp models/*.cola "$work"
mkdir "$work/bin"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$COLAC" >"$work/bin/colac"
chmod +x "$work/bin/colac"
PATH=$work/bin:$PATH
cd "$work" || exit 1

# Each block into N.body, its first line into N.info.
awk '
    /^```/ && !open { open = 1; n++; sub(/^```/, ""); print > (n ".info"); printf "" > (n ".body"); next }
    /^```/          { open = 0; close(n ".info"); close(n ".body"); next }
    open            { print > (n ".body") }
    END             { print n > "count" }
' "$document"

failed=0 checked=0
fail() {
    echo "$name_of_document, example $n ($file): $1"
    cat "${2:-/dev/null}"
    failed=1
}

# Statements in the place of `# here`, indented as it is.
insert() {
    awk -v statements="$2" '
        /^ *# here$/ {
            indent = $0
            sub(/#.*/, "", indent)
            while ((getline line < statements) > 0) print (line == "" ? "" : indent line)
            next
        }
        { print }
    ' "$1"
}

accept() { # FILE OPTIONS
    colac fmt --check "$1" >out 2>&1 && [ ! -s out ] || fail "not in canonical layout" out
    colac check "$@" >out 2>&1 || fail "refused" out
}

refuse() { # FILE OPTIONS
    colac check "$@" >out 2>&1
    [ $? -eq 1 ] || fail "should be refused" out
    [ "$(cat $((n + 1)).info)" = text ] || fail "no text block follows"
    [ "${GOLDEN:-}" = write ] && cp out $((n + 1)).body
    cmp -s out $((n + 1)).body || { diff $((n + 1)).body out >difference; fail "says something else" difference; }
}

cola() { # NAME OPTIONS: the words after `cola`
    name=$1
    shift
    file=${name%[+@!]}
    file=${file%@}
    checked=$((checked + 1))
    case $name in
    *@!) cp "$file" base && insert base $n.body >"$file" && refuse "$file" "$@"; mv base "$file" ;;
    *@) cp "$file" base && insert base $n.body >"$file" && accept "$file" "$@"; mv base "$file" ;;
    *+) { echo && cat $n.body; } >>"$file" && accept "$file" "$@" ;;
    *!) cp $n.body "$file" && refuse "$file" "$@" ;;
    *) cp $n.body "$file" && accept "$file" "$@" ;;
    esac
}

console() {
    file=console failed_before=$failed
    awk '/^\$ / { m++; sub(/^\$ /, ""); print > ("command" m); printf "" > ("output" m); next }
         { print > ("output" m) }
         END { print m + 0 > "commands" }' $n.body
    m=0
    while [ $((m += 1)) -le "$(cat commands)" ]; do
        checked=$((checked + 1))
        sh "command$m" >out 2>&1
        cmp -s out "output$m" || { diff "output$m" out >difference; fail "$(cat "command$m")" difference; }
    done
    if [ "${GOLDEN:-}" = write ]; then
        m=0
        while [ $((m += 1)) -le "$(cat commands)" ]; do
            printf '$ %s\n' "$(cat "command$m")"
            sh "command$m" 2>&1
        done >$n.body
        failed=$failed_before
    fi
    rm -f command? output? commands
}

n=0
while [ $((n += 1)) -le "$(cat count)" ]; do
    set -- $(cat $n.info)
    [ $# -gt 0 ] || continue
    kind=$1
    shift
    case $kind in
    cola) cola "$@" ;;
    console) console ;;
    esac
done
# The document again, with the bodies of its blocks as they are now.
if [ "${GOLDEN:-}" = write ]; then
    awk '
        /^```/ && !open { open = 1; print; n++; while ((getline line < (n ".body")) > 0) print line; next }
        /^```/          { open = 0; print; next }
        !open           { print }
    ' "$document" >written
    cmp -s written "$document" || cat written >"$document"
fi
[ "$checked" -ge $least ] || { echo "only $checked examples were found in $name_of_document"; failed=1; }
exit $failed
