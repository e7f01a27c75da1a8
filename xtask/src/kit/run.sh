#!/usr/bin/env bash
# Measures tierflow on this machine's NVIDIA GPU. Asks nothing; needs neither a network nor Rust.
#
#   ./run.sh             about eight minutes
#   ./run.sh --rehearse  the same steps on a software adapter (lavapipe), with a tiny model: about two minutes
#
# Results lie in $OUT, or in results/ beside this file, and grow step by step, so that a run that is cut short keeps what it has:
# report.md for people, results.jsonl for programs (a step a line), log.txt, trace.json.gz and overlap.svg.
# LIMIT=SECONDS ends it earlier or later, WORK=FOLDER names a place for the models (24 GB), PYTHON=PROGRAM one with torch.
#
# Exit codes: 0 every step gave its figures; 1 some did not, and report.md names them; 2 bad usage; 3 this machine cannot run the kit.
set -u

kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage() { sed -n '2,/^set -u/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
rehearse=false
case "$#:${1:-}" in
  0:) ;;
  1:--rehearse) rehearse=true ;;
  1:-h | 1:--help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac
. "$kit/kit.env"

# Steps before the peers leave them this much of the time. A rehearsal is no measurement: it has time to spare on a busy machine.
if $rehearse; then total=${LIMIT:-1200} for_peers=200 slack=6; else total=${LIMIT:-540} for_peers=140 slack=1; fi
out=${OUT:-$kit/results}
python=${PYTHON:-python3}
mkdir -p "$out" || exit 3
log=$out/log.txt results=$out/results.jsonl
rm -f "$out"/{report.md,trace.json.gz,overlap.svg}
: >"$log" && : >"$results" || exit 3

say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$log"; }
stop() { say "$*"; exit 3; }

# --- What the machine has ---

glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/.* //')
[ "$(uname -sm)" = "Linux x86_64" ] || stop "the kit is for x86-64 Linux, and this is $(uname -sm)"
[ "$(printf '%s\n' "$KIT_GLIBC" "${glibc:-0}" | sort -V | head -n 1)" = "$KIT_GLIBC" ] ||
  stop "the programs need glibc $KIT_GLIBC or newer, and this machine has ${glibc:-another C library}: make the kit on an older Linux"

# A folder with so many GB for the models: memory, where more than twice as much again stays free, else a disk.
free_gb() { df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1000000) }'; }
memory_gb=$(awk '/^MemAvailable/ { print int($2 / 1000000) }' /proc/meminfo)
if $rehearse; then need_gb=1; else need_gb=24; fi
places=("$kit" "${TMPDIR:-/tmp}" /var/tmp)
(( memory_gb > 3 * need_gb )) && places=(/dev/shm "${places[@]}")
place=
for candidate in ${WORK:+"$WORK"} "${places[@]}"; do
  if [ -w "$candidate" ] && (( $(free_gb "$candidate") + 0 >= need_gb )); then place=$candidate; break; fi
done
[ -n "$place" ] || stop "no folder of ${places[*]} has $need_gb GB free for the models: name one with WORK=FOLDER"
work=$(mktemp -d "$place/tierflow-kit.XXXXXX") || exit 3
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export XDG_CACHE_HOME=$work/cache XDG_CONFIG_HOME=$work/config TIERFLOW_CACHE=$work/cache HF_HUB_OFFLINE=1
export XDG_RUNTIME_DIR=$work/runtime
mkdir -m 700 "$XDG_RUNTIME_DIR"
mkdir "$work/bin" && tar -xzf "$kit/bin.tar.gz" -C "$work/bin" || stop "cannot unpack $kit/bin.tar.gz into $work"

# The kit's libraries stand in for those that the system lacks; in a rehearsal for all of them, so that they are known to work.
mkdir "$work/lib"
known=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null)
for library in "$kit"/lib/*.so*; do
  name=${library##*/}
  if $rehearse || ! grep -q "^[[:space:]]*$name " <<<"$known"; then ln -s "$library" "$work/lib/$name"; fi
done
driver_folders=$work/lib
for folder in /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/nvidia /usr/lib/x86_64-linux-gnu/nvidia/current; do
  if [ -d "$folder" ]; then driver_folders+=:$folder; fi
