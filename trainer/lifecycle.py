"""From a trained model to the one that serves, and back: the registry, the rules, and live outcomes, joined.

    submit (trained) -> gate -> shadow -> [live outcomes] -> promoted, or rejected
    observe (live outcomes) -> the shadow's verdict; the watch on the serving model -> rolled back; drift -> train again

Files are written through the registry; there is no clock, no socket and no thread in it. A model is loaded once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prediction import predictor, scores
from prediction.dataset import Dataset
from prediction.errors import BundleError
from prediction.predictor import Predictor
from prediction.scores import Scores
from trainer import rules
from trainer.evaluate import evaluate
from trainer.live import LiveScores
from trainer.registry import Entry, Registry, RegistryError, Standing
from trainer.rules import Rules, Verdict
from trainer.train import Trained

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]


class RefusedError(ValueError):
    """A change that the state does not allow; in the caller's words."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Of live outcomes. shadow: before a shadow is judged; watch: the latest by which the serving model is judged."""

    shadow: int = 500
    watch: int = 300


class Lifecycle:
    def __init__(self, registry: Registry, *, rules: Rules | None = None, windows: Windows | None = None) -> None:
        self.registry = registry
        self._rules = rules or Rules()
        self._windows = windows or Windows()
        self._live = LiveScores(max(scores_max(self._windows), 1))
        self._predictors: dict[str, Predictor | None] = {}
        self.rollbacks = 0
        self.promotions = 0
        self.rejections = 0

    # -------------------------------------------------------------------------------------------------------- new models

    def submit(self, trained: Trained, *, now_unix: float) -> Verdict:
        """Keeps it; where it passes the gate it goes into shadow. OSError: the disk."""
        model_id = trained.bundle.manifest.model_id
        self.registry.add(trained.bundle, trained.scores, now_unix=now_unix)
        serving = self._predictor(self.registry.state.serving)
        theirs = None if serving is None else evaluate(serving, trained.judged_by, seed=trained.bundle.manifest.seed)
        verdict = rules.gate(trained.scores, theirs, constant_loss(trained.judged_by.ttft_s), self._rules)
        if not verdict.good:
            self._reject(model_id, verdict.why, now_unix)
            return verdict
        standings = {model_id: Standing.SHADOW}
        old = self.registry.state.shadow
        if old:
            standings[old] = Standing.RETIRED
        self._live.restart(model_id)
        self.registry.change("shadow", model_id, verdict.why, now_unix=now_unix, shadow=model_id, standings=standings)
        self._predictors[model_id] = trained.predictor
        self._follow()
        return verdict

    def promote(self, model_id: str, *, force: bool, now_unix: float) -> None:
        """By hand. RegistryError: no such model. RefusedError: it did not pass the gate, or cannot serve, or does already."""
        registry = self.registry
        registry.load(model_id)
        if model_id == registry.state.serving:
            raise RefusedError(f"model {model_id} serves already")
        if self._predictor(model_id) is None:
            raise RefusedError(f"model {model_id} is of another build: it cannot be served by this one")
        standing = registry.state.standing(model_id)
        if not force and standing in (Standing.REJECTED, Standing.ROLLED_BACK, Standing.TRAINED):
            raise RefusedError(f"model {model_id} is {standing.name.lower().replace('_', ' ')}; --force promotes it anyway")
        self._promote(model_id, "by hand", now_unix)

    def rollback(self, *, now_unix: float, why: str = "by hand") -> str:
        """Back to the model that served before; returns its id. RefusedError: there is none."""
        if not self.registry.state.previous:
            raise RefusedError(
                "there is no model to go back to (policies that do not predict, such as lmetric, do without any)"
            )
        return self._roll_back(why, now_unix)

    # ------------------------------------------------------------------------------------------------------ live outcomes

    def observe(self, rows: Floats, ttft_s: Floats, *, now_unix: float) -> list[str]:
        """Live samples, (n, len(FEATURES)) and (n,). Returns what was done, in sentences. OSError: the disk."""
        if not len(ttft_s):
            return []
        self._follow()
        for model_id in self._used():
            model = self._predictor(model_id)
            if model is not None:
                p50_s, p90_s = model.predict(rows)
                self._live.add(model_id, ttft_s, p50_s, p90_s)
        return [*self._judge_shadow(now_unix), *self._watch(now_unix)]

    def drifted(self) -> Verdict:
        """Whether another training is due: the serving model does worse than it did when it was judged."""
        serving = self.registry.state.serving
        live = self._live.of(serving, self._windows.watch)
        if live is None:
            return Verdict(False, "")
        return rules.drifted(live, self._evaluated_loss(serving), self._rules)

    def live(self, model_id: str) -> rules.Live | None:
        """Over what is known of it lately, at most a watch's window."""
        return self._live.of(model_id, min(self._live.count(model_id), self._windows.watch))

    def evaluate(self, model_id: str, samples: Dataset) -> Scores:
        """RegistryError: no such model. RefusedError: it is of another build."""
        self.registry.load(model_id)
        model = self._predictor(model_id)
        if model is None:
            raise RefusedError(f"model {model_id} is of another build: it cannot be evaluated by this one")
        return evaluate(model, samples)

    def entry(self, model_id: str) -> Entry | None:
        return self.registry.entry(model_id)

    # ------------------------------------------------------------------------------------------------------------- inside

    def _judge_shadow(self, now_unix: float) -> list[str]:
        state = self.registry.state
        mine = self._live.of(state.shadow, self._windows.shadow) if state.shadow else None
        if mine is None:
            return []
        theirs = self._live.of(state.serving, mine.samples) if state.serving else None
        verdict = rules.shadow(mine, theirs, self._evaluated_loss(state.shadow), self._rules)
        if verdict.good:
            self._promote(state.shadow, verdict.why, now_unix)
            return [f"{state.shadow} serves: {verdict.why}"]
        self._reject(state.shadow, verdict.why, now_unix)
        return [f"{state.shadow} rejected in shadow: {verdict.why}"]

    def _watch(self, now_unix: float) -> list[str]:
        state = self.registry.state
        mine = self._live.of(state.serving, self._windows.watch) if state.serving else None
        if mine is None:
            return []
        previous = self._live.of(state.previous, self._windows.watch) if state.previous else None
        verdict = rules.watch(mine, previous, self._evaluated_loss(state.serving), self._rules)
        if verdict.good:
            return []
        self._roll_back(verdict.why, now_unix)
        return [f"{state.serving} rolled back: {verdict.why}"]

    def _promote(self, model_id: str, why: str, now_unix: float) -> None:
        state = self.registry.state
        standings = {model_id: Standing.SERVING}
        if state.serving:
            standings[state.serving] = Standing.RETIRED
        shadow = "" if state.shadow == model_id else None
        # The watch begins anew for both, so that they are compared on what comes from here on.
        self._live.restart(model_id)
        self._live.restart(state.serving)
        self.registry.change(
            "promoted",
            model_id,
            why,
            now_unix=now_unix,
            serving=model_id,
            previous=state.serving,
            shadow=shadow,
            standings=standings,
        )
        self.promotions += 1
        self._follow()

    def _roll_back(self, why: str, now_unix: float) -> str:
        """To the previous model, or to none: decisions then go by a policy that needs no model."""
        state = self.registry.state
        standings = {state.serving: Standing.ROLLED_BACK}
        if state.previous:
            standings[state.previous] = Standing.SERVING
        self._live.restart(state.previous)
        self.registry.change(
            "rolled back", state.serving, why, now_unix=now_unix, serving=state.previous, previous="", standings=standings
        )
        self.rollbacks += 1
        self._follow()
        return state.previous

    def _reject(self, model_id: str, why: str, now_unix: float) -> None:
        shadow = "" if self.registry.state.shadow == model_id else None
        self.registry.change(
            "rejected", model_id, why, now_unix=now_unix, shadow=shadow, standings={model_id: Standing.REJECTED}
        )
        self.rejections += 1
        self._follow()

    def _used(self) -> list[str]:
        state = self.registry.state
        return [model_id for model_id in dict.fromkeys((state.serving, state.previous, state.shadow)) if model_id]

    def _follow(self) -> None:
        used = set(self._used())
        self._live.follow(used)
        for gone in set(self._predictors) - used:
            del self._predictors[gone]

    def _predictor(self, model_id: str) -> Predictor | None:
        """None: no such model, or one of another build."""
        if not model_id:
            return None
        if model_id not in self._predictors:
            try:
                self._predictors[model_id] = predictor.load(self.registry.load(model_id))
            except (BundleError, RegistryError) as error:
                log.warning("a model cannot be used", extra={"f": {"model": model_id, "error": error}})
                self._predictors[model_id] = None
        return self._predictors[model_id]

    def _evaluated_loss(self, model_id: str) -> float:
        entry = self.registry.entry(model_id)
        return float("inf") if entry is None or entry.scores is None else rules.loss(entry.scores.overall)


def scores_max(windows: Windows) -> int:
    """Outcomes to keep of each model."""
    return max(windows.shadow, windows.watch)


def constant_loss(ttft_s: Floats) -> float:
    """Loss of the best constant median and p90: what can be said without looking at a request."""
    truth = np.log(ttft_s)
    median, upper = np.quantile(truth, 0.5), np.quantile(truth, 0.9)
    return float(np.mean(scores.pinball(truth, median, 0.5) + scores.pinball(truth, upper, 0.9)))
