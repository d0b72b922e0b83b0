"""The control plane's gRPC server: its two services."""

from __future__ import annotations

import grpc

from controlplane.fleet_servicer import FleetServicer
from controlplane.servicer import RoutingServicer
from proto import fleet_pb2, fleet_pb2_grpc, routing_pb2, routing_pb2_grpc
from runtime.grpc_server import Server

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
"""A tick's questions with long prompts: 8 KiB of hashes per 16k tokens."""
SERVICES = (
    routing_pb2.DESCRIPTOR.services_by_name["Routing"].full_name,
    fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name,
)


class GrpcServer(Server):
    """credentials: TLS of the TCP addresses."""

    def __init__(
        self, routing: RoutingServicer, fleet: FleetServicer, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        def add(server: grpc.aio.Server) -> None:
            routing_pb2_grpc.add_RoutingServicer_to_server(routing, server)
            fleet_pb2_grpc.add_FleetServicer_to_server(fleet, server)

        super().__init__(add, SERVICES, credentials, message_bytes_max=MESSAGE_BYTES_MAX)
