"""The real cores in virtual time: engines, agents' block sets, the whole control plane, with simulated wires between them.

    workload ─▶ proxy ─▶ control (director, ledger, index, ...) ◀─ agent (block_set) ◀─ worker (emulator.engine)
                  └──────────────── requests ──────────────────────────────────────────────▶┘
    checks, truth: watch all of it

timeline   the queue of events: virtual time
workload   a trace as token ids and block hashes, without text
worker     an engine stepped by virtual time, and what may go wrong with it
agent      reports and block deltas, with their delays
bus        what Redis holds between the two
control    the control plane's cores, fed by call instead of by Redis
proxy      the data plane: ask, send, retry, fall back, end exactly once
faults     what goes wrong and when: by hand or drawn from a seed
truth      what an engine really holds, told the plainest way
checks     what must hold whatever happens
world      one run of all of it, from one seed
parallel   several runs at once, a process each
summary    results in figures
figure     TTFT distributions as an SVG
"""
