"""A report: what it shows is what it was given, and nothing else can get in or out."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
from dataclasses import fields, replace
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from earec_core.errors import DataError, UsageError
from earec_core.report import Report, charts, explained, render, verdicts, write
from earec_core.report.content import (
    Composition,
    Contrast,
    Curve,
    Difference,
    Example,
    Overlap,
    Recommendation,
    RougeRow,
    Says,
    StageRow,
    Suggestion,
    TwoSay,
)
from earec_core.report.explained import examples, rouge_rows
from earec_core.report.render import SECTIONS
from earec_core.report.words import common, highlight

HOSTILE = "<script>alert('x')</script> & \"quotes\""
PICTURE = "data:image/png;base64,iVBORw0KGgo="
VOID = {"meta", "img", "br"}


def _metrics(hr: float, error: float) -> dict[str, float]:
    names = ("hr@10", "hr@50", "ndcg@10", "ndcg@50")
    found = {name: hr * factor for name, factor in zip(names, (1, 3, 0.5, 0.9), strict=True)}
    return {"users": 943.0} | found | {f"{name}_se": error for name in names}


REPORT = Report(
    title="What it learned",
    subtitle="Three modalities.",
    facts=[("items", "1,349")],
    examples=[
        Example(
            "405",
            "Star Trek. Action. 1996",
            [
                Says("text", "Action, 1996", "Star Wars. Action. 1996", "I cannot say.", 0.75),
                Says("vision", PICTURE, "a star", "", 0.25),
                Says("all", "", "Star Trek. Action. 1996", "", 1.0),
            ],
            title="Star Trek",
            image=PICTURE,
        )
    ],
    rouge=[
        RougeRow("text", 40, {"aligned": (0.612, 0.56, 0.66), "shuffled": (0.21, 0.17, 0.25)}),
        RougeRow("vision", 31, {"aligned": (0.3, 0.2, 0.4), "shuffled": (0.25, 0.15, 0.35)}),
    ],
    rouge_commands=["earec explain composite --items 40"],
    curves=[
        Curve(
            "text", [(1, 5.0), (2, 3.0), (3, 2.0)], [(0, 5.5), (3, 2.5)], [(3, 0.4)], 1102, 1.4, 400.0,
            "earec align --modality text",
        )
    ],
    composition=Composition(
        {"text": 0.7, "vision": 0.3}, "delta", {"text,vision": -0.123}, {"text": 3.0, "vision": 2.0},
        "earec compose --weights text=0.7,vision=0.3",
    ),
    recommendations=[
        Recommendation("ids", "SASRec", _metrics(0.0764, 0.0086), "earec recommend train --ids"),
        Recommendation("composite", "vectors", _metrics(0.0848, 0.009), "earec recommend train --vectors c"),
        Recommendation("unaligned", "raw", _metrics(0.02, 0.004), "earec recommend train --vectors u"),
    ],
    suggestions=[Suggestion("7", ["Fargo"], "Men in Black", {"ids": ["Batman"], "composite": ["Men in Black"]})],
    differences=[Difference("weights.text", "0.5", "")],
    contrasts=[
        Contrast("texts", "ROUGE-L from all", 31, 0.25, 0.375, (0.125, 0.05, 0.2), 0.001),
        Contrast("vectors", "cosine to nearest 10 items by A", 31, 0.5, 0.25, (-0.25, -0.3, -0.2), 1e-9),
    ],
    overlaps=[Overlap("vectors", "nearest 10 items", 31, (0.42, 0.31, 0.53), 0.01)],
    said=[TwoSay("405", "Star Trek. 1996", "Star Wars", "", 0.25, 0.0)],
    compared_by="earec compare a b --data movies",
    stages=[StageRow("Align text", "earec align --modality text", 84.0, skipped=True)],
    notes=["Small model."],
)  # fmt: skip


class _Page(HTMLParser):
    """Collects what a page holds; fails where a tag does not close the one that is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_page_is_whole_and_asks_nothing_of_the_outside() -> None:
    text = render(REPORT)
    page = _Page(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(name for name, _ in page.tags)
    assert all((attrs.get("src") or PICTURE).startswith("data:image/") for _, attrs in page.tags)
    targets = {attrs.get("id") for _, attrs in page.tags}
    links = [attrs["href"] for name, attrs in page.tags if name == "a"]
    assert links
    assert all(link is not None and link[1:] in targets for link in links)


def test_pictures_tables_and_charts_can_be_read_aloud() -> None:
    page = _Page(render(REPORT))
    assert page.count("table") == page.count("caption") > 0
    assert all(attrs.get("alt") for name, attrs in page.tags if name == "img")
    charts_shown = [attrs for name, attrs in page.tags if attrs.get("class") == "chart"]
    assert len(charts_shown) == page.count("desc") == 4
    assert all(attrs.get("aria-label") for attrs in charts_shown)


def test_what_comes_from_data_is_never_markup() -> None:
    def poison(value: object, key: str = "") -> object:
        if isinstance(value, str):
            return HOSTILE if not value.startswith("data:") else 'data:image/png,"><script>x</script>'
        if isinstance(value, list):
            return [poison(one) for one in value]
        if isinstance(value, dict):
            return {
                (k if k in names else f"{HOSTILE},{n}" if key == "cosines" else f"{HOSTILE}{n}"): poison(v, k)
                for n, (k, v) in enumerate(value.items())
            }
        return value

    names = set(re.findall(r'"([\w@]+)":', REPORT.to_json())) - {"text,vision"}
    hostile = Report.from_json(json.dumps(poison(json.loads(REPORT.to_json()))))
    text = render(hostile)
    page = _Page(text)
    assert page.count("script") == 0
    assert str(escape(HOSTILE)) in text
    assert [name for name, _ in page.tags].count("img") == 2


def test_a_title_with_markup_is_text_wherever_it_stands() -> None:
    def pages(title: str) -> list[_Page]:
        says = [Says(title, title, title, title, 0.5)]
        whole = replace(
            REPORT,
            title=title,
            subtitle=title,
            facts=[(title, title)],
            examples=[
                Example(title, title, says),
                Example(title, "anchor", says, title=title, image=PICTURE),
            ],
            suggestions=[Suggestion(title, [title], title, {"ids": [title]})],
            notes=[title],
        )
        run = explained(_scores([title]), _texts(title), lambda *_: title, model=title, catalog=title,
                        split=title, command=title)  # fmt: skip
        return [_Page(render(whole)), _Page(render(run))]

    hostile = "<u onclick='x'>Alien</u> & \"u\""
    for page, plain in zip(pages(hostile), pages("Alien"), strict=True):
        assert page.text.count(hostile) == plain.text.count("Alien") > 10
        assert page.text.replace(hostile, "Alien") == plain.text
        shown, expected = (
            [(name, attrs) for name, attrs in part.tags if name != "mark"] for part in (page, plain)
        )
        assert str(shown).replace(repr(hostile)[1:-1], "Alien") == str(expected)


def test_an_input_that_is_no_picture_is_text() -> None:
    says = Says("vision", "javascript:alert(1)", "x", "", 0.0)
    page = _Page(render(Report("t", "s", examples=[Example("1", "a", [says], image="file:///etc/passwd")])))
    assert page.count("img") == 0


def _scores(sources: list[str]) -> list[dict[str, object]]:
    bounds = {"aligned": 0.5, "aligned_low": 0.4, "aligned_high": 0.6}
    return [{"source": source, "items": 9, **bounds} for source in sources]


def _texts(anchor: str, items: int = 9) -> list[dict[str, object]]:
    """ROUGE-L of `text` grows by item, that of `all` falls half as fast."""
    rouge = {"text": lambda n: n / 10, "all": lambda n: 0.5 - n / 20}
    return [
        {"item_id": f"i{n}", "anchor": anchor, "source": source, "variant": variant,
         "text": f"{variant} {source} {n}", "rouge_l": score(n)}
        for variant in ("unaligned", "aligned", "shuffled")
        for source, score in rouge.items()
        for n in range(items)
    ]  # fmt: skip


def test_a_run_of_explain_has_the_closest_items_and_as_many_from_the_middle() -> None:
    asked = []

    def describe(item: str, modality: str) -> str:
        asked.append((item, modality))
        return f"input of {item}"

    report = explained(_scores(["text", "all"]), _texts("red pen"), describe, model="composite",
                       catalog="things", split="test", command="earec explain composite --data things")  # fmt: skip
    # The mean of n / 10 and 0.5 - n / 20 grows with n: ranked i8 ... i0, the middle begins at the fifth, i4.
    assert [example.item for example in report.examples] == ["i8", "i7", "i6", "i4", "i3", "i2"]
    assert asked == [(example.item, "text") for example in report.examples]
    first = report.examples[0]
    assert first.says == [
        Says("text", "input of i8", "aligned text 8", "unaligned text 8", 0.8),
        Says("all", "", "aligned all 8", "unaligned all 8", pytest.approx(0.1)),
    ]
    assert report.rouge == [RougeRow(s, 9, {"aligned": (0.5, 0.4, 0.6)}) for s in ("text", "all")]
    assert dict(report.facts)["items scored"] == "9"
    page = _Page(render(report))
    assert [attrs["id"] for name, attrs in page.tags if name == "section"] == ["examples", "rouge"]
    assert page.text.count("earec explain composite --data things") == 2


@pytest.mark.parametrize("items", range(5))
def test_a_run_over_few_items_shows_each_once(items: int) -> None:
    shown = [example.item for example in examples(_texts("red pen", items), lambda *_: "")]
    assert sorted(shown) == [f"i{n}" for n in range(items)]


def test_json_gives_the_same_page(tmp_path: Path) -> None:
    data = tmp_path / "new" / "report.json"
    page = write(REPORT, tmp_path / "new" / "report.html", data)
    again = Report.from_json(data.read_text(encoding="utf-8"))
    assert render(again) == render(REPORT) == page.read_text(encoding="utf-8")
    assert json.loads(again.to_json()) == json.loads(REPORT.to_json())
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "report.json"]


