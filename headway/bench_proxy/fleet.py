"""Workers as their agents would register them: records and reports in Redis, ten reports a second and worker."""

from __future__ import annotations

from threading import Event, Thread

import redis

from contract import keyspace
from contract.keyspace import EngineReport, EngineState, ModelCard, ModelsState, WorkerRecord
from prediction import bundle
from prediction.bundle import Bundle

REPORT_INTERVAL_S = 0.1
TTL_MS = 10_000


def serve(redis_url: str, model: Bundle) -> None:
    """As the trainer puts a model in place."""
    with redis.Redis.from_url(redis_url) as client:
        name = model.manifest.model_id
        client.set(keyspace.model_key(name), bundle.encode(model))
        client.set(keyspace.MODELS_STATE, keyspace.encode_models(ModelsState(sequence=1, serving=name)))


class Fleet:
    """Publishes from a thread of its own until `stop`. tokenizer: spec for the data planes."""

    def __init__(self, redis_url: str, urls: list[str], *, model: str, tokenizer: str) -> None:
        self._client = redis.Redis.from_url(redis_url)
        self._records = [
            WorkerRecord(
                worker=f"bench-{number}",
                url=url,
                epoch=1,
                models=(ModelCard(model, model, model, 131_072),),
                block_size=16,
                cache_blocks=27_000,
                sends_kv_events=False,
                tokenizer=tokenizer,
                ttl_ms=TTL_MS,
            )
            for number, url in enumerate(urls)
        ]
        self._ending = Event()
        self._thread = Thread(target=self._run, name="bench-fleet", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        sequence = 0
        while not self._ending.wait(REPORT_INTERVAL_S):
            sequence += 1
            with self._client.pipeline(transaction=False) as pipeline:
                for record in self._records:
                    pipeline.set(keyspace.worker_key(record.worker), keyspace.encode_worker(record), px=TTL_MS)
                    report = EngineReport(
                        worker=record.worker,
                        epoch=1,
                        sequence=sequence,
                        state=EngineState.READY,
                        scrape_age_s=0.0,
                        generation_tokens=sequence,
                    )
                    pipeline.xadd(keyspace.REPORTS, {keyspace.REPORT_FIELD: keyspace.encode_report(report)}, maxlen=1000)
                pipeline.execute()
