"""Words for what others raise."""

import pytest
from kontextkit.engine.errors import first_line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("no kernel\nfor this card"), "no kernel"),
        (OSError("\n  cannot open it\n"), "cannot open it"),
        (RuntimeError(), "RuntimeError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_an_error_becomes_part_of_a_sentence_even_where_it_says_nothing(error, words):
    assert first_line(error) == words
