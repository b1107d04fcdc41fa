"""What artifact patterns name, which are refused, and which files are stored when there are too many."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.artifacts.selection import FILES_MOST, select
from foundation.errors import InvalidManifest
from workflows.specs.manifest import parse
from workflows.specs.patterns import alternatives

TREE = [
    "package.json", "README.md", ".env", "#notes.md", "!important.txt", "a b.txt", "a\\b.txt", "{x}.txt", "*.txt", "-n",
    "app/[id]/page.tsx", "app/[id]/loading.tsx", "app/i/page.tsx", "app/[...slug]/page.tsx", "app/[[...all]]/page.tsx",
    "docs/README.md", "docs/deep/er/README.md", "docs/.hidden/x.md", "out", "reports/unit.xml", "reports/unit.json",
    "reports/e2e/unit.xml", "reports/e2e/shot.png", "node_modules/a/package.json", "node_modules/a/reports/unit.xml",
    "log.1", "log.2", "log.^", "ä.txt",
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("package.json", ["package.json"]),
        ("./package.json", ["package.json"]),
        ("**/package.json", ["node_modules/a/package.json", "package.json"]),
        ("*.md", ["#notes.md", "README.md"]),
        ("#notes.md", ["#notes.md"]),
        ("!important.txt", ["!important.txt"]),
        ("-n", ["-n"]),
        ("a?b.txt", ["a b.txt", "a\\b.txt"]),
        ("a\\b.txt", ["a\\b.txt"]),
        ("{x}.txt", ["{x}.txt"]),
        ("\\*.txt", ["*.txt"]),
        ("ä.txt", ["ä.txt"]),
        (".*", [".env"]),
        ("out", ["out"]),
        ("out/**", []),
        ("out/", []),
        ("app/[id]/page.tsx", ["app/[id]/page.tsx", "app/i/page.tsx"]),
        ("app/\\[id\\]/page.tsx", ["app/[id]/page.tsx"]),
        ("app/[id]/*", ["app/[id]/loading.tsx", "app/[id]/page.tsx", "app/i/page.tsx"]),
        ("app/[...slug]/page.tsx", ["app/[...slug]/page.tsx"]),
        ("app/[[...all]]/*.tsx", ["app/[[...all]]/page.tsx"]),
        ("log.[0-9]", ["log.1", "log.2"]),
        ("log.[!1]", ["log.2", "log.^"]),
        ("log.[^1]", ["log.2", "log.^"]),
        ("reports/*.{xml,json}", ["reports/unit.json", "reports/unit.xml"]),
        ("{docs,reports}/*.{md,xml}", ["docs/README.md", "reports/unit.xml"]),
        (
            "reports/{e2e/{shot,unit}.*,unit.json}",
            ["reports/e2e/shot.png", "reports/e2e/unit.xml", "reports/unit.json"],
        ),
        ("reports/*", ["reports/unit.json", "reports/unit.xml"]),
        ("reports", ["reports/e2e/shot.png", "reports/e2e/unit.xml", "reports/unit.json", "reports/unit.xml"]),
        ("reports/e2e/", ["reports/e2e/shot.png", "reports/e2e/unit.xml"]),
        ("reports/**", ["reports/e2e/shot.png", "reports/e2e/unit.xml", "reports/unit.json", "reports/unit.xml"]),
        ("docs/**/README.md", ["docs/README.md", "docs/deep/er/README.md"]),
        ("**/deep/**/*.md", ["docs/deep/er/README.md"]),
        ("doc*/**", ["docs/.hidden/x.md", "docs/README.md", "docs/deep/er/README.md"]),
        ("**/**/**", sorted(TREE)),
    ],
)
def test_a_pattern_names_what_its_author_expects(pattern: str, named: list[str]) -> None:
    selection = select(TREE, [pattern])
    assert selection.files == sorted(named)
    assert selection.unmatched == ([] if named else [pattern])
    assert bool(selection.notes) is not bool(named)


name = st.text(st.sampled_from("ab.*?[]!^{},#\\ -"), min_size=1, max_size=6).filter(
    lambda text: text not in {".", ".."}
)


@given(st.lists(st.lists(name, min_size=1, max_size=3).map("/".join), min_size=1, max_size=5, unique=True))
def test_a_file_is_always_named_by_its_own_path(paths: list[str]) -> None:
    for path in paths:
        selection = select(paths, [path])
        assert path in selection.files or "passed over" in selection.notes[0]


@given(
    st.lists(st.sampled_from(["**", "*", "a", "b*", "?"]), min_size=1, max_size=5),
    st.lists(st.sampled_from("ab"), max_size=4),
)
def test_stars_mean_the_same_as_in_a_regular_expression(parts: list[str], path: list[str]) -> None:
    """An independent reading: each part is followed by a slash, which ``**`` brings along itself."""
    if not path:
        return
    parts = [*parts, "*"] if parts[-1] == "**" else parts
    meanings = {"**": "(?:[^/]+/)*", "*": "[^/]+/", "a": "a/", "b*": "b[^/]*/", "?": "[^/]/"}
    expected = "".join(meanings[part] for part in parts)
    # A directory that is named without a star is taken whole.
    whole = f"|{expected}.+" if parts[-1] == "a" else ""
    named = select(["/".join(path)], ["/".join(parts)]).files
    assert bool(named) is bool(re.fullmatch(expected + whole, "/".join(path) + "/"))


def test_what_does_not_fit_is_taken_from_the_top_from_every_pattern_and_said() -> None:
    brought_in = [f"node_modules/p{number}/package.json" for number in range(FILES_MOST + 100)]
    built = [f"build/{number}/package.json" for number in range(100)]
    own = ["package.json", "packages/web/app/src/lib/package.json", "zz/report.txt", "zz/deep/report.txt"]
    selection = select([*brought_in, *built, *own], ["**/package.json", "zz/**"], ignored=set(built))
    assert len(selection.files) == FILES_MOST
    assert set(own) <= set(selection.files)
    assert selection.cut == {"**/package.json": (FILES_MOST + 202, FILES_MOST - 2)}
    (note,) = selection.notes
    assert "'**/package.json' 998 of 1202" in note
    assert "zz" not in note


def test_a_pattern_without_a_match_is_told_with_what_would_have_matched() -> None:
    selection = select(TREE, ["unit.xml", "missing.txt", "reports/unit.xml"])
    assert selection.unmatched == ["unit.xml", "missing.txt"]
    told = " ".join(selection.notes)
    assert "'unit.xml', 'missing.txt'" in told
    assert "'**/unit.xml' would have matched, and 3 files" in told
    assert "'**/missing.txt'" not in told


@pytest.mark.parametrize(
    "pattern", ["**/**/**/a*a*a*a*a*a*a*b", "*a" * 200 + "b", "?*" * 200 + "b", "**/a/" * 80 + "b", "[a-]*" * 90 + "b"]
)
def test_no_pattern_costs_more_than_its_length_times_that_of_the_names(pattern: str) -> None:
    """With backtracking, each of these would take longer than the test may."""
    files = ["/".join(["a"] * depth + ["a" * 255]) for depth in range(100)]
    assert select(files, [pattern]).files == []


@pytest.mark.parametrize(
    ("patterns", "field", "said"),
    [
        (["ok", "/etc/passwd"], "lifecycle.artifact_patterns[1]", "leading '/'"),
        (["{a,/etc}/b"], "lifecycle.artifact_patterns[0]", "leading '/'"),
        (["a/../../b"], "lifecycle.artifact_patterns[0]", "inside the workspace"),
        (["a/{b,..}/c"], "lifecycle.artifact_patterns[0]", "inside the workspace"),
        ([" "], "lifecycle.artifact_patterns[0]", "empty"),
        (["./"], "lifecycle.artifact_patterns[0]", "'**' for all"),
        (["a" * 501], "lifecycle.artifact_patterns[0]", "500 characters"),
        (["a\0b"], "lifecycle.artifact_patterns[0]", "NUL"),
        (["{a,b}" * 7], "lifecycle.artifact_patterns[0]", "braces"),
        (["{a,b}" * 90], "lifecycle.artifact_patterns[0]", "braces"),
        (["{" * 250 + "a" + ",b}" * 80], "lifecycle.artifact_patterns[0]", "braces"),
        ([str(number) for number in range(101)], "lifecycle.artifact_patterns", "101 patterns"),
        (["{a,b}" * 6] * 8, "lifecycle.artifact_patterns", "512 patterns"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused_with_its_field(patterns: list[str], field: str, said: str) -> None:
    data: dict[str, Any] = {
        "version": "1",
        "kind": "Task",
        "metadata": {"name": "x"},
        "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
        "claude": {"prompt": "x"},
        "lifecycle": {"artifact_patterns": patterns},
    }
    with pytest.raises(InvalidManifest) as refused:
        parse(data)
    (fault,) = refused.value.details["errors"]
    assert fault["field"] == field
    assert said in fault["message"]


def test_a_pattern_that_an_older_version_accepted_is_told_and_stops_no_other() -> None:
    selection = select(TREE, ["../x", "out"])
    assert selection.files == ["out"]
    assert "'../x'" in selection.notes[0]


@given(st.text(st.sampled_from("a{},\\/"), min_size=1, max_size=12))
def test_braces_are_written_out_to_what_none_is_left_of(pattern: str) -> None:
    try:
        found = alternatives(pattern)
    except ValueError:
        return
    assert 1 <= len(found) <= 64
    assert all(part for parts in found for part in parts)
