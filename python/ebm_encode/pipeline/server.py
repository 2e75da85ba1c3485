"""The inference server beside an iteration: stopped or asked for its memory, and always back.

Before the server is touched, a file says so; it goes when the server answers again with the right
model. A run that finds the file brings the server back before anything else.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ebm_encode.errors import ArgumentError, ServerError, UnsafeServerError
from ebm_encode.pipeline.asking import Answer, ask, read_token
from ebm_encode.pipeline.config import ServerTable, placed
from ebm_encode.pipeline.intent import INTENT, STARTED, STOPPING, Intent, Start
from ebm_encode.pipeline.processes import Started, detach, run_to_end, start
from ebm_encode.pipeline.records import read_known, sync_path, write_json
from ebm_encode.pipeline.right_model import RightModel
from ebm_encode.servers.guard.guard import ServerGuard
from ebm_encode.servers.guard.memory import free_gpu_memory

log = logging.getLogger(__name__)

LOG = "server.log"
_POLL_SECONDS = 0.3
_STARTS = 2
"""How often a server is started before it is given up for this run."""


class InferenceServer:
    """One server.

    Args:
        table: How it is reached, started and stopped.
        directory: Working directory of its commands; its folder begins there too.
        model_is_made: Tells whether a model is there, as the step left it that makes it.
        made_at: Tells when a step here made a model, seconds since 1970; `None` if none did.
        free_memory: Free bytes of the GPUs; by default as the driver has it.
    """

    def __init__(
        self,
        table: ServerTable,
        directory: Path,
        *,
        model_is_made: Callable[[str], bool],
        made_at: Callable[[str], float | None],
        free_memory: Callable[[], int] = free_gpu_memory,
    ) -> None:
        self._table = table
        self.folder = placed(directory, table.folder)
        self._directory = directory
        self.url = table.url
        self._right = RightModel(
            table, self.folder, directory, model_is_made=model_is_made, made_at=made_at
        )
        self._free_memory = free_memory
        self._token = read_token(table.token_file, directory)
        self._guard: ServerGuard | None = None

    @property
    def touched(self) -> bool:
        """Whether it was touched, by this run or one before, and is not known to be back."""
        return (self.folder / INTENT).exists()

    def require_own_folder(self) -> None:
        """Refuses a folder in which another server is written down that runs.

        Raises:
            ArgumentError: If one was started there for another address.
        """
        start = read_known(self.folder / STARTED, Start)
        former = "" if start is None else start.url
        if former and former.rstrip("/") != self.url.rstrip("/") and self._started() is not None:
            raise ArgumentError(
                f"{self.folder}: the server that was started here for {former} runs, and [server]"
                f" `url` is {self.url}\nhint: give each server its own [server] `folder`, or end"
                " that one first"
            )

    def look(self) -> Answer:
        """What answers now."""
        table = self._table
        return ask(table.url, self._token, table.health, self._directory)

    def free(self) -> None:
        """Has it give its GPU memory back.

        Raises:
            ServerError: If it does not.
            OSError: If it cannot be written down first; then it is not touched.
        """
        self._finish_stopping()
        intent = Intent.read(self.folder)
        if self._table.free == "stop":
            if intent is None:
                self._write(Intent("stop", self._right.names_before(self._settled())))
            self._stop()
            return
        if self._guard is not None:
            return
        self._resume(intent)
        answer = self._settled()
        if answer.state == "down":
            log.info("%s: does not run, and so has no memory to give back", self._table.url)
            return
        before = self._free_memory()
        self._write(Intent("release", self._right.names_before(answer), before))
        self._guard = self._new_guard()
        self._guard.release()

    def _settled(self) -> Answer:
        """What it says once it says which model it has, or is down.

        Raises:
            ServerError: If something is there that does not say, and was not started here.
        """
        end = time.monotonic() + self._table.stop_seconds
        while (answer := self.look()).state == "starting":
            if self._started() is not None:
                break  # which model it has is known
            if time.monotonic() > end:
                raise ServerError(
                    f"{self._table.url}: something answers and does not say which model it has"
                    f" ({answer})\nhint: it was left as it is; is `url` right?"
                )
            time.sleep(_POLL_SECONDS)
        if answer.state == "down":  # once may be a fault of the question
            time.sleep(_POLL_SECONDS)
            answer = self.look()
        return answer

    def restore(self) -> str:
        """Has it answer with the right model, whatever state it is in.

        Returns:
            What was done, to be read.

        Raises:
            ModelNotMadeError: If its model is being replaced.
            ServerError: If it does not come back. It is then still written down, and the next run
                tries again.
        """
        self._finish_stopping()
        intent = Intent.read(self.folder)
        self._resume(intent)
        expected = self._right.expected(intent, self.look())
        answer, done = self.look(), "was running"
        if answer.state == "up" and intent is not None:
            time.sleep(self._table.settle_seconds)  # it may be about to end
            answer = self.look()
        if answer.state == "up" and not self._right.is_right(answer, expected):
            log.warning("%s %s, expected %s", self._table.url, answer, expected)
            self._require_start(f"{self._table.url} {answer}, expected {expected}")
            self._touch(expected)
            self._stop()
            answer = self.look()
        if answer.state != "up":
            if self._table.start is None or (expected is None and self._needs_model()):
                return self._not_started(intent, answer)
            self._touch(expected)
            self._start(expected, answer)
            done = "started"
        self._forget()
        return f"{done}, {self.look()}"

    def _not_started(self, intent: Intent | None, answer: Answer) -> str:
        if intent is None or not intent.names:
            self._forget()
            return "does not run, as before: no model is known that it should have"
        raise ServerError(
            f"{self._table.url}: does not answer any more ({answer}), and there is no [server]"
            " `start`\nhint: start it"
        )

    def _resume(self, intent: Intent | None) -> None:
        """Has it take its memory again, if that is what it gave."""
        if intent is None or intent.free != "release" or self.look().state == "down":
            return
        try:
            if self._guard is not None:
                self._guard.resume()
            else:
                self._new_guard().take_over(intent.free_before)
        except UnsafeServerError as error:  # it was started since, without the option for it
            log.warning("%s\nso it has given nothing back", error)
        except ServerError as error:
            if self._table.start is None:
                raise
            log.warning("%s\nit is started again", error)
            self._stop()
        finally:
            self._guard = None

    def _new_guard(self) -> ServerGuard:
        return ServerGuard(
            self._table.url,
            token=self._token,
            patience=self._table.stop_seconds,
            free_memory=self._free_memory,
        )

    def _needs_model(self) -> bool:
        return any("{model}" in word for word in self._table.start or [])

    def _require_start(self, why: str) -> None:
        if self._table.start is None:
            raise ServerError(f"{why}\nhint: start it with that model, or give [server] `start`")

    def _started(self) -> Started | None:
        """The process that was started here, if something of it lives."""
        started = Started.read(self.folder / STARTED)
        return started if started is not None and started.processes() else None

    def _finish_stopping(self) -> None:
        """Finishes a stop that was interrupted: what is started now would be stopped by it.

        The server may still answer, though it was told to end.
        """
        path = self.folder / STOPPING
        if not path.exists():
            return
        started = Started.read(path)
        if started is not None:
            started.end(grace=self._table.stop_seconds)
        self._wait_until_down(self._table.stop_seconds)
        path.unlink(missing_ok=True)

    def _is_down(self) -> bool:
        """Whether nothing answers, twice: a user's `health` may fail once."""
        if self.look().state != "down":
            return False
        time.sleep(_POLL_SECONDS)
        return self.look().state == "down"

    def _stop(self) -> None:
        table, ours = self._table, self._started()
        seen = ours is not None or not self._is_down()
        if table.stop is not None:  # also where nothing answers yet: it may be loading
            self._run_stop(seen=seen)
            self._wait_until_down(table.stop_seconds)
        if ours is not None:
            write_json(self.folder / STOPPING, asdict(ours))
            ours.end(grace=table.stop_seconds if table.stop is None else 10.0)
        answer = self._wait_until_down(table.stop_seconds if ours is not None else 0.0)
        (self.folder / STOPPING).unlink(missing_ok=True)
        if answer.state == "down":
            return
        hint = "is its `stop` command right?" if table.stop else "give [server] `stop`"
        what = "did not stop" if table.stop or ours else "runs, and was not started here"
        raise ServerError(f"{table.url}: {what} ({answer})\nhint: {hint}")

    def require_up(self, step: str) -> None:
        """Refuses a step that needs the server where there is none.

        Raises:
            ServerError: If it does not answer.
        """
        answer = self.look()
        if answer.state != "up":
            raise ServerError(
                f"{self._table.url}: step {step} needs it, and it does not run ({answer})\nhint:"
                " start it with a model; [server] `model` is not made yet"
            )

    def _run_stop(self, *, seen: bool) -> None:
        """Runs the user's `stop`; where no server was seen, it may well fail."""
        assert self._table.stop is not None
        with self._log() as file:
            code = run_to_end(
                self._table.stop,
                name="[server] stop",
                written=self.folder / STOPPING,
                directory=self._directory,
                seconds=self._table.stop_seconds,
                output=file,
            )
        if code is None:
            log.warning("[server] stop does not end in %g s", self._table.stop_seconds)
        elif code and seen:
            log.warning("[server] stop exits with %d", code)

    def _wait_until_down(self, seconds: float) -> Answer:
        end = time.monotonic() + seconds
        while (answer := self.look()).state != "down" and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return answer

    def _start(self, model: str | None, answer: Answer) -> None:
        """Starts it, or waits for one that is being started."""
        failures: list[str] = []
        ours = self._started()
        if answer.state == "starting" or ours is not None:
            failures += self._await(model, None)
            if not failures:
                return
            self._stop()
        for _ in range(_STARTS):
            log.info("starting the server%s", f" with {model}" if model else "")
            process = self._spawn(model)
            failures = self._await(model, process)
            if not failures:
                detach(process)
                return
            log.warning("%s: %s", self._table.url, failures[-1])
            self._stop()  # a second one beside it would fail, or be no other one
            process.wait()
        what = f"{self._table.url}: did not come back{f' with {model}' if model else ''}"
        raise ServerError(
            f"{what}: {failures[-1]}\nhint: see {self.folder / LOG};"
            " `ebm-encode iterate CONFIG --recover` tries again"
        )

    def _spawn(self, model: str | None) -> Any:
        given = str(placed(self._directory, model)) if model and model[0] == "~" else model or ""
        command = [word.replace("{model}", given) for word in self._table.start or []]
        extra: dict[str, Any] = {"url": self.url}
        if model is not None:
            extra |= {"model": model, "digest": self._right.digest(model)}
        with self._log() as file:
            _, process = start(
                command,
                name="the server",
                outlives=True,
                written=self.folder / STARTED,
                extra=extra,
                directory=self._directory,
                environment={},
                output=file,
                errors=file,
            )
        return process

    def _await(self, model: str | None, process: Any) -> list[str]:
        """Waits until it answers with a model, and still does after some time; or says why not."""
        end = time.monotonic() + self._table.start_seconds
        while True:
            answer = self.look()
            if answer.state == "up":
                if not self._right.is_right(answer, model):
                    return [f"{answer}, expected {model}"]
                time.sleep(self._table.settle_seconds)
                again = self.look()
                if again.state == "up" and self._right.is_right(again, model):
                    return []
                return [f"answered, and {self._table.settle_seconds:g} s later no more ({again})"]
            code = None if process is None else process.poll()
            if code:
                return [f"its command exits with {code}"]
            if time.monotonic() > end:
                return [f"does not answer within {self._table.start_seconds:g} s ({answer})"]
            time.sleep(_POLL_SECONDS)

    def _log(self) -> Any:
        path = self.folder / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")

    def _touch(self, expected: str | None) -> None:
        if not self.touched:
            self._write(Intent("stop", () if expected is None else (expected,)))

    def _write(self, intent: Intent) -> None:
        write_json(self.folder / INTENT, asdict(intent))

    def _forget(self) -> None:
        path = self.folder / INTENT
        if path.exists():
            path.unlink()
            sync_path(self.folder)
