"""The trainer's settings."""

from __future__ import annotations

from dataclasses import dataclass

from runtime import log
from runtime.settings import SettingsError, check_port, check_positive, setting
from runtime.shared_settings import BusSettings, GrpcSettings
from trainer.zoo import DEFAULT, KINDS


@dataclass(frozen=True)
class Settings(BusSettings, GrpcSettings):
    """The trainer: turns outcomes into models of TTFT, judges them, and says which one serves."""

    listen: tuple[str, ...] = setting(("127.0.0.1:50052",), "gRPC addresses: HOST:PORT or unix:/path; repeated or with commas")
    metrics_host: str = setting("127.0.0.1", "where /metrics, /health and /ready listen")
    metrics_port: int = setting(9102, "their port; 0: off")
    data_dir: str = setting("trainer-data", "samples and models; one trainer at a time")
    kind: str = setting(DEFAULT, "what is trained on schedule and on drift", choices=tuple(KINDS))
    train_every_s: float = setting(600.0, "a training this often, where there are new samples")
    train_pause_s: float = setting(60.0, "between two trainings at least, on drift too")
    samples_min: int = setting(1000, "before the first training")
    new_samples_min: int = setting(500, "since the last training, for the next one")
    samples_max: int = setting(40_000, "a training takes; of more, rare states stay and common ones are thinned")
    recent_max: int = setting(50_000, "samples kept whole on disk; older ones go through a reservoir")
    kept_max: int = setting(50_000, "samples of the reservoir")
    models_max: int = setting(20, "models kept on disk")
    flush_s: float = setting(5.0, "samples go to disk this often; what is not there yet is read again from Redis after a crash")
    shadow_samples: int = setting(500, "live outcomes a new model is scored on before it serves")
    watch_samples: int = setting(300, "latest outcomes the serving model is judged by")
    rollback_factor: float = setting(1.15, "live loss over that of the model it replaced, from which it is rolled back")
    drift_factor: float = setting(1.3, "live loss over that of its evaluation, from which another is trained")
    seed: int = setting(1, "of everything that is drawn")
    log_level: str = setting("info", "least severity that is logged", choices=log.LEVELS)
    log_format: str = setting("text", "text or json", choices=log.FORMATS)

    def check(self) -> None:
        check_port("metrics_port", self.metrics_port)
        check_positive(
            train_every_s=self.train_every_s,
            train_pause_s=self.train_pause_s,
            flush_s=self.flush_s,
            shadow_samples=self.shadow_samples,
            watch_samples=self.watch_samples,
            new_samples_min=self.new_samples_min,
            recent_max=self.recent_max,
            kept_max=self.kept_max,
        )
        for name, value, least in (
            ("samples_min", self.samples_min, 200),
            ("samples_max", self.samples_max, 200),
            ("models_max", self.models_max, 3),
            ("rollback_factor", self.rollback_factor, 1.0),
            ("drift_factor", self.drift_factor, 1.0),
        ):
            if value < least:
                raise SettingsError(f"--{name.replace('_', '-')}: {value} is below {least}")
        self.check_bus()
        self.check_grpc()
