"""What two processes must agree on, and nothing else. Pure: no sockets, no clocks, no state.

tokens    prompt -> token ids, as the engine does it          dataplane, emulator, loadgen
blocks    token ids -> block hashes                           dataplane, worker_agent
keyspace  every Redis key, its codec and its TTL              worker_agent, controlplane, trainer
features  the TTFT feature row and its version                controlplane, trainer
outcome   how one request at one endpoint ended               controlplane, trainer
"""
