"""A call written in a text, such as `Cell(left=[("conv", 1)], right=range(2, 6))`, found and read as data.

Nothing in the text is executed. What stands around the call, and how programs, web pages and shells wrote it, is
allowed for as far as it leaves no doubt.
"""

import ast
import re
import warnings
from typing import NamedTuple

from support.files import InputError

MAX_CALL = 10_000  # characters; a genotype has about 600

# What word processors and web pages make of quotes and spaces.
PLAIN = str.maketrans(
    dict.fromkeys("‘’‚‛", "'") | dict.fromkeys("“”„‟", '"') | {"\u00a0": " ", "\u200b": "", "\ufeff": ""}
)

# A line `DARTS = NAME`.
ALIAS = re.compile(r"^[ \t]*(\w+)[ \t]*=[ \t]*(\w+)[ \t]*(?:#.*)?$", re.MULTILINE)


class Call(NamedTuple):
    """A call in a text: {part: strings, numbers and lists of these}; the name in front of it there, or "".

    which: "the last one of 3 genotypes", or "NAME of ..."; "" where there is only one.
    """

    parts: dict
    name: str
    which: str


def find_call(text, function, fields, words):
    """The call of `function` in a text, as `Call`.

    It reaches from `function(` to the bracket that closes it. Of several the last one counts, or, where a line behind
    the last one says `DARTS = NAME`, the one called NAME. fields: its parts, all of them needed, by name or in order.
    words: strings that are read without quotes, too. Raises InputError with one line on what does not fit first.
    """
    # Lines of a program that give no values count only where there is nothing else: comments, functions.
    start = re.compile(rf"^[ \t]*(?:#.*|(?:class|return) {function}\()|{function}\(", re.MULTILINE)
    starts = [match.start() for match in start.finditer(text) if match[0] == f"{function}("]
    starts = starts or [match.start() for match in re.finditer(rf"{function}\(", text)]
    if not starts:
        raise InputError(f"no '{function}({'=[...], '.join(fields)}=[...])' in it")
    # `NAME = Cell(`, also `NAME = cell = Cell(` and `NAME = ("cells.Cell(`.
    lower = function.lower()
    named = rf"""(?<!\S)([^\s=]+)\s*=\s*+(?:{lower}\s*=)?[\s"'(`]*(?:\w+\.){{,3}}(?={function}\()"""
    names = {match[1]: match.end() for match in re.finditer(named, text)}
    chosen, which = starts[-1], "the last one"
    for alias, name in ALIAS.findall(text, chosen):
        if name in names:
            chosen, which = names[name], name
            names[alias] = chosen
    end = next((later for later in starts if later > chosen), len(text))
    which = f"{which} of {len(starts)} {lower}s" if len(starts) > 1 else ""
    try:
        parts = _read_call(_cut_out(text[chosen:end], function), fields, words)
    except InputError as error:
        raise InputError(f"{which}: {error}" if which else str(error)) from None
    return Call(parts, next((name for name, at in names.items() if at == chosen), ""), which)


def _cut_out(text, function):
    """From `function(`, which the text begins with, to its closing bracket: one line, without comments.

    A line may have been broken anywhere, also within a name; a `>` at its start is a quotation's. No backslash belongs
    to a call: JSON and Markdown put them in front of quotes and underscores. Raises InputError.
    """
    text = text[:MAX_CALL].translate(PLAIN).replace("\\", "")
    text = re.sub(r"""(['"])\s*\1""", "", text)  # a program's "..." "..." is one string
    kept, depth = [], 0
    for match in re.finditer(r"""'[^']*'|"[^"]*"|#[^\n]*|[^'"#()\[\]{}]+|.""", text, re.DOTALL):
        token = match[0]
        if token.startswith("#"):
            continue
        kept.append(token)
        depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        if depth == 0 and len(kept) > 1:
            return re.sub(r"\n[\s>]*", "", "".join(kept))
    raise InputError(f"the bracket of '{function}(' is not closed (within {MAX_CALL} characters)")


def _read_call(line, fields, words):
    """{part: value} of `line`, `function(...)`. Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, on what is refused below
            call = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        rest = line[max((error.offset or 1) - 1, 0) :]
        raise InputError(f"cannot be read from {shown(rest)} on") from None
    except (ValueError, MemoryError, RecursionError):
        raise InputError("cannot be read") from None
    if len(call.args) > len(fields):
        raise InputError(f"{len(call.args)} parts, not {', '.join(fields)}")
    parts = {}
    for name, node in [*zip(fields, call.args, strict=False), *((part.arg, part.value) for part in call.keywords)]:
        if name not in fields:
            raise InputError(f"{name or '**'} is none of its parts: {', '.join(fields)}")
        if name in parts:
            raise InputError(f"{name} is there twice")
        try:
            parts[name] = _Reader(line, words).value(node)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    for name in fields:
        if name not in parts:
            raise InputError(f"{name} is missing")
    return parts


class _Reader:
    """What the nodes of the syntax tree of `line` denote: strings, numbers and lists of these."""

    def __init__(self, line, words):
        self.line, self.words = line, words

    def value(self, node):
        """Raises InputError for a node that denotes nothing of the kind."""
        if isinstance(node, ast.Constant) and type(node.value) is str:
            return node.value
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 100:
            return node.value
        if isinstance(node, ast.Name) and node.id in self.words:  # a shell took the quotes away
            return node.id
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self.value(element) for element in node.elts]
        if isinstance(node, ast.Set):
            return sorted((self.value(element) for element in node.elts), key=str)
        if isinstance(node, ast.Call) and (value := self.call(node)) is not None:
            return value
        there = self.line.encode()[node.col_offset : node.end_col_offset].decode()
        raise InputError(f"{shown(there)} is neither an operation nor a node nor a list of them")

    def call(self, node):
        """What `range(2, 6)`, `list(...)`, `np.int64(2)` and the like denote; None for other calls."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        values = [self.value(argument) for argument in node.args]
        if name == "range" and all(type(value) is int for value in values) and not node.keywords:
            return list(range(*values)) if len(values) in (1, 2, 3) and values[2:] != [0] else None
        if len(values) != 1 or any(keyword.arg not in ("dtype", "device") for keyword in node.keywords):
            return None
        (value,) = values
        if name in ("set", "frozenset") and isinstance(value, list):
            return sorted(value, key=str)
        kinds = r"list|tuple|array|tensor" if isinstance(value, list) else r"u?int\d*|str_|array|tensor"
        return value if re.fullmatch(kinds, name) else None


def shown(value):
    """A value in an error's line, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
