import sys
from pathlib import Path

import pytest

from benchmarks import peer_process
from benchmarks.peer_process import PeerProcess, peer_python
from data.errors import UserError

PEER = """
import json, sys
settings = json.loads(sys.stdin.readline())
print(json.dumps({"batch": settings["batch"]}), flush=True)
for line in sys.stdin:
    if line == "13\\n":
        sys.exit(3)
    print(json.dumps(int(line) * 0.5), flush=True)
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    (tmp_path / "peer.py").write_text(PEER)
    monkeypatch.setattr(peer_process, "PEERS", tmp_path)
    process = PeerProcess(Path(sys.executable), "peer.py", {"batch": 64})
    yield process
    process.close()


def test_a_peer_tells_about_itself_and_takes_turns(peer):
    assert peer.about == {"batch": 64}
    assert [peer.seconds(steps) for steps in (4, 2)] == [2.0, 1.0]


def test_a_peer_that_dies_is_no_silence(peer):
    with pytest.raises(UserError, match="exit code 3"):
        peer.seconds(13)


def test_an_absent_environment_says_how_it_is_made(tmp_path):
    with pytest.raises(UserError, match="make peers"):
        peer_python(tmp_path / "python")
