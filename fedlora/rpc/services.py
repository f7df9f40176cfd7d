"""Full names of the services, as they stand in a method's path."""

from __future__ import annotations

from fedlora.proto.v1 import admin_pb2, federation_pb2

__all__ = ["ADMIN_SERVICE", "FEDERATION_SERVICE"]

FEDERATION_SERVICE = federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
