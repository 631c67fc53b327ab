"""A folder → a data set of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fuseval.config import ConfigError

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


class PublishError(Exception):
    """The Hub did not take what was to be published; the message says why."""


def check_repo(repo: str) -> None:
    """Raise ConfigError for a name that no data set of the Hub can have."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(f"{repo!r} names no data set of the Hub: give --publish ORGANISATION/NAME")


def upload(folder: Path, repo: str, files: list[Path], *, token_env: str, environ: Mapping[str, str]) -> str:
    """Upload these files of ``folder`` to the data set ``repo``, made if need be, and return its address.

    A data set that is new is private, until its owner opens it. The token is read from the environment variable
    ``token_env``, and HF_ENDPOINT names another server than the Hub's own. Raises ConfigError without a token,
    PublishError where the server refuses or cannot be reached.
    """
    check_repo(repo)
    if not (token := environ.get(token_env)):
        raise ConfigError(f"publishing needs a token of the Hub in the environment variable {token_env}")
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    api = HfApi(endpoint=environ.get("HF_ENDPOINT") or None, token=token, library_name="fuseval")
    added = [CommitOperationAdd(str(file.relative_to(folder)), file) for file in files]
    try:
        made = api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.create_commit(repo, added, commit_message="Leaderboard, written by fuseval", repo_type="dataset")
    except (errors.HfHubHTTPError, errors.HTTPError, ValueError) as error:  # type: ignore[attr-defined]
        why = str(error).replace(token, "***")
        raise PublishError(
            f"{api.endpoint} did not take {repo} ({why}): what was to go there is in {folder}"
        ) from error
    return str(made)
