"""The service without HTTP: items, what is like them, what comes next, what the model says of them, new ones."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch

from earec_core.catalog import Catalog, item_row
from earec_core.config import RunConfig, resolve
from earec_core.errors import EarecError, UsageError, one_line
from earec_core.explain import say
from earec_core.files import digest
from earec_core.llm.backbone import Adapter, Backbone
from earec_core.serve import models
from earec_core.serve.errors import BusyError, UnknownIdError
from earec_core.serve.journal import Fields, ItemJournal
from earec_core.serve.limits import Deadline, Limits
from earec_core.serve.listing import (
    beside_of,
    is_there,
    item_of,
    pairs,
    ranked,
    retriever_of,
    row_of,
    weights_of,
)
from earec_core.serve.llm import LlmTurns
from earec_core.serve.state import Found, References, Snapshot, find, meant
from earec_core.workspace import Workspace
from earec_registry import RegistryError

Problem = EarecError | RegistryError
_RETRY_S = 60.0


@dataclass(frozen=True)
class Asked:
    """A question for what comes next, which can be answered: a history's item rows in a snapshot's catalog."""

    snapshot: Snapshot
    history: torch.Tensor
    k: int
    exclude_seen: bool


class Service:
    """A model over a catalog, answering; any number of threads may ask.

    Made with what takes no time checked; `load` does the rest. `open` does both.

    Attributes:
        limits: of every request.
        failed: why the last look at moved references came to nothing; None where it did not.

    Args:
        model: a reference to an adapter or composite.
        recommender: one over item vectors of that model.
        vectors: those item vectors; default: see `References`.
        beside: further vectors of the catalog's items, of any model.
        config: backbone and settings, as `earec encode` and `earec explain` take them.

    Raises:
        UsageError: something is of another kind, model or catalog; another process serves the same.
        IntegrityError, RegistryError: something stored is damaged.
    """

    def __init__(
        self,
        workspace: Workspace,
        model: str,
        catalog: Catalog,
        *,
        recommender: str | None = None,
        vectors: str | None = None,
        beside: Sequence[str] = (),
        config: RunConfig | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.failed: Problem | None = None
        self._workspace, self._catalog, self._config = workspace, catalog, config or resolve()
        self._references = References(model, recommender, vectors, tuple(beside))
        self._seen = meant(workspace, catalog, self._references)
        self._first = find(workspace, catalog, self._references)
        key = digest([_settled(workspace, model), catalog.digest])[:12]
        self._journal = ItemJournal(workspace.home / "serve" / f"{catalog.name}-{key}")
        self._llm = LlmTurns(self.limits.waiting)
        self._sequences = catalog.sequences()
        self._users = {str(user): row for row, user in enumerate(self._sequences.users)}
        self._backbone: Backbone | None = None
        self._snapshot: Snapshot | None = None
        self._again = 0.0

    @classmethod
    def open(cls, workspace: Workspace, model: str, catalog: Catalog, **others: Any) -> Service:
        """A service that answers.

        Args, Raises: as the class; and as `load`.
        """
        service = cls(workspace, model, catalog, **others)
        try:
            service.load()
        except BaseException:
            service.close()
            raise
        return service

    def close(self) -> None:
        """Let another process serve the same."""
        self._llm.close()
        self._journal.close()

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self._snapshot is not None

    @property
    def waiting(self) -> int:
        """Requests that have the LLM or wait for it."""
        return self._llm.inside

    def load(self) -> None:
        """Load the LLM and what the references mean, and take up the items that were added before.

        Raises:
            UsageError, PluginError, IntegrityError, EarecError: see `earec_core.encode.encode`.
        """
        self._backbone = Backbone.load(self._config.backbone, self._workspace)
        self._swap(self._first)

    def refresh(self) -> bool:
        """Load what the references mean now, if that is something else; what is there answers meanwhile.

        Where it cannot be loaded, `failed` says why, what is there stays, and it is tried again a minute later.

        Returns:
            Whether something else was loaded.
        """
        now = meant(self._workspace, self._catalog, self._references)
        if now == self._seen and (self.failed is None or time.monotonic() < self._again):
            return False
        self._seen, self._again = now, time.monotonic() + _RETRY_S
        try:
            found = find(self._workspace, self._catalog, self._references)
            moved = found.ids != self.snapshot.found.ids
            if moved:
                self._swap(found)
        except (EarecError, RegistryError) as error:
            self.failed = error
            return False
        except Exception as error:  # noqa: BLE001 - of a plugin or a library: what is there goes on answering
            self.failed = EarecError(
                f"What the references mean now cannot be loaded ({one_line(error)}).", "Move their tags back."
            )
            return False
        self.failed = None
        return moved

    def watch(self, stop: threading.Event, told: Callable[[bool], None] = lambda _: None) -> None:
        """Refresh every few seconds until `stop` is set.

        Args:
            told: after a look that loaded something (True) or failed anew (False).
        """
        while not stop.wait(self.limits.poll_s):
            before = self.failed
            if self.refresh():
                told(True)
            elif self.failed is not None and str(self.failed) != str(before):
                told(False)

    @property
    def snapshot(self) -> Snapshot:
        """What answers are made from now.

        Raises:
            BusyError: it is being loaded.
        """
        if self._snapshot is None:
            raise BusyError("The model is being loaded.", "Ask again later; /readyz says when.")
        return self._snapshot

    def about(self) -> models.About:
        """What is served."""
        now = self.snapshot
        return models.About(
            model=now.found.model.id,
            vectors=now.found.vectors.id,
            recommender=now.found.recommender.id if now.found.recommender else None,
            beside=[one.line for one in now.beside.values()],
            weights=weights_of(now.found.model),
            catalog=self._catalog.name,
            columns={name: str(kind) for name, kind in now.catalog.items.schema.items()},
            modalities=list(now.job.model.inputs),
            items=len(now.catalog),
            added=now.added,
            users=len(self._users),
        )

    def item(self, id_: str) -> models.Item:
        """An item with everything that is known of it.

        Raises:
            UnknownIdError: there is none of that id.
        """
        now = self.snapshot
        return item_of(now, now.catalog.item(row_of(now, id_)))

    def search(self, words: str = "", *, offset: int = 0, limit: int = 20) -> models.ItemPage:
        """Items in whose title (or id, where they have none) every one of some words begins a word.

        Args:
            words: separated by white space; none: all items. An id finds its item, too.
            offset: how many of those found are passed over.
            limit: how many are given.

        Raises:
            UsageError: the limit is too large.
        """
        self.limits.check("k", limit, "items")
        found = self.snapshot.catalog.items.select("item_id", "title")
        text = pl.coalesce("title", "item_id")
        if parts := words.split():
            patterns = [rf"(?i)(?:^|\W){pl.escape_regex(part)}" for part in parts]
            among = pl.all_horizontal(text.str.contains(pattern) for pattern in patterns)
            found = found.filter(among | (pl.col("item_id") == words))
        page = found.slice(offset, limit)
        lines = [models.ItemLine(item_id=id_, title=title) for id_, title in page.iter_rows()]
        return models.ItemPage(total=found.height, offset=offset, items=lines)

    def similar(
        self, ids: Sequence[str], k: int = 10, vectors: str | None = None
    ) -> list[models.SimilarItems]:
        """For each item the k items whose vectors are most like its own, by cosine, whitened.

        Args:
            vectors: the name of some beside the model's own.

        Raises:
            UnknownIdError: there is no such item.
            UsageError: one has no vector, there are no such vectors, or too much is asked for.
        """
        self.limits.check("ids", len(ids), "ids")
        self.limits.check("k", k, "items in an answer")
        now = self.snapshot
        rows = [row_of(now, id_) for id_ in ids]
        if vectors is None:
            found = [now.neighbours.nearest(row, k) for row in rows]
        else:
            other = beside_of(now, vectors)
            found = [other.nearest(now.catalog, row, k) for row in rows]
        lists = ranked(now, found)
        return [models.SimilarItems(item_id=id_, items=items) for id_, items in zip(ids, lists, strict=True)]

    def recommend(
        self,
        histories: Sequence[Sequence[str]] = (),
        users: Sequence[str] = (),
        *,
        k: int = 10,
        exclude_seen: bool = True,
    ) -> list[models.Recommendation]:
        """The k best next items after histories of item ids, the latest last, and of users of the catalog.

        Raises:
            UnknownIdError, UsageError: see `asked`.
        """
        return self.recommended(self.asked(histories, users, k=k, exclude_seen=exclude_seen))

    def asked(
        self,
        histories: Sequence[Sequence[str]] = (),
        users: Sequence[str] = (),
        *,
        k: int = 10,
        exclude_seen: bool = True,
    ) -> list[Asked]:
        """What `recommended` answers, everything checked.

        Raises:
            UnknownIdError: there is no such item or user.
            UsageError: there is no recommender, a history is empty, or too much is asked for.
        """
        self.limits.check("ids", len(histories) + len(users), "histories and users")
        self.limits.check("k", k, "items in an answer")
        now = self.snapshot
        retriever_of(now)
        given = [self.history(now, one) for one in histories]
        known = [self.history(now, user=user) for user in users]
        return [Asked(now, history, k, exclude_seen) for history in (*given, *known)]

    def recommended(self, asked: Sequence[Asked]) -> list[models.Recommendation]:
        """What comes next, for questions of one request or of several; alike ones take one pass of the model."""
        answers = dict[int, models.Recommendation]()
        alike = defaultdict[tuple[int, int, bool], list[int]](list)
        for place, one in enumerate(asked):
            alike[id(one.snapshot), one.k, one.exclude_seen].append(place)
        for (_, k, exclude_seen), places in alike.items():
            now = asked[places[0]].snapshot
            histories = [asked[place].history for place in places]
            rankings = retriever_of(now).recommend(histories, k, exclude_seen=exclude_seen)
            lists = ranked(now, [pairs(ranking) for ranking in rankings])
            for place, items in zip(places, lists, strict=True):
                answers[place] = models.Recommendation(items=items)
        return [answers[place] for place in range(len(asked))]

    def explain(self, ids: Sequence[str], *, timeout_s: float | None = None) -> list[models.Explained]:
        """What each modality alone and all together make the model say of items, beside their anchors.

        Args:
            timeout_s: default: that of the limits.

        Raises:
            UnknownIdError: there is no such item.
            UsageError: too many are asked for.
            BusyError, SlowError: too many wait for the LLM; it took too long.
        """
        self.limits.check("explained", len(ids), "items to explain")
        deadline, now = Deadline(timeout_s or self.limits.timeout_s), self.snapshot
        rows = [row_of(now, id_) for id_ in ids]
        with self._llm.turn(lambda: now.job, deadline):
            model = now.job.over(list(dict.fromkeys(rows)))
            said = say(model, list(dict.fromkeys(rows)), self._config.explain, check=deadline.check)
            anchors = {row: model.prompts.anchor(row) for row in rows}
        return [
            models.Explained(
                item_id=id_,
                title=now.catalog.item(row).title,
                anchor=anchors[row],
                texts=[
                    models.Text(source=one.source, text=one.text, rouge_l=one.rouge_l)
                    for one in said
                    if one.row == row
                ],
            )
            for id_, row in zip(ids, rows, strict=True)
        ]

    def add(
        self, items: Sequence[Fields], *, timeout_s: float | None = None
    ) -> tuple[list[models.Item], bool]:
        """Add items, all or none: they are encoded and on the disk when this returns, and in every later answer.

        An item that is there already, the same in every field, is passed over.

        Args:
            items: fields by the catalog's columns, as JSON has them (`earec_core.serve.models.NewItem`).
            timeout_s: default: that of the limits.

        Returns:
            The items, and whether any is new.

        Raises:
            TakenError: there is another item of that id.
            UsageError: a field is none of the catalog's, or the model can read nothing of an item.
            BusyError, SlowError: too many wait for the LLM; it took too long.
            EarecError: they cannot be written to the journal.
        """
        self.limits.check("ids", len(items), "items")
        deadline = Deadline(timeout_s or self.limits.timeout_s)
        rows = [item_row(self._catalog, models.from_json(one)) for one in items]
        ids = [str(row["item_id"].item()) for row in rows]
        if len(set(ids)) < len(ids):
            raise UsageError("The request has two items of one id.", "Give each once.")
        with self._llm.turn(lambda: self.snapshot.job, deadline):
            now = self.snapshot
            new = [place for place, row in enumerate(rows) if not is_there(now, ids[place], row)]
            grown = now.with_items([rows[place] for place in new], refuse=True, check=deadline.check)
            if new:
                self._journal.add([items[place] for place in new])
                self._snapshot = grown
        return [item_of(grown, grown.catalog.item(row_of(grown, id_))) for id_ in ids], bool(new)

    def _swap(self, found: Found) -> None:
        """Load what was found, with the items added so far, and answer from it."""
        assert self._backbone is not None  # noqa: S101 - `load` comes first
        fresh = Snapshot.first(self._workspace, self._catalog, found, self._config, self._backbone)
        with self._llm.turn(lambda: fresh.job):
            rows = [
                item_row(self._catalog, models.from_json(fields))
                for fields in self._journal.items
                if fields["item_id"] not in fresh.rows
            ]
            self._snapshot = fresh.with_items(rows)

    def history(self, now: Snapshot, ids: Sequence[str] = (), user: str | None = None) -> torch.Tensor:
        """Item rows of ids, the latest last, or those of a user of the catalog.

        Raises:
            UnknownIdError: there is no such item or user.
            UsageError: there are too many ids, or none.
        """
        if user is not None:
            return torch.from_numpy(self._sequences.of(self._user(user)).copy())
        self.limits.check("history", len(ids), "items in a history")
        return torch.tensor([row_of(now, id_) for id_ in ids], dtype=torch.long)

    def turn(self, now: Snapshot, deadline: Deadline) -> AbstractContextManager[None]:
        """The LLM with the snapshot's model on it, for as long as the block lasts.

        Raises:
            BusyError, SlowError: too many wait for it; it took too long.
        """
        return self._llm.turn(lambda: now.job, deadline)

    def aside(self, now: Snapshot, adapter: Adapter) -> AbstractContextManager[None]:
        """Within a turn: another adapter on the LLM for as long as the block lasts."""
        return self._llm.aside(now.job.model.backbone, adapter)

    def _user(self, user: str) -> int:
        if user not in self._users:
            raise UnknownIdError(
                f"The catalog {self._catalog.name!r} has no user {user!r}.", "Give an id of the source data."
            )
        return self._users[user]


def _settled(workspace: Workspace, reference: str) -> str:
    """What a reference is for as long as its tag may move: `name:tag`, or the id that it gives."""
    identity = workspace.registry.resolve(reference)
    name, _, tag = reference.partition(":")
    return identity if identity.startswith(reference) else f"{name}:{tag or 'latest'}"