done
export LD_LIBRARY_PATH=$driver_folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Vulkan's loader finds a driver by a file that names its library: the driver's own, or one written here.
written_driver() { # LIBRARY
  printf '{"file_format_version":"1.0.0","ICD":{"library_path":"%s","api_version":"1.3.0"}}\n' "$1" >"$work/$1.json"
  echo "$work/$1.json"
}
if $rehearse; then
  wanted='llvmpipe'
  drivers=("${VK_DRIVER_FILES:-}" /usr/share/vulkan/icd.d/lvp_icd*.json /usr/local/share/vulkan/icd.d/lvp_icd*.json /etc/vulkan/icd.d/lvp_icd*.json)
else
  wanted='NVIDIA'
  drivers=("${VK_DRIVER_FILES:-}" /{etc,usr/share,usr/local/share,usr/local/nvidia/share}/vulkan/icd.d/nvidia_icd*.json
    "$(written_driver libGLX_nvidia.so.0)" "$(written_driver libEGL_nvidia.so.0)")
fi
driver=
for candidate in "${drivers[@]}"; do
  [ -f "$candidate" ] || continue
  export VK_DRIVER_FILES=$candidate VK_ICD_FILENAMES=$candidate
  if timeout 30 "$work/bin/tierflow" devices --json 2>>"$log" | tee -a "$log" | grep -q "$wanted"; then driver=$candidate; break; fi
  say "$candidate gives no adapter"
done
[ -n "$driver" ] || stop "Vulkan finds no $wanted adapter; tried: ${drivers[*]}"
say "kit of $KIT_COMMIT, glibc $glibc, driver $driver, models in $place"

# --- Steps ---

escaped() { tr -d '\000-\010\013-\037' | sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/\\t/g' | awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }'; }

# What a step printed, as JSON: FORM is object, lines (an object each; what was cut short is left out) or text.
as_json() { # FORM FILE
  case $1 in
    object) tr '\n' ' ' <"$2" | sed 's/^ *$/null/' ;;
    lines) printf '['; grep '^{.*}$' "$2" | paste -sd, - | tr -d '\n'; printf ']' ;;
    text) printf '"'; tail -c 60000 "$2" | escaped; printf '"' ;;
  esac
}

report() { "$work/bin/xtask" gpu-report "$out" >/dev/null 2>>"$log" || true; }

# Runs COMMAND for LIMIT seconds at most, whatever time is left, and keeps what it printed. No failure ends the run.
step() { # NAME LIMIT FORM COMMAND...
  local name=$1 limit=$(($2 * slack)) form=$3 begin=$EPOCHREALTIME rc left
  shift 3
  left=$((total - for_peers - SECONDS))
  if (( limit > left )); then limit=$left; fi
  if (( limit < 2 )); then leave_out "$name" "the time is up"; return; fi
  say "$name, at most $limit s"
  timeout -k 5 "$limit" "$@" >"$work/stdout" 2>"$work/stderr"
  rc=$?
  {
    printf '\n== %s (rc %d): %s\n' "$name" "$rc" "$*"
    head -c 200000 "$work/stdout"; tail -c 20000 "$work/stderr"
  } >>"$log"
  {
    printf '{"step":"%s","rc":%d,"secs":%s,"command":"' "$name" "$rc" "$(awk "BEGIN { print ${EPOCHREALTIME/,/.} - ${begin/,/.} }")"
    printf '%s' "$*" | escaped
    printf '","output":'
    if [ "$form" = object ] && (( rc != 0 )); then printf 'null'; else as_json "$form" "$work/stdout"; fi
    printf ',"stderr":"'
    if (( rc != 0 )); then tail -n 12 "$work/stderr" | escaped; fi
    printf '"}\n'
  } >>"$results"
  if (( rc != 0 )); then say "$name ended with exit code $rc: $(tail -n 1 "$work/stderr")"; fi
  report
}

leave_out() { # NAME REASON
  printf '{"step":"%s","left_out":"%s"}\n' "$1" "$2" >>"$results"
  say "$1: left out, $2"
}

tierflow=$work/bin/tierflow
bench() { # NAME LIMIT MODEL OPTIONS...
  local name=$1 limit=$2 model=$3
  shift 3
  if [ -e "$model" ]; then step "$name" "$limit" lines "$tierflow" bench "$model" -o jsonl "$@"; else leave_out "$name" "its model is missing"; fi
}
make_model() { # NAME LIMIT FILE OPTIONS...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" text "$work/bin/xtask" make-model "$@" --seed 1
}
smi() {
  if command -v nvidia-smi >/dev/null; then
    step "$1" 20 text nvidia-smi --format=csv,nounits \
      --query-gpu=name,driver_version,memory.total,memory.used,memory.free,pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit
  else
    leave_out "$1" "there is no nvidia-smi"
  fi
}

