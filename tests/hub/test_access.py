"""What can be refused before hours of work."""

from __future__ import annotations

import pytest

from llmquant.errors import OutputError
from llmquant.hub.access import check_access
from tests.hub.writable_hub import State


def test_nothing_is_changed_where_all_is_well(hub: State) -> None:
    hub.repositories["me/older"] = {"llmquant.json": b"{}", "config.json": b"{}"}
    for repo in ("me/new", "me/older", "our-lab/new"):
        check_access(repo)
    hub.role = "fineGrained"
    check_access("elsewhere/new")  # only the hub knows what such a token may do
    assert not hub.asked
    assert set(hub.repositories) == {"me/older"}


@pytest.mark.parametrize(
    ("repo", "role", "said"),
    [
        ("mine", "write", "give USER/NAME"),
        ("me/a b", "write", "no name of a repository"),
        ("me/mine", "read", "needs the role 'write'"),
        ("me/mine", "", "hf auth login"),
        ("you/mine", "write", "who may write to me, our-lab"),
        ("me/other", "write", "holds notes.md, which llmquant did not write.* push OUT me/other --overwrite"),
    ],
)
def test_what_a_push_would_be_refused_for(hub: State, repo: str, role: str, said: str) -> None:
    hub.repositories["me/other"] = {"notes.md": b"n"}
    hub.role = role
    with pytest.raises(OutputError, match=said):
        check_access(repo)
    assert not hub.asked


def test_without_a_token(hub: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(OutputError, match="hf auth login"):
        check_access("me/mine")
