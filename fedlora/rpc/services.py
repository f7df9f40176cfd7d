"""Full names of the services, as they stand in a method's path."""

from __future__ import annotations

from fedlora.proto.v1 import admin_pb2, federation_pb2, identity_pb2

__all__ = [
    "ADMIN_SERVICE",
    "ENROLMENT_SERVICE",
    "FEDERATION_SERVICE",
    "HEALTH_SERVICE",
    "IDENTITY_SERVICE",
    "REFLECTION_SERVICE",
]

FEDERATION_SERVICE = federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
ENROLMENT_SERVICE = identity_pb2.DESCRIPTOR.services_by_name["EnrolmentService"].full_name
IDENTITY_SERVICE = identity_pb2.DESCRIPTOR.services_by_name["IdentityService"].full_name

# gRPC's own; an aggregator serves them, a worker need not have their packages.
HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
