"""Models that Kaggle publishes, by `kaggle://owner/model/framework/variation/version`; knows no framework.

`kagglehub` keeps them under `KAGGLEHUB_CACHE`; with a version in the handle, one that is kept needs no connection.
"""

from __future__ import annotations

from pathlib import Path

KAGGLE = "kaggle://"


def kaggle_directory(handle: str) -> Path:
    """Where a model's files are on this machine, downloaded if they have to be; kagglehub's errors."""
    import kagglehub

    return Path(kagglehub.model_download(handle.removeprefix(KAGGLE)))


def how_to_get_from_kaggle(handle: str) -> str:
    """What to do on a machine without a connection."""
    download = f"import kagglehub; print(kagglehub.model_download('{handle.removeprefix(KAGGLE)}'))"
    return (
        f'on a machine with a connection run python -c "{download}", copy the directory it prints to this machine, and '
        f"put its path in the place of {handle}"
    )