def test_json_keeps_what_is_not_finite_and_stays_standard() -> None:
    odd = replace(REPORT, rouge=[RougeRow("text", 0, {"aligned": (math.nan, -math.inf, math.inf)})])
    text = odd.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    mean, low, high = Report.from_json(text).rouge[0].variants["aligned"]
    assert math.isnan(mean)
    assert (low, high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"title": "x"}', '{"title": "x", "subtitle": "y", "rouge": [1]}']
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a saved report"):
        Report.from_json(text)


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(REPORT, tmp_path / "report.html", tmp_path / "report.json")
    before = target.read_text(encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(UsageError, match="No space left"):
            write(replace(REPORT, title="new"), target)
    assert target.read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write(REPORT, tmp_path / "file" / "report.html")


def test_text_that_no_encoding_knows_is_still_written(tmp_path: Path) -> None:
    assert "a?b" in write(Report("a\ud800b", "s"), tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_command_is_shown() -> None:
    text = unescape(render(REPORT))
    assert REPORT.composition is not None
    parts = [*REPORT.stages, *REPORT.curves, *REPORT.recommendations, REPORT.composition]
    for command in [*(part.command for part in parts), *REPORT.rouge_commands]:
        assert f"<code>{command}</code>" in text


def test_tables_hold_the_figures_and_mark_the_best() -> None:
    text = render(REPORT)
    for row in REPORT.recommendations:
        for name in ("hr@10", "hr@50", "ndcg@10", "ndcg@50"):
            value, error = row.metrics[name], row.metrics[f"{name}_se"]
            shown = f"<b>{value:.4f}</b>" if row.model == "composite" else f"{value:.4f}"
            between = f"{value - 1.96 * error:.4f}–{value + 1.96 * error:.4f}"
            assert f"<td class=n>{shown} <small>{between}</small></td>" in text
    assert text.count("<td class=n><b>") == 4
    assert "<td class=n>0.612 <small>0.560–0.660</small></td>" in text
    assert text.count(">-0.123</td>") == 2


def test_given_bounds_are_taken_over_the_standard_error() -> None:
    row = Recommendation("m", "", {"hr@10": 0.1, "hr@10_se": 0.01, "hr@10_low": 0.05, "hr@10_high": 0.2}, "")
    assert row.interval("hr@10") == (0.1, 0.05, 0.2)
    assert all(math.isnan(v) for v in row.interval("ndcg@10"))


def test_sentences_say_what_cannot_be_told() -> None:
    said = verdicts.resolved(REPORT.recommendations)
    assert "Best HR@10: composite, 0.0848" in said
    assert "above that of unaligned but overlaps that of ids" in said
    assert "943 users" in verdicts.precision(REPORT.recommendations)
    assert "0.0090" in verdicts.precision(REPORT.recommendations)
    assert "lies above all others" in verdicts.resolved(REPORT.recommendations[1:])
    heard = verdicts.dependence(REPORT.rouge)
    assert heard.startswith(
        "From text the model says something of this very item; from vision that is not shown"
    )


def test_every_section_has_its_field_and_its_template() -> None:
    templates = resources.files("earec_core.report") / "templates" / "sections"
    assert sorted(f"{key}.html.j2" for key in SECTIONS) == sorted(file.name for file in templates.iterdir())
    assert set(SECTIONS) <= {field.name for field in fields(Report)}


def test_empty_parts_are_left_out() -> None:
    page = _Page(render(Report("t", "s")))
    assert page.count("section") == page.count("table") == page.count("nav") == page.count("svg") == 0
    only = _Page(render(Report("t", "s", notes=["n"])))
    assert [attrs["id"] for name, attrs in only.tags if name == "section"] == ["notes"]


def test_figures_that_are_missing_or_not_numbers_do_not_stop_it() -> None:
    nan = math.nan
    odd = replace(
        REPORT,
        rouge=[RougeRow("text", 0, {"aligned": (nan, nan, nan)}), RougeRow("x", 0, {})],
        curves=[
            Curve("text", [(1, nan)], [], [], 0, nan, nan, ""),
            replace(REPORT.curves[0], loss=[(5, 1.0)]),
        ],
        recommendations=[
            Recommendation("a", "", {"hr@10": nan}, ""),
            Recommendation("b", "", {"mrr": 1.0}, ""),
        ],
        composition=Composition({"text": 0.0}, "delta", {}, {}, ""),
        contrasts=[Contrast("texts", "x", 0, nan, nan, (nan, nan, nan), nan)],
        overlaps=[Overlap("vectors", "x", 0, (nan, nan, nan), nan)],
        said=[TwoSay("1", "", "", "", nan, nan)],
        stages=[StageRow("s", "", 0.0)],
    )
    text = render(odd)
    _Page(text)
    assert not re.search(r"\b(nan|inf)\b", text)


words = st.lists(st.sampled_from("abcd"), max_size=7)


@given(words, words)
def test_common_words_are_a_longest_common_subsequence(ours: list[str], theirs: list[str]) -> None:
    def inside(part: tuple[str, ...], whole: list[str]) -> bool:
        rest = iter(whole)
        return all(word in rest for word in part)

    longest = max(
        n for n in range(len(ours) + 1) for part in itertools.combinations(ours, n) if inside(part, theirs)
    )
    found = common(ours, theirs)
    assert found == sorted(set(found))
    assert len(found) == longest
    assert inside(tuple(ours[i] for i in found), theirs)


@given(st.text(max_size=60), st.text(max_size=60))
def test_highlighting_changes_nothing_but_marks(text: str, anchor: str) -> None:
    assert unescape(re.sub(r"</?mark>", "", highlight(text, anchor))) == unescape(escape(text))


def test_of_two_models_the_page_says_what_can_be_told() -> None:
    text = unescape(render(REPORT))
    assert "42% [31, 53] are the same, more than chance (1.0%)" in text
    assert "ROUGE-L from all: B less A is +0.1250 [+0.0500, +0.2000], p 0.001; B is better." in text
    assert "cosine to nearest 10 items by A: B less A" not in text
    close = replace(REPORT.contrasts[0], less=(-0.1, -0.3, 0.1), p=0.3)
    assert verdicts.better(close).endswith("p 0.3; not told apart.")
    assert verdicts.better(replace(close, p=0.01)).endswith("A is better.")
    assert "not told from chance" in verdicts.shares(replace(REPORT.overlaps[0], shared=(0.42, 0.0, 0.53)))


def test_highlighted_words() -> None:
    assert highlight("Star Wars: Action <1996>", "star trek. action. 1996") == (
        "<mark>Star</mark> Wars: <mark>Action</mark> &lt;<mark>1996</mark>&gt;"
    )
    assert highlight("red apple", "Red Apple") == "<mark>red apple</mark>"
    assert highlight("", "a") == ""


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_their_range_in_even_steps(low: float, span: float) -> None:
    found = charts.ticks(low, low + span)
    slack = 1e-6 * max(span, abs(low) * 1e-3)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= 9


def test_bars_are_as_long_as_their_values() -> None:
    svg = charts.bars(
        "t", [charts.Group("g", "red", [charts.Value("a", 0.4, 0.3, 0.5), charts.Value("b", 0.2, 0.1, 0.3)])]
    )
    first, second = (float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)%"', svg))
    assert first == pytest.approx(2 * second, abs=0.02)


def test_what_copying_would_score_stands_in_the_headline() -> None:
    bounds = {
        name: (value, value, value) for name, value in (("unaligned", 0.1), ("aligned", 0.3), ("copied", 0.5))
    }
    said = verdicts.gains([RougeRow("text", 9, bounds)])
    assert "text 0.10 → 0.30 (its input, copied: 0.50)" in said
    del bounds["copied"]
    assert "copied" not in verdicts.gains([RougeRow("vision", 9, bounds)])


def test_what_was_not_measured_of_a_source_is_left_out() -> None:
    """As `explain --json` has it, where another source has it."""
    measured = {"aligned": 0.3, "aligned_low": 0.2, "aligned_high": 0.4, "unaligned": 0.1}
    measured |= {"unaligned_low": 0.1, "unaligned_high": 0.1}
    none = dict.fromkeys(("copied", "copied_low", "copied_high", "difference", "shuffled"))
    (row,) = rouge_rows([{"source": "behavior", "items": 9, **measured, **none}])
    assert (set(row.variants), row.difference) == ({"aligned", "unaligned"}, None)
    assert "behavior 0.10 → 0.30." in verdicts.gains([row])
    assert "behavior" in render(replace(REPORT, rouge=[row]))


def test_dots_stand_where_their_values_are() -> None:
    rows = [
        charts.Value("a", 0.1, 0.05, 0.15),
        charts.Value("b", 0.2, 0.1, 0.3),
        charts.Value("c", 0.3, 0.2, 0.4),
    ]
    x = [float(v) for v in re.findall(r'<circle cx="([\d.]+)%"', charts.dots("t", rows))]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)


def test_smoothing_keeps_a_straight_line() -> None:
    line = [(float(i), 2.0 * i) for i in range(50)]
    assert [y for _, y in charts.smooth(line)] == pytest.approx([y for _, y in line])


def test_a_paired_difference_decides_where_intervals_overlap() -> None:
    variants = {"aligned": (0.30, 0.25, 0.35), "shuffled": (0.27, 0.22, 0.32)}
    overlapping = RougeRow("text", 200, variants)
    assert not overlapping.reads
    assert RougeRow("text", 200, variants, (0.03, 0.01, 0.05)).reads
    assert not RougeRow("text", 200, variants, (0.03, -0.01, 0.07)).reads
    assert "reads its input" in verdicts.learned(RougeRow("text", 200, variants, (0.03, 0.01, 0.05)))
    assert "may do as well" in verdicts.learned(overlapping)


def test_differences_to_the_first_recommender_are_said_user_by_user() -> None:
    first = Recommendation("ids", "", _metrics(0.07, 0.01), "")
    less = {"hr@10": (0.0123, 0.0011, 0.0235, 0.031)}
    rows = [first, Recommendation("composite", "", _metrics(0.08, 0.01), "", less)]
    said = "User by user, HR@10 less that of ids: composite +0.0123 [+0.0011, +0.0235], p 0.031."
    assert verdicts.paired(rows) == said
    assert verdicts.paired([first]) == ""


@pytest.fixture(scope="module")
def looks(browser: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What the browser makes of each page at each width."""
    score = {"source": "text", "items": 72, "difference": 0.1, "difference_low": 0.0, "difference_high": 0.2}
    for name in ("aligned", "shuffled", "unaligned", "copied"):
        score |= {name: 0.3, f"{name}_low": 0.2, f"{name}_high": 0.4}
    said = {"item_id": "i" * 40, "anchor": "w" * 200, "source": "text", "text": "m" * 200, "rouge_l": 0.5}
    alone = explained(
        [score], [{**said, "variant": "aligned"}], lambda *_: "x" * 200,
        model="composite/things", catalog="things", split="test", command="earec explain " + "y" * 200,
    )  # fmt: skip
    pages = {"demo": render(REPORT), "explain": render(alone)}
    for name, text in pages.items():
        (browser / f"{name}.html").write_text(text)
    files = [str(browser / f"{name}.html") for name in pages]
    done = subprocess.run(
        ["node", "look.mjs", *files], cwd=browser, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return {(Path(look["file"]).stem, look["width"]): look for look in json.loads(done.stdout)}


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("page", ["demo", "explain"])
def test_nothing_is_wider_than_the_page_and_nothing_fails(
    page: str, width: int, looks: dict[tuple[str, int], dict[str, Any]]
) -> None:
    look = looks[page, width]
    assert look["errors"] == []
    assert look["scroll"] <= width
    assert look["wider"] == []


def test_on_a_phone_each_number_stands_behind_its_columns_name(
    looks: dict[tuple[str, int], dict[str, Any]],
) -> None:
    names = looks["demo", 375]["named"]
    assert '"HR@10"' in names
    assert '"before alignment"' in names
    assert "none" not in names
    assert set(looks["demo", 1280]["named"]) == {"none"}
