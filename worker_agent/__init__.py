"""Beside one vLLM: what the engine says of itself, and what its KV cache holds, onto Redis.

    vLLM /metrics ──engine_client──▶ engine_metrics ─────────────┐
    vLLM /v1/models, /version, ... ──▶ engine_info ──────────────┤
    vLLM KV events ──event_source──▶ sequence ─▶ kv_events ─▶ block_set ─▶ agent ─▶ publisher ──▶ Redis

engine_metrics   the Prometheus page to one row of figures (pure)
engine_info      the discovery answers to who the engine is and where its events are (pure)
engine_client    the HTTP shell of the two above: named time limits
kept_connection  its way to what is asked ten times a second: one connection, few calls
kv_events        one event payload to typed events, both wire generations (pure)
sequence         one rank's numbering: gaps, replay, a new incarnation (pure)
block_set        engine hash to block hash, ranks and tiers (pure)
shelf            of one of these: copies counted, changes netted (pure)
event_source     the ZeroMQ shell of `sequence`
publisher        the Redis shell: reports, deltas, snapshots, registration
quick_add        its one hot command
agent            the loops that join them; the only one that knows epochs
bell             what its loops wait for
settings         flags and environment
"""
