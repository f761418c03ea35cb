"""The parity table of docs/rehearsal.md: each recipe in its published layout against one process.

python -m benchmarks.parity
"""

from __future__ import annotations

import argparse
import time

from slipway import planner
from slipway.configs import load

# Recipe and overrides: the layouts of NeMo 2.7.3's recipes, and others that combine every two kinds of parallelism.
LAYOUTS = [
    ("llama3_8b", "gpus=16 layout.cp=2"),
    ("llama3_8b", "layout.tp=2 layout.recompute=full"),
    ("llama3_8b", "layout.pp=2 layout.recompute=selective layout.recompute_modules=[mlp]"),
    ("llama3_70b", "layout.tp=4 layout.pp=4 layout.vpp=5 layout.cp=2"),
    ("llama31_8b", "layout.tp=2 layout.pp=2 layout.vpp=2"),
    ("llama31_70b", "layout.tp=8 layout.pp=4 layout.gbs=128"),
    ("llama31_405b", "gpus=1024 layout.tp=8 layout.pp=8 layout.vpp=2 layout.cp=4 layout.gbs=512"),
    ("llama32_1b", "layout.pp=2"),
    ("llama32_3b", "layout.tp=4"),
    ("llama2_7b", "layout.tp=2"),
    ("llama2_13b", "layout.pp=2"),
    ("llama2_70b", "layout.tp=8 layout.pp=2"),
    ("mixtral_8x7b", "layout.pp=4 layout.vpp=8 layout.ep=8"),
    ("mixtral_8x7b", "layout.tp=2 layout.ep=2 layout.etp=2"),
    ("mixtral_8x22b", "layout.tp=2 layout.pp=4 layout.vpp=14 layout.cp=2 layout.ep=8"),
    ("gpt3_175b", "layout.tp=4 layout.pp=8 layout.vpp=6"),
    ("nemotron4_15b", "layout.tp=4"),
    ("nemotron4_340b", "gpus=768 layout.tp=8 layout.pp=12 layout.vpp=8 layout.cp=2"),
    ("qwen3_8b", "layout.tp=4"),
    ("qwen3_30b_a3b", "gpus=32 layout.tp=4 layout.pp=2 layout.ep=4 layout.etp=1"),
    ("qwen3_235b_a22b", "gpus=1024 layout.tp=4 layout.pp=16 layout.cp=2 layout.ep=8 layout.etp=1"),
    ("deepseek_v3", "layout.tp=2 layout.pp=16 layout.ep=64 layout.etp=1"),
    ("deepseek_v3", "gpus=512 layout.pp=8 layout.ep=64 optim.batch_ramp=[] layout.pipeline_layout=Et*4|(t*4|)*14tmL"),
    ("deepseek_v3_128k", ""),
    ("deepseek_v2", "gpus=64 layout.tp=2 layout.pp=4 layout.ep=8"),
    ("deepseek_v2_lite", "gpus=16 layout.ep=8 layout.etp=1"),
    ("moonlight_16b_a3b", "layout.ep=8 layout.tp=2"),
    ("gpt_oss_20b", "gpus=16 layout.tp=2 layout.pp=2 layout.ep=4 layout.etp=1"),
    ("llama3_8b_16k", ""),
    ("gemma_2b", "gpus=8 layout.pp=2 layout.cp=2"),
    ("gemma2_2b", "gpus=8 layout.tp=2 layout.pp=2"),
    ("gemma3_1b", "gpus=8 layout.pp=2"),
    ("mistral_7b", "gpus=8 layout.tp=2 layout.cp=2"),
    ("mistral_nemo_12b", "layout.tp=2 layout.pp=2 layout.vpp=2"),
    ("qwen25_500m", "gpus=8 layout.tp=2 layout.pp=2"),
    ("phi3_mini_4k_instruct", "gpus=8 layout.tp=2 layout.cp=2"),
    ("starcoder_15b", "layout.pp=2 layout.cp=2"),
    ("starcoder2_3b", "gpus=8 layout.tp=2 layout.pp=2"),
    ("baichuan2_7b", "gpus=8 layout.tp=2 layout.cp=2"),
    ("chatglm3_6b", "gpus=8 layout.tp=2 layout.cp=2"),
    ("nemotron3_8b", "gpus=8 layout.tp=2 layout.pp=2"),
    ("llama31_nemotron_nano_8b", "gpus=8 layout.tp=2 layout.cp=2"),
    ("llama3_8b", "model.mtp_num_layers=2 layout.tp=2 layout.pp=2 layout.cp=2"),
    ("llama3_tiny", "layout.tp=1 layout.pp=2 layout.vpp=2"),
    ("mixtral_tiny", ""),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    from slipway.launch.rehearsal.rehearse import rehearse

    start = time.monotonic()
    print("| recipe | layout asked for | ranks | largest relative difference |\n|---|---|---|---|", flush=True)
    for name, overrides in LAYOUTS:
        result = rehearse(planner.complete(load(name, overrides.split())))
        asked = overrides.replace("layout.", "").replace("|", "\\|").replace("*", "\\*").strip() or "its own"
        print(f"| {name} | {asked} | {result.toy.gpus} | {result.max_rel_diff:.1e} |", flush=True)
    print(f"\n{len(LAYOUTS)} rehearsals in {time.monotonic() - start:.0f} s, including one import of NeMo")


if __name__ == "__main__":
    main()
