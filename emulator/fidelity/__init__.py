"""How far the emulator is from engines that were recorded, and the presets' constants from those recordings.

    recording ─▶ machine ─▶ replay ─▶ fit ─▶ cpu ────┐
    kernels ─▶ gpu, fleet ───────────────────────────┴─▶ figures, report

recording    the real vLLM on the CPU: who asked for what, and when the tokens came
machine      the computer under that recording, which others used too
replay       its arrivals through the engine core, in virtual time
fit          robust least squares with a simulation behind every residual
cpu          tiny-cpu: fitted, validated, compared
kernels      step times from kernel timings
gpu          llama3-8b-h100: kernels, an engine beside them, recorded steps
fleet        eight workers and every TTFT
figures      plots; report: docs/fidelity.md

Run as `python -m emulator.fidelity`. Nothing else of the emulator imports this.
"""
