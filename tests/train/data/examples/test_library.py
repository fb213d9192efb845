"""Corpora that are read off a library: packages, roles and questions, on a small one and on files of the real one."""

import ast
import inspect
import re
import sysconfig
from pathlib import Path

import pytest

from model.errors import UserError
from train.data.examples import questions as spans
from train.data.examples.packages import PACKAGES, packages
from train.data.examples.questions import asked_name, asked_of, questions
from train.data.examples.roles import BEYOND, TOO_LONG, roles
from train.data.stdlib import source_files, split_of

LIBRARY = Path(sysconfig.get_path("stdlib"))


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def named(split: str, suffix: str = "") -> str:
    """A path of a split."""
    return next(name for i in range(1000) if split_of(name := f"m{i}{suffix}.py") == split)


def test_the_listed_packages_are_in_this_library() -> None:
    assert "encodings" not in PACKAGES
    names = [path.split("/")[0] for path, _ in source_files(LIBRARY) if "/" in path]
    assert min(map(names.count, PACKAGES)) >= 6


def test_snippets_of_packages(tmp_path) -> None:
    shared = [f"all at {n}" for n in range(8)]  # which files of both splits hold
    own = {f"{package}/f{i}.py": f"{word}{i}" for package, word in (("ab", "x"), ("cd", "y")) for i in range(7)}
    files = {
        path: "\n\n".join(
            [*shared, f"import {path[:2]}", f"{path[:2].upper()} = 1", *(f"{word} at {n}" for n in range(8, 28))]
        )
        for path, word in own.items()
    }
    files |= {"ab/few.py": "a\nb\n", "other/f.py": files["ab/f0.py"], "ab.py": files["ab/f0.py"]}
    found = packages(write(tmp_path, files), ("ab", "cd"), lines=4, stride=3).splits
    for split, step in (("validation", 4), ("train", 3)):
        assert {one.label for one in found[split]} == {"ab", "cd"}
        for one in found[split]:
            numbers = [int(line.split()[-1]) for line in one.text.split("\n")]  # no line has the name of its package
            assert numbers == list(range(numbers[0], numbers[0] + 4))
            assert numbers[0] % step == 0
    assert not {one.text for one in found["train"]} & {one.text for one in found["validation"]}
    assert "\n".join(shared[:4]) in {one.text for one in found["validation"]}
    files_of = {split: {one.text.split()[-3] for one in some} - {"all"} for split, some in found.items()}
    assert not files_of["train"] & files_of["validation"]
    assert {split: len(of) for split, of in files_of.items()} == {"train": 10, "validation": 4}  # a quarter of 7, twice
    with pytest.raises(UserError, match=r"the package 'other' has 1 files of 4 lines .*: leave it out"):
        packages(tmp_path, ("ab", "other"), lines=4)


SOURCE = '''"""A docstring."""
import os.path as where, sys
from a.b import c
TOP = c(1)  # a comment

@wraps(TOP)
async def first(one, *rest, key=TOP, **more) -> Kind:
    """Words that are none."""
    global TOP
    TOP = key
    two = one.field.go(rest)
    with open(two) as file, lock:
        return f"{two}" + [x for x in more if sys.flags]
class Thing(where.Base):
    def inner(self):
        def nested(y):
            w = y
            return y, self, two, lambda z: (z, y)
        y = w
        try:
            import json
        except json.Bad as error:
            print(error, "a string of more than twenty characters")
        for i, (j, self.k) in nested(): i.j
'''
TAGGED = """
import os/B-module ./I-module path/I-module as where/B-module , sys/B-module
from a/B-module ./I-module b/I-module import c TOP = c/B-called ( 1 )
@ wraps/B-called ( TOP ) async def first/B-function ( one/B-parameter , * rest/B-parameter , key/B-parameter = TOP ,
** more/B-parameter ) -> Kind : global TOP TOP = key/B-parameter
two/B-local = one/B-parameter . field/B-attribute . go/B-called ( rest/B-parameter )
with open/B-called ( two/B-local ) as file/B-local , lock :
return f"{two}" + [ x/B-local for x/B-local in more/B-parameter if sys/B-module . flags/B-attribute ]
class Thing/B-class ( where/B-module . Base/B-attribute ) :
def inner/B-function ( self/B-parameter ) : def nested/B-function ( y/B-parameter ) :
w/B-local = y/B-parameter
return y/B-parameter , self/B-parameter , two , lambda z/B-parameter : ( z/B-parameter , y/B-parameter )
y/B-local = w try : import json/B-module except json/B-module . Bad/B-attribute as error :
print/B-called ( error/B-local , '...' ) for i/B-local , ( j/B-local , self/B-parameter . k/B-attribute ) in
nested/B-called ( ) : i/B-local . j/B-attribute
"""


def test_roles_by_hand(tmp_path) -> None:
    found = roles(write(tmp_path, {named("train"): SOURCE}), words=1000)
    words = [(word, tag) for one in found.splits["train"] for word, tag in zip(one.words, one.tags, strict=True)]
    expected = [tuple(f"{one}/O".split("/")[:2]) for one in TAGGED.split()]
    assert words == expected
    assert found.counted == {BEYOND: 0, TOO_LONG: 0}
    # Imports, the function, the header of the class, and its method.
    assert [one.words[0] for one in found.splits["train"]] == ["import", "@", "class", "def"]


