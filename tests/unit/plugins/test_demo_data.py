"""The bundled data are there, in order, small, licensed, and hold the answers."""

from __future__ import annotations

from importlib.resources import files
from itertools import pairwise

from streamfold.plugins import demo_data


def test_every_question_is_answered_by_the_passage_it_names() -> None:
    passages = {passage.document_id: passage for passage in demo_data.passages()}
    assert len(passages) == 200
    for question in demo_data.QUESTIONS:
        assert question.answer in passages[question.document_id].text
        assert question.by_way_of is None or question.by_way_of in passages


def test_ratings_are_in_order_of_time_and_every_movie_is_named() -> None:
    ratings, movies = list(demo_data.ratings()), {movie.item_id: movie for movie in demo_data.movies()}
    assert len(ratings) >= 20_000
    assert all(a.unix_s <= b.unix_s for a, b in pairwise(ratings))
    assert {rating.item_id for rating in ratings} == set(movies)
    assert all(movie.title for movie in movies.values())


def test_the_data_are_small_and_come_with_their_licences() -> None:
    folder = files("streamfold.plugins") / "_data"
    assert sum(len(part.read_bytes()) for part in folder.iterdir() if part.is_file()) < 1 << 20
    assert "MIT" in (folder / "LICENSE-MovieTweetings").read_text()
    assert "CC BY-SA" in (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
