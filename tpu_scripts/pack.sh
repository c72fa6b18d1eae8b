#!/usr/bin/env bash
# pack.sh ARCHIVE: writes this checkout into a tar.gz as it is now, changes and new files included. What git ignores (.venv,
# runs, data, caches) stays out, and so does .git. Every worker gets it: more than 100 MB are refused.
set -euo pipefail

archive=$1
cd "$(dirname "$0")/.."
mkdir -p "$(dirname "$archive")"
new="$archive.$$" # nobody else sends a half of it
trap 'rm -f "$new"' EXIT

git rev-parse --is-inside-work-tree >/dev/null 2>&1 || {
  echo "pack.sh: error: $PWD is not a git checkout, so what belongs to it is not known: clone it, or run git init there" >&2
  exit 1
}

list_files() { # A file that was deleted and not committed is still listed by git: only what is there goes in.
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      if [[ -e "$file" || -L "$file" ]]; then printf '%s\0' "$file"; fi
    done
}

list_files | tar --create --gzip --file "$new" --null --files-from -
if (($(wc -c <"$new") > 100000000)); then
  echo "pack.sh: error: this checkout packs into more than 100 MB, which every worker would get: move away or add to" \
    ".gitignore what the training does not need. The largest files, in KB:" >&2
  list_files | xargs -0 du -k | sort -rn >"$new"
  head -n 3 "$new" >&2
  exit 1
fi
mv "$new" "$archive"
