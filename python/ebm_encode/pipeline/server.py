"""The inference server beside an iteration: stopped or asked for its memory, and always back.

Before the server is touched, a file says so; it goes when the server answers again with the right
model. A run that finds the file brings the server back before anything else.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ebm_encode.errors import ServerError
from ebm_encode.pipeline.asking import Answer, ask, is_model, listens_since, read_token
from ebm_encode.pipeline.config import ServerTable, placed
from ebm_encode.pipeline.contents import digest_path
from ebm_encode.pipeline.intent import INTENT, STARTED, STOPPING, Intent, Start
from ebm_encode.pipeline.processes import Started, detach, run_to_end, start
from ebm_encode.pipeline.records import read_known, sync_folder, write_json
from ebm_encode.servers.guard.guard import ServerGuard
from ebm_encode.servers.guard.memory import free_gpu_memory

log = logging.getLogger(__name__)

LOG = "server.log"
_POLL_SECONDS = 0.3
_STARTS = 2
"""How often a server is started before it is given up for this run."""


class ModelNotMadeError(ServerError):
    """The model that a server had is being replaced; a step must make the new one first."""


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
        self._model_is_made = model_is_made
        self._made_at = made_at
        self._free_memory = free_memory
        self._token = read_token(table.token_file, directory)
        self._guard: ServerGuard | None = None

    @property
    def touched(self) -> bool:
        """Whether it was touched, by this run or one before, and is not known to be back."""
        return (self.folder / INTENT).exists()

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
        self._end_stop_command()
        intent = Intent.read(self.folder)
        if self._table.free == "stop":
            if intent is None:
                self._write(Intent("stop", self._names_before(self._settled())))
            self._stop()
            return
        if self._guard is not None:
            return
        self._resume(intent)
        before = self._free_memory()
        self._write(Intent("release", self._names_before(self._settled()), before))
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
        self._end_stop_command()
        intent = Intent.read(self.folder)
        self._resume(intent)
        expected = self._expected(intent)
        answer, done = self.look(), "was running"
        if answer.state == "up" and not self._is_right(answer, expected):
            log.warning("%s %s, expected %s", self._table.url, answer, expected)
            self._require_start(f"{self._table.url} {answer}, expected {expected}")
            self._stop()
            answer = self.look()
        if answer.state == "up" and intent is not None:
            time.sleep(self._table.settle_seconds)  # it may be about to end
            answer = self.look()
        if answer.state != "up":
            if self._table.start is None or (expected is None and self._needs_model()):
                return self._not_started(intent, answer)
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

    def _expected(self, intent: Intent | None) -> str | None:
        """The model that it should have: the new one once that is made, else the one before."""
        if self._table.model is not None and self._model_is_made(self._table.model):
            return self._table.model
        names = intent.names if intent is not None else ()
        names = names or self._names_before(self.look())
        if not names:
            return None
        if self._table.model is not None and is_model(names, self._table.model, self._directory):
            raise ModelNotMadeError(
                f"{self._table.url}: {self._table.model} is not as the step that makes it left it,"
                " so no server is started with it\nhint: run that step again; the server comes"
                " back after it"
            )
        paths = [name for name in names if placed(self._directory, name).exists()]
        return (paths or [*names])[0]

    def _names_before(self, answer: Answer) -> tuple[str, ...]:
        """What it calls its model, or else which one it was started with."""
        start = read_known(self.folder / STARTED, Start)
        return answer.names or ((start.model,) if start is not None and start.model else ())

    def _is_right(self, answer: Answer, expected: str | None) -> bool:
        if expected is None:
            return True
        if not self._is_called(answer.names, expected):
            return False
        # Its folder's contents may have been replaced since it was started.
        start = read_known(self.folder / STARTED, Start) or Start()
        is_same = is_model([start.model], expected, self._directory) if start.model else False
        if is_same and start.digest == self._digest(expected):
            return True
        if start.model and self._started() is not None:
            return False
        since = self._made_at(expected)
        return since is None or listens_since(self._table.url) >= since

    def _is_called(self, names: Sequence[str], expected: str) -> bool:
        """Whether one of its names is that of the model, and none the path of another one."""
        is_new = is_model(names, expected, self._directory)
        if expected != self._table.model or self._table.served_name is None:
            return is_new
        paths = [name for name in names if placed(self._directory, name).exists()]
        return self._table.served_name in names and (is_new or not paths)

    def _digest(self, model: str) -> str:
        path = placed(self._directory, model)
        return digest_path(path) if path.exists() else ""

    def _needs_model(self) -> bool:
        return any("{model}" in word for word in self._table.start or [])

    def _require_start(self, why: str) -> None:
        if self._table.start is None:
            raise ServerError(f"{why}\nhint: start it with that model, or give [server] `start`")

    def _started(self) -> Started | None:
        """The process that was started here, if something of it lives."""
        started = Started.read(self.folder / STARTED)
        return started if started is not None and started.processes() else None

    def _end_stop_command(self) -> None:
        """Ends a `stop` of a run that was killed: it would stop what is started now."""
        started = Started.read(self.folder / STOPPING)
        if started is not None:
            started.end()
        (self.folder / STOPPING).unlink(missing_ok=True)

    def _is_down(self) -> bool:
        """Whether nothing answers, twice: a user's `health` may fail once."""
        if self.look().state != "down":
            return False
        time.sleep(_POLL_SECONDS)
        return self.look().state == "down"

    def _stop(self) -> None:
        table, ours = self._table, self._started()
        if ours is None and self._is_down():
            return
        if table.stop is not None:
            self._run_stop()
            self._wait_until_down(table.stop_seconds)
        if ours is not None:
            ours.end(grace=table.stop_seconds if table.stop is None else 10.0)
        answer = self._wait_until_down(table.stop_seconds if ours is not None else 0.0)
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

    def _run_stop(self) -> None:
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
        elif code:
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
            started = Started.read(self.folder / STARTED)
            if started is not None:
                started.end()
            if process.poll() is None:
                process.wait()
        what = f"{self._table.url}: did not come back{f' with {model}' if model else ''}"
        raise ServerError(
            f"{what}: {failures[-1]}\nhint: see {self.folder / LOG};"
            " `ebm-encode iterate CONFIG --recover` tries again"
        )

    def _spawn(self, model: str | None) -> Any:
        given = str(placed(self._directory, model)) if model and model[0] == "~" else model or ""
        command = [word.replace("{model}", given) for word in self._table.start or []]
        extra: Mapping[str, Any] = {}
        if model is not None:
            extra = {"model": model, "digest": self._digest(model)}
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
                if not self._is_right(answer, model):
                    return [f"{answer}, expected {model}"]
                time.sleep(self._table.settle_seconds)
                again = self.look()
                if again.state == "up" and self._is_right(again, model):
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

    def _write(self, intent: Intent) -> None:
        write_json(self.folder / INTENT, asdict(intent))

    def _forget(self) -> None:
        path = self.folder / INTENT
        if path.exists():
            path.unlink()
            sync_folder(self.folder)
