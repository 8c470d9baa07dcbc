"""Genotypes in texts as people have them: reading as data, choosing one of several, naming its network."""

import contextlib
import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genotypes import (
    PUBLISHED,
    Genotype,
    check_genotype,
    find_genotype,
    format_genotype,
    given_genotype,
    load_genotype,
    open_genotype,
    parse_genotype,
    random_genotype,
)
from support.files import InputError

CELL = PUBLISHED["DARTS_V1"]
OTHER = PUBLISHED["DARTS_V2"]
GOOD = format_genotype(CELL)
BARE = GOOD.removeprefix("genotype = ")


def nested(text):
    """The pairs of each node in a list of their own, as pt.darts prints them."""
    return re.sub(r"(\('\w+', \d\), \('\w+', \d\))", r"[\1]", text)


WRITTEN = {
    "bare": BARE,
    "time stamp": f"2019 11 20 06:28:09 PM | {GOOD}",
    "level": f"03/21 10:00:00 AM INFO genotype = {BARE}\n03/21 10:00:01 AM valid_acc 97.1",
    "colon": f"genotype: {BARE}",
    "qualified": f"arch = genotypes.{BARE}",
    "no space": GOOD.replace(" ", ""),
    "name and alias": f"MINE = {BARE}\n\nDARTS = MINE\n",
    "several lines": GOOD.replace(", ", ",\n        ").replace("[", "[\n").replace("]", ",\n]"),
    "broken anywhere": "\n".join(GOOD[k : k + 80] for k in range(0, len(GOOD), 80)),
    "quotation": "\n> ".join(GOOD[k : k + 80] for k in range(0, len(GOOD), 80)),
    "comments": GOOD.replace("), (", "),  # isn't this (node's) last :-(\n ("),
    "fence": f"The cell isn't large:\n```python\n{GOOD}\n```\n",
    "backticks": f"Train `{BARE}` next (it's good).",
    "Markdown's underscores": GOOD.replace("_", r"\_").replace(r"normal\_concat", "normal_concat"),
    "curly quotes": re.sub("'(\\w+)'", r"‘\1’", GOOD),
    "double curly quotes": re.sub("'(\\w+)'", r"“\1”", GOOD),
    "low quotes": re.sub("'(\\w+)'", r"„\1“", GOOD),
    "spaces of a web page": GOOD.replace(" ", "\u00a0"),
    "double quotes": GOOD.replace("'", '"'),
    "quotes eaten by a shell": GOOD.replace("'", ""),
    "JSON": json.dumps({"epoch": 3, "genotype": GOOD.replace("'", '"')}),
    "a string": f'GENOTYPES = {{"mine": "{BARE}"}}',
    "a string over lines": 'G = (\n    "' + BARE.replace("), (", '), "\n    "(') + '"\n)\n',
    "nested": nested(GOOD),
    "lists for tuples": re.sub(r"\(('\w+', \d)\)", r"[\1]", GOOD),
    "tuples for lists": GOOD.replace("[", "(").replace("]", ")"),
    "NumPy integers": re.sub(r", (\d)\)", r", np.int64(\1))", GOOD),
    "NumPy, numbers and names": re.sub(r"\(('\w+'), (\d)\)", r"(np.str_(\1), numpy.int32(\2))", GOOD),
    "tensors": re.sub(r", (\d)\)", r", tensor(\1, device='cuda:0'))", GOOD),
    "an array": GOOD.replace("[2, 3, 4, 5]", "array([2, 3, 4, 5], dtype=int64)"),
    "quark0's range": GOOD.replace("[2, 3, 4, 5]", "range(2, 6)"),
    "range of three": GOOD.replace("[2, 3, 4, 5]", "range(2, 6, 1)"),
    "list of range": GOOD.replace("[2, 3, 4, 5]", "list(range(2, 6))"),
    "set": GOOD.replace("[2, 3, 4, 5]", "{2, 3, 4, 5}"),
    "set of a list": GOOD.replace("[2, 3, 4, 5]", "set([5, 4, 3, 2])"),
    "positions": re.sub(r"(normal|reduce)(_concat)?=", "", GOOD),
    "positions, then names": GOOD.replace("(normal=", "(", 1),
    "another order": f"Genotype(reduce={CELL.reduce}, normal={CELL.normal}, reduce_concat=range(2,6), "
    f"normal_concat=range(2,6))",
    "NumPy's own text around it": f"[[0.1 0.2]\n [0.3 0.4]]\n{GOOD}\ntensor([[0.1250, 0.1250",
}


