"""Prediction files: what can be read without doubt is read, all else is one line."""

import codecs
import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dataset import FINDINGS
from report.predictions import read_others, read_predictions, write_predictions
from support.files import InputError

FILMS = [f"0000000{k}_00{k % 2}.png" for k in range(6)]
VALUES = np.random.default_rng(0).random((len(FILMS), len(FINDINGS)))
THOROUGH = hypothesis_settings(max_examples=80, deadline=None)


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Where the file of a test lies."""
    return tmp_path_factory.mktemp("predictions") / "model.csv"


def frame(values=VALUES):
    columns = {f"prob_{finding}": values[:, k] for k, finding in enumerate(FINDINGS)}
    return pd.DataFrame({"Image Index": FILMS} | columns)


def read(at, content):
    """The probabilities in a file with that content: text, bytes or a frame."""
    if isinstance(content, pd.DataFrame):
        content = content.to_csv(index=False)
    at.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_predictions(at, FILMS, FINDINGS)


def cell(row, column, text):
    """`frame()` with another text in a cell."""
    table = frame().astype(str)
    table.loc[row, column] = text
    return table


def column(old, new):
    """`frame()` with another name of a column."""
    return frame().to_csv(index=False).replace(old, new, 1)


def test_what_is_written_is_read_bit_for_bit(at):
    values = VALUES.copy()
    values[0, :4] = 5e-324, 1 / 3, 1 - 2**-53, 1e300
    write_predictions(at, FILMS, FINDINGS, values)
    assert np.array_equal(read_predictions(at, FILMS, FINDINGS), values)


@st.composite
def forms(draw):
    """The bytes of a file that says what `frame()` says, in one of the forms that people have."""
    separator = draw(st.sampled_from(",;\t"))
    point = "," if separator != "," and draw(st.booleans()) else "."
    folder = draw(st.sampled_from(["", "images/", "a\\B c\\"]))
    ending = draw(st.sampled_from([".png", ".JPG", "", ".nii.gz"]))
    case = draw(st.sampled_from([str, str.upper, str.lower]))
    spelling = draw(st.sampled_from([lambda n: n, lambda n: n.removeprefix("prob_"), lambda n: n.replace("_", " ")]))
    columns = {"Image Index": [folder + case(film.removesuffix(".png")) + ending for film in FILMS]}
    for k, finding in enumerate(FINDINGS):
        columns[f"prob_{finding}"] = [repr(value).replace(".", point) for value in VALUES[:, k].tolist()]
    columns["Finding Labels"] = ["a|b"] * len(FILMS)
    names = draw(st.permutations([*columns]))
    lines = [separator.join(case(spelling(name)) for name in names)]
    lines += [separator.join(columns[name][row] for name in names) for row in draw(st.permutations(range(len(FILMS))))]
    text = draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))
    marks = {"utf-8": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    encoding = draw(st.sampled_from([*marks]))
    content = marks[encoding] * draw(st.booleans()) + text.encode(encoding)
    return gzip.compress(content) if draw(st.booleans()) else content


@THOROUGH
@given(forms())
def test_every_form_without_doubt_reads_as_the_same_numbers(at, content):
    assert np.array_equal(read(at, content), VALUES)


def test_predictions_as_people_edit_the_constant(at):
    frame().to_csv(at, index=False)
    for items, names in ((None, []), ("", []), (f"A={at}", ["A"]), ((f"A={at}", f"B = {at}"), ["A", "B"])):
        assert list(read_others(items, [], FILMS, FINDINGS, at.parent / "results")) == names
    for items in (5, [5], [None], "A"):
        with pytest.raises(InputError, match="must be NAME=FILE"):
            read_others(items, [], FILMS, FINDINGS, at.parent / "results")


WHOLE = frame(VALUES.round(2)).to_csv(index=False).encode()
PIECES = st.sampled_from([b"", b",", b";", b"\t", b'"', b"\n", b"\0", b"nan", b"inf", b"1e999", b"\xff\xfe", b"prob_"])


@st.composite
def spoiled(draw):
    """A good file with a few stretches replaced by other bytes."""
    content = WHOLE
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        content = content[:start] + draw(PIECES | st.binary(max_size=8)) + content[start + draw(st.integers(0, 40)) :]
    return content


@THOROUGH
@given(spoiled() | st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@example(b"")
@example(b"\n\n")
@example(b"\x1f\x8b")
@example(b"\xff\xfe")
@example(b"Image Index,prob_Mass\n")
@example(b"Image Index,Image Index,prob_Mass,prob_Mass\n")
@example(b"sep=;\nImage Index;prob_Mass\n")
def test_any_bytes_give_numbers_or_one_line(at, content):
    try:
        values = read(at, content)
    except InputError as error:
        assert str(error).startswith(f"{at}: ")
    else:
        known = ~np.isnan(values)
        assert np.isfinite(values[known]).all() and (known.all(axis=0) == known.any(axis=0)).all() and known.any()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (cell(3, "prob_Edema", ""), f"film {FILMS[3]} has no number for Edema"),
        *(
            (cell(2, "prob_Mass", text), f"film {FILMS[2]}, Mass: {text!r} is not a finite number")
            for text in ("inf", "1e999", "high", "0.5.1", "1,234.5", "1_0", "0x1", "87 %")
        ),
        (frame()[2:], f"2 test films are missing, {FILMS[0]} among them; the first film there is {FILMS[2]!r}"),
        (frame()[:0], "6 test films are missing"),
        (column("Image Index", "Image"), "no column 'Image Index'; its columns: 'Image', 'prob_Atelectasis'"),
        (column("prob_Pneumonia", "prob_Pnuemonia"), "no column 'prob_Pneumonia'; is 'prob_Pnuemonia' meant? Its "),
        (column("prob_Mass", "PROB EDEMA"), "columns 'PROB EDEMA' and 'prob_Edema' mean the same"),
        (column("prob_Mass", "prob_Edema"), "columns 'prob_Edema' and 'prob_Edema.1' mean the same"),
        (frame()[["Image Index"]].assign(prob_Fracture=1), "no column of a finding, such as 'prob_Atelectasis'; its "),
        (frame()[["Image Index"]].assign(prob_Mass="n/a"), "no number for any finding"),
        (pd.concat([frame(), frame()[1:2].assign(prob_Mass=2)]), f"film {FILMS[1]} is there more than once, with "),
    ],
)
def test_what_is_in_doubt_is_refused_in_one_line(at, content, problem):
    with pytest.raises(InputError) as error:
        read(at, content)
    assert str(error.value).startswith(f"{at}: {problem}") and "\n" not in str(error.value)


AGAIN = frame()[1:2].assign(**{"Image Index": "images/" + FILMS[1].replace("png", "jpg")})
OTHERS = [AGAIN.assign(prob_Mass=value, **{"Image Index": "other.png"}) for value in (0.5, "no number")]
ROUNDED = np.where(np.isin(FINDINGS, ["Mass", "Edema"]), VALUES.round(), VALUES)
MISSING = np.where(np.isin(FINDINGS, ["Mass", "Edema", "Hernia"]), np.nan, VALUES)
FEWER = frame().drop(columns=["prob_Mass", "prob_Hernia"]).assign(prob_Fracture=0.5)
NO_NUMBERS = "no numbers for Mass, Edema, Hernia; columns that are not read: 'prob_Fracture'"
DECISIONS = "only 0 and 1 for Mass, Edema: are these decisions? An AUC needs probabilities or other scores"


@pytest.mark.parametrize(
    ("content", "values", "said"),
    [
        *((FEWER.assign(prob_Edema=nothing), MISSING, NO_NUMBERS) for nothing in ("", "NaN", "n/a", " nan ")),
        (pd.concat([frame(), AGAIN, *OTHERS]), VALUES, "2 rows of films that are not in the test split are left out"),
        (frame(ROUNDED), ROUNDED, DECISIONS),
        (frame().assign(Mass=1, edema=0), VALUES, None),  # columns with prob_ go before those of labels
    ],
)
def test_what_is_missing_or_left_out_or_strange_is_said(at, content, values, said, capsys):
    assert np.array_equal(read(at, content), values, equal_nan=True)
    assert capsys.readouterr().out == (f"{at}: {said}\n" if said else "")


def test_films_that_differ_only_in_folder_or_extension_match_by_their_whole_names(at):
    films = ["a/1.png", "b/1.png", "b/2.png"]
    write_predictions(at, films, FINDINGS, VALUES[:3])
    assert np.array_equal(read_predictions(at, films[::-1], FINDINGS), VALUES[2::-1])


def test_decimal_commas_between_commas_are_refused_not_cut(at):
    def text(half, rows):
        cells = [half if row in rows else "0.5" for row in range(len(FILMS))]
        return "\n".join(["Image Index,prob_Mass", *map(",".join, zip(FILMS, cells, strict=True))])

    assert (read(at, text('"0,5"', [3]))[:, FINDINGS.index("Mass")] == 0.5).all()
    for rows in (range(len(FILMS)), [0], [3]):  # without quotes in all lines, or in some
        with pytest.raises(InputError):
            read(at, text("0,5", rows))
