"""The command line on the client: parses arguments, asks, prints tables or JSON; knows no message."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from data import console
from data.errors import UserError
from serving.client import SearchClient
from serving.client_connection import DEFAULT_ADDRESS, ENVIRONMENT
from serving.client_errors import ServiceError
from serving.client_tables import operation_json, print_images, print_results, printable, shown_moment
from serving.client_values import Composition, ImageId, Operation, Upload


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, ask the server, print the answer."""
    arguments = _parser().parse_args(argv)
    try:
        with _client(arguments) as client:
            if arguments.wait:
                client.wait_until_ready(arguments.wait)
            return arguments.command(client, arguments) or console.EXIT_OK
    except (ServiceError, UnicodeError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        console.say(f"error: {error}")
        return console.EXIT_REFUSED


def _client(arguments: argparse.Namespace) -> SearchClient:
    token = arguments.token_file.read_text("utf-8").strip() if arguments.token_file else None
    return SearchClient(
        arguments.address,
        arguments.timeout,
        token=token,
        tls=arguments.tls or None,
        roots=arguments.roots,
        certificate=arguments.certificate,
        key=arguments.key,
        server_name=arguments.server_name,
    )


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    reach = common.add_argument_group("the server", f"also by the environment: {ENVIRONMENT}ADDRESS and so on")
    reach.add_argument("--address", metavar="HOST:PORT", help=f"default {DEFAULT_ADDRESS}")
    reach.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for each answer")
    reach.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="first wait until it is ready")
    reach.add_argument("--token-file", type=Path, metavar="FILE", help=f"holds the token; or {ENVIRONMENT}TOKEN")
    reach.add_argument("--tls", action="store_true", help="encrypt, trusting the system's authorities")
    reach.add_argument("--roots", type=Path, metavar="FILE", help="encrypt, trusting these authorities (PEM)")
    reach.add_argument("--certificate", type=Path, metavar="FILE", help="shows who asks (PEM), with --key")
    reach.add_argument("--key", type=Path, metavar="FILE", help="of that certificate")
    reach.add_argument("--server-name", metavar="NAME", help="in the server's certificate, if not the address's")
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")

    parser = argparse.ArgumentParser(prog="python -m serving.client", description="Ask a search server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int | None], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=help)
        added.set_defaults(command=run)
        return added

    _add_searches(command)
    _add_images(command)
    _add_upkeep(command)
    return parser


def _add_searches(command: Callable[..., argparse.ArgumentParser]) -> None:
    search = command("search", _run_search, "images that match a text, images, or a mixture")
    search.add_argument("text", nargs="?", help='such as "a red bicycle"')
    search.add_argument("--minus", action="append", default=[], metavar="TEXT", help="and not like this")
    search.add_argument("--like", action="append", default=[], metavar="ID", help="and like this indexed image")
    search.add_argument(
        "--image", action="append", default=[], type=Path, metavar="FILE", help="and like this image file"
    )
    search_image = command("search-image", _run_search, "images that look like one")
    search_image.add_argument("image", nargs=1, type=Path, metavar="file", help="a JPEG, PNG, WebP or GIF file")
    search_image.set_defaults(text=None, minus=[], like=[])
    for parser in (search, search_image):
        parser.add_argument("-k", type=_positive, default=10, metavar="HITS", help="how many, default %(default)s")
        parser.add_argument("--pages", type=_positive, default=1, help="of so many hits, default %(default)s")
        parser.add_argument("--min-score", type=float, help="leave out images that score less")
        _add_filter(parser)
        parser.add_argument("--exact", action="store_true", help="compare with every image")
        parser.add_argument("--oversampling", type=float, default=1.0, help="look at so many times as many candidates")
        parser.add_argument(
            "--deduplicate", type=float, metavar="SIMILARITY", help="leave out near copies of better hits, such as 0.97"
        )
        parser.add_argument("--timings", action="store_true", help="tell how long the server took")
    embed = command("embed-text", _run_embed_text, "embeddings of texts, as JSON")
    embed.add_argument("texts", nargs="+", metavar="text")


def _add_images(command: Callable[..., argparse.ArgumentParser]) -> None:
    get = command("get", _run_get, "what is known about images")
    get.add_argument("image_ids", nargs="+", metavar="id")
    listing = command("list", _run_list, "the images, in the order of their ids")
    _add_filter(listing)
    listing.add_argument("--limit", type=_positive, default=100, help="how many at most, default %(default)s")
    upsert = command("upsert", _run_upsert, "add or replace images")
    upsert.add_argument("paths", nargs="+", type=Path, metavar="path", help="image files, and folders of them")
    upsert.add_argument("--caption", action="append", default=[], metavar="TEXT", help="to keep with each")
    upsert.add_argument(
        "--attribute", action="append", default=[], type=_attribute, metavar="NAME=VALUE", help="to keep with each"
    )
    delete = command("delete", _run_delete, "remove images")
    delete.add_argument("image_ids", nargs="+", metavar="id")


def _add_upkeep(command: Callable[..., argparse.ArgumentParser]) -> None:
    command("health", _run_health, "whether the server answers calls; the exit code is 1 when it does not yet")
    command("status", _run_status, "what the server serves")
    command("snapshots", _run_snapshots, "the published states of the index")
    build = command("build", lambda client, given: _follow(client, given, client.build(given.source)), "index a source")
    build.add_argument("source", help="a data set on the server's machine, as serving.build_index takes it")
    publish = command("publish", lambda client, given: _follow(client, given, client.publish()), "publish the changes")
    back = command(
        "rollback", lambda client, given: _follow(client, given, client.roll_back(given.snapshot)), "go back"
    )
    back.add_argument("snapshot", nargs="?", default="", help="which, by default the one that was live before")
    verify = command("verify", lambda client, given: _follow(client, given, client.verify()), "check every file")
    backup = command("backup", lambda client, given: _follow(client, given, client.back_up(given.name)), "copy it")
    backup.add_argument("name", help="what to call it in the server's directory for backups")
    for parser in (build, publish, back, verify, backup):
        parser.add_argument("--no-wait", action="store_true", help="return when it has begun")
    command("operations", _run_operations, "what was begun, and how it stands")
    cancel = command("cancel", lambda client, given: client.cancel_operation(given.name), "stop an operation")
    cancel.add_argument("name", help='such as "operations/7"')


def _add_filter(parser: argparse.ArgumentParser) -> None:
    example = """such as 'kind = "photo" AND year >= 2010 AND tags:"red"'; see docs/search.md"""
    parser.add_argument("--filter", default="", metavar="TEXT", help=f"only images whose attributes match, {example}")


def _run_health(client: SearchClient, arguments: argparse.Namespace) -> int:
    status = client.health()
    print(json.dumps({"status": status}) if arguments.json else status)
    return console.EXIT_OK if status == "SERVING" else console.EXIT_FAILED


def _run_search(client: SearchClient, arguments: argparse.Namespace) -> None:
    plus = [*([] if arguments.text is None else [arguments.text]), *map(ImageId, arguments.like)]
    plus += [path.read_bytes() for path in arguments.image]
    parts = [*plus, *((text, -1.0) for text in arguments.minus)]
    if not parts:
        raise UserError("something to look for", "nothing", "give a text, --like or --image")
    what = {"composition": Composition(*parts)} if len(parts) > 1 or arguments.minus else _alone(plus[0])
    pages = client.search_pages(
        **what,
        k=arguments.k,
        min_score=arguments.min_score,
        filter=arguments.filter,
        exact=arguments.exact,
        oversampling=arguments.oversampling,
        deduplicate_similarity=arguments.deduplicate,
        with_timings=arguments.timings,
    )
    told = [arguments.text, *arguments.like, *(path.name for path in arguments.image)]
    query = " + ".join(one for one in told if one is not None) + "".join(f" − {text}" for text in arguments.minus)
    print_results([page for page, _ in zip(pages, range(arguments.pages), strict=False)], query, arguments.json)


def _alone(example: str | bytes | ImageId) -> dict[str, Any]:
    if isinstance(example, str):
        return {"text": example}
    return {"image": example} if isinstance(example, bytes) else {"image_id": example.image_id}


def _run_embed_text(client: SearchClient, arguments: argparse.Namespace) -> None:
    for embedding in client.embed_texts(arguments.texts):
        print(json.dumps(embedding))


def _run_get(client: SearchClient, arguments: argparse.Namespace) -> int:
    found = client.get_images(arguments.image_ids)
    print_images("Images", [image for image in found if image is not None], arguments.json)
    missing = [image_id for image_id, image in zip(arguments.image_ids, found, strict=True) if image is None]
    for image_id in missing:
        console.say(f"error: no image {printable(image_id)!r} in this index")
    return console.EXIT_FAILED if missing else console.EXIT_OK


def _run_list(client: SearchClient, arguments: argparse.Namespace) -> None:
    page_size = min(arguments.limit, 1_000)
    images = client.list_images(filter=arguments.filter, page_size=page_size)
    some = [image for _, image in zip(range(arguments.limit), images, strict=False)]
    print_images(f"{len(some)} images", some, arguments.json)


def _run_upsert(client: SearchClient, arguments: argparse.Namespace) -> int:
    files = list(_image_files(arguments.paths))
    attributes = dict(arguments.attribute)

    def uploads() -> Iterator[Upload]:
        for image_id, path in files:
            yield Upload(image_id, path.read_bytes(), captions=arguments.caption, attributes=attributes)

    receipts, refused = [], 0
    answers = client.upsert_images(uploads())
    for upload, receipt in console.progress(answers, "upserting", len(files), quiet=arguments.json, unit="images"):
        if isinstance(receipt, ServiceError):
            refused += 1
            console.say(f"refused: {printable(upload.image_id)}: {receipt}")
        else:
            receipts.append({"image_id": upload.image_id, "version": receipt.version})
    if arguments.json:
        print(json.dumps(receipts, indent=2))
    return console.EXIT_FAILED if refused else console.EXIT_OK


def _image_files(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Ids and files: those below a folder are called as the data set `folder:` calls them, others by their names."""
    from data.pairs import ImageFile
    from data.sources.image_folder import ImageFolder

    for path in paths:
        if path.is_dir():
            folder = ImageFolder(path)
            yield from ((pair.image_id, pair.image.path) for pair in folder if isinstance(pair.image, ImageFile))
        else:
            yield path.name, path


def _run_delete(client: SearchClient, arguments: argparse.Namespace) -> None:
    versions = client.delete_images(arguments.image_ids)
    if arguments.json:
        print(json.dumps(dict(zip(arguments.image_ids, versions, strict=True)), indent=2))


def _run_status(client: SearchClient, arguments: argparse.Namespace) -> None:
    status = {**asdict(client.status()), "address": client.address}
    if arguments.json:
        print(json.dumps(status, indent=2, default=shown_moment))
        return
    attributes = status.pop("attributes")
    certificate = status.pop("certificate")
    if certificate:
        status["index recall@10"] = (
            f"{certificate['index_recall']:.4f} on {certificate['query_count']:,} {certificate['query_kind']}"
        )
    rows = [(name, printable(shown_moment(value) if isinstance(value, datetime) else str(value))) for name, value in
            status.items()]  # fmt: skip
    console.print_table("Index", ("what", "value"), rows)
    if attributes:
        summaries = [
            (printable(one["name"]), one["kind"], one["image_count"], printable(", ".join(one["frequent_values"])))
            for one in attributes
        ]
        console.print_table("Attributes", ("name", "kind", "images", "frequent values"), summaries)


def _run_snapshots(client: SearchClient, arguments: argparse.Namespace) -> None:
    snapshots = client.snapshots()
    if arguments.json:
        print(json.dumps([asdict(one) for one in snapshots], indent=2, default=shown_moment))
        return
    rows = [
        (
            "live" if one.live else "",
            one.name,
            one.image_count,
            shown_moment(one.create_time, "seconds"),
            printable(one.source),
        )
        for one in snapshots
    ]
    console.print_table("Snapshots", ("", "name", "images", "built", "source"), rows)


def _follow(client: SearchClient, arguments: argparse.Namespace, operation: Operation) -> int:
    """Wait for what was begun, unless told not to, and print how it ended."""
    if not arguments.no_wait:
        try:
            operation = client.wait(operation, report=lambda current: console.say(printable(current.progress)))
        except ServiceError as error:
            console.say(f"error: {operation.name}: {error}")
            return console.EXIT_FAILED
        except KeyboardInterrupt:
            console.say(f"{operation.name} goes on in the server; stop it by: cancel {operation.name}")
            raise
    if arguments.json:
        print(json.dumps(operation_json(operation), indent=2))
    else:
        print(printable(f"{operation.name}: {operation.result or 'done'}" if operation.done else operation.name))
    return console.EXIT_OK


def _run_operations(client: SearchClient, arguments: argparse.Namespace) -> None:
    operations = client.operations()
    if arguments.json:
        print(json.dumps([operation_json(one) for one in operations], indent=2))
        return
    rows = [
        (
            one.name,
            one.method,
            shown_moment(one.create_time, "seconds"),
            ("failed" if one.error else "done") if one.done else "running",
            printable(str(one.error or one.result or one.progress)),
        )
        for one in operations
    ]
    console.print_table("Operations", ("name", "method", "begun", "state", "told"), rows)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more; received {value}")
    return value


def _attribute(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is a number or a truth value in JSON is one, any other is a text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE; received {text!r}")
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    texts = isinstance(read, list) and all(isinstance(one, str) for one in read)
    return name, read if texts or isinstance(read, str | int | float) else value
