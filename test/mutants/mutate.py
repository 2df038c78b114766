"""Find the mutants of a Python module: its source with one small fault."""

import ast
import copy
from typing import Iterator, List, NamedTuple

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
NAMES = [('min', 'max'), ('any', 'all'), ('floor', 'ceil'), ('sum', 'mean')]
NAMES += [('amin', 'amax'), ('zeros', 'ones'), ('new_zeros', 'new_ones')]
SWAPS = {**dict(NAMES), **{b: a for a, b in NAMES}}
BUILTINS = {'min', 'max', 'any', 'all'}
EXPRESSIONS = (ast.BinOp, ast.BoolOp, ast.Compare, ast.UnaryOp)
TYPES = {'Callable', 'Dict', 'List', 'Optional', 'Tuple', 'Type', 'Union'}
# Arguments that decide on speed or on the place of a message, not on results:
IGNORED = {'stacklevel', 'non_blocking', 'exist_ok'}


class Mutant(NamedTuple):
    """One fault: the characters from `start` to `end` become `text`."""

    line: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]

    def describe(self, source: str) -> str:
        """Return old and new code on a line, which also names the mutant."""
        old = source[self.start : self.end]
        start = source.rfind('\n', 0, self.start) + 1
        line = source[start:].split('\n', 1)[0]
        return ' '.join(f'{line} :: {old} -> {self.text}'.split())


def find_mutants(source: str) -> List[Mutant]:
    """Return all mutants of a module, in the order of its lines.

    Texts, annotations and the contents of errors and warnings stay.
    """
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def place(line: int, col: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:col].decode())

    out = []
    for node in walk(ast.parse(source)):
        for new in mutate(node):
            start = place(node.lineno, node.col_offset)
            end = place(node.end_lineno, node.end_col_offset)
            text = ast.unparse(ast.fix_missing_locations(new))
            if isinstance(node, EXPRESSIONS):
                text = f'({text})'
            out.append(Mutant(node.lineno, start, end, text))
    return [x for x in sorted(set(out)) if is_valid(x.apply(source))]


def is_valid(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Iterate over the nodes that a mutant may change."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ('annotation', 'returns', 'decorator_list', 'bases'):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not is_text(child):
                yield from walk(child)


def is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg in IGNORED
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == '__all__'
    if isinstance(node, ast.Subscript):  # Aliases of types.
        return ast.unparse(node.value) in TYPES
    call = getattr(node, 'value', None)
    if isinstance(node, ast.Expr) and isinstance(call, ast.Call):
        return ast.unparse(call.func) == 'warnings.warn'
    return isinstance(
        node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)
    ) or (isinstance(node, ast.Expr) and isinstance(call, ast.Constant))


def mutate(node: ast.AST) -> Iterator[ast.AST]:
    """Iterate over what may stand in the place of a node."""
    op = getattr(node, 'op', None)
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        if type(op) in OPERATORS:
            yield replace(node, op=OPERATORS[type(op)]())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        first = OPERATORS[type(node.ops[0])]()
        yield replace(node, ops=[first, *node.ops[1:]])
    elif isinstance(node, ast.Constant) and not isinstance(node.value, str):
        yield from mutate_constant(node.value)
    elif isinstance(node, ast.Return) and node.value is not None:
        if ast.unparse(node.value) != 'None':
            yield ast.Return(None)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield ast.Pass()
    elif isinstance(node, (ast.List, ast.Set, ast.Tuple)):
        is_target = isinstance(getattr(node, 'ctx', None), ast.Store)
        for i in range(0 if is_target else len(node.elts)):
            yield replace(node, elts=node.elts[:i] + node.elts[i + 1 :])
    elif isinstance(node, ast.Call):
        yield from mutate_call(node)


def mutate_constant(value: object) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield ast.Constant(value + 1)


def mutate_call(node: ast.Call) -> Iterator[ast.AST]:
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in IGNORED:
            rest = node.keywords[:i] + node.keywords[i + 1 :]
            yield replace(node, keywords=rest)
    func = node.func
    if isinstance(func, ast.Name) and func.id in BUILTINS:
        yield replace(node, func=ast.Name(SWAPS[func.id]))
    elif isinstance(func, ast.Attribute) and func.attr in SWAPS:
        yield replace(node, func=replace(func, attr=SWAPS[func.attr]))


def replace(node: ast.AST, **fields: object) -> ast.AST:
    out = copy.copy(node)
    for name, value in fields.items():
        setattr(out, name, value)
    return out
