# The rules of the house (docs/hacking.md): a folder's header opens with an index that names exactly
# the .c files of the folder; a folder includes the headers above it, never those below; no .c file
# has more than 1,500 lines.
set -u
failed=0
fail() {
    echo "$1"
    failed=1
}

folders=$(sed -n 's/^| `\([a-z]*\)\/` |.*/\1/p' docs/hacking.md)
[ "$(echo "$folders" | wc -l)" -ge 7 ] || fail "docs/hacking.md: the table of folders was not found"

above=
for folder in $folders; do
    header=$folder/$folder.h
    above="$above $folder"
    index=$(sed -n 's/^ \*   \([a-z_0-9]*\.c\) .*/\1/p; /\*\//q' "$header")
    for file in "$folder"/*.c; do
        echo "$index" | grep -qx "$(basename "$file")" || fail "$header: the index lacks $(basename "$file")"
        [ "$(wc -l <"$file")" -le 1500 ] || fail "$file: more than 1,500 lines"
    done
    for name in $index; do
        [ -e "$folder/$name" ] || fail "$header: the index names $name, which is not there"
    done
    for file in "$folder"/*.[chly]; do
        for other in $(sed -n 's/^ *# *include "\([a-z]*\)\/.*/\1/p' "$file" | sort -u); do
            case " $above " in
            *" $other "*) ;;
            *) fail "$file: includes a header of $other/, which is below $folder/ in docs/hacking.md" ;;
            esac
        done
    done
done
exit $failed
