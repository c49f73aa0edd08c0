"""The LLM: load it, splice slot embeddings into prompts, attach or merge LoRA, run it without logits.

Prompts share their first piece (system message and opening words). Its keys and values are computed once a
batch, with gradient in training, and read by every row: the same numbers as running each whole row, up to
floating-point rounding, as long as nothing in the adapter is random (LoRA dropout 0).
Rows are padded on the right, so that under causal attention no row sees padding and none is masked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from earec_core.config import BackboneConfig, LoraSettings
from earec_core.errors import UsageError
from earec_core.llm import store
from earec_core.llm.prompts import Prompt
from earec_core.types import Slot

ADAPTER = "default"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Spliced:
    """A batch of prompts as embeddings.

    Attributes:
        prefix: ids of the text that all rows share, possibly empty.
        body: what follows it, padded on the right with zeros.
        lengths: positions of each row's body.
        owners: for each position of the body the index into `modalities` of the slot it belongs to; -1 for text.
        modalities: the modalities that have a slot here.
    """

    prefix: tuple[int, ...]
    body: Float[Tensor, "b s d"]
    lengths: Int[Tensor, " b"]
    owners: Int[Tensor, "b s"]
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """Whose positions a forward pass reads: `Spliced.owners` and `Spliced.modalities`."""

    owners: Int[Tensor, "b s"]
    modalities: tuple[str, ...]


class Backbone:
    """A frozen causal LM, with at most one adapter.

    Attributes:
        model: the transformers causal LM.
        tokenizer: its tokenizer.
        word_embedding: its input embedding.
        d_llm: width of its hidden states.
        info: what identifies it.
        reading: whose positions the forward pass under way reads; None where all of them are text.
    """

    def __init__(self, model: Any, tokenizer: Any, info: store.BackboneInfo, dtype: torch.dtype) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.info = info
        self.dtype = dtype
        self.word_embedding: nn.Embedding = model.get_input_embeddings()
        self.d_llm = self.word_embedding.embedding_dim
        self.device: torch.device = self.word_embedding.weight.device
        self.share_prefix = True
        self.reading: Reading | None = None

    @classmethod
    def load(cls, config: BackboneConfig, note: Callable[[str], None] = lambda _: None) -> Backbone:
        """Load what the configuration names.

        Raises:
            UsageError: it is not there, or is no causal LM.
            EarecError: it cannot be had from where it would come.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        path = store.folder(config.model, note)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if config.device != "auto":
            device = torch.device(config.device)
        dtype = auto_dtype(device)[0] if config.dtype == "auto" else _DTYPES[config.dtype]
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                str(path), dtype=dtype if device.type != "cpu" else torch.float32, trust_remote_code=False
            )
        except (ValueError, OSError, KeyError) as error:
            first = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"{path} does not load as a causal language model: {first}",
                "Give a directory or hub id that transformers' AutoModelForCausalLM loads.",
            ) from error
        model.to(device)  # type: ignore[arg-type]
        return cls(model, tokenizer, store.info(config.model, path), dtype)

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the word embeddings: the size a projector's output should have."""
        return float(self.word_embedding.weight.float().square().mean().sqrt())

    def autocast(self) -> AbstractContextManager[Any]:
        """Lower-precision arithmetic where the hardware has it, adapters kept in float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def splice(self, prompts: Sequence[Prompt], slots: Mapping[Slot, Float[Tensor, "_ d"]]) -> Spliced:
        """Put slot embeddings and word embeddings in reading order (Eq. 2).

        Args:
            prompts: b prompts.
            slots: for every slot in them, its k embeddings.
        """
        first = prompts[0].pieces[0] if prompts[0].pieces else ()
        shared = isinstance(first, tuple) and all(p.pieces and p.pieces[0] == first for p in prompts)
        prefix = first if shared and isinstance(first, tuple) else ()
        rows = [
            torch.cat(
                [
                    slots[piece].to(self.device, torch.float32)
                    if isinstance(piece, Slot)
                    else self.embed(piece)
                    for piece in (prompt.pieces[1:] if prefix else prompt.pieces)
                ]
            )
            for prompt in prompts
        ]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        modalities = tuple(sorted({slot.modality for prompt in prompts for slot in prompt.slots}))
        owners = [
            torch.cat(
                [
                    torch.full((len(slots[piece]),), modalities.index(piece.modality))
                    if isinstance(piece, Slot)
                    else torch.full((len(piece),), -1)
                    for piece in (prompt.pieces[1:] if prefix else prompt.pieces)
                ]
            ).to(self.device)
            for prompt in prompts
        ]
        pad = nn.utils.rnn.pad_sequence
        return Spliced(
            prefix,
            pad(rows, batch_first=True),
            lengths,
            pad(owners, batch_first=True, padding_value=-1),
            modalities,
        )

    def embed(self, ids: Sequence[int]) -> Float[Tensor, "n d"]:
        """Word embeddings of token ids, float32."""
        vectors: Tensor = self.word_embedding(torch.tensor(ids, dtype=torch.long, device=self.device))
        return vectors.float()

    def hidden(self, batch: Spliced) -> Float[Tensor, "b s d"]:
        """Last layer's hidden states (after its norm) of the bodies; nothing is computed for logits."""
        inner = self.model.base_model
        b, s, d = batch.body.shape
        p = len(batch.prefix)
        body = batch.body.to(self.word_embedding.weight.dtype)
        with self.autocast():
            if p and self.share_prefix and b > 1:
                positions = torch.arange(p, p + s, device=self.device)[None].expand(b, s)
                prefix = self.embed(batch.prefix)[None].to(body.dtype)
                cache = inner(inputs_embeds=prefix, use_cache=True).past_key_values
                cache.batch_repeat_interleave(b)
                with self._reads(batch.owners, batch.modalities):
                    out = inner(
                        inputs_embeds=body, past_key_values=cache, position_ids=positions, use_cache=True
                    )
                hidden: Tensor = out.last_hidden_state
            else:
                if p:
                    prefix = self.embed(batch.prefix).to(body.dtype).expand(b, p, d)
                    body = torch.cat([prefix, body], dim=1)
                with self._reads(nn.functional.pad(batch.owners, (p, 0), value=-1), batch.modalities):
                    hidden = inner(inputs_embeds=body, use_cache=False).last_hidden_state[:, p:]
        return hidden.float()

    @contextmanager
    def _reads(self, owners: Int[Tensor, "b s"], modalities: tuple[str, ...]) -> Iterator[None]:
        self.reading = Reading(owners, modalities)
        try:
            yield
        finally:
            self.reading = None

    def logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Next-token logits of the positions given."""
        with self.autocast():
            head = self.model.get_output_embeddings()
            result: Tensor = head(hidden.to(head.weight.dtype))
        return result.float()

    @torch.inference_mode()
    def generate(self, batch: Spliced, max_new_tokens: int) -> list[str]:
        """Greedy continuations of a batch of prompts, special tokens left out, whitespace stripped."""
        b, s, d = batch.body.shape
        p = len(batch.prefix)
        # transformers' generate wants padding on the left.
        body = torch.zeros(b, p + s, d, device=self.device)
        mask = torch.zeros(b, p + s, dtype=torch.long, device=self.device)
        owners = torch.full((b, p + s), -1, device=self.device)
        for i, n in enumerate(batch.lengths.tolist()):
            start = s - n
            if p:
                body[i, start : start + p] = self.embed(batch.prefix)
            body[i, start + p :] = batch.body[i, :n]
            owners[i, start + p :] = batch.owners[i, :n]
            mask[i, start:] = 1
        reads = self._reads(owners, batch.modalities)
        with self.autocast(), reads, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ids = self.model.generate(
                inputs_embeds=body.to(self.word_embedding.weight.dtype),
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def linear_modules(self) -> list[str]:
        """Names of all linear layers of the LLM's blocks: those that LoRA adapts."""
        head = self.model.get_output_embeddings()
        return [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear) and m is not head]

    def attach_lora(self, settings: LoraSettings) -> dict[str, nn.Parameter]:
        """Add a fresh trainable adapter; its A matrices follow from `settings.seed` alone.

        Returns:
            The trainable parameters by their names in a PEFT checkpoint.
        """
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=self.linear_modules(),
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            inject_adapter_in_model(config, self.model, adapter_name=ADAPTER)
        self.model.requires_grad_(False)
        found = {}
        for name, parameter in self.model.named_parameters():
            if f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
                found[f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}"] = parameter
        self.train_lora(False)
        return found

    def train_lora(self, mode: bool) -> None:
        """Switch the adapter's dropout on or off; the frozen LLM stays in evaluation mode."""
        self.share_prefix = True
        for module in self.model.modules():
            for dropout in getattr(module, "lora_dropout", {}).values():
                dropout.train(mode)
                if mode and isinstance(dropout, nn.Dropout):
                    # Every item draws masks of its own, over the common prefix too.
                    self.share_prefix = False

    def detach_lora(self) -> None:
        """Take the adapter off again; the backbone is as it was loaded."""
        for name, module in list(self.model.named_modules()):
            if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
                owner, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(owner), child, module.base_layer)
        for mark in ("peft_config", "_hf_peft_config_loaded"):
            if mark in vars(self.model):
                delattr(self.model, mark)
        self.share_prefix = True


