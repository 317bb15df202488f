"""The measures that keep the package readable: types, docstrings, sizes and words."""

import ast
import collections
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fpnlab"
MODULES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
FUNCTIONS = [
    (path.relative_to(ROOT), node)
    for path, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef)
]
QUESTIONS = {"What", "How", "Where", "Whether", "Those", "That", "Which", "Who"}
"""First words of a docstring that says neither what comes back nor what something is."""
MOST_ANY = 100
LARGEST_ROOM = 0.15


def test_every_function_has_a_return_type():
    untyped = [
        f"{path}:{node.lineno} {node.name}"
        for path, node in FUNCTIONS
        if node.returns is None and node.name not in ("__init__", "__post_init__")
    ]
    assert untyped == []


def test_the_type_any_is_rare():
    found = collections.Counter(
        str(path.relative_to(ROOT))
        for path, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "Any"
    )
    assert found.total() <= MOST_ANY, found.most_common(10)


def docstrings(tree):
    """Yields the docstrings of a module, and the strings under its fields, with their lines."""
    for node in ast.walk(tree):
        body = getattr(node, "body", ())
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(ast.Constant(str(text))):
                    yield statement.lineno, text


def test_no_docstring_opens_with_a_question_word():
    found = [
        f"{path.relative_to(ROOT)}:{line} {text.splitlines()[0]}"
        for path, tree in MODULES.items()
        for line, text in docstrings(tree)
        if text.strip() and text.split()[0] in QUESTIONS
    ]
    assert found == []


def test_no_room_is_larger_than_a_seventh_of_the_package():
    lines = collections.Counter()
    for path in MODULES:
        lines[path.relative_to(PACKAGE).parts[0]] += len(path.read_text().splitlines())
    (room, most), *_ = lines.most_common(1)
    assert most <= LARGEST_ROOM * lines.total(), room


WORDS = {
    r"organs?": "layer, module",
    r"accumulation passes|pass of accumulated": "microbatch, gradient accumulation",
    r"second[ _]opinions?": "bootstrap interval",
    r"watch(er|ers|es|ed|ing)?": "progress listener, callback; reported",
    r"(is|are|was|were) told(?! apart)|has said|as (it|they) said|must be said": "reported",
    r"site": "study context",
    r"company|settle[sd]?|settling|vanish(es|ed)?|tak(e|es|en) up|giv(e|es|en|ing) back": (
        "lease, claim, release, owner"
    ),
    r"books": "log, metrics logger, summary writer",
    r"last words": "last output",
    r"thinned|grown": "downsampled mask, upsample like",
    r"refus(e|es|ed|al|als|ing)|which there (is|are) not": "invalid, unknown; expected ...",
    r"(?<!page[ _])faults?": "error, problem",
    r"colours?|grey|centr(e|ed|es|ing)|neighbours?|behaviours?|favours?|labell(ed|ing)": (
        "American spelling"
    ),
    r"learnt|towards|honours?|cancelled|analyse|(normal|initial|optim|serial)is(e|ed|ation)": (
        "American spelling"
    ),
}
"""Private or archaic words by what to say instead (regular expressions over whole words)."""
PLACES = ("fpnlab", "tests", "docs", "configs", "experiments", "benchmarks", ".ci")
KINDS = {".py", ".pyi", ".md", ".toml", ".html", ".j2", ".css", ".js"}
TEXTS = [
    *(path for place in PLACES for path in sorted((ROOT / place).rglob("*"))),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]
KEPT = {
    # Names of 0.1 that are read, or named in an error.
    ("fpnlab/adapters/linen.py", "organ"),
    ("tests/adapters/test_linen.py", "organ"),
    ("fpnlab/train/checkpoint.py", "refused"),
    ("tests/train/test_checkpoint.py", "refused"),
    # Keys of summaries of 0.1, which are read.
    ("fpnlab/records/study_records.py", "second_opinion"),
    ("fpnlab/records/study_records.py", "second_opinions"),
    # Old names in the list of renamed ones.
    ("CHANGELOG.md", "Organ"),
    ("CHANGELOG.md", "refused"),
    # The name of a key: another one would draw other colors.
    ("fpnlab/data/sources/scenes.py", "colour"),
}
"""Words that stay, by file."""


@pytest.mark.parametrize("word", WORDS, ids=lambda word: re.sub(r"\W+", " ", word)[:30])
def test_a_private_word_is_nowhere(word):
    # An underscore ends a word: names are read, too.
    pattern = re.compile(rf"(?<![A-Za-z])({word})(?![A-Za-z])", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number} {match.group()}"
        for path in TEXTS
        if path.suffix in KINDS and path != pathlib.Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in pattern.finditer(line)
        if (str(path.relative_to(ROOT)), match.group()) not in KEPT
    ]
    assert found == [], f"say {WORDS[word]}"
