"""The calls of a Batch API, each tried again until it works: a run waits for a day and outlives a lost network."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, TypeVar

from evals.batch_rows import PATH, read_row
from evals.chat import ChatError, Reply
from evals.endpoint import NO_KEY, OPENAI
from evals.endpoint_errors import Trouble, one_line, read_connection, read_status

if TYPE_CHECKING:
    import openai
    from openai.types import Batch, FileObject

Result = TypeVar("Result")

CONNECT = 20.0  # seconds to wait for a connection
LONGEST_PAUSE = 60.0  # seconds between two attempts, where the endpoint does not say
ATTEMPTS = 5  # at an endpoint that has not answered once
SILENCE = 120.0  # seconds in which an endpoint must say or take the next piece of anything
KEPT = 30 * 86_400.0  # seconds for which OpenAI keeps the files of a batch


class Missing(Exception):
    """The endpoint has no such batch, file or list (HTTP 404)."""


class BatchCalls:
    """The Batch API at ``base_url`` (None: OpenAI's own) for one chat model; used as a context manager.

    A call that fails for a passing reason is made again, with pauses from ``pause`` seconds doubling, until nothing
    has worked for ``patience`` seconds. Raises ChatError when that is over and when no call can succeed.
    """

    def __init__(
        self, *, base_url: str | None, model: str, key: str, key_name: str, patience: float, pause: float
    ) -> None:
        self.model, self.key, self.key_name = model, key, key_name
        self.patience, self.pause = patience, pause
        self.place = place_of(base_url)
        self._answered = False
        self._client = _client(base_url, key)

    def __enter__(self) -> BatchCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def submit(self, rows: IO[bytes], *, metadata: Mapping[str, str]) -> Batch:
        """Upload the rows of a JSONL file and make a batch of them: one only, even when the answer to that is lost."""
        again = False

        def upload() -> FileObject:
            rows.seek(0)
            return self._client.files.create(file=("requests.jsonl", rows, "application/jsonl"), purpose="batch")

        def create() -> Batch:
            nonlocal again
            if again and (made := self._made_of(file)):  # an answer that got lost is no reason to pay twice
                return made
            again = True
            return self._client.batches.create(
                completion_window="24h", endpoint=PATH, input_file_id=file, metadata=dict(metadata)
            )

        try:
            file = self._insist("upload a batch", upload).id
            return self._insist("create a batch", create)
        except Missing as missing:
            message = f"there is no Batch API at {self.place} ({missing}): correct base_url, or ask without batches"
            raise ChatError(message) from None

    def retrieve(self, batch: str) -> Batch:
        """Return how a batch stands; raises Missing."""
        return self._insist(f"look at batch {batch}", lambda: self._client.batches.retrieve(batch))

    def recent(self) -> Iterator[Batch]:
        """Yield the endpoint's batches, newest first, whose files it still keeps; none where it lists none."""
        try:
            page = self._insist("list the batches", lambda: self._client.batches.list(limit=100))
            while True:
                for batch in page.data:
                    if batch.created_at and batch.created_at < time.time() - KEPT:
                        return
                    yield batch
                if not page.has_next_page():
                    return
                page = self._insist("list the batches", page.get_next_page)
        except Missing:
            return

    def lines(self, file: str) -> Generator[bytes, None, None]:
        """Yield the lines of a file, once all of it is here; memory stays flat. Raises Missing."""
        with tempfile.TemporaryFile() as spool:
            self._insist(f"fetch file {file}", lambda: self._download(file, spool))
            spool.seek(0)
            yield from spool  # by b"\n" alone: a reply may hold other ends of lines, which JSON need not escape

    def outcomes(self, batch: Batch, *, sent: Iterable[str]) -> Iterator[tuple[str, Reply | Trouble]]:
        """Yield (custom id, what came of it) of a batch that has ended; nothing of files that are gone.

        ``sent`` are the fields of the requests.
        """
        for file in (batch.output_file_id, batch.error_file_id):
            try:
                for line in self.lines(file) if file else ():
                    if found := read_row(line, sent=sent):
                        yield found
            except Missing:
                continue

    def clean(self, message: str) -> str:
        """Return the message as one short line without the key."""
        return one_line(message if self.key == NO_KEY else message.replace(self.key, "[key]"))

    def fatal(self, trouble: Trouble, *, doing: str) -> ChatError:
        """Return the error that says what to do about a trouble which no request can survive."""
        advice = (trouble.fatal or "").format(env=self.key_name, model=self.model)
        advice = f"{advice} " if advice else ""
        return ChatError(
            f"cannot {doing} for model {self.model!r} at {self.place}: {advice}({self.clean(trouble.message)})"
        )

    def _download(self, file: str, spool: IO[bytes]) -> None:
        spool.seek(0)
        spool.truncate()
        with self._client.files.with_streaming_response.content(file) as response:
            for piece in response.iter_bytes(1 << 20):
                spool.write(piece)

    def _made_of(self, file: str) -> Batch | None:
        import openai

        try:
            newest = self._client.batches.list(limit=100).data
        except openai.NotFoundError:
            return None
        return next((batch for batch in newest if batch.input_file_id == file), None)

    def _insist(self, doing: str, call: Callable[[], Result]) -> Result:
        began, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            try:
                result = call()
                if isinstance(result, str):  # what the package makes of a page that is not JSON
                    raise ValueError(repr(result[:200]))
                self._answered = True
                return result
            except Exception as error:
                trouble = self._read(error, doing=doing)
            pause = min(self.pause * 2.0 ** min(attempt - 1, 30), LONGEST_PAUSE)
            wait = pause if trouble.wait is None else trouble.wait
            given_up = time.monotonic() - began + wait > self.patience
            if given_up or (not self._answered and attempt >= ATTEMPTS):
                raise ChatError(
                    f"could not {doing} for model {self.model!r} at {self.place} (attempt {attempt}, "
                    f"{time.monotonic() - began:.1f} s): {self.clean(trouble.message)}. What was handed in goes on at "
                    f"the endpoint: run again to collect it, or correct base_url if nothing ever answered"
                )
            time.sleep(wait)

    def _read(self, error: Exception, *, doing: str) -> Trouble:
        """Return a passing trouble; raises the error itself, Missing, or ChatError where it will not pass."""
        import openai

        if isinstance(error, openai.APIStatusError):
            self._answered = True
            status, text = error.status_code, error.response.text
            trouble = read_status(status, text, headers=error.response.headers)
            if status == 404 and "model" not in text:
                raise Missing(self.clean(trouble.message)) from None
            if trouble.fatal is not None or not trouble.retry:
                raise self.fatal(trouble, doing=doing) from None  # the request that `error` holds carries the key
            return trouble
        # By name: what a broken download raises, of httpx or, since openai 3, httpx2, is not wrapped by the package.
        transport = any(each.__name__ == "HTTPError" for each in type(error).__mro__)
        if transport or isinstance(error, openai.APIConnectionError):
            return read_connection(error)
        # AttributeError: what the package runs into when a list of batches is not JSON.
        if isinstance(error, ValueError | AttributeError | openai.APIResponseValidationError):
            return Trouble("bad_reply", f"no answer of a Batch API: {error}", retry=True)
        raise error


def place_of(base_url: str | None) -> str:
    """Return the endpoint's base URL as the ledger names it: without user, password, query or last slash."""
    scheme, _, rest = (base_url or OPENAI).partition("?")[0].rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _client(base_url: str | None, key: str) -> openai.OpenAI:
    import openai

    timeout = openai.Timeout(SILENCE, connect=CONNECT)
    client = openai.OpenAI(api_key=key, base_url=base_url or OPENAI, max_retries=0, timeout=timeout)
    if base_url is not None:
        client.organization = client.project = None  # OpenAI's, from the environment: nobody else's business
    return client
