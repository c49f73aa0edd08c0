"""The LLM: load it, splice slot embeddings into prompts, run it without logits, let adapters on it for a while.

Prompts share their first piece (system message and opening words). Its keys and values are computed once a
batch, with gradient in training, and read by every row: the same numbers as running each whole row, up to
floating-point rounding, as long as nothing in the adapter is random (LoRA dropout 0).
Rows are padded on the right, so that under causal attention no row sees padding and none is masked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from earec_core.artifacts import BaseRecord
from earec_core.config import BackboneConfig
from earec_core.errors import EarecError, UsageError, one_line
from earec_core.llm import head, layers, loading, store
from earec_core.llm.packed import PackedLinear, check_packing
from earec_core.llm.positions import model_positions, model_window
from earec_core.llm.prompts import Prompt
from earec_core.modality.weights import check_finite
from earec_core.types import Slot
from earec_core.workspace import Workspace


@dataclass(frozen=True)
class Spliced:
    """A batch of prompts as embeddings.

    Attributes:
        prefix: ids of the text that all rows share, possibly empty.
        body: what follows it, padded on the right with zeros.
        lengths: positions of each row's body.
        owners: for each position of the body the index into `modalities` of the slot it belongs to; -1 for text.
        own: whether a position of the body is in a slot of the prompt's own item.
        modalities: the modalities that have a slot here.
    """

    prefix: tuple[int, ...]
    body: Float[Tensor, "b s d"]
    lengths: Int[Tensor, " b"]
    owners: Int[Tensor, "b s"]
    own: Bool[Tensor, "b s"]
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Abilities:
    """What else an architecture can do, faster than without; `earec_core.llm.architecture` tries it.

    Attributes:
        shares_prefix: go on from a prefix that was computed once for all rows.
        generates: go on from rows that were read, padded behind (as all passes pad, the prefix shared) or before.
        side_by_side: passes in threads of their own at once, as a pass leaves nothing behind in the modules.
    """

    shares_prefix: bool = True
    generates: Literal["behind", "before"] | None = "behind"
    side_by_side: bool = True


class Adapter(ABC):
    """A change of the LLM's layers that comes off again; see `earec_core.llm.lora` for the forms there are."""

    @property
    def random(self) -> bool:
        """Whether two passes over the same input differ now (dropout)."""
        return False

    @abstractmethod
    def put_on(self, backbone: Backbone) -> None:
        """Change the LLM; called by `Backbone.adapted`."""

    @abstractmethod
    def take_off(self) -> None:
        """Make the LLM what it was, bit for bit, also where `put_on` came to no end."""

    def train(self, mode: bool) -> None:  # noqa: B027 - most have nothing that trains
        """Switch what is random in it on or off."""

    def routed(self, owners: Int[Tensor, "b s"], modalities: tuple[str, ...]) -> AbstractContextManager[None]:
        """Let the next pass over the LLM read positions by whose they are; every later pass reads text.

        Args:
            owners: of each position of that pass, as `Spliced.owners`.
            modalities: as `Spliced.modalities`.
        """
        return nullcontext()


A = TypeVar("A", bound=Adapter)


