#!/usr/bin/env bash
# pack.sh ARCHIVE: writes this checkout into a tar.gz as it is now, changes and new files included. What git ignores (.venv,
# runs, data, caches) stays out, and so does .git.
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

# A file that was deleted and not committed is still listed: only what is there goes in.
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do
    if [[ -e "$file" || -L "$file" ]]; then printf '%s\0' "$file"; fi
  done |
  tar --create --gzip --file "$new" --null --files-from -
mv "$new" "$archive"
