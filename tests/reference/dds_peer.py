"""A peer on the network that shares no code with the package: Eclipse Cyclone DDS through its Python binding.

Reads one JSON command per line on standard input and answers each with one JSON line on standard output:
{"ok": true, ...} or {"ok": false, "error": "..."}. The domain is the first command line argument, how many of a thousand
packets it loses on sending the second one (0); all traffic stays on the loopback interface. Ends with its standard input.

| command | fields | does |
|---|---|---|
| publisher | topic, type, qos | announces a publisher |
| subscriber | topic, type, qos, keep | subscribes, keeping the newest `keep` messages (100) |
| matched | topic, count, timeout | waits until the topic's publisher or subscriber has `count` (1) peers |
| publish | topic, message | publishes once |
| repeat | topic, message, rate, restamp | publishes in the background; with restamp, header.stamp is the time of sending |
| stop | topic | ends `repeat`, answers how many were "sent" |
| take | topic, count, timeout | waits for `count` (1) messages, answers them as "messages", oldest first |
| call | service, type, request, mapping, timeout | calls a service once, as rmw_cyclonedds does or with `mapping` "basic", answers its "response" |
| endpoints | topic, count, timeout | waits for `count` (1) other publishers and subscribers, answers them as "endpoints" |

Topics, services and types are ROS names (/joint_states, sensor_msgs/Image, std_srvs/Trigger); qos is sensor_data, reliable, latched or
transient_local (latched, with more than one message). A message is
an object with all its fields, except that bytes are {"base64": "..."}, in commands also {"file": "path"}, and that a
float which is not finite is null.
"""

import base64
import dataclasses
import json
import math
import os
import sys
import threading
import time
import types
import typing

# Found on loopback without multicast: participants announce themselves to the well-known ports of this machine.
LOST = sys.argv[2] if len(sys.argv) > 2 else "0"
os.environ["CYCLONEDDS_URI"] = f"""
<CycloneDDS><Domain>
  <General>
    <Interfaces><NetworkInterface name="lo"/></Interfaces>
    <AllowMulticast>false</AllowMulticast>
  </General>
  <Discovery>
    <ParticipantIndex>auto</ParticipantIndex>
    <MaxAutoParticipantIndex>50</MaxAutoParticipantIndex>
    <Peers><Peer address="127.0.0.1"/></Peers>
  </Discovery>
  <Internal><Test><XmitLossiness>{LOST}</XmitLossiness></Test></Internal>
</Domain></CycloneDDS>
"""

from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, float32, float64, int32, int64, sequence, uint8, uint32, uint64
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration


# The messages, written down from their .msg files and named as ROS 2 names them in DDS.


@dataclasses.dataclass
class Time(IdlStruct, typename="builtin_interfaces.msg.dds_.Time_"):
    sec: int32
    nanosec: uint32


@dataclasses.dataclass
class Duration(IdlStruct, typename="builtin_interfaces.msg.dds_.Duration_"):
    sec: int32
    nanosec: uint32


@dataclasses.dataclass
class Header(IdlStruct, typename="std_msgs.msg.dds_.Header_"):
    stamp: Time
    frame_id: str


@dataclasses.dataclass
class String(IdlStruct, typename="std_msgs.msg.dds_.String_"):
    data: str


@dataclasses.dataclass
class Bool(IdlStruct, typename="std_msgs.msg.dds_.Bool_"):
    data: bool


