"""How large an alignment of an LLM is, from the LLM's shapes alone: nothing is loaded and nothing computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch.nn import functional as F

from earec_core.align.planning import weighed
from earec_core.artifacts import BaseRecord
from earec_core.config import LoraSettings
from earec_core.llm.backbone import Backbone, Spliced
from earec_core.llm.lora import TrainableLora
from earec_core.llm.packed import PACKED_BYTES
from earec_core.train.memory import Sizes


def sizes(
    config: Any,
    lora: LoraSettings,
    *,
    projector: int,
    rows: int,
    shared: int,
    positions: int,
    answer: int,
    dtype: torch.dtype = torch.bfloat16,
    quantization: Literal["none", "nf4"] = "none",
) -> Sizes:
    """The sizes of an alignment that `earec_core.train.memory.held` takes, by a pass on torch's meta device.

    Args:
        config: the LLM's, as transformers has it (`AutoConfig`).
        lora: the adapter.
        projector: its trained parameters.
        rows: items in the largest part of a batch.
        shared: positions that all of them begin with, computed once.
        positions: of each behind them.
        answer: how many of them carry loss.
        dtype: of the frozen weights.
        quantization: nf4: the layers that LoRA adapts are in 4 bits (`align.quantization`).
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        nothing = BaseRecord(id="", weights="", config="", tokenizer="")
        backbone = Backbone(model, SimpleNamespace(), nothing, torch.float32)
        backbone.alike = True
        weights, tables = backbone.weight_bytes(), backbone.table_bytes()
        if quantization == "nf4":
            weights -= round((dtype.itemsize - PACKED_BYTES) * backbone.multiplied())
        with backbone.adapted(TrainableLora(lora)) as adapter:
            trained = projector + sum(p.numel() for p in adapter.parameters.values())
            body = torch.zeros(rows, positions, backbone.d_llm, dtype=dtype, requires_grad=True)
            lengths = torch.full((rows,), positions)
            owners = torch.zeros(rows, positions, dtype=torch.long)
            batch = Spliced((0,) * shared, body, lengths, owners, owners.bool(), ())
            with weighed(model.parameters()) as kept:
                hidden = backbone.hidden(batch)[:, -answer:].flatten(0, 1)
                F.cross_entropy(backbone.logits(hidden), torch.zeros(len(hidden), dtype=torch.long))
    return Sizes(weights, dtype.itemsize, tables, trained, kept())
