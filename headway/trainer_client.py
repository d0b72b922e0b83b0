"""The trainer, as commands reach it."""

from __future__ import annotations

from headway import runfile
from headway.grpc_client import Service

CALL_TIMEOUT_S = 10.0
EVALUATE_TIMEOUT_S = 120.0
"""The trainer may have to read a large data set."""

TRAINER = Service("trainer", "trainer", runfile.trainer_target)

add_trainer_argument = TRAINER.add_arguments
call = TRAINER.call