@pytest.mark.parametrize("style", WRITTEN)
def test_what_denotes_a_cell_without_doubt_is_read(style):
    assert parse_genotype(WRITTEN[style]) == CELL


def test_of_several_genotypes_the_last_counts_and_a_line_says_so(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("".join(f"epoch {k} {GOOD}\n" for k in range(24)) + f"genotype = {OTHER}\nParam size = 3.3MB\n")
    found = open_genotype(log)
    assert found.genotype == OTHER and found.choice == f"{log}: the last one of 25 genotypes is taken"
    assert find_genotype(GOOD, "it").choice == ""


@pytest.mark.parametrize(
    ("text", "genotype", "which"),
    [
        ("V1 = {0}\nV2 = {1}\nDARTS = V1\n", CELL, "V1"),
        ("V1 = {0}\nV2 = {1}\n\nDARTS = V2", OTHER, "V2"),
        ("V1 = genotypes.{0}\nV2 = {1}\nBEST = V1\n  DARTS = BEST  # the best\n", CELL, "BEST"),
        ("V1 = {0}\nV2 = {1}\nDARTS = V3\nlr = rate", OTHER, "the last one"),  # V3 is not in the text
        ("V1 = {0}\nDARTS = V1\nPDARTS = {1}\n", OTHER, "the last one"),  # what is said last counts
        ("V1 = {1}\nV1 = {0}\nV2 = {1}\nDARTS = V1\n", CELL, "V1"),
        ("V1 = genotype = {0}\nV2 = {1}\nDARTS = V1\n", CELL, "V1"),
    ],
)
def test_a_line_that_names_one_of_several_genotypes_chooses_it(text, genotype, which):
    found = find_genotype(text.format(repr(CELL), repr(OTHER)), "it")
    assert found.genotype == genotype
    assert found.choice == f"it: {which} of {text.count('{')} genotypes is taken"


@pytest.mark.parametrize(
    "text", ["# V1 = {1}\n", "  #V1 = {1} # old", "# DARTS = V1", "def f(x):\n  return Genotype(**x)\n"]
)
def test_comments_and_functions_of_a_program_are_no_genotypes(text):
    program = "class Genotype(NamedTuple):\n    normal: list\n\nV0 = {0}\n" + text
    found = find_genotype(program.format(repr(CELL), repr(OTHER)), "it")
    assert (found.genotype, found.name, found.choice) == (CELL, "V0", "")
    assert parse_genotype(f"# Genotype\n# {GOOD}\n") == CELL  # where there is nothing else


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no 'Genotype(normal=[...], "),
        ("print('hello')", "no 'Genotype("),
        ("genotype = __import__('os').system('true')", "no 'Genotype("),
        ("x" * 20_000, "no 'Genotype("),
        ("(" * 9_000, "no 'Genotype("),
        (GOOD[:-1], "the bracket of 'Genotype(' is not closed"),
        (f"{GOOD}\n{GOOD[:-40]}", "the last one of 2 genotypes: the bracket of 'Genotype(' is not closed"),
        ("Genotype(" + "[ ], " * 5_000 + ")", "not closed (within 10000 characters)"),
        ("Genotype(" + "(" * 900 + ")" * 900 + ")", "cannot be read from "),
        (GOOD.replace("1), (", "1) (", 1), "normal: \"('sep_conv_3x3', 1) ('sep_conv_3x3', 0)\" is neither"),
        (GOOD.replace("1), (", "1) or (", 1), "normal: \"('sep_conv_3x3', 1) or ('sep_conv_3x3', 0)\" is neither"),
        (GOOD.replace("[2, 3, 4, 5]", "[print(1)]"), "normal_concat: 'print(1)' is neither an operation nor a node"),
        (GOOD.replace("[2, 3, 4, 5]", "range(2, 10**9)"), "'10**9' is neither"),
        (GOOD.replace("[2, 3, 4, 5]", "range(2, 6, 0)"), "'range(2, 6, 0)' is neither"),
        (GOOD.replace("[2, 3, 4, 5]", "list('2345')"), "\"list('2345')\" is neither"),
        (GOOD.replace("[2, 3, 4, 5]", "os.system('true')"), "\"os.system('true')\" is neither"),
        (GOOD.replace("[2, 3, 4, 5]", "[2 3 4 5]"), "cannot be read from "),
        (GOOD.replace("[2, 3, 4, 5]", "[2, 3, 4, 5.0]"), "'5.0' is neither"),
        (GOOD.replace("skip_connect", "skip"), "normal[2]: unknown operation 'skip'; known: max_pool_3x3, avg_"),
        (GOOD.replace("skip_connect", "none"), "unknown operation 'none'"),
        (GOOD.replace("skip_connect", "sep(" * 99), "unknown operation 'sep(sep("),
        (GOOD.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', 2)", 1), "node 2 can take nodes 0 to 1"),
        (GOOD.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', -1)", 1), "normal: '-1' is neither"),
        (GOOD.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', True)", 1), "normal: 'True' is neither"),
        (GOOD.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', '1')", 1), "node 2 can take nodes 0 to 1, not '1'"),
        (GOOD.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', 0)", 1), "node 2 takes node 0 twice"),
        (GOOD.replace("', 1)", "', 1, 2)", 1), "pair, not ('sep_conv_3x3', 1, 2)"),
        (
            GOOD.replace("('sep_conv_3x3', 1), ", "", 1),
            "must be a list of 8 (operation, node) pairs, two per node, not",
        ),
        (GOOD.replace("('sep_conv_3x3', 1), ", "('sep_conv_3x3', 1), " * 3, 1), "not a list of 10"),
        (
            nested(GOOD).replace("[('sep_conv_3x3', 1), ('sep_conv_3x3', 0)], ", "", 1),
            "normal must have 4 nodes, not 3",
        ),
        (nested(GOOD).replace("('sep_conv_3x3', 1), ", "", 1), "normal: node 2 must have 2 pairs, not 1"),
        (GOOD.replace("[2, 3, 4, 5]", "[2, 3, 4, 6]"), "normal_concat must list different intermediate nodes, not ["),
        (GOOD.replace("[2, 3, 4, 5]", "[2, 2]"), "different intermediate nodes"),
        (GOOD.replace("[2, 3, 4, 5]", "2"), "different intermediate nodes, not 2"),
        (re.sub(r", reduce=.*", ")", GOOD), "reduce is missing"),
        (re.sub(r"reduce=\[.*?\]", "reduce=None", GOOD), "reduce: 'None' is neither"),
        (re.sub(r"reduce=\[.*?\]", "reduce='sep'", GOOD), "reduce must be a list of 8"),
        (GOOD.replace("reduce_concat", "cell"), "cell is none of its parts: normal, normal_concat, reduce, reduce_con"),
        (GOOD.replace("reduce=", "normal="), "normal is there twice"),
        (GOOD.replace("reduce=", "**").replace(", reduce_concat", ", x"), "** is none of its parts"),
        ("Genotype(1, 2, 3, 4, 5)", "5 parts, not normal, normal_concat"),
        ("Genotype(recurrent=[('relu', 0)], concat=range(1, 9))", "recurrent is none of its parts"),
        ("class Genotype(NamedTuple):", "normal: 'NamedTuple' is neither"),
    ],
)
def test_bad_genotype_files_are_named(text, problem, tmp_path):
    path = tmp_path / "genotype.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(problem)) as error:
        load_genotype(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_what_is_no_file_of_a_sane_size_is_not_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_genotype(tmp_path)
    with open(tmp_path / "film.txt", "wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(InputError, match=r"film\.txt: more than 10 MB"):
        load_genotype(tmp_path / "film.txt")


@st.composite
def printed(draw):
    """(text, genotype): any valid genotype as some program prints it, between other texts."""

    def pick(*choices):
        return draw(st.sampled_from(choices))

    left, right = pick("''", '""', "‘’", "“”", ("", ""))
    node, gap = pick("{}", "np.int64({})", "numpy.int32({})"), pick("", " ", "\n    ")
    pair, row, nested = pick("()", "[]"), pick("()", "[]"), pick(False, True)

    def listed(items, ends):
        last = "," if len(items) == 1 else pick("", ",")  # a comma makes a tuple of one
        return ends[0] + f",{gap}".join(items) + last + ends[1]

    def cell(pairs):
        texts = [listed([left + op + right, node.format(source)], pair) for op, source in pairs]
        return listed([listed(texts[k : k + 2], row) for k in range(0, len(texts), 2)] if nested else texts, row)

    def concatenation(nodes):
        texts = [listed([node.format(k) for k in nodes], row)]
        if nodes == sorted(nodes):
            texts += [listed(list(map(str, nodes)), "{}"), f"set({texts[0]})"]
        if nodes == list(range(nodes[0], nodes[0] + len(nodes))):
            texts += [f"range({nodes[0]}, {nodes[-1] + 1})", f"list(range({nodes[0]},{nodes[-1] + 1}))"]
        return pick(*texts)

    drawn = random_genotype(draw(st.integers(0, 2**32)))
    subset = draw(st.permutations([2, 3, 4, 5]))[: draw(st.integers(1, 4))]
    genotype = drawn._replace(normal_concat=pick(subset, sorted(subset)))
    values = [write(value) for write, value in zip([cell, concatenation] * 2, genotype, strict=True)]
    named = [f"{name}{pick('=', ' = ')}{value}" for name, value in zip(Genotype._fields, values, strict=True)]
    by_position = draw(st.integers(0, 4))
    parts = values[:by_position] + draw(st.permutations(named[by_position:]))
    front = pick("", "genotype = ", "genotype: ", "x=genotypes.", "12:00 INFO ", "`", '"')
    before, after = (draw(st.text(max_size=60).filter(lambda text: "Genotype(" not in text)) for _ in range(2))
    return f"{before}{front}Genotype({f',{gap}'.join(parts)}){after}", genotype


@settings(max_examples=150, deadline=None)
@given(printed())
def test_any_genotype_in_any_style_in_any_text_reads_back(drawn):
    text, genotype = drawn
    assert parse_genotype(text) == genotype


def read_or_refused(text):
    with contextlib.suppress(InputError):
        check_genotype(parse_genotype(text))


@given(st.text(max_size=300))
def test_any_text_is_read_as_data_or_refused(text):
    read_or_refused(text)
    read_or_refused(f"Genotype({text})")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(WRITTEN)), st.data())
def test_any_damaged_genotype_is_read_as_data_or_refused(style, data):
    text = WRITTEN[style]
    for _ in range(data.draw(st.integers(1, 3))):
        at, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 30))
        tokens = st.sampled_from([*"()[]{}'\"#,=*:\\", "\n", "Genotype(", "range(", "0x1", "None", "lambda:", "1or 2"])
        text = text[:at] + data.draw(tokens | st.text(max_size=3)) + text[at + length :]
    read_or_refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(" * 10**6,
        "x =" * 10**6 + "Genotype(",
        "x =" + " " * 10**6 + "Genotyp =Genotype(",
        "Genotype(" + "'\n" * 5000,
    ]
    + [f"x = {GOOD}\n" + "y = x\n" * 10**6, "x = " + "a." * 10**6 + "Genotype()", "=" + "'" * 10**6 + "Genotype("]
    + [
        "Genotype(" + text
        for text in ("a." * 4_000 + "a)", "-" * 9_000 + "1)", "[" * 4_000, "f()" + "()" * 4_000 + ")")
    ]
    + ["Genotype(0x" + "f" * 9_000 + ")", "Genotype(" + "9" * 9_000 + ")", "Genotype(1" + "+1" * 4_000 + ")"],
)
def test_no_text_takes_long(text):
    """What is quadratic in the text's length would take hours here, so that nobody waits for the end of the tests."""
    read_or_refused(text)


# --- The names of networks


def test_a_text_is_named_by_the_name_in_front_or_by_its_genotype():
    assert given_genotype(f"my_cell = {BARE}")[0] == "my_cell"
    assert given_genotype(f"DARTS_V1 = {BARE}")[0] == "DARTS_V1"  # the published cell itself
    assert given_genotype(f"03/21 10:00 my-cell.2=genotypes.{BARE}") == (
        "my-cell.2",
        find_genotype(GOOD, "")._replace(name="my-cell.2"),
    )
    name = given_genotype(GOOD)[0]
    assert re.fullmatch("cell_[0-9a-f]{8}", name)
    for style in ("bare", "nested", "quark0's range", "colon", "several lines", "curly quotes", "positions"):
        assert given_genotype(WRITTEN[style])[0] == name
    assert given_genotype(f"self.genotype = {BARE}")[0] == name != given_genotype(repr(OTHER))[0]


@pytest.mark.parametrize(
    "name", ["chexnet", "first_order", "second_order", "Second_Order", "random_7", "random_-1", "DARTS_V2", "darts_v2"]
)
def test_names_of_other_networks_are_taken(name, tmp_path):
    (tmp_path / f"{name}.txt").write_text(GOOD)
    with pytest.raises(InputError, match=f"called {name}, which is taken: rename the file"):
        given_genotype(str(tmp_path / f"{name}.txt"))
    with pytest.raises(InputError, match=f"called {name}, which is taken: write another NAME = "):
        given_genotype(f"{name} = {BARE}")


def test_files_name_their_network(tmp_path, monkeypatch):
    folder = tmp_path / "search_mine"
    folder.mkdir()
    for name in ("genotype.txt", "genotype_last.txt", "genotype", "log.txt", "cell.v2.txt", "one.txt", "DARTS_V1.txt"):
        (folder / name).write_text(GOOD)
    (folder / "two.txt.gz").write_bytes(gzip.compress(GOOD.encode()))
    named = {path.name: given_genotype(str(path))[0] for path in folder.iterdir()}
    assert named == {
        "genotype.txt": "search_mine", "genotype": "search_mine", "genotype_last.txt": "search_mine_last",
        "log.txt": "search_mine_log", "cell.v2.txt": "cell.v2", "one.txt": "one", "two.txt.gz": "two",
        "DARTS_V1.txt": "DARTS_V1",
    }  # fmt: skip
    monkeypatch.chdir(folder)
    assert given_genotype("genotype.txt")[0] == given_genotype("../search_mine/./genotype.txt")[0] == "search_mine"


@pytest.mark.parametrize("name", ["my cell.txt", ".txt", "é.txt", "x" * 65 + ".txt", "a=b.txt", "Genotype(1).txt"])
def test_a_file_of_a_name_that_no_network_can_have_is_to_be_renamed(name, tmp_path):
    (tmp_path / name).write_text(GOOD)
    with pytest.raises(InputError, match=r"a network's name has .*: rename the file") as error:
        given_genotype(str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/genotype.txt", "/genotype_last.txt", "/log.txt", "/tmp/../genotype.txt"])
def test_a_file_that_its_folder_cannot_name_is_to_be_renamed(path, monkeypatch):
    monkeypatch.setattr("genotypes.open_genotype", lambda _: find_genotype(GOOD, "it"))  # nothing is written to /
    monkeypatch.setattr("os.path.exists", lambda _: True)
    with pytest.raises(InputError, match=r"a network's name has .*, not '': rename the file"):
        given_genotype(path)


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "..", "x" * 65, "naïve", "a\0b"])
def test_a_text_whose_name_is_no_file_name_is_refused(name):
    with pytest.raises(InputError, match="a network's name has 1 to 64 of a-z") as error:
        given_genotype(f"{name} = {BARE}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["x" * 5000, "a/" * 3000, "é" * 200, "a\0b", "a\nb", " ", "\udc80" * 300, "\ud800", "DARTS_V3"]
)
def test_what_is_neither_file_nor_genotype_is_one_line(text):
    with pytest.raises(InputError, match=r"no such file, no .* and not one of random, DARTS_V1") as error:
        given_genotype(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
