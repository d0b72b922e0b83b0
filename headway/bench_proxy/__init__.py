"""`headway bench proxy`: what a router costs, ours beside others, on this machine.

routers     what is measured, and how each is started
fleet       workers for our control plane: registered and reported through contract.keyspace
programs    the engine and the load: backend.c and load.c compiled where there is a compiler, else backend.py and load.py
prompts     the requests of a scenario, as bytes
processes   start, wait for a port, CPU time of a process with its children, end
measure     the rounds, interleaved; medians and ratios
table       figures on a terminal
peers       other projects' routers in environments of their own
"""
