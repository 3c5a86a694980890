"""What an operator gets wrong with policies is answered in one line that says what, and what to do."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("add trendin", "invalid-value", "no policy 'trendin' is registered; did you mean 'trending'?"),
        ("add trending --slot shadw", "invalid-value", "'shadw' is none of the values; did you mean 'shadow'?"),
        ("add trending --set half_lives_s=oops", "invalid-value", "[policies.trending] half_lives_s: Expected `array`"),
        ("add trending", "policy-conflict", "runs already as live: change its configuration"),
        ("add trending --slot live --set half_lives_s=[60]", "policy-conflict", "is live already: add a shadow"),
        ("promote trending", "policy-conflict", "has no shadow to promote: add one, or name a version"),
        ("promote trending --version 7", "not-found", "no policy 'trending@7'; did you mean 'trending@1'?"),
        ("promote trending --version 1", "policy-conflict", "is live: only a shadow can take over"),
        ("rollback trending", "policy-conflict", "it was not demoted in the last 3,600 s (rollback_window_s)"),
        ("rollback trending --version 1", "policy-conflict", "its version 1 was not demoted in the last 3,600 s"),
        ("quality trending", "not-found", "other policies have no scores"),
        ("quality trendin", "not-found", "did you mean 'trending'?"),
        ("split trending --share 0.5", "policy-conflict", "has no shadow to split"),
    ],
)
def test_a_refusal_says_it_once_and_what_to_do(run: Run, arguments: str, code: str, words: str) -> None:
    exit_code, _, said = run("policies", *arguments.split())
    assert exit_code == 1
    assert said.startswith(f"streamfold: {code}: ")
    assert said.count(words) == 1, said
