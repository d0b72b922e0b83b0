"""Open-loop load: who asks what, when; what came back; what that says of the fleet. Knows HTTP, not the router.

    traces, generators -> rows -> workload -> runner -> client -> answer -> recorder -> summary
                                     ^  ^
                        arrivals ----+  +---- synthetic

arrivals    when requests are due: as recorded, Poisson, gamma bursts, constant, rate ramps                       pure
rows        one request of a workload before it has a text and a time: blocks or messages                         pure
traces      readers: Mooncake, Azure, ServeGen, agentic, conversations, edited prompts
generators  made-up workloads: shared prefixes, multi-round questions                                             pure
synthetic   prompt text from block ids: equal ids give equal tokens                                               pure
workload    rows and times to request bodies                                                                      pure
answer      response bytes to first token, gaps, usage, and whether it really succeeded                           pure
client      keep-alive connections; one exchange each at a time
runner      sends at the scheduled time, whatever the fleet does; lateness is recorded, never absorbed
recorder    one JSON line a request
summary     quantiles, goodput, cached share, predicted against actual                                            pure
report      the summary as text for people                                                                        pure
progress    a bar on a terminal, a line every few seconds elsewhere
data/       a small workload to start with, and the words that prompts are made of
"""
