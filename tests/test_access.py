"""Tokens and certificates: what is kept of them, who is let in by them, what a change of the file does."""

from __future__ import annotations

import hashlib
import json
import logging
import stat

import pytest

from serving import access, tokens
from serving.access import Access, AccessSettings
from serving.callers import Origin, Unauthenticated
from serving.method_policies import Scope
from serving.token_file import TokenError, TokenFile, create, revoke

SEARCH = frozenset({Scope.SEARCH})


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.json"


@pytest.fixture
def looking(monkeypatch):
    """The file is looked at for every call."""
    monkeypatch.setattr(access, "_CHECK_EVERY", 0.0)


def bearing(token, scheme="Bearer"):
    return Origin(peer="192.0.2.1", metadata={"authorization": f"{scheme} {token}"})


def test_the_file_holds_no_token_and_is_its_owners_alone(file):
    token = create(file, "website", SEARCH, now=0.0)
    assert len(token) >= 43
    text = file.read_text()
    assert token not in text
    assert json.loads(text)["tokens"][0]["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert create(file, "other", SEARCH, now=0.0) != token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_token_says_who_calls_and_what_it_may_do(file):
    token = create(file, "job", frozenset({Scope.SEARCH, Scope.WRITE}), now=0.0)
    guard = Access(AccessSettings(tokens=file))
    for scheme in ("Bearer", "bearer"):
        caller = guard.caller(bearing(token, scheme))
        assert (caller.name, caller.kind, caller.scopes) == ("job", "token", {Scope.SEARCH, Scope.WRITE})


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (Origin(), "asks for a token"),
        (bearing("ist_" + "A" * 43), "not one of this server's"),
        (bearing(""), "must be: Bearer TOKEN"),
        (bearing("dXNlcjpwYXNz", "Basic"), "must be: Bearer TOKEN"),
        (bearing("\udcff\x00é"), "not one of this server's"),
        (Origin(metadata={"authorization": b"Bearer \xff"}), "not one of this server's"),
        (Origin(certificate=("unknown",)), "no permissions here"),
    ],
)
def test_everybody_else_is_refused(file, origin, told):
    create(file, "website", SEARCH, now=0.0)
    guard = Access(AccessSettings(tokens=file, certificates={"job": ["write"]}))
    with pytest.raises(Unauthenticated, match=told):
        guard.caller(origin)


def test_a_digest_is_no_token(file):
    digest = hashlib.sha256(create(file, "website", SEARCH, now=0.0).encode()).hexdigest()
    with pytest.raises(Unauthenticated):
        Access(AccessSettings(tokens=file)).caller(bearing(digest))


def test_a_token_expires(file, monkeypatch):
    token = create(file, "website", SEARCH, now=0.0, expires=1_000.0)
    guard = Access(AccessSettings(tokens=file))
    monkeypatch.setattr("time.time", lambda: 999.0)
    assert guard.caller(bearing(token)).name == "website"
    monkeypatch.setattr("time.time", lambda: 1_000.0)
    with pytest.raises(Unauthenticated, match="expired"):
        guard.caller(bearing(token))


def test_a_running_server_learns_of_new_and_revoked_tokens(file, looking):
    old = create(file, "old", SEARCH, now=0.0)
    guard = Access(AccessSettings(tokens=file))
    new = create(file, "new", SEARCH, now=0.0)
    assert guard.caller(bearing(new)).name == "new"
    revoke(file, "old")
    assert guard.caller(bearing(new)).name == "new"
    with pytest.raises(Unauthenticated):
        guard.caller(bearing(old))


@pytest.mark.parametrize("broken", ["", "{", '{"format": 2, "tokens": []}', '{"format": 1, "tokens": [{}]}', "[]"])
def test_a_broken_file_changes_nothing_while_running_and_stops_the_start(file, looking, caplog, broken):
    token = create(file, "website", SEARCH, now=0.0)
    guard = Access(AccessSettings(tokens=file))
    file.write_text(broken)
    with caplog.at_level(logging.ERROR):
        assert guard.caller(bearing(token)).name == "website"
    assert "which is none" in caplog.text
    with pytest.raises(TokenError):
        Access(AccessSettings(tokens=file))


def test_a_certificate_has_the_scopes_of_the_first_known_of_its_names():
    guard = Access(AccessSettings(certificates={"job": ["write"], "job.example.org": ["search"]}))
    caller = guard.caller(Origin(certificate=("unknown", "job.example.org", "job")))
    assert (caller.name, caller.kind, caller.scopes) == ("job.example.org", "certificate", SEARCH)


def test_a_token_counts_before_the_certificate_of_the_proxy_that_brings_it(file):
    token = create(file, "website", SEARCH, now=0.0)
    guard = Access(AccessSettings(tokens=file, certificates={"proxy": ["admin"]}))
    origin = Origin(metadata={"authorization": f"Bearer {token}"}, certificate=("proxy",))
    assert guard.caller(origin).scopes == SEARCH


def test_where_nothing_is_configured_everybody_may_do_everything():
    caller = Access(AccessSettings()).caller(Origin(peer="192.0.2.1"))
    assert (caller.name, caller.kind, caller.scopes) == ("192.0.2.1", "anonymous", set(Scope))


def test_the_command_creates_lists_and_revokes(file, capsys):
    assert tokens.main(["create", "--file", str(file), "--name", "job", "--scope", "search", "--scope", "write"]) == 0
    token = capsys.readouterr().out.strip()
    assert Access(AccessSettings(tokens=file)).caller(bearing(token)).scopes == {Scope.SEARCH, Scope.WRITE}
    tokens.main(["create", "--file", str(file), "--name", "old", "--scope", "search", "--days", "-1"])
    capsys.readouterr()
    tokens.main(["list", "--file", str(file)])
    listed = capsys.readouterr().out
    assert "job" in listed
    assert "search, write" in listed
    assert "(expired)" in listed
    assert token not in listed
    tokens.main(["revoke", "--file", str(file), "--name", "job"])
    assert [each.name for each in TokenFile.read(file).tokens] == ["old"]


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "-a", "a" * 65, "é"])
def test_names_are_words_that_a_log_can_show(file, name):
    with pytest.raises(TokenError, match="a name of"):
        create(file, name, SEARCH, now=0.0)
    assert not file.exists()


def test_mistakes_with_tokens_say_what_is_there(file):
    with pytest.raises(TokenError, match="serving.tokens create"):
        revoke(file, "job")
    create(file, "job", SEARCH, now=0.0)
    with pytest.raises(TokenError, match="job, which is taken"):
        create(file, "job", SEARCH, now=0.0)
    with pytest.raises(TokenError, match="these are known: job"):
        revoke(file, "jbo")
