"""Item vectors by vLLM, from prompts that `earec encode --prompts` wrote. Needs vLLM and a GPU.

    earec export composite --as merged --out merged
    earec encode composite --data movies --prompts prompts
    python examples/encode_with_vllm.py merged prompts vectors.npy

The rows of `vectors.npy` are the items of `prompts/prompts.json`, in that order; they are those of `earec encode`
up to the engine's rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from vllm import LLM  # type: ignore[import-not-found]
from vllm.config import PoolerConfig  # type: ignore[import-not-found]


def main(model: str, prompts: Path, out: Path) -> None:
    # The last position's state after the norm, as it is.
    pooler = PoolerConfig(pooling_type="LAST", normalize=False)
    llm = LLM(model, runner="pooling", convert="embed", enable_prompt_embeds=True, pooler_config=pooler)
    vectors = []
    for file in sorted(prompts.glob("*.safetensors")):
        tensors = load_file(file)
        lengths = tensors["starts"].diff().tolist()
        rows = [{"prompt_embeds": row} for row in tensors["embeddings"].split(lengths)]
        vectors += [output.outputs.embedding for output in llm.embed(rows)]
    np.save(out, np.array(vectors, dtype=np.float32))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
