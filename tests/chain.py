"""Runs the project's commands as a user does, in processes that reach nothing but this machine, and makes a small
trained model with its index once for all tests that need one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from data.durable import CACHE_VARIABLE, write_atomic
from data.pairs import ImageTextPair
from data.sources.openmoji import OpenMoji
from serving.client import SearchClient

ROOT = Path(__file__).resolve().parent.parent

# A recipe of the user's own, for the little that a test has time for: the published backbones, on the pairs alone.
EPOCHS = 20
RECIPE = f'''"""A few drawings, trained for seconds."""

import dataclasses

from dual_encoder.projection_head import AnchoredHead, LinearHead
from dual_encoder.recipe import TrainerConfig
from dual_encoder.recipes.emoji_demo import RECIPE as DEMO
from dual_encoder.schedules import WarmupCosine

MODEL = dataclasses.replace(
    DEMO.model,
    image_head=AnchoredHead(trainable=True, dropout=0.2),
    text_head=LinearHead(start_as_identity=True, dropout=0.2),
)
TRAINER = TrainerConfig(
    WarmupCosine(peak=2e-3), epochs={EPOCHS}, batch_size=64, seed=2, monitor="loss", patience=0
)
RECIPE = dataclasses.replace(
    DEMO, name="drawings", model=MODEL, trainer=TRAINER, class_prototypes=False, mirrored=False
)
'''

# Some drawings that the questions below are about, among every thirteenth of all.
SUBJECTS = "🍎🚕🚲🎂🐘🍕⛄🎸🚀🌵🐙👑☂🔑🦋🌈"


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    output: str
    errors: str


@dataclass(frozen=True)
class Served:
    """A server's process and a client of it."""

    process: subprocess.Popen[str]
    client: SearchClient


