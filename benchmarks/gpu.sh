#!/usr/bin/env bash
# All benchmarks for a GPU, the most important first, each with a time limit; a failure does not stop the others.
#
#     benchmarks/gpu.sh OUT [SECONDS]     # all of it within SECONDS (560)
#     benchmarks/gpu.sh OUT --quick       # on the CPU, at tiny sizes: checks that the commands run
#
# OUT/NAME.txt has the output of a command, OUT/summary.txt how each ended. Data: CIFAR-100 in $PYCLS_DATA (nothing is
# downloaded), photographs in $PHOTOS, a tree of JPEGs (without it images are generated). The interpreter is $PYTHON (python).
set -u

[ $# -ge 1 ] || { echo "usage: $0 OUT [SECONDS | --quick]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python}
cores=$(nproc)
total=${2:-560} device=cuda files=8448 few=$((cores < 8 ? cores : 8))
quick=() tiny=() config=configs/cifar100/resnet18.yaml step=() training=(DATA.DOWNLOAD False DEVICE cuda)
net=(MODEL.TYPE resnet MODEL.DEPTH 50 MODEL.NUM_CLASSES 1000 TRAIN.DATASET image_folder DATA.ROOT "$work/photographs"
     TRAIN.BATCH_SIZE 256 TRAIN.MIXED_PRECISION bf16 DATA_LOADER.NUM_WORKERS "$cores" DEVICE cuda)
if [ "$total" = --quick ]; then
    total=100000 device=cpu files=16 few=1 quick=(--quick) step=(--eager) config=configs/digits/lenet5_softmax.yaml
    tiny=(DEVICE cpu TRAIN.BATCH_SIZE 2 TRAIN.IM_SIZE 32 MODEL.COMPILE False TRAIN.MIXED_PRECISION False
          DATA_LOADER.NUM_WORKERS 0 PREC_TIME.WARMUP_ITER 0 PREC_TIME.NUM_ITER 1)
    training=(DEVICE cpu OPTIM.MAX_EPOCH 1)
fi
SECONDS=0
: >"$out/summary.txt"

say() { echo "$1" | tee -a "$out/summary.txt"; }

# name, time limit in seconds, command
run() {
    local name=$1 limit=$2 left=$((total - SECONDS)) start=$SECONDS code how=ok
    shift 2
    [ "$left" -ge "$limit" ] || limit=$left
    [ "$limit" -ge 15 ] || { say "$name: left out, no time is left"; return 1; }
    echo "\$ $*" >"$out/$name.txt"
    timeout -k 10 "$limit" "$@" >>"$out/$name.txt" 2>&1
    code=$?
    case $code in
        0) ;;
        124 | 137) how="stopped at its limit" ;;
        *) how="FAILED with exit code $code" ;;
    esac
    say "$name: $how, $((SECONDS - start)) s"
    return "$code"
}

train_step() {
    run "$1" "$2" "$python" benchmarks/train_step.py --device $device --only "$3" --repeats "$4" "${quick[@]}" "${@:5}"
}

heads() {
    run "heads_$1${3:+_$3}" "$2" "$python" benchmarks/heads.py --size "$1" --device $device --dtype bf16 --no-peers --repeats 7 \
        "${quick[@]}" "${@:4}"
}

waits() {
    run "waits_$1" 110 "$python" tools/run_net.py --mode time "${net[@]}" MODEL.COMPILE True DATA_LOADER.DECODER "$1" \
        OUT_DIR "$out/waits_$1" "${tiny[@]}"
}

run machine 60 bash -c "nvidia-smi; gcc --version; nproc; free -g; $python -m torch.utils.collect_env"
run tests 60 "$python" -m pytest -o addopts= -q tests/heads/test_triton.py tests/data/test_device_jpegs.py \
    -k "on_the_device or less_memory or OnAGpu"
train_step train_step 240 resnet50 7 "${step[@]}" || train_step train_step_eager 120 resnet50 5 --eager
heads gpu-100k 90
heads gpu-1m 120
run photographs 60 "$python" benchmarks/photographs.py "$work/photographs" --images $files ${PHOTOS:+--photos "$PHOTOS"}
waits auto
waits gpu
run cifar100 280 "$python" benchmarks/time_to_accuracy.py --cfg $config --top1 75 --out "$work/cifar100" \
    --json "$out/cifar100.json" "${training[@]}" ||
    run cifar100_random_images 90 "$python" benchmarks/time_to_accuracy.py --cfg $config --out "$work/random" \
        --json "$out/cifar100_random_images.json" "${training[@]}" DATA.SYNTHETIC True OPTIM.MAX_EPOCH 3
cp "$work/cifar100/stdout.log" "$out/cifar100.log" 2>/dev/null
heads gpu-small 60
[ $device = cpu ] || heads gpu-small 60 graph --graph
train_step train_step_small 100 resnet18_cifar 7 "${step[@]}"
run loading 100 "$python" benchmarks/loading.py --device $device --cores "$few" --images 2048 --repeats 3 --peers \
    "${quick[@]}" ${PHOTOS:+--photos "$PHOTOS"}
run checkpoint 45 "$python" benchmarks/checkpoint.py --device $device "${quick[@]}"
say "all of it: $SECONDS s"
