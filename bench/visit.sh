#!/usr/bin/env bash
# One visit to a machine with a CUDA device, which needs no network: what is worth most comes first, each stage has a
# time of its own, and whenever the visit ends, what was found by then lies in FOLDER.
#     bench/wheels.sh                              # beforehand: what such a machine may lack, into .wheels
#     bench/visit.sh FOLDER [SECONDS [WHEELS]]     # 540 seconds, .wheels
#     python -m bench report                       # afterwards, with FOLDER in bench/results
# REHEARSE=1 takes the substitute of tests/support for the device, and small shapes: to see that every stage works.
# Exit status: 1 where a stage failed or found a fault.
set -u
mkdir -p "${1:?usage: bench/visit.sh FOLDER [SECONDS [WHEELS]]}"
out=$(cd "$1" && pwd) total=${2:-540} end=$((SECONDS + ${2:-540})) wheels=${3:+$(cd "$3" && pwd)} python=${PYTHON:-python3} failed=0
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
wheels=${wheels:-$PWD/.wheels} scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export out python PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1

stage() { # NAME SECONDS COMMAND...: for no longer than that, in a visit of 540 seconds, and never beyond the end
    local name=$1 most left=$((end - SECONDS - 4)) begun=$SECONDS status='"not run"'
    most=$(share "$2")
    shift 2
    if ((left >= 2)); then
        printf '\n==== %s\n' "$name" >>"$out/log.txt"
        timeout -k 3 $((most < left ? most : left)) "$@" >>"$out/log.txt" 2>&1 </dev/null
        status=$?
        ((status == 0)) || failed=1
    fi
    printf '{"stage": "%s", "status": %s, "seconds": %d}\n' "$name" "$status" $((SECONDS - begun)) |
        tee -a "$out/stages.jsonl"
}

share() { # SECONDS: of a longer visit more in proportion
    echo $((total > 540 ? $1 * total / 540 : $1))
}

within() { # SECONDS: so many, or those that are left but for the time that it takes to stop
    local left=$((end - SECONDS - 15)) most
    most=$(share "$1")
    echo $((left < 1 ? 1 : left < most ? left : most))
}

run_tests() { # PROCESSES FILES...: those for a device, by any pytest, without any plugin that happens to be installed
    local count=$1 number status=0 started=()
    shift
    for ((number = 0; number < count; ++number)); do
        PYTHONPATH=$plain "$python" -m pytest -c /dev/null --rootdir . -o pythonpath=. -o markers=gpu -p bench.recorder \
            -p no:cacheprovider --record "$out/tests.jsonl" --share "$number/$count" -m gpu -q --tb=short \
            --continue-on-collection-errors "$@" &
        started+=($!)
    done
    for number in "${started[@]}"; do
        wait "$number" || [ $? = 5 ] || status=1 # 5: its share is empty
    done
    return $status
}
export -f run_tests

if compgen -G "$wheels/*.whl" >/dev/null; then
    stage wheels 60 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" \
        "$wheels"/*.whl
    PYTHONPATH=$scratch/site:$PYTHONPATH
fi
export plain=$PYTHONPATH small='' processes=8
short=(--suite short) crossing=(--workload a --batch 1 --batch 32 --batch 512 --batch 8192 --batch 65536)
if [ -n "${REHEARSE:-}" ]; then # pytest installs the substitute by itself
    mkdir "$scratch/rehearsal" "$scratch/device"
    echo 'from tests.support import substitute; substitute.install(); substitute.install_nccl()' >"$scratch/rehearsal/sitecustomize.py"
    export BPNET_SUBSTITUTE=$scratch/device PYTHONPATH=$scratch/rehearsal:$PYTHONPATH small=--small processes=2
    short=(--workload d --batch 8 --rounds 3 --seconds 0.01) crossing=("${short[@]}")
fi

stage machine 20 bash -c 'nvidia-smi; "$python" -m bpnet info; "$python" -m pip list --disable-pip-version-check | grep -iE "cupy|cuda|nvmath|numpy|torch|jax|pytest|array|llvmlite"
    "$python" -m bench.first_minute "$out/first-minute.jsonl" --part machine'
stage check 45 bash -c '"$python" -m bpnet check --device cuda:0 --json >"$out/check.json"'
stage first-minute 100 "$python" -m bench.first_minute "$out/first-minute.jsonl" $small
stage ranks 45 "$python" -m bench.first_ranks "$out/first-minute.jsonl" $small
stage graph 75 bash -c 'run_tests "$processes" tests/test_graph.py tests/test_loader.py'
stage waits 60 bash -c 'run_tests 1 tests/test_gpu.py' # alone: it looks whether the device is busy
stage rest 100 bash -c 'run_tests "$processes" tests --ignore=tests/test_graph.py --ignore=tests/test_loader.py --ignore=tests/test_gpu.py'
stage short 220 "$python" -m bench --device cupy "${short[@]}" --limit "$(within 200)" --json "$out/short.json"
for tool in racecheck memcheck; do
    if command -v compute-sanitizer >/dev/null; then
        stage $tool 45 bash -c "compute-sanitizer --tool $tool --print-limit 20 --error-exitcode 9 \"\$python\" \
            -m bench.first_minute /dev/null --small --no-pool --part equal 2>&1 | tee -a \"\$out/sanitizer.txt\"; exit \${PIPESTATUS[0]}"
    fi
done
stage crossing 120 "$python" -m bench --suite crossing "${crossing[@]}" --mode step --limit "$(within 60)" \
    --json "$out/crossing.json"
grep -h '"outcome": "failed"' "$out/tests.jsonl" 2>/dev/null | cut -c1-300
exit $failed
