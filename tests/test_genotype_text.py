"""Genotypes read from texts: as data, one of several, under a name for the network."""

import contextlib
import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genotypes import PUBLISHED, format_genotype, given_genotype, load_genotype, parse_genotype, random_genotype
from support.files import InputError

CELL = PUBLISHED["DARTS_V1"]
OTHER = PUBLISHED["DARTS_V2"]
GOOD = format_genotype(CELL)
NODES = "[2, 3, 4, 5]"


def by_node(text):
    """The two pairs of each node in a list of their own."""
    return re.sub(r"(\('\w+', \d\), \('\w+', \d\))", r"[\1]", text)


# How programs write what Python prints as `Genotype(...)`.
STYLES = {
    "genotype.txt": lambda text: f"genotype = {text}\n",
    "log of quark0": lambda text: f"11/20 PM genotype = {text.replace(NODES, 'range(2, 6)')}\n11/20 PM tensor([[0.1",
    "log of pt.darts": lambda text: f"03/21 10:00 AM | genotype: {by_node(text).replace(NODES, 'range(2, 6)')}\n",
    "argument of pt.darts": lambda text: f'--genotype "{by_node(text)}" --epochs 2',
    "metrics.jsonl": lambda text: json.dumps({"epoch": 3, "genotype": f"genotype = {text}", "seconds": 1.5}),
    "program": lambda text: f"arch = genotypes.{text.replace(NODES, 'list(range(2, 6))')}\n\nDARTS = arch\n",
    "lines": lambda text: text.replace(", ", ",\n        ").replace("[", "[\n").replace("]", ",\n]"),
    "comments": lambda text: text.replace("), (", "),  # isn't this (node's) last :-(\n# ) nor this\n ("),
    "quotes taken away by a shell": lambda text: text.replace("'", ""),
    "double quotes, no spaces": lambda text: text.replace("'", '"').replace(" ", ""),
    "lists": lambda text: re.sub(r"\(('\w+', \d)\)", r"[\1]", text),
    "tuples": lambda text: text.replace("[", "(").replace("]", ",)"),
    "NumPy's integers": lambda text: re.sub(r"(\d)(?=[],)])", r"np.int64(\1)", text),
    "another order": lambda text: re.sub(r"\((normal=.*), (reduce=.*)\)$", r"(\2, \1)", text),
}


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.permutations([2, 3, 4, 5]), st.integers(1, 4), st.text(max_size=60))
def test_what_programs_write_reads_back(style, seed, nodes, count, around):
    around = around.replace("Genotype(", "")
    genotype = random_genotype(seed)._replace(normal_concat=nodes[:count])
    assert parse_genotype(f"{around}\n{STYLES[style](repr(genotype))}{around}") == genotype


@pytest.mark.parametrize(
    ("text", "genotype", "which"),
    [
        ("epoch 1 {1}\nepoch 2 {1}\ngenotype = {0}\nParam size = 3.3MB\n", CELL, "the last one of 3"),
        ("V1 = {0}\nV2 = {1}\n\nDARTS = V1", CELL, "V1 of 2"),
        ("V1 = genotypes.{0}\nV2 = {1}\nBEST = V1\n  DARTS = BEST  # the best\n", CELL, "V1 of 2"),
        ("V1 = {1}\nV1 = {0}\nV2 = {1}\nDARTS = V1\n", CELL, "V1 of 3"),
        ("V1 = {0}\nV2 = {1}\nDARTS = V3\nlr = rate", OTHER, "the last one of 2"),  # V3 is not in the text
        ("V1 = {0}\nDARTS = V1\nPDARTS = {1}\n", OTHER, "the last one of 2"),  # a genotype follows the line
        ("V1 = {0}\n# V2 = {1}\n  #V3 = {1} # old\n# DARTS = V2", CELL, ""),  # comments
    ],
)
def test_of_several_genotypes_the_last_or_the_named_one_counts(text, genotype, which, tmp_path, capsys):
    path = tmp_path / "log.txt"
    path.write_text(text.format(repr(CELL), repr(OTHER)))
    assert load_genotype(path) == genotype
    assert capsys.readouterr().out == (f"{path}: {which} genotypes is taken\n" if which else "")


