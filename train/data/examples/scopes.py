"""The role of each name of a source text, by its syntax tree and Python's rules of scope."""

import ast
from collections.abc import Iterable, Iterator

from train.data.examples.source import Places

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def roles_of(tree: ast.Module, places: Places) -> dict[int, str]:
    """Returns the tag, `B-ROLE` or `I-ROLE`, of the word at each place that has one.

    What is called is 'called', whatever else it is; then what a name is bound to in the innermost function that binds
    it: 'parameter', 'local' (assigned, or of a comprehension) or 'module' (imported whole). Names inside of formatted
    strings have none.
    """
    visitor = _Visitor(places)
    visitor.visit(tree)
    return visitor.tags


class _Visitor(ast.NodeVisitor):
    """Walks a tree with the scopes that a name is looked up in, the innermost last."""

    def __init__(self, places: Places) -> None:
        self.tags: dict[int, str] = {}
        self._places = places
        self._scopes: list[dict[str, str]] = []

    def visit_Module(self, node: ast.Module) -> None:
        modules = {name: role for name, role in _bound(_own(node.body)) if role == "module"}
        self._inside(modules, node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._name_after(node, "function")
        outside = [*node.decorator_list, *_defaults(node.args), *_annotations(node)]
        for one in outside:
            self.visit(one)
        for argument in _arguments(node.args):
            self._tag(self._places.of(argument).start, "parameter")
        self._scopes.append(_scope(node))
        for statement in node.body:
            self.visit(statement)
        self._scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for one in _defaults(node.args):
            self.visit(one)
        for argument in _arguments(node.args):
            self._tag(self._places.of(argument).start, "parameter")
        self._scopes.append(_scope(node))
        self.visit(node.body)
        self._scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._name_after(node, "class")
        self.generic_visit(node)

    def _comprehension(self, node: ast.AST) -> None:
        self._inside(dict(_bound(_own(ast.iter_child_nodes(node)))), node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name):
            self._tag(self._places.of(node.func).start, "called")
        elif isinstance(node.func, ast.Attribute):
            self._attribute(node.func, "called")
        else:
            self.visit(node.func)
        for one in (*node.args, *node.keywords):
            self.visit(one)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._attribute(node, "attribute")

    def visit_Name(self, node: ast.Name) -> None:
        role = next((scope[node.id] for scope in self._scopes[::-1] if node.id in scope), "")
        if role:
            self._tag(self._places.of(node).start, role)

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            place = self._places.at(one.lineno, one.col_offset)
            self._dotted(place, one.name)
            if one.asname:
                assert one.end_lineno is not None
                assert one.end_col_offset is not None
                self._tag(self._places.at(one.end_lineno, one.end_col_offset) - len(one.asname), "module")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module:
            self._dotted(self._places.find(node.module, self._places.of(node).start), node.module)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nothing: a formatted string is one word, and Python 3.11 does not say where its names stand."""

    def _inside(self, scope: dict[str, str], node: ast.AST) -> None:
        self._scopes.append(scope)
        self.generic_visit(node)
        self._scopes.pop()

    def _attribute(self, node: ast.Attribute, role: str) -> None:
        self._tag(self._places.of(node).stop - len(node.attr), role)
        self.visit(node.value)

    def _name_after(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, role: str) -> None:
        start = self._places.find("class" if role == "class" else "def", self._places.of(node).start)
        self._tag(self._places.find(node.name, start + len("def")), role)

    def _dotted(self, place: int, name: str) -> None:
        self._tag(place, "module")
        for at, letter in enumerate(name):
            if letter == ".":
                self._tag(place + at, "module", "I")
                self._tag(place + at + 1, "module", "I")

    def _tag(self, place: int, role: str, mark: str = "B") -> None:
        self.tags[place] = f"{mark}-{role}"


def _scope(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> dict[str, str]:
    """What the names of a function are bound to; a name that belongs to another scope is none of its own."""
    own = list(_own(node.body if isinstance(node.body, list) else [node.body]))
    scope = dict(_bound(own)) | {one.arg: "parameter" for one in _arguments(node.args)}
    for one in own:
        if isinstance(one, ast.Global | ast.Nonlocal):
            for name in one.names:
                scope.pop(name, None)
    return scope


def _bound(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """Yields the names that some nodes bind, with their roles."""
    for one in nodes:
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
            yield one.id, "local"
        elif isinstance(one, ast.ExceptHandler) and one.name:
            yield one.name, "local"
        elif isinstance(one, ast.Import):
            yield from ((alias.asname or alias.name.split(".")[0], "module") for alias in one.names)


def _own(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yields nodes and what stands below them in the same scope."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, _SCOPES):
            waiting += ast.iter_child_nodes(node)


def _arguments(given: ast.arguments) -> list[ast.arg]:
    stars = [one for one in (given.vararg, given.kwarg) if one]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *stars]


def _defaults(given: ast.arguments) -> list[ast.expr]:
    return [*given.defaults, *(one for one in given.kw_defaults if one)]


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    noted = [one.annotation for one in _arguments(node.args) if one.annotation]
    return [*noted, *([node.returns] if node.returns else [])]