# Streamed forwards of a large model may take seconds each, and its prompts on the host minutes: few and short ones.
if $rehearse; then
  large=20m small=20m tests=kernels::small table=(--columns 576 --tokens 1,16 --dtypes q4_0) rounds=1
  fast=(-c 128 -p 16 -n 4 -r 1) slow=("${fast[@]}") mixed=("${fast[@]}") decode=(-c 64 -p 0 -n 3 -r 1) sequences=2,3
else
  large=8b small=1b tests=kernels:: table=() rounds=9
  fast=(-c 1024 -p 512 -n 64 -r 3) slow=(-c 1024 -p 512 -n 8 -r 2) mixed=(-c 128 -p 32 -n 8 -r 2) decode=(-c 128 -p 0 -n 6 -r 1) sequences=8,32
fi
q4=$work/$large-q4_0.gguf whole=$work/$large-bf16 f16=$work/$small-f16.gguf

# What the adapter says of itself, beside what NVIDIA's own tool says, and its rates as plans take them.
smi nvidia-smi
step doctor 90 object "$tierflow" doctor --json
# Whether the kernels compute what they should.
step kernel-tests 90 text env REQUIRE_GPU=1 "$work/bin/tests" "$tests"
# All weights on the GPU.
make_model make-q4_0 60 "$q4" --preset $large --dtype q4_0 --gguf
bench resident-q4_0 60 "$q4" --device gpu "${fast[@]}"
rm -f "$q4"
# A quarter of the weights on the GPU: the others streamed to it, or left to the host where that is faster.
make_model make-bf16 120 "$whole" --preset $large --dtype bf16 --shards 4
quarter=gpu:0=$(($(du -sk "$whole" 2>/dev/null | cut -f 1) / 4096))MiB
bench streamed 90 "$whole" --device gpu --max-memory "$quarter" "${slow[@]}" --trace "$work/trace.json"
if [ -f "$work/trace.json" ]; then
  step picture 20 text "$work/bin/xtask" picture "$work/trace.json" "$out/overlap.svg"
  gzip -c "$work/trace.json" >"$out/trace.json.gz"
fi
bench mixed 90 "$whole" --max-memory "$quarter" "${mixed[@]}"
bench streamed-batch 90 "$whole" --device gpu --max-memory "$quarter" "${decode[@]}" -np $sequences
# Kernels and uploads alone.
step kernel-table 60 lines "$work/bin/kernels" --json "${table[@]}"
step uploads 40 lines "$work/bin/uploads" --json --rounds $rounds
# More of the large model.
bench resident-bf16 60 "$whole" --device gpu "${fast[@]}"
bench resident-bf16-batch 60 "$whole" --device gpu "${decode[@]}" -np $sequences
bench mixed-batch 90 "$whole" --max-memory "$quarter" "${decode[@]}" -np $sequences
bench streamed-mapped 60 "$whole" --device gpu --max-memory "$quarter" "${decode[@]}" --upload mapped
bench streamed-staged 60 "$whole" --device gpu --max-memory "$quarter" "${decode[@]}" --upload staged
bench streamed-disk 60 "$whole" --device gpu --max-memory "$quarter,cpu=0" -c 128 -p 0 -n 3 -r 1
# A smaller one.
make_model make-f16 40 "$f16" --preset $small --dtype f16 --gguf
bench resident-f16 40 "$f16" --device gpu "${fast[@]}"
rm -f "$f16"
smi nvidia-smi-after
# Copies, products, transformers and Accelerate by torch, with the same model and the same budget.
left=$((total - SECONDS)) for_peers=0
if [ ! -e "$whole/config.json" ]; then
  leave_out peers "its model is missing"
elif missing=$("$python" -c 'import sys, importlib.util as util
missing = [name for name in ("torch", "transformers", "accelerate") if not util.find_spec(name)]
sys.exit(missing and sys.executable + " has no " + " and no ".join(missing))' 2>&1); then
  peers=("$python" "$kit/peers.py" "$whole" "${quarter#*=}" --secs $((left - 10)))
  if $rehearse; then peers+=(--batches 1,2 --prompt 16); fi
  step peers "$left" lines "${peers[@]}"
else
  leave_out peers "$(tail -n 1 <<<"$missing" | escaped)"
fi

"$work/bin/xtask" gpu-report --check "$out" 2>&1 | tee -a "$log"
rc=${PIPESTATUS[0]}
say "$out/report.md"
exit "$rc"
