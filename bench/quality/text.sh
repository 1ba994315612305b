#!/bin/sh
# The text of the experiment, from Debian packages to token shards; nothing is installed.
#     bench/quality/text.sh BUILD WORK
# Needs apt-get, dpkg-deb, cc, zlib and xxhash (which the build has).  Packages that are not in
# WORK/packages are downloaded.  Written: WORK/text (texts and the manifest), WORK/data/train,
# WORK/data/{valid,test}-SOURCE.  A text that is there already is kept.
set -eu
export LC_ALL=C
here=$(dirname "$0")
[ $# = 2 ] || { echo "usage: $0 BUILD WORK" >&2; exit 2; }
colac=$(realpath "$1")/colac
mkdir -p "$2/packages"
work=$(realpath "$2")
packages="dict-gcide linux-doc-6.1 python3.11-doc perl-doc dict-foldoc"
[ -e "$work/data/manifest" ] && { cat "$work/data/manifest"; exit 0; }

for package in $packages; do
    set -- "$work/packages/$package"_*.deb
    [ -e "$1" ] || (cd "$work/packages" && apt-get download -q "$package" >&2)
done
rm -rf "$work/unpacked" "$work/text" "$work/data"
mkdir -p "$work/unpacked" "$work/text" "$work/data.new"

unpack() { # PACKAGE PATTERN: the files of a package whose paths match
    mkdir -p "$work/unpacked/$1"
    dpkg-deb --fsys-tarfile "$work/packages/$1"_*.deb |
        tar -x -C "$work/unpacked/$1" --wildcards "$2"
}
unpack dict-gcide '*.dict.dz'
unpack linux-doc-6.1 './usr/share/doc/linux-doc-6.1/Documentation/*'
unpack python3.11-doc '*/_sources/*'
unpack perl-doc '*.pod'
unpack dict-foldoc '*.dict.dz'

list() { # SOURCE PACKAGE NAME…: the regular files of those names, translations left out
    source=$1 package=$2
    shift 2
    for name; do
        find "$work/unpacked/$package" -type f -name "$name" ! -path '*/translations/*'
    done | sort | sed "s|^|$source	|"
}
{
    list gcide dict-gcide '*.dict.dz'
    list linux linux-doc-6.1 '*.rst.gz' '*.txt.gz' '*.rst' '*.txt'
    list python python3.11-doc '*.txt'
    list perl perl-doc '*.pod'
    list foldoc dict-foldoc '*.dict.dz'
} >"$work/text/list"
cc -std=c17 -O2 -Wall -Wextra -Werror -o "$work/text/text" "$here/text.c" -lz -lxxhash
"$work/text/text" "$work/text/list" "$work/text" >"$work/text/counts"

for text in "$work"/text/*.txt; do
    name=$(basename "$text" .txt)
    "$colac" data pack "$text" -o "$work/data.new/$name" >/dev/null
    # The text is split already: without a shard of that name, all of a folder is one split.
    mv "$work/data.new/$name/val_000.bin" "$work/data.new/$name/train_999.bin"
done
{
    echo "# packages"
    for package in $packages; do
        dpkg-deb -f "$work/packages/$package"_*.deb Package Version | sed 's/^[^ ]* //' | paste -sd ' ' -
    done
    echo "# documents"
    cat "$work/text/counts"
    echo "# files: sha256, bytes"
    (cd "$work/text" && for text in *.txt; do
        echo "$(sha256sum "$text") $(wc -c <"$text")"
    done)
} >"$work/data.new/manifest"
mv "$work/data.new" "$work/data"
rm -rf "$work/unpacked"
cat "$work/data/manifest"
