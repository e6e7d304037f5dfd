"""What is said of a run in words."""

from __future__ import annotations

from atoll.show.scores import worst_text


def test_of_texts_nobody_counts_samples_that_are_right() -> None:
    """Their accuracy is a share of tokens, and rarely one of whole samples."""
    found = worst_text({3: 4 / 7}, "accuracy", {}, {3: 7})
    assert found == "client 3: 57.1 %, 4 of 7 test samples right"
    assert worst_text({0: 0.4173}, "accuracy", {}, {0: 1446}) == "client 0: 41.7 %, on 1446 test samples"
