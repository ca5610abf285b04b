"""Opens a data set by the name a user gives on a command line; knows the table of formats and none of them itself."""

from __future__ import annotations

import importlib
from pathlib import Path

from data.errors import SourceError
from data.pairs import PairSource

# scheme → ("module:class", how many paths follow). A new format is one new file in this folder and one line here.
SCHEMES = {
    "folder": ("data.sources.image_folder:ImageFolder", 1),
    "csv": ("data.sources.csv_table:CsvTable", 1),
    "jsonl": ("data.sources.jsonl:Jsonl", 1),
    "coco": ("data.sources.coco:Coco", 2),
    "flickr": ("data.sources.flickr:Flickr", 2),
    "karpathy": ("data.sources.karpathy:Karpathy", 2),
    "imagefolder": ("data.sources.hf_image_folder:HfImageFolder", 1),
    "webdataset": ("data.sources.webdataset:WebDataset", 1),
    "parquet": ("data.sources.parquet:Parquet", 1),
    "tfds": ("data.sources.tfds:Tfds", 1),
    "openstax": ("data.sources.openstax:OpenStax", 1),
    "emoji": ("data.sources.openmoji:OpenMoji", 0),
    "prepared": ("data.sources.prepared:Prepared", 1),
}

# Formats whose path is a pattern or a name; they look for the files themselves.
PATTERNS = frozenset({"webdataset", "tfds"})

SOURCE_HELP = """\
the data set, one of:
  folder:DIR                    every image below DIR; captions from NAME.txt beside NAME.jpg, or from file names
  csv:FILE                      a CSV or TSV table with a column of image paths and one or more of captions
  jsonl:DIR                     DIR/captions.jsonl, DIR/images/ and, if wanted, DIR/splits.json
  coco:ANNOTATIONS,IMAGES_DIR   MS COCO captions_*.json
  flickr:TOKENS,IMAGES_DIR      Flickr8k.token.txt, or Flickr30k's results.csv
  karpathy:DATASET,IMAGES_DIR   Karpathy's dataset_*.json with its splits
  imagefolder:DIR               Hugging Face: images with metadata.jsonl or .csv, or in a folder for each class
  webdataset:PATTERN            tar shards: a directory, one file, or shard-{000000..000009}.tar
  parquet:FILE_OR_DIR           Parquet with a column of image bytes or paths and one or more of captions
  tfds:NAME[/CONFIG][@DATA_DIR] what TensorFlow Datasets prepared on disk
  openstax:DIR                  clones of OpenStax textbooks: figures with the alt text of their publisher
  emoji                         1,914 OpenMoji drawings with their English names
  prepared:DIR                  what `python -m data.prepare` wrote
or the path of a folder, a table or a prepared directory, recognised by what is in it"""


def open_source(spec: str) -> PairSource:
    """The data set that `spec` names; `SourceError` when there is no such format or path, or its content is malformed.

    Example: `open_source("folder:~/Pictures")`.
    """
    scheme, colon, argument = spec.partition(":")
    if scheme in SCHEMES and (colon or SCHEMES[scheme][1] == 0):
        return _open(scheme, argument)
    path = Path(spec).expanduser()
    if spec and path.exists():
        return _open(_recognise(path), spec)
    raise SourceError(SOURCE_HELP, repr(spec), "check the spelling of the scheme, or the path")


def _open(scheme: str, argument: str) -> PairSource:
    target, paths = SCHEMES[scheme]
    module, name = target.split(":")
    arguments = _paths(scheme, argument, paths)
    return getattr(importlib.import_module(module), name)(*arguments)


def _paths(scheme: str, argument: str, count: int) -> list[Path]:
    """The paths after the scheme, checked to exist; the first of two is a file, and may itself hold a comma."""
    if count == 0 and not argument:
        return []
    received = [argument] if argument else []
    if count == 2:
        commas = [position for position, character in enumerate(argument) if character == ","]
        cuts = [(argument[:position], argument[position + 1 :]) for position in commas]
        received = list(
            next((cut for cut in cuts if Path(cut[0]).expanduser().is_file()), cuts[0] if cuts else received)
        )
    if len(received) != count:
        usage = next(line.strip() for line in SOURCE_HELP.splitlines() if line.strip().startswith(scheme))
        raise SourceError(f"{count} paths: {usage}", f"{scheme}:{argument}", "see --help for the formats")
    paths = [Path(text).expanduser() for text in received]
    for path in paths:
        if not path.exists() and scheme not in PATTERNS:
            raise SourceError(f"an existing path after {scheme}:", f"nothing at {path}", "check the path")
    return paths


def _recognise(path: Path) -> str:
    """The scheme of a plain path, by what is there."""
    if path.is_dir():
        if (path / "manifest.json").is_file():
            return "prepared"
        return "jsonl" if (path / "captions.jsonl").is_file() else "folder"
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    raise SourceError("a directory or a table", f"the file {path}", f"name its format:\n{SOURCE_HELP}")
