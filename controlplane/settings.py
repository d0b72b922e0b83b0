"""What can be set about a control plane."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane import admission, filters, ledger, profiles, progress, rankers, ranks, settling, thinning
from runtime import log
from runtime.settings import SettingsError, check_port, check_positive, setting
from runtime.shared_settings import BusSettings, GrpcSettings


@dataclass(frozen=True)
class Settings(BusSettings, GrpcSettings):
    """The control plane: keeps the fleet in memory and decides where each request goes."""

    listen: tuple[str, ...] = setting(("127.0.0.1:50051",), "gRPC addresses: HOST:PORT or unix:/path; repeated or with commas")
    policy: str = setting(profiles.DEFAULT, "routing policy at start", env="ROUTING_STRATEGY", choices=profiles.NAMES)
    metrics_host: str = setting("127.0.0.1", "where /metrics, /health and /ready listen")
    metrics_port: int = setting(9101, "their port; 0: off")
    active_max: int = setting(filters.ACTIVE_MAX, "requests active at one endpoint above which it gets no more")
    waiting_max: int = setting(admission.WAITING_MAX, "questions that may wait for room; 0: refuse at once")
    wait_s_max: float = setting(admission.WAIT_S_MAX, "how long a question may wait for room")
    settle_ms: int = setting(
        round(1000 * settling.SETTLE_S),
        "how long at most the next turn may wait for the engine's events on its answer; 0: never",
    )
    grace_s_max: float = setting(ledger.GRACE_S_MAX, "how long reservations of a broken stream wait for their data plane")
    steer_ranks: str = setting(
        ranks.AUTO,
        "send requests to data-parallel ranks of engines that obey X-data-parallel-rank (auto), or let engines balance (off)",
        choices=(ranks.AUTO, ranks.OFF),
    )
    hung_after_s: float = setting(progress.HUNG_AFTER_S, "no progress for this long with requests there: the engine hangs")
    uncertain_ratio_max: float = setting(rankers.RATIO_MAX, "p90 over median above which a predicted TTFT does not decide")
    uncertain_spread_max: float = setting(
        rankers.SPREAD_MAX, "mean deviation of a worker's log residuals above which its predicted TTFT does not decide"
    )
    zone_low_s: float = setting(rankers.ZONE_LOW_S, "hierarchical: where its middle zone begins")
    zone_high_s: float = setting(rankers.ZONE_HIGH_S, "hierarchical: where its middle zone ends")
    outcomes_per_s_max: int = setting(
        thinning.PER_S_MAX, "records of complete requests a second; more are thinned, failures never; 0: all are written"
    )
    seed: int = setting(0, "of the random choices; 0: a new one each start")
    log_level: str = setting("info", "least severity that is logged", choices=log.LEVELS)
    log_format: str = setting("text", "text or json", choices=log.FORMATS)

    def check(self) -> None:
        check_port("metrics_port", self.metrics_port)
        check_positive(
            active_max=self.active_max,
            wait_s_max=self.wait_s_max,
            grace_s_max=self.grace_s_max,
            hung_after_s=self.hung_after_s,
            uncertain_ratio_max=self.uncertain_ratio_max,
            uncertain_spread_max=self.uncertain_spread_max,
            zone_low_s=self.zone_low_s,
        )
        if self.zone_high_s <= self.zone_low_s:
            raise SettingsError(f"--zone-high-s: {self.zone_high_s} is not above --zone-low-s {self.zone_low_s}")
        if self.outcomes_per_s_max < 0:
            raise SettingsError(f"--outcomes-per-s-max: {self.outcomes_per_s_max} is below 0")
        if self.settle_ms < 0:
            raise SettingsError(f"--settle-ms: {self.settle_ms} is below 0")
        if self.waiting_max < 0:
            raise SettingsError(f"--waiting-max: {self.waiting_max} is below 0")
        self.check_bus()
        self.check_grpc()
