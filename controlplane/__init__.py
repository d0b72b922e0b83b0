"""The control plane: keeps the fleet in memory, decides, admits or sheds, explains.

    servicer -> director.decide -> admission
                                   candidates = snapshot x ledger x index x breaker
                                   scheduler: filters -> scorers -> picker
                                   ledger.reserve · index.speculate · explain
    servicer -> ends.ended      -> ledger.release · breaker · rates · self_check · outcomes
    servicer -> usual           -> both of these by the shortest way, for the usual question and the usual end

pure:
    question         what the director is asked, and what it says
    director         from a question to a decision; candidates makes its rows, packed reads and writes its messages
    ends             what becomes of decisions, and everything that learns from that
    usual            the short way; lanes and row: what it looks at; choosers: a policy's whole choice in one go; ranking: what
                     a ranker says, and its short way to say it (online_briefs, model_brief)
    admission        refusals, and the bounded fair queue of those that wait for room
    scheduler        one profile applied: filters, scorers, picker; profiles names the routing policies
    endpoint         an engine address with its living state, and Candidate, the row that a decision sees; feature_rows makes
                     a model's matrix of them
    snapshot         the fleet: registrations, reports, who is alive, endpoint numbers
    ledger           what the router dispatched and has not seen end
    breaker          whether an endpoint works; rank_breaker, one data-parallel rank of it
    rates            how fast it has been lately
    self_check       whether predicted matches come true; alarms say what is wrong with a worker
    progress         the gray failure: an engine that says it is healthy, and does not move
    explain          the ring of recent decisions; tally, what is counted of them
    outcome_record   the record of one request for the trainer
    index_state prefix_index block_table block_sync speculation   who holds which beginning of a prompt

shells:
    servicer         Routing over gRPC; wire translates, fleet_view is what data planes are sent
    fleet_servicer   Fleet over gRPC: workers, drain, policy
    ingest           Redis into snapshot and index; block_sync follows one worker's blocks, quick_read reads, entry_age says
                     how long a report lay there
    outcomes         outcome records to Redis
    upkeep           what time alone changes
    metrics, admin   Prometheus figures; the HTTP port that serves them
    grpc_server      listeners, health, reflection; addresses tries them first
    settings, __main__
"""
