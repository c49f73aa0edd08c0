# Sourced by the scripts beside it, which set `work`.
mkdir -p "$work/json"

step() { # NAME COMMAND...: keep the JSON result of a command; skip it when it is there
  local out=$work/json/$1.json; shift
  [ -s "$out" ] && return
  "$@" --json >"$out.partial" && mv "$out.partial" "$out"
}
