"""The control plane, as commands reach it."""

from __future__ import annotations

from headway import runfile
from headway.grpc_client import Service

CALL_TIMEOUT_S = 5.0

CONTROL = Service("control plane", "control", runfile.control_target, several=True)

add_control_argument = CONTROL.add_arguments
call = CONTROL.call
call_all = CONTROL.call_all
targets = CONTROL.targets
open_channel = CONTROL.open_channel