def save_lora(
    folder: Path, parameters: Mapping[str, nn.Parameter], settings: LoraSettings, info: Any
) -> None:
    """Write a plain PEFT adapter directory that `PeftModel.from_pretrained` loads."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    suffixes = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in parameters})
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=suffixes,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=info.id,
        inference_mode=True,
    )
    # PEFT holds the target modules in a set, whose order changes from run to run; identical
    # adapters must be identical files.
    config.target_modules = suffixes
    config.save_pretrained(str(folder))
    tensors = {name: p.detach().cpu().contiguous() for name, p in sorted(parameters.items())}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_lora(parameters: Mapping[str, nn.Parameter], file: Path) -> None:
    """Copy stored adapter tensors into the attached adapter's parameters.

    Raises:
        UsageError: other modules or another rank than the attached adapter's.
    """
    with safe_open(str(file), framework="pt") as stored:
        have = set(stored.keys())
        if have != set(parameters):
            raise UsageError(
                f"The adapter {file} adapts other modules than this run's.",
                "Continue with the same backbone.",
            )
        for name, parameter in parameters.items():
            tensor = stored.get_tensor(name)
            if tensor.shape != parameter.shape:
                raise UsageError(
                    f"The adapter's {name} is {tuple(tensor.shape)}, this run's {tuple(parameter.shape)}.",
                    "Set lora.r to the adapter's rank.",
                )
            parameter.data.copy_(tensor)


def auto_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """What `backbone.dtype = "auto"` computes in on a device, and why."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "the GPU multiplies it natively"
        return torch.float16, "the GPU has no bfloat16"
    # Without these instructions a bfloat16 product is about 100 times slower than float32.
    native = [k for k in ("avx512_bf16", "amx_tile") if getattr(torch.cpu, f"_is_{k}_supported", bool)()]
    if native:
        return torch.bfloat16, f"the processor multiplies it natively ({native[0]})"
    return torch.float32, "the processor has no bfloat16 arithmetic (avx512_bf16, amx_tile)"
