"""The steps of a session, the most valuable ones first."""

import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import corpus
import exactness
import latency
import machine
import models
import profiling
from ours import Ours
from peers import PEERS, Peers
from session import Session
from speed import Setting, agreement, free, in_bulk

from ebm_encode.prompts.templates import Template

if TYPE_CHECKING:
    import numpy as np

CORPUS = 217_499
"""States of the corpus whose time is estimated."""
CHECKED = 32
"""States of which every contender's embeddings are compared with the reference."""


class Steps:
    """The steps, and what they hand on to later ones.

    Args:
        session: Where they run.
        options: Those of the command line.
        root: Folder for models.
    """

    def __init__(self, session: Session, options: Any, root: Path) -> None:
        self._session, self._options, self._root = session, options, root
        self._template = Template.load(options.template)
        self._real: list[str] = []
        self._states: list[str] = []
        self._small: dict[str, Path] = {}
        self._setting: Setting | None = None
        self._ours: Ours | None = None
        self._reference: np.ndarray | None = None

    def run(self) -> None:
        """Runs all steps, without those that need what another did not give."""
        options, session = self._options, self._session
        session.run("settings", self._settings, section="settings", limit=90)
        session.run("machine", self._machine, section="machine", limit=60)
        first, *others = options.architectures if "exactness" in options.parts else [None]
        self._exact([first], options.dtypes)
        small, large = options.counts
        if "speed" in options.parts:
            session.run("make the model", self._model, section="model", limit=150)
        if self._setting is not None:
            self._chosen(small)
        self._requests()
        self._peers(small, limit=25)
        self._exact(others, options.dtypes[:1])
        self._profile()
        self._compiled(small)
        self._many(large)
        self._exact(others, options.dtypes[1:])
        self._forced(small)
        self._peers(large, limit=25)

    def _settings(self, _: float) -> dict[str, Any]:
        """What was asked for, and the states."""
        options = self._options
        files = options.states or list(corpus.RECORDED)
        self._real = corpus.real_states(files)
        most = max(options.counts)
        self._states = corpus.sample(corpus.enough(self._real, most), most)
        plain = (str, int, float, list)
        given = {k: v for k, v in vars(options).items() if isinstance(v, plain) and k != "states"}
        return {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            **given,
            "states_from": [file.name for file in files],
            "real_states": len(self._real),
            "not_real_states": max(0, most - len(self._real)),
        }

    def _machine(self, _: float) -> dict[str, Any]:
        return machine.facts(self._options.device, self._options.dtype)

    def _exact(self, architectures: list[str], dtypes: list[str]) -> None:
        options = self._options
        some = corpus.blocks(self._real, options.exact_states, size=4)
        for dtype in dtypes:
            for architecture in filter(None, architectures):
                self._session.run(
                    f"exactness of {architecture} in {dtype}",
                    lambda _, a=architecture, d=dtype: exactness.all_engines(
                        self._small_model(a), a, d, options.device, some
                    ),
                    section="exactness",
                    limit=60,
                    least=2,
                )

    def _small_model(self, architecture: str) -> Path:
        if architecture not in self._small:
            own = models.tiny_model
            tokenizer = own.train_tokenizer(corpus.blocks(self._real, 1024))
            folder = own.make_model(self._root / architecture, tokenizer, architecture)
            self._small[architecture] = folder
        return self._small[architecture]

    def _model(self, _: float) -> dict[str, Any]:
        options = self._options
        tokenizer = models.make_tokenizer(self._real, options.words, self._template.markers())
        folder, facts = models.write_llama(
            self._root, options.size, tokenizer,
            vocabulary=options.vocabulary, dtype=options.dtype, device=options.device,
        )  # fmt: skip
        free()
        width, _, inner, _ = models.SIZES[options.size]
        peak = machine.peak_flops(machine.device_name(options.device), options.dtype)
        matmul = machine.measured_flops(options.device, options.dtype, width, inner)
        self._setting = Setting(
            folder, options.device, options.dtype, self._template, self._states, facts,
            peak=peak and peak["flops_per_second"], matmul=matmul,
            checked=corpus.blocks(self._states[: options.counts[0]], CHECKED, size=1),
        )  # fmt: skip
        return facts | {"matmul_flops_per_second": matmul}

    def _speed(self, name: str, work: Any, *, limit: float, least: float = 5) -> Any:
        """A step that measures a contender; afterwards all embeddings are compared again."""
        found = self._session.run(
            name, lambda seconds: [work(seconds)], section="speed", limit=limit, least=least
        )
        if self._reference is not None:
            self._session.results["agreement"] = agreement(self._setting, self._reference)
        return found and found[0]

    def _chosen(self, count: int) -> None:
        def auto(seconds: float) -> dict[str, Any]:
            ours = Ours(self._setting)
            self._ours = ours
            return ours.auto(count, seconds - ours.load_seconds)

        self._speed(f"ebm-encode, {count:,} states", auto, limit=80)

    def _requests(self) -> None:
        for count in latency.COUNTS if self._ours else ():
            self._session.run(
                f"requests of {count} states",
                lambda seconds, n=count: [
                    latency.measure(
                        self._ours.chosen, n,
                        calls=self._options.calls, seconds=seconds / 2,
                    )
                ],
                section="requests", limit=20, least=2,
            )  # fmt: skip

    def _peers(self, count: int, *, limit: float) -> None:
        if self._ours is None:
            return
        setting, costs = self._setting, self._ours.costs
        free()
        setting.elsewhere = machine.allocated(setting.device)
        peers: list[Peers] = []

        def load(_: float) -> dict[str, Any]:
            start = time.perf_counter()
            peers.append(Peers(setting))
            loaded = time.perf_counter() - start
            self._reference = peers[0].reference()
            return {"load_seconds": loaded, "states": len(self._reference)}

        self._session.run("plain transformers", load, section="reference", limit=90, least=10)
        for name in PEERS if peers else ():
            if name == PEERS[-1]:
                peers[0].drop()
                free()
            self._speed(
                f"{name}, {count:,} states",
                lambda seconds, n=name: peers[0].measured(n, costs, count, seconds),
                limit=limit + (25 if name == PEERS[-1] else 0),
            )
        peers.clear()
        free()
        setting.elsewhere = 0

    def _profile(self) -> None:
        if self._ours is None:
            return
        ours, device = self._ours, self._options.device
        states = self._states[: 1024 if device.startswith("cuda") else 64]
        self._session.run(
            "profile",
            lambda _: [profiling.profiled(in_bulk(ours.chosen), states, device=device)],
            section="profile", limit=40,
        )  # fmt: skip

    def _compiled(self, count: int) -> None:
        if self._ours is not None:
            work = self._ours.compiled
            self._speed("ebm-encode, compiled layers", lambda s: work(count, s), limit=75, least=20)

    def _many(self, count: int) -> None:
        if self._ours is not None:
            work = self._ours.many
            name = f"ebm-encode, {count:,} states"
            self._speed(name, lambda s: work(count, s), limit=200)
        speed = self._session.results.get("speed", [])
        ours = [one for one in speed if one["contender"] == "ebm-encode"]
        if ours:
            most = max(ours, key=lambda one: one["states"])
            self._session.results["estimate"] = estimate(most, CORPUS)
            self._session.write()

    def _forced(self, count: int) -> None:
        for engine in exactness.ENGINES if self._ours else ():
            work = self._ours.forced
            name = f"ebm-encode, {engine}, {count:,} states"
            self._speed(name, lambda s, e=engine, w=work: w(e, count, s), limit=30)


def estimate(measured: dict[str, Any], states: int) -> dict[str, Any]:
    """The time for more states, from the unique tokens of those measured and their rate.

    States share more the more there are, so this rather says too much.
    """
    unique = measured["unique_tokens"] / measured["states"] * states
    rate = measured["unique_tokens"] / measured["states"] * measured["states_per_second"]
    return {
        "states": states,
        "unique_tokens": unique,
        "seconds": unique / rate,
        "from_states": measured["states"],
        "method": f"estimate: as many unique tokens a state as among {measured['states']:,}"
        f" states, at their rate",
    }