def test_examples_of_roles_are_beginnings_of_functions(tmp_path) -> None:
    text = "a = 1\nb = 2\nc = 3\ndef f(x):\n y = 1\n z = 2\n return y\nd = (1, 2, 3, 4, 5)\ne = 6\n"
    twice = {named("validation"): "e = 6\n"}
    found = roles(write(tmp_path, {named("train"): text, **twice}), words=9)
    shown = {split: [" ".join(one.words) for one in some] for split, some in found.splits.items()}
    assert shown["train"] == ["a = 1 b = 2 c = 3", "def f ( x ) : y = 1"]
    assert shown["validation"] == ["e = 6"]  # and so it is not learned
    assert found.counted == {BEYOND: 2, TOO_LONG: 1}


HEADERS = [
    "def f(a, b=1, c='x'):",
    "async def f(self, /, b: int=(1 + 2), *args: str, c: dict[str, int] = {}, d=None, **kw) -> int:",
    "def größe(ä, ö='ß', *, ü=(('é')), z=1.5):",
    'def f(\n    one=1,  # a comment, of (1)\n    two="a, b=3",\n    *, three=lambda x=3: x,\n    four=-1):',
    "def f(a=[], b=(), c=not True, d=1 if () else 2):",
]


def defaults_of(header: str) -> dict[str, object]:
    """The defaults as Python itself has them; one that it cannot make here is its source."""
    scope: dict[str, object] = {}
    exec(f"from __future__ import annotations\n{header}\n pass", scope)
    (function,) = [one for name, one in scope.items() if inspect.isfunction(one)]
    return {
        name: one.default
        for name, one in inspect.signature(function).parameters.items()
        if one.default is not one.empty
    }


def value_of(source: str) -> object:
    """What a default is worth, as a default."""
    return defaults_of(f"def f(it={source}):")["it"]


def same(a: object, b: object) -> bool:
    return a(5) == b(5) if callable(a) and callable(b) else a == b


@pytest.mark.parametrize("header", HEADERS)
def test_answers_are_the_defaults_that_python_has(header: str) -> None:
    asked = asked_of(header)
    known = defaults_of(header)
    assert [asked_name(one.question) for one in asked] == list(known)
    anew = spans.varied([*asked, *asked_of("def f(" + ", ".join(f"n{i}={i}" for i in range(40)) + "):")])
    for one in asked:
        assert one.fault() == ""
        assert same(value_of(one.answers[0]), known[asked_name(one.question)])
        contexts = set()
        for draw in (0, 1, 2**64 - 1, *range(100, 120)):
            drawn = anew(one, draw)
            assert drawn == anew(one, draw)
            assert drawn.fault() == ""
            assert drawn.answers == one.answers
            found = defaults_of(drawn.context)
            assert same(value_of(drawn.answers[0]), found[asked_name(drawn.question)])
            assert [*map(repr, found.values())].count("None") == [*map(repr, known.values())].count("None")
            assert not set(found) & set(known)
            contexts.add(re.sub(r"\bn\d+\b", "n", drawn.context))
        assert len(contexts) > 1  # defaults change places, whatever the names


def test_no_question_where_defaults_are_alike() -> None:
    for header in ("def f(a, b):", "def f(a=1):", "def f(a=1, b=1):", "x = 1", "def f(", ""):
        assert asked_of(header) == []


def test_questions_of_files(tmp_path) -> None:
    both = "def both(a=1, b=2):\n  pass\n"
    text = f"{both}class A:\n    @w(x=1)\n    def g(self, a=1,\n          b=2):\n"
    text += "        @z\n        def h(u=3, v=4): 'x'\n"
    found = questions(
        write(tmp_path, {named("train"): text, named("validation"): both, named("test"): "def t(a=1, b=2): 1"})
    )
    shown = {split: [(one.context, asked_name(one.question)) for one in some] for split, some in found.splits.items()}
    assert shown["validation"] == [("def both(a=1, b=2):", "a"), ("def both(a=1, b=2):", "b")]
    assert sorted(shown["train"]) == [
        ("def g(self, a=1,\n      b=2):", "a"),
        ("def g(self, a=1,\n      b=2):", "b"),
        ("def h(u=3, v=4):", "u"),
        ("def h(u=3, v=4):", "v"),
    ]


def test_questions_of_a_real_file(tmp_path) -> None:
    """Every function that the module has, against `inspect`."""
    text = (LIBRARY / "argparse.py").read_text()
    found = questions(write(tmp_path, {named("train"): text})).splits["train"]
    headers = {one.context for one in found}
    functions = [one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.FunctionDef)]
    expected = {}
    for one in functions:
        given = [*one.args.defaults, *(x for x in one.args.kw_defaults if x)]
        if len({ast.unparse(x) for x in given}) > 1:
            expected[ast.unparse(one.args)] = len(given)
    assert {ast.unparse(ast.parse(f"{header}\n pass").body[0].args) for header in headers} == set(expected)
    assert len(found) == sum(expected.values())
