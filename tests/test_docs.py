"""Every command and every Python example in the documents runs, in the order a reader would run them."""

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import javascript_packages
import pytest
from chain import ROOT, Chain, link_copy
from parity_inputs import write_published
from published_backbones import write_presets, write_saved_models

from data.sources.openmoji import OpenMoji
from serving.client import SearchClient

DOCUMENTS = ["README.md", "WORKSPACE_NOTES.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PACKAGES = ("data", "dual_encoder", "serving", "protos", "benchmarks", "tools", "Makefile", "requirements.txt")
DEMO_ADDRESS = "127.0.0.1:50051"  # where the documents' demonstration serves
READY = 120  # seconds for a server


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    """Each line of the bash blocks."""
    return [line for block in blocks(document, "bash") for line in block.splitlines() if line.strip()]


class Reader:
    """Somebody who types the documents' commands in a checkout where `make demo` has run."""

    def __init__(self, directory: Path, chain: Chain) -> None:
        self.directory, self.chain = directory, chain
        self.addresses: dict[str, str] = {}
        self.servers: list[subprocess.Popen[str]] = []
        for name in PACKAGES:
            (directory / name).symlink_to(ROOT / name)
        (directory / ".venv").symlink_to(sys.prefix)
        shutil.copytree(ROOT / "examples", directory / "examples", ignore=shutil.ignore_patterns("node_modules"))
        demo = directory / "build" / "demo"
        demo.mkdir(parents=True)
        for name, target in (("pairs", chain.data), ("model", chain.bundle), ("index", chain.index)):
            link_copy(target, demo / name)  # commands change them
        self._write_own_data()
        self._serve(f"python -m serving.server --index build/demo/index --address {DEMO_ADDRESS}")

    def _write_own_data(self) -> None:
        """A folder of photos, a table of pairs and a downloaded model, as the documents presume."""
        downloads = self.directory / "downloads"
        write_published("clip", downloads / "clip-vit-base-patch32")
        images = write_saved_models(self.directory / "hub") / "images"
        images.rename(downloads / "mobilenet")
        (write_presets(self.directory / "hub") / "bert").rename(downloads / "bert_small_en_uncased")
        (self.directory / "my_backbones.py").write_text(blocks("docs/models.md", "python")[0])
        photos = self.directory / "my_photos"
        photos.mkdir()
        names = {"1F382": "cake", "1F34E": "apple", "1F697": "car"}
        classes = self.directory / "my_classes"  # a folder each
        drawings = [pair for row, pair in enumerate(OpenMoji()) if row % 24 == 0 or pair.image_id[6:] in names]
        with (self.directory / "my_pairs.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "caption"])
            for pair in drawings:
                code = pair.image_id.removeprefix("emoji/")
                picture = photos / f"{names.get(code, code)}.png"
                picture.write_bytes(pair.image.read())
                if code in names:
                    (classes / names[code]).mkdir(parents=True)
                    shutil.copy(picture, classes / names[code])
                table.writerows([f"my_photos/{picture.name}", caption] for caption in pair.captions)

    def type(self, command: str) -> None:
        """Run one line; a server goes on in the background once it is ready."""
        for shown, real in self.addresses.items():
            command = command.replace(shown, real)
        if "-m serving.server" in command and not re.search("--help|--print-config", command):
            self._serve(command)
            return
        finished = subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self._environment(), capture_output=True, text=True
        )
        assert finished.returncode == 0, f"{command}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"

    def _serve(self, command: str) -> None:
        shown = re.search(r"--address (\S+)", command)
        assert shown, command
        arguments = shlex.split(command.replace(shown[1], "127.0.0.1:0"))
        process = subprocess.Popen(
            [sys.executable, *arguments[1:]],
            cwd=self.directory,
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.servers.append(process)
        assert process.stdout is not None
        found = re.fullmatch(r"listening on (\S+)\n", process.stdout.readline())
        assert found, command
        certificate = re.search(r"--tls-certificate (\S+)", command)
        with SearchClient(found[1], roots=self.directory / certificate[1] if certificate else None) as client:
            client.wait_until_ready(READY)
        self.addresses[shown[1]] = found[1]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        address = self.addresses.get(DEMO_ADDRESS, DEMO_ADDRESS)  # where clients ask by default
        return {**self.chain.machine.environment, "PATH": path, "SEARCH_CLIENT_ADDRESS": address}

    def leave(self) -> None:
        """Stop what is still serving."""
        for process in self.servers:
            process.send_signal(signal.SIGTERM)
        for process in self.servers:
            assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def reader(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The reader, with the demonstration's server running."""
    reader = Reader(tmp_path_factory.mktemp("checkout"), chain)
    yield reader
    reader.leave()


def takes_long(command: str) -> bool:
    """Whether a command measures for minutes."""
    return "-m benchmarks." in command and "--help" not in command


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_runs(document: str, reader: Reader) -> None:
    run = 0
    for command in commands(document):
        if takes_long(command):
            continue
        if command.startswith("grpcurl") and not shutil.which("grpcurl"):
            # The line below it asks the same of the same server through the same reflection.
            assert any(line.startswith("buf curl") for line in commands(document))
            continue
        if command.startswith("curl") and not shutil.which("curl"):
            continue
        if command.startswith(("npm", "node")):
            packages = javascript_packages.install()
            if isinstance(packages, str):
                continue  # tests/test_examples.py says why
            if command == "npm ci --prefix examples/javascript":
                (reader.directory / "examples" / "javascript" / "node_modules").symlink_to(packages)
                continue
        reader.type(command)
        run += 1
    assert run or not [command for command in commands(document) if not takes_long(command)]


@pytest.mark.slow
@pytest.mark.skipif("DOCUMENTED_BENCHMARKS" not in os.environ, reason="half an hour: DOCUMENTED_BENCHMARKS=1 runs them")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [c for document in DOCUMENTS for c in commands(document) if takes_long(c)])
def test_every_benchmark_of_the_documents_reports(command: str, reader: Reader) -> None:
    if not (reader.directory / "build" / "prepared_emoji").exists():
        reader.type("python -m data.prepare --data emoji --out build/prepared_emoji")
    report = reader.directory / shlex.split(command)[-1]
    # A check that does not hold on other data than the promised one is no failure of the command: exit code 1.
    reader.type(f"{command} || [ $? -eq 1 ]")
    assert '"checks"' in report.read_text("utf-8")


# Their examples use what their commands have made.
AFTER_COMMANDS = ("docs/clients.md", "docs/images.md", "docs/search.md", "docs/store.md")


def after_commands(document: str) -> Any:
    """The document, marked where its commands must have run."""
    return pytest.param(document, marks=pytest.mark.slow) if document in AFTER_COMMANDS else document


@pytest.mark.parametrize("document", [after_commands(document) for document in DOCUMENTS])
def test_every_python_example_runs(document: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.directory)
    monkeypatch.setenv("SEARCH_CLIENT_ADDRESS", reader.addresses[DEMO_ADDRESS])
    for block in blocks(document, "python"):
        for shown, real in reader.addresses.items():
            block = block.replace(shown, real)
        exec(compile(block, document, "exec"), {})  # noqa: S102


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_and_link_of_a_document_exists(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", text)) <= targets | {"and"}
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert ((ROOT / document).parent / link).exists(), link


def test_every_top_level_file_is_on_the_map() -> None:
    notes = (ROOT / "WORKSPACE_NOTES.md").read_text("utf-8")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules = [
        Path(name).name
        for name in tracked.splitlines()
        if re.fullmatch(r"(data|dual_encoder|serving)/[a-z_]+\.py", name) and not name.endswith("__init__.py")
    ]
    assert modules
    assert [name for name in modules if name not in notes] == []
