"""From `Report` to one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from earec_core.errors import UsageError
from earec_core.report import charts, markup, verdicts
from earec_core.report.content import (
    Composition,
    Curve,
    Example,
    Recommendation,
    Report,
    RougeRow,
    Says,
    StageRow,
    Suggestion,
)
from earec_core.report.words import highlight

_METRICS = ("hr@10", "hr@50", "ndcg@10", "ndcg@50")
_SIDES = ("_se", "_low", "_high")
_VARIANTS = {
    "aligned": ("aligned", "solid"),
    "shuffled": ("reading another item", "light"),
    "unaligned": ("before alignment", "grey"),
}
_COLOURS = 6

Colours = Mapping[str, str]


def write(report: Report, target: Path) -> Path:
    """Render to `target`, and the report's data beside it as `.json`; each complete or not at all.

    Raises:
        UsageError: the folder cannot be written.
    """
    page, data = render(report), report.to_json()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        markup.put(target.with_suffix(".json"), data)
        markup.put(target, page)
    except OSError as error:
        raise UsageError(
            f"The report {target} cannot be written: {error.strerror or error}.", "Name another folder."
        ) from error
    return target


def render(report: Report) -> str:
    """The report as an HTML page; everything that comes from data is escaped."""
    colours = _colours(report)
    sections = [
        ("says", "What it says", _examples(report, colours)),
        ("rouge", "How close", _rouge(report, colours)),
        ("learning", "How it learned", _curves(report.curves, colours)),
        ("composition", "Composition", _composition(report.composition, colours)),
        ("recommends", "Recommendations", _recommendations(report.recommendations)),
        ("users", "For a user", _suggestions(report.suggestions, report.recommendations)),
        ("commands", "Commands", _stages(report.stages)),
        ("notes", "Notes", _notes(report.notes)),
    ]
    shown = [(key, name, body) for key, name, body in sections if body]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in shown)
    body = "".join(f'<section id="{key}">{body}</section>' for key, _, body in shown)
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.facts)
    short = [
        verdicts.gains(report.rouge),
        verdicts.dependence(report.rouge),
        verdicts.resolved(report.recommendations),
    ]
    points = "".join(f"<li>{escape(line)}</li>" for line in short if line)
    lead = (
        (f'<dl class="facts">{facts}</dl>' if facts else "")
        + (f'<div class="short"><h2>In short</h2><ul>{points}</ul></div>' if points else "")
        + (f'<nav aria-label="Sections">{links}</nav>' if links else "")
    )
    return markup.page(report.title, report.subtitle, body, header=lead, made_by=report.generated_with)


def _colours(report: Report) -> dict[str, str]:
    """One colour per modality on the whole page; all of them together are in ink."""
    names = [c.modality for c in report.curves]
    names += [r.source for r in report.rouge] + [s.source for e in report.examples for s in e.says]
    names += list(report.composition.weights) if report.composition else []
    order = [name for name in dict.fromkeys(names) if name != "all"]
    return {name: f"var(--m{i % _COLOURS})" for i, name in enumerate(order)} | {"all": "var(--ink)"}


def _head(title: str, *sentences: str) -> str:
    text = " ".join(one for one in sentences if one)
    return f"<h2>{escape(title)}</h2><p>{escape(text)}</p>"


def _commands(commands: Sequence[str]) -> str:
    found = "".join(f"<code>{escape(one)}</code>" for one in dict.fromkeys(commands) if one)
    return f'<p class="how"><span>Made by</span>{found}</p>' if found else ""


def _picture(address: str, what: str) -> str:
    return f'<img src="{escape(address)}" alt="{escape(what)}">' if address.startswith("data:image/") else ""


def _examples(report: Report, colours: Colours) -> str:
    if not report.examples:
        return ""
    cards = "".join(_card(one, colours) for one in report.examples)
    return (
        _head(
            "What the model says an item is",
            "Each card is one item. On top is its anchor, what the model should say; below, one row for each "
            "modality: what goes in, and what the aligned model says from that alone.",
            "Words shared with the anchor, in its order, are marked; the bar is ROUGE-L, from 0 to 1. In small "
            "letters is what the language model said before it was aligned.",
        )
        + f'<div class="cards packed">{cards}</div>{_commands(report.rouge_commands)}'
    )


def _card(one: Example, colours: Colours) -> str:
    title = f'<p class="soft">{escape(one.title)}</p>' if one.title and one.title != one.anchor else ""
    rows = "".join(_says(says, one, colours) for says in one.says)
    return (
        f'<article class="card"><header>{_picture(one.image, f"Picture of item {one.item}")}<div>'
        f'<p class="kicker">item {escape(one.item)}</p><h3>{escape(one.anchor)}</h3>{title}</div></header>'
        f"{rows}</article>"
    )


def _says(says: Says, example: Example, colours: Colours) -> str:
    together = says.source == "all"
    who = "all together" if together else f"from {says.source}"
    shown = _picture(says.input, f"What the model sees of item {example.item}")
    if not shown and says.input:
        shown = f'<p class="in">{escape(says.input)}</p>'
    before = f'<p class="before"><b>before</b> {escape(says.unaligned)}</p>' if says.unaligned.strip() else ""
    score = says.rouge_l if math.isfinite(says.rouge_l) else 0.0
    return (
        f'<div class="says{" together" if together else ""}" '
        f'style="--c:{colours.get(says.source, "var(--soft)")}"><div class="top"><h4>{escape(who)}</h4>'
        f'<span class="meter" role="img" aria-label="ROUGE-L {markup.number(says.rouge_l, 2)}">'
        f'<i style="width:{100 * min(max(score, 0.0), 1.0):.0f}%"></i></span>'
        f'<span class="score">{markup.number(says.rouge_l, 2)}</span></div>{shown}'
        f'<p class="out">{highlight(says.text, example.anchor) or "<em>nothing</em>"}</p>{before}</div>'
    )


def _rouge(report: Report, colours: Colours) -> str:
    rows = report.rouge
    if not rows:
        return ""
    groups = [
        charts.Group(
            f"{verdicts.source(r.source)}, {r.items} items",
            colours[r.source],
            [
                charts.Bar(label, *r.variants[v], style)
                for v, (label, style) in _VARIANTS.items()
                if v in r.variants
            ],
        )
        for r in rows
    ]
    chart = charts.bars("ROUGE-L by modality: aligned, reading another item, before alignment", groups)
    table = markup.table(
        "Mean ROUGE-L with its 95% interval over the items",
        ["from", "items", *(label for label, _ in _VARIANTS.values()), "what it shows"],
        [_rouge_row(r, colours[r.source]) for r in rows],
        numbers=range(1, 2 + len(_VARIANTS)),
    )
    return (
        _head(
            "How close that is to the anchor",
            "ROUGE-L measures how many words, in the same order, a text shares with the anchor: 1 is the "
            "anchor itself, 0 shares nothing; the thin line on a bar is the 95% interval.",
            "“Reading another item” gives the model the wrong item's input on purpose: where that scores as "
            "high, the text says nothing of the item.",
        )
        + f"<figure>{chart}</figure>{table}{_commands(report.rouge_commands)}"
    )


def _rouge_row(row: RougeRow, colour: str) -> str:
    cells = []
    for variant in _VARIANTS:
        mean, low, high = row.variants.get(variant, (math.nan,) * 3)
        between = f" <small>{low:.3f}–{high:.3f}</small>" if math.isfinite(low + high) else ""
        cells.append(f"<td class=n>{markup.number(mean, 3)}{between}</td>")
    return (
        f"<tr>{markup.name(verdicts.source(row.source), colour)}<td class=n>{row.items}</td>{''.join(cells)}"
        f"<td class=words>{escape(verdicts.learned(row))}</td></tr>"
    )


def _curves(curves: Sequence[Curve], colours: Colours) -> str:
    if not curves:
        return ""
    cards = []
    for curve in curves:
        colour = colours[curve.modality]
        loss = charts.lines(
            f"Loss while aligning {curve.modality}",
            [
                charts.Line("training", curve.loss, colour, faint=True),
                charts.Line("training, smoothed", charts.smooth(curve.loss), colour),
                charts.Line("validation", curve.valid, colour, marked=True),
            ],
            y_label="loss",
        )
        rouge = charts.lines(
            f"Validation ROUGE-L while aligning {curve.modality}",
            [charts.Line("ROUGE-L", curve.rouge, colour, marked=True)],
            y_label="ROUGE-L on validation items",
            height=150,
            limits=(
                0.0,
                max([value for _, value in curve.rouge if math.isfinite(value)], default=1.0) or 1.0,
            ),
        )
        cards.append(
            f'<article class="card"><h3 style="color:{colour}">{escape(curve.modality)}</h3>'
            f'<p class="soft">{curve.items:,} items, {markup.number(curve.minutes, 1)} min, '
            f"{markup.number(curve.tokens_per_s, 0)} tokens/s</p>"
            f"{loss}{rouge}{_commands([curve.command])}</article>"
        )
    return (
        _head(
            "How it learned",
            "One alignment per modality, each on its own. Lower loss means that the anchor's words surprise the "
            "model less (Eq. 3, mean over the anchor's tokens).",
            "The thin line is training, smoothed over its raw course; dots are items held back. Dots that rise "
            "while the line falls mean that it learns items by heart.",
        )
        + f'<div class="cards">{"".join(cards)}</div>'
    )


def _composition(one: Composition | None, colours: Colours) -> str:
    if one is None or not one.weights:
        return ""
    total = sum(abs(w) for w in one.weights.values()) or 1.0
    stack = "".join(
        f'<i style="width:{100 * abs(w) / total:.2f}%;background:{colours[m]}"></i>'
        for m, w in one.weights.items()
    )
    key = "".join(
        f'<li style="--c:{colours[m]}"><b>{escape(m)}</b> {w:g}</li>' for m, w in one.weights.items()
    )
    spoken = ", ".join(f"{m} {w:g}" for m, w in one.weights.items())
    sizes = markup.table(
        "Each adapter: its weight, and the size (Frobenius norm) of its change",
        ["adapter", "weight", "size", "weight × size"],
        [
            f"<tr>{markup.name(m, colours[m])}<td class=n>{w:g}</td><td class=n>{markup.number(size, 2)}</td>"
            f"<td class=n>{markup.number(w * size, 2)}</td></tr>"
            for m, w in one.weights.items()
            for size in [one.norms.get(m, math.nan)]
        ],
    )
    return (
        _head(
            "How the adapters were composed",
            f"One adapter out of {len(one.weights)}, added by weight (Eq. 4, method {one.method}).",
            "The cosine says how far two adapters change the language model in the same direction: 1 is the "
            "same change, 0 has nothing in common, below 0 they work against each other.",
            verdicts.directions(one),
        )
        + f'<div class="stack" role="img" aria-label="{escape(f"Weights: {spoken}")}">{stack}</div>'
        f'<ul class="key">{key}</ul><div class="pair">{sizes}{_cosines(one)}</div>{_commands([one.command])}'
    )


def _cosines(one: Composition) -> str:
    if not one.cosines:
        return ""
    both = {tuple(pair.split(",", 1)): value for pair, value in one.cosines.items()}
    names = list(one.weights)

    def cell(a: str, b: str) -> str:
        if a == b:
            return '<td class="n soft">1</td>'
        value = both.get((a, b), both.get((b, a), math.nan))
        if not math.isfinite(value):
            return "<td class=n>–</td>"
        tint = "var(--m0)" if value >= 0 else "var(--m1)"
        share = 45 * min(abs(value), 1.0)
        return f'<td class=n style="background:color-mix(in srgb,{tint} {share:.0f}%,transparent)">{value:.3f}</td>'

    rows = [f"<tr>{markup.name(a)}{''.join(cell(a, b) for b in names)}</tr>" for a in names]
    return markup.table("Cosine between two adapters' changes", ["", *names], rows)


def _recommendations(rows: Sequence[Recommendation]) -> str:
    if not rows:
        return ""
    found = dict.fromkeys(m for r in rows for m in r.metrics if m != "users" and not m.endswith(_SIDES))
    metrics = [m for m in _METRICS if m in found] + [m for m in found if m not in _METRICS]
    best = {
        m: max((v for r in rows if math.isfinite(v := r.metrics.get(m, math.nan))), default=math.nan)
        for m in metrics
    }

    def cell(row: Recommendation, metric: str) -> str:
        value, low, high = row.interval(metric)
        text = f"<b>{value:.4f}</b>" if value == best[metric] else markup.number(value, 4)
        between = f" <small>{low:.4f}–{high:.4f}</small>" if math.isfinite(low + high) else ""
        return f"<td class=n>{text}{between}</td>"

    table = markup.table(
        "Ranking the true next item among all items, with 95% intervals; the best of each column is bold",
        ["recommender", *(m.upper() for m in metrics)],
        [
            f'<tr><th scope="row">{escape(r.model)}<br><small>{escape(r.what)}</small></th>'
            f"{''.join(cell(r, m) for m in metrics)}</tr>"
            for r in rows
        ],
    )
    points = [charts.Dot(r.model, *r.interval(verdicts.HEADLINE)) for r in rows]
    chart = charts.dots(f"{verdicts.HEADLINE.upper()} with its 95% interval, by recommender", points)
    return (
        _head(
            "What it recommends",
            f"{verdicts.HEADLINE.upper()} is the part of the users whose true next item is among the first ten "
            "offered, out of all items; the line is the 95% interval, the grey band that of the best.",
            verdicts.precision(rows),
            verdicts.resolved(rows),
        )
        + (f"<figure>{chart}</figure>" if chart else "")
        + f"{table}{_commands([r.command for r in rows])}"
    )


def _suggestions(suggestions: Sequence[Suggestion], rows: Sequence[Recommendation]) -> str:
    if not suggestions:
        return ""
    cards = []
    for one in suggestions:
        columns = "".join(
            f"<div><h4>{escape(model)}</h4><ol>{''.join(_offer(t, one.target) for t in titles)}</ol></div>"
            for model, titles in one.lists.items()
        )
        past = "".join(f"<li>{escape(title)}</li>" for title in one.history)
        cards.append(
            f'<article class="card"><header><div><p class="kicker">user {escape(one.user)} chose next</p>'
            f"<h3>{escape(one.target)}</h3></div></header>"
            f'<p class="soft">after</p><ul class="past">{past}</ul><div class="lists">{columns}</div></article>'
        )
    models = {model for one in suggestions for model in one.lists}
    return (
        _head(
            "What that means for a user",
            "The same history read by several recommenders, the first items that each offers. The item that the "
            "user really chose next carries a tick where it is found.",
        )
        + "".join(cards)
        + _commands([r.command for r in rows if r.model in models])
    )


def _offer(title: str, target: str) -> str:
    if title != target:
        return f"<li>{escape(title)}</li>"
    return f'<li class="hit">{escape(title)} <span role="img" aria-label="the true next item">✓</span></li>'


def _stages(stages: Sequence[StageRow]) -> str:
    if not stages:
        return ""
    longest = max(one.seconds for one in stages) or 1.0
    rows = [
        f'<tr><th scope="row">{escape(one.title)}'
        f"{'<br><small>kept from an earlier run</small>' if one.skipped else ''}</th>"
        f'<td class=n>{one.seconds:,.0f} s<span class="time"><i style="width:'
        f'{100 * one.seconds / longest:.0f}%"></i></span></td><td><code>{escape(one.command)}</code></td></tr>'
        for one in stages
    ]
    total = sum(one.seconds for one in stages) / 60
    return _head(
        "How to get this",
        f"Every figure on this page comes from these commands, in this order; {total:.1f} minutes in all.",
    ) + markup.table("The stages of the run", ["stage", "time", "command"], rows, numbers=[1])


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f"<h2>What to keep in mind</h2><ul>{''.join(f'<li>{escape(one)}</li>' for one in notes)}</ul>"
