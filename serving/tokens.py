"""The entry point for tokens: creates, lists and revokes them; knows no server, which reads the file by itself.

Example: `python -m serving.tokens create --file tokens.json --name website --scope search`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from data import console
from serving.method_policies import Scope
from serving.token_file import TokenFile, create, revoke, shown_time


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.tokens", description="Tokens by which callers of a search server show who they are."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--file", type=Path, required=True, help="file of tokens, readable only by its owner")
    create = commands.add_parser("create", parents=[place], help="add a token and print it, once")
    create.add_argument("--name", required=True, help="of the caller, for limits, metrics and logs")
    create.add_argument(
        "--scope", required=True, action="append", choices=list(Scope), help="what it may do; may be given again"
    )
    create.add_argument("--days", type=float, metavar="N", help="until it expires; for ever, if not given")
    create.set_defaults(command=_create)
    commands.add_parser("list", parents=[place], help="names, scopes and ends").set_defaults(command=_list)
    revoke = commands.add_parser("revoke", parents=[place], help="remove a token; servers notice within a second")
    revoke.add_argument("--name", required=True)
    revoke.set_defaults(command=_revoke)
    return parser


def _create(arguments: argparse.Namespace) -> None:
    now = time.time()
    expires = None if arguments.days is None else now + 86_400 * arguments.days
    token = create(arguments.file, arguments.name, frozenset(map(Scope, arguments.scope)), now, expires)
    console.say(f"token for {arguments.name}; only its digest is kept, so it is shown this once:")
    print(token)


def _list(arguments: argparse.Namespace) -> None:
    now = time.time()
    rows = []
    for token in TokenFile.read(arguments.file).tokens:
        expires = "never" if token.expires is None else shown_time(token.expires)
        if token.expires is not None and token.expires <= now:
            expires += " (expired)"
        rows.append((token.name, ", ".join(sorted(token.scopes)), shown_time(token.created), expires))
    console.print_table("Tokens", ("name", "scopes", "created", "expires"), rows)


def _revoke(arguments: argparse.Namespace) -> None:
    revoke(arguments.file, arguments.name)
    console.say(f"revoked the token of {arguments.name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and do it."""
    arguments = _parser().parse_args(argv)
    arguments.command(arguments)
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
