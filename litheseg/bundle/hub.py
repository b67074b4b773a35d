"""Models and data sets on the Hugging Face hub, through its own client, imported only here and when it is asked for.

A repository holds a model file, an export, or both, each under the name that it always has. The client keeps what it
fetches in its own cache, and takes the token and the endpoint from where it always does (`hf auth login`, HF_TOKEN,
HF_ENDPOINT).

Usage:
    >>> hub_path("owner/name@v1.0")
    PosixPath('/home/me/.cache/huggingface/hub/models--owner--name/snapshots/1a2b3c/model.safetensors')
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from litheseg.bundle.exported import EXPORT_FILE, Artefact
from litheseg.downloads import away
from litheseg.errors import BundleError, DownloadError, LithesegError, MissingExtraError
from litheseg.progress import work

__all__ = ["MODEL_FILE", "hub_dataset", "hub_path", "push_files"]

MODEL_FILE = "model.safetensors"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def hub_path(name: str) -> Path:
    """Where a model of the hub lies on this machine; it is fetched first if it must. A process asks once.

    Args:
        name: OWNER/NAME or OWNER/NAME@REVISION: a branch, tag or commit.

    Returns:
        The model file, or the export's folder. Where both are there, it is the model file if PyTorch is installed.

    Raises:
        DownloadError: the hub is away, refuses, or has no such model.
        BundleError: what it has is no model.
        MissingExtraError: the client is not installed.
    """
    return _pulled(*_parsed(name))


def hub_dataset(name: str) -> Path:
    """The folder of a data set of the hub on this machine; it is fetched first if it must. Its programs stay there.

    Args:
        name: OWNER/NAME or OWNER/NAME@REVISION: a branch, tag or commit.

    Raises:
        DownloadError: the hub is away, refuses, or has no such data set.
        MissingExtraError: the client is not installed.
    """
    repository, revision = _parsed(name)
    api = _api()
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with _explained(repository, revision), work(f"fetching hf:{repository}"):
        offline = _away(api) is not None
        how = {"repo_type": "dataset", "revision": revision, "ignore_patterns": "*.py", "local_files_only": offline}
        return Path(api.snapshot_download(repository, **how))


def push_files(name: str, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Write files to a repository of the hub, in one commit; it is made if it is not there.

    Args:
        name: OWNER/NAME, or OWNER/NAME@BRANCH.
        files: paths in the repository and what is to be there.
        private: of a repository that is made.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        DownloadError: the hub is away, or refuses.
        MissingExtraError: the client is not installed.
    """
    repository, revision = _parsed(name)
    api = _api()
    from huggingface_hub import CommitOperationAdd

    with _explained(repository, revision):
        if (problem := _away(api)) is not None:
            raise problem
        api.create_repo(repository, private=private or None, exist_ok=True)
        contents = {path: content if isinstance(content, bytes) else str(content) for path, content in files.items()}
        additions = [CommitOperationAdd(path, content) for path, content in contents.items()]
        commit = api.create_commit(repository, additions, commit_message=message, revision=revision)
    return str(commit.commit_url)


def _parsed(name: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise DownloadError(f"'hf:{name}' is no repository of the hub; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return found[1], found[2]


@cache
def _pulled(repository: str, revision: str | None) -> Path:
    api = _api()
    with _explained(repository, revision):
        problem = _away(api)
        wanted = (MODEL_FILE, EXPORT_FILE)
        for file in wanted if importlib.util.find_spec("torch") else reversed(wanted):
            found = _fetched(api, repository, revision, file, problem)
            if found is not None and file == EXPORT_FILE:
                # All of it from the commit that the first file is of, whatever the branch becomes meanwhile.
                for path in _files_of(found):
                    if _fetched(api, repository, found.parent.name, path, problem) is None:
                        raise BundleError(f"hf:{repository} lacks {path}, which its {EXPORT_FILE} names; push it again")
                return found.parent
            if found is not None:
                return found
        if problem is not None:
            raise problem
    raise DownloadError(f"hf:{repository} holds no model of litheseg: neither {MODEL_FILE} nor {EXPORT_FILE}")


def _fetched(api: Any, repository: str, revision: str | None, file: str, problem: OSError | None) -> Path | None:
    """A file in the client's cache; None where the repository, or while the hub is away the cache, has none."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with work(f"fetching {file} of hf:{repository}"):
            return Path(api.hf_hub_download(repository, file, revision=revision, local_files_only=problem is not None))
    except LocalEntryNotFoundError:
        if problem is None:
            raise
        return None
    except EntryNotFoundError:
        return None


def _files_of(description: Path) -> list[str]:
    """The files that an export's description names."""
    try:
        artefacts = [Artefact.from_dict(entry) for entry in json.loads(description.read_bytes())["artefacts"]]
    except (BundleError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{description} is no description of an export ({error}); push it again") from error
    return sorted({path for artefact in artefacts for path in artefact.files})


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub", "the Hugging Face hub") from error
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="litheseg")


def _away(api: Any) -> OSError | None:
    """Why the hub does not answer, or is not to be asked; None if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return OSError("HF_HUB_OFFLINE is set")
    return away(api.endpoint)


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    """One error in place of those of the client and of its transport, which have no class in common."""
    try:
        yield
    except LithesegError:
        raise
    except Exception as error:
        raise DownloadError(f"hf:{repository}: {_reason(error, revision)}") from error


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision '{revision}' of it; look at its branches and tags"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no such repository, or it is not for everybody: check its name, or {_LOG_IN}"
    if status in (401, 403):
        return f"the hub refuses ({_first_line(error)}); your token is wrong or may not do this: {_LOG_IN}"
    if isinstance(error, OSError) and not isinstance(error, (errors.HfHubHTTPError, errors.EntryNotFoundError)):
        return f"the hub cannot be reached ({_first_line(error)}); go online, or set HF_ENDPOINT to a mirror"
    return f"{_first_line(error)}; try again later"


def _first_line(error: Exception) -> str:
    reason = str(getattr(error, "reason", None) or error).strip() or type(error).__name__
    return reason.splitlines()[0].rstrip(".")