@dataclass(frozen=True)
class Machine:
    """Where commands run: an empty home, a cache, and a note of every attempt to reach another machine."""

    home: Path
    environment: dict[str, str] = field(repr=False)

    @classmethod
    def at(cls, home: Path, who: str = "") -> Machine:
        """A machine whose users' files are in `home`, used by `who`; the cache is the one this test run shares."""
        site = home / "site"
        site.mkdir(parents=True, exist_ok=True)
        write_atomic(site / "sitecustomize.py", (ROOT / "tests" / "refuse_network.py").read_bytes())
        record = home / f"refused-connections{who}"
        record.touch()
        own = {"HOME": str(home), "PYTHONPATH": f"{site}:{ROOT}", "REFUSED_CONNECTIONS": str(record), "COLUMNS": "200"}
        cache = os.environ.get(CACHE_VARIABLE) or str(home / "cache")
        return cls(home, {**os.environ, CACHE_VARIABLE: cache, **own})

    @property
    def refused_connections(self) -> str:
        """What commands tried to reach, a line each."""
        return Path(self.environment["REFUSED_CONNECTIONS"]).read_text()

    def start(
        self,
        module: str,
        *arguments: object,
        prefix: Sequence[str] = (),
        cwd: Path = ROOT,
        own_network: bool = False,
        options: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start `python -m module arguments`, as a user does in the project's directory.

        `prefix` is a program that starts it, such as `prlimit`; `options` are the interpreter's. With `own_network`,
        what it may reach ends at itself.
        """
        return subprocess.Popen(
            [*prefix, sys.executable, *options, "-m", module, *map(str, arguments)],
            cwd=cwd,
            env={**self.environment, "OWN_NETWORK": "1" if own_network else ""},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, module: str, *arguments: object, timeout: float = 240, **how: object) -> Finished:
        """Run a command to its end, `how` as for `start`; it must neither call for the network nor show a traceback."""
        before = self.refused_connections
        process = self.start(module, *arguments, **how)  # type: ignore[arg-type]
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert self.refused_connections == before, f"{module} called for the network"
        assert "Traceback" not in errors, errors
        return Finished(process.returncode, output, errors)

    def done(self, module: str, *arguments: object, **how: object) -> Finished:
        """Run a command that must succeed."""
        finished = self.run(module, *arguments, **how)  # type: ignore[arg-type]
        assert finished.code == 0, finished.errors
        return finished

    @contextlib.contextmanager
    def server(self, bundle: object, index: object) -> Iterator[Served]:
        """A server on a free port that is ready, and a client of it; it is told to stop at the end, and must obey."""
        process = self.start("serving.server", "--bundle", bundle, "--index", index, "--address", "127.0.0.1:0")
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"listening on (\S+)\n", process.stdout.readline())
            assert found, process.communicate()[1]
            with SearchClient(found[1], timeout=30) as client:
                client.wait_until_ready(60)
                yield Served(process, client)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 0, errors
            assert "Traceback" not in errors, errors
        finally:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class Chain:
    """What the commands made, from drawings to an index, and what each of them said."""

    machine: Machine
    pairs: dict[str, ImageTextPair]  # by image_id
    data: Path  # what data.prepare wrote
    recipe: Path
    bundle: Path
    index: Path
    metrics: Path
    said: dict[str, Finished]  # by module


def shared_chain(directory: Path, worker: str) -> Chain:
    """Make the chain in `directory`, or take it from there where another worker process has made it."""
    home = directory / "chain"
    machine, said = Machine.at(home, f"-{worker}"), home / "said.json"
    with (directory / "chain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not said.exists():
            _make_chain(home, machine, said)
    return _chain_at(home, machine, {name: Finished(*ended) for name, ended in json.loads(said.read_text()).items()})


def _chain_at(home: Path, machine: Machine, said: dict[str, Finished]) -> Chain:
    pairs = {_name(pair): pair for pair in drawings()}
    made = (home / name for name in ("pairs", "recipe.py", "model", "index", "metrics.json"))
    return Chain(machine, pairs, *made, said)


def _make_chain(home: Path, machine: Machine, said: Path) -> None:
    """Prepare, train, evaluate and index a few drawings by the real commands, each without any network."""
    write_drawings(home / "drawings")
    chain = _chain_at(home, machine, {})
    chain.recipe.write_text(RECIPE)
    data, bundle = ("--data", chain.data), ("--bundle", chain.bundle)
    for module, *arguments in (
        ("data.prepare", "--data", f"jsonl:{home / 'drawings'}", "--out", chain.data),
        ("dual_encoder.train", "--recipe", chain.recipe, *data, "--out", chain.bundle),
        ("dual_encoder.evaluate", *bundle, *data, "--split", "all", "--json", chain.metrics),
        ("serving.build_index", *bundle, *data, "--out", chain.index),
    ):
        chain.said[module] = machine.done(module, *arguments, own_network=True)
    said.write_text(json.dumps({name: astuple(ended) for name, ended in chain.said.items()}))


def write_drawings(directory: Path) -> None:
    """Write some emoji as a JSONL data set."""
    (directory / "images").mkdir(parents=True)
    with (directory / "captions.jsonl").open("w") as rows:
        for pair in drawings():
            (directory / _name(pair)).write_bytes(pair.image.read())
            row = {"image": _name(pair), "captions": pair.captions, "group": pair.group}
            rows.write(json.dumps({**row, "attributes": {"emoji": pair.attributes["emoji"]}}) + "\n")


def _name(pair: ImageTextPair) -> str:
    """The drawing's id in that data set, which is its file."""
    return f"images/{pair.image_id.removeprefix('emoji/')}.png"


def drawings() -> Iterator[ImageTextPair]:
    """The drawings in the order of their code points."""
    for position, pair in enumerate(OpenMoji()):
        character = str(pair.attributes["emoji"]).removesuffix("\ufe0f")
        if position % 13 == 0 or character in SUBJECTS:
            yield pair


def link_copy(directory: Path, copy: Path) -> Path:
    """A copy of a directory that shares its files, but for an index's log; write to one only by replacing it."""

    def link(source: str, target: str) -> None:
        (shutil.copy if Path(source).name.startswith("changes.") else os.link)(source, target)

    shutil.copytree(directory, copy, copy_function=link)
    return copy


def flip_byte(path: Path) -> None:
    """Change the byte in the middle of a file; a file that shares its content is left as it is."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.unlink()
    path.write_bytes(data)


def wait_for_file(directory: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Return as soon as `directory` holds a file that fits `pattern`, while `process` runs."""
    while not any(directory.glob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        os.sched_yield()
