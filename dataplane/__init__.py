"""The data plane: OpenAI HTTP in, a decision per request, the worker's bytes out.

A request's way:

    connection ─▶ server ─▶ exchange ─▶ openai ─▶ prompts ─▶ control (or fallback) ─▶ upstream ─▶ worker
    connection ◀──────────── exchange ◀── relay (sse) ◀───────────────────────────────── upstream ◀┘
                                └─▶ report ─▶ control

connection  one client connection: HTTP/1.1 parsed, pipelined requests one after the other
listening   a port that can be left without losing who is at the door; handover: its sockets given to a successor
server      what is answered here, deadlines, drain
exchange    one routed request as a state machine: attempts, retries, failures, exactly one outcome an attempt
usual       the same by the shortest way, where nothing is out of the ordinary; rows: what it says to the control plane
engines     what is known of each base URL; token_times: when tokens came from there
gateway     what exchanges share; where a request goes
question    a request as a question to the control plane
headers     response heads and error events
openai      paths, and the few fields of a body that routing needs
prompts     body -> token ids -> block hashes; tokenizers in the background
control     RouteStream and WatchFleet: questions of a tick in one message, deadlines, outcomes
fallback    the last fleet view, and decisions without the control plane
access      who may call: keys, limits (keys, limits: pure; shared_limits: one state for several processes)
access_log  one JSON line a request, where it is asked for; logged: server and exchanges that write it
credentials what engines are shown in place of the caller's key
admission   local bounds: concurrency, retry budget
upstream    pooled connections to engines
forms       which models a form names, where not all are allowed
encoding    compressed request bodies; unescape: large JSON readable in slices; trace: W3C trace context
body        an upload passed on while it still comes
relay, sse  a response read without I/O: held until the first token, then passed on as it comes
http1       heads and chunk framing as bytes
hedge       a second attempt beside a silent first one, off unless asked for
report      how an attempt ended, for the control plane
errors      OpenAI error objects
metrics     what is counted
app         a process put together; processes: several on one port; settings; __main__
"""
