"""A shadow that takes a job up again after its syscall socket was lost (CA_RECONNECT_JOB, wire reference 4.8).

It comes with a connection that the startd has passed on, on the claim's session. It may be the shadow of before, or
the one of a schedd that was started again; its file transfer is reached anew.
"""

from __future__ import annotations

import logging

from classad2 import ClassAd

from cedar.agentreply import FAILURE, SUCCESS, agent_reply
from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import get_str
from cedar.errors import PeerFault
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from starter import updates
from starter.messages import PassedCommand
from starter.passed import adopt
from starter.shadow import ShadowRefused
from starter.transfer import Route
from starter.work import Work


async def take_up(
    work: Work, message: PassedCommand, fd: int, *, over: bool, log: logging.LoggerAdapter[logging.Logger]
) -> bool:
    """Answer the shadow on its connection ``fd``, and go on with it; False if that did not come about.

    ``over``: the job is given up here, and the shadow is told so for certain. Nothing has changed on False.
    """
    stream = adopt(message, fd, "a shadow's connection", log)
    if stream is None:
        return False
    taken = False
    try:
        if over:
            await stream.put(agent_reply(FAILURE, "the job has ended on this slot"))
        else:
            await _take(work, stream, ClassAd(message.request))
            taken = True
    except (PeerFault, ShadowRefused) as fault:
        log.warning("a shadow that wanted to take the job up again failed: %s", fault)
    finally:
        if not taken:
            await stream.aclose()
    return taken


async def _take(work: Work, stream: CedarStream, request: ClassAd) -> None:
    """Raises PeerFault, ShadowRefused; then the job goes on without this one."""
    address, key = Sinful.parse(get_str(request, "TransferSocket")), get_str(request, "TransferKey")
    reply = updates.starter_info(work.activation, str(work.place.path), work.settings.uid_domain, reconnects=True)
    reply.update(agent_reply(SUCCESS))
    await stream.put(reply)
    told = await work.shadow.take(stream)
    session = ClaimId.from_parts(told.session_id, told.info, told.key).session(EXECUTE_SIDE)
    work.reroute(Route(address, session, key))
