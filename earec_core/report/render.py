"""From `Report` to one HTML page: inline style, inline SVG, no script, no outside address."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import earec_core
from earec_core.report import charts
from earec_core.report.content import Composition, Curve, Example, Recommendation, Report, Suggestion

_METRICS = ("hr@10", "hr@50", "ndcg@10", "ndcg@50")
_VARIANTS = {"aligned": "var(--m0)", "shuffled": "var(--grey)", "unaligned": "var(--line)"}


def write(report: Report, target: Path) -> Path:
    """Render to a file, complete or not at all."""
    temp = target.with_name(f".{target.name}.{os.getpid()}")
    temp.write_text(render(report), encoding="utf-8")
    temp.replace(target)
    return target


def render(report: Report) -> str:
    """The report as an HTML page; everything that comes from data is escaped."""
    colours = _colours(report)
    style = resources.files(__package__).joinpath("style.css").read_text()
    sections = [
        _examples(report.examples, colours),
        _rouge(report),
        _curves(report.curves, colours),
        _composition(report.composition, colours) if report.composition else "",
        _recommendations(report.recommendations),
        _suggestions(report.suggestions),
        _stages(report),
    ]
    facts = "".join(f"<li><b>{escape(value)}</b>{escape(label)}</li>" for label, value in report.facts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{style}</style></head><body><main>"
        f'<h1>{escape(report.title)}</h1><p class="lead">{escape(report.subtitle)}</p>'
        f'<ul class="facts">{facts}</ul>{"".join(sections)}'
        f"<p><small>Made by earec {earec_core.__version__}.</small></p></main></body></html>"
    )


def highlight(text: str, anchor: str) -> str:
    """`text` with the words of its longest common subsequence with the anchor marked; what ROUGE-L counts."""
    pieces = re.findall(r"\w+|\W+", text)
    words = [i for i, piece in enumerate(pieces) if piece[0].isalnum()]
    ours = [pieces[i].lower() for i in words]
    theirs = [w.lower() for w in re.findall(r"\w+", anchor)]
    table = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i in range(len(ours) - 1, -1, -1):
        for j in range(len(theirs) - 1, -1, -1):
            same = ours[i] == theirs[j]
            table[i][j] = table[i + 1][j + 1] + 1 if same else max(table[i + 1][j], table[i][j + 1])
    common, i, j = set(), 0, 0
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            common.add(words[i])
            i, j = i + 1, j + 1
        elif table[i + 1][j] >= table[i][j + 1]:
            i += 1
        else:
            j += 1
    return "".join(f"<mark>{escape(p)}</mark>" if n in common else escape(p) for n, p in enumerate(pieces))


def _colours(report: Report) -> dict[str, str]:
    names = [c.modality for c in report.curves] + [s.source for e in report.examples for s in e.says]
    order = [name for name in dict.fromkeys(names) if name != "all"]
    return {name: f"var(--m{i % 5})" for i, name in enumerate(order)} | {"all": "var(--ink)"}


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{body}</section>"


def _command(command: str) -> str:
    return f"<code>$ {escape(command)}</code>"


def _examples(examples: Sequence[Example], colours: dict[str, str]) -> str:
    if not examples:
        return ""
    cards = []
    for example in examples:
        rows = []
        for says in example.says:
            shown = f'<div class="in">{escape(says.input)}</div>' if says.input else ""
            if says.input.startswith("data:image/"):
                shown = f'<img src="{escape(says.input)}" alt="picture of item {escape(example.item)}">'
            before = f'<div class="before">{escape(says.unaligned)}</div>' if says.unaligned else ""
            rows.append(
                f'<div class="says" style="--c:{colours.get(says.source, "var(--soft)")}">'
                f'<span class="who">{escape(says.source)}</span> '
                f'<span class="bar" style="width:{60 * says.rouge_l:.0f}px"></span> '
                f"<small>{says.rouge_l:.2f}</small>{shown}"
                f'<div class="out">{highlight(says.text, example.anchor)}</div>{before}</div>'
            )
        cards.append(f'<article class="card"><h3>{escape(example.anchor)}</h3>{"".join(rows)}</article>')
    return _section(
        "What the model says an item is",
        "Items it was not trained on. In bold the anchor it should say; under each modality what went in, what "
        "the aligned model says from it alone (words shared with the anchor are marked, the bar is ROUGE-L), "
        "and struck through what the language model said before it was aligned.",
        f'<div class="grid">{"".join(cards)}</div>',
    )


def _rouge(report: Report) -> str:
    if not report.rouge:
        return ""
    groups = [(f"{r.source} ({r.items})", r.variants) for r in report.rouge]
    chart = charts.bars("ROUGE-L by source and variant", groups, _VARIANTS)
    key = "".join(f'<i style="background:{colour}"></i>{name}' for name, colour in _VARIANTS.items())
    rows = "".join(
        f"<tr><td>{escape(r.source)}</td><td class=n>{r.items}</td>"
        + "".join(
            "<td class=n>{:.3f} <small>[{:.3f}, {:.3f}]</small></td>".format(*r.variants[v])
            if v in r.variants
            else "<td class=n>-</td>"
            for v in _VARIANTS
        )
        + "</tr>"
        for r in report.rouge
    )
    head = "".join(f"<th class=n>{v}</th>" for v in _VARIANTS)
    table = f"<table><tr><th>from</th><th class=n>items</th>{head}</tr>{rows}</table>"
    return _section(
        "How close that is to the anchor",
        "Mean ROUGE-L with its 95% interval. 'Shuffled' lets the model read another item's input: where it scores "
        "as high as 'aligned', the text does not depend on the input and says nothing of the item.",
        f'<figure><div class="key">{key}</div>{chart}</figure><div class="wide">{table}</div>'
        + "<br>".join(_command(c) for c in report.rouge_commands),
    )


def _curves(curves: Sequence[Curve], colours: dict[str, str]) -> str:
    if not curves:
        return ""
    cards = []
    for curve in curves:
        colour = colours[curve.modality]
        chart = charts.lines(
            f"Loss of aligning {curve.modality}",
            {"training": curve.loss, "validation": curve.valid},
            {"training": "var(--grey)", "validation": colour},
            dots={"validation"},
        )
        rouge = " → ".join(f"{value:.2f}" for _, value in [*curve.rouge[:1], *curve.rouge[-1:]])
        cards.append(
            f'<article class="card"><h3 style="color:{colour}">{escape(curve.modality)}</h3>{chart}'
            f"<small>{curve.items} items, {curve.minutes:.1f} min, {curve.tokens_per_s:.0f} tokens/s"
            f"{f', validation ROUGE-L {rouge}' if rouge else ''}</small><br>{_command(curve.command)}</article>"
        )
    return _section(
        "How it learned",
        "Negative log-likelihood of the anchor's tokens (Eq. 3): grey in training, coloured on items held back.",
        f'<div class="grid">{"".join(cards)}</div>',
    )


def _composition(one: Composition, colours: dict[str, str]) -> str:
    total = sum(one.weights.values()) or 1.0
    shares = [(m, w, colours.get(m, "var(--grey)")) for m, w in one.weights.items()]
    parts = "".join(
        f'<span style="width:{100 * w / total:.2f}%;background:{colour}">{escape(m)} {w:g}</span>'
        for m, w, colour in shares
    )
    rows = "".join(f"<tr><td>{escape(k)}</td><td class=n>{v:.3f}</td></tr>" for k, v in one.cosines.items())
    norms = ", ".join(f"{escape(m)} {v:.2f}" for m, v in one.norms.items())
    table = f"<table><tr><th>adapters</th><th class=n>cosine</th></tr>{rows}</table>" if rows else ""
    return _section(
        "How the adapters were composed",
        f"The weights of Eq. 4, method {one.method}. The cosine says how far two adapters change the language "
        "model in the same direction; the size of each change is its Frobenius norm.",
        f'<div class="stack">{parts}</div><p class="note">Norms: {norms}.</p>{table}{_command(one.command)}',
    )


def _recommendations(rows: Sequence[Recommendation]) -> str:
    if not rows:
        return ""
    best = {m: max(r.metrics[m] for r in rows) for m in _METRICS}

    def cell(row: Recommendation, metric: str) -> str:
        value, error = row.metrics[metric], row.metrics[f"{metric}_se"]
        text = f"<b>{value:.4f}</b>" if value == best[metric] else f"{value:.4f}"
        return f"<td class=n>{text} <small>±{1.96 * error:.4f}</small></td>"

    body = "".join(
        f"<tr><td>{escape(r.model)}<br><small>{escape(r.what)}</small><br>{_command(r.command)}</td>"
        + "".join(cell(r, m) for m in _METRICS)
        + "</tr>"
        for r in rows
    )
    head = "".join(f"<th class=n>{m.upper()}</th>" for m in _METRICS)
    points = [(r.model, r.metrics["hr@10"], r.metrics["hr@10_se"]) for r in rows]
    users = int(rows[0].metrics["users"])
    error = max(e for _, _, e in points)
    return _section(
        "What it recommends",
        f"The true next item of {users} users, ranked among all items. The standard error of HR@10 is about "
        f"{error:.3f}: differences below {2.8 * error:.3f} cannot be told from chance with so many users.",
        f"<figure>{charts.dots('HR@10 with 95% intervals', points, 'var(--m0)')}</figure>"
        f'<div class="wide"><table><tr><th>recommender</th>{head}</tr>{body}</table></div>',
    )


def _suggestions(suggestions: Sequence[Suggestion]) -> str:
    if not suggestions:
        return ""
    cards = []
    for one in suggestions:
        columns = "".join(
            f"<td><b>{escape(model)}</b><ol>"
            + "".join(f'<li class="{"hit" if t == one.target else ""}">{escape(t)}</li>' for t in titles)
            + "</ol></td>"
            for model, titles in one.lists.items()
        )
        cards.append(
            f'<article class="card"><h3>User {escape(one.user)}</h3><p class="note">Lately: '
            f"{escape(', '.join(one.history))}. Next: <b>{escape(one.target)}</b></p>"
            f'<div class="wide"><table><tr>{columns}</tr></table></div></article>'
        )
    return _section(
        "What that means for a user",
        "The same history, several recommenders; the true next item in green.",
        "".join(cards),
    )


def _stages(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(s.title)}</td><td class=n>{s.seconds:.0f} s</td><td>{_command(s.command)}</td></tr>"
        for s in report.stages
    )
    table = f'<div class="wide"><table>{rows}</table></div>' if rows else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    if not (table or notes):
        return ""
    return _section("How to get this", "Every figure comes from these commands.", f"{table}<ul>{notes}</ul>")
