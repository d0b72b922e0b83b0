"""The wire between Headway's processes: three gRPC services and their generated stubs.

routing.proto   dataplane -> controlplane: questions, decisions, outcomes, the fleet view, explanations
fleet.proto     operators -> controlplane: workers, drain, policy
trainer.proto   operators -> trainer: train, promote, roll back

The stubs are committed so that an installation needs no compiler; `make proto` writes them again and
`make check` fails where they are not current.
"""
