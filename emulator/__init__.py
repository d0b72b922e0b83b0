"""A vLLM for machines without a GPU: the same HTTP, the same /metrics, the same KV events, iteration by iteration.

    server ─▶ generate ─▶ calls ─▶ prompts ─▶ driver.submit ─▶ engine.add
                                                 driver.run ─▶ engine.step ─▶ scheduler ─▶ block_pool
    client ◀─ streaming ◀─ reply ◀─ wire ◀─ texts ◀─ tokens ◀──────┤           └─▶ latency
                                        metrics, kv_events ◀───────┘

The engine core knows neither clock nor socket, and runs in virtual time as it does here:

sequence     one prompt on its way, and the engine's own block hash
block_pool   KV memory: references, prefix cache, eviction order, events
scheduler    who computes what in the next step: batching, chunked prefill, preemption
cruise       steps in which sequences only decode, without looking at each
latency      how long a step takes
presets      engines worth imitating
engine       all of it, stepped from outside

What is said about it, pure too:

calls        request bodies, checked as vLLM checks them
prompts      a call's token ids, and the limits they must keep
texts        token ids as text; stop strings
reply        one answer on its way: tokens in, events or a body out
wire         completions and chat, byte by byte
wire_events  responses and messages, byte by byte
ranks        engines behind one server, and who gets which request
errors       every refusal, in vLLM's words
kv_events    KV events on the wire, and the replay buffer
metrics      the /metrics page; prometheus: its text format
faults       what is set to go wrong

Shells:

driver       the engine in real time
publisher    the sockets of KV events
streaming    events onto a connection
generate     the routes that use the engine
routes       the routes that do not
app          what both share
server       the HTTP server
settings     what can be set
"""
