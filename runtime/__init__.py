"""How a process lives: everything that is not about routing.

settings   one frozen dataclass per process, from flags and environment, self-checking
log        one readable line an event, or JSON
service    signals, orderly start and end of an asyncio process
clock      time as an argument
tls        certificates and authorities from files, for HTTP and gRPC
redis_url  passwords into Redis URLs, and out of messages; redis_wire packs commands
rng        named random streams from one seed
"""
