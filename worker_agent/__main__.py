"""`python -m worker_agent --worker w1 --engine-url http://127.0.0.1:9001`"""

from __future__ import annotations

import asyncio
import random

from runtime import log, service, settings
from runtime.clock import SystemClock
from runtime.tls import TlsError
from worker_agent.agent import Agent
from worker_agent.engine_client import EngineClient
from worker_agent.publisher import Publisher
from worker_agent.settings import Settings

PROCESS = "worker_agent"


async def serve(life: service.Life, config: Settings) -> None:
    """Until asked to end; then the worker leaves the fleet."""
    chance = random.SystemRandom()
    publisher = Publisher(config.bus_url, config.worker, ids=chance)
    try:
        engine = EngineClient(config.engine_url.rstrip("/"), api_key=config.engine_api_key, ca=config.engine_ca)
    except TlsError as error:
        settings.fail(PROCESS, str(error))
    async with engine as client:
        agent = Agent(config, client, publisher, SystemClock(), lambda: chance.getrandbits(63))
        loops = [
            life.spawn(agent.scrape_forever(), name="scrape"),
            life.spawn(agent.follow_forever(), name="follow"),
            life.spawn(agent.publish_forever(), name="publish"),
        ]
        registered = asyncio.create_task(_announce(life, agent, config))
        await life.ending.wait()
        for task in (*loops, registered):
            task.cancel()
        await asyncio.gather(*loops, registered, return_exceptions=True)
        await agent.leave()
        agent.close()
    await publisher.close()


async def _announce(life: service.Life, agent: Agent, config: Settings) -> None:
    await agent.registered.wait()
    life.ready(f"worker {config.worker} is registered for {config.url}")


def main() -> None:
    config = settings.read(Settings, PROCESS)
    log.configure(PROCESS, level=config.log_level, format=config.log_format)
    service.run(lambda life: serve(life, config), PROCESS)


if __name__ == "__main__":
    main()
