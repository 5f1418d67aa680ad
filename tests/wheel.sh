#!/usr/bin/env bash
# Runs every shipped recipe for two steps with an installed polytask; `make wheel` calls it.
# usage: tests/wheel.sh BIN_OF_THE_ENVIRONMENT EMPTY_FOLDER
set -euo pipefail
bin="$1"
cd "$2"

for recipe in $("$bin/python" -c 'from polytask.recipes.reading import shipped_names; print(*shipped_names())'); do
  if [[ " graphs multidigits scenes sensors synthetic " == *" $recipe "* ]]; then
    rows=()
  elif [[ " celeba nyuv2 qm9 " == *" $recipe "* ]]; then
    echo "$recipe: not run, its data is not at hand; tests/recipes runs it on a generated stand-in"
    continue
  elif [ -z "${POLYTASK_DATA:-}" ]; then
    echo "$recipe: not run, it needs the data folder (POLYTASK_DATA)"
    continue
  else
    rows=(--set data.rows=1000)
  fi
  "$bin/polytask" train "$recipe" --set train.epochs=null --set train.steps=2 ${rows[@]+"${rows[@]}"} --out "$recipe" > "$recipe.log" 2>&1 ||
    { cat "$recipe.log" >&2; echo "$recipe: failed" >&2; exit 1; }
  echo "$recipe: two steps done"
done
