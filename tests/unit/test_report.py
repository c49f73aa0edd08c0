"""The report: self-contained, escaped, and showing the numbers that it was given."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from earec_core.report import (
    Composition,
    Curve,
    Example,
    Recommendation,
    Report,
    RougeRow,
    Says,
    StageRow,
    Suggestion,
    render,
    write,
)
from earec_core.report.render import highlight

HOSTILE = "<script>alert('x')</script> & co"
_VOID = {"meta", "img", "br", "line", "rect", "circle", "polyline"}


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def _metrics(hr: float) -> dict[str, float]:
    values = {"hr@10": hr, "hr@50": hr * 2, "ndcg@10": hr / 2, "ndcg@50": hr / 3}
    return {"users": 610, **values, **{f"{k}_se": 0.012 for k in values}}


def _report(text: str = HOSTILE) -> Report:
    return Report(
        title=text,
        subtitle=text,
        facts=[(text, "1,234")],
        examples=[Example(text, text, [Says("vision", "data:image/png;base64,AAAA", text, text, 0.5)])],
        rouge=[RougeRow(text, 40, {"aligned": (0.41, 0.4, 0.45), "shuffled": (0.1, 0.05, 0.2)})],
        rouge_commands=["earec explain x"],
        curves=[Curve("vision", [(1, 3.0), (2, 2.0)], [(0, 4.0), (2, 2.5)], [(0, 0.1)], 9, 1.5, 210, "earec align y")],
        composition=Composition({"vision": 0.25, text: 0.75}, "delta", {text: 0.1}, {text: 3.0}, "earec compose z"),
        recommendations=[
            Recommendation("ids", text, _metrics(0.0967), "earec recommend a"),
            Recommendation("composite", text, _metrics(0.1033), "earec recommend b"),
        ],
        suggestions=[Suggestion(text, [text], text, {"ids": [text, "other"]})],
        stages=[StageRow(text, "earec data import q", 12.0)],
        notes=[text],
    )


def test_the_page_is_well_formed_and_self_contained() -> None:
    page = render(_report())
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen
    assert "://" not in page
    assert HOSTILE not in page


def test_it_shows_every_command_and_number_and_marks_the_best() -> None:
    page = render(_report("plain"))
    for command in ("explain x", "align y", "compose z", "recommend a", "recommend b", "data import q"):
        assert f"$ earec {command}" in page
    for number in ("0.410", "[0.400, 0.450]", "0.0967", "<b>0.1033</b>", "±0.0235", "1,234"):
        assert number in page
    assert "<b>0.0967</b>" not in page


def test_empty_parts_are_left_out() -> None:
    page = render(Report("a", "b"))
    assert "<section>" not in page


def test_marks_are_the_longest_common_subsequence() -> None:
    import re
    from itertools import combinations

    text, anchor = "Blue pen, with a red pen cap", "pen red Blue cap pen"
    words, theirs = re.findall(r"\w+", text.lower()), re.findall(r"\w+", anchor.lower())

    def common(chosen: tuple[int, ...]) -> bool:
        rest = iter(theirs)
        return all(words[i] in rest for i in chosen)

    best = max(n for n in range(len(words) + 1) if any(common(c) for c in combinations(range(len(words)), n)))
    marked = re.findall(r"<mark>(.*?)</mark>", highlight(text, anchor))
    assert len(marked) == best
    assert re.sub(r"</?mark>", "", highlight(text, anchor)) == text


def test_writing_replaces_the_file_whole(tmp_path: Path) -> None:
    target = write(_report(), tmp_path / "report.html")
    write(Report("new", "b"), target)
    assert "new" in target.read_text()
    assert list(tmp_path.iterdir()) == [target]
