"""A genotype in a text, `Genotype(normal=[('conv', 1), ...], normal_concat=range(2, 6), ...)`, read as data.

The text may be a genotype.txt, a log or a program. Nothing in it is executed. The caller checks whether cells can be
built from what is read.
"""

import ast
import re
import warnings

from support.files import InputError

MAX_LENGTH = 10_000  # characters of one genotype; most have about 600

# `NAME = Genotype(` or `NAME = genotypes.Genotype(`, or without a name. A name is looked for only where a word begins,
# so that the time grows in proportion to the length of the text.
START = re.compile(r"(?:(?<!\S)([^\s=]+)\s*=\s*(?:\w+\.)?)?Genotype\(")


def choose_genotype(text, source):
    """One genotype of a text: (the text from `Genotype(` on, the name in front of it or "", how it was chosen).

    Of several genotypes the last one counts, unless a line behind it says `DARTS = NAME`: then the one of that name.
    Lines that are comments do not count. The third value is, for instance, "the last one of 3 genotypes", and "" if
    there is only one. source: what a message calls the text. Raises InputError for a text without a genotype.
    """
    text = re.sub(r"(?m)^[ \t]*#.*", "", text)
    found = list(START.finditer(text))
    if not found:
        raise InputError(f"{source}: no 'Genotype(normal=[...], normal_concat=[...], ...)' in it")
    chosen, which = found[-1], "the last one"
    named = {match[1]: match for match in found if match[1]}
    for name in re.findall(r"(?m)^[ \t]*\w+[ \t]*=[ \t]*(\w+)[ \t]*(?:#.*)?$", text[chosen.end() :]):
        if name in named:
            chosen, which = named[name], name
    start = chosen.end() - len("Genotype(")
    which = f"{which} of {len(found)} genotypes" if len(found) > 1 else ""
    return text[start : start + MAX_LENGTH], chosen[1] or "", which


def read_genotype(text, fields):
    """{field: value} of the genotype that a text begins with: pairs are tuples in one list, other values as written.

    fields: the names of its parts; each must be there once. Raises InputError, in one line, for the first thing that
    does not fit.
    """
    text = _to_closing_bracket(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of some texts that are refused here in any case
            call = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        rest = text.split("\n", (error.lineno or 1) - 1)[-1][max((error.offset or 1) - 1, 0) :]
        raise InputError(f"cannot be read from {shown(rest)} on") from None
    except (ValueError, MemoryError, RecursionError):
        raise InputError("cannot be read") from None
    if not isinstance(call, ast.Call) or call.args:
        raise InputError(f"its parts need their names: {', '.join(fields)}")
    names = [part.arg or "**" for part in call.keywords]
    if sorted(names) != sorted(fields):
        raise InputError(f"has the parts {shown(', '.join(names))}, not {', '.join(fields)}")
    return {part.arg: _in_a_row(_value(part.value, text)) for part in call.keywords}


def shown(value):
    """A value as messages show it: its repr, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _to_closing_bracket(text):
    """The text up to the bracket that closes its first one. Brackets in strings and comments do not count."""
    depth = 0
    for match in re.finditer(r"""'[^']*'|"[^"]*"|#.*|[()\[\]{}]""", text):
        depth += (match[0] in "([{") - (match[0] in ")]}")
        if depth == 0:
            return text[: match.end()]
    raise InputError(f"the bracket of 'Genotype(' is not closed (within {MAX_LENGTH} characters)")


def _value(node, text):
    """What a node of the syntax tree of `text` denotes: a string, a number, a list, or a pair as a tuple."""
    match node:
        case ast.Constant(value) if type(value) is str or (type(value) is int and value < 100):
            return value
        case ast.Name(name):  # a string whose quotes a shell took away
            return name
        case ast.List(nodes) | ast.Tuple(nodes):
            values = [_value(element, text) for element in nodes]
            return tuple(values) if len(values) == 2 and isinstance(values[0], str) else values
        case ast.Call(ast.Name("range"), [ast.Constant(int(first)), ast.Constant(int(end))], []) if end < 100:
            return list(range(first, end))
        case ast.Call(ast.Name("list") | ast.Attribute(_, "int64"), [argument], []):  # list(range(2, 6)), np.int64(2)
            return _value(argument, text)
    part = shown(ast.get_source_segment(text, node))
    raise InputError(f"{part} is neither an operation nor a node nor a list of them")


def _in_a_row(value):
    """Pairs in a row, from lists of two pairs, one list per node, as pt.darts prints them; other values unchanged."""
    if isinstance(value, list) and all(isinstance(v, list) and list(map(type, v)) == [tuple, tuple] for v in value):
        return [pair for node in value for pair in node]
    return value
