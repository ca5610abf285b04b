"""Makes the Python stubs of protos/, and with --check tells when the committed ones have drifted; knows no message."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data import console

PROTOS = Path(__file__).resolve().parent.parent / "protos"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")

# protoc names modules by the path below its include root, which buf wants to be the root of the package
# ("imageretrieval/v1/…"); in Python the package lies inside `protos`.
_IMPORT = re.compile(r"^from imageretrieval\.", re.MULTILINE)


def generate(out: Path) -> None:
    """Write the stubs of every .proto file below `PROTOS` to `out`, importable as `protos.imageretrieval.v1.…`."""
    import grpc_tools

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    arguments = [
        f"-I{PROTOS}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
    ]
    # In a process of its own: protoc's copy of protobuf crashes beside TensorFlow's.
    if subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments, *files], check=False).returncode:
        raise SystemExit(console.EXIT_FAILED)
    for path in stubs(out).values():
        path.write_text(_IMPORT.sub("from protos.imageretrieval.", path.read_text("utf-8")), "utf-8")


def stubs(root: Path) -> dict[str, Path]:
    """The generated files below `root`, by relative path."""
    return {str(path.relative_to(root)): path for pattern in GENERATED for path in sorted(root.rglob(pattern))}


def drifted(fresh: Path) -> list[str]:
    """Which committed stubs differ from those in `fresh`, are missing, or have no .proto file any more."""
    committed, expected = stubs(PROTOS), stubs(fresh)
    return sorted(
        name
        for name in committed.keys() | expected.keys()
        if name not in committed or name not in expected or committed[name].read_bytes() != expected[name].read_bytes()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the stubs."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate_protos", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a committed stub differs")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        changed = drifted(fresh)
        if not arguments.check:
            for name in changed:
                if (fresh / name).exists():
                    shutil.copyfile(fresh / name, PROTOS / name)
                else:
                    (PROTOS / name).unlink()
    if arguments.check and changed:
        console.say(f"error: out of date: {', '.join(changed)}; run python -m tools.generate_protos")
        return console.EXIT_FAILED
    console.say(f"{len(changed)} stubs written" if not arguments.check else "every stub is up to date")
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