def of_node_2(pair):
    """GOOD with another first pair."""
    return GOOD.replace("('sep_conv_3x3', 1)", pair, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no 'Genotype(normal=[...], "),
        (f"{GOOD}\n{GOOD[:-40]}", "the last one of 2 genotypes: the bracket of 'Genotype(' is not closed"),
        ("Genotype(" + "[ ], " * 5_000 + ")", "not closed (within 10000 characters)"),
        (GOOD.replace("), (", "),\n(").replace(NODES, "[2, 3, 4, 5}"), "cannot be read from \"}, reduce=[('max_pool"),
        (GOOD.replace(NODES, "[open('executed', 'w')]"), "\"open('executed', 'w')\" is neither"),
        (GOOD.replace(NODES, "range(2, 9999999)"), "'range(2, 9999999)' is neither"),
        (GOOD.replace(NODES, "[2, 3, 4, 6]"), "normal_concat must list different intermediate nodes, not [2, 3, 4, 6]"),
        (GOOD.replace(NODES, "[2, 2]"), "different intermediate nodes"),
        (GOOD.replace(NODES, "[]"), "different intermediate nodes"),
        (GOOD.replace(NODES, "2"), "different intermediate nodes, not 2"),
        (GOOD.replace("skip_connect", "skip"), "normal[2]: unknown operation 'skip'; known: max_pool_3x3, avg_"),
        (GOOD.replace("skip_connect", "none"), "unknown operation 'none'"),
        (of_node_2("('sep_conv_3x3', 2)"), "normal[0]: node 2 can take nodes 0 to 1, not 2"),
        (of_node_2("('sep_conv_3x3', True)"), "'True' is neither"),
        (of_node_2("('sep_conv_3x3', 0)"), "node 2 takes node 0 twice"),
        (of_node_2("('sep_conv_3x3', 1, 2)"), "pair, not ['sep_conv_3x3', 1, 2]"),
        (of_node_2("('sep_conv_3x3', 1), ('sep_conv_3x3', 1)"), "normal must be a list of 8 (operation, node) pairs"),
        (re.sub(r"reduce=\[.*?\]", "reduce=cell", GOOD), "reduce must be a list of 8"),
        (re.sub(r", reduce=.*", ")", GOOD), "has the parts 'normal, normal_concat', not normal, normal_concat, reduce"),
        (GOOD.replace("reduce=", "**"), "has the parts 'normal, normal_concat, **, reduce_concat'"),
        ("class Genotype(NamedTuple):", "its parts need their names: normal, normal_concat"),
        (r"Genotype('\'') + ('')", "its parts need their names"),  # a sum
    ],
)
def test_what_does_not_fit_is_named_in_one_line_and_not_executed(text, problem, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "genotype.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(problem)) as error:
        load_genotype(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert [*tmp_path.iterdir()] == [path] and not recwarn.list


def test_large_files_are_not_read(tmp_path):
    (tmp_path / "film.txt").write_bytes(b" " * 10_000_001)
    with pytest.raises(InputError, match=r"film\.txt: more than 10 MB"):
        load_genotype(tmp_path / "film.txt")


def read_or_refused(text):
    with contextlib.suppress(InputError):
        parse_genotype(text)


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text):
    read_or_refused(text)
    read_or_refused(f"Genotype({text})")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(STYLES)), st.data())
def test_any_damaged_genotype_is_read_or_refused(style, data):
    text = STYLES[style](repr(CELL))
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
        "=" + "'" * 10**6 + "Genotype(",
        f"x = {GOOD}\n" + "y = x\n" * 10**6,
        " " * 10**6 + "Genotype(",
        "Genotype(" + "'\n" * 5000,
        "Genotype(" + "a." * 4_000 + "a)",
        "Genotype(" + "[" * 4_000,
        "Genotype(" + "(" * 900 + ")" * 901,
        "Genotype(" + "9" * 9_000 + ")",
    ],
)
def test_no_text_takes_long(text):
    """A search whose time grows with the square of the text's length would take hours here."""
    read_or_refused(text)


# --- The names of networks


def test_a_text_is_named_by_the_name_in_front_or_by_its_genotype():
    assert given_genotype(f"my-cell.2 = {CELL}") == ("my-cell.2", CELL)
    assert given_genotype(f"03/21 10:00 my-cell.2=genotypes.{CELL}")[0] == "my-cell.2"
    assert given_genotype(f"DARTS_V1 = {CELL}")[0] == "DARTS_V1"  # the published cell itself
    name = given_genotype(GOOD)[0]
    assert re.fullmatch("cell_[0-9a-f]{8}", name) and name != given_genotype(repr(OTHER))[0]
    for style in ("genotype.txt", "log of pt.darts", "lines", "another order"):
        assert given_genotype(STYLES[style](repr(CELL)))[0] == name


@pytest.mark.parametrize("name", ["chexnet", "first_order", "Second_Order", "random_-1", "Darts_V2", "mine_net.pth"])
def test_names_of_other_networks_are_taken(name, tmp_path):
    (tmp_path / f"{name}.txt").write_text(GOOD)
    with pytest.raises(InputError, match=f"called {name}, which is taken: rename the file"):
        given_genotype(str(tmp_path / f"{name}.txt"))
    with pytest.raises(InputError, match=f"called {name}, which is taken: write another NAME = "):
        given_genotype(f"{name} = {CELL}")


def test_files_name_their_network(tmp_path, monkeypatch):
    folder = tmp_path / "search_mine"
    folder.mkdir()
    for name in ("genotype.txt", "genotype_last.txt", "genotype", "log.txt", "cell.v2.txt", "DARTS_V1.txt"):
        (folder / name).write_text(GOOD)
    (folder / "two.txt.gz").write_bytes(gzip.compress(GOOD.encode()))
    named = {path.name: given_genotype(str(path))[0] for path in folder.iterdir()}
    assert named == {
        "genotype.txt": "search_mine", "genotype": "search_mine", "genotype_last.txt": "search_mine_last",
        "log.txt": "search_mine_log", "cell.v2.txt": "cell.v2", "two.txt.gz": "two", "DARTS_V1.txt": "DARTS_V1",
    }  # fmt: skip
    monkeypatch.chdir(folder)
    (folder / "my cell.txt").write_text(GOOD)
    with pytest.raises(InputError, match=r"a network's name has .*, not 'my cell': rename the file"):
        given_genotype("my cell.txt")
    assert given_genotype("genotype.txt")[0] == given_genotype("../search_mine/./genotype.txt")[0] == "search_mine"


NAMES = [".hidden", "naïve", "x" * 65, "..", "../evil", "a\0b"]
BAD = [(f"{name} = {CELL}", r"a network's name has 1 to 64 of a-z.*: write another NAME = ") for name in NAMES]
TEXTS = ["x" * 5000, "a/" * 3000, "a\0b", "a\nb", " ", "\udc80" * 300, "DARTS_V3"]
BAD += [(text, r"no such file, no .* and not one of random, DARTS_V1") for text in TEXTS]


@pytest.mark.parametrize(("text", "problem"), BAD)
def test_names_that_no_network_can_have_and_texts_without_a_genotype_are_one_line(text, problem):
    with pytest.raises(InputError, match=problem) as error:
        given_genotype(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