class Backbone:
    """A frozen causal LM; `adapted` changes its layers for as long as a block lasts.

    Attributes:
        model: the transformers causal LM.
        tokenizer: its tokenizer.
        word_embedding: its input embedding.
        d_llm: width of its hidden states.
        positions: how many it can read, what it writes included; None: as many as there are.
        window: how far back some of its layers see; None: to the beginning.
        info: what identifies it.
        adapter: the one that is on it now.
        checkpointing: whether a pass with gradient keeps each block's input alone and computes the rest again on
            the way back; no prefix is shared then.
        abilities: what its architecture can do.
        alike: one row alone, too, goes on from a prefix computed before it, so that every pass takes the same way,
            as processes must that train in step.
    """

    def __init__(self, model: Any, tokenizer: Any, info: BaseRecord, dtype: torch.dtype) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.info = info
        self.positions, self.window = model_positions(model.config), model_window(model.config)
        self.dtype = dtype
        self.word_embedding: nn.Embedding = model.get_input_embeddings()
        self.d_llm = self.word_embedding.embedding_dim
        self.device: torch.device = self.word_embedding.weight.device
        self.adapter: Adapter | None = None
        self.abilities = Abilities()
        self.checkpointing = False
        self.alike = False

    @classmethod
    def load(
        cls,
        config: BackboneConfig,
        workspace: Workspace | None = None,
        *,
        quantization: Literal["none", "nf4"] = "none",
    ) -> Backbone:
        """Load what the configuration names.

        Args:
            workspace: where named defaults are kept and digests remembered; a directory needs none.
            quantization: nf4: the layers that LoRA adapts in 4 bits, for training alone (`PackedLinear`).

        Raises:
            MissingDependencyError: what it is quantised with is not installed.
            UsageError: the device or the LLM is not there; the LLM is no causal LM, or is not whole: tensors are
                missing, or no numbers.
            EarecError: it cannot be had from where it would come.
        """
        from earec_core.llm import architecture

        if quantization == "nf4":
            check_packing()
        path = store.folder(config.model, workspace)
        fastest = "cuda" if torch.cuda.is_available() else "cpu"
        device = _device(fastest if config.device == "auto" else config.device)
        dtype = auto_dtype(device)[0] if config.dtype == "auto" else getattr(torch, config.dtype)
        loaded = loading.load(path, dtype if device.type != "cpu" else torch.float32)
        check_finite(
            loaded.model,
            f"The backbone {path}",
            "Get the checkpoint again; if it is whole, --set backbone.dtype=float32 holds larger numbers.",
        )
        if quantization == "nf4":
            layers.pack(loaded.model, dtype, device)
        model = loaded.model.to(device)
        if loaded.left and workspace is not None:
            workspace.note(f"Of {path} these parts are left alone: {', '.join(loaded.left)}.")
        if device.type == "cpu":
            layers.keep_in(model, dtype)
        backbone = cls(model, loaded.tokenizer, store.info(config.model, path, workspace), dtype)
        backbone.abilities = architecture.tried(backbone)
        return backbone

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the words' embeddings as the LLM reads them: the size a slot should have.

        Some architectures multiply the table's rows where they look them up (Gemma: by sqrt(d)). What others do
        behind that, to whatever comes in, they do to slots too.
        """
        rows = self.word_embedding.weight
        if type(self.word_embedding) is not nn.Embedding:
            with torch.no_grad():
                rows = self.word_embedding(torch.arange(len(rows), device=self.device))
        return float(rows.float().square().mean().sqrt())

    def autocast(self) -> AbstractContextManager[Any]:
        """Lower-precision arithmetic where the hardware has it, adapters kept in float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    @contextmanager
    def adapted(self, adapter: A) -> Iterator[A]:
        """The LLM with an adapter on it; at the end of the block it is what it was, bit for bit.

        Raises:
            EarecError: there is one on it already.
            UsageError, IntegrityError: see the adapter.
        """
        if self.adapter is not None:
            raise EarecError(
                "The backbone has an adapter on it already.", "Leave its block before you put on another."
            )
        self.adapter = adapter
        try:
            adapter.put_on(self)
            yield adapter
        finally:
            adapter.take_off()
            self.adapter = None

    def splice(self, prompts: Sequence[Prompt], slots: Mapping[Slot, Float[Tensor, "_ d"]]) -> Spliced:
        """Put slot embeddings and word embeddings in reading order (Eq. 2).

        Args:
            prompts: b prompts.
            slots: for every slot in them, its k embeddings.
        """
        first = prompts[0].pieces[0] if prompts[0].pieces else ()
        # A prompt that is nothing but the common text is left whole: a row needs a position of its own.
        shared = all(prompt.pieces[:1] == (first,) and len(prompt.pieces) > 1 for prompt in prompts)
        prefix = first if shared and isinstance(first, tuple) else ()
        modalities = tuple(sorted({slot.modality for prompt in prompts for slot in prompt.slots}))
        rows: list[Tensor] = []
        owners: list[Tensor] = []
        own: list[Tensor] = []
        for prompt in prompts:
            embeddings, row_owners, row_own = [], [], []
            for piece in prompt.pieces[1:] if prefix else prompt.pieces:
                if isinstance(piece, Slot):
                    embeddings.append(slots[piece].to(self.device, torch.float32))
                    row_owners += [modalities.index(piece.modality)] * len(slots[piece])
                    row_own += [piece.item == prompt.item] * len(slots[piece])
                else:
                    embeddings.append(self.embed(piece))
                    row_owners += [-1] * len(piece)
                    row_own += [False] * len(piece)
            rows.append(torch.cat(embeddings))
            owners.append(torch.tensor(row_owners, device=self.device))
            own.append(torch.tensor(row_own, dtype=torch.bool, device=self.device))
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        body = pad_sequence(rows, batch_first=True)
        return Spliced(
            prefix, body, lengths, pad_sequence(owners, True, -1), pad_sequence(own, True), modalities
        )

    def embed(self, ids: Sequence[int]) -> Float[Tensor, "n d"]:
        """Word embeddings of token ids, float32."""
        vectors: Tensor = self.word_embedding(torch.tensor(ids, dtype=torch.long, device=self.device))
        return vectors.float()

    def hidden(
        self, batch: Spliced, *, layer: int | None = None, share_prefix: bool | None = None
    ) -> Float[Tensor, "b s d"]:
        """Last layer's hidden states (after its norm) of the bodies; nothing is computed for logits.

        Args:
            layer: whose output is wanted, from 1; default: the last layer's, after the norm.
            share_prefix: compute the common prefix once, unless the adapter is random: every row then draws masks
                of its own, over the prefix too. Default: where the architecture can.
        """
        output = self._read(batch, layer=layer, share_prefix=share_prefix)
        hidden: Tensor = output.last_hidden_state if layer is None else output.hidden_states[layer]
        return hidden[:, -batch.body.shape[1] :].float()

    def _read(
        self,
        batch: Spliced,
        *,
        layer: int | None = None,
        share_prefix: bool | None = None,
        use_cache: bool = False,
    ) -> Any:
        """What the LLM without its head gives for the bodies, or for whole rows where no prefix is shared."""
        b, s, d = batch.body.shape
        p = len(batch.prefix)
        share = self.abilities.shares_prefix if share_prefix is None else share_prefix
        checkpointing = self.checkpointing and torch.is_grad_enabled()
        whole = checkpointing or bool(self.adapter and self.adapter.random) or (b == 1 and not self.alike)
        body = batch.body.to(self.word_embedding.weight.dtype)
        with self.autocast():
            prefix = self.embed(batch.prefix).to(body.dtype)
            cached: dict[str, Any] = {"use_cache": use_cache}
            if p and share and not whole:
                cache = self._inner(inputs_embeds=prefix[None], use_cache=True).past_key_values
                cache.batch_repeat_interleave(b)
                body = body.clone()  # some architectures scale what they are given in place
                positions = torch.arange(p, p + s, device=self.device)[None].expand(b, s)
                owners = batch.owners
                cached = {"past_key_values": cache, "position_ids": positions, "use_cache": True}
            else:
                body = torch.cat([prefix.expand(b, p, d), body], dim=1)
                owners = nn.functional.pad(batch.owners, (p, 0), value=-1)
            with (
                self._routed(owners, batch.modalities),
                layers.checkpointed(self.model) if checkpointing else nullcontext(),
            ):
                return self._inner(inputs_embeds=body, output_hidden_states=layer is not None, **cached)

    @property
    def _inner(self) -> Any:
        """The LLM without its head."""
        return getattr(self.model, head.base_name(self.model))

    def _routed(
        self, owners: Int[Tensor, "b s"], modalities: tuple[str, ...]
    ) -> AbstractContextManager[None]:
        return self.adapter.routed(owners, modalities) if self.adapter else nullcontext()

    def logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Next-token logits of the positions given, with all that the model does to them (`head.logits`)."""
        dtype = self.model.get_output_embeddings().weight.dtype
        with self.autocast():
            return head.logits(self.model, hidden.to(dtype)).float()

    @torch.inference_mode()
    def generate(self, batch: Spliced, max_new_tokens: int) -> list[str]:
        """Greedy continuations of a batch of prompts, special tokens left out, whitespace stripped."""
        longest = len(batch.prefix) + int(batch.lengths.max()) + max_new_tokens
        cached = self.abilities.generates is not None and (self.window is None or longest <= self.window)
        ids = (self.continued if cached else self.continuations)(batch, max_new_tokens)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def continued(self, batch: Spliced, max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of a batch as token ids, keys and values kept."""
        ids: list[list[int]] = [[] for _ in batch.body]
        for rows, logits in self.continuing(batch, max_new_tokens):
            for i, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
                ids[i].append(token)
        return ids

    def continuing(
        self, batch: Spliced, max_new_tokens: int
    ) -> Iterator[tuple[list[int], Float[Tensor, "n v"]]]:
        """Token by token the rows that have not ended, and the logits whose best goes on.

        Rows that end leave the batch where the cache is keys and values alone. Padding stays where it is, between a
        prompt and what is written or before the prompt, and nothing sees it.
        """
        last, cache, seen = self._begun(batch)
        rows, ends = torch.arange(len(batch.body), device=self.device), batch.lengths + len(batch.prefix)
        going = torch.ones_like(rows, dtype=torch.bool)
        for position in range(max_new_tokens):
            logits = self.logits(last)
            yield rows[going].tolist(), logits[going]
            best = logits.argmax(-1)
            going = going & (best != self.tokenizer.eos_token_id)
            if position == max_new_tokens - 1 or not going.any():
                return
            if self.abilities.generates == "behind" and not going.all():
                cache.batch_select_indices(going.nonzero().squeeze(1))
                rows, ends, seen, best, going = (t[going] for t in (rows, ends, seen, best, going))
            seen = nn.functional.pad(seen, (0, 1), value=True)
            with self.autocast():
                last = self._inner(
                    inputs_embeds=self.word_embedding(best)[:, None],
                    attention_mask=seen.long(),
                    position_ids=(ends + position)[:, None],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[:, -1]

    def continuations(self, batch: Spliced, max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of a batch as token ids, each from a pass over whole rows: any architecture's."""
        ids: list[list[int]] = [[] for _ in batch.body]
        lengths = batch.lengths.tolist()
        for _ in range(max_new_tokens):
            going = [i for i, new in enumerate(ids) if self.tokenizer.eos_token_id not in new[-1:]]
            if not going:
                break
            bodies = [torch.cat([batch.body[i, : lengths[i]], self.embed(ids[i])]) for i in going]
            owners = [
                nn.functional.pad(batch.owners[i, : lengths[i]], (0, len(ids[i])), value=-1) for i in going
            ]
            ends = torch.tensor([len(body) for body in bodies], device=self.device)
            body, owner = pad_sequence(bodies, True), pad_sequence(owners, True, -1)
            longer = Spliced(
                batch.prefix, body, ends, owner, torch.zeros_like(owner).bool(), batch.modalities
            )
            hidden = self.hidden(longer)
            best = self.logits(hidden[torch.arange(len(going), device=self.device), ends - 1]).argmax(-1)
            for i, token in zip(going, best.tolist(), strict=True):
                ids[i].append(token)
        return ids

    def _begun(self, batch: Spliced) -> tuple[Float[Tensor, "b d"], Any, Bool[Tensor, "b t"]]:
        """Prompts read: the state at each one's end, the cache, and which of its positions are no padding."""
        lengths = batch.lengths
        if self.abilities.generates == "behind":
            read = self._read(batch, use_cache=True)
            seen = torch.arange(batch.body.shape[1], device=self.device) < lengths[:, None]
            rows, back = torch.arange(len(lengths), device=self.device), lengths - batch.body.shape[1] - 1
            seen = nn.functional.pad(seen, (len(batch.prefix), 0), value=True)
            return read.last_hidden_state[rows, back], read.past_key_values, seen
        prefix, bodies = self.embed(batch.prefix), zip(batch.body, lengths.tolist(), strict=True)
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        body = pad([torch.cat([prefix, row[:n]]) for row, n in bodies]).to(self.word_embedding.weight.dtype)
        owners = [
            nn.functional.pad(row[:n], (len(prefix), 0), value=-1)
            for row, n in zip(batch.owners, lengths.tolist(), strict=True)
        ]
        seen = torch.arange(body.shape[1], 0, -1, device=self.device) <= (lengths + len(prefix))[:, None]
        with self.autocast(), self._routed(pad(owners, padding_value=-1), batch.modalities):
            read = self._inner(
                inputs_embeds=body,
                attention_mask=seen.long(),
                position_ids=(seen.cumsum(1) - 1).clamp_min(0),
                use_cache=True,
            )
        return read.last_hidden_state[:, -1], read.past_key_values, seen

    def linear_modules(self) -> list[str]:
        """Names of the layers that LoRA adapts; see `earec_core.llm.layers`."""
        return layers.adapted(self.model)

    def multiplied(self) -> int:
        """How many weights every position is multiplied by: those of the layers that LoRA adapts.

        Of the LLM alone, before an adapter is on it.
        """
        return sum(layers.weights(self.model.get_submodule(name)) for name in self.linear_modules())

    def weight_bytes(self) -> int:
        """What its weights take, those that are shared once."""
        packed = [t for m in self.model.modules() if isinstance(m, PackedLinear) for t in m.stored()]
        storages = [t.untyped_storage() for t in (*self.model.parameters(), *packed)]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def table_bytes(self) -> int:
        """What those of its weights take that are looked up, not multiplied: the embeddings."""
        tables = {m.weight for m in self.model.modules() if isinstance(m, nn.Embedding)}
        return sum(table.numel() * table.element_size() for table in tables)

    def shared(self, prompt: Prompt) -> int:
        """Positions that a prompt begins with and that are computed once a batch, as things stand (`hidden`)."""
        first = prompt.pieces[0] if prompt.pieces else ()
        whole = self.checkpointing or (self.adapter is not None and self.adapter.random)
        return 0 if isinstance(first, Slot) or whole or not self.abilities.shares_prefix else len(first)

    def left_out(self) -> list[str]:
        """What LoRA does not adapt of the LLM's blocks though it is a matrix: `kind of module (names)`, sorted.

        Of the LLM alone, before an adapter is on it.
        """
        return layers.left_out(self.model, set(self.linear_modules()))


def _device(name: str) -> torch.device:
    """A device of torch's by its name.

    Raises:
        UsageError: there is none of that name here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(error).partition(". ")[0]
        raise UsageError(
            f"There is no device {name!r} here ({reason}).",
            "Set backbone.device to auto, or to one that is there.",
        ) from error
    return device


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