@dataclasses.dataclass
class Image(IdlStruct, typename="sensor_msgs.msg.dds_.Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclasses.dataclass
class CompressedImage(IdlStruct, typename="sensor_msgs.msg.dds_.CompressedImage_"):
    header: Header
    format: str
    data: sequence[uint8]


@dataclasses.dataclass
class JointState(IdlStruct, typename="sensor_msgs.msg.dds_.JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclasses.dataclass
class JointTrajectoryPoint(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectoryPoint_"):
    positions: sequence[float64]
    velocities: sequence[float64]
    accelerations: sequence[float64]
    effort: sequence[float64]
    time_from_start: Duration


@dataclasses.dataclass
class JointTrajectory(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectory_"):
    header: Header
    joint_names: sequence[str]
    points: sequence[JointTrajectoryPoint]


@dataclasses.dataclass
class ActionGroup(IdlStruct, typename="groot_policy.msg.dds_.ActionGroup_"):
    key: str
    names: sequence[str]
    dimension: uint32
    data: sequence[float32]


@dataclasses.dataclass
class StageTiming(IdlStruct, typename="groot_policy.msg.dds_.StageTiming_"):
    stage: str
    milliseconds: float32


@dataclasses.dataclass
class ActionChunk(IdlStruct, typename="groot_policy.msg.dds_.ActionChunk_"):
    header: Header
    observation_stamp: Time
    state_stamp: Time
    sequence: uint64
    noise_seed: uint64
    instruction: str
    embodiment: str
    horizon: uint32
    step_time: Duration
    groups: sequence[ActionGroup]
    timing: sequence[StageTiming]


@dataclasses.dataclass
class Clock(IdlStruct, typename="rosgraph_msgs.msg.dds_.Clock_"):
    clock: Time


@dataclasses.dataclass
class Log(IdlStruct, typename="rcl_interfaces.msg.dds_.Log_"):
    stamp: Time
    level: uint8
    name: str
    msg: str
    file: str
    function: str
    line: uint32


@dataclasses.dataclass
class ParameterValue(IdlStruct, typename="rcl_interfaces.msg.dds_.ParameterValue_"):
    type: uint8
    bool_value: bool
    integer_value: int64
    double_value: float64
    string_value: str
    byte_array_value: sequence[uint8]
    bool_array_value: sequence[bool]
    integer_array_value: sequence[int64]
    double_array_value: sequence[float64]
    string_array_value: sequence[str]


@dataclasses.dataclass
class Parameter(IdlStruct, typename="rcl_interfaces.msg.dds_.Parameter_"):
    name: str
    value: ParameterValue


@dataclasses.dataclass
class FloatingPointRange(IdlStruct, typename="rcl_interfaces.msg.dds_.FloatingPointRange_"):
    from_value: float64
    to_value: float64
    step: float64


@dataclasses.dataclass
class IntegerRange(IdlStruct, typename="rcl_interfaces.msg.dds_.IntegerRange_"):
    from_value: int64
    to_value: int64
    step: uint64


@dataclasses.dataclass
class ParameterDescriptor(IdlStruct, typename="rcl_interfaces.msg.dds_.ParameterDescriptor_"):
    name: str
    type: uint8
    description: str
    additional_constraints: str
    read_only: bool
    dynamic_typing: bool
    floating_point_range: sequence[FloatingPointRange]
    integer_range: sequence[IntegerRange]


@dataclasses.dataclass
class SetParametersResult(IdlStruct, typename="rcl_interfaces.msg.dds_.SetParametersResult_"):
    successful: bool
    reason: str


@dataclasses.dataclass
class ListParametersResult(IdlStruct, typename="rcl_interfaces.msg.dds_.ListParametersResult_"):
    names: sequence[str]
    prefixes: sequence[str]


@dataclasses.dataclass
class ParameterEvent(IdlStruct, typename="rcl_interfaces.msg.dds_.ParameterEvent_"):
    stamp: Time
    node: str
    new_parameters: sequence[Parameter]
    changed_parameters: sequence[Parameter]
    deleted_parameters: sequence[Parameter]


@dataclasses.dataclass
class State(IdlStruct, typename="lifecycle_msgs.msg.dds_.State_"):
    id: uint8
    label: str


@dataclasses.dataclass
class Transition(IdlStruct, typename="lifecycle_msgs.msg.dds_.Transition_"):
    id: uint8
    label: str


@dataclasses.dataclass
class TransitionDescription(IdlStruct, typename="lifecycle_msgs.msg.dds_.TransitionDescription_"):
    transition: Transition
    start_state: State
    goal_state: State


@dataclasses.dataclass
class TransitionEvent(IdlStruct, typename="lifecycle_msgs.msg.dds_.TransitionEvent_"):
    timestamp: uint64
    transition: Transition
    start_state: State
    goal_state: State


TYPES = {
    "std_msgs/Bool": Bool,
    "std_msgs/String": String,
    "sensor_msgs/Image": Image,
    "sensor_msgs/CompressedImage": CompressedImage,
    "sensor_msgs/JointState": JointState,
    "trajectory_msgs/JointTrajectory": JointTrajectory,
    "groot_policy/ActionChunk": ActionChunk,
    "rosgraph_msgs/Clock": Clock,
    "rcl_interfaces/Log": Log,
    "rcl_interfaces/ParameterEvent": ParameterEvent,
    "lifecycle_msgs/TransitionEvent": TransitionEvent,
}

# Services: the fields of request and response. What has no field gets one from rosidl.
EMPTY = {"structure_needs_at_least_one_member": uint8}
NAMES = {"names": sequence[str]}
SERVICES = {
    "std_srvs/Trigger": (EMPTY, {"success": bool, "message": str}),
    "rcl_interfaces/GetParameters": (NAMES, {"values": sequence[ParameterValue]}),
    "rcl_interfaces/GetParameterTypes": (NAMES, {"types": sequence[uint8]}),
    "rcl_interfaces/ListParameters": ({"prefixes": sequence[str], "depth": uint64}, {"result": ListParametersResult}),
    "rcl_interfaces/DescribeParameters": (NAMES, {"descriptors": sequence[ParameterDescriptor]}),
    "rcl_interfaces/SetParameters": (
        {"parameters": sequence[Parameter]},
        {"results": sequence[SetParametersResult]},
    ),
    "rcl_interfaces/SetParametersAtomically": ({"parameters": sequence[Parameter]}, {"result": SetParametersResult}),
    "lifecycle_msgs/ChangeState": ({"transition": Transition}, {"success": bool}),
    "lifecycle_msgs/GetState": (EMPTY, {"current_state": State}),
    "lifecycle_msgs/GetAvailableStates": (EMPTY, {"available_states": sequence[State]}),
    "lifecycle_msgs/GetAvailableTransitions": (EMPTY, {"available_transitions": sequence[TransitionDescription]}),
}

# What names a call, before the fields of request and response. rmw_cyclonedds: a number of the client and one of the call.
# "Basic" of the OMG's RPC over DDS: a sample's identity, then the name of an instance or the number of an exception.
HEADERS = {
    "cyclone": ({"guid": uint64, "seq": int64},) * 2,
    "basic": (
        {"writer": array[uint8, 16], "sequence_high": int32, "sequence_low": uint32, "instance": str},
        {"writer": array[uint8, 16], "sequence_high": int32, "sequence_low": uint32, "exception": uint32},
    ),
}


def struct(typename, fields):
    """A DDS type made from its fields."""
    annotations = {"__annotations__": fields, "__module__": __name__}
    kind = types.new_class(
        typename.split(".")[-1], (IdlStruct,), {"typename": typename}, lambda names: names.update(annotations)
    )
    return dataclasses.dataclass(kind)


def half_of_service(service, half, header, fields):
    """The type of a request or response with its header."""
    package, name = service.split("/")
    return struct(f"{package}.srv.dds_.{name}_{half}_", {**header, **fields})


def from_json(kind, value):
    """Makes a value of a field's type from JSON."""
    if isinstance(value, dict) and "base64" in value:
        return base64.b64decode(value["base64"], validate=True)
    if isinstance(value, dict) and "file" in value:
        with open(value["file"], "rb") as file:
            return file.read()
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{name: from_json(hints[name], value[name]) for name in hints})
    if isinstance(value, list):
        element = typing.get_args(kind)[1].subtype
        return [from_json(element, item) for item in value]
    return math.nan if value is None else value


def to_json(kind, value):
    """Makes JSON from a value of a field's type."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {name: to_json(hints[name], getattr(value, name)) for name in hints}
    if isinstance(value, (list, bytes)):
        element = typing.get_args(kind)[1].subtype
        if element is uint8:
            return {"base64": base64.b64encode(bytes(value)).decode()}
        return [to_json(element, item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def qos_of(name, keep):
    rules = {
        "sensor_data": (Policy.Reliability.BestEffort, Policy.Durability.Volatile),
        "reliable": (Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.Durability.Volatile),
        "transient_local": (Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.Durability.TransientLocal),
        "latched": (Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.Durability.TransientLocal),
    }[name]
    return Qos(*rules, Policy.History.KeepLast(1 if name == "latched" else keep))


def wait_for(what, timeout, poll):
    """Polls until there is an answer."""
    end = time.monotonic() + timeout
    while True:
        answer = poll()
        if answer is not None:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.005)


class Peer:
    def __init__(self, domain):
        self.participant = DomainParticipant(domain)
        self.kinds = {}
        self.writers = {}
        self.readers = {}
        self.repeating = {}
        self.calls = 0
        # Made before anything is discovered, so that they see all of it.
        self.directories = {
            "publisher": BuiltinDataReader(self.participant, BuiltinTopicDcpsPublication),
            "subscriber": BuiltinDataReader(self.participant, BuiltinTopicDcpsSubscription),
        }

    def topic(self, command, qos):
        kind = TYPES[command["type"]]
        self.kinds[command["topic"]] = kind
        return Topic(self.participant, "rt" + command["topic"], kind, qos=qos)

    def publisher(self, command):
        qos = qos_of(command["qos"], 10)
        self.writers[command["topic"]] = DataWriter(self.participant, self.topic(command, qos), qos=qos)

    def subscriber(self, command):
        qos = qos_of(command["qos"], command.get("keep", 100))
        self.readers[command["topic"]] = DataReader(self.participant, self.topic(command, qos), qos=qos)

    def matched(self, command):
        topic, count = command["topic"], command.get("count", 1)

        def poll():
            if topic in self.writers:
                peers = self.writers[topic].get_matched_subscriptions()
            else:
                peers = self.readers[topic].get_matched_publications()
            return True if len(peers) >= count else None

        wait_for(f"{count} peers on {topic}", command.get("timeout", 60), poll)

    def publish(self, command):
        topic = command["topic"]
        self.writers[topic].write(from_json(self.kinds[topic], command["message"]))

    def repeat(self, command):
        topic = command["topic"]
        writer, message = self.writers[topic], from_json(self.kinds[topic], command["message"])
        period, restamp = 1.0 / command["rate"], command.get("restamp", False)
        ended, sent = threading.Event(), []

        def run():
            due = time.monotonic()
            while not ended.wait(max(0.0, due - time.monotonic())):
                if restamp:
                    now = time.time_ns()
                    message.header.stamp = Time(now // 10**9, now % 10**9)
                writer.write(message)
                sent.append(None)
                due += period

        thread = threading.Thread(target=run, daemon=True)
        self.repeating[topic] = (thread, ended, sent)
        thread.start()

    def stop(self, command):
        thread, ended, sent = self.repeating.pop(command["topic"])
        ended.set()
        thread.join()
        return {"sent": len(sent)}

    def take(self, command):
        topic, count = command["topic"], command.get("count", 1)
        kind, reader, taken = self.kinds[topic], self.readers[topic], []

        def poll():
            samples = reader.take(N=count - len(taken))
            taken.extend(sample for sample in samples if isinstance(sample, kind))
            return taken if len(taken) >= count else None

        wait_for(f"{count} messages on {topic}", command.get("timeout", 60), poll)
        return {"messages": [to_json(kind, message) for message in taken]}

    def call(self, command):
        service, kind, mapping = command["service"], command["type"], command.get("mapping", "cyclone")
        timeout = command.get("timeout", 60)
        asked, answered = SERVICES[kind]
        request_header, response_header = HEADERS[mapping]
        request_kind = half_of_service(kind, "Request", request_header, asked)
        response_kind = half_of_service(kind, "Response", response_header, answered)
        qos = qos_of("reliable", 10)
        requests = Topic(self.participant, f"rq{service}Request", request_kind, qos=qos)
        responses = Topic(self.participant, f"rr{service}Reply", response_kind, qos=qos)
        writer = DataWriter(self.participant, requests, qos=qos)
        reader = DataReader(self.participant, responses, qos=qos)
        server = lambda: writer.get_matched_subscriptions() and reader.get_matched_publications() or None
        wait_for(f"a server of {service}", timeout, server)

        # A client that also hears the answers to others must tell them from its own.
        self.calls += 1
        if mapping == "cyclone":
            identity = {"guid": (os.getpid() << 32) + self.calls, "seq": self.calls}
            header = identity
        else:
            identity = {"writer": [self.calls] * 16, "sequence_high": 0, "sequence_low": self.calls}
            header = {**identity, "instance": ""}
        fields = {name: from_json(field, command["request"][name]) for name, field in asked.items() if asked is not EMPTY}
        writer.write(request_kind(**header, **(fields or {name: 0 for name in EMPTY})))

        def poll():
            for response in reader.take(N=100):
                if isinstance(response, response_kind):
                    found = {name: getattr(response, name) for name in identity}
                    if {**found, "writer": list(found.get("writer", []))} == {"writer": [], **identity}:
                        return response
            return None

        response = wait_for(f"an answer of {service}", timeout, poll)
        return {"response": {name: to_json(field, getattr(response, name)) for name, field in answered.items()}}

    def endpoints(self, command):
        name, count = "rt" + command["topic"], command.get("count", 1)

        def poll():
            found = [
                {
                    "role": role,
                    "topic": endpoint.topic_name,
                    "type": endpoint.type_name,
                    "reliable": isinstance(endpoint.qos[Policy.Reliability], Policy.Reliability.Reliable),
                    "latched": endpoint.qos[Policy.Durability] == Policy.Durability.TransientLocal,
                }
                for role, directory in self.directories.items()
                for endpoint in directory.read(N=1000)
                if endpoint.topic_name == name and endpoint.participant_key != self.participant.guid
            ]
            return found if len(found) >= count else None

        return {"endpoints": wait_for(f"{count} endpoints of {name}", command.get("timeout", 60), poll)}


COMMANDS = {"publisher", "subscriber", "matched", "publish", "repeat", "stop", "take", "call", "endpoints"}


def main():
    peer = Peer(int(sys.argv[1]))
    for line in sys.stdin:
        try:
            command = json.loads(line)
            if command["command"] not in COMMANDS:
                raise ValueError(f"there is no command {command['command']!r}")
            answer = {"ok": True, **(getattr(peer, command["command"])(command) or {})}
        except Exception as error:  # whatever it is, the test at the other end must hear of it
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
