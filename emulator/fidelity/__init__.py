"""How far the emulator is from engines that were recorded, and the presets' constants from those recordings.

    recording ─▶ machine ─▶ replay ─▶ fit, pace ─▶ cpu ─▶ compare ─┐
    kernels ─▶ gpu;  routers ─▶ fleet ─────────────────────────────┴─▶ figures, report

recording    the real vLLM on the CPU: who asked for what, and when the tokens came
machine      the computer under that recording, which others used too
replay       its arrivals through the engine core, in virtual time
fit          robust least squares with a simulation behind every residual
pace         the machine's speed over time, told by requests other than those compared
cpu          tiny-cpu: fitted, validated, and beside engines that are wrong on purpose
compare      quantiles side by side, level by level
kernels      step times from kernel timings
gpu          llama3-8b-h100: kernels, an engine beside them, recorded steps
routers      stand-ins for recorded routers
fleet        eight workers and every TTFT
figures      plots; report: docs/fidelity.md, from fidelity.md.jinja

Run as `python -m emulator.fidelity DATA`. Nothing else of the emulator imports this.
"""
