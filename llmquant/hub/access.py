"""What a hub lets one do, and its refusals as errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmquant.compat.border import first_line
from llmquant.engine.output.folder import PROVENANCE
from llmquant.errors import OutputError
from llmquant.hub.files import is_legal
from llmquant.words import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LOG_IN = "the hub wants to know who you are: `hf auth login`, or set HF_TOKEN"
_CHANGED = "somebody else changed it in the meantime; look at it, and push again"
_PATIENCE = 10  # seconds
_ADVICE = {
    401: _LOG_IN,
    403: "this token may not write there; it needs the role 'write'",
    404: "there is no such repository or branch, or this token may not see it",
    409: _CHANGED,
    412: _CHANGED,
}


def check_access(repo: str, *, token: str | None = None, overwrite: bool = False) -> None:
    """Refuse, before hours of work, what a push to `repo` would be refused for after them. Changes nothing.

    Looks at the name, the token with what it may do, and what the repository holds already. Not everything can be
    known: what a token of the kind "fine-grained" may write shows only when it does. `overwrite` allows that somebody
    else put something there.

    Raises:
        OutputError: if the push would fail, or the hub cannot be reached.
    """
    import huggingface_hub

    check_repo(repo)
    api = huggingface_hub.HfApi(token=token, library_name="llmquant")
    with explained(repo):
        who = api.whoami()
        role = (who.get("auth") or {}).get("accessToken", {}).get("role")
        names = [who["name"], *(each["name"] for each in who.get("orgs") or ())]
        there = files_there(api, repo, None)
    if role == "read":
        raise OutputError(f"{repo}: this token of {who['name']} may only read; {_ADVICE[403]}")
    if role == "write" and repo.partition("/")[0] not in names:
        raise OutputError(f"{repo}: this token is of {who['name']}, who may write to {listed(names)}; give one of them")
    if not overwrite:
        check_foreign(there, repo, f"publish the finished folder with llmquant push OUT {repo} --overwrite")


def check_repo(repo: str) -> None:
    """Refuse what is no USER/NAME.

    Raises:
        OutputError: says what is wrong with it.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OutputError(f"{repo!r} is no name of a repository: {first_line(error)}") from None
    if repo.count("/") != 1:
        raise OutputError(f"{repo!r} is no name of a repository; give USER/NAME")


def files_there(api: HfApi, repo: str, revision: str | None) -> list[str]:
    """The names of a repository's files; none if there is no such repository.

    By one request: what lists files page by page tries five times for half a minute where there is no network.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(repo, revision=revision, timeout=_PATIENCE).siblings
        return [each.rfilename for each in found or ()]
    except RepositoryNotFoundError:
        return []


def check_foreign(there: Sequence[str], repo: str, advice: str) -> None:
    """Refuse a repository that holds what somebody else put there; `advice` is the other thing one can do.

    Raises:
        OutputError: naming some of the files.
    """
    foreign = [name for name in there if name != ".gitattributes" and not is_legal(name)]
    if PROVENANCE not in there and foreign:
        raise OutputError(
            f"{repo} holds {listed(foreign[:5])}, which llmquant did not write; give another name, or {advice}"
        )


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """What the hub answers, as an error that says what to do."""
    network = network_errors()
    try:
        yield
    except OutputError:
        raise
    except RuntimeError as error:  # of the threads that upload
        if not isinstance(error.__cause__, network):
            raise
        raise _refusal(repo, error.__cause__) from error
    except network as error:
        raise _refusal(repo, error) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{repo}: what answers there does not speak as a hub does ({error!r}); check HF_ENDPOINT"
        ) from error


def network_errors() -> tuple[type[Exception], ...]:
    """OSError, and the error of the http library that huggingface_hub uses, which has changed before."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


def _refusal(repo: str, error: Exception) -> OutputError:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    again = "push again: files that arrived are not sent twice"
    if isinstance(error, LocalTokenNotFoundError):
        advice = _LOG_IN
    elif isinstance(error, HfHubHTTPError):
        advice = _ADVICE.get(error.response.status_code, again)
    else:  # a connection that broke, at whichever layer
        advice = f"{again}; if it goes on failing, HF_HUB_DISABLE_XET=1 uploads without Xet"
    return OutputError(f"{repo}: {first_line(error)}\n{advice}")
