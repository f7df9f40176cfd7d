"""EnrolmentService and IdentityService: who becomes a member, and stays one."""

from __future__ import annotations

from aggregator_service.caller import current_caller
from aggregator_service.enrolment import Enrolment, not_authenticated
from aggregator_service.transport.errors import Context, answering
from fedlora.proto.v1 import identity_pb2 as pb
from fedlora.proto.v1 import identity_pb2_grpc

__all__ = ["EnrolmentServicer", "IdentityServicer"]


class EnrolmentServicer(identity_pb2_grpc.EnrolmentServiceServicer):
    """For those who are not members yet."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    @answering
    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolResponse:
        certificate = await self._enrolment.enrol(request.join_token, request.certificate_request)
        return pb.EnrolResponse(certificate=certificate)


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """For members."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    @answering
    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        caller = current_caller()
        if caller is None:
            raise not_authenticated()
        certificate = await self._enrolment.renew(
            caller.role, caller.name, request.certificate_request
        )
        return pb.RenewResponse(certificate=certificate)
